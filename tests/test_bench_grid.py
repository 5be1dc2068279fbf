"""K and R against each other: every cell is what it says, in the order a matrix is laid out in, or is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import grid as module
from bench.cache import UNCACHED
from bench.grid import GridOptions, cell, grid, markdown_of
from bench.records import Kind, Record, read_records
from bench.reference import reference_from_series
from runtime.cache.options import E2CRF
from runtime.errors import OptionError
from runtime.sampler import Model
from tests import opened
from tests.commands import QUICK, REAL, run, write_run

OPTIONS = GridOptions(K=(0, 3), R=(5, 10, 20), num_samples=4, steps=40, rounds=0, quality=QUICK)
model = opened.tiny


@pytest.fixture(scope="module")
def found(model: Model) -> Record:
    return grid(model, reference_from_series(REAL), OPTIONS)


def test_the_uncached_row_stands_above_every_r_of_every_k(found: Record) -> None:
    cells = ["K 0, R 5", "K 0, R 10", "K 0, R 20", "K 3, R 5", "K 3, R 10", "K 3, R 20"]
    assert found.kind == Kind.GRID
    assert [row.rival for row in found.rows] == [UNCACHED, *cells]
    assert [row.policy for row in found.rows] == ["every step", *cells]
    assert (found.options["K"], found.options["R"]) == ([0, 3], [5, 10, 20])
    uncached = found.rows[0]
    assert (uncached.passes, uncached.paired_error) == (40, None)
    for row in found.rows[1:]:
        assert row.num_samples == 4
        assert row.sw_time is not None
        assert (row.paired_error or 0) > 0
        assert row.ms_per_sample is None  # rounds=0


def test_every_cell_is_the_cache_it_names(found: Record, model: Model) -> None:
    """Oracle: the same cache drawn alone."""
    rows = {row.rival: row for row in found.rows}
    for K, R in ((0, 20), (3, 5)):
        stats = model.sample(4, steps=40, seed=0, cache=E2CRF(K=K, R=R)).stats
        assert rows[cell(K, R)].passes == stats.passes
        assert rows[cell(K, R)].hit_rate == stats.hit_rate


def test_smaller_r_and_larger_k_recompute_more(found: Record) -> None:
    passes = {row.rival: row.passes or 0 for row in found.rows}
    for K in (0, 3):
        assert passes[cell(K, 5)] > passes[cell(K, 10)] > passes[cell(K, 20)]
    for R in (5, 10, 20):
        assert passes[cell(3, R)] > passes[cell(0, R)]


def test_a_preset_is_the_published_policy(model: Model) -> None:
    asked = replace(OPTIONS, K=(2,), R=(4,), preset="readme")
    assert asked.cache(2, 4) == E2CRF.preset("readme", K=2, R=4)
    row = grid(model, reference_from_series(REAL), asked).rows[1]
    assert "chosen" in (row.events or {})  # tokens by threshold, which intervals do not know
    assert (row.events or {}).get("prior") is None


def test_with_rounds_the_cells_are_timed_against_uncached(model: Model) -> None:
    asked = replace(OPTIONS, K=(0,), R=(20,), rounds=1, steps=200)
    uncached, cached = grid(model, reference_from_series(REAL), asked).rows
    assert uncached.speedup == 1
    assert (cached.ms_per_sample or 0) < (uncached.ms_per_sample or 0)  # 8 passes of 200
    assert (cached.speedup or 0) > 1


def test_the_matrix_has_k_down_and_r_across(found: Record) -> None:
    lines = markdown_of(found).splitlines()
    assert lines[0] == "| SW time (passes) | R 5 | R 10 | R 20 |"
    row = {row.rival: row for row in found.rows}[cell(3, 10)]
    assert lines[3].split(" | ")[0] == "| K 3"
    assert lines[3].split(" | ")[2] == f"{row.sw_time:.4g} ({row.passes:.4g}, 4 diverged)"
    assert lines[-1].startswith(f"Uncached: {found.rows[0].sw_time:.4g} (40")


def test_the_usual_k_are_those_that_the_model_has(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert GridOptions().low_counts(model) == (0, 3, 5)  # of 8 frequencies
    without = replace(model.facts, tokens=replace(model.facts.tokens, obstacle="it has no K/V cache"))
    monkeypatch.setattr(model, "facts", without)
    assert GridOptions().low_counts(model) == (0,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"K": (0, 9)}, r"K must not exceed the 8 frequencies of this model \(15 tokens\), found 9"),
        ({"K": (-1,)}, "K must be a number of frequencies"),
        ({"solver": "rk4"}, "unknown solver 'rk4'"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_anything_is_drawn(
    model: Model, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(Model, "sample", lambda *_, **options: pytest.fail("drawn"))
    with pytest.raises(OptionError, match=says):
        grid(model, reference_from_series(REAL), replace(OPTIONS, **change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"R": (5, 0)}, "R must be a whole number of at least 1, found 0"),
        ({"R": ()}, "name at least one R"),
        ({"K": ()}, "name at least one K"),
        ({"preset": "mine"}, "unknown preset 'mine'"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"rounds": -1}, "rounds must not be negative"),
    ],
)
def test_options_that_cannot_be_meant_are_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        GridOptions(**change)


def test_the_command_writes_the_record_and_prints_the_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    words = ["model_id=tiny", "num_samples=2", "num_diffusion_steps=10", "-K", "0,2", "-R", "3,5", "--rounds", "0"]
    assert run(module.main, monkeypatch, *words) == 0
    (written,) = read_records(Path("bundles/tiny/reports/grid.json"))
    assert capfd.readouterr().out == markdown_of(written) + "\n"
    assert [row.rival for row in written.rows][1:] == ["K 0, R 3", "K 0, R 5", "K 2, R 3", "K 2, R 5"]
    assert run(module.main, monkeypatch, *words, "--json", "--out", "mine.json") == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(Path("mine.json").read_text())
    assert run(module.main, monkeypatch, "latest", "-R", "few") == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "-R must be whole numbers with commas between, found 'few'" in said
