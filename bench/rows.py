"""Ways of sampling as rows of a table: what each costs, what its samples are worth, what it takes.

`bench`, `cache`, `ablation`, `grid` and `pareto` all make their records of these pieces: `row_of` for cost and quality,
`race_of` and `with_time` for the clock, `record_of` for what stands around the rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import Contender, Progress
from bench.latency import RaceOptions, Rival, Timing, race
from bench.machine import Machine
from bench.quality import Quality, QualityOptions, floor, judge, paired_error
from bench.records import Record, Row, now, plain
from bench.reference import Reference, Series
from export.manifest import Manifest
from runtime.backends.base import BackendName
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache, Reuse
from runtime.errors import require
from runtime.output import read_samples
from runtime.sampler import Model, Samples

REPORTS = "reports"
FLOOR = "real series (floor)"
MEAN_SAMPLE = "mean sample"


@dataclass(frozen=True)
class Yardstick:
    """What the samples of a table are judged by: real series, and what other real series score against them."""

    reference: Reference
    level: Quality
    options: QualityOptions


def yardstick(reference: Reference, num_samples: int, options: QualityOptions | None = None) -> Yardstick:
    """The yardstick for tables of so many samples a row."""
    options = options or QualityOptions()
    return Yardstick(reference, floor(reference, num_samples, options), options)


def row_of(
    name: str, one: Contender, drawn: Samples, uncached: Samples | None = None, by: Yardstick | None = None
) -> Row:
    """What one way of sampling costs the network and is worth; no quality where there is nothing to judge by.

    `uncached` are samples of the same noise, as many, for the paired error.
    """
    stats = drawn.stats
    row = replace(
        bare_row(one), rival=name, passes=stats.passes, hit_rate=stats.hit_rate, cache_bytes=stats.cache_bytes,
        num_samples=stats.num_samples, num_diverged=stats.num_diverged,
        events={event: number / stats.num_samples for event, number in stats.event_counts.items()},
    )  # fmt: skip
    finite = int(np.isfinite(drawn.series).all(axis=(1, 2)).sum())
    if by is None or finite < 2:
        return row
    row = replace(row, **figures_of(judge(drawn.series, by.reference, by.options), by.level))
    if uncached is None or uncached is drawn:
        return row
    return replace(row, paired_error=paired_error(drawn.series, uncached.series, by.reference))


def judged(
    rivals: Mapping[str, Contender], by: Yardstick | None, num_samples: int, batch_size: int, progress: Progress
) -> Iterator[tuple[Row, Samples]]:
    """The rows of ways that draw from one noise, the uncached one first, and what they drew over all their steps.

    An `OptionError` for a way that the model cannot do comes before anything is drawn.
    """
    for one in rivals.values():
        chosen = one.model.settings(one.steps, one.solver, one.grid, one.cache)
        steps = one.model.schedule(chosen.solver, chosen.steps, chosen.grid, Reuse(chosen.cache.reuse))[2]
        chosen.cache.concrete(one.model.facts.tokens, steps)
    uncached = None
    for number, (name, one) in enumerate(rivals.items()):
        progress(f"sampling: {name}", number / len(rivals))
        drawn = one.draw(num_samples, batch_size)
        uncached = uncached or drawn
        yield row_of(name, one, drawn, uncached, by), drawn


def policy_in_words(cache: Cache | None) -> str:
    """When a cache asks the network, and what it reuses in between, as a table tells it."""
    if isinstance(cache, Plan):
        lows = f", K {cache.K} at {_several(len(cache.low_steps), 'step', 's')}" if cache.K and cache.low_steps else ""
        fitted = ", fitted" if cache.fit else ""
        return f"plan of {_several(len(cache.refreshes), 'refresh', 'es')}{lows}{fitted}"
    if not isinstance(cache, E2CRF):
        return "every step" if cache is None else type(cache).__name__
    prior = [f"from alpha {cache.alpha_prior:g}"] if cache.alpha_prior else []
    if cache.policy == PolicyName.NEVER:
        return " ".join(["every step", *prior])
    knobs = [f"{name} {value:g}" for name, value in (("R", cache.R), ("K", cache.K)) if value is not None]
    named = [cache.policy] if cache.policy != PolicyName.INTERVAL or cache.R is None else []
    return ", ".join([*named, *knobs, cache.reuse, *prior])


def _several(number: int, one: str, ending: str) -> str:
    return f"{number} {one}{ending if number > 1 else ''}"


def race_of(
    rivals: Mapping[str, Contender],
    num_samples: int,
    batch_size: int,
    options: RaceOptions,
    progress: Progress = lambda doing, share: None,
) -> list[Timing]:
    """Time ways of sampling in turn, against the first of them."""
    turns, num_turns = count(), len(rivals) * (options.warmups + options.rounds)

    def rival(name: str, one: Contender) -> Rival:
        def sample(steps: int) -> None:
            replace(one, steps=steps).draw(num_samples, batch_size)

        return Rival(name, sample, one.steps, num_samples, is_uniform=one.cache is None)

    def tell(name: str) -> None:
        progress(f"timing: {name}", next(turns) / num_turns)

    return race([rival(name, one) for name, one in rivals.items()], options, on_turn=tell)


def timed(
    rows: list[Row], rivals: Mapping[str, Contender], batch_size: int, options: RaceOptions | None, progress: Progress
) -> list[Row]:
    """The rows of these ways with what one batch takes; as they are without options."""
    if options is None:
        return rows
    timings = race_of(rivals, batch_size, batch_size, options, progress)
    return [with_time(row, timing) for row, timing in zip(rows, timings, strict=True)]


def with_time(row: Row, timing: Timing) -> Row:
    """A row with what it took."""
    return replace(
        row,
        ms_per_sample=timing.median_ms,
        low_ms_per_sample=timing.low_ms,
        high_ms_per_sample=timing.high_ms,
        p90_ms_per_sample=timing.p90_ms,
        p99_ms_per_sample=timing.p99_ms,
        speedup=timing.speedup,
        low_speedup=timing.speedup_low,
        high_speedup=timing.speedup_high,
        measured_steps=timing.measured_steps,
        rounds_ms=_four_digits(timing.rounds_ms),
        beside_ms=_four_digits(timing.beside_ms),
    )


def _four_digits(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def record_of(kind: str, model: Model, options: dict[str, Any], machine: Machine, rows: list[Row]) -> Record:
    """A record of such rows."""
    facts = facts_of(model.manifest)
    return Record(now(), facts, plain(options), machine, baseline=None, rows=tuple(rows), kind=kind)


def figures_of(quality: Quality, level: Quality, alike: Quality | None = None) -> dict[str, Any]:
    """The quality columns of a row; `level` is that of real series, `alike` the cached row's on as few samples."""
    figures: dict[str, Any] = {name: getattr(quality, name) for name in ("num_samples", "num_diverged", "num_left_out")}
    for domain in ("time", "frequency"):
        distance, least = getattr(quality, domain), getattr(level, domain)
        figures |= {
            f"sw_{domain}": distance.sliced,
            f"sw_{domain}_low": distance.low,
            f"sw_{domain}_high": distance.high,
            f"sw_{domain}_pot": distance.sliced_pot,
            f"sw_{domain}_over_floor": distance.sliced / least.sliced,
            f"cached_sw_{domain}": None if alike is None else getattr(alike, domain).sliced,
            f"marginal_{domain}": distance.marginal,
            f"marginal_{domain}_pot": distance.marginal_pot,
        }
    return figures | {"spectral": quality.spectral, "autocorrelation": quality.autocorrelation}


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """What was benched, without folders."""
    return {
        "source": asdict(manifest.source),
        "network": asdict(manifest.network),
        "diffusion": asdict(manifest.diffusion),
        "parity": manifest.parity,
    }


