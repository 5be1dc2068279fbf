"""The best plain PyTorch: the network as trained, under the settings that suit this machine.

A rival that was held back proves nothing. PyTorch's fast path for transformer layers and its number of threads each
help at some batch sizes and hurt at others, so all candidates are tried on the batch at hand, turn by turn, and the
fastest is kept; by its quickest turn, since others only ever slow one down. Who sits on another core makes fewer
threads look best for as long as he stays: they are believed where they still are after half a minute. Three forms of
the network are rivals: eager, compiled, and with its keys and values outside, so that plans that recompute a few tokens
run on it, too.

    with baseline(checkpoint, manifest, batch_size=1) as plain:
        plain.model.sample(1, cache=None)          # the same sampler and noise as every other rival
        print(plain.choice)                        # fast path off, 2 threads: 3.1 ms a pass

The settings belong to the process. A baseline sets its own before each of its runs, so that several can take turns,
and those of before come back at the end of the `with` block.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.forms import Form
from bench.latency import RaceOptions, Rival, race
from bench.machine import num_usable_cores
from export.checkpoint import Checkpoint, checkpoint_of
from export.manifest import Manifest
from export.reference import TorchBackend, TorchKVBackend
from runtime.backends.base import Arrays, BackendBase
from runtime.backends.fake import whole_graph
from runtime.errors import BackendError, require
from runtime.sampler import Model
from train.networks import ScoreNet, TransformerScore

_PASSES = 2  # of the network in one turn of a trial
_TRIAL = RaceOptions(rounds=5, turn_s=0.03, settle_s=0.01, between_s=0.0)
_MOST_TRIALS, _TRIAL_S = 6, 3.0  # as many times that, while there is time
_PAUSE_S = 5.0  # before the next, where fewer threads lead
_SHORT_MS = 0.5  # a pass for which they may well be best


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


class Tuned(BackendBase):
    """A network in PyTorch that sets the process to its own settings before it runs."""

    def __init__(self, network: ScoreNet, form: Form, settings: Settings) -> None:
        self._inner = _backend_of(network, form)
        super().__init__({"step": self._inner.signature("step")})
        self.name, self.settings, self._form = self._inner.name, settings, form

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the network once; a `BackendError` in one sentence where it cannot be compiled."""
        apply(self.settings)
        try:
            return self._inner.run(graph, feeds)
        except Exception as error:  # the compiler raises types of its own
            if self._form is not Form.COMPILED:
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BackendError(
                f"torch.compile needs a C++ compiler and a network that it can compile, found {type(error).__name__}: "
                f"{reason:.200}; install g++, or go without this rival"
            ) from error


def _backend_of(network: ScoreNet, form: Form) -> BackendBase:
    if form is not Form.KV:
        return TorchBackend(network, compiled=form is Form.COMPILED)
    if not isinstance(network, TransformerScore):
        raise BackendError(
            f"keys and values need a transformer, found a network of the kind {network.options.backbone}; "
            "run it eager or compiled"
        )
    return TorchKVBackend(network)


