"""The drift of the residual, and the refreshes that follow from it, against every choice of them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.drift import Drift
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.policy import Reuse
from runtime.sampler import Model, StepInfo
from runtime.solvers import Solver, TimeGrid
from tests import calibrating

correlated = calibrating.correlated


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
