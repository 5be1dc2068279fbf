"""Calibration: on a model known in closed form next to nothing is needed, and what is promised of a plan holds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import real_series, write_gaussian_bundle
from numpy.typing import NDArray

import bench.calibrate
from bench.calibrate import (
    CalibrateOptions,
    Candidate,
    Score,
    Sizes,
    _Calibration,
    _fastest,
    as_good,
    calibrate,
    search_settings,
    sizes_for,
)
from bench.contenders import Contender
from bench.drift import Drift
from bench.machine import describe_machine
from bench.pareto import ParetoOptions
from bench.records import Kind, Record, Row, now, write_records
from bench.wasserstein import mean_of_roots, sliced_distances
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan, read_plan
from runtime.cache.policy import Reuse
from runtime.errors import OptionError
from runtime.fourier import dft
from runtime.sampler import Model, StepInfo, load
from runtime.sde import VE, VP, Process
from runtime.solvers import Solver, TimeGrid
from tests.tiny import gaussian, make_bundle

STEPS = 60
SHORTEST = 1e-5  # minutes in which every stage draws as few samples as it may
FEWEST = Sizes(uncached=8, search=16, final=64, check=32)
SPACINGS = ("power 1", "power 1.5", "power 2", "power 3", "logsnr", "drift")


def calibration(
    model: Model, told: list[tuple[str, float]] | None = None, *, solver: str = Solver.DDIM, **options: Any
) -> _Calibration:
    """A calibration of a model that is open already."""
    chosen = CalibrateOptions(**({"bundle": Path("none"), "steps": (STEPS,), "minutes": SHORTEST} | options))
    tell = (lambda doing, share: None) if told is None else lambda doing, share: told.append((doing, share))
    return _Calibration(model, chosen, solver, chosen.steps[0], tell, 1e-3)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Independent tokens: the residual is zero up to rounding."""
    return load(write_gaussian_bundle(tmp_path_factory.mktemp("exact") / "bundle"), "fake")


@pytest.fixture(scope="module")
def correlated() -> Model:
    """Correlated tokens: the residual moves, smoothly."""
    return gaussian(16, VP(), "frequency").model


@pytest.fixture(scope="module")
def begun(correlated: Model) -> tuple[_Calibration, Plan]:
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


def test_a_smooth_residual_needs_a_few_refreshes(begun: tuple[_Calibration, Plan], correlated: Model) -> None:
    _, plan = begun
    assert plan.measured["met"]
    assert plan.measured["passes"] == len(plan.refreshes) + len(plan.low_steps) <= 6  # of 60
    assert plan.low_steps == ()  # this network has no K/V
    plan.check(correlated.manifest, STEPS, Solver.DDIM, TimeGrid.UNIFORM)
    drawn = correlated.sample(70, cache=plan, seed=5)
    assert drawn.stats.num_steps == STEPS
    assert drawn.stats.passes == pytest.approx(plan.measured["passes"], rel=0.1)  # the guard asks for a few more
    assert drawn.stats.num_diverged == 0
    with pytest.raises(OptionError, match="the plan is for solver ddim"):
        correlated.sample(2, cache=plan, solver=Solver.ANCESTRAL)


def test_a_plan_survives_its_file(begun: tuple[_Calibration, Plan], tmp_path: Path) -> None:
    _, plan = begun
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    json.dumps(plan.measured, allow_nan=False)


