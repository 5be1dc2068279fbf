"""The face of the published code: its `DiffusionSampler` over this runtime, so that a script changes one import.

    from runtime.compat import DiffusionSampler      # was: from fdiff.sampling.sampler import DiffusionSampler

    sampler = DiffusionSampler(score_model="latest", sample_batch_size=1, use_cache=True, cache_kwargs={"K": 5})
    X = sampler.sample(num_samples=10, num_diffusion_steps=100)
    X = idft(X * feature_std + feature_mean)         # as before: tokens come back standardised, in the model's domain

What is the same: the names, Euler-Maruyama on the uniform grid, 1000 steps where none are named, a tensor
[n, N, C] on the CPU. What is not: `score_model` is named (bundle, checkpoint, run_id or `latest`) and not loaded
first; exactly `num_samples` come back, where the published code drops the rest of the last batch; samples depend on
`seed` and not on the random state of torch, and successive calls go on where the last one ended.

`cache_kwargs={}` is the best cache there is for these settings: the bundle's plan where it fits, else `E2CRF()`.
A name in it asks for the published policy, with that value and the published defaults of the others, on top of the
closed form and the residual that work; `{"reuse": "feature", "alpha_prior": 0}` is the published form whole. At a
hundred steps Euler-Maruyama itself is rough: `solver="ancestral"` comes closer to the data for the same cost.

A checkpoint of the published code needs no statistics here: its bundle is called `<run_id>-standardised`, since what
anybody else would draw from it is not in data units.

Beside `cli.py` this is the one place of the room that looks upward: a checkpoint is exported on demand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.manifest import ManifestError, digest_of, read_manifest
from export.places import BUNDLES, LATEST, RUNS, bundles_in, find_bundle, runs_in
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import PlanError
from runtime.cache.policy import Cache
from runtime.cache.stats import Stats
from runtime.errors import OptionError, require
from runtime.sampler import DEFAULT_GRID, DEFAULT_STEPS, Model, load
from runtime.solvers import Solver


class DiffusionSampler:
    """The published sampler's arguments and methods over a bundle.

    `seed`, `solver` and passing an open `Model` are additions. Raises an `OptionError` for a value that cannot
    be meant, and what `runtime.load` and `e2crf export` raise.
    """

    def __init__(
        self,
        score_model: str | Path | Model,
        sample_batch_size: int,
        use_cache: bool = False,
        cache_kwargs: Mapping[str, Any] | None = None,
        use_fresca: bool = False,
        fresca_low_scale: float = 1.0,
        fresca_high_scale: float = 1.5,
        fresca_cutoff_ratio: float = 0.5,
        fresca_cutoff_strategy: str = "energy",
        *,
        seed: int = 0,
        solver: str = Solver.EULER_MARUYAMA,
    ) -> None:
        require(not use_fresca, "use_fresca must be False", use_fresca,
                "FreSca changes the samples and is not supported: leave it out")  # fmt: skip
        require(isinstance(score_model, str | Path | Model),
                "score_model must name a bundle, a checkpoint file, a run_id or `latest`", type(score_model).__name__,
                "give the path that you loaded it from")  # fmt: skip
        self._cache_kwargs = dict(cache_kwargs or {})
        published_cache(self._cache_kwargs)  # a wrong name is said before a model is opened
        self.score_model = score_model if isinstance(score_model, Model) else load(bundle_of(score_model))
        self.sample_batch_size, self.use_cache = sample_batch_size, use_cache
        self.n_channels = self.score_model.manifest.network.num_channels
        self.max_len = self.score_model.manifest.network.num_tokens
        self.stats: Stats | None = None  # of the last `sample`
        self._seed, self._solver, self._drawn = seed, solver, 0

    def sample(self, num_samples: int, num_diffusion_steps: int | None = None) -> Any:
        """The next `num_samples` samples as standardised tokens [n, N, C]: a torch tensor, an array without torch."""
        from runtime.progress import steps_progress  # not on `import`: rich takes its time

        steps = DEFAULT_STEPS if num_diffusion_steps is None else num_diffusion_steps
        cache = cache_for(self.score_model, self._cache_kwargs, steps, self._solver) if self.use_cache else None
        with steps_progress(num_samples, self.sample_batch_size, steps) as on_progress:
            drawn = self.score_model.sample(
                num_samples, steps=steps, solver=self._solver, grid=DEFAULT_GRID, seed=self._seed,
                batch_size=self.sample_batch_size, cache=cache, on_progress=on_progress, first_sample=self._drawn,
            )  # fmt: skip
        self._drawn += num_samples
        self.stats = drawn.stats
        return _tensor(drawn.z)

    def get_cache_stats(self) -> dict[str, float]:
        """What the cache of the last `sample` saved, under the published names; {} before, and without a cache."""
        return cache_stats(self.stats) if self.use_cache and self.stats is not None else {}


def cache_for(model: Model, cache_kwargs: Mapping[str, Any], steps: int, solver: str) -> Cache:
    """The cache that `cache_kwargs` ask for: the published policy, or with none the plan if it fits, else `E2CRF()`."""
    if (published := published_cache(cache_kwargs)) is not None:
        return published
    if (plan := model.plan()) is None:
        return E2CRF()
    try:
        plan.check(model.manifest, steps, solver, DEFAULT_GRID)
    except PlanError:  # of other settings
        return E2CRF()
    return plan


def published_cache(cache_kwargs: Mapping[str, Any]) -> E2CRF | None:
    """The published policy with these knobs, None without any; an `OptionError` lists the known names."""
    if unknown := [name for name in cache_kwargs if name not in E2CRF.names()]:
        known = ", ".join(E2CRF.names())
        raise OptionError(f"unknown name {', '.join(unknown)} in cache_kwargs; the known ones are {known}")
    return E2CRF(**{"policy": PolicyName.E2CRF} | dict(cache_kwargs)) if cache_kwargs else None


def cache_stats(stats: Stats) -> dict[str, float]:
    """Statistics under the published names; counts are of (sample, step, token), `current_step` is the last step."""
    recomputed = int(stats.recomputed.sum())
    pairs = stats.num_samples * stats.num_steps * stats.num_tokens
    return {
        "cache_hit_ratio": stats.hit_rate,
        "recompute_count": recomputed,
        "cache_hit_count": pairs - recomputed,
        "current_step": stats.num_steps - 1,
    }


def bundle_of(model: str | Path) -> Path:
    """The bundle of a model named by bundle, checkpoint file, run_id or `latest`, exported first where it has to be.

    `latest` is the newest run, and the newest bundle where there are no runs.
    """
    name, runs = str(model), runs_in()
    if not (Path(name).is_file() or RUNS / name in runs or (runs and name == LATEST)):
        return _known_bundle(name)
    from export.bundle import ExportOptions, default_folder, export_bundle
    from export.checkpoint import MissingStatisticsError, find_checkpoint, read_checkpoint
    from export.upstream import Supplement

    path = find_checkpoint(name, RUNS)
    if (made := _made_from(path)) is not None:
        return made
    try:
        checkpoint = read_checkpoint(path)
        folder = default_folder(checkpoint)
    except MissingStatisticsError:  # the published sampler does without: its tokens stay standardised
        checkpoint = read_checkpoint(path, Supplement(lambda _: None))
        folder = default_folder(checkpoint)
        folder = folder.with_name(f"{folder.name}-standardised")
    export_bundle(checkpoint, ExportOptions(folder))
    return folder


def _made_from(checkpoint: Path) -> Path | None:
    """The newest bundle in fp32 that was made from a checkpoint file, whatever it is called."""
    digest = digest_of(checkpoint)
    for bundle in bundles_in():
        try:
            found = read_manifest(bundle, verify_digests=False)
        except ManifestError:  # some other one is damaged
            continue
        if found.source.digest == digest and found.precision == "fp32":
            return bundle
    return None


def _known_bundle(name: str) -> Path:
    folder = find_bundle(name)
    if not folder.is_dir():
        listed = [", ".join(path.name for path in found) or "none" for found in (runs_in(), bundles_in())]
        raise ManifestError(
            f"no model {name!r}: neither a bundle, nor a checkpoint file, nor a run under {RUNS} "
            f"(runs: {listed[0]}; under {BUNDLES}: {listed[1]}); name one of these, or train one with `e2crf train`"
        )
    return folder


def _tensor(z: Any) -> Any:
    try:
        from torch import from_numpy
    except ModuleNotFoundError:
        return z
    return from_numpy(z)
