"""Fit the cache to a model: find the plan with the fewest network passes whose samples are as good.

    plan = calibrate(CalibrateOptions(bundle=Path("bundles/ecg"), budget=0.02))
    plan.write(Path("bundles/ecg/plan.json"))

One solver with one number of steps is a `calibration`: its stages and its search for the plan, among `candidates` that
`judges` score. Here is which of these are made, and whose plan is taken.

Several solvers, numbers of steps and time grids may be calibrated beside each other: the plan that is fastest, of
those that are as good, is the answer. With `search` they are those on the frontier of speed and quality (`pareto`): of
the record in the bundle, where that was measured on this machine, else of a rough search that takes half of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from bench.calibration import Calibration
from bench.contenders import Contender, Progress, Way
from bench.latency import RaceOptions
from bench.machine import describe_machine
from bench.pareto import RECORD_FILE, ParetoOptions, distance_of, over_frontier, pareto, pass_seconds
from bench.records import Kind, Record, read_records
from bench.rows import REPORTS, policy_in_words, race_of
from export.manifest import read_manifest
from runtime.cache.plan import Plan
from runtime.errors import OptionError, parse_word, require
from runtime.sampler import DEFAULT_STEPS, Model, load
from runtime.solvers import Solver, TimeGrid

Setting = tuple[str, int, str]  # solver, steps, time grid

_LEAST_STEPS = 10  # that a plan is worth having for
_MOST_SETTINGS = 3  # of a search


@dataclass(frozen=True)
class CalibrateOptions:
    """What to calibrate, and how much worse the samples may become."""

    bundle: Path
    steps: tuple[int, ...] = (DEFAULT_STEPS,)
    solvers: tuple[str, ...] = (Solver.DDIM,)
    grid: str = TimeGrid.UNIFORM
    search: bool = False  # these three from the frontier of speed and quality
    budget: float = 0.02  # sliced Wasserstein may grow by this share
    reference: Path | None = None  # real series; None: the model's own samples judge
    minutes: float = 12.0  # aimed at, on the machine it runs on; a quarter more is the most
    most_refreshes: int = 32
    batch_size: int = 64
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        for solver in self.solvers:
            parse_word(Solver, solver, "solver")
        for steps in self.steps:
            require(steps >= _LEAST_STEPS, f"steps must be at least {_LEAST_STEPS} for a plan to be worth having",
                    steps, "1000 is usual")  # fmt: skip
        require(bool(self.solvers and self.steps), "name at least one solver and one number of steps",
                (self.solvers, self.steps), "ddim and 1000 are the defaults")  # fmt: skip
        parse_word(TimeGrid, self.grid, "time grid")
        require(0 <= self.budget < 10, "the budget must lie in [0, 10)", self.budget, "0.02 allows 2 %")
        require(0 < self.minutes < 1e4, "minutes must be positive", self.minutes, "12 is the default")
        require(self.most_refreshes >= 2, "most_refreshes must be at least 2", self.most_refreshes, "32 is the default")
        require(0 <= self.seed < 2**63, "the seed must be an integer from 0 to 2^63 - 1", self.seed, "0 is the default")
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size, "64 is the default")


def calibrate(options: CalibrateOptions, progress: Progress = lambda doing, share: None) -> Plan:
    """The plan, with what was measured in `plan.measured`; the caller writes it. Takes about `minutes`.

    Of several solvers, numbers of steps and time grids the fastest of those that meet the budget and are as good.
    """
    settings: Sequence[Setting] = [(*pair, options.grid) for pair in product(options.solvers, options.steps)]
    if options.search:
        settings, options = _searched(options, progress)
    each = replace(options, minutes=options.minutes / len(settings))
    with load(options.bundle, threads=options.threads) as model:
        per_pass = pass_seconds(model, options.batch_size)  # once, so that all are checked on as many samples
        plans = [
            Calibration(model, replace(each, grid=grid), solver, steps, progress, per_pass).run()
            for solver, steps, grid in settings
        ]
        met = [plan for plan in plans if plan.measured["met"]]
        if not met:
            return min(plans, key=lambda plan: float(plan.measured["passes"]))
        return _fastest(model, met if options.reference is None else as_good(met, options.budget))


def as_good(plans: Sequence[Plan], budget: float) -> list[Plan]:
    """The plans that are further from the same real series than the best of them by no more than the budget."""
    found = [plan.measured["plan_held_out"] for plan in plans]
    least = {name: min(one[name] for one in found) for name in ("sw_time", "sw_frequency")}
    over = [max(one[name] / least[name] for name in least) for one in found]
    return [plan for plan, far in zip(plans, over, strict=True) if far <= (1 + budget) * min(over)]


def _fastest(model: Model, plans: Sequence[Plan]) -> Plan:
    """The plan that draws one sample in the least time, all of them timed in turn."""
    if len(plans) == 1:
        return plans[0]
    rivals = {
        str(index): Contender(Way.CACHED, model, plan, plan.steps, plan.solver, 0, plan.grid)
        for index, plan in enumerate(plans)
    }
    timings = race_of(rivals, 1, 1, RaceOptions(rounds=5, turn_s=0.05))
    return plans[int(min(timings, key=lambda timing: timing.median_ms).name)]


def search_settings(record: Record) -> tuple[Setting, ...]:
    """Of the ways nearest the frontier of a record up to three that can have a plan; an `OptionError` for none."""
    rows = [row for row in record.rows if row.ms_per_sample is not None and row.policy != policy_in_words(None)]
    ranked = sorted(zip(over_frontier(rows), rows, strict=True), key=lambda pair: (pair[0], pair[1].ms_per_sample))
    settings = dict.fromkeys(
        (str(row.solver), row.steps, str(row.grid))
        for _, row in ranked
        if row.steps is not None and row.steps >= _LEAST_STEPS and np.isfinite(distance_of(row))
    )
    require(bool(settings), f"a plan needs a way of at least {_LEAST_STEPS} steps among those of the Pareto record",
            [row.rival for row in rows], "calibrate without --search")  # fmt: skip
    return tuple(settings)[:_MOST_SETTINGS]


def _searched(options: CalibrateOptions, progress: Progress) -> tuple[tuple[Setting, ...], CalibrateOptions]:
    """The settings of a search, and the options with the time that is left."""
    path = options.bundle / REPORTS / RECORD_FILE
    if path.is_file():
        record, machine = read_records(path)[-1], describe_machine()
        found, wanted = record.model["source"]["digest"], read_manifest(options.bundle).source.digest
        require(record.kind == Kind.PARETO and found == wanted,
                f"{path} must be a pareto record of the checkpoint {wanted[:12]}... of its bundle",
                f"{record.kind} of {found[:12]}...", "run `python -m bench.pareto` again, or remove it")  # fmt: skip
        if (record.machine.cpu, record.machine.num_usable_cores) == (machine.cpu, machine.num_usable_cores):
            return search_settings(record), options
    if options.reference is None:
        raise OptionError("a search needs real series, found none of the run here; name them with --reference")
    asked = ParetoOptions(
        options.bundle, options.reference, rough_only=True, minutes=options.minutes, seed=options.seed,
        threads=options.threads,
    )  # fmt: skip
    return search_settings(pareto(asked, progress)), replace(options, minutes=options.minutes / 2)