def test_what_was_measured_is_told(begun: tuple[_Calibration, Plan]) -> None:
    _, plan = begun
    told = plan.measured
    assert set(told) == {
        "budget", "met", "within_budget_of", "passes", "alpha_prior", "spacing", "num_samples", "judges", "uncached",
        "dense", "plan_on_noise_of_uncached", "bar_held_out", "plan_held_out", "paired_bar_to_dense",
        "paired_plan_to_dense", "drift", "tried", "seconds",
    }  # fmt: skip
    assert told["num_samples"] == {"uncached": 8, "search": 16, "final": 64, "check": 32}
    for name in ("uncached", "dense", "plan_on_noise_of_uncached", "bar_held_out", "plan_held_out"):
        assert set(told[name]) == {"sw_time", "sw_frequency", "num_diverged", "spectral", "autocorrelation"}
        assert told[name]["sw_time"] > 0
    assert told["seconds"] >= 0
    times = [t for t, _ in told["drift"]]
    assert times == sorted(times, reverse=True)
    assert all(effect >= 0 for _, effect in told["drift"])
    assert told["tried"][-1]["passes"] == told["passes"]


def test_met_says_what_the_plan_does_on_noise_the_search_has_not_seen(
    begun: tuple[_Calibration, Plan], correlated: Model
) -> None:
    """Oracle: the plan without its guard drawn again, and both distances taken by hand."""
    calibrating, plan = begun
    again = correlated.sample(FEWEST.check, seed=1 << 20, cache=replace(plan, surprise=())).series.astype(np.float64)
    real = calibrating.judges.series.astype(np.float64)
    for name, a, b in (("sw_time", again, real), ("sw_frequency", dft(again), dft(real))):
        flat = a.reshape(len(a), -1), b.reshape(len(b), -1)
        distance = mean_of_roots(sliced_distances(*flat, calibrating.directions))
        assert plan.measured["plan_held_out"][name] == pytest.approx(distance, rel=1e-6)  # batches differ in rounding
        assert distance <= (1 + plan.measured["budget"]) * plan.measured["bar_held_out"][name]


def test_a_plan_has_one_surprise_per_refresh_the_99th_percentile(begun: tuple[_Calibration, Plan]) -> None:
    """Oracle: the residual held by hand from one refresh to the next, over a run that is watched."""
    calibrating, plan = begun
    assert len(plan.surprise) == len(plan.refreshes)
    model, gain = calibrating.model, calibrating.schedule.gaussian
    fixed = Plan(source_digest="none", steps=STEPS, solver=Solver.DDIM, reuse=Reuse.RESIDUAL, refreshes=(25, 40, 50))
    found = calibrating._with_surprise(fixed, 40).surprise
    infos: list[tuple[NDArray[Any], NDArray[Any]]] = []
    model.sample(40, cache=fixed, on_step=lambda info: infos.append((info.z.copy(), info.data.copy())))

    def residual(i: int) -> NDArray[Any]:
        return np.asarray(infos[i][1] - gain[i] * infos[i - 1][0])

    weight = model.facts.weight
    for before, at, said in zip((25, 40), (40, 50), found[1:], strict=True):
        missed = residual(at) - residual(before)
        rms = np.sqrt((weight * missed**2).sum(axis=(1, 2)))  # the weights sum to 1
        assert said == pytest.approx(float(np.quantile(rms, 0.99)), abs=2e-5)  # it is rounded to 1e-5


def test_the_guard_leaves_rounding_alone(exact: Model) -> None:
    """Where nothing is ever off, a limit of zero would refresh every sample once more between any two refreshes."""
    calibrating = calibration(exact)
    plan = calibrating._with_surprise(calibrating._plan(Candidate(0.1, "power 1", Reuse.RESIDUAL), 4), 32)
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
    searched = ("uncached trajectories", "dense trajectories", "the bar", "trying 1 refreshes", "the plan")
    assert {by_noise[doing] for doing in searched} == {3}
    checked = {by_noise["the bar on held-out noise"], by_noise["checking 1 refreshes"]}
    assert len(checked) == 1
    assert len({3, by_noise["series that judge"]} | checked) == 3


def test_progress_is_told_by_stage_and_never_runs_backwards(correlated: Model) -> None:
    told: list[tuple[str, float]] = []
    calibration(correlated, told, batch_size=5, most_refreshes=2).run()
    for stage in ("uncached trajectories", "dense trajectories"):
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


