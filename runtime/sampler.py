"""The loop to read first: time grid -> decision -> data prediction -> solver step.

    model = load("bundles/ecg")
    out = model.sample(1000, steps=1000, solver="ancestral", seed=0, cache=E2CRF())
    out.series          # float32 [n, N, C], time domain, data units
    out.stats.hit_rate  # share of (step, token) pairs that needed no network

Sample k depends on the seed and on k alone: not on the batch it was drawn in (beyond rounding), nor on what
was drawn before it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest, read_manifest
from runtime.backends.base import Backend, open_backend
from runtime.cache.policy import E2CRF, PolicyName, Reuse, TokenFacts, steps_of
from runtime.cache.state import Trajectory
from runtime.cache.stats import Recorder, Stats
from runtime.errors import parse_word, require
from runtime.fourier import idft
from runtime.noise import NoiseStream
from runtime.schedule import schedule_of
from runtime.score import Graphs, ScoreNetwork, has_kv
from runtime.sde import process_from_facts
from runtime.solvers import Solver

DIVERGED_RMS = 10.0  # a sample whose standardised tokens have a larger RMS than this has left the data
UNCACHED = E2CRF(policy=PolicyName.NEVER, alpha_prior=0.0)
_DEFAULT = E2CRF()


@dataclass(frozen=True)
class Samples:
    """What `Model.sample` returns."""

    series: NDArray[np.float32]  # [n, N, C], time domain, data units
    stats: Stats


@dataclass(frozen=True)
class StepInfo:
    """What `on_step` is told after every solver step of every batch."""

    first_sample: int
    batch: int
    index: int
    num_steps: int
    t: float
    event: str
    z: NDArray[np.float32]  # [B, N, C], standardised; valid until the next step


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while sampling; `samples` holds the batches that were finished, if any."""

    def __init__(self, samples: Samples | None) -> None:
        super().__init__("interrupted")
        self.samples = samples


OnStep = Callable[[StepInfo], None]


