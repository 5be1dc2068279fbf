"""The best plain PyTorch: the network as trained, uncached, under the settings that suit this machine.

A rival that was held back proves nothing. PyTorch's fast path for transformer layers and its number of
threads each help at some batch sizes and hurt at others, so all candidates are tried on the batch at hand,
turn by turn, and the fastest is kept. Both settings belong to the process: they hold inside the `with`
block.

    with baseline(checkpoint, manifest, batch_size=1) as plain:
        plain.model.sample(1, cache=None)          # the same sampler and noise as every other rival
        print(plain.choice)                        # fast path off, 2 threads: 3.1 ms a pass
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from bench.latency import RaceOptions, Rival, race
from bench.machine import num_usable_cores
from export.checkpoint import Checkpoint
from export.manifest import Manifest
from export.reference import TorchBackend
from runtime.errors import require
from runtime.sampler import Model

_PASSES = 4  # of the network in one turn of a trial


@dataclass(frozen=True)
class Settings:
    """Settings of PyTorch that hold for the whole process."""

    fast_path: bool
    threads: int

    def __str__(self) -> str:
        """As a table foot tells it."""
        return f"fast path {'on' if self.fast_path else 'off'}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Baseline:
    """The network in PyTorch behind the sampler, and the settings it runs under."""

    model: Model
    settings: Settings
    pass_ms: float  # one pass over the whole batch

    @property
    def choice(self) -> str:
        """What was chosen, for people."""
        return f"{self.settings}: {self.pass_ms:.3g} ms a pass"


@contextmanager
def baseline(checkpoint: Checkpoint, manifest: Manifest, batch_size: int) -> Iterator[Baseline]:
    """Open the baseline of a bundle; the settings of before come back at the end."""
    require(
        checkpoint.digest == manifest.source.digest,
        "the baseline must be the checkpoint that the bundle was exported from",
        f"SHA-256 {checkpoint.digest[:12]}... for {manifest.source.digest[:12]}...",
        f"give {manifest.source.checkpoint} of run {manifest.source.run_id}, or export again",
    )
    model = Model(manifest, TorchBackend(checkpoint.network))
    before = Settings(torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads())
    try:
        settings, pass_ms = fastest(_one_pass(model, batch_size), candidates(num_usable_cores()))
        apply(settings)
        yield Baseline(model, settings, pass_ms)
    finally:
        apply(before)


def candidates(num_cores: int) -> list[Settings]:
    """Both fast paths with 1, 2, 4, ... and all cores."""
    counts = sorted({min(2**power, num_cores) for power in range(num_cores.bit_length() + 1)})
    return [Settings(fast_path, threads) for fast_path in (True, False) for threads in counts]


def fastest(
    one_pass: Callable[[], object],
    settings: list[Settings],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Settings, float]:
    """The settings with the lowest median time of a pass, and that time in milliseconds."""

    def trial(choice: Settings) -> Callable[[int], None]:
        def run(passes: int) -> None:
            apply(choice)
            for _ in range(passes):
                one_pass()

        return run

    rivals = [Rival(str(choice), trial(choice), num_steps=_PASSES, batch_size=1) for choice in settings]
    timings = race(rivals, RaceOptions(rounds=5, turn_s=0.0), clock=clock)
    best = min(range(len(settings)), key=lambda index: timings[index].median_ms)
    return settings[best], timings[best].median_ms / _PASSES


def apply(settings: Settings) -> None:
    """Set PyTorch to `settings`."""
    torch.backends.mha.set_fastpath_enabled(settings.fast_path)
    torch.set_num_threads(settings.threads)


def _one_pass(model: Model, batch_size: int) -> Callable[[], object]:
    network = model.manifest.network
    z = np.zeros((batch_size, network.num_tokens, network.num_channels), np.float32)
    t = np.full(batch_size, 0.5, np.float32)
    return lambda: model.score(z, t)
