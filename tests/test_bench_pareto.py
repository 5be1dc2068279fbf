"""Speed against quality: costs are known in advance, the frontier is one, and what is near it is judged and timed."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import real_series, write_gaussian_bundle

import bench.pareto as module
from bench.contenders import Contender, Way
from bench.latency import RaceOptions
from bench.pareto import (
    GRIDS,
    ParetoOptions,
    best_of,
    candidates,
    distance_of,
    frontier,
    markdown_of,
    over_frontier,
    pareto,
    search,
)
from bench.quality import QualityOptions
from bench.records import Kind, Record, Row, read_records
from bench.rows import FLOOR
from export.bundle import ExportOptions, export_bundle
from runtime.cache.plan import Plan
from runtime.errors import OptionError
from runtime.output import write_samples
from runtime.sampler import Model, load
from runtime.solvers import Solver, TimeGrid
from tests.tiny import make_bundle

QUICK = QualityOptions(num_directions=40, num_resamples=4, interval_directions=4)
RACE = RaceOptions(rounds=1, turn_s=0.0, settle_s=0.0)


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> ParetoOptions:
    folder = tmp_path_factory.mktemp("gaussian")
    np.savez(folder / "reference.npz", train=real_series(200, 1), test=real_series(80, 2))
    return ParetoOptions(
        write_gaussian_bundle(folder / "bundle"), folder / "reference.npz", steps=(4, 16, 64), refreshes=(1, 3),
        uncached_steps=50, num_samples=64, minutes=0.03, finalists=4, race=RACE, quality=QUICK,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def fake_where_there_are_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle of a closed form is served by functions."""

    def opened(path: Path, **options: Any) -> Model:
        return load(path, **options) if (path / "onnx").is_dir() else load(path, "fake")

    monkeypatch.setattr(module, "load", opened)


@pytest.fixture(scope="module")
def model(gaussian: ParetoOptions) -> Model:
    return load(gaussian.bundle, "fake")


@pytest.fixture
def found(gaussian: ParetoOptions) -> Record:
    return pareto(gaussian)


def quiet(doing: str, share: float) -> None:
    """Nobody listens."""


# Candidates


def test_the_cost_of_a_way_is_known_before_it_is_drawn(gaussian: ParetoOptions, model: Model) -> None:
    """Oracle: what the sampler counts, for every one of them."""
    found = candidates(model, gaussian)
    assert len(found) > 60
    assert [one.passes for one in found] == sorted(one.passes for one in found)
    assert max(one.passes for one in found) <= gaussian.most_passes
    for one in found:
        assert one.contender.draw(1, 1).stats.passes == one.passes


def test_every_solver_is_tried_on_the_grids_that_suit_it(gaussian: ParetoOptions, model: Model) -> None:
    tried = {(one.contender.solver, one.contender.grid) for one in candidates(model, gaussian)}
    assert tried == {(solver, grid) for solver, grids in GRIDS.items() for grid in grids}
    assert set(GRIDS) == set(Solver)


def test_no_two_ways_are_one_under_two_names(gaussian: ParetoOptions, model: Model) -> None:
    found = candidates(model, gaussian)
    assert max(Counter(one.name for one in found).values()) == 1
    asked = Counter()
    for one in found:
        network = np.flatnonzero(one.contender.draw(1, 1).stats.recomputed.sum(axis=1))
        reuse = one.contender.cache.reuse if one.contender.way is Way.INTERVAL else None  # type: ignore[union-attr]
        asked[one.contender.solver, one.contender.grid, one.contender.steps, reuse, *network.tolist()] += 1
    assert max(asked.values()) == 1


def test_reuse_is_tried_only_where_it_saves_much(gaussian: ParetoOptions, model: Model) -> None:
    for one in candidates(model, gaussian):
        if one.contender.way is Way.INTERVAL:
            prior = one.contender.draw(1, 1).stats.event_counts.get("prior", 0)
            assert one.contender.steps - prior >= 5 * one.passes


# The frontier


def row(name: str, ms: float | None, time: float | None, frequency: float | None = None, **more: Any) -> Row:
    beside = time if frequency is None else frequency
    return Row(name, ms_per_sample=ms, sw_time_over_floor=time, sw_frequency_over_floor=beside, **more)


ROWS = [
    row("slow", 9.0, 1.0),
    row("fast", 1.0, 3.0),
    row("middle", 2.0, 1.01),
    row("beaten", 3.0, 1.5),
    row("beaten in one domain", 2.5, 1.0, 1.2),
    row("as fast", 1.0, 4.0),
    row("not finite", 0.5, 1.0, num_left_out=1),
    row("not judged", 0.1, None),
    row("not timed", None, 0.5),
]


