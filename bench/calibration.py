"""One calibration: the plan with the fewest network passes for one solver, number of steps and time grid.

In this order, each stage shown by the progress bar:

1. *Uncached* trajectories, the thing to be replaced; and *dense* ones, every step recomputed after a short prior
   phase, which say where along the way the residual of the network drifts and what that does to the series (`drift`).
   Both on noise of their own, of which the search knows no more than that drift.
2. *The bar*: the quality (`judges`) of many refreshes, on the noise the search uses. An uncached run of that many
   samples would take hours; how far the two differ is measured on the noise of the uncached ones.
3. *The search*: for 1, 2, 3, ... refreshes, where the first of them lies, how the others are spaced, what is reused
   (what is held fitted to the model, where the solver allows it: `fit`), and whether low frequencies are recomputed in
   between (`candidates`). No more are tried when what is left to do would end later than a quarter more than the
   time that was given (a minute at least); the best of those tried goes on.
4. *The check* on noise that the search has not seen: sliced Wasserstein in the time and in the frequency domain
   within the budget of the bar, no larger share of diverged samples than uncached, and spectra and autocorrelations as
   near to the real ones but for a slack. The first number of refreshes that passes is the plan. Where none does, the
   best one is, if it is within the budget of what computing every step comes to: many refreshes can be better than
   that, by as much as the noise of uncached and dense ones shows for sure (at least eight samples). Else the bar
   itself is the plan, where there it is within the budget: a search that its time ended still has a plan to give.

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
_EVERY_STEP_SEED = 4 * _HELD_OUT_SEED  # added to it for uncached and dense trajectories
_SEARCH_SEED = 5 * _HELD_OUT_SEED  # added to it for the search: what is sampled later, and benched, is other noise
_LEAST_UNCACHED = 8  # samples that are compared with every step computed
_LEAST_SECONDS, _LATER = 60.0, 1.25  # within which all ends: the first, or so many times what was asked for


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
        uncached=max(_LEAST_UNCACHED, min(uncached, 256)),
        teacher=max(48, min(teacher, 192)),
        search=search,
        final=4 * search,
        check=max(32, min(check, 1024)),
    )


@dataclass(frozen=True)
class _Scored:
    """Samples and what they are worth."""

    drawn: Samples
    score: Score


@dataclass(frozen=True)
class _Entry:
    """A candidate that was tried."""

    over: float  # growth of the distance over the bar's
    apart: float  # how far its samples are from the bar's of the same noise, in data std
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
    time_was_up_after: int | None = None  # refreshes, the last that were begun; None where it sufficed


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
        self.deadline = self.begun + max(_LEAST_SECONDS, _LATER * 60.0 * options.minutes)
        self.overhead = 0.0  # seconds of a sample beside its passes
        self._was_cut = False  # whether anything was not tried for want of time

    def run(self) -> Plan:
        """All stages."""
        options, planner = self.options, self.planner
        planner.price_low_steps()
        sizes = sizes_for(options.minutes, self.steps, self.per_pass)
        self.judges = self._judges(sizes.check)  # first, since a file that cannot be read should not cost minutes
        scored, on_its_noise = self._scored, options.seed + _EVERY_STEP_SEED
        uncached = scored(self._draw("uncached trajectories", sizes.uncached, None, seed=on_its_noise))
        dense_drawn, planner.drift = self._dense(sizes.uncached, on_its_noise)
        dense, bar_plan = scored(dense_drawn), planner.plan(BAR, _BAR_REFRESHES)
        bar_there = scored(self._draw("the bar on the noise of uncached", sizes.uncached, bar_plan, seed=on_its_noise))
        guarded_bar, drawn = with_guard(bar_plan, lambda cache: self._draw("the bar", sizes.final, cache))
        few = self._draw("the bar", sizes.search, bar_plan)
        bars = {sizes.search: scored(few), sizes.final: scored(drawn)}
        begun = time.perf_counter()
        held_out_bar = self.judges.score(self._draw("the bar on held-out noise", sizes.check, bar_plan, held_out=True))
        took = time.perf_counter() - begun
        self.overhead = max(0.0, took / sizes.check - len(bar_plan.refreshes) * self.per_pass)
        for n, told in (*((n, bar.score) for n, bar in bars.items()), (sizes.check, held_out_bar)):
            require_finite(n if np.isfinite(told.time) else 0, n)
        if not planner.schedule.is_multistep:
            planner.teacher = self._teacher(sizes.teacher)
        found = self._search(sizes, bars, held_out_bar, uncached.score)
        plan, _ = with_guard(found.plan, lambda cache: self._draw("the guard", sizes.final, cache))
        there = scored(self._draw("the plan", sizes.uncached, plan, seed=on_its_noise))
        every_step = min(uncached, dense, key=lambda one: one.score.time)
        further = self.judges.surely_further(every_step.drawn.series, bar_there.drawn.series)
        as_every_step = held_out_bar.raised(further, every_step.score, than=bar_there.score)
        budget, held_against = options.budget, None
        if found.score.within(held_out_bar, uncached.score, budget):
            held_against = _MANY
        elif found.score.over(as_every_step) <= budget and not there.score.diverges_more(uncached.score):
            held_against = _EVERY_STEP
        elif options.most_refreshes >= _BAR_REFRESHES and bar_there.score.within(
            every_step.score, uncached.score, budget
        ):
            held_against = _EVERY_STEP
            plan, there = guarded_bar, bar_there
            found = replace(found, score=held_out_bar, tried=[*found.tried, _told(bar_plan, 0.0, 0.0)])
        measured = {
            "budget": budget,
            "met": held_against is not None,
            "within_budget_of": held_against,
            "passes": plan.measured["passes"],
            "num_samples": {
                "uncached": sizes.uncached,
                "fit": 0 if planner.teacher is None else sizes.teacher,
                "search": sizes.search,
                "final": sizes.final,
                "check": sizes.check,
            },
            "judges": self.judges.name,
            "uncached": uncached.score.to_dict(),
            "dense": dense.score.to_dict(),
            "bar_on_noise_of_uncached": bar_there.score.to_dict(),
            "plan_on_noise_of_uncached": there.score.to_dict(),
            "bar_held_out": held_out_bar.to_dict(),
            "plan_held_out": found.score.to_dict(),
            "over_bar_held_out": found.score.over(held_out_bar),
            "paired_bar_to_dense": paired_error(bar_there.drawn.series, dense.drawn.series, self.judges.reference),
            "paired_plan_to_dense": paired_error(there.drawn.series, dense.drawn.series, self.judges.reference),
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

    def _dense(self, n: int, seed: int) -> tuple[Samples, Drift]:
        """Every step recomputed after a short prior phase, and the drift of the residual along the way."""
        drift = Drift(self.planner.schedule, self.model.facts.weight)
        cache = E2CRF(policy=PolicyName.NEVER, alpha_prior=_DENSE_ALPHA)
        drawn = self._draw("dense trajectories", n, cache, seed=seed, also=drift.watch)
        return drawn, drift

    def _teacher(self, n: int) -> Teacher:
        """The latents of many refreshes on their way, on noise that nothing else uses."""
        network = self.model.manifest.network
        width = n * network.num_tokens * network.num_channels
        teacher = Teacher(self.steps, self.options.seed + 3 * _HELD_OUT_SEED, width)
        many = self.planner.plan(BAR, _TEACHER_REFRESHES)
        self._draw("trajectories to fit to", n, many, seed=teacher.seed, also=teacher.watch)
        return teacher

    def _search(self, sizes: Sizes, bars: dict[int, _Scored], held_out_bar: Score, uncached: Score) -> _Found:
        """The plan with the fewest refreshes that passes the check, else the best one that was tried.

        Of every number of refreshes that is begun at least one plan is checked, also when the time is up.
        """
        budget, tried = self.options.budget, list[dict[str, Any]]()
        best: tuple[Plan, Score] | None = None
        last = 0  # number of refreshes
        candidates = first_candidates(can_fit=self.planner.teacher is not None)
        for count in counts_up_to(self.options.most_refreshes):
            if best is not None and self._must_stop(count, sizes):
                break
            last = count
            entries = self._tried(candidates, count, sizes, bars[sizes.search])
            plain = _best([entry for entry in entries if not entry.candidate.reuse.is_fitted], _KEPT)
            fitted = _best([entry for entry in entries if entry.candidate.reuse.is_fitted], _KEPT // 2)
            if count > 1:  # one refresh is not spaced, so it says nothing of spacings
                # The way of the bar stays: with enough refreshes it meets the budget.
                candidates = list(dict.fromkeys([*(entry.candidate for entry in (*fitted, *plain)), BAR]))
            if self.planner.can_split and not self._must_stop(count, sizes):
                with_lows = [replace(entry.candidate, lows=lows) for entry in plain[:4] for lows in (1, 2)]
                entries += self._tried(with_lows, count, sizes, bars[sizes.search])
            finalists = _best(entries, _FINALISTS)
            again = self._again(finalists, count, sizes, bars[sizes.final])
            promising = [entry for entry in again if entry.over <= budget]
            promising.sort(key=lambda entry: (entry.price, entry.over))
            # Without the time to try any of them again it is the one nearest to the bar's samples.
            chosen = promising[:_CHECKS] or [min(again, key=lambda entry: entry.over, default=finalists[0])]
            for index, entry in enumerate(chosen):
                if index > 0 and self._must_stop(count, sizes):
                    break
                drawn = self._draw(f"checking {count} refreshes", sizes.check, entry.plan, held_out=True)
                score = self.judges.score(drawn)
                tried.append(_told(entry.plan, entry.over, score.over(held_out_bar)))
                badness = score.diverges_more(uncached), score.over(held_out_bar)
                if best is None or badness < (best[1].diverges_more(uncached), best[1].over(held_out_bar)):
                    best = entry.plan, score
                if score.within(held_out_bar, uncached, budget):
                    return _Found(entry.plan, score, tried, last if self._was_cut else None)
        assert best is not None
        return _Found(*best, tried, last if self._was_cut else None)

    def _must_stop(self, count: int, sizes: Sizes) -> bool:
        """Whether one more draw, then the check, the guard and the comparison with uncached, would end too late.

        Remembers that it said so, since whoever asks then leaves something out.
        """
        num_samples = max(sizes.final, sizes.check) + sizes.check + sizes.final + sizes.uncached
        left = num_samples * (self.overhead + count * self.per_pass)
        is_up = time.perf_counter() + left > self.deadline
        self._was_cut |= is_up
        return is_up

    def _again(self, finalists: Sequence[_Entry], count: int, sizes: Sizes, bar: _Scored) -> list[_Entry]:
        """The same on more samples, as many of them as there is the time for."""
        again = list[_Entry]()
        for entry in finalists:
            if self._must_stop(count, sizes):
                break
            drawn = self._draw(f"trying {count} refreshes again", sizes.final, entry.plan)
            again.append(self._entry(entry.candidate, entry.plan, drawn, bar))
        return again

    def _tried(self, candidates: Sequence[Candidate], count: int, sizes: Sizes, bar: _Scored) -> list[_Entry]:
        """The candidates with so many refreshes; those that come to the same plan once.

        When the time is up they are as many as were tried, at least one.
        """
        plans: dict[tuple[object, ...], tuple[Candidate, Plan]] = {}
        for candidate in candidates:
            if plans and self._must_stop(count, sizes):
                break
            plan = self.planner.plan(candidate, count)
            plans[plan.refreshes, plan.low_steps, plan.reuse] = candidate, plan
        entries = list[_Entry]()
        for candidate, plan in plans.values():
            if entries and self._must_stop(count, sizes):
                break
            drawn = self._draw(f"trying {count} refreshes", sizes.search, plan)
            entries.append(self._entry(candidate, plan, drawn, bar))
        return entries

    def _scored(self, drawn: Samples) -> _Scored:
        return _Scored(drawn, self.judges.score(drawn))

    def _entry(self, candidate: Candidate, plan: Plan, drawn: Samples, bar: _Scored) -> _Entry:
        apart = paired_error(drawn.series, bar.drawn.series, self.judges.reference)
        return _Entry(self.judges.score(drawn).over(bar.score), apart, candidate, plan)

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
            seed=seed if seed is not None else options.seed + (_HELD_OUT_SEED if held_out else _SEARCH_SEED),
            batch_size=options.batch_size,
            cache=cache,
            on_step=tell if slow else None,
        )


def _best(entries: Sequence[_Entry], most: int) -> list[_Entry]:
    """The best of them: in turn what is nearest to the bar's samples, and what is nearest to the real ones.

    A few samples tell the first surely and the second hardly; but what is nearer to the real series than many refreshes
    are is not near to these.
    """
    by_apart, by_over = (sorted(entries, key=key) for key in (lambda one: one.apart, lambda one: one.over))
    in_turn = {id(one): one for pair in zip(by_apart, by_over, strict=True) for one in pair}
    return list(in_turn.values())[:most]


def _told(plan: Plan, search: float, held_out: float) -> dict[str, Any]:
    """A plan that was checked: what it is, and how far it was over the bar."""
    return plan.measured | {"search": search, "held_out": held_out}


def _coarse(drift: Drift) -> list[list[float]]:
    """[t, effect on the finished series of the residual's change around t, in data std], coarse."""
    curve = drift.curve()
    return [[round(float(t), 5), round(float(x), 6)] for t, x in curve[:: max(1, len(curve) // 40)]]