# Budgets


def _restless(model: Model) -> Model:
    """The same model with a residual that jumps: no two refreshes can stand for it."""
    exact_run = model.backend.run

    def run(graph: str, feeds: Any) -> dict[str, NDArray[Any]]:
        t = float(feeds["t"][0])
        return {"score": exact_run(graph, feeds)["score"] + np.float32(1.5 * np.sign(np.sin(60 * t)))}

    model.backend.run = run  # type: ignore[method-assign]
    return model


def test_a_budget_that_cannot_be_met_is_said_to_be() -> None:
    model = _restless(gaussian(16, VP(), "frequency").model)
    plan = calibration(model, budget=0.0, most_refreshes=2).run()
    told = plan.measured
    assert not told["met"]
    assert {entry["passes"] for entry in told["tried"]} == {1.0, 2.0}
    assert all(entry["held_out"] > 0 for entry in told["tried"])
    held_out, bar = told["plan_held_out"], told["bar_held_out"]
    over = max(held_out[name] / bar[name] for name in ("sw_time", "sw_frequency")) - 1
    assert over == pytest.approx(min(entry["held_out"] for entry in told["tried"]))  # the closest is kept


def test_a_plan_as_good_as_every_step_is_met_where_many_refreshes_are_better_still(
    monkeypatch: pytest.MonkeyPatch, correlated: Model
) -> None:
    told = calibration(correlated, budget=0.05).run().measured
    assert (told["met"], told["within_budget_of"]) == (True, "many refreshes")
    search = _Calibration._search

    def far_from_the_bar(self: _Calibration, *arguments: Any) -> tuple[Plan, Score, list[dict[str, Any]]]:
        plan, _, tried = search(self, *arguments)
        return plan, Score(9.0, 9.0, 0), tried

    monkeypatch.setattr(_Calibration, "_search", far_from_the_bar)
    told = calibration(correlated, budget=0.05).run().measured
    assert (told["met"], told["within_budget_of"]) == (True, "every step computed")
    told = calibration(_restless(gaussian(16, VP(), "frequency").model), budget=0.0, most_refreshes=2).run().measured
    assert (told["met"], told["within_budget_of"]) == (False, None)


def test_the_way_of_the_bar_stays_among_the_candidates(monkeypatch: pytest.MonkeyPatch, correlated: Model) -> None:
    """A search on few samples may drop what is best with many refreshes."""
    ranked, tried = _Calibration._ranked, list[list[Candidate]]()

    def heard(self: _Calibration, candidates: Sequence[Candidate], *rest: Any) -> Any:
        tried.append(list(candidates))
        return ranked(self, candidates, *rest)

    monkeypatch.setattr(_Calibration, "_ranked", heard)
    calibration(correlated, budget=0.0, most_refreshes=4).run()
    assert len(tried) > 1
    assert all(bench.calibrate._BAR in candidates for candidates in tried)


def test_a_larger_budget_is_never_dearer(correlated: Model) -> None:
    passes = [calibration(correlated, budget=budget).run().measured["passes"] for budget in (0.005, 0.05, 5.0)]
    assert passes == sorted(passes, reverse=True)
    assert passes[-1] == 1


def test_a_score_is_within_the_budget_in_both_domains_and_of_no_more_diverged() -> None:
    bar = Score(1.0, 2.0, 1)
    assert Score(1.1, 2.2, 1).within(bar, 0.1 + 1e-9)
    assert not Score(1.1, 2.3, 1).within(bar, 0.1 + 1e-9)
    assert not Score(1.2, 2.0, 1).within(bar, 0.1)
    assert not Score(1.0, 2.0, 2).within(bar, 0.1)
    assert Score(0.9, 2.5, 0).over(bar) == pytest.approx(0.25)


