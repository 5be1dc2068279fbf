"""Which plan a calibration takes: within a budget the cheapest, of several settings the fastest of those as good."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import real_series, write_gaussian_bundle
from numpy.typing import NDArray

import bench.calibrate
from bench.calibrate import CalibrateOptions, _fastest, as_good, calibrate, search_settings
from bench.calibration import Calibration, _best, _Entry
from bench.candidates import BAR, SPACINGS, Candidate, first_candidates
from bench.contenders import Contender
from bench.judges import Score
from bench.machine import describe_machine
from bench.pareto import ParetoOptions
from bench.records import Kind, Record, Row, now, write_records
from runtime.cache.plan import PLAN_FILE, Plan, read_plan
from runtime.cli import main
from runtime.errors import OptionError
from runtime.sampler import Model, load
from runtime.sde import VP
from runtime.solvers import Solver
from tests import calibrating
from tests.calibrating import SHORTEST, STEPS, calibration, diverging, far_off, slow_clock
from tests.tiny import gaussian

exact, correlated = calibrating.exact, calibrating.correlated


# Budgets


def _restless(model: Model) -> Model:
    """The same model with a residual that jumps: no two refreshes can stand for it."""
    exact_run = model.backend.run

    def run(graph: str, feeds: Any) -> dict[str, NDArray[Any]]:
        t = float(feeds["t"][0])
        return {"score": exact_run(graph, feeds)["score"] + np.float32(1.5 * np.sign(np.sin(60 * t)))}

    model.backend.run = run  # type: ignore[method-assign]
    return model


def test_a_budget_that_cannot_be_met_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    far_off(monkeypatch)
    model = _restless(gaussian(16, VP(), "frequency").model)
    plan = calibration(model, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=2).run()
    told = plan.measured
    assert not told["met"]
    assert {entry["passes"] for entry in told["tried"]} == {1.0, 2.0}
    assert all(entry["held_out"] > 0 for entry in told["tried"])
    held_out, bar = told["plan_held_out"], told["bar_held_out"]
    over = max(held_out[name] / bar[name] for name in ("sw_time", "sw_frequency")) - 1
    assert over == pytest.approx(min(entry["held_out"] for entry in told["tried"]))  # the closest is kept
    assert told["time_was_up_after_refreshes"] is None  # all that were to be tried were


@pytest.mark.parametrize(("pass_seconds", "least"), [(6e-3, 1), (2.5e-3, 2)])
def test_a_search_that_its_time_ended_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], pass_seconds: float, least: int
) -> None:
    """A minute is the least, of which all that goes before the search takes the larger or the smaller part."""
    slow_clock(monkeypatch, pass_seconds)
    far_off(monkeypatch)
    restless = _restless(gaussian(16, VP(), "frequency").model)
    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: restless)
    folder = write_gaussian_bundle(tmp_path / "bundle")
    words = f"calibrate {folder} --json --steps {STEPS} --solver ancestral --budget 0 --minutes {SHORTEST}"
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 1
    printed = capfd.readouterr()
    remedies = "a larger --minutes may try more; else name real series with --reference, allow a larger --budget, or"
    told = json.loads(printed.out)["measured"]
    last = told["time_was_up_after_refreshes"]
    assert last >= least
    tried = "1 refresh" if last == 1 else f"{last} refreshes"
    said = " ".join(printed.err.split())
    assert f"nothing was written: the time was up after {tried}, {remedies}" in said
    assert f"the closest is off by {told['over_bar_held_out']:.1%}: {told['passes']:.4g} pass" in said
    assert told["seconds"] <= 60
    assert len(told["tried"]) == told["time_was_up_after_refreshes"] == max(entry["passes"] for entry in told["tried"])


@pytest.mark.parametrize(("pass_seconds", "is_cut_at_once"), [(8e-3, True), (6e-3, False), (2e-3, False)])
def test_all_ends_by_the_deadline(monkeypatch: pytest.MonkeyPatch, pass_seconds: float, is_cut_at_once: bool) -> None:
    """The search stops between two candidates, with time left for the check, the guard and the comparison."""
    model = _restless(gaussian(16, VP(), "frequency").model)
    stages = slow_clock(monkeypatch, pass_seconds)
    begun = calibration(model, solver=Solver.ANCESTRAL, budget=0.0)
    told = begun.run().measured
    assert begun.deadline == 60
    assert told["seconds"] <= 60
    last = told["time_was_up_after_refreshes"]
    assert 1 <= last < 32
    assert stages[-2:] == ["the guard", "the plan"]
    assert stages.count(f"checking {last} refreshes") >= 1
    plans = [begun.planner.plan(candidate, 1) for candidate in first_candidates(can_fit=True)]
    whole = len({(plan.refreshes, plan.reuse) for plan in plans})
    assert (stages.count("trying 1 refreshes") < whole) == is_cut_at_once


def test_a_quarter_more_than_was_asked_for_is_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default of 12 minutes that is a quarter of an hour, on samples for as long."""
    model = _restless(gaussian(16, VP(), "frequency").model)
    slow_clock(monkeypatch, 0.02)
    options = CalibrateOptions(Path("none"), (STEPS,), budget=0.0)
    told = Calibration(model, options, Solver.ANCESTRAL, STEPS, lambda doing, share: None, 0.02).run().measured
    assert told["time_was_up_after_refreshes"] is not None
    assert 60 * options.minutes / 2 < told["seconds"] <= 15 * 60


