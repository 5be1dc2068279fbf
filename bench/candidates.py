"""The candidates of a calibration, and how one becomes a plan.

A candidate says where the first refresh lies (`alpha_prior`), how the others are spaced, what is reused, and whether
low frequencies are recomputed in between; with a number of refreshes it is a plan.

Spacings: `power p` puts refresh k of P at t = t_first (1 - k / P)^p, so that 1 is the constant interval and larger p
looks more often near the end; `logsnr` is even in log(alpha / sigma); `drift` minimises by dynamic programming the
effect on the finished series of holding the residual still, as measured on the dense trajectories.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from bench.contenders import Progress
from bench.drift import Drift
from bench.fit import Teacher, fit
from bench.pareto import call_seconds, pass_seconds
from runtime.cache.hold import LinearHold
from runtime.cache.plan import Plan
from runtime.cache.policy import Reuse
from runtime.sampler import Model
from runtime.sde import process_from_facts, signal_to_noise
from runtime.solvers import Solver, TimeGrid

SPACINGS = ("power 1", "power 1.5", "power 2", "power 3", "logsnr", "drift")
_ALPHAS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
_MODES = (Reuse.RESIDUAL, Reuse.RESIDUAL_LINEAR, Reuse.DATA)
_FITTED_SPACINGS = ("power 1", "power 1.5", "power 2")
_COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
_LOW_FREQUENCIES = 3  # the K that is tried


@dataclass(frozen=True)
class Candidate:
    """A way to place P refreshes."""

    alpha_prior: float
    spacing: str
    reuse: Reuse
    lows: int = 0  # low steps after each refresh


BAR = Candidate(0.1, "power 2", Reuse.RESIDUAL_LINEAR)  # with many refreshes it is what a plan is held against


def first_candidates(*, can_fit: bool) -> list[Candidate]:
    """What a search begins with; first what is fitted, since it is usually best and the time may be up."""
    fitted = product(_ALPHAS, _FITTED_SPACINGS, [Reuse.RESIDUAL_FITTED]) if can_fit else ()
    return [Candidate(*choice) for choice in (*fitted, *product(_ALPHAS, SPACINGS, _MODES))]


def counts_up_to(most: int) -> list[int]:
    """The numbers of refreshes that are tried."""
    return [count for count in _COUNTS if count <= most]


class Planner:
    """Makes plans of candidates, for one solver, number of steps and time grid.

    `drift` is there from the dense trajectories on, and `teacher` from the trajectories to fit to on.
    """

    def __init__(self, model: Model, solver: Solver, steps: int, grid: TimeGrid, progress: Progress) -> None:
        self._model, self._solver, self._steps, self._grid, self._progress = model, solver, steps, grid, progress
        self.schedule = model.schedule(solver, steps, grid, Reuse.RESIDUAL)[0]
        facts, times = model.manifest.diffusion, self.schedule.times
        process = process_from_facts(facts.process, facts.parameters)
        self.signal = signal_to_noise(process, times)
        self.log_snr = np.log(process.alpha(times) / process.sigma(times))
        tokens = model.facts.tokens
        self.can_split = tokens.obstacle is None and tokens.num_frequencies > _LOW_FREQUENCIES
        self.low_price = 0.0  # of a step with the low frequencies alone, in full passes
        self.drift: Drift | None = None
        self.teacher: Teacher | None = None  # None for good where the solver looks back: nothing can be fitted
        self._fits: dict[tuple[int, ...], tuple[LinearHold, ...]] = {}  # by refreshes

    def price_low_steps(self) -> None:
        """Measure `low_price`, where there are low frequencies to recompute alone."""
        if self.can_split:
            low_tokens = int(np.count_nonzero(self._model.facts.tokens.frequency < _LOW_FREQUENCIES))
            self.low_price = call_seconds(self._model, 1, low_tokens) / pass_seconds(self._model, 1)

    def plan(self, candidate: Candidate, count: int) -> Plan:
        """A candidate with a number of refreshes, as a plan."""
        first = int(np.argmax(self.signal >= candidate.alpha_prior))
        refreshes, is_fitted = self.spaced(candidate.spacing, first, count), candidate.reuse.is_fitted
        if is_fitted and self.teacher is not None:
            refreshes = self.teacher.nearest(refreshes)
        ends = (*refreshes[1:], self._steps)
        lows = {
            start + (end - start) * k // (candidate.lows + 1)
            for start, end in zip(refreshes, ends, strict=True)
            for k in range(1, candidate.lows + 1)
        } - set(refreshes)
        return Plan(
            source_digest=self._model.manifest.source.digest,
            steps=self._steps,
            solver=self._solver,
            grid=self._grid,
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

    def spaced(self, spacing: str, first: int, count: int) -> tuple[int, ...]:
        """The steps of `count` refreshes from `first` on; fewer where steps fall together."""
        if spacing == "drift":
            assert self.drift is not None
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

    def _fit(self, refreshes: tuple[int, ...]) -> tuple[LinearHold, ...]:
        """What is held after each of these refreshes, fitted once."""
        assert self.teacher is not None
        if refreshes not in self._fits:
            self._progress(f"fitting {len(refreshes)} refreshes", 0.0)
            self._fits[refreshes] = fit(self._model, self.teacher, self._solver, self._grid, refreshes)
        return self._fits[refreshes]
