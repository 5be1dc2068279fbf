"""The ways of sampling one model that are set against each other, from plain PyTorch to E2-CRF.

All of them go through the one sampler of the runtime, with the same noise for the same sample and step;
only the network behind it, the cache and the number of steps differ.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache, Reuse, steps_of
from runtime.errors import CacheWarning
from runtime.sampler import Model, Samples, StepInfo
from runtime.sde import process_from_facts
from runtime.solvers import Solver, TimeGrid, time_grid

if TYPE_CHECKING:
    from bench.baseline import Baseline


class Way(StrEnum):
    """The ways of sampling on one backend."""

    UNCACHED = "uncached"
    CACHED = "E2-CRF"
    FEWER = "fewer steps"  # of as many passes
    FEWER_AS_GOOD = "fewer steps, as good"
    INTERVAL = "fixed interval"
    STALE = "stale features"


Progress = Callable[[str, float], None]  # what is being done, and how much of it is: 0 to 1


@dataclass(frozen=True)
class Contender:
    """One way of sampling on one backend."""

    way: Way
    model: Model
    cache: Cache | None
    steps: int
    solver: str
    seed: int
    grid: str = TimeGrid.UNIFORM

    @property
    def name(self) -> str:
        """What the rows of a table call it."""
        return f"{self.model.backend.name}, {self.way}"

    def draw(self, n: int, batch_size: int, progress: Progress | None = None) -> Samples:
        """Draw samples 0 .. n - 1 of the seed."""

        def tell(info: StepInfo) -> None:
            done = info.first_sample * info.num_steps + info.batch * (info.index + 1)
            if progress is not None:
                progress(f"sampling: {self.name}", done / (n * info.num_steps))

        with warnings.catch_warnings():
            if self.way is not Way.CACHED:  # nobody chose the knobs of a rival
                warnings.simplefilter("ignore", CacheWarning)
            return self.model.sample(
                n,
                steps=self.steps,
                solver=self.solver,
                grid=self.grid,
                seed=self.seed,
                batch_size=batch_size,
                cache=self.cache,
                on_step=None if progress is None or self.cache is not None else tell,
            )


FEW_STEP_SOLVERS = (
    (Solver.DDIM, TimeGrid.QUADRATIC),
    (Solver.DPMPP_2M, TimeGrid.UNIFORM),
    (Solver.DPMPP_2M, TimeGrid.QUADRATIC),
    (Solver.DPMPP_2M, TimeGrid.LOGSNR),
)  # what is good at few steps; ancestral, Euler-Maruyama and the stochastic 2M need more


def prior_of(cached: Contender) -> float:
    """The signal-to-noise below which a cached contender asks no network."""
    if isinstance(cached.cache, E2CRF):
        return cached.cache.alpha_prior
    if isinstance(cached.cache, Plan):
        return _signals(cached.model, cached.steps, TimeGrid(cached.grid))[cached.cache.refreshes[0]]
    return 0.0


def fewer_steps(cached: Contender, solver: Solver, grid: TimeGrid, passes: int) -> Contender:
    """A contender whose time grid is so coarse that it costs `passes` without reusing anything.

    The closed-form prior phase stays, since it is no reuse and costs nothing; of the remaining steps each is
    one full pass. Of the numbers of steps that cost as much, the largest.
    """
    alpha_prior = prior_of(cached)

    def cost(steps: int) -> int:
        return sum(signal >= alpha_prior for signal in _signals(cached.model, steps, grid))

    steps = 2
    while cost(steps + 1) <= passes:
        steps += 1
    cache = E2CRF(policy=PolicyName.NEVER, alpha_prior=alpha_prior)
    return replace(cached, way=Way.FEWER, cache=cache, steps=steps, solver=solver, grid=grid)


def _signals(model: Model, steps: int, grid: TimeGrid) -> list[float]:
    diffusion = model.manifest.diffusion
    process = process_from_facts(diffusion.process, diffusion.parameters)
    return [step.signal for step in steps_of(process, time_grid(grid, process, steps, diffusion.eps))]


def fixed_interval(cached: Contender, passes: float) -> Contender:
    """A constant interval without low frequencies, of as many passes, rounded up."""
    alpha_prior = prior_of(cached)
    num_network = sum(signal >= alpha_prior for signal in _signals(cached.model, cached.steps, TimeGrid(cached.grid)))
    R = max(1, -(-num_network // max(1, math.ceil(passes - 0.01))))
    return replace(cached, way=Way.INTERVAL, cache=E2CRF(R=R, K=0, alpha_prior=alpha_prior))


def stale_features(cached: Contender) -> Contender:
    """The same schedule reusing features, as the published code does: the score is stale."""
    if isinstance(cached.cache, Plan):
        return replace(cached, way=Way.STALE, cache=replace(cached.cache, reuse=Reuse.FEATURE, surprise=()))
    assert isinstance(cached.cache, E2CRF)
    return replace(cached, way=Way.STALE, cache=replace(cached.cache, reuse=Reuse.FEATURE))


@contextmanager
def open_pytorch(checkpoint: Path | None, model: Model, batch_size: int) -> "Iterator[Baseline | None]":
    """The PyTorch baseline of a checkpoint file, or None if there is no checkpoint to compare with."""
    if checkpoint is None:
        yield None
        return
    from bench.baseline import baseline  # torch only where it is asked for
    from export.checkpoint import checkpoint_of

    with baseline(checkpoint_of(checkpoint, model.manifest), model.manifest, batch_size) as opened:
        yield opened