def test_a_plan_that_smooths_is_no_better_for_its_smaller_distance() -> None:
    """The slacks are 1 dB and 0.03; what exceeds them counts in tens of dB and as it is."""
    bar = Score(1.0, 1.0, 0, spectral=3.0, autocorrelation=0.03)
    assert Score(0.9, 0.9, 0, spectral=3.9, autocorrelation=0.05).within(bar, 0.0)
    assert not Score(0.9, 0.9, 0, spectral=10.8, autocorrelation=0.05).within(bar, 0.02)
    assert not Score(0.9, 0.9, 0, spectral=3.0, autocorrelation=0.19).within(bar, 0.02)
    assert Score(0.9, 0.9, 0, spectral=10.8).over(bar) == pytest.approx(0.68)
    assert Score(0.9, 0.9, 0, autocorrelation=0.19).over(bar) == pytest.approx(0.13)


def _spoilt(model: Model, is_spoilt: Callable[[NDArray[Any]], NDArray[np.bool_]]) -> None:
    good_run = model.backend.run

    def run(graph: str, feeds: Any) -> dict[str, NDArray[Any]]:
        score = good_run(graph, feeds)["score"].copy()
        score[is_spoilt(feeds["z"])] = np.nan
        return {"score": score}

    model.backend.run = run  # type: ignore[method-assign]


@pytest.mark.parametrize("has_reference", [True, False])
def test_a_model_that_draws_nan_is_refused_in_a_sentence(tmp_path: Path, has_reference: bool) -> None:
    np.save(tmp_path / "real.npy", real_series(80, 1))
    model = load(write_gaussian_bundle(tmp_path / "bundle"), "fake")
    _spoilt(model, lambda z: np.ones(len(z), np.bool_))
    with pytest.raises(OptionError, match=r"draws series that are not finite, found '\d+ of \d+'; train longer"):
        calibration(model, reference=tmp_path / "real.npy" if has_reference else None).run()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_model_that_draws_nan_now_and_then_can_be_calibrated(tmp_path: Path) -> None:
    model = load(write_gaussian_bundle(tmp_path / "bundle"), "fake")
    _spoilt(model, lambda z: np.abs(z[:, 5, 0]) > 2.0)
    assert 0 < model.sample(128, steps=STEPS, solver=Solver.DDIM, cache=None).stats.num_diverged < 64
    plan = calibration(model).run()
    assert plan.refreshes
    assert np.isfinite(plan.surprise).all()
    assert all(np.isfinite(effect) for _, effect in plan.measured["drift"])


# Of several, the fastest


