"""The bench end to end: a perfect model scores like real series, a spoilt one fails the gate, all is told."""

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import real_series, write_gaussian_bundle

from bench import rows
from bench.compare import FLOOR, MEAN_SAMPLE, CompareOptions, Comparison, compare
from bench.contenders import Contender, Progress, Way, prior_of
from bench.few_steps import FEW_STEP_SOLVERS, fewer_steps
from bench.filed import read_filed
from bench.gate import failures_of
from bench.latency import RaceOptions
from bench.quality import QualityOptions, judge, mean_sample
from bench.records import Chart, Row, read_records, write_records
from bench.report import COLUMNS, cells_of, markdown_of, progress_on_terminal, show, write_results
from bench.spectra import CORRELATION_SLACK, SPECTRAL_SLACK
from bench.tables import data_sets
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cli import main
from runtime.errors import OptionError
from runtime.output import read_samples, write_samples
from runtime.sampler import Samples, load
from runtime.sde import VP
from runtime.solvers import Solver, TimeGrid

QUICK = QualityOptions(num_directions=60, num_resamples=40, interval_directions=30)
ROUGHLY = QualityOptions(num_directions=256, num_resamples=1, interval_directions=1)  # what rivals are sought by
PLAN = Plan(source_digest="0" * 64, steps=50, solver=Solver.DDIM, reuse="residual", refreshes=(20, 35, 42))


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> CompareOptions:
    folder = tmp_path_factory.mktemp("gaussian")
    np.savez(folder / "reference.npz", train=real_series(600, 1), test=real_series(600, 2))
    return CompareOptions(
        bundle=write_gaussian_bundle(folder / "bundle"),
        reference=folder / "reference.npz",
        backend="fake",
        num_samples=300,
        sampling_batch=300,
        steps=60,
        cache=E2CRF(K=0, R=6),
        race=RaceOptions(rounds=2, turn_s=0.01),
        quality=QUICK,
        max_sw_loss=0.05,
        equal_within=0.15,  # 128 samples of another solver
    )


@pytest.fixture(scope="module")
def found(gaussian: CompareOptions) -> Comparison:
    return compare(gaussian)


@pytest.fixture
def copied(gaussian: CompareOptions, tmp_path: Path) -> CompareOptions:
    """The same bench of a copy of the bundle, so that the record beside the first stays as it was."""
    copy = shutil.copytree(gaussian.bundle, tmp_path / "bundle")
    return replace(gaussian, bundle=copy, race=RaceOptions(rounds=1, turn_s=0.01))


def row(found: Comparison, rival: str) -> Row:
    (only,) = [row for row in found.record.rows if row.rival == rival]
    return only


def test_a_perfect_model_scores_like_real_series(found: Comparison) -> None:
    floor, mean = row(found, FLOOR), row(found, MEAN_SAMPLE)
    for way in ("uncached", "E2-CRF"):
        model = row(found, f"fake, {way}")
        assert model.sw_time is not None
        assert model.sw_time < 1.6 * (floor.sw_time or 0)  # both are sampling error of 300 against 600
        assert model.sw_time < 0.2 * (mean.sw_time or 0)
        assert model.num_diverged == 0
    assert floor.sw_time_over_floor == floor.sw_frequency_over_floor == 1.0


def test_caching_a_closed_form_changes_nothing_but_the_cost(found: Comparison) -> None:
    uncached, cached = row(found, "fake, uncached"), row(found, "fake, E2-CRF")
    assert (uncached.passes, uncached.hit_rate) == (60, 0)
    assert cached.passes is not None
    assert cached.passes == found.cached.stats.passes < 10
    assert cached.paired_error is not None
    assert cached.paired_error < 1e-4  # the residual of Gaussian data is float32 rounding
    assert found.record.passed
    assert abs(found.record.loss_time.value) < 1e-3


def test_fewer_steps_cost_what_the_cache_costs(found: Comparison) -> None:
    cached, fewer = row(found, "fake, E2-CRF"), row(found, "fake, fewer steps")
    assert fewer.passes == pytest.approx(cached.passes, abs=1.0)
    assert fewer.steps is not None
    assert fewer.steps < 60


