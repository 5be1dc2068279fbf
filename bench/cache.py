"""What caching saves: upstream's benchmark, with its words and its questions, honestly timed.

    python -m bench.cache model_id=latest num_samples=10 num_diffusion_steps=100
    python -m bench.cache model_id=ecg-1f3a9c02 'cache_kwargs={K:5,R:10}' ablations=false

The uncached sampler and the cached one draw the same samples, batch by batch as upstream does (`sample_batch_size=1`):
once to be judged, over all their steps, and then against the clock, in turn and in several rounds (`latency`), so that
both meet the same machine and the first run is not the slower one for being the first. With `ablations` the published
knobs are varied one at a time, in the same race. Where the real series of the run are at hand, what was drawn is judged
by them in the same row: speed alone says nothing.
For a comparison with PyTorch and with fewer steps there is `e2crf bench`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import typer

from bench.contenders import Contender, Progress, Way
from bench.latency import RaceOptions
from bench.records import Row, plain
from bench.reference import Reference, reference_of_run
from bench.report import SCALED, is_scaled, markdown_table, progress_on_terminal
from bench.rows import FLOOR, figures_of, judged, race_of, with_time, yardstick
from bench.words import record_from_words
from runtime.cache.plan import Plan
from runtime.compat import bundle_of, cache_for, cache_stats, published_cache
from runtime.errors import require
from runtime.sampler import Model, load
from runtime.solvers import Solver

UNCACHED, CACHED = "baseline", "E2-CRF"
VARIED: dict[str, tuple[float, ...]] = {
    "K": (0, 3, 5, 10),
    "R": (5, 10, 20, 50),
    "tau_0": (0.05, 0.1, 0.2, 0.5),
}  # as upstream varies them


@dataclass(frozen=True)
class CacheWords:
    """The words of the command, named as upstream's."""

    model_id: str = "latest"  # a run, a bundle or a checkpoint file
    num_samples: int = 10
    num_diffusion_steps: int = 100
    cache_kwargs: dict[str, Any] = field(default_factory=dict)
    sample_batch_size: int = 1
    random_seed: int = 0
    solver: str = Solver.EULER_MARUYAMA
    ablations: bool = True  # vary the published knobs too
    rounds: int = 3  # of timing
    reference: str | None = None  # real series (.npz); default: those of the run

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_diffusion_steps", "sample_batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "leave it out")
        published_cache(self.cache_kwargs)  # refuses unknown names


@dataclass(frozen=True)
class Found:
    """What the benchmark found: one row per way of sampling, and the statistics of the cached one."""

    rows: list[Row]
    baseline_s: float  # for all samples; median over rounds
    cached_s: float
    speedup: float
    cache_stats: dict[str, float]


def bench_cache(
    model: Model, words: CacheWords, reference: Reference | None, progress: Progress = lambda doing, share: None
) -> Found:
    """Judge what the uncached sampler, the cached one and, if asked for, the ablations draw, and race them."""
    rivals, batch_size = dict(contenders(model, words)), words.sample_batch_size
    by = None if reference is None else yardstick(reference, words.num_samples)
    drawn = list(judged(rivals, by, words.num_samples, batch_size, progress))
    timings = race_of(rivals, words.num_samples, batch_size, RaceOptions(words.rounds), progress)
    rows = [with_time(row, timing) for (row, _), timing in zip(drawn, timings, strict=True)]
    if by is not None:
        rows.append(Row(FLOOR, **figures_of(by.level, by.level)))
    seconds = [timing.median_ms * words.num_samples / 1e3 for timing in timings[:2]]
    _, (_, cached), *_ = drawn
    return Found(rows, seconds[0], seconds[1], timings[1].speedup, cache_stats(cached.stats))


def contenders(model: Model, words: CacheWords) -> Iterator[tuple[str, Contender]]:
    """The ways of sampling by name, the uncached one first; without those that this model cannot do."""
    steps, solver = words.num_diffusion_steps, words.solver
    uncached = Contender(Way.UNCACHED, model, None, steps, solver, words.random_seed)
    yield UNCACHED, uncached
    chosen = cache_for(model, words.cache_kwargs, steps, solver)
    yield CACHED, replace(uncached, way=Way.CACHED, cache=chosen)
    if not words.ablations or model.facts.tokens.obstacle is not None:
        return
    for knob, values in VARIED.items():
        for value in values:
            if knob != "K" or value <= model.facts.tokens.num_frequencies:
                yield f"{knob} = {value}", replace(uncached, way=Way.INTERVAL, cache=published_cache({knob: value}))


def told(found: Found, words: CacheWords, model: Model) -> str:
    """What was found, in upstream's order: times, speed-up, statistics; then all rows as a table."""
    n, stats = words.num_samples, found.cache_stats
    cached = found.rows[1]
    kind = "the bundle's plan" if _is_plan(model, words) else "E2CRF()"
    kind = f"cache_kwargs {words.cache_kwargs}" if words.cache_kwargs else kind
    samples = "sample" if n == 1 else "samples"
    return "\n".join([
        f"{n} {samples} of {words.num_diffusion_steps} {words.solver} steps, {words.sample_batch_size} at a time, "
        f"median of {words.rounds} rounds in turn; cache: {kind}",
        f"baseline (no cache)  {found.baseline_s:.3g} s",
        f"cached               {found.cached_s:.3g} s, {found.cached_s / n:.3g} s per sample, "
        f"{found.cached_s / n / words.num_diffusion_steps:.2g} s per step",
        f"speed-up             {found.speedup:.3g}x",
        f"cache hit ratio      {stats['cache_hit_ratio']:.1%} ({stats['cache_hit_count']} tokens reused, "
        f"{stats['recompute_count']} recomputed), {cached.passes:.4g} network passes per sample",
        "",
        markdown_table(found.rows),
        *(["", SCALED] if any(is_scaled(row) for row in found.rows) else []),
    ])  # fmt: skip


def _is_plan(model: Model, words: CacheWords) -> bool:
    return isinstance(cache_for(model, words.cache_kwargs, words.num_diffusion_steps, words.solver), Plan)


def main(
    words: Annotated[list[str] | None, typer.Argument(help="key=value, of: " + ", ".join(asdict(CacheWords())))] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else.")] = False,
) -> None:
    """Time sampling without and with a cache, in upstream's words.

    Example: python -m bench.cache model_id=latest num_samples=10 num_diffusion_steps=100
    """
    options = record_from_words(CacheWords, words or [])
    with load(bundle_of(options.model_id)) as model, progress_on_terminal() as progress:
        found = bench_cache(model, options, reference_of_run(model.manifest.source.run_id, options.reference), progress)
        text = told(found, options, model)
    print(json.dumps(plain(asdict(found)), allow_nan=False) if as_json else text)


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