@pytest.fixture
def timed_by_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race that a plan wins by its passes, not by the weather on this machine."""

    def race_of(rivals: dict[str, Contender], *_: Any) -> Any:
        passes = {name: one.cache.measured["passes"] for name, one in rivals.items() if isinstance(one.cache, Plan)}
        return [SimpleNamespace(name=name, median_ms=cost) for name, cost in passes.items()], {}

    monkeypatch.setattr(bench.calibrate, "race_of", race_of)


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ([(True, 6.0), (True, 4.0), (True, 5.0)], 1),
        ([(False, 1.0), (True, 9.0), (True, 12.0)], 1),
        ([(False, 3.0), (False, 2.0), (True, 16.0)], 2),
        ([(False, 3.0), (False, 2.0), (False, 16.0)], 1),
    ],
)
@pytest.mark.usefixtures("timed_by_passes")
def test_of_several_the_fastest_that_meets_the_budget_is_taken(
    exact: Model, monkeypatch: pytest.MonkeyPatch, outcomes: list[tuple[bool, float]], best: int
) -> None:
    asked: list[tuple[int, float]] = []

    def run(self: _Calibration) -> Plan:
        met, passes = outcomes[len(asked)]
        asked.append((self.steps, self.options.minutes))
        measured = {"met": met, "passes": passes}
        return Plan(source_digest="none", steps=self.steps, solver=self.solver, refreshes=(9,), measured=measured)

    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: exact)
    monkeypatch.setattr(_Calibration, "run", run)
    plan = calibrate(CalibrateOptions(Path("none"), steps=(20, 40, 60), minutes=3.0))
    assert asked == [(20, 1.0), (40, 1.0), (60, 1.0)]  # they share the time
    assert plan.steps == (20, 40, 60)[best]


def test_a_plan_that_is_as_good_as_itself_only_does_not_win() -> None:
    """Every plan keeps within the budget of its own solver; of a bad solver that says little."""

    def plan(sw_time: float, sw_frequency: float) -> Plan:
        found = {"plan_held_out": {"sw_time": sw_time, "sw_frequency": sw_frequency}}
        return Plan(source_digest="none", steps=20, solver=Solver.DDIM, refreshes=(9,), measured=found)

    plans = [plan(1.0, 2.0), plan(1.015, 2.0), plan(1.0, 2.1), plan(9.0, 9.0)]
    assert as_good(plans, 0.02) == plans[:2]
    apart = [plan(1.0, 3.0), plan(2.0, 2.0), plan(1.2, 2.4)]  # no plan is best in both domains
    assert as_good(apart, 0.02) == apart[2:]


def test_the_faster_of_two_plans_is_told_by_the_clock(exact: Model) -> None:
    digest = exact.manifest.source.digest
    one, many = (
        Plan(source_digest=digest, steps=400, solver=Solver.DDIM, refreshes=refreshes)
        for refreshes in ((200,), tuple(range(10, 400)))
    )
    assert _fastest(exact, [many, one]) is one


@pytest.mark.usefixtures("timed_by_passes")
def test_solvers_and_steps_are_set_against_each_other(monkeypatch: pytest.MonkeyPatch, correlated: Model) -> None:
    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: correlated)
    solvers = (Solver.DPMPP_2M, Solver.DDIM)
    both = calibrate(CalibrateOptions(Path("none"), (40, STEPS), solvers, minutes=SHORTEST))
    alone = [
        calibration(correlated, solver=solver, steps=(steps,)).run() for solver in solvers for steps in (40, STEPS)
    ]
    assert both.measured["met"]
    assert both.measured["passes"] == min(plan.measured["passes"] for plan in alone if plan.measured["met"])


# By the frontier


def pareto_record(digest: str, rows: tuple[Row, ...], **changes: Any) -> Record:
    """A record of the bench's own as `python -m bench.pareto` writes it."""
    facts = {"source": {"digest": digest}}
    record = Record(now(), facts, {}, describe_machine(), None, rows, kind=Kind.PARETO)
    return replace(record, **changes)


def way(solver: str, steps: int, ms: float, over: float, grid: str = "uniform", policy: str = "R 9, K 0") -> Row:
    return Row(f"{solver} {steps}", steps, solver, grid, policy, ms_per_sample=ms, sw_time_over_floor=over,
               sw_frequency_over_floor=over)  # fmt: skip


WAYS = (
    way("ancestral", 1000, 900.0, 1.0, policy="every step"),  # uncached
    way("dpmpp_2m", 4, 1.0, 2.0),  # on the frontier, too short for a plan
    way("dpmpp_2m", 16, 2.0, 1.5, "logsnr"),
    way("ddim", 100, 4.0, 1.2),
    way("ddim", 100, 3.0, 1.6),  # 1.07 over the frontier
    way("ancestral", 100, 5.0, 1.26),  # 1.05
    way("euler_maruyama", 250, 5.0, 1.32),  # 1.10
    Row("ddim 50", 50, "ddim", "uniform", ms_per_sample=1.5),  # not finite, so not judged
    Row("real series (floor)", sw_time_over_floor=1.0, sw_frequency_over_floor=1.0),
)