def test_a_rival_of_equal_quality_is_as_good_and_no_cheaper(found: Comparison) -> None:
    cached, rival = row(found, "fake, E2-CRF"), row(found, "fake, fewer steps, as good")
    assert rival.passes is not None
    assert cached.passes is not None
    assert rival.passes >= cached.passes - 1
    assert (rival.sw_time or 0) < 1.2 * (cached.sw_time or 0)


def test_a_rival_of_equal_quality_is_one_on_all_samples_and_the_cheapest(copied: CompareOptions) -> None:
    """Oracle: the rival drawn again, and all that cost less, judged against the cached samples."""
    options = replace(copied, cache=replace(PLAN, refreshes=(20,)), num_samples=200, num_search=150)
    found = compare(options)
    roughly = replace(ROUGHLY, num_directions=options.quality.num_directions)  # as in the table
    as_good, cached_row = row(found, "fake, fewer steps, as good"), row(found, "fake, E2-CRF")
    with load(options.bundle, "fake") as model:
        cached = Contender(Way.CACHED, model, options.cache, 50, Solver.DDIM, 0)  # type: ignore[arg-type]

        def rivals(passes: int) -> list[Contender]:
            priors = (prior_of(cached), 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.95)
            choices = product(FEW_STEP_SOLVERS, priors)
            return [fewer_steps(cached, solver, grid, passes, alpha) for (solver, grid), alpha in choices]

        def over(rival: Contender, n: int) -> float:
            target = judge(found.cached.series[:n], found.reference, roughly)
            again = judge(rival.draw(n, 300).series, found.reference, roughly)
            in_time, in_frequency = again.time.sliced, again.frequency.sliced
            return max(
                in_time / target.time.sliced,
                in_frequency / target.frequency.sliced,
                1 + (again.spectral - target.spectral - 1.0) / 10,  # dB
                1 + again.autocorrelation - target.autocorrelation - 0.03,
            )

        assert cached_row.passes == 1
        assert as_good.passes is not None
        assert 1 <= as_good.passes <= options.most_passes
        told = (as_good.solver, as_good.grid, as_good.steps)
        same = [one for one in rivals(round(as_good.passes)) if (one.solver, one.grid, one.steps) == told]
        assert min(over(one, 200) for one in same) <= 1 + options.equal_within
        for passes in range(1, round(as_good.passes)):
            assert all(over(one, 200) > 1 + options.equal_within for one in rivals(passes))