def test_a_search_with_time_enough_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch, correlated: Model) -> None:
    plan = calibration(correlated).run()
    slow_clock(monkeypatch, 1e-6)
    again = calibration(correlated).run()
    assert (again.refreshes, again.measured["tried"]) == (plan.refreshes, plan.measured["tried"])
    assert again.measured["time_was_up_after_refreshes"] is None


def test_a_plan_as_good_as_every_step_is_met_where_many_refreshes_are_better_still(
    monkeypatch: pytest.MonkeyPatch, correlated: Model
) -> None:
    """What the plan scores on many samples is held against that, and not what a few of it score."""
    told = calibration(correlated, budget=0.05).run().measured
    assert (told["met"], told["within_budget_of"]) == (True, "many refreshes")
    search = Calibration._search

    def far_from_the_bar(self: Calibration, *arguments: Any) -> Any:
        return replace(search(self, *arguments), score=Score(2.0, 2.0, 0, 32))

    monkeypatch.setattr(Calibration, "_search", far_from_the_bar)
    told = calibration(correlated, budget=0.05, most_refreshes=2).run().measured
    assert (told["met"], told["within_budget_of"]) == (False, None)
    far_off(monkeypatch, ["uncached trajectories", "dense trajectories"])
    told = calibration(correlated, budget=0.05, most_refreshes=2).run().measured
    assert (told["met"], told["within_budget_of"]) == (True, "every step computed")


def test_of_candidates_the_nearest_to_the_bar_and_the_nearest_to_the_data_go_on(exact: Model) -> None:
    plan = Plan(source_digest=exact.manifest.source.digest, steps=400, solver=Solver.DDIM, refreshes=(200,))
    entries = [_Entry(over, apart, BAR, plan) for over, apart in [(0.0, 0.9), (0.5, 0.1), (0.3, 0.2), (0.1, 0.8)]]
    assert [(one.over, one.apart) for one in _best(entries, 3)] == [(0.5, 0.1), (0.0, 0.9), (0.3, 0.2)]
    assert _best(entries[:1], 4) == entries[:1]


def test_a_search_without_a_plan_ends_with_many_refreshes_where_they_are_as_good(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slow_clock(monkeypatch, 6e-3)
    far_off(monkeypatch, ["the plan"])
    restless = _restless(gaussian(16, VP(), "frequency").model)
    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: restless)
    folder = write_gaussian_bundle(tmp_path / "bundle")
    words = f"calibrate {folder} --steps {STEPS} --solver ancestral --budget 0 --minutes {SHORTEST}"
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 0
    assert "a larger --minutes may find a better plan" in capfd.readouterr().err
    plan = read_plan(folder / PLAN_FILE)
    told = plan.measured
    assert 15 <= len(plan.refreshes) == told["passes"] <= 20  # of twenty some fall on one step of sixty
    assert told["over_bar_held_out"] == 0
    assert (plan.reuse, told["within_budget_of"]) == (BAR.reuse, "every step computed")
    assert (told["tried"][-1]["passes"], told["plan_held_out"]) == (told["passes"], told["bar_held_out"])
    assert told["seconds"] <= 60
    drawn = restless.sample(64, steps=STEPS, solver=Solver.ANCESTRAL, seed=9, cache=plan)
    assert told["passes"] <= drawn.stats.passes < told["passes"] + 2  # it has a guard, which asks for a few more


def test_fewer_refreshes_than_the_bar_has_are_not_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    far_off(monkeypatch, ["the plan"])
    restless = _restless(gaussian(16, VP(), "frequency").model)
    told = calibration(restless, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=2).run().measured
    assert (told["met"], told["passes"] <= 2) == (False, True)