def test_the_settings_of_a_search_are_those_nearest_the_frontier() -> None:
    record = pareto_record("0", WAYS)
    assert search_settings(record) == (
        ("dpmpp_2m", 16, "logsnr"),
        ("ddim", 100, "uniform"),
        ("ancestral", 100, "uniform"),
    )
    with pytest.raises(OptionError, match=r"a way of at least 10 steps .* found \['dpmpp_2m 4'\]; calibrate without"):
        search_settings(replace(record, rows=WAYS[1:2]))


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[CalibrateOptions, list[tuple[Any, ...]]]:
    """Options of a search, and the settings that are calibrated for them."""
    np.save(tmp_path / "real.npy", real_series(80, 1))
    folder, asked = write_gaussian_bundle(tmp_path / "bundle"), list[tuple[Any, ...]]()

    def run(self: _Calibration) -> Plan:
        asked.append((self.solver, self.steps, self.grid, self.options.minutes))
        measured = {"met": False, "passes": len(asked)}
        return Plan(source_digest="none", steps=self.steps, solver=self.solver, refreshes=(9,), measured=measured)

    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: load(bundle, "fake"))
    monkeypatch.setattr("bench.pareto.load", lambda bundle, **options: load(bundle, "fake"))
    monkeypatch.setattr(_Calibration, "run", run)
    options = CalibrateOptions(folder, search=True, reference=tmp_path / "real.npy", minutes=3.0)
    return options, asked


def test_a_search_reads_the_record_of_the_bundle(
    searched: tuple[CalibrateOptions, list[tuple[Any, ...]]],
) -> None:
    options, asked = searched
    write_records(options.bundle / "reports/pareto.json", [pareto_record("0" * 64, WAYS[2:4])])
    calibrate(options)
    assert asked == [("dpmpp_2m", 16, "logsnr", 1.5), ("ddim", 100, "uniform", 1.5)]  # they share the time


def test_a_search_without_a_record_of_this_machine_looks_roughly_itself(
    searched: tuple[CalibrateOptions, list[tuple[Any, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, asked = searched
    found: list[ParetoOptions] = []

    def pareto(options: ParetoOptions, progress: Any) -> Record:
        found.append(options)
        return pareto_record("0" * 64, WAYS[3:4])

    monkeypatch.setattr(bench.calibrate, "pareto", pareto)
    calibrate(options)
    elsewhere = replace(describe_machine(), cpu="another one")
    write_records(options.bundle / "reports/pareto.json", [pareto_record("0" * 64, WAYS[2:3], machine=elsewhere)])
    calibrate(options)
    assert asked == [("ddim", 100, "uniform", 1.5)] * 2  # the search has had half of the time
    assert {(one.rough_only, one.minutes, one.reference) for one in found} == {(True, 3.0, options.reference)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"source": {"digest": "1" * 64}}}, "must be a pareto record of the checkpoint 0{12}.* of its "
                                                      "bundle, found 'pareto of 1{12}.*'; run `python -m bench"),
        ({"kind": Kind.BENCH}, "found 'bench of 0{12}"),
    ],
)  # fmt: skip
def test_a_search_refuses_a_record_of_something_else(
    searched: tuple[CalibrateOptions, list[tuple[Any, ...]]], change: dict[str, Any], says: str
) -> None:
    options, _ = searched
    write_records(options.bundle / "reports/pareto.json", [pareto_record("0" * 64, WAYS, **change)])
    with pytest.raises(OptionError, match=says):
        calibrate(options)


def test_a_search_needs_a_record_or_real_series(searched: tuple[CalibrateOptions, list[tuple[Any, ...]]]) -> None:
    with pytest.raises(OptionError, match=r"a search needs real series, found none .* name them with --reference"):
        calibrate(replace(searched[0], reference=None))


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
        calibrating.low_price = 0.25
        plan = calibrating._plan(Candidate(0.2, "power 1", Reuse.RESIDUAL, lows=2), 3)
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
    assert np.array_equal(calibrating.judges.series, parts["train" if num_train > 80 else "test"])