def stored(paths: Sequence[Path], uncached: Contender) -> tuple[Series, Row]:
    """Uncached samples from files, in any order, that go on where another one ended, and their row.

    An `OptionError` if they are not what `uncached` would draw.
    """
    expected = {"source_digest": uncached.model.manifest.source.digest, "steps": uncached.steps,
                "solver": uncached.solver, "grid": uncached.grid, "seed": uncached.seed, "cache": None}  # fmt: skip
    precision = uncached.model.manifest.precision
    files = [(path, *read_samples(path)) for path in paths]
    parts, cache_bytes = list[Series](), None
    for path, series, facts in sorted(files, key=lambda file: _first_of(file[2])):
        for name, value in (expected | {"first_sample": sum(map(len, parts))}).items():
            found = facts.get(name, "nothing")
            require(found == value, f"{path} must hold uncached samples with {name} {value}", found,
                    "draw them with `e2crf sample --uncached` and these settings, or leave the file out")  # fmt: skip
        backend = facts.get("backend")  # older files name neither it nor the precision
        is_model = backend != BackendName.FAKE or uncached.model.backend.name == backend
        require(is_model, f"{path} must hold samples of the model", f"some of backend {backend}",
                "draw them without --backend")  # fmt: skip
        found = facts.get("precision", precision)
        require(found == precision, f"{path} must hold samples of the bundle in {precision}", found,
                "draw them from this bundle")  # fmt: skip
        parts.append(series)
        cache_bytes = facts.get("stats", {}).get("cache_bytes")
    drawn = np.concatenate(parts)
    require(len(drawn) >= 2, f"{', '.join(map(str, paths))} must hold samples", len(drawn), "draw more")
    return drawn, replace(bare_row(uncached), passes=float(uncached.steps), hit_rate=0.0, cache_bytes=cache_bytes)


def _first_of(facts: Mapping[str, Any]) -> int:
    """The index of the first sample of a file; 0 where the file does not say."""
    first = facts.get("first_sample")
    return first if isinstance(first, int) else 0


def bare_row(one: Contender) -> Row:
    """The row of a way of sampling before anything is measured."""
    return Row(
        one.name, steps=one.steps, solver=one.solver, grid=one.grid, policy=policy_in_words(one.cache),
        precision=one.model.manifest.precision,
    )  # fmt: skip
