"""Fit the cache to a model: find the plan with the fewest network passes whose samples are as good.

    plan = calibrate(CalibrateOptions(bundle=Path("bundles/ecg"), budget=0.02))
    plan.write(Path("bundles/ecg/plan.json"))

In this order, each stage shown by the progress bar:

1. *Uncached* trajectories, the thing to be replaced; and *dense* ones, every step recomputed after a short prior
   phase, which say where along the way the residual of the network drifts and what that does to the series.
2. *The bar*: the quality of many refreshes, on the noise the search uses. An uncached run of that many samples would
   take hours; how far the two differ is measured on the samples both have.
3. *The search*: for 1, 2, 3, ... refreshes, where the first of them lies (`alpha_prior`), how the others are spaced,
   what is reused (what is held fitted to the model, where the solver allows it: `fit`), and whether low frequencies
   are recomputed in between.
4. *The check* on noise that the search has not seen: sliced Wasserstein in the time and in the frequency domain
   within the budget of the bar, no more diverged samples, and spectra and autocorrelations as near to the real ones but
   for a slack: a plan that asks the network too early draws series that are too smooth, and the sliced distance, made
   of what has energy, does not see it. The first number of refreshes that passes is the plan. Where
   none does, the best one is, if it is within the budget of what computing every step gives (the better of uncached
   and dense, on their noise): many refreshes can be better than all of them.

Quality is the distance to real series where there are any (of the run's own, or of a file, the larger of test and
train part: the plan is compared with the same model uncached, so that having seen them is no advantage), else to
what the model itself draws with many refreshes from other noise.

Several solvers, numbers of steps and time grids may be calibrated beside each other: the plan that is fastest, of
those that are as good, is the answer. With `search` they are those on the frontier of speed and quality (`pareto`): of
the record in the bundle, where that was measured on this machine, else of a rough search that takes half of the time.

Spacings: `power p` puts refresh k of P at t = t_first (1 - k / P)^p, so that 1 is the constant interval and larger p
looks more often near the end; `logsnr` is even in log(alpha / sigma); `drift` minimises by dynamic programming the
effect on the finished series of holding the residual still, as measured on the dense trajectories.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.contenders import Contender, Way
from bench.drift import Drift
from bench.fit import Teacher, fit
from bench.latency import RaceOptions
from bench.machine import describe_machine
from bench.pareto import RECORD_FILE, ParetoOptions, call_seconds, distance_of, over_frontier, pareto, pass_seconds
from bench.quality import paired_error
from bench.records import Kind, Record, read_records
from bench.reference import Part, read_reference, reference_from_series
from bench.rows import REPORTS, policy_in_words, race_of
from bench.spectra import autocorrelation_distance, excess, spectral_distance
from bench.wasserstein import mean_of_roots, random_directions, sliced_distances
from export.manifest import read_manifest
from runtime.cache.hold import LinearHold
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache, Decisions, Needs, Policy, Reuse, Signals, Step, TokenFacts
from runtime.errors import OptionError, parse_word, require
from runtime.fourier import dft
from runtime.sampler import DEFAULT_STEPS, Model, Samples, StepInfo, load
from runtime.schedule import Schedule
from runtime.sde import process_from_facts, signal_to_noise
from runtime.solvers import Solver, TimeGrid

Progress = Callable[[str, float], None]
Series = NDArray[np.floating]
Setting = tuple[str, int, str]  # solver, steps, time grid

_BAR_REFRESHES = 20
_TEACHER_REFRESHES = 40  # whose latents a plan is fitted to
_DENSE_ALPHA, _BAR_ALPHA = 0.05, 0.1  # prior phases of the dense trajectories and of the bar
_LOW_FREQUENCIES = 3  # the K that is tried
_ALPHAS = (0.1, 0.2, 0.3, 0.45, 0.6)
_SPACINGS = ("power 1", "power 1.5", "power 2", "power 3", "logsnr", "drift")
_MODES = (Reuse.RESIDUAL, Reuse.RESIDUAL_LINEAR)
_FITTED_SPACINGS = ("power 1", "power 1.5", "power 2")
_LEAST_SURPRISE = 1e-3  # in data std: less is rounding, which no guard should look at
_KEPT = 8  # best ways of a number of refreshes that the next one tries, and half as many fitted ones
_FINALISTS = 8  # best of a number of refreshes, tried again on more samples
_CHECKS = 4  # promising plans of a number of refreshes that are checked, the cheapest first
_MANY, _EVERY_STEP = "many refreshes", "every step computed"  # what a plan is held against
_LEAST_STEPS = 10  # that a plan is worth having for
_MOST_SETTINGS = 3  # of a search
_HELD_OUT_SEED = 1 << 20  # added to the seed: noise that the search has not seen


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
    minutes: float = 12.0  # aimed at, on the machine it runs on
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
            _Calibration(model, replace(each, grid=grid), solver, steps, progress, per_pass).run()
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
    timings, _ = race_of(rivals, 1, 1, RaceOptions(rounds=5, turn_s=0.05))
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


@dataclass(frozen=True)
class Sizes:
    """How many samples each stage can afford."""

    uncached: int
    teacher: int
    search: int
    final: int  # of the search's best
    check: int


def sizes_for(minutes: float, steps: int, pass_seconds: float) -> Sizes:
    """Samples by stage: a third of the time each for uncached and dense ones, for the search, and for the check.

    `pass_seconds` is one full pass of one sample; the divisors are the passes that a stage asks for.
    """
    passes = 60.0 * minutes / 3 / pass_seconds
    divisors = (1.8 * steps, 3 * _TEACHER_REFRESHES, 600, 2 * _BAR_REFRESHES)
    uncached, teacher, search, check = (int(passes / divisor) for divisor in divisors)
    search = max(16, min(search, 128))
    return Sizes(
        uncached=max(8, min(uncached, 256)),
        teacher=max(48, min(teacher, 192)),
        search=search,
        final=4 * search,
        check=max(32, min(check, 1024)),
    )


@dataclass(frozen=True)
class Candidate:
    """A way to place P refreshes."""

    alpha_prior: float
    spacing: str
    reuse: Reuse
    lows: int = 0  # low steps after each refresh


@dataclass(frozen=True)
class Score:
    """Sliced Wasserstein to the judges in both domains, diverged samples, and how far spectra and correlations are."""

    time: float
    frequency: float
    num_diverged: int
    spectral: float = 0.0  # dB
    autocorrelation: float = 0.0

    def within(self, bar: "Score", budget: float) -> bool:
        """Whether this is no worse than the bar by more than the budget."""
        return self.over(bar) <= budget and self.num_diverged <= bar.num_diverged

    def over(self, bar: "Score") -> float:
        """How much worse than the bar: the larger growth of both domains, or what exceeds a slack of the others."""
        return max(
            self.time / bar.time - 1.0,
            self.frequency / bar.frequency - 1.0,
            excess((self.spectral, self.autocorrelation), (bar.spectral, bar.autocorrelation)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "sw_time": self.time,
            "sw_frequency": self.frequency,
            "num_diverged": self.num_diverged,
            "spectral": self.spectral,
            "autocorrelation": self.autocorrelation,
        }


_BAR = Candidate(_BAR_ALPHA, "power 2", Reuse.RESIDUAL_LINEAR)


@dataclass
class _Watch:
    """A cache that runs a plan and keeps the surprise at each refresh."""

    plan: Plan
    seen: dict[int, list[NDArray[np.float32]]] = field(default_factory=dict)

    @property
    def reuse(self) -> str:
        return self.plan.reuse

    @property
    def needs(self) -> Needs:
        return Needs.SURPRISE

    feedback = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        inner = self.plan.concrete(facts, steps)

        def policy(step: Step, signals: Signals) -> Decisions:
            if step.index - 1 in self.plan.refreshes:
                self.seen.setdefault(step.index - 1, []).append(signals.surprise.copy())
            return inner(step, signals)

        return policy


@dataclass(frozen=True)
class _Entry:
    """A candidate that was tried."""

    over: float  # growth of the distance over the bar's
    candidate: Candidate
    plan: Plan

    @property
    def price(self) -> float:
        """In full passes."""
        return float(self.plan.measured["passes"])


class _Calibration:
    """One run of `calibrate`."""

    def __init__(
        self, model: Model, options: CalibrateOptions, solver: str, steps: int, progress: Progress, per_pass: float
    ) -> None:
        self.model, self.options, self._progress = model, options, progress
        self.per_pass = per_pass  # seconds of a full pass of one sample
        facts = model.manifest.diffusion
        self.process = process_from_facts(facts.process, facts.parameters)
        self.solver, self.steps, self.grid = Solver(solver), steps, TimeGrid(options.grid)
        self.schedule: Schedule = model.schedule(self.solver, steps, self.grid, Reuse.RESIDUAL)[0]
        self.signal = signal_to_noise(self.process, self.schedule.times)
        self.log_snr = np.log(self.process.alpha(self.schedule.times) / self.process.sigma(self.schedule.times))
        tokens = model.facts.tokens
        self.can_split = tokens.obstacle is None and tokens.num_frequencies > _LOW_FREQUENCIES
        self.low_price = 0.0  # of a step with the low frequencies alone, in full passes
        self.teacher: Teacher | None = None  # None: the solver looks back, so that nothing can be fitted
        self._fits: dict[tuple[int, ...], tuple[LinearHold, ...]] = {}  # by refreshes
        self.begun = time.perf_counter()

    def run(self) -> Plan:
        """All stages."""
        options = self.options
        if self.can_split:
            low_tokens = int(np.count_nonzero(self.model.facts.tokens.frequency < _LOW_FREQUENCIES))
            self.low_price = call_seconds(self.model, 1, low_tokens) / pass_seconds(self.model, 1)
        sizes = sizes_for(options.minutes, self.steps, self.per_pass)
        self._choose_judges(sizes.check)  # first, since a file that cannot be read should not cost minutes
        uncached = self._draw("uncached trajectories", sizes.uncached, None)
        dense, self.drift = self._dense(sizes.uncached)
        bar_plan = self._plan(_BAR, _BAR_REFRESHES)
        bar_found = self._draw("the bar", sizes.final, bar_plan)
        bars = {n: self._score_series(bar_found.series[:n]) for n in (sizes.search, sizes.final)}
        held_out_bar = self._score(self._draw("the bar on held-out noise", sizes.check, bar_plan, held_out=True))
        for n, score in (*bars.items(), (sizes.check, held_out_bar)):
            _require_finite(n if np.isfinite(score.time) else 0, n)
        if not self.schedule.is_multistep:
            self._teach(sizes.teacher)
        found, score, tried = self._search(sizes, bars, held_out_bar)
        plan = self._with_surprise(found, sizes.final)
        both = min(sizes.uncached, sizes.final)
        same = self._draw("the plan", both, plan).series
        on_same = self._score_series(same)
        every_step = min((self._score_series(one.series[:both]) for one in (uncached, dense)), key=lambda s: s.time)
        held = {_MANY: score.within(held_out_bar, options.budget),
                _EVERY_STEP: on_same.within(every_step, options.budget)}  # fmt: skip
        measured = {
            "budget": options.budget,
            "met": any(held.values()),
            "within_budget_of": next((name for name, is_met in held.items() if is_met), None),
            "passes": plan.measured["passes"],
            "num_samples": {
                "uncached": sizes.uncached,
                "fit": 0 if self.teacher is None else sizes.teacher,
                "search": sizes.search,
                "final": sizes.final,
                "check": sizes.check,
            },
            "judges": self.judged_by,
            "uncached": self._score(uncached).to_dict(),
            "dense": self._score(dense).to_dict(),
            "plan_on_noise_of_uncached": on_same.to_dict(),
            "bar_held_out": held_out_bar.to_dict(),
            "plan_held_out": score.to_dict(),
            "paired_bar_to_dense": paired_error(bar_found.series[:both], dense.series[:both], self.judges),
            "paired_plan_to_dense": paired_error(same, dense.series[:both], self.judges),
            "drift": self._drift_curve(),
            "tried": tried,
            "seconds": round(time.perf_counter() - self.begun, 1),
        }
        return replace(plan, measured=plan.measured | measured)

    # Stages

    def _dense(self, n: int) -> tuple[Samples, "Drift"]:
        """Every step recomputed after a short prior phase, and the drift of the residual along the way."""
        drift = Drift(self.schedule, self.model.facts.weight)
        cache = E2CRF(policy=PolicyName.NEVER, alpha_prior=_DENSE_ALPHA)
        drawn = self._draw("dense trajectories", n, cache, also=drift.watch)
        return drawn, drift

    def _teach(self, n: int) -> None:
        """The latents of many refreshes on their way, on noise that nothing else uses."""
        network = self.model.manifest.network
        width = n * network.num_tokens * network.num_channels
        self.teacher = Teacher(self.steps, self.options.seed + 3 * _HELD_OUT_SEED, width)
        many = self._plan(_BAR, _TEACHER_REFRESHES)
        self._draw("trajectories to fit to", n, many, seed=self.teacher.seed, also=self.teacher.watch)

    def _fit(self, refreshes: tuple[int, ...]) -> tuple[LinearHold, ...]:
        """What is held after each of these refreshes, fitted once."""
        assert self.teacher is not None
        if refreshes not in self._fits:
            self._progress(f"fitting {len(refreshes)} refreshes", 0.0)
            self._fits[refreshes] = fit(self.model, self.teacher, self.solver, self.grid, refreshes)
        return self._fits[refreshes]

    def _choose_judges(self, n: int) -> None:
        """Real series, or the model's own from other noise."""
        if self.options.reference is not None:
            parts = [read_reference(self.options.reference, part) for part in (Part.TEST, Part.TRAIN)]
            self.judges = max(parts, key=lambda part: len(part.series))  # a few series tell plans apart badly
            self.judged_by = f"{len(self.judges.series)} real series"
        else:
            plan = self._plan(_BAR, _BAR_REFRESHES)
            own = self._draw("series that judge", 2 * max(n, 64), plan, seed=self.options.seed + 2 * _HELD_OUT_SEED)
            finite = own.series[np.isfinite(own.series).all(axis=(1, 2))]
            _require_finite(len(finite), len(own.series))
            self.judges, self.judged_by = reference_from_series(finite), "the model's own series"
        dim = self.judges.series[0].size
        self.directions = random_directions(256, dim, self.options.seed)

    def _search(
        self, sizes: Sizes, bars: dict[int, Score], held_out_bar: Score
    ) -> tuple[Plan, Score, list[dict[str, Any]]]:
        """The plan with the fewest refreshes that passes the check, else the best one that was tried."""
        budget, tried = self.options.budget, list[dict[str, Any]]()
        best: tuple[Plan, Score] | None = None
        candidates = [Candidate(*choice) for choice in product(_ALPHAS, _SPACINGS, _MODES)]
        if self.teacher is not None:
            choices = product(_ALPHAS, _FITTED_SPACINGS, [Reuse.RESIDUAL_FITTED])
            candidates += [Candidate(*choice) for choice in choices]
        for count in _counts(self.options.most_refreshes):
            if tried and time.perf_counter() - self.begun > max(
                60.0, 90.0 * self.options.minutes
            ):  # half as long again
                break
            ranked = self._ranked(candidates, count, sizes.search, bars[sizes.search])
            tried_here = [entry.candidate for entry in ranked]
            plain = [candidate for candidate in tried_here if not candidate.reuse.is_fitted][:_KEPT]
            fitted = [candidate for candidate in tried_here if candidate.reuse.is_fitted][: _KEPT // 2]
            if count > 1:  # one refresh is not spaced, so it says nothing of spacings
                # The way of the bar stays: with enough refreshes it meets the budget.
                candidates = list(dict.fromkeys([*plain, *fitted, _BAR]))
            if self.can_split:
                with_lows = [replace(candidate, lows=lows) for candidate in plain[:4] for lows in (1, 2)]
                ranked += self._ranked(with_lows, count, sizes.search, bars[sizes.search])
            finalists = sorted(ranked, key=lambda entry: entry.over)[:_FINALISTS]
            finalists = [self._rescored(entry, count, sizes.final, bars[sizes.final]) for entry in finalists]
            promising = sorted((entry for entry in finalists if entry.over <= budget), key=lambda entry: entry.price)
            for entry in promising[:_CHECKS] or [min(finalists, key=lambda entry: entry.over)]:
                drawn = self._draw(f"checking {count} refreshes", sizes.check, entry.plan, held_out=True)
                score = self._score(drawn)
                tried.append(entry.plan.measured | {"search": entry.over, "held_out": score.over(held_out_bar)})
                if best is None or score.over(held_out_bar) < best[1].over(held_out_bar):
                    best = entry.plan, score
                if score.within(held_out_bar, budget):
                    return entry.plan, score, tried
        assert best is not None
        return *best, tried

    def _rescored(self, entry: "_Entry", count: int, n: int, bar: Score) -> "_Entry":
        """The same on more samples."""
        drawn = self._draw(f"trying {count} refreshes again", n, entry.plan)
        return replace(entry, over=self._score(drawn).over(bar))

    def _ranked(self, candidates: Sequence[Candidate], count: int, n: int, bar: Score) -> list["_Entry"]:
        """The candidates with so many refreshes, best first; those that come to the same plan once."""
        plans = {
            (plan.refreshes, plan.low_steps, plan.reuse): (candidate, plan)
            for candidate in candidates
            for plan in [self._plan(candidate, count)]
        }
        entries = [
            _Entry(self._score(self._draw(f"trying {count} refreshes", n, plan)).over(bar), candidate, plan)
            for candidate, plan in plans.values()
        ]
        return sorted(entries, key=lambda entry: entry.over)

    def _with_surprise(self, plan: Plan, n: int) -> Plan:
        """The plan with its guard: the error of the prediction that 99 % of samples stay below at each refresh."""
        watch = _Watch(plan)
        self._draw("the guard", n, watch)
        surprise = []
        for i in plan.refreshes:
            seen = np.concatenate(watch.seen.get(i, [np.zeros(1, np.float32)]))
            usual = float(np.quantile(np.where(np.isfinite(seen), seen, 0.0), 0.99))
            surprise.append(round(max(usual, _LEAST_SURPRISE), 5))
        return replace(plan, surprise=tuple(surprise), guard=2.0)

    # Parts

    def _plan(self, candidate: Candidate, count: int) -> Plan:
        """A candidate with a number of refreshes, as a plan."""
        first = int(np.argmax(self.signal >= candidate.alpha_prior))
        refreshes, is_fitted = self._spaced(candidate.spacing, first, count), candidate.reuse.is_fitted
        if is_fitted and self.teacher is not None:
            refreshes = self.teacher.nearest(refreshes)
        ends = (*refreshes[1:], self.steps)
        lows = {
            start + (end - start) * k // (candidate.lows + 1)
            for start, end in zip(refreshes, ends, strict=True)
            for k in range(1, candidate.lows + 1)
        } - set(refreshes)
        return Plan(
            source_digest=self.model.manifest.source.digest,
            steps=self.steps,
            solver=self.solver,
            grid=self.grid,
            reuse=candidate.reuse,
            refreshes=refreshes,
            fit=self._fit(refreshes) if is_fitted else (),
            K=_LOW_FREQUENCIES if lows else 0,
            low_steps=tuple(sorted(lows)),
            measured={
                "passes": round(len(refreshes) + self.low_price * len(lows), 2),
                "alpha_prior": candidate.alpha_prior,
                "spacing": candidate.spacing,
            },
        )

    def _spaced(self, spacing: str, first: int, count: int) -> tuple[int, ...]:
        """The steps of `count` refreshes from `first` on; fewer where steps fall together."""
        if spacing == "drift":
            return self.drift.best_refreshes(first, count)
        times, share = self.schedule.times, np.arange(count) / count
        if spacing == "logsnr":
            last = self.log_snr[int(0.985 * (len(times) - 1))]
            wanted = self.log_snr[first] + share * (last - self.log_snr[first])
            found = np.searchsorted(self.log_snr, wanted)
        else:
            power = float(spacing.removeprefix("power "))
            found = np.searchsorted(-times, -times[first] * (1.0 - share) ** power)
        return tuple(sorted({first, *(min(int(i), len(times) - 1) for i in found if i >= first)}))

    def _draw(
        self,
        doing: str,
        n: int,
        cache: Cache | None,
        *,
        held_out: bool = False,
        seed: int | None = None,
        also: Callable[[StepInfo], None] | None = None,
    ) -> Samples:
        """Draw samples 0 .. n - 1 of the search's noise, or of the held-out one."""
        options = self.options
        slow = cache is None or also is not None
        total = -(-n // options.batch_size) * self.steps

        def tell(info: StepInfo) -> None:
            self._progress(doing, (info.first_sample // options.batch_size * self.steps + info.index + 1) / total)
            if also is not None:
                also(info)

        self._progress(doing, 0.0)
        return self.model.sample(
            n,
            steps=self.steps,
            solver=self.solver,
            grid=self.grid,
            seed=seed if seed is not None else options.seed + _HELD_OUT_SEED * held_out,
            batch_size=options.batch_size,
            cache=cache,
            on_step=tell if slow else None,
        )

    def _score(self, drawn: Samples) -> Score:
        return replace(self._score_series(drawn.series), num_diverged=drawn.stats.num_diverged)

    def _score_series(self, series: Series) -> Score:
        kept = series[np.isfinite(series).all(axis=(1, 2))].astype(np.float64)
        if len(kept) < 2:
            return Score(np.inf, np.inf, len(series), np.inf, np.inf)
        real = self.judges.series.astype(np.float64)
        in_time, in_frequency = (
            mean_of_roots(sliced_distances(a.reshape(len(a), -1), b.reshape(len(b), -1), self.directions))
            for a, b in ((kept, real), (dft(kept), dft(real)))
        )
        others = spectral_distance(kept, real), autocorrelation_distance(kept, real)
        return Score(in_time, in_frequency, len(series) - len(kept), *(float(np.nan_to_num(one)) for one in others))

    def _drift_curve(self) -> list[list[float]]:
        """[t, effect on the finished series of the residual's change around t, in data std], coarse."""
        curve = self.drift.curve()
        return [[round(float(t), 5), round(float(x), 6)] for t, x in curve[:: max(1, len(curve) // 40)]]


def _counts(most: int) -> list[int]:
    """The numbers of refreshes that are tried."""
    return [count for count in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32) if count <= most]


def _require_finite(count: int, total: int) -> None:
    """Refuse a model that draws next to nothing but NaN: nothing could be told from that."""
    require(count >= 4, "the model draws series that are not finite", f"{total - count} of {total}", "train longer")