class Model:
    """A bundle opened on a backend."""

    def __init__(self, manifest: Manifest, backend: Backend, *, graphs: str = Graphs.STEP) -> None:
        self.manifest = manifest
        self.backend = backend
        self._graphs = parse_word(Graphs, graphs, "graph set")
        self.tokens = TokenFacts(np.asarray(manifest.tokens.frequency, np.int64), self._obstacle())
        self.schedule = lru_cache(maxsize=4)(partial(schedule_of, manifest))  # by (solver, steps, reuse mode)

    def _obstacle(self) -> str | None:
        if self.manifest.diffusion.domain == "time":
            return "the tokens of this model are time steps"
        if not has_kv(self.backend):
            return f"a {self.manifest.network.backbone} network on backend {self.backend.name} has no K/V cache"
        return None

    def score(self, z: NDArray[np.floating], t: NDArray[np.floating]) -> NDArray[np.float32]:
        """The network itself, uncached: z [B, N, C] standardised, t [B] in (0, 1] -> score [B, N, C]."""
        network = self.manifest.network
        expected = (len(z), network.num_tokens, network.num_channels)
        require(z.shape == expected and len(z) > 0, f"z must have the shape (B, {expected[1]}, {expected[2]})",
                z.shape, "standardise and transform the series first")  # fmt: skip
        require(t.shape == (len(z),), f"t must have the shape ({len(z)},)", t.shape, "give one time per sample")
        call = ScoreNetwork(self.manifest, self.backend, len(z), self._graphs).call(network.num_tokens)
        call.z[...], call.t[...] = z, t
        call.run()
        return call.score

    def sample(
        self,
        n: int,
        *,
        steps: int = 1000,
        solver: str = Solver.ANCESTRAL,
        seed: int = 0,
        batch_size: int = 64,
        cache: E2CRF | None = _DEFAULT,
        on_step: OnStep | None = None,
        first_sample: int = 0,
    ) -> Samples:
        """Draw samples first_sample .. first_sample + n - 1 of the seed.

        `cache=None` is the uncached sampler. `on_step` is called after every solver step. Raises an
        `OptionError` for a value that cannot be meant, a `BackendError` when the backend fails, and on Ctrl-C
        `Interrupted` with the finished batches.
        """
        require(n >= 1, "the number of samples must be at least 1", n, "ask for one or more")
        require(batch_size >= 1, "batch_size must be at least 1", batch_size, "64 is the default")
        require(first_sample >= 0, "first_sample must not be negative", first_sample, "0 is the default")
        options = UNCACHED if cache is None else cache
        run = _Run(self, options, parse_word(Solver, solver, "solver"), steps, seed, on_step)
        begun = time.perf_counter()
        batches: list[NDArray[np.float32]] = []
        with np.errstate(over="ignore", invalid="ignore"):  # a sample that diverges is counted, not warned of
            try:
                for start in range(first_sample, first_sample + n, batch_size):
                    batches.append(run.batch(start, min(batch_size, first_sample + n - start)))
            except KeyboardInterrupt as stop:
                raise Interrupted(self._collect(run, batches, begun) if batches else None) from stop
            return self._collect(run, batches, begun)

    def _collect(self, run: "_Run", batches: list[NDArray[np.float32]], begun: float) -> Samples:
        z = np.concatenate(batches)
        stats = run.recorder.finish(len(z), _num_diverged(z), time.perf_counter() - begun)
        return Samples(self._series(z), stats)

    def _series(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised tokens -> series in the time domain and data units."""
        scale = self.manifest.standardisation
        tokens = z * np.asarray(scale.std, np.float32) + np.asarray(scale.mean, np.float32)
        return idft(tokens).astype(np.float32) if self.manifest.diffusion.domain == "frequency" else tokens

    def close(self) -> None:
        """Free the backend."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Run:
    """One `sample` call: what its batches have in common."""

    def __init__(
        self, model: Model, options: E2CRF, solver: Solver, num_steps: int, seed: int, on_step: OnStep | None
    ) -> None:
        manifest = model.manifest
        reuse = parse_word(Reuse, options.reuse, "reuse mode")
        process = process_from_facts(manifest.diffusion.process, manifest.diffusion.parameters)
        self._model, self._seed, self._on_step = model, seed, on_step
        self._schedule = model.schedule(solver, num_steps, reuse)
        self._steps = steps_of(process, self._schedule.times)
        self._policy = options.concrete(model.tokens, num_steps)
        self._linear = reuse.is_linear
        self.recorder = Recorder(model.tokens.frequency, num_steps)

    def batch(self, first: int, size: int) -> NDArray[np.float32]:
        """Samples first .. first + size - 1 as standardised tokens [size, N, C]."""
        model, recorder = self._model, Recorder(self._model.tokens.frequency, len(self._steps))
        network = ScoreNetwork(model.manifest, model.backend, size, model._graphs)
        shape = (model.manifest.network.num_tokens, model.manifest.network.num_channels)
        noise = NoiseStream(self._seed, np.arange(first, first + size), shape, len(self._steps))
        trajectory = Trajectory(network, self._schedule, noise.prior(), linear=self._linear)
        recorder.cache_bytes = network.cache_bytes
        recorder.state_bytes = trajectory.state_bytes
        for i, step in enumerate(self._steps):
            decision = self._policy(step, trajectory.signals(i))
            trajectory.carry_out(i, decision)
            trajectory.advance(i, noise.step(i))
            recorder.record(i, decision, size)
            if self._on_step is not None:
                self._on_step(StepInfo(first, size, i, step.num_steps, step.t, decision.event, trajectory.z))
        self.recorder.add(recorder)  # only now: an interrupted batch leaves no trace
        return trajectory.z


def _num_diverged(z: NDArray[np.float32]) -> int:
    rms = np.sqrt(np.mean(np.square(z, dtype=np.float64), axis=(1, 2)))
    return int(np.sum(~(rms <= DIVERGED_RMS)))


def load(
    bundle: str | Path,
    backend: str = "onnxruntime",
    *,
    device: str = "cpu",
    threads: int | None = None,
    graphs: str = Graphs.STEP,
) -> Model:
    """Open a bundle: check it, and make it ready to score and sample.

    `threads` is the number used within one operator (default: all cores); `graphs` drives the network as one
    `step` graph or as its `split` parts. Raises a `ManifestError` for a bundle that is missing or damaged.
    """
    path = Path(bundle)
    manifest = read_manifest(path)
    opened = open_backend(backend, path, manifest, device=device, threads=threads)
    return Model(manifest, opened, graphs=graphs)
