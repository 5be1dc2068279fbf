"""Where along a trajectory the residual of the network drifts, and where that makes refreshes worth their cost.

Between refreshes the sampler holds the residual r = z0 - g(z, t) still. What that does to the finished series is
measured here on trajectories that recompute every step, and turned into the best places for a number of
refreshes by dynamic programming (Bellman 1957) over pairs of neighbouring ones.
"""

import numpy as np
from numpy.typing import NDArray

from runtime.leaps import later_products
from runtime.sampler import StepInfo
from runtime.schedule import Schedule

_POINTS, _SAMPLES = 200, 16  # steps that the drift is measured at, and on how many samples


class Drift:
    """How the residual of dense trajectories moves, in terms of the finished series.

    `watch` is given every step and keeps the residual r = z0 - g(z, t) of the first batch at some of them. An
    error of the residual at a step reaches the finished series multiplied by `reach` of that step, as the
    closed form says that everything after it would carry it on.
    """

    def __init__(self, schedule: Schedule, weight: NDArray[np.float32]) -> None:
        steps = schedule.num_steps
        self._schedule, self._weight = schedule, weight
        self._kept = np.unique(np.linspace(0, steps - 1, min(steps, _POINTS)).astype(int))
        self._residual: list[NDArray[np.float32]] = []  # by kept step
        data = schedule.step_data[:, None, None].astype(np.float64)
        factors = schedule.step_latent[:, None, None] + data * schedule.gaussian
        reach = np.cumsum(data * later_products(factors), axis=0)  # [T, N, C]
        self._reach = np.diff(reach[np.append(self._kept[1:], steps) - 1], axis=0, prepend=0.0)  # by kept step
        self._before: NDArray[np.float32] | None = None  # z before the step to come

    def watch(self, info: StepInfo) -> None:
        """Keep the residual of a step, of some samples of the first batch."""
        if info.first_sample > 0:
            return
        data = info.data[:_SAMPLES]
        if info.index in self._kept:
            is_start = self._before is None  # in the prior phase, where the residual is zero
            moving = data if self._before is None else self._schedule.gaussian[info.index] * self._before
            self._residual.append(np.zeros_like(data) if is_start else data - moving)
        self._before = info.z[:_SAMPLES].copy()

    def _stack(self) -> NDArray[np.float64]:
        residual = np.stack(self._residual).astype(np.float64)  # [M, n, N, C]
        return residual[:, np.isfinite(residual).all(axis=(0, 2, 3))]

    def curve(self) -> list[tuple[float, float]]:
        """(t, effect on the finished series of the change of the residual from one kept step to the next)."""
        residual = self._stack()
        ahead = np.cumsum(self._reach[::-1], axis=0)[::-1]  # held from here to the end
        change = np.diff(residual, axis=0) * ahead[1:, None]
        effect = np.sqrt((self._weight * change**2).sum(axis=(2, 3)).mean(axis=1))
        return list(zip(self._schedule.times[self._kept[1:]].tolist(), effect.tolist(), strict=True))

    def best_refreshes(self, first: int, count: int) -> tuple[int, ...]:
        """The steps of `count` refreshes, the first given, with the least total effect of holding the residual."""
        start = int(np.searchsorted(self._kept, first))
        cost = self._costs(start)
        size = len(cost)
        best = cost[:, size].copy()  # with one refresh, from each kept step to the end
        choices: list[NDArray[np.int64]] = []
        for _ in range(min(count, size) - 1):
            total = cost[:, 1:size] + best[None, 1:size]  # refresh at i, next at j > i
            choices.append(np.argmin(total, axis=1) + 1)
            best = total.min(axis=1)
        at, path = 0, [0]
        for choice in reversed(choices):
            at = int(choice[at])
            path.append(at)
        return tuple(dict.fromkeys([first, *(int(self._kept[start + i]) for i in path[1:])]))

    def _costs(self, start: int) -> NDArray[np.float64]:
        """Squared effect of holding the residual of kept step i over steps up to j: [M, M + 1], inf for j <= i."""
        residual, reach = self._stack()[start:], self._reach[start:]
        total = np.concatenate([np.zeros_like(residual[:1]), np.cumsum(residual * reach[:, None], axis=0)])
        reached = np.concatenate([np.zeros_like(reach[:1]), np.cumsum(reach, axis=0)])
        size = len(residual)
        cost = np.full((size, size + 1), np.inf)
        for i in range(size):
            off = total[i + 1 :] - total[i] - (reached[i + 1 :] - reached[i])[:, None] * residual[i]
            cost[i, i + 1 :] = (self._weight * off**2).sum(axis=(2, 3)).mean(axis=1)
        return cost
