"""Calibration: on a model known in closed form next to nothing is needed, and what is promised of a plan holds."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import real_series
from numpy.typing import NDArray

from bench.calibrate import CalibrateOptions, calibrate
from bench.calibration import Calibration, Sizes, sizes_for
from bench.candidates import SPACINGS, Candidate
from bench.guard import with_guard
from bench.wasserstein import mean_of_roots, sliced_distances
from runtime.cache.hold import LinearHold
from runtime.cache.plan import Plan, read_plan
from runtime.cache.policy import Reuse
from runtime.errors import OptionError
from runtime.fourier import dft
from runtime.sampler import Model, load
from runtime.sde import VE, VP, Process
from runtime.solvers import Solver, TimeGrid
from tests import calibrating
from tests.calibrating import FEWEST, SHORTEST, STEPS, calibration
from tests.tiny import gaussian, make_bundle

exact, correlated = calibrating.exact, calibrating.correlated


@pytest.fixture(scope="module")
def begun(correlated: Model) -> tuple[Calibration, Plan]:
    calibrating = calibration(correlated)
    return calibrating, calibrating.run()


# Plans


def test_a_closed_form_needs_one_refresh(exact: Model) -> None:
    plan = calibration(exact).run()
    assert plan.measured["met"]
    assert plan.measured["passes"] == len(plan.refreshes) == 1
    held_out, bar = plan.measured["plan_held_out"], plan.measured["bar_held_out"]
    assert held_out["sw_time"] == pytest.approx(bar["sw_time"], rel=1e-5)  # float32 rounding of the series
    assert plan.measured["paired_plan_to_dense"] < 1e-5  # the same, in data std


@pytest.mark.parametrize("solver", [Solver.DDIM, Solver.ANCESTRAL, Solver.DPMPP_2M])
def test_a_smooth_residual_needs_a_few_refreshes(correlated: Model, solver: Solver) -> None:
    plan = calibration(correlated, solver=solver).run()
    assert plan.measured["met"]
    assert plan.measured["passes"] == len(plan.refreshes) + len(plan.low_steps) <= 6  # of 60
    assert plan.low_steps == ()  # this network has no K/V
    plan.check(correlated.manifest, STEPS, solver, TimeGrid.UNIFORM)
    drawn = correlated.sample(70, cache=plan, seed=5)
    assert drawn.stats.num_steps == STEPS
    assert drawn.stats.passes == pytest.approx(plan.measured["passes"], rel=0.1)  # the guard asks for a few more
    assert drawn.stats.num_diverged == 0
    with pytest.raises(OptionError, match=f"the plan is for solver {solver}, found"):
        correlated.sample(2, cache=plan, solver=Solver.EULER_MARUYAMA)


def test_a_plan_survives_its_file(begun: tuple[Calibration, Plan], tmp_path: Path) -> None:
    _, plan = begun
    plan.write(tmp_path / "plan.json")
    read = read_plan(tmp_path / "plan.json")
    assert read.to_json() == plan.to_json()
    for one, other in zip(read.fit, plan.fit, strict=True):
        assert np.array_equal(one.tables, other.tables)
    assert plan.fit  # else nothing was said of what is fitted
    assert replace(read, fit=(), reuse=Reuse.RESIDUAL) == replace(plan, fit=(), reuse=Reuse.RESIDUAL)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    json.dumps(plan.measured, allow_nan=False)


def test_what_was_measured_is_told(begun: tuple[Calibration, Plan]) -> None:
    _, plan = begun
    told = plan.measured
    assert set(told) == {
        "budget", "met", "within_budget_of", "passes", "alpha_prior", "spacing", "num_samples", "judges", "uncached",
        "dense", "bar_on_noise_of_uncached", "plan_on_noise_of_uncached", "bar_held_out", "plan_held_out",
        "over_bar_held_out", "paired_bar_to_dense", "paired_plan_to_dense", "drift", "tried",
        "time_was_up_after_refreshes", "seconds",
    }  # fmt: skip
    assert told["num_samples"] == {"uncached": 8, "fit": 48, "search": 16, "final": 64, "check": 32}
    on_their_noise = "bar_on_noise_of_uncached", "plan_on_noise_of_uncached"
    for name in ("uncached", "dense", *on_their_noise, "bar_held_out", "plan_held_out"):
        assert set(told[name]) == {"sw_time", "sw_frequency", "num_diverged", "spectral", "autocorrelation"}
        assert told[name]["sw_time"] > 0
    assert told["seconds"] >= 0
    times = [t for t, _ in told["drift"]]
    assert times == sorted(times, reverse=True)
    assert all(effect >= 0 for _, effect in told["drift"])
    assert told["tried"][-1]["passes"] == told["passes"]


def test_met_says_what_the_plan_does_on_noise_the_search_has_not_seen(
    begun: tuple[Calibration, Plan], correlated: Model
) -> None:
    """Oracle: the plan without its guard drawn again, and both distances taken by hand."""
    calibrating, plan = begun
    again = correlated.sample(FEWEST.check, seed=1 << 20, cache=replace(plan, surprise=())).series.astype(np.float64)
    real = calibrating.judges.reference.series.astype(np.float64)
    for name, a, b in (("sw_time", again, real), ("sw_frequency", dft(again), dft(real))):
        flat = a.reshape(len(a), -1), b.reshape(len(b), -1)
        distance = mean_of_roots(sliced_distances(*flat, calibrating.judges.directions))
        assert plan.measured["plan_held_out"][name] == pytest.approx(distance, rel=1e-6)  # batches differ in rounding
        assert distance <= (1 + plan.measured["budget"]) * plan.measured["bar_held_out"][name]


@pytest.mark.parametrize("reuse", [Reuse.RESIDUAL, Reuse.RESIDUAL_FITTED])
def test_a_plan_has_one_surprise_per_refresh_the_99th_percentile(begun: tuple[Calibration, Plan], reuse: Reuse) -> None:
    """Oracle: the residual held by hand from one refresh to the next, over a run that is watched."""
    calibrating, plan = begun
    assert len(plan.surprise) == len(plan.refreshes)
    model, gain, refreshes = calibrating.model, calibrating.planner.schedule.gaussian, (25, 40, 50)
    tables = np.random.default_rng(0).normal((1.0, 0.0, 0.0, 0.0), 0.05, (3, 16, 1, 4)).astype(np.float32)
    fit = tuple(LinearHold(*np.moveaxis(one, -1, 0)) for one in tables) if reuse.is_fitted else ()
    fixed = Plan(source_digest="none", steps=STEPS, solver=Solver.DDIM, reuse=reuse, refreshes=refreshes, fit=fit)
    guarded, drawn = with_guard(fixed, lambda cache: model.sample(40, steps=STEPS, solver=Solver.DDIM, cache=cache))
    assert drawn.stats.passes == len(refreshes)
    found = guarded.surprise
    infos: list[tuple[NDArray[Any], NDArray[Any]]] = []
    model.sample(40, cache=fixed, on_step=lambda info: infos.append((info.z.copy(), info.data.copy())))
    residual = {i: infos[i][1] - gain[i] * infos[i - 1][0] for i in refreshes}

    def held(k: int) -> NDArray[Any]:
        value, before = residual[refreshes[k]], residual[refreshes[k - 1]] if k else 0.0
        if not fit:
            return value
        a, b, c, d = fit[k].tables
        return np.asarray(a * value + b * before + c * infos[refreshes[k] - 1][0] + d)

    for k, said in enumerate(found[1:]):
        missed = residual[refreshes[k + 1]] - held(k)
        rms = np.sqrt((model.facts.weight * missed**2).sum(axis=(1, 2)))  # the weights sum to 1
        assert said == pytest.approx(float(np.quantile(rms, 0.99)), abs=2e-5)  # it is rounded to 1e-5


def test_the_guard_leaves_rounding_alone(exact: Model) -> None:
    """Where nothing is ever off, a limit of zero would refresh every sample once more between any two refreshes."""
    even = calibration(exact).planner.plan(Candidate(0.1, "power 1", Reuse.RESIDUAL), 4)
    plan, _ = with_guard(even, lambda cache: exact.sample(32, steps=STEPS, solver=Solver.DDIM, cache=cache))
    assert len(plan.refreshes) == len(plan.surprise) == 4
    assert exact.sample(32, cache=plan).stats.passes == 4


def test_each_stage_has_its_own_noise(exact: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []
    seeds: dict[str, set[int]] = {}
    sample = exact.sample

    def spy(n: int, *, seed: int, **options: Any) -> Any:
        seeds.setdefault(told[-1][0], set()).add(seed)
        return sample(n, seed=seed, **options)

    monkeypatch.setattr(exact, "sample", spy)
    calibration(exact, told, seed=3).run()
    by_noise = {doing: seed for doing, (seed,) in seeds.items()}
    searched = ("the bar", "trying 1 refreshes", "trying 1 refreshes again", "the guard")
    search = {by_noise[doing] for doing in searched}
    checked = {by_noise["the bar on held-out noise"], by_noise["checking 1 refreshes"]}
    compared = ("uncached trajectories", "dense trajectories", "the bar on the noise of uncached", "the plan")
    every_step = {by_noise[doing] for doing in compared}
    assert len(search) == len(checked) == len(every_step) == 1
    all_of_them = {by_noise["series that judge"], by_noise["trajectories to fit to"]} | search | checked | every_step
    assert len(all_of_them) == 5
    assert 3 not in all_of_them  # which samples of the same seed are drawn from, those that a bench judges


def test_progress_is_told_by_stage_and_never_runs_backwards(correlated: Model) -> None:
    told: list[tuple[str, float]] = []
    calibration(correlated, told, batch_size=5, most_refreshes=2).run()
    for stage in ("uncached trajectories", "dense trajectories", "trajectories to fit to"):
        shares = [share for doing, share in told if doing == stage]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("solver", [Solver.ANCESTRAL, Solver.DPMPP_2M])
@pytest.mark.parametrize("grid", TimeGrid)
@pytest.mark.parametrize("process", [VP(), VE()])
def test_every_process_solver_and_grid_can_be_calibrated(process: Process, grid: TimeGrid, solver: Solver) -> None:
    model = gaussian(12, process, "frequency").model
    plan = calibration(model, solver=solver, grid=grid, most_refreshes=3, budget=0.1).run()
    plan.check(model.manifest, STEPS, solver, grid)
    assert model.sample(3, cache=plan).series.shape == (3, 12, 1)


def test_few_steps_are_enough_for_a_plan(correlated: Model) -> None:
    plan = calibration(correlated, steps=(10,), budget=1.0).run()  # more refreshes asked for than there are steps
    assert correlated.sample(3, cache=plan).stats.num_steps == 10


# A real bundle


def test_a_bundle_is_calibrated_and_sampled_by_its_plan(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    told: list[str] = []
    options = CalibrateOptions(folder, steps=(40,), budget=5.0, minutes=SHORTEST, threads=1)
    plan = calibrate(options, lambda doing, share: told.append(doing))
    assert plan.measured["met"]
    assert plan.measured["passes"] == 1  # within so large a budget the cheapest is checked first, and it will do
    assert plan.source_digest == load(folder, "fake").manifest.source.digest
    assert list(dict.fromkeys(told))[:3] == ["series that judge", "uncached trajectories", "dense trajectories"]
    plan.write(folder / "plan.json")
    with load(folder, threads=1) as model:
        stats = model.sample(5).stats
    assert stats.num_steps == 40
    assert stats.passes >= len(plan.refreshes)
    assert stats.event_counts["first"] == 5


def test_low_frequencies_cost_their_measured_price(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    with load(folder, threads=1) as model:
        calibrating = calibration(model)
        calibrating.planner.low_price = 0.25
        plan = calibrating.planner.plan(Candidate(0.2, "power 1", Reuse.RESIDUAL, lows=2), 3)
        assert plan.K == 3
        assert len(plan.low_steps) == 6  # two after each refresh
        assert not set(plan.low_steps) & set(plan.refreshes)
        assert plan.measured["passes"] == 3 + 6 * 0.25
        assert model.sample(2, cache=plan).stats.event_counts["low"] == 12


@pytest.mark.parametrize("num_tokens", [2, 3, 4])
def test_very_short_series_have_no_low_frequencies_to_recompute(tmp_path: Path, num_tokens: int) -> None:
    folder, _ = make_bundle(tmp_path, num_tokens=num_tokens)
    plan = calibrate(CalibrateOptions(folder, (20,), minutes=SHORTEST, most_refreshes=2, threads=1))
    assert plan.K == 0
    assert plan.low_steps == ()


# Judges


@pytest.mark.parametrize("num_train", [40, 120])
def test_real_series_judge_where_there_are_any_the_larger_part(exact: Model, tmp_path: Path, num_train: int) -> None:
    parts = {"train": real_series(num_train, 2), "test": real_series(80, 1)}
    np.savez(tmp_path / "reference.npz", **parts)
    calibrating = calibration(exact, reference=tmp_path / "reference.npz")
    assert calibrating.run().measured["judges"] == f"{max(num_train, 80)} real series"
    assert np.array_equal(calibrating.judges.reference.series, parts["train" if num_train > 80 else "test"])


def test_else_the_models_own_series_judge_and_that_is_said(exact: Model) -> None:
    calibrating = calibration(exact)
    assert calibrating.run().measured["judges"] == "the model's own series"
    assert len(calibrating.judges.reference.series) == len(calibrating.judges.reference.held_out) == 64


# Spacings


@pytest.mark.parametrize("process", [VP(), VE()])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_refreshes_rise_from_the_prior_phase_on(process: Process, spacing: str) -> None:
    calibrating = calibration(gaussian(12, process, "frequency").model)
    _, calibrating.planner.drift = calibrating._dense(4, 0)
    for alpha_prior in (0.1, 0.3, 0.6):
        for count in (1, 2, 5, 16, 32):
            refreshes = calibrating.planner.plan(Candidate(alpha_prior, spacing, Reuse.RESIDUAL), count).refreshes
            first = refreshes[0]
            assert calibrating.planner.signal[first - 1] < alpha_prior <= calibrating.planner.signal[first]
            assert all(a < b for a, b in pairwise(refreshes))
            assert refreshes[-1] < STEPS
            assert 1 <= len(refreshes) <= count
            if count <= 2:
                assert len(refreshes) == count


@pytest.mark.parametrize("power", [1, 2, 3])
def test_powers_are_spaced_as_said(correlated: Model, power: int) -> None:
    calibrating = calibration(correlated, steps=(1000,))
    first = 300
    refreshes = calibrating.planner.spaced(f"power {power}", first, 8)
    t = calibrating.planner.schedule.times[list(refreshes)]
    wanted = calibrating.planner.schedule.times[first] * (1 - np.arange(8) / 8) ** power
    assert np.all((t <= wanted) & (wanted - t < 1.01e-3))  # the next of 1000 steps
    if power == 1:
        gaps = np.diff(refreshes)
        assert gaps.max() - gaps.min() <= 1


def test_logsnr_is_even_in_the_log_of_signal_over_noise(correlated: Model) -> None:
    calibrating = calibration(correlated, steps=(1000,))
    refreshes = calibrating.planner.spaced("logsnr", 300, 8)
    gaps = np.diff(calibrating.planner.log_snr[list(refreshes)])
    assert gaps == pytest.approx(gaps.mean(), rel=0.1)  # one of 1000 steps is up to 0.06 of these


# Sizes and options


def test_more_minutes_are_more_samples_and_never_fewer_than_the_least() -> None:
    minutes = (1e-9, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e4)
    sizes = [sizes_for(m, 1000, 1e-3) for m in minutes]
    assert sizes[0] == FEWEST
    assert sizes[-1] == Sizes(uncached=256, teacher=192, search=128, final=512, check=1024)
    for stage in ("uncached", "teacher", "search", "check"):
        counts = [getattr(size, stage) for size in sizes]
        assert counts == sorted(counts)
    # 200 s at 1 ms are 200,000 passes: 1800 for an uncached sample; 20 s are 20,000, of which one to fit to takes 120
    assert sizes_for(10.0, 1000, 1e-3) == Sizes(uncached=111, teacher=192, search=128, final=512, check=1024)
    assert sizes_for(1.0, 1000, 1e-3) == Sizes(uncached=11, teacher=166, search=33, final=132, check=500)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": (1000, 5)}, "steps must be at least 10 .*, found 5"),
        ({"steps": ()}, "at least one solver and one number of steps"),
        ({"solvers": ()}, "at least one solver and one number of steps"),
        ({"solvers": ("ddim", "rk4")}, "unknown solver 'rk4'; the known ones are"),
        ({"grid": "cubic"}, "unknown time grid 'cubic'; the known ones are"),
        ({"budget": -1.0}, r"budget must lie in \[0, 10\), found -1"),
        ({"budget": float("nan")}, "found nan"),
        ({"budget": float("inf")}, "found inf"),
        ({"minutes": 0.0}, "minutes must be positive, found 0"),
        ({"minutes": float("nan")}, "found nan"),
        ({"most_refreshes": 1}, "most_refreshes must be at least 2, found 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, found 0"),
    ],
)
def test_options_that_cannot_be_meant_are_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        CalibrateOptions(Path("none"), **change)