def test_a_rival_whose_samples_are_all_lost_is_a_row_without_quality(
    copied: CompareOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Contender.draw

    def lost(one: Contender, n: int, batch_size: int, progress: Progress | None = None) -> Samples:
        drawn = draw(one, n, batch_size, progress)
        return replace(drawn, series=drawn.series * np.nan) if one.way is Way.STALE else drawn

    monkeypatch.setattr(Contender, "draw", lost)
    stale = row(compare(replace(copied, cache=PLAN, num_samples=40)), "fake, stale features")
    assert (stale.sw_time, stale.spectral) == (None, None)
    assert stale.speedup is not None


def test_a_row_of_fewer_samples_stands_beside_the_cached_one_on_as_many(copied: CompareOptions) -> None:
    """Oracle: the first of the cached samples, judged again."""
    options = replace(copied, cache=PLAN, num_samples=40, num_uncached=24)
    found = compare(options)
    few = judge(found.cached.series[:24], found.reference, options.quality)
    uncached, cached = row(found, "fake, uncached"), row(found, "fake, E2-CRF")
    assert (uncached.num_samples, cached.num_samples) == (24, 40)
    assert uncached.cached_sw_time == pytest.approx(few.time.sliced, rel=1e-9)
    assert uncached.cached_sw_frequency == pytest.approx(few.frequency.sliced, rel=1e-9)
    assert cached.cached_sw_time is None
    cell = cells_of(uncached)[COLUMNS.index("SW time")]
    assert cell.endswith(f" ({few.time.sliced:.3g})")
    assert "(" not in cells_of(cached)[COLUMNS.index("SW time")]
    table = data_sets([found.record])
    told = {title: cell for (title, _), cell in zip(table.titles, table.rows[0], strict=True)}
    assert told["SW time, uncached"].text == f"{uncached.sw_time:.3g} (24)"
    assert told["SW time, E2-CRF"].text == f"{cached.sw_time:.3g}"


def test_the_prior_phase_of_a_rival_is_that_of_the_cache(gaussian: CompareOptions) -> None:
    """Oracle of a plan: alpha of VP at the time of its first refresh, times even from 1 to 1e-5."""
    with load(gaussian.bundle, "fake") as model:
        cached = Contender(Way.CACHED, model, E2CRF(K=0, alpha_prior=0.3), 60, Solver.DDIM, 0)
        assert prior_of(cached) == 0.3
        assert prior_of(replace(cached, cache=None)) == 0.0
        t = 1.0 - 20 / 49 * (1.0 - 1e-5)
        planned = replace(cached, cache=PLAN, steps=50)
        assert prior_of(planned) == pytest.approx(VP().alpha(t), rel=1e-9)
        stats = fewer_steps(planned, Solver.DDIM, TimeGrid.QUADRATIC, 3).draw(2, 2).stats
    assert stats.passes == 3
    assert stats.event_counts["prior"] > 0


def test_a_plan_brings_its_own_steps_and_solver_and_its_rivals_follow(copied: CompareOptions) -> None:
    planned = compare(replace(copied, cache=PLAN, num_samples=40))
    rows = {way: row(planned, f"fake, {way}") for way in ("uncached", "E2-CRF", "fixed interval", "stale features")}
    assert (rows["uncached"].steps, rows["uncached"].solver) == (60, "ancestral")
    for way in ("E2-CRF", "fixed interval", "stale features"):
        assert (rows[way].steps, rows[way].solver) == (50, "ddim")
        assert rows[way].passes == pytest.approx(3, abs=1)
    assert rows["E2-CRF"].paired_error is None  # of another solver: not from the same noise
    assert (row(planned, "fake, fewer steps").passes or 0) <= 3


def test_plainer_caches_cost_as_much(found: Comparison) -> None:
    cached = row(found, "fake, E2-CRF")
    for way in ("fixed interval", "stale features"):
        rival = row(found, f"fake, {way}")
        assert rival.passes == pytest.approx(cached.passes, abs=1.0)
    assert (row(found, "fake, stale features").paired_error or 0) == 0  # it is not paired with anything


@pytest.fixture(scope="module")
def stored(gaussian: CompareOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sample --uncached` writes."""
    path = tmp_path_factory.mktemp("stored") / "uncached.npz"
    settings = ["--uncached", "--steps", "60", "--backend", "fake", "--batch-size", "300"]
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(gaussian.bundle), "-n", "300", *settings, "--out", str(path)])
    assert not stop.value.code
    return path


def test_uncached_samples_of_a_file_are_worth_what_drawn_ones_are(
    copied: CompareOptions, found: Comparison, stored: Path
) -> None:
    again = compare(replace(copied, uncached=(stored,)))
    drawn, read = row(found, "fake, uncached"), row(again, "fake, uncached")
    timed = {name for name in vars(drawn) if re.search("_ms$|ms_per_sample|speedup|network_share", name)}
    for name in set(vars(drawn)) - timed - {"events"}:  # of which a file of samples says nothing
        assert getattr(read, name) == getattr(drawn, name), name
    assert again.record.loss_time == found.record.loss_time
    assert set(found.drawn) == {"e2crf", "uncached"}
    assert set(again.drawn) == {"e2crf"}  # what was there before is not written once more


def test_fewer_are_drawn_of_what_asks_the_network_at_most_steps_but_a_file_is_judged_whole(
    copied: CompareOptions, found: Comparison, stored: Path
) -> None:
    again = compare(replace(copied, num_uncached=50))
    assert np.array_equal(again.uncached, found.uncached[:50])
    assert row(again, "fake, uncached").num_samples == 50
    assert row(again, "fake, E2-CRF").num_samples == 300
    read = compare(replace(copied, uncached=(stored,), num_uncached=50, max_sw_loss=0.05))
    assert read.record.passed
    assert row(read, "fake, uncached").num_samples == 300
    alike = judge(again.cached.series[:50], again.reference, QUICK)
    uncached = judge(again.uncached, again.reference, QUICK)
    assert again.record.loss_time.value == pytest.approx(alike.time.sliced / uncached.time.sliced - 1, abs=1e-12)


def test_uncached_samples_may_come_in_the_files_of_an_interrupted_run(
    gaussian: CompareOptions, stored: Path, tmp_path: Path
) -> None:
    series, facts = read_samples(stored)
    with load(gaussian.bundle, "fake") as model:
        samples = model.sample(2, steps=3, cache=None)
        uncached = Contender(Way.UNCACHED, model, None, 60, Solver.ANCESTRAL, 0)
        paths = []
        for first, last in ((0, 120), (120, 300)):
            paths.append(tmp_path / f"{first}.npz")
            write_samples(paths[-1], replace(samples, series=series[first:last]), facts | {"first_sample": first})
        for order in (paths, paths[::-1]):
            np.testing.assert_array_equal(rows.stored(order, uncached)[0], series)
        assert rows.stored(paths, uncached)[1].passes == 60
        with pytest.raises(
            OptionError, match=r"120.npz must hold uncached samples with first_sample 0, found 120; draw"
        ):
            rows.stored(paths[1:], uncached)
        with pytest.raises(OptionError, match=r"0.npz must hold uncached samples with first_sample 120, found 0; draw"):
            rows.stored([paths[0], paths[0]], uncached)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "with seed 0, found 1"),
        ({"steps": 59}, "with steps 60, found 59"),
        ({"solver": "ddim"}, "with solver ancestral, found 'ddim'"),
        ({"grid": "logsnr"}, "with grid uniform, found 'logsnr'"),
        ({"first_sample": 7}, "with first_sample 0, found 7"),
        ({"source_digest": "1" * 64}, "with source_digest 0000000000.*, found '1111111111"),
        ({"cache": {"policy": "interval"}}, "with cache None, found {'policy': 'interval'}"),
    ],
)
def test_samples_of_something_else_are_refused(
    gaussian: CompareOptions, stored: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    series, facts = read_samples(stored)
    with load(gaussian.bundle, "fake") as model:
        samples = replace(model.sample(2, steps=3, cache=None), series=series)
    write_samples(tmp_path / "other.npz", samples, facts | change)
    with pytest.raises(OptionError, match=f"{says}.*; draw them with `e2crf sample --uncached`"):
        compare(replace(gaussian, uncached=(tmp_path / "other.npz",)))


def test_a_file_that_holds_no_samples_is_refused_in_a_sentence(gaussian: CompareOptions, tmp_path: Path) -> None:
    series = real_series(4, 0)
    np.save(tmp_path / "series.npy", series)
    np.savez(tmp_path / "bare.npz", series=series)
    np.savez(tmp_path / "list.npz", series=series, record=np.array("[1, 2]"))
    np.savez(tmp_path / "words.npz", series=series, record=np.array("not json"))
    (tmp_path / "empty.npz").touch()
    for name in ("series.npy", "bare.npz", "list.npz", "words.npz", "empty.npz", "gone.npz"):
        says = f"cannot read .*{name}: No such file" if name == "gone.npz" else f"{name} is not a whole file of samples"
        with pytest.raises(OptionError, match=f"{says}.* `e2crf sample`"):
            compare(replace(gaussian, uncached=(tmp_path / name,)))


def test_real_series_of_another_shape_are_refused_before_anything_is_drawn(
    copied: CompareOptions, tmp_path: Path
) -> None:
    np.save(tmp_path / "other.npy", real_series(20, 0)[:, :-1])
    kept = copied.bundle / "reports" / "bench.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("the record of before")
    told: list[str] = []
    with pytest.raises(OptionError, match=r"= \[16, 1\] as the model has, found \[15, 1\]; name the reference"):
        compare(replace(copied, reference=tmp_path / "other.npy"), lambda doing, share: told.append(doing))
    assert told == []
    assert kept.read_text() == "the record of before"


def test_the_record_on_disk_is_the_record(gaussian: CompareOptions, found: Comparison) -> None:
    (read,) = read_records(gaussian.bundle / "reports" / "bench.json")
    assert read == found.record
    told = found.record.to_line()
    assert str(gaussian.bundle.parent) not in told
    assert json.loads(told)["options"]["bundle"] == "bundle"


def test_a_record_that_is_replaced_is_kept_where_no_report_takes_it_for_one_more(
    copied: CompareOptions, found: Comparison
) -> None:
    reports = copied.bundle / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    kept = [replace(found.record, created=f"2026-01-0{day}T00:00:00+00:00") for day in (1, 2)]
    for path, record in zip((reports / "previous/bench.json", reports / "bench.json"), kept, strict=True):
        write_records(path, [record])
    new = compare(replace(copied, num_samples=20, num_search=20, quick=True, max_sw_loss=None))
    assert new.previous == reports / "previous/bench-2.json"
    assert read_records(new.previous) == [kept[1]]
    assert [one.record for one in read_filed([copied.bundle])] == [new.record]
    assert [one.record for one in read_filed([copied.bundle.parent])] == [new.record]
    assert len(read_filed([copied.bundle, reports / "previous"])) == 3  # where they are asked for


def test_generated_series_stand_beside_the_uncached_ones_of_their_noise(found: Comparison) -> None:
    drawn = {curve.name: curve.y for curve in found.record.curves if curve.chart == Chart.SERIES}
    assert list(drawn) == [f"{way} {k}" for way in (Way.UNCACHED, Way.CACHED) for k in range(1, 6)]
    for name, series in ((Way.UNCACHED, found.uncached), (Way.CACHED, found.cached.series)):
        np.testing.assert_allclose(drawn[f"{name} 3"], series[2, :, 0], rtol=1e-3)


def test_the_table_has_every_rival_and_json_comes_last(found: Comparison) -> None:
    out = io.StringIO()
    show(found.record, out)
    lines = out.getvalue().splitlines()
    assert json.loads(lines[-1])["schema"] == 2
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    for line, expected in zip(lines[2:7], found.record.rows, strict=False):
        assert line.split(" | ")[0] == f"| {expected.rival}"
        assert line.count("|") == len(COLUMNS) + 1
    assert "FAILED" not in out.getvalue()


@pytest.mark.parametrize("width", [200, 80])
def test_a_terminal_gets_a_drawn_table_that_fits(
    found: Comparison, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    places = {"record": Path("bundles", "m" * 80, "reports/bench.json"), "pictures": Path("out")}
    show(found.record, out, places)
    *shown, record, pictures = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()  # as long as they look
    assert max(len(line) for line in shown) <= width
    assert sum("fake, fixed interval" in line for line in shown) == (1 if width == 200 else 2)
    assert not any("…" in line for line in shown)
    assert (record, pictures) == (f"record: {places['record']}", "pictures: out")  # a path is not broken into lines
    assert '"schema"' not in out.getvalue()


def test_figures_have_as_many_digits_as_they_are_sure_of() -> None:
    cells = cells_of(Row("a", ms_per_sample=58_321.4, sw_time=0.05563, sw_time_low=0.0506, sw_time_high=0.0606))
    assert (cells[2], cells[6]) == ("58,321", "0.0556 ± 0.0050")
    cells = cells_of(Row("a", ms_per_sample=7.456, sw_time=246.4, sw_time_low=236.0, sw_time_high=257.0))
    assert (cells[2], cells[6]) == ("7.46", "246 ± 10")
    exact = cells_of(Row("mean sample", sw_time=0.1881, sw_time_low=0.1881, sw_time_high=0.1881))
    assert exact[6] == "0.188 ± 0.000"


def test_scaled_times_and_left_out_samples_are_told(found: Comparison) -> None:
    scaled = Row("slow", steps=100, measured_steps=10, ms_per_sample=5.0, num_samples=4, num_left_out=3)
    record = replace(found.record, rows=(scaled,), failures=("it got worse; refresh more",))
    assert cells_of(scaled)[2] == "5*"
    told = markdown_of(record)
    assert "* timed over fewer steps and scaled up." in told
    assert "Not finite, so in no distance: 3 of slow." in told
    assert "FAILED: it got worse; refresh more." in told


def test_without_a_checkpoint_neither_torch_nor_matplotlib_is_needed() -> None:
    check = "import bench.compare, bench.report, sys; print({'torch', 'matplotlib', 'ot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_progress_is_told_by_stage_and_never_runs_backwards(gaussian: CompareOptions) -> None:
    told: list[tuple[str, float]] = []
    compare(replace(gaussian, num_samples=20, sampling_batch=7), lambda *event: told.append(event))
    assert {doing.split(":")[0] for doing, _ in told} == {
        "sampling",
        "judging",
        "timing",
        "looking for the best",
        "preparing",
        "following single steps",
    }
    for stage in {doing for doing, _ in told if doing.startswith("sampling")}:
        shares = [share for doing, share in told if doing == stage]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


def test_the_progress_bar_is_quiet_away_from_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress_on_terminal() as tell:
        tell("sampling", 0.5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda series: series * 1.2, "in the time domain .* larger, allowed are 5.0%; refresh more often"),
        (lambda series: series[:, ::-1] + 0.3, "in the frequency domain"),
        (
            lambda series: np.where(np.arange(300)[:, None, None] == 7, np.nan, series),
            "1 of 300 .* not finite",
        ),
    ],
)
def test_the_gate_fails_on_spoilt_samples(found: Comparison, spoil, sentence: str) -> None:  # type: ignore
    uncached = judge(found.uncached, found.reference, QUICK)
    spoilt = judge(spoil(found.cached.series), found.reference, QUICK)
    failures = failures_of(spoilt, uncached, mean_sample(found.reference, QUICK), 0.05)
    assert failures
    assert any(re.search(sentence, failure) for failure in failures)


def test_the_gate_passes_good_samples_and_is_off_when_not_asked_for(found: Comparison) -> None:
    uncached = judge(found.uncached, found.reference, QUICK)
    mean = mean_sample(found.reference, QUICK)
    assert failures_of(judge(found.cached.series, found.reference, QUICK), uncached, mean, 1e-3) == ()
    assert failures_of(judge(found.cached.series * 5, found.reference, QUICK), uncached, mean, None) == ()


def test_the_gate_sees_that_samples_are_too_smooth(found: Comparison) -> None:
    """A moving average takes the weak high frequencies, which sliced Wasserstein hardly weighs."""
    uncached, mean = judge(found.uncached, found.reference, QUICK), mean_sample(found.reference, QUICK)
    series = found.cached.series
    smooth = (series + np.roll(series, 1, axis=1) + np.roll(series, -1, axis=1)) / 3
    failures = failures_of(judge(smooth, found.reference, QUICK), uncached, mean, 10.0)
    assert [failure for failure in failures if "spectral distance" in failure and "allowed are 1 dB more" in failure]
    assert all("sliced" not in failure for failure in failures)


@pytest.mark.parametrize(("name", "slack"), [("spectral", SPECTRAL_SLACK), ("autocorrelation", CORRELATION_SLACK)])
def test_the_slack_of_smoothness_is_what_the_gate_allows(found: Comparison, name: str, slack: float) -> None:
    quality, mean = judge(found.uncached, found.reference, QUICK), mean_sample(found.reference, QUICK)
    inside, beyond = (replace(quality, **{name: getattr(quality, name) + share * slack}) for share in (0.99, 1.01))
    assert failures_of(inside, quality, mean, 0.02) == ()
    (failure,) = failures_of(beyond, quality, mean, 0.02)
    assert f"takes the {name} distance from" in failure


def test_the_gate_trusts_no_loss_against_samples_that_are_broken_themselves(found: Comparison) -> None:
    broken = judge(found.uncached * 5, found.reference, QUICK)
    failures = failures_of(broken, broken, mean_sample(found.reference, QUICK), 0.05)
    assert len(failures) == 2
    assert all("so that a loss says nothing; train longer" in failure for failure in failures)


def test_all_that_was_made_can_be_kept(found: Comparison, tmp_path: Path) -> None:
    files = write_results(found, tmp_path / "out")
    assert sorted(file.name for file in files) == sorted(file.name for file in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "table.md").read_text() == markdown_of(found.record)
    assert np.array_equal(np.load(tmp_path / "out" / "e2crf.npz")["series"], found.cached.series)
    pictures = [file for file in files if file.suffix == ".png"]
    assert [file.stem for file in pictures] == ["series", "spectrum", "recomputed", "cost"]
    for file in pictures:
        content = file.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


@pytest.mark.parametrize(
    "change",
    [
        {"num_samples": 1},
        {"batch_size": 0},
        {"steps": 1},
        {"max_sw_loss": -0.1},
        {"part": "validation"},
        {"num_uncached": 301},
        {"num_uncached": 1},
    ],
)
def test_options_that_cannot_be_meant_are_an_error(gaussian: CompareOptions, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"found|the known ones are test, train"):
        replace(gaussian, **change)  # type: ignore[arg-type]


def test_every_way_that_is_timed_says_how_much_of_it_is_the_network(found: Comparison) -> None:
    shares = [one.network_share for one in found.record.rows if one.ms_per_sample is not None]
    assert shares
    assert all(share is not None and 0 < share <= 1 for share in shares)