class TorchGpu(BackendBase):
    """The network in PyTorch on a GPU, eager or compiled with CUDA graphs; arrays come and go as in other backends."""

    def __init__(self, network: ScoreNet, *, device: str = "cuda", is_compiled: bool) -> None:
        options, self.name = network.options, "torch.compile cuda" if is_compiled else "pytorch cuda"
        super().__init__({"step": whole_graph(options.num_tokens, options.num_channels)})
        torch.set_float32_matmul_precision("highest")  # NVIDIA's containers allow TF32 by an environment variable
        self._device, module = device, network.eval().to(device)
        self._network = torch.compile(module, mode="reduce-overhead", dynamic=False) if is_compiled else module

    @torch.inference_mode()
    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the network once."""
        z, t = (torch.from_numpy(feeds[name]).to(self._device) for name in ("z", "t"))
        return {"score": self._network(z, t).float().cpu().numpy()}


@contextmanager
def baseline(
    checkpoint: Checkpoint, manifest: Manifest, batch_size: int, form: Form = Form.EAGER
) -> Iterator[Baseline]:
    """Open a baseline of a bundle; a `BackendError` in one sentence where this form of it does not run here."""
    _require_source(checkpoint, manifest)
    before = current()
    backend = Tuned(checkpoint.network, form, before)
    model = Model(manifest, backend)

    def use(settings: Settings) -> None:
        backend.settings = settings

    try:
        chosen, pass_ms = fastest(_one_pass(model, batch_size), candidates(num_usable_cores(), form), use=use)
        use(chosen)
        yield Baseline(model, chosen, pass_ms)
    finally:
        apply(before)


def source_of(path: Path, manifest: Manifest) -> Checkpoint:
    """The checkpoint in a file, which must be the one that the bundle was exported from."""
    checkpoint = checkpoint_of(path, manifest)
    _require_source(checkpoint, manifest)
    return checkpoint


def _require_source(checkpoint: Checkpoint, manifest: Manifest) -> None:
    require(
        checkpoint.digest == manifest.source.digest,
        "the baseline must be the checkpoint that the bundle was exported from",
        f"SHA-256 {checkpoint.digest[:12]}... for {manifest.source.digest[:12]}...",
        f"give {manifest.source.checkpoint} of run {manifest.source.run_id}, or export again",
    )


def candidates(num_cores: int, form: Form = Form.EAGER) -> list[Settings]:
    """1, 2, 4, ... and all cores; both fast paths where the network is run whole by PyTorch's own layers."""
    counts = sorted({min(2**power, num_cores) for power in range(num_cores.bit_length() + 1)})
    paths = (True, False) if form is Form.EAGER else (False,)
    return [Settings(fast_path, threads) for fast_path in paths for threads in counts]


def fastest(
    one_pass: Callable[[], object],
    settings: list[Settings],
    *,
    use: Callable[[Settings], None],
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], object] = time.sleep,
) -> tuple[Settings, float]:
    """The settings with the lowest time of a pass, and that time in milliseconds; `use` puts them to use.

    It is that of the quickest turn. The trial ends after seconds, but where fewer threads than possible lead.
    """

    def trial(choice: Settings) -> Callable[[int], None]:
        def run(passes: int) -> None:
            use(choice)
            for _ in range(passes):
                one_pass()

        return run

    rivals = [Rival(str(choice), trial(choice), num_steps=_PASSES, batch_size=1) for choice in settings]
    begun, pass_ms, most = clock(), np.full(len(settings), np.inf), max(choice.threads for choice in settings)
    for number in range(_MOST_TRIALS):
        turns = np.array([timing.rounds_ms for timing in race(rivals, _TRIAL, clock=clock)])
        pass_ms = np.minimum(pass_ms, turns.min(axis=1) / _PASSES)
        best = int(np.argmin(pass_ms))
        is_doubtful = settings[best].threads < most and pass_ms[best] > _SHORT_MS
        if not is_doubtful and clock() - begun > _TRIAL_S:
            break
        if is_doubtful and number < _MOST_TRIALS - 1:
            pause(_PAUSE_S)
    return settings[best], float(pass_ms[best])


def current() -> Settings:
    """What PyTorch is set to."""
    return Settings(torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads())


def apply(settings: Settings) -> None:
    """Set PyTorch to `settings`."""
    if settings != current():  # a change of threads is not free
        torch.backends.mha.set_fastpath_enabled(settings.fast_path)
        torch.set_num_threads(settings.threads)


def _one_pass(model: Model, batch_size: int) -> Callable[[], object]:
    network = model.manifest.network
    z = np.zeros((batch_size, network.num_tokens, network.num_channels), np.float32)
    t = np.full(batch_size, 0.5, np.float32)
    return lambda: model.score(z, t)
