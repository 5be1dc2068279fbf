"""The ways of sampling one model that are set against each other, from plain PyTorch to E2-CRF.

All of them go through the one sampler of the runtime, with the same noise for the same sample and step;
only the network behind it, the cache and the number of steps differ.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.policy import steps_of
from runtime.sampler import Model, Samples, StepInfo
from runtime.sde import process_from_facts
from runtime.solvers import uniform_times

if TYPE_CHECKING:
    from bench.baseline import Baseline


class Way(StrEnum):
    """The ways of sampling on one backend."""

    UNCACHED = "uncached"
    CACHED = "E2-CRF"
    FEWER = "fewer steps"


Progress = Callable[[str, float], None]  # what is being done, and how much of it is: 0 to 1


@dataclass(frozen=True)
class Contender:
    """One way of sampling on one backend."""

    way: Way
    model: Model
    cache: E2CRF | None
    steps: int
    solver: str
    seed: int

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

        return self.model.sample(
            n,
            steps=self.steps,
            solver=self.solver,
            seed=self.seed,
            batch_size=batch_size,
            cache=self.cache,
            on_step=None if progress is None else tell,
        )


def fewer_steps(model: Model, cache: E2CRF, steps: int, passes: float) -> tuple[E2CRF, int]:
    """The cache and the number of steps that cost as many passes without reusing anything.

    The closed-form prior phase stays, since it is no reuse and costs nothing; of the remaining steps each is
    one full pass.
    """
    diffusion = model.manifest.diffusion
    process = process_from_facts(diffusion.process, diffusion.parameters)
    signals = np.array([step.signal for step in steps_of(process, uniform_times(steps, diffusion.eps))])
    share = float(np.mean(signals >= cache.alpha_prior))  # of the steps that ask the network
    return E2CRF(policy=PolicyName.NEVER, alpha_prior=cache.alpha_prior), max(2, round(passes / share))


@contextmanager
def open_pytorch(checkpoint: Path | None, model: Model, batch_size: int) -> "Iterator[Baseline | None]":
    """The PyTorch baseline of a checkpoint file, or None if there is no checkpoint to compare with."""
    if checkpoint is None:
        yield None
        return
    from bench.baseline import baseline  # torch only where it is asked for
    from export.checkpoint import read_checkpoint

    with baseline(read_checkpoint(checkpoint), model.manifest, batch_size) as opened:
        yield opened
