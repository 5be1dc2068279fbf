"""The loop to read first: time grid -> decision -> data prediction -> solver step.

    model = load("bundles/ecg")
    out = model.sample(1000, steps=1000, solver="ancestral", seed=0, cache=E2CRF())
    out.series          # float32 [n, N, C], time domain, data units
    out.stats.hit_rate  # share of (step, token) pairs that needed no network

Sample k depends on the seed and on k alone: not on the batch it was drawn in (beyond rounding), nor on what
was drawn before it.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest, read_manifest
from runtime.backends.base import Backend, open_backend
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import PLAN_FILE, Plan, read_plan
from runtime.cache.policy import Cache, Decision, Event, Reuse, Step, TokenFacts, steps_of
from runtime.cache.state import ModelFacts, Trajectory
from runtime.cache.stats import Recorder, Stats
from runtime.errors import CacheWarning, OptionError, parse_word, require, whole
from runtime.fourier import idft
from runtime.leaps import Leaps
from runtime.noise import NoiseStream, Priors
from runtime.schedule import Schedule, schedule_of
from runtime.score import Graphs, ScoreNetwork, has_kv
from runtime.sde import process_from_facts
from runtime.solvers import Solver, TimeGrid

DIVERGED_RMS = 10.0  # a sample whose standardised tokens have a larger RMS than this has left the data
UNCACHED = E2CRF(policy=PolicyName.NEVER, alpha_prior=0.0)
DEFAULT_STEPS, DEFAULT_SOLVER, DEFAULT_GRID = 1000, Solver.ANCESTRAL, TimeGrid.UNIFORM
_REACH = attrgetter("reach")


class Auto(Enum):
    """The cache that is used when none is named."""

    AUTO = "the bundle's plan, or E2CRF() without one"


@dataclass(frozen=True)
class Samples:
    """What `Model.sample` returns."""

    series: NDArray[np.float32]  # [n, N, C], time domain, data units
    stats: Stats
    z: NDArray[np.float32]  # [n, N, C], the same as standardised tokens in the model's own domain


@dataclass(frozen=True)
class StepInfo:
    """What `on_step` is told after every solver step of every batch."""

    first_sample: int
    batch: int
    index: int
    num_steps: int
    t: float
    event: str
    z: NDArray[np.float32]  # [B, N, C], standardised, after the step; valid until the next one
    data: NDArray[np.float32]  # [B, N, C], the data prediction the step was taken with


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while sampling; `samples` holds the batches that were finished, if any."""

    def __init__(self, samples: Samples | None) -> None:
        super().__init__("interrupted")
        self.samples = samples


OnStep = Callable[[StepInfo], None]
OnProgress = Callable[[int], None]  # how many more solver steps of a batch are done