def test_without_the_time_for_more_samples_the_nearest_to_the_bar_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many candidates on a few samples one is near to the real series by luck."""
    tried, entries = Calibration._tried, dict[int, list[_Entry]]()

    def listening(self: Calibration, candidates: Sequence[Candidate], count: int, *rest: Any) -> list[_Entry]:
        found = tried(self, candidates, count, *rest)
        entries.setdefault(count, []).extend(found)
        return found

    monkeypatch.setattr(Calibration, "_tried", listening)
    monkeypatch.setattr(Calibration, "_again", lambda *arguments: [])
    restless = _restless(gaussian(16, VP(), "frequency").model)
    told = calibration(restless, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=3).run().measured["tried"]
    nearest = [min(entries[count], key=lambda one: one.apart) for count in sorted(entries)]
    checked = [(one["passes"], one["alpha_prior"], one["spacing"]) for one in told[:3]]
    assert checked == [(one.price, one.candidate.alpha_prior, one.candidate.spacing) for one in nearest]
    assert any(one.over > min(other.over for other in entries[len(one.plan.refreshes)]) for one in nearest)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[list[Candidate]]:
    """The candidates that a calibration tries, by numbers of refreshes."""
    try_all, heard = Calibration._tried, list[list[Candidate]]()

    def listening(self: Calibration, candidates: Sequence[Candidate], *rest: Any) -> Any:
        heard.append(list(candidates))
        return try_all(self, candidates, *rest)

    monkeypatch.setattr(Calibration, "_tried", listening)
    return heard


def test_the_way_of_the_bar_stays_among_the_candidates(tried: list[list[Candidate]]) -> None:
    """A search on few samples may drop what is best with many refreshes."""
    restless = _restless(gaussian(16, VP(), "frequency").model)
    calibration(restless, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=4).run()
    assert len(tried) == 4
    assert all(BAR in candidates for candidates in tried)


def test_one_refresh_says_nothing_of_spacings(tried: list[list[Candidate]]) -> None:
    """All spacings of one refresh are the same plan, so each is still there for two; from then on the best go on."""
    restless = _restless(gaussian(16, VP(), "frequency").model)
    calibration(restless, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=3).run()
    assert tried[1] == tried[0]
    assert {candidate.spacing for candidate in tried[1]} == set(SPACINGS)
    assert len(tried[2]) < len(tried[1])


def test_what_is_fitted_crowds_no_plain_candidates_out(tried: list[list[Candidate]]) -> None:
    """With one refresh a fit is best by far; with the many that a stochastic solver may need it need not be."""
    model = _restless(gaussian(16, VP(), "frequency").model)
    calibration(model, solver=Solver.EULER_MARUYAMA, budget=0.0, most_refreshes=4).run()
    assert len(tried) == 4
    assert (
        min(sum(not one.reuse.is_fitted for one in candidates) for candidates in tried) >= 8
    )  # as many as go on where nothing is fitted


def test_a_larger_budget_is_never_dearer(correlated: Model) -> None:
    plans = [calibration(correlated, solver=Solver.ANCESTRAL, budget=budget).run() for budget in (0.005, 0.05, 5.0)]
    passes = [plan.measured["passes"] for plan in plans]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1] == 1


@pytest.mark.parametrize(
    ("stages", "held"),
    [
        (["none"], "many refreshes"),
        (["checking"], "every step computed"),
        (["checking", "the plan"], None),
        (["checking", "the bar"], "every step computed"),  # the bar may not excuse it
        (["checking", "the plan", "uncached"], "many refreshes"),  # 1 of 8 uncached, 1 of 32 on held-out noise
    ],
)
def test_a_plan_that_diverges_more_than_uncached_is_not_met(
    monkeypatch: pytest.MonkeyPatch, correlated: Model, stages: list[str], held: str | None
) -> None:
    diverging(monkeypatch, *stages)
    told = calibration(correlated, budget=5.0, most_refreshes=2).run().measured
    assert (told["met"], told["within_budget_of"]) == (held is not None, held)
    assert (len(told["tried"]) == 1) == (held == "many refreshes")  # else the search went on


def test_of_plans_that_are_not_met_one_that_diverges_is_the_last_to_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    restless = _restless(gaussian(16, VP(), "frequency").model)
    tried = calibration(restless, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=2).run().measured["tried"]
    best = 1 + min((0, 1), key=lambda index: tried[index]["held_out"])
    diverging(monkeypatch, f"checking {best} refreshes")
    told = calibration(restless, solver=Solver.ANCESTRAL, budget=0.0, most_refreshes=2).run().measured
    assert told["passes"] == 3 - best
    assert told["plan_held_out"]["num_diverged"] == 0


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
        return [SimpleNamespace(name=name, median_ms=cost) for name, cost in passes.items()]

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

    def run(self: Calibration) -> Plan:
        met, passes = outcomes[len(asked)]
        asked.append((self.steps, self.options.minutes))
        measured = {"met": met, "passes": passes}
        return Plan(source_digest="none", steps=self.steps, solver=self.solver, refreshes=(9,), measured=measured)

    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: exact)
    monkeypatch.setattr(Calibration, "run", run)
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

    def run(self: Calibration) -> Plan:
        asked.append((self.solver, self.steps, self.grid, self.options.minutes))
        measured = {"met": False, "passes": len(asked)}
        return Plan(source_digest="none", steps=self.steps, solver=self.solver, refreshes=(9,), measured=measured)

    monkeypatch.setattr(bench.calibrate, "load", lambda bundle, **options: load(bundle, "fake"))
    monkeypatch.setattr("bench.pareto.load", lambda bundle, **options: load(bundle, "fake"))
    monkeypatch.setattr(Calibration, "run", run)
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