def test_else_the_models_own_series_judge_and_that_is_said(exact: Model) -> None:
    calibrating = calibration(exact)
    assert calibrating.run().measured["judges"] == "the model's own series"
    assert len(calibrating.judges.series) == len(calibrating.judges.held_out) == 64


# Drift


def _dense(model: Model, steps: int, n: int) -> tuple[Drift, list[StepInfo]]:
    """The drift of dense trajectories, and all that it was told."""
    drift = Drift(model.schedule(Solver.DDIM, steps, TimeGrid.UNIFORM, Reuse.RESIDUAL)[0], model.facts.weight)
    infos: list[StepInfo] = []

    def watch(info: StepInfo) -> None:
        infos.append(replace(info, z=info.z.copy(), data=info.data.copy()))
        drift.watch(info)

    cache = E2CRF(policy=PolicyName.NEVER, alpha_prior=0.05)
    model.sample(n, steps=steps, solver=Solver.DDIM, cache=cache, batch_size=20, on_step=watch)
    return drift, infos


def test_the_drift_keeps_the_residual_of_the_first_batch_exactly(correlated: Model) -> None:
    drift, infos = _dense(correlated, 230, 30)
    first = [info for info in infos if info.first_sample == 0]
    gain = correlated.schedule(Solver.DDIM, 230, TimeGrid.UNIFORM, Reuse.RESIDUAL)[0].gaussian
    kept = drift._kept
    assert (len(kept), kept[0], kept[-1]) == (200, 0, 229)
    found = drift._stack()
    assert found.shape == (200, 16, 16, 1)
    assert not found[0].any()
    for i, residual in zip(kept[1:], found[1:], strict=True):
        assert np.array_equal(residual, (first[i].data - gain[i] * first[i - 1].z)[:16])
    assert np.abs(found[-1]).max() > 0


@pytest.mark.parametrize(("first", "count"), [(4, 1), (4, 2), (4, 3), (5, 4), (3, 5), (8, 9)])
def test_the_best_refreshes_are_the_best_of_all(correlated: Model, first: int, count: int) -> None:
    """Oracle: every choice of steps, and the effect of holding the residual summed step by step."""
    steps = 14
    drift, infos = _dense(correlated, steps, 6)
    schedule = correlated.schedule(Solver.DDIM, steps, TimeGrid.UNIFORM, Reuse.RESIDUAL)[0]
    gain, weight = schedule.gaussian.astype(np.float64), correlated.facts.weight
    residual = [np.zeros((6, 16, 1))] + [infos[i].data - gain[i] * infos[i - 1].z for i in range(1, steps)]

    def carried_on(i: int) -> NDArray[Any]:
        effect = np.full((16, 1), float(schedule.step_data[i]))
        for k in range(i + 1, steps):
            effect = effect * (schedule.step_latent[k] + schedule.step_data[k] * gain[k])
        return effect

    reach = [carried_on(i) for i in range(steps)]

    def held(i: int, j: int) -> float:
        off = sum((reach[k] * (residual[k] - residual[i]) for k in range(i, j)), np.zeros((6, 16, 1)))
        return float((weight * off**2).sum(axis=(1, 2)).mean())

    costs = {(i, j): held(i, j) for i in range(first, steps) for j in range(i + 1, steps + 1)}

    def total(refreshes: tuple[int, ...]) -> float:
        return sum(costs[pair] for pair in pairwise((*refreshes, steps)))

    num_later = min(count, steps - first) - 1  # no more than there are steps
    best = min(((first, *later) for later in combinations(range(first + 1, steps), num_later)), key=total)
    found = drift.best_refreshes(first, count)
    assert found[0] == first
    assert len(found) == num_later + 1
    assert all(a < b for a, b in pairwise(found))
    assert total(found) <= total(best) * (1 + 1e-5) + 1e-15  # residuals are float32