def test_on_the_frontier_is_what_nothing_as_fast_is_better_than() -> None:
    timed = ROWS[:-1]
    assert [one.rival for one in frontier(timed)] == ["fast", "middle", "slow"]
    over = dict(zip((one.rival for one in timed), over_frontier(timed), strict=True))
    assert over["beaten"] == pytest.approx(1.5 / 1.01)
    assert over["beaten in one domain"] == pytest.approx(1.2 / 1.01)  # the worse domain counts
    assert over["as fast"] == pytest.approx(4 / 3)
    assert (over["not finite"], over["not judged"]) == (np.inf, np.inf)
    assert distance_of(ROWS[-2]) == np.inf


def test_the_best_is_the_fastest_of_those_nearly_as_good_as_any() -> None:
    timed = ROWS[:-1]
    for within, name in ((0.0, "slow"), (0.02, "middle"), (2.5, "fast")):
        best = best_of(timed, within)
        assert best is not None
        assert best.rival == name
    assert best_of([], 0.02) is None
    assert best_of(ROWS[6:8], 0.02) is None


# The rough part


def test_each_round_draws_three_times_as_many_samples_of_a_third(gaussian: ParetoOptions, model: Model) -> None:
    doing: dict[str, None] = {}
    asked = replace(gaussian, minutes=100.0)
    tried = search(model, asked.judges(), asked, lambda what, share: doing.setdefault(what))
    total = len(candidates(model, asked))
    second = -(-total // 3)
    assert list(doing) == [
        f"trying {total} ways on 32 samples",
        f"trying {second} ways on 96 samples",
        f"trying {-(-second // 3)} ways on 288 samples",
    ]
    assert len(tried) == -(-second // 3)
    over = over_frontier([row for _, row in tried])
    assert over[0] == 1.0
    assert over == sorted(over)
    assert {row.num_samples for _, row in tried} == {288}


def test_when_the_time_is_over_the_dearest_are_left_out(gaussian: ParetoOptions, model: Model) -> None:
    asked = replace(gaussian, minutes=1e-6)
    ((candidate, row),) = search(model, asked.judges(), asked, quiet)
    assert candidate == candidates(model, asked)[0]
    assert row.num_samples == 16 * 9


def test_the_larger_part_of_the_real_series_judges_unless_one_is_named(gaussian: ParetoOptions) -> None:
    assert len(gaussian.judges().series) == 200
    assert len(replace(gaussian, part="test").judges().series) == 80


# The whole


def test_finalists_are_judged_on_as_many_samples_and_timed_with_the_uncached_sampler(found: Record) -> None:
    uncached, *finalists, floor = found.rows
    assert (uncached.rival, floor.rival, found.kind) == ("fake, uncached", FLOOR, Kind.PARETO)
    assert (uncached.steps, uncached.solver, uncached.speedup, uncached.num_samples) == (50, "ancestral", 1, 64)
    assert len(finalists) == 4
    for one in finalists:
        assert (one.num_samples, one.precision) == (64, "fp32")
        assert (one.speedup or 0) > 0
        assert one.sw_time is not None
    timed = list(found.rows[:-1])
    assert found.options["frontier"] == [one.rival for one in frontier(timed)]
    best = best_of(timed, 0.02)
    assert best is not None
    assert found.options["best"] == best.rival
    assert Record.to_line(found) == json.dumps(json.loads(found.to_line()))
    text = markdown_of(found)
    assert f"The fastest within 2% of the best quality: {best.rival}." in text
    assert "; ".join(found.options["frontier"]) in text


def test_the_plan_of_the_bundle_is_judged_whatever_it_is_worth(
    gaussian: ParetoOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(source_digest="0" * 64, steps=30, solver=Solver.DDIM, reuse="data", refreshes=(1,))  # a bad one
    monkeypatch.setattr(Model, "plan", lambda self: plan)
    rows = pareto(replace(gaussian, finalists=2)).rows
    assert [row.rival for row in rows if row.policy == "plan of 1 refresh"] == ["ddim 30, plan of 1 refresh"]
    rough = pareto(replace(gaussian, rough_only=True, finalists=2)).rows
    assert "plan of 1 refresh" not in {row.policy for row in rough}  # a search may be there to replace it


def test_roughly_nothing_is_timed_side_by_side(gaussian: ParetoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "timed", lambda *_: pytest.fail("timed"))
    rough = pareto(replace(gaussian, rough_only=True))
    assert len(rough.rows) == 4
    assert all(row.ms_per_sample and row.speedup is None for row in rough.rows)
    assert set(rough.options["frontier"]) <= {row.rival for row in rough.rows}


def test_uncached_samples_may_come_from_a_file_that_is_what_would_be_drawn(
    gaussian: ParetoOptions, model: Model, tmp_path: Path
) -> None:
    one = Contender(Way.UNCACHED, model, None, 50, Solver.ANCESTRAL, 0)
    facts: dict[str, Any] = {"source_digest": "0" * 64, "steps": 50, "solver": "ancestral", "grid": "uniform",
                             "seed": 0, "first_sample": 0, "cache": None}  # fmt: skip
    write_samples(tmp_path / "uncached.npz", one.draw(40, 40), facts)
    row = pareto(replace(gaussian, uncached=(tmp_path / "uncached.npz",))).rows[0]
    assert (row.num_samples, row.passes) == (40, 50)
    assert row.sw_time is not None
    write_samples(tmp_path / "other.npz", one.draw(4, 4), facts | {"steps": 40})
    with pytest.raises(OptionError, match=r"must hold uncached samples with steps 50, found 40; draw them with"):
        pareto(replace(gaussian, uncached=(tmp_path / "other.npz",)))


def test_an_uncached_draw_that_would_take_too_long_is_left_out_and_still_timed(
    gaussian: ParetoOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pass_seconds", lambda model, batch: 1.0)
    row = pareto(gaussian).rows[0]
    assert (row.rival, row.sw_time, row.num_samples) == ("fake, uncached", None, None)
    assert (row.ms_per_sample or 0) > 0


def test_finalists_are_drawn_in_every_precision_of_one_checkpoint(tmp_path: Path) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    export_bundle(checkpoint, ExportOptions(tmp_path / "half", precision="fp16"))
    np.save(tmp_path / "real.npy", np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32))
    options = ParetoOptions(
        folder, tmp_path / "real.npy", also=(tmp_path / "half",), solvers=("ddim",), steps=(4, 8), finalists=2,
        uncached_steps=10, num_samples=8, minutes=0.5, threads=1, race=RACE, quality=QUICK,
    )  # fmt: skip
    _, *finalists, _ = pareto(options).rows
    names = [row.rival.rpartition(", ")[0] for row in finalists]
    assert [row.precision for row in finalists] == ["fp32", "fp16"] * 2
    assert names[::2] == names[1::2]
    for full, half in zip(finalists[::2], finalists[1::2], strict=True):
        assert half.sw_time == pytest.approx(full.sw_time, rel=0.05)  # rounding of fp16 in two layers
    other, _ = make_bundle(tmp_path / "other", seed=3)
    with pytest.raises(OptionError, match=r"must be of the same checkpoint as .*; export that checkpoint again"):
        pareto(replace(options, also=(other,)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"solvers": ("rk4",)}, "unknown solver 'rk4'"),
        ({"part": "all"}, "unknown part of the reference 'all'"),
        ({"steps": ()}, "name at least one of steps"),
        ({"steps": (0,)}, "steps must be at least 1"),
        ({"finalists": 0}, "finalists must be at least 1"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"minutes": 0.0}, "minutes must be positive"),
    ],
)
def test_options_that_cannot_be_meant_are_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        ParetoOptions(Path("none"), Path("none"), **change)


