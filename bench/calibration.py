"""One calibration: the plan with the fewest network passes for one solver, number of steps and time grid.

In this order, each stage shown by the progress bar:

1. *Uncached* trajectories, the thing to be replaced; and *dense* ones, every step recomputed after a short prior
   phase, which say where along the way the residual of the network drifts and what that does to the series (`drift`).
2. *The bar*: the quality (`judges`) of many refreshes, on the noise the search uses. An uncached run of that many
   samples would take hours; how far the two differ is measured on the samples both have.
3. *The search*: for 1, 2, 3, ... refreshes, where the first of them lies, how the others are spaced, what is reused
   (what is held fitted to the model, where the solver allows it: `fit`), and whether low frequencies are recomputed in
   between (`candidates`). No more are tried when it has all taken half as long again as it was given.
4. *The check* on noise that the search has not seen: sliced Wasserstein in the time and in the frequency domain
   within the budget of the bar, no more diverged samples, and spectra and autocorrelations as near to the real ones but
   for a slack. The first number of refreshes that passes is the plan. Where none does, the best one is, if it is within
   the budget of what computing every step gives (the better of uncached and dense, on their noise): many refreshes can
   be better than all of them.

The plan then gets its guard (`guard`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.candidates import BAR, Candidate, Planner, counts_up_to, first_candidates
from bench.contenders import Progress
from bench.drift import Drift
from bench.fit import Teacher
from bench.guard import with_guard
from bench.judges import Judges, Score, own_judges, real_judges, require_finite
from bench.quality import paired_error
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache
from runtime.sampler import Model, Samples, StepInfo
from runtime.solvers import Solver, TimeGrid

if TYPE_CHECKING:
    from bench.calibrate import CalibrateOptions

_BAR_REFRESHES = 20
_TEACHER_REFRESHES = 40  # whose latents a plan is fitted to
_DENSE_ALPHA = 0.05  # prior phase of the dense trajectories
_KEPT = 8  # best ways of a number of refreshes that the next one tries, and half as many fitted ones
_FINALISTS = 8  # best of a number of refreshes, tried again on more samples
_CHECKS = 4  # promising plans of a number of refreshes that are checked, the cheapest first
_MANY, _EVERY_STEP = "many refreshes", "every step computed"  # what a plan is held against
_HELD_OUT_SEED = 1 << 20  # added to the seed: noise that the search has not seen


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
class _Entry:
    """A candidate that was tried."""

    over: float  # growth of the distance over the bar's
    candidate: Candidate
    plan: Plan

    @property
    def price(self) -> float:
        """In full passes."""
        return float(self.plan.measured["passes"])


@dataclass(frozen=True)
class _Found:
    """What a search came to."""

    plan: Plan
    score: Score  # on held-out noise
    tried: list[dict[str, Any]]  # the plans that were checked
    time_was_up_after: int | None = None  # refreshes; None where it sufficed


class Calibration:
    """The stages for one solver and number of steps, and the grid of the options; `run` goes through them."""

    def __init__(
        self, model: Model, options: "CalibrateOptions", solver: str, steps: int, progress: Progress, per_pass: float
    ) -> None:
        self.model, self.options, self._progress = model, options, progress
        self.per_pass = per_pass  # seconds of a full pass of one sample
        self.solver, self.steps, self.grid = Solver(solver), steps, TimeGrid(options.grid)
        self.planner = Planner(model, self.solver, steps, self.grid, progress)
        self.begun = time.perf_counter()
        self.deadline = self.begun + max(60.0, 90.0 * options.minutes)  # half as long again

    def run(self) -> Plan:
        """All stages."""
        options, planner = self.options, self.planner
        planner.price_low_steps()
        sizes = sizes_for(options.minutes, self.steps, self.per_pass)
        self.judges = self._judges(sizes.check)  # first, since a file that cannot be read should not cost minutes
        score = self.judges.score
        uncached = self._draw("uncached trajectories", sizes.uncached, None)
        dense, planner.drift = self._dense(sizes.uncached)
        bar_plan = planner.plan(BAR, _BAR_REFRESHES)
        bar_found = self._draw("the bar", sizes.final, bar_plan)
        bars = {n: self.judges.score_series(bar_found.series[:n]) for n in (sizes.search, sizes.final)}
        held_out_bar = score(self._draw("the bar on held-out noise", sizes.check, bar_plan, held_out=True))
        for n, bar in (*bars.items(), (sizes.check, held_out_bar)):
            require_finite(n if np.isfinite(bar.time) else 0, n)
        if not planner.schedule.is_multistep:
            planner.teacher = self._teacher(sizes.teacher)
        found = self._search(sizes, bars, held_out_bar)
        plan = with_guard(found.plan, lambda cache: self._draw("the guard", sizes.final, cache))
        both = min(sizes.uncached, sizes.final)
        same = self._draw("the plan", both, plan).series
        on_same = self.judges.score_series(same)
        every_step = min(
            (self.judges.score_series(one.series[:both]) for one in (uncached, dense)), key=lambda s: s.time
        )
        held = {_MANY: found.score.within(held_out_bar, options.budget),
                _EVERY_STEP: on_same.within(every_step, options.budget)}  # fmt: skip
        measured = {
            "budget": options.budget,
            "met": any(held.values()),
            "within_budget_of": next((name for name, is_met in held.items() if is_met), None),
            "passes": plan.measured["passes"],
            "num_samples": {
                "uncached": sizes.uncached,
                "fit": 0 if planner.teacher is None else sizes.teacher,
                "search": sizes.search,
                "final": sizes.final,
                "check": sizes.check,
            },
            "judges": self.judges.name,
            "uncached": score(uncached).to_dict(),
            "dense": score(dense).to_dict(),
            "plan_on_noise_of_uncached": on_same.to_dict(),
            "bar_held_out": held_out_bar.to_dict(),
            "plan_held_out": found.score.to_dict(),
            "paired_bar_to_dense": paired_error(bar_found.series[:both], dense.series[:both], self.judges.reference),
            "paired_plan_to_dense": paired_error(same, dense.series[:both], self.judges.reference),
            "drift": _coarse(planner.drift),
            "tried": found.tried,
            "time_was_up_after_refreshes": found.time_was_up_after,
            "seconds": round(time.perf_counter() - self.begun, 1),
        }
        return replace(plan, measured=plan.measured | measured)

    def _judges(self, n: int) -> Judges:
        """Real series, or the model's own from other noise."""
        options = self.options
        if options.reference is not None:
            return real_judges(options.reference, options.seed)
        plan = self.planner.plan(BAR, _BAR_REFRESHES)
        own = self._draw("series that judge", 2 * max(n, 64), plan, seed=options.seed + 2 * _HELD_OUT_SEED)
        return own_judges(own.series, options.seed)

    def _dense(self, n: int) -> tuple[Samples, Drift]:
        """Every step recomputed after a short prior phase, and the drift of the residual along the way."""
        drift = Drift(self.planner.schedule, self.model.facts.weight)
        cache = E2CRF(policy=PolicyName.NEVER, alpha_prior=_DENSE_ALPHA)
        drawn = self._draw("dense trajectories", n, cache, also=drift.watch)
        return drawn, drift

    def _teacher(self, n: int) -> Teacher:
        """The latents of many refreshes on their way, on noise that nothing else uses."""
        network = self.model.manifest.network
        width = n * network.num_tokens * network.num_channels
        teacher = Teacher(self.steps, self.options.seed + 3 * _HELD_OUT_SEED, width)
        many = self.planner.plan(BAR, _TEACHER_REFRESHES)
        self._draw("trajectories to fit to", n, many, seed=teacher.seed, also=teacher.watch)
        return teacher

    def _search(self, sizes: Sizes, bars: dict[int, Score], held_out_bar: Score) -> _Found:
        """The plan with the fewest refreshes that passes the check, else the best one that was tried."""
        budget, tried = self.options.budget, list[dict[str, Any]]()
        best: tuple[Plan, Score] | None = None
        last = 0  # number of refreshes
        candidates = first_candidates(can_fit=self.planner.teacher is not None)
        for count in counts_up_to(self.options.most_refreshes):
            if best is not None and time.perf_counter() > self.deadline:
                return _Found(*best, tried, time_was_up_after=last)
            ranked = self._ranked(candidates, count, sizes.search, bars[sizes.search])
            tried_here = [entry.candidate for entry in ranked]
            plain = [candidate for candidate in tried_here if not candidate.reuse.is_fitted][:_KEPT]
            fitted = [candidate for candidate in tried_here if candidate.reuse.is_fitted][: _KEPT // 2]
            if count > 1:  # one refresh is not spaced, so it says nothing of spacings
                # The way of the bar stays: with enough refreshes it meets the budget.
                candidates = list(dict.fromkeys([*plain, *fitted, BAR]))
            if self.planner.can_split:
                with_lows = [replace(candidate, lows=lows) for candidate in plain[:4] for lows in (1, 2)]
                ranked += self._ranked(with_lows, count, sizes.search, bars[sizes.search])
            finalists = sorted(ranked, key=lambda entry: entry.over)[:_FINALISTS]
            finalists = [self._rescored(entry, count, sizes.final, bars[sizes.final]) for entry in finalists]
            promising = sorted((entry for entry in finalists if entry.over <= budget), key=lambda entry: entry.price)
            for entry in promising[:_CHECKS] or [min(finalists, key=lambda entry: entry.over)]:
                drawn = self._draw(f"checking {count} refreshes", sizes.check, entry.plan, held_out=True)
                score = self.judges.score(drawn)
                tried.append(entry.plan.measured | {"search": entry.over, "held_out": score.over(held_out_bar)})
                if best is None or score.over(held_out_bar) < best[1].over(held_out_bar):
                    best = entry.plan, score
                if score.within(held_out_bar, budget):
                    return _Found(entry.plan, score, tried)
            last = count
        assert best is not None
        return _Found(*best, tried)

    def _rescored(self, entry: _Entry, count: int, n: int, bar: Score) -> _Entry:
        """The same on more samples."""
        drawn = self._draw(f"trying {count} refreshes again", n, entry.plan)
        return replace(entry, over=self.judges.score(drawn).over(bar))

    def _ranked(self, candidates: Sequence[Candidate], count: int, n: int, bar: Score) -> list[_Entry]:
        """The candidates with so many refreshes, best first; those that come to the same plan once."""
        plans = {
            (plan.refreshes, plan.low_steps, plan.reuse): (candidate, plan)
            for candidate in candidates
            for plan in [self.planner.plan(candidate, count)]
        }
        entries = [
            _Entry(self.judges.score(self._draw(f"trying {count} refreshes", n, plan)).over(bar), candidate, plan)
            for candidate, plan in plans.values()
        ]
        return sorted(entries, key=lambda entry: entry.over)

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


def _coarse(drift: Drift) -> list[list[float]]:
    """[t, effect on the finished series of the residual's change around t, in data std], coarse."""
    curve = drift.curve()
    return [[round(float(t), 5), round(float(x), 6)] for t, x in curve[:: max(1, len(curve) // 40)]]