def test_a_residual_that_never_moves_costs_nothing_to_hold(correlated: Model) -> None:
    schedule = correlated.schedule(Solver.DDIM, 30, TimeGrid.UNIFORM, Reuse.RESIDUAL)[0]
    constant = np.random.default_rng(0).standard_normal((4, 16, 1)).astype(np.float32)

    def drift_of(data: Callable[[int], NDArray[Any]]) -> Drift:
        drift = Drift(schedule, correlated.facts.weight)
        for i in range(30):
            t = float(schedule.times[i])
            drift.watch(StepInfo(0, 4, i, 30, t, "refresh", z=np.zeros_like(constant), data=data(i)))
        return drift

    def costs(drift: Drift) -> NDArray[Any]:
        found = drift._costs(1)  # the first step counts as prior phase
        return np.asarray(found[np.isfinite(found)])

    still, moving = drift_of(lambda i: constant), drift_of(lambda i: constant * np.float32(i))
    assert len(costs(still)) == 29 * 30 // 2  # every step to hold from, every later one to hold up to
    assert costs(still).max() < 1e-20  # rounding of float64, of residuals near 1
    assert max(effect for _, effect in still.curve()[1:]) == 0
    assert costs(moving).max() > 1e-2
    assert still.best_refreshes(7, 1) == (7,)


# Spacings


@pytest.mark.parametrize("process", [VP(), VE()])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_refreshes_rise_from_the_prior_phase_on(process: Process, spacing: str) -> None:
    calibrating = calibration(gaussian(12, process, "frequency").model)
    _, calibrating.drift = calibrating._dense(4)
    for alpha_prior in (0.1, 0.3, 0.6):
        for count in (1, 2, 5, 16, 32):
            refreshes = calibrating._plan(Candidate(alpha_prior, spacing, Reuse.RESIDUAL), count).refreshes
            first = refreshes[0]
            assert calibrating.signal[first - 1] < alpha_prior <= calibrating.signal[first]
            assert all(a < b for a, b in pairwise(refreshes))
            assert refreshes[-1] < STEPS
            assert 1 <= len(refreshes) <= count
            if count <= 2:
                assert len(refreshes) == count


@pytest.mark.parametrize("power", [1, 2, 3])
def test_powers_are_spaced_as_said(correlated: Model, power: int) -> None:
    calibrating = calibration(correlated, steps=(1000,))
    first = 300
    refreshes = calibrating._spaced(f"power {power}", first, 8)
    t = calibrating.schedule.times[list(refreshes)]
    wanted = calibrating.schedule.times[first] * (1 - np.arange(8) / 8) ** power
    assert np.all((t <= wanted) & (wanted - t < 1.01e-3))  # the next of 1000 steps
    if power == 1:
        gaps = np.diff(refreshes)
        assert gaps.max() - gaps.min() <= 1


def test_logsnr_is_even_in_the_log_of_signal_over_noise(correlated: Model) -> None:
    calibrating = calibration(correlated, steps=(1000,))
    refreshes = calibrating._spaced("logsnr", 300, 8)
    gaps = np.diff(calibrating.log_snr[list(refreshes)])
    assert gaps == pytest.approx(gaps.mean(), rel=0.1)  # one of 1000 steps is up to 0.06 of these


# Sizes and options


def test_more_minutes_are_more_samples_and_never_fewer_than_the_least() -> None:
    minutes = (1e-9, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e4)
    sizes = [sizes_for(m, 1000, 1e-3) for m in minutes]
    assert sizes[0] == FEWEST
    assert sizes[-1] == Sizes(256, 128, 512, 1024)
    for stage in ("uncached", "search", "check"):
        counts = [getattr(size, stage) for size in sizes]
        assert counts == sorted(counts)
    assert sizes_for(10.0, 1000, 1e-3) == Sizes(111, 128, 512, 1024)  # 200 s at 1 ms are 200,000 passes, 1800 a sample


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