class Model:
    """A bundle opened on a backend."""

    def __init__(
        self, manifest: Manifest, backend: Backend, *, graphs: str = Graphs.STEP, bundle: Path | None = None
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.bundle = bundle
        self._plan_file = None if bundle is None else bundle / PLAN_FILE
        self.graphs = parse_word(Graphs, graphs, "graph set")
        tokens = TokenFacts(np.asarray(manifest.tokens.frequency, np.int64), self._obstacle())
        scale = manifest.standardisation
        self._mean, self._std = np.asarray(scale.mean, np.float32), np.asarray(scale.std, np.float32)  # [N, C]
        energy = np.square(np.asarray(scale.std))
        self.facts = ModelFacts(tokens, (energy / energy.sum()).astype(np.float32))
        self._plan: tuple[int, Plan] | None = None  # as last read, and when the file was written
        self._tables = lru_cache(maxsize=8)(partial(_tables, manifest))
        self._idle: dict[int, ScoreNetwork] = {}  # by batch size: buffers and prepared calls that no run is using

    def _obstacle(self) -> str | None:
        if self.manifest.diffusion.domain == "time":
            return "the tokens of this model are time steps"
        if not has_kv(self.backend):
            return f"a {self.manifest.network.backbone} network on backend {self.backend.name} has no K/V cache"
        return None

    def schedule(self, solver: Solver, steps: int, grid: TimeGrid, reuse: Reuse) -> tuple[Schedule, Leaps, list[Step]]:
        """The tables of a trajectory, made once."""
        return self._tables(solver, steps, grid, reuse)

    @contextmanager
    def network(self, batch: int) -> Iterator[ScoreNetwork]:
        """Caches and prepared calls for one batch; kept afterwards for the next batch of that size.

        What an earlier batch left in the caches is never read: the first network step of a sample writes all of them.
        """
        network = self._idle.pop(batch, None)  # whoever else samples with this model meanwhile gets another one
        if network is None:
            network = ScoreNetwork(self.manifest, self.backend, batch, self.graphs)
        yield network
        self._idle.pop(batch, None)
        while len(self._idle) > 1:  # two are enough: most batches, and what is left at the end
            self._idle.pop(next(iter(self._idle)))
        self._idle[batch] = network

    def plan(self) -> Plan | None:
        """The plan of the bundle, None if it has none; a `PlanError` if the file is broken."""
        if self._plan_file is None:
            return None
        try:
            version = self._plan_file.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return None
        if self._plan is None or self._plan[0] != version:
            self._plan = version, read_plan(self._plan_file)
        return self._plan[1]

    def score(self, z: NDArray[np.floating], t: NDArray[np.floating]) -> NDArray[np.float32]:
        """The network itself, uncached: z [B, N, C] standardised, t [B] in (0, 1] -> score [B, N, C]."""
        z, t = np.asarray(z), np.asarray(t)
        require(z.dtype.kind in "fiu" and t.dtype.kind in "fiu", "z and t must be real numbers",
                f"{z.dtype} and {t.dtype}", "give floats")  # fmt: skip
        network = self.manifest.network
        expected = (len(z), network.num_tokens, network.num_channels)
        require(z.shape == expected and len(z) > 0, f"z must have the shape (B, {expected[1]}, {expected[2]})",
                z.shape, "standardise and transform the series first")  # fmt: skip
        require(t.shape == (len(z),), f"t must have the shape ({len(z)},)", t.shape, "give one time per sample")
        require(bool(((t > 0) & (t <= 1)).all()), "times must lie in (0, 1]", t.tolist(), "1 is noise, eps is data")
        with self.network(len(z)) as prepared:
            call = prepared.call(network.num_tokens)
            call.z[...], call.t[...] = z, t
            call.run()
            return call.score.copy()

    def sample(
        self,
        n: int,
        *,
        steps: int | None = None,
        solver: str | None = None,
        grid: str | None = None,
        seed: int = 0,
        batch_size: int = 64,
        cache: Cache | Auto | None = Auto.AUTO,
        on_step: OnStep | None = None,
        on_progress: OnProgress | None = None,
        first_sample: int = 0,
    ) -> Samples:
        """Draw samples first_sample .. first_sample + n - 1 of the seed.

        `cache` left out is the bundle's plan, else `E2CRF()`; `cache=None` is the uncached sampler. Steps, solver
        and time grid left out are those of the plan, else 1000, ancestral and uniform. `on_step` is called after
        every solver step; without it, steps that need no network are taken together. `on_progress` is told how many
        were, and costs nothing of that. Raises an `OptionError` for
        a value that cannot be meant (a `PlanError` for a plan that is broken or of other settings), a
        `BackendError` when the backend fails, and on Ctrl-C `Interrupted` with the finished batches. Warns
        (`CacheWarning`) where a cache never reused or never refreshed.
        """
        n, seed = whole(n, "the number of samples"), whole(seed, "the seed")
        batch_size, first_sample = whole(batch_size, "batch_size"), whole(first_sample, "first_sample")
        require(n >= 1, "the number of samples must be at least 1", n, "ask for one or more")
        require(batch_size >= 1, "batch_size must be at least 1", batch_size, "64 is the default")
        require(0 <= first_sample <= 2**63 - 1 - n, "first_sample must not be negative, nor the last one above 2^63",
                first_sample, "0 is the default")  # fmt: skip
        settings = self.settings(steps, solver, grid, cache)
        run = _Run(self, settings, seed, range(first_sample, first_sample + n), on_step, on_progress)
        begun = time.perf_counter()
        with np.errstate(over="ignore", invalid="ignore"):  # a sample that diverges is counted, not warned of
            try:
                for start in range(first_sample, first_sample + n, batch_size):
                    run.batch(start, min(batch_size, first_sample + n - start))
                drawn = self._collect(run, begun)
            except KeyboardInterrupt as stop:
                raise Interrupted(self._collect(run, begun) if run.batches else None) from stop
        # A plan and a policy of the caller's recompute what somebody laid down step by step, and keep silent.
        policy = settings.cache.policy if isinstance(settings.cache, E2CRF) else None
        if policy not in (None, PolicyName.NEVER) or (policy and not drawn.stats.work.calls):
            for message in drawn.stats.warnings:
                warnings.warn(message, CacheWarning, stacklevel=2)
        return drawn

    def settings(
        self, steps: int | None, solver: str | None, grid: str | None, cache: Cache | Auto | None
    ) -> "Settings":
        """What is left out filled in, and a plan held against what is not."""
        if isinstance(cache, Auto):
            cache = self.plan() or E2CRF()
        usual: tuple[int, str, str] = (DEFAULT_STEPS, DEFAULT_SOLVER, DEFAULT_GRID)
        if isinstance(cache, Plan):
            usual = (cache.steps, cache.solver, cache.grid)
        if cache is not None and not hasattr(cache, "concrete"):
            raise OptionError(f"cache must be E2CRF(...), a plan, a record of your own or None, found {cache!r}; "
                              "a policy is named as E2CRF(policy=...)")  # fmt: skip
        chosen = Settings(
            steps=usual[0] if steps is None else whole(steps, "steps"),
            solver=parse_word(Solver, usual[1] if solver is None else solver, "solver"),
            grid=parse_word(TimeGrid, usual[2] if grid is None else grid, "time grid"),
            cache=UNCACHED if cache is None else cache,
        )
        if isinstance(cache, Plan):
            cache.check(self.manifest, chosen.steps, chosen.solver, chosen.grid)
        return chosen

    def _collect(self, run: "_Run", begun: float) -> Samples:
        z = np.concatenate(run.batches)
        stats = run.recorder.finish(len(z), _num_diverged(z), time.perf_counter() - begun)
        return Samples(self._series(z), stats, z)

    def _series(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardised tokens -> series in the time domain and data units."""
        tokens = z * self._std + self._mean
        return idft(tokens).astype(np.float32) if self.manifest.diffusion.domain == "frequency" else tokens

    def close(self) -> None:
        """Free the backend."""
        self._idle.clear()
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Settings:
    """What a `sample` call comes down to."""

    steps: int
    solver: Solver
    grid: TimeGrid
    cache: Cache

    @property
    def facts(self) -> dict[str, Any]:
        """The cache in plain values, for a record; of a plan without what its calibration measured and fitted."""
        known = asdict(self.cache) if is_dataclass(self.cache) else {"cache": repr(self.cache)}
        return {name: value for name, value in known.items() if name not in ("measured", "fit")}


class _Run:
    """One `sample` call: what its batches have in common."""

    def __init__(
        self, model: Model, settings: Settings, seed: int, samples: range,
        on_step: OnStep | None, on_progress: OnProgress | None,
    ) -> None:  # fmt: skip
        cache = settings.cache
        reuse = parse_word(Reuse, cache.reuse, "reuse mode")
        self._model, self._seed, self._cache = model, seed, cache
        self._on_step, self._on_progress = on_step, on_progress
        tables = model.schedule(settings.solver, settings.steps, settings.grid, reuse)
        self._schedule, self._leaps, self._steps = tables
        self._policy = cache.concrete(model.facts.tokens, self._steps)
        self._linear = reuse.is_linear
        self._shape = (model.manifest.network.num_tokens, model.manifest.network.num_channels)
        self._priors = Priors(seed, samples.start, samples.stop, self._shape)
        self._num_apart = len(model.facts.tokens.frequency) if has_kv(model.backend) else 0
        self.recorder = Recorder(model.facts.tokens.frequency, settings.steps)
        self.batches: list[NDArray[np.float32]] = []  # those that are finished, as standardised tokens [size, N, C]

    def batch(self, first: int, size: int) -> None:
        """Draw samples first .. first + size - 1."""
        model, num_steps = self._model, len(self._steps)
        recorder = Recorder(model.facts.tokens.frequency, num_steps, size)
        noise = NoiseStream(self._seed, np.arange(first, first + size), self._shape, num_steps, self._priors)
        with self._trajectory(noise) as trajectory:
            i = 0
            while i < num_steps:
                i = self._step(i, first, trajectory, recorder)
        recorder.work = trajectory.work
        if not self.batches:  # the first batch is the largest
            recorder.cache_bytes, recorder.state_bytes = trajectory.cache_bytes, trajectory.state_bytes
        z = trajectory.z  # on a GPU it comes only now
        self.recorder.add(recorder)  # an interrupted batch leaves no trace
        self.batches.append(z)

    @contextmanager
    def _trajectory(self, noise: NoiseStream) -> Iterator[Trajectory]:
        """A batch at its start, where the backend computes."""
        model, schedule, cache = self._model, self._schedule, self._cache
        on_device = model.backend.trajectory(
            model.facts, schedule, noise, graphs=model.graphs,
            linear=self._linear, needs=cache.needs, feedback=cache.feedback,
        )  # fmt: skip
        if on_device is not None:
            yield on_device
            return
        with model.network(len(noise.samples)) as network:
            yield Trajectory(
                model.facts, network, schedule, self._leaps, noise,
                linear=self._linear, needs=cache.needs, feedback=cache.feedback,
            )  # fmt: skip

    def _step(self, i: int, first: int, trajectory: Trajectory, recorder: Recorder) -> int:
        """Take step i, or the run of steps from it that need no network; the step that comes next."""
        decisions, j = self._policy(self._steps[i], trajectory.at(i)), i + 1
        _require_decisions(decisions, trajectory.batch, self._num_apart)
        if self._on_step is None and isinstance(decisions, Decision) and trajectory.can_coast(decisions):
            j = min(decisions.until, len(self._steps))
            trajectory.coast(i, j, decisions.event)
        else:
            if trajectory.since_refresh is None:
                _require_begun(decisions, trajectory)
            trajectory.carry_out(i, decisions)
            trajectory.advance(i)
        recorder.record(i, j, decisions, trajectory)
        if self._on_step is not None:
            step, event = self._steps[i], _event_of(decisions)
            size, z, data = trajectory.batch, trajectory.z, trajectory.data
            self._on_step(StepInfo(first, size, i, step.num_steps, step.t, event, z, data))
        if self._on_progress is not None:
            self._on_progress(j - i)
        return j


def _require_decisions(decisions: object, batch: int, num_tokens: int) -> None:
    """Refuse what is no decision, a number of them that is not that of the samples, and tokens that no model has.

    `num_tokens` is how many can be computed without the others: all, or 0 where there are no keys and values.
    """
    if isinstance(decisions, Decision):
        if decisions.reach <= num_tokens:
            return
        decisions = (decisions,) * batch
    require(isinstance(decisions, Sequence), "a policy must return a Decision, or one for each sample", decisions,
            "Decision(Event.REUSE) does nothing")  # fmt: skip
    assert isinstance(decisions, Sequence)
    require(len(decisions) == batch, f"a policy must return one Decision for all, or {batch}, one for each sample",
            len(decisions), "look at the length of signals.refresh_age")  # fmt: skip
    try:
        if max(map(_REACH, decisions)) <= num_tokens:  # no loop of Python's at every step
            return
    except AttributeError:
        pass
    for decision in decisions:
        require(isinstance(decision, Decision), "a policy must return a Decision for each sample", decision,
                "Decision(Event.REUSE) does nothing")  # fmt: skip
        if decision.reach > num_tokens:
            require(num_tokens > 0, "this network has no K/V cache, so that a step recomputes all tokens or none",
                    str(decision.event), f"decide {Event.REFRESH}")  # fmt: skip
            is_row = decision.tokens.ndim == 1
            found = decision.reach - 1 if is_row else f"an array of shape {decision.tokens.shape}"
            raise OptionError(f"tokens must be one row of numbers from 0 to {num_tokens - 1}, found {found}; "
                              "this model has no others")  # fmt: skip


def _require_begun(decisions: Decision | Sequence[Decision], trajectory: Trajectory) -> None:
    """Refuse some tokens alone where there are no keys and values of the others yet."""
    if isinstance(decisions, Decision):
        if decisions.tokens is None:
            return
        decisions = (decisions,) * trajectory.batch
    for decision, is_begun in zip(decisions, trajectory.is_begun, strict=True):
        require(is_begun or decision.tokens is None, "the first network step of a sample must recompute all tokens",
                str(decision.event), f"decide {Event.FIRST} there")  # fmt: skip


def _event_of(decisions: Decision | Sequence[Decision]) -> str:
    """The event of a step; several where samples differ."""
    if isinstance(decisions, Decision):
        return decisions.event
    return ", ".join(dict.fromkeys(decision.event for decision in decisions))


def _tables(
    manifest: Manifest, solver: Solver, steps: int, grid: TimeGrid, reuse: Reuse
) -> tuple[Schedule, Leaps, list[Step]]:
    schedule = schedule_of(manifest, solver, steps, grid, reuse)
    process = process_from_facts(manifest.diffusion.process, manifest.diffusion.parameters)
    return schedule, Leaps(schedule), steps_of(process, schedule.times)


def _num_diverged(z: NDArray[np.float32]) -> int:
    squares = np.einsum("bnc,bnc->b", z, z)
    return len(z) - int(np.count_nonzero(squares <= DIVERGED_RMS**2 * z[0].size))  # one that is not finite is not


def load(
    bundle: str | Path,
    backend: str = "onnxruntime",
    *,
    device: str | None = None,
    threads: int | None = None,
    graphs: str = Graphs.STEP,
    stream: Any = None,
) -> Model:
    """Open a bundle: check it, and make it ready to score and sample.

    `bundle` is its folder; `threads` is the number used within one operator (default: all cores); `graphs` drives
    the network as one `step` graph or as its `split` parts; `stream` is one of the caller's (pycuda's, or a handle)
    that a GPU backend works on. Raises a `ManifestError` for a bundle that is missing or damaged.
    """
    threads = None if threads is None else whole(threads, "threads")
    path = Path(bundle)
    manifest = read_manifest(path)
    opened = open_backend(backend, path, manifest, device=device, threads=threads, stream=stream)
    return Model(manifest, opened, graphs=graphs, bundle=path)