def run(main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of a module's command in this process."""
    from runtime.command import run_as_command

    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as stop:
        run_as_command(main)
    return int(stop.value.code or 0)


def test_the_command_measures_against_pytorch_where_the_checkpoint_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = make_bundle(tmp_path)
    assert run(module.main, monkeypatch, str(folder)) == 2
    assert "must be judged by real series" in " ".join(capfd.readouterr().err.split())
    (tmp_path / "lightning_logs/tiny/checkpoints").mkdir(parents=True)
    shutil.copy("tiny.ckpt", "lightning_logs/tiny/checkpoints/last.ckpt")
    real = np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32)
    np.savez(tmp_path / "lightning_logs/tiny/reference.npz", train=real[:20], test=real[20:])
    monkeypatch.setattr(module, "RaceOptions", lambda rounds: RACE)
    words = [str(folder), "--steps", "4,8", "--solver", "ddim", "-n", "4", "--minutes", "0.001", "--threads", "1"]
    assert run(module.main, monkeypatch, *words) == 0
    (written,) = read_records(folder / "reports/pareto.json")
    assert capfd.readouterr().out == markdown_of(written) + "\n"
    pytorch, uncached = written.rows[:2]
    assert (pytorch.rival, pytorch.speedup, pytorch.passes) == ("pytorch, uncached", 1, 1000)
    assert uncached.rival == "onnxruntime, uncached"
    assert "fast path" in (written.baseline or "")
    assert {(row.solver, row.grid) for row in written.rows[2:-1]} <= {("ddim", grid) for grid in TimeGrid}
