"""The ways of sampling one model that are set against each other, from plain PyTorch to E2-CRF.

All of them go through the one sampler of the runtime, with the same noise for the same sample and step;
only the network behind it, the cache, the solver and the number of steps differ.

What a cache is set against, each in the best form that was found for it:

- *fewer steps* (`few_steps.py`): no reuse, a closed-form prior phase, a coarse time grid; by every solver in its best
  grid and phase.
- *plan without its fit*: the same refreshes, whatever is reused held or extrapolated as it is.
- *Taylor* (`taylor.py`): what TaylorSeer and cache-dit do, at a constant interval, and friendlier at the plan's steps.
- *K/V only* (`kv_only.py`): what the published E2-CRF code does at every step; also put into the few-step rival.
- *published E2-CRF*: its README's parameters over stale features, no prior phase. *Stale features* is its friendlier
  form, at the plan's steps or at a constant interval.
- *fixed interval*: this cache without a calibrated schedule, in its best mode of reuse and prior phase. With the data
  prediction reused it is few long steps after a prior phase in fine ones.

All of them take as many passes as the cached row, but for those that cannot: `Way.has_own_cost`. The best form is the
one that misses least (`miss_from`): few steps of some solvers draw series that are too smooth, which sliced Wasserstein
hardly sees, so that a rival has to hold the median spectrum and the autocorrelation, too.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.forms import Form
from bench.quality import QualityOptions, judge
from bench.reference import Reference, Series
from bench.spectra import excess
from bench.taylor import TaylorBackend
from bench.whole_steps import WholeSteps
from runtime.backends.base import BackendName
from runtime.cache.options import E2CRF, PolicyName, Preset
from runtime.cache.plan import Plan
from runtime.cache.policy import UNFITTED, Cache, Reuse, steps_of
from runtime.errors import CacheWarning
from runtime.sampler import Model, Samples, StepInfo
from runtime.score import Graphs
from runtime.sde import process_from_facts
from runtime.solvers import TimeGrid, time_grid

if TYPE_CHECKING:
    from bench.baseline import Baseline


class Way(StrEnum):
    """The ways of sampling on one backend."""

    UNCACHED = "uncached"
    CACHED = "E2-CRF"
    FEWER = "fewer steps"  # of as many passes
    FEWER_AS_GOOD = "fewer steps, as good"
    FEWER_SAME_PRIOR = "fewer steps, as good, same prior phase"  # as the cached one's
    FEWER_EACH = "fewer steps of"  # one solver, which the name of the row goes on with
    UNFITTED = "plan without its fit"
    INTERVAL = "fixed interval"
    STALE = "stale features"
    TAYLOR = "Taylor, order 1"
    TAYLOR_PLANNED = "Taylor, order 1, plan's steps"
    TAYLOR_SECOND = "Taylor, order 2"
    KV_FEWER = "K/V only, fewer steps"
    KV_ONLY = "K/V only"  # at every step
    PUBLISHED = "published E2-CRF"

    @property
    def has_own_cost(self) -> bool:
        """Whether it asks the network at most steps, so that it costs far more than the cached row."""
        return self in (Way.UNCACHED, Way.KV_ONLY, Way.PUBLISHED)


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
        what = f"{self.way} {self.solver}" if self.way is Way.FEWER_EACH else self.way
        parts = f" {self.model.graphs}" if self.model.graphs is Graphs.SPLIT else ""
        return f"{self.model.backend.name}{parts}, {what}"

    def draw(self, n: int, batch_size: int, progress: Progress | None = None) -> Samples:
        """Draw samples 0 .. n - 1 of the seed; the record says what was really computed."""

        def tell(info: StepInfo) -> None:
            done = info.first_sample * info.num_steps + info.batch * (info.index + 1)
            if progress is not None:
                progress(f"sampling: {self.name}", done / (n * info.num_steps))

        with warnings.catch_warnings():
            if self.way is not Way.CACHED:  # nobody chose the knobs of a rival
                warnings.simplefilter("ignore", CacheWarning)
            drawn = self.model.sample(
                n,
                steps=self.steps,
                solver=self.solver,
                grid=self.grid,
                seed=self.seed,
                batch_size=batch_size,
                cache=self.cache,
                on_step=tell if progress is not None and self.way.has_own_cost else None,
            )
        backend = self.model.backend
        return replace(drawn, stats=backend.true(drawn.stats, batch_size)) if isinstance(backend, WholeSteps) else drawn


Miss = Callable[[Contender], float]  # how far what a contender draws is from real series; smaller is better
ROUGHLY = QualityOptions(num_directions=256, num_resamples=1, interval_directions=1)  # to compare, without intervals
_PRIORS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.95)  # prior phases that rivals try, beside the cached one's
TAYLOR_STEPS = 50  # of the originals' samplers; as many as in the cached row are tried too


def prior_of(cached: Contender) -> float:
    """The signal-to-noise below which a cached contender asks no network."""
    if isinstance(cached.cache, E2CRF):
        return cached.cache.alpha_prior
    if isinstance(cached.cache, Plan):
        return signals_of(cached.model, cached.steps, TimeGrid(cached.grid))[cached.cache.refreshes[0]]
    return 0.0


def without_reuse(cached: Contender, alpha_prior: float | None = None) -> E2CRF:
    """No cache but a closed-form prior phase, that of the cached contender or another."""
    return E2CRF(policy=PolicyName.NEVER, alpha_prior=prior_of(cached) if alpha_prior is None else alpha_prior)


def signals_of(model: Model, steps: int, grid: TimeGrid) -> list[float]:
    """The signal-to-noise at every step of a time grid."""
    diffusion = model.manifest.diffusion
    process = process_from_facts(diffusion.process, diffusion.parameters)
    return [step.signal for step in steps_of(process, time_grid(grid, process, steps, diffusion.eps))]


def fixed_interval(
    cached: Contender, passes: float, reuse: Reuse = Reuse.RESIDUAL, alpha_prior: float | None = None
) -> Contender:
    """A constant interval without low frequencies, of as many passes, rounded up, in its prior phase or another."""
    alpha_prior = prior_of(cached) if alpha_prior is None else alpha_prior
    num_network = sum(signal >= alpha_prior for signal in signals_of(cached.model, cached.steps, TimeGrid(cached.grid)))
    R = max(1, -(-num_network // whole_passes(passes)))
    return replace(cached, way=Way.INTERVAL, cache=E2CRF(R=R, K=0, alpha_prior=alpha_prior, reuse=reuse))


def stale_features(cached: Contender) -> Contender:
    """The same schedule reusing features, as the published code does: the score is stale."""
    return _reusing(cached, Way.STALE, Reuse.FEATURE)


def _reusing(cached: Contender, way: Way, reuse: Reuse) -> Contender:
    """The same schedule, without guard and fit, which know only what was calibrated."""
    if isinstance(cached.cache, Plan):
        return replace(cached, way=way, cache=replace(cached.cache, reuse=reuse, fit=(), surprise=()))
    assert isinstance(cached.cache, E2CRF)
    return replace(cached, way=way, cache=replace(cached.cache, reuse=reuse))


def miss_from(
    target: Series,
    reference: Reference,
    batch_size: int,
    progress: Progress = lambda doing, share: None,
    num_directions: int = ROUGHLY.num_directions,
) -> Miss:
    """How far a contender's samples are from real series, over how far the target's are, as many of them.

    The largest ratio of sliced Wasserstein in either domain, or 1 and what median spectrum or autocorrelation
    lose beyond their slack (`spectra.excess`); infinite where fewer than two samples are finite.
    """
    options = replace(ROUGHLY, num_directions=num_directions)
    aim = judge(target, reference, options)

    def miss(rival: Contender) -> float:
        progress(f"looking for the best: {rival.name}", 0.0)
        series = rival.draw(len(target), batch_size).series
        if np.isfinite(series).all(axis=(1, 2)).sum() < 2:
            return math.inf
        found = judge(series, reference, options)
        return max(
            found.time.sliced / aim.time.sliced,
            found.frequency.sliced / aim.frequency.sliced,
            1.0 + excess((found.spectral, found.autocorrelation), (aim.spectral, aim.autocorrelation)),
        )

    return miss


def priors_of(one: Contender) -> list[float]:
    """The prior phases that rivals try, rising, and that of this one."""
    return sorted({*_PRIORS, prior_of(one)})


def least_missing(rivals: Sequence[Contender], miss: Miss) -> tuple[float, Contender]:
    """Of variants of one rival the one that misses least, and by how much."""
    return min(((miss(rival), rival) for rival in rivals), key=lambda pair: pair[0])


def taylor(
    cached: Contender, passes: int, steps: int, order: int, *, of_noise: bool, alpha_prior: float | None = None
) -> Contender:
    """Full steps at a constant interval after the prior phase, a Taylor expansion of the score or noise in between.

    The interval is constant but for rounding, so that no pass is lost to it.

    The originals compute the first two or three steps besides. At so few passes that costs them more than it
    gives (a difference over one step of a thousand is mostly rounding), so it is left out.
    """
    grid, alpha_prior = TimeGrid(cached.grid), prior_of(cached) if alpha_prior is None else alpha_prior
    signals = signals_of(cached.model, steps, grid)
    first = next((i for i, signal in enumerate(signals) if signal >= alpha_prior), steps - 1)
    computed = tuple(sorted({k * (steps - first) // passes for k in range(passes)}))
    manifest = cached.model.manifest
    rival = replace(cached, way=Way.TAYLOR if order == 1 else Way.TAYLOR_SECOND, steps=steps)
    if order == 1:
        reuse = Reuse.NOISE_LINEAR if of_noise else Reuse.FEATURE_LINEAR
        refreshes = tuple(first + k for k in computed)
        plan = Plan(source_digest=manifest.source.digest, steps=steps, solver=cached.solver, grid=grid, reuse=reuse,
                    refreshes=refreshes)  # fmt: skip
        return replace(rival, cache=plan)
    backend = TaylorBackend(cached.model.backend, manifest, computed, order, of_noise=of_noise)
    return replace(rival, model=Model(manifest, backend), cache=without_reuse(cached, alpha_prior))


@contextmanager
def rivals_of(
    cached: Contender, passes: float, plain: Contender, few: Contender, miss: Miss, threads: int | None = None
) -> Iterator[list[Contender]]:
    """The rivals of a cached contender that costs `passes`, beside fewer steps; their sessions are open in the block.

    `plain` is the uncached contender, `few` the best of fewer steps at equal passes, `miss` what the variants of one
    rival are chosen by. What needs a transformer in fp32 on ONNX Runtime, or K/V, is left out where there is none.
    """
    count, priors = whole_passes(passes), priors_of(cached)
    modes = [mode for mode in UNFITTED if count > 1 or not mode.is_linear]  # one value cannot be extrapolated
    rivals = []
    if isinstance(cached.cache, Plan) and cached.cache.fit:
        rivals.append(least_missing([_reusing(cached, Way.UNFITTED, reuse) for reuse in modes], miss)[1])
    every = {mode: [fixed_interval(cached, passes, mode, alpha) for alpha in priors] for mode in modes}
    rivals.append(least_missing([one for ways in every.values() for one in ways], miss)[1])
    stale = least_missing([stale_features(cached), *every[Reuse.FEATURE]], miss)[1]
    rivals.append(replace(stale, way=Way.STALE))
    for order in range(1, min(count, 3)):  # a first difference takes two values
        ways = product(sorted({TAYLOR_STEPS, cached.steps}), (False, True), priors)
        tried = [taylor(cached, count, steps, order, of_noise=noise, alpha_prior=alpha) for steps, noise, alpha in ways]
        rivals.append(least_missing(tried, miss)[1])
    if count > 1:
        linear = (Reuse.FEATURE_LINEAR, Reuse.NOISE_LINEAR)
        rivals.append(least_missing([_reusing(cached, Way.TAYLOR_PLANNED, reuse) for reuse in linear], miss)[1])
    model = cached.model
    with ExitStack() as opened:
        if model.bundle is not None and can_keep_kv(model):
            from bench.kv_only import KvOnlyBackend  # onnx only where it is asked for

            backend = KvOnlyBackend(model.bundle, model.manifest, threads=threads)
            kv_only = opened.enter_context(Model(model.manifest, backend))
            rivals.append(replace(few, way=Way.KV_FEWER, model=kv_only))
            rivals.append(replace(cached, way=Way.KV_ONLY, model=kv_only, cache=without_reuse(cached)))
        if model.facts.tokens.obstacle is None:
            rivals.append(replace(plain, way=Way.PUBLISHED, cache=E2CRF.preset(Preset.README)))
        yield rivals


def whole_passes(passes: float) -> int:
    """Passes as rivals count them: rounded up, but for a hundredth."""
    return max(1, math.ceil(passes - 0.01))


def can_keep_kv(model: Model) -> bool:
    """Whether K/V-only caching can be built for a model: graphs of a transformer in fp32, on ONNX Runtime."""
    manifest = model.manifest
    is_known = model.backend.name == BackendName.ONNXRUNTIME and manifest.precision == "fp32"
    return is_known and manifest.network.num_heads > 0


@contextmanager
def open_pytorch(
    checkpoint: Path | None, model: Model, batch_size: int, form: Form = Form.EAGER
) -> "Iterator[Baseline | None]":
    """The PyTorch baseline of a checkpoint file in one of its forms, or None if there is no checkpoint."""
    if checkpoint is None:
        yield None
        return
    from bench.baseline import baseline, source_of  # torch only where it is asked for

    with baseline(source_of(checkpoint, model.manifest), model.manifest, batch_size, form) as opened:
        yield opened
