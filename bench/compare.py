"""The bench: one model, one noise, one time grid; PyTorch, ONNX Runtime and E2-CRF side by side.

    found = compare(CompareOptions(bundle=Path("bundles/ecg"), reference=Path("reference.npz")))
    found.record.rows, found.record.failures

*Cost*: all rivals sample whole trajectories of one batch, turn by turn (`latency`), from noise to series.
*Quality*: each way of sampling draws `num_samples` series from the same noise, which are judged against
real ones (`quality`); two rows of real series stand below as yardsticks.

The quality of PyTorch is that of the uncached row, so its samples are drawn only for the batch that is
timed; the paired error of the uncached row says how far the two agree. Without a checkpoint there is no
PyTorch row and the uncached row comes first.

"Fewer steps" is the honest rival: no reuse, the same closed-form prior phase, and a coarse time grid. It stands
in two rows: with as many passes as the cached row, by the best of several solvers and time grids, and with as few as
it needs to be as good, by the better of the best two of them, looked for up to four times the passes. A cache has to
beat both to be worth having. "Fixed interval" (no low frequencies) and "stale features" (what the published code
reuses) cost as much as the cached row.

An uncached draw of a thousand samples takes hours at the published size, so it may be of fewer (`num_uncached`);
the loss is then taken over as many of the cached ones.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from bench.contenders import (
    FEW_STEP_SOLVERS,
    Contender,
    Progress,
    Way,
    fewer_steps,
    fixed_interval,
    open_pytorch,
    stale_features,
)
from bench.gate import failures_of
from bench.latency import RaceOptions, Rival, Timing, race
from bench.machine import describe_machine
from bench.quality import Quality, QualityOptions, floor, judge, loss, mean_sample, paired_error
from bench.records import Record, Row, now, plain, write_records
from bench.reference import Part, Reference, Series, read_reference
from bench.steps import step_costs_apart
from export.manifest import Manifest
from runtime.backends.base import BackendName
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache
from runtime.errors import parse_word, require
from runtime.output import read_samples
from runtime.sampler import Auto, Model, Samples, load
from runtime.solvers import Solver, TimeGrid

REPORTS = "reports"
RECORD_FILE = "bench.json"
FLOOR = "real series (floor)"
MEAN_SAMPLE = "mean sample"
_ROUGHLY = QualityOptions(num_directions=256, num_resamples=1, interval_directions=1)  # to compare, without intervals


@dataclass(frozen=True)
class CompareOptions:
    """What to compare, on how much, and how much worse caching may be."""

    bundle: Path
    reference: Path  # npz with `train` and `test`, or any npz or npy of real series
    checkpoint: Path | None = None  # the one the bundle was exported from, for the PyTorch rival
    part: str = Part.TEST  # the part of the reference that judges
    num_samples: int = 200  # for quality
    uncached: Path | None = None  # uncached samples drawn before, by `e2crf sample --uncached`
    num_uncached: int | None = None  # of them uncached; None: as many
    num_search: int = 128  # at most, for finding the rival of equal quality
    equal_within: float = 0.02  # a rival is as good if its distance is larger by no more than this share
    most_passes: int = 32  # of a rival of equal quality; also not more than four times the cache's
    sampling_batch: int = 64  # for quality
    batch_size: int = 1  # for cost
    steps: int = 1000
    solver: str = Solver.ANCESTRAL
    seed: int = 0
    cache: Cache | Auto = Auto.AUTO  # the bundle's plan, else E2CRF()
    backend: str = BackendName.ONNXRUNTIME
    threads: int | None = None  # of the backend; None: all cores
    race: RaceOptions = field(default_factory=RaceOptions)
    quality: QualityOptions = field(default_factory=QualityOptions)
    max_sw_loss: float | None = None  # 0.05: fail if caching makes a distance more than 5 % larger

    def __post_init__(self) -> None:
        parse_word(Part, self.part, "part of the reference")
        few = self.num_uncached
        require(few is None or 2 <= few <= self.num_samples, f"num_uncached must lie in 2 .. {self.num_samples}", few,
                "leave it out for as many")  # fmt: skip
        require(self.num_samples >= 2, "num_samples must be at least 2", self.num_samples, "200 is the default")
        require(self.batch_size >= 1, "batch_size must be at least 1", self.batch_size, "1 is the default")
        require(self.steps >= 2, "steps must be at least 2", self.steps, "1000 is the default")
        limit = self.max_sw_loss
        require(limit is None or limit >= 0, "max_sw_loss must not be negative", limit, "0.05 allows 5 %")


@dataclass(frozen=True)
class Comparison:
    """What was found, and the series it was found on."""

    record: Record
    reference: Reference
    uncached: Series
    cached: Samples
    drawn: dict[str, Samples]  # by the name of a file: what was drawn here


def compare(options: CompareOptions, progress: Progress = lambda doing, share: None) -> Comparison:
    """Run the bench and write its record to `<bundle>/reports/bench.json`."""
    machine = describe_machine()  # before the bench adds its own load
    reference = read_reference(options.reference, Part(options.part), options.seed)
    with (
        load(options.bundle, options.backend, threads=options.threads) as model,
        open_pytorch(options.checkpoint, model, options.batch_size) as pytorch,
    ):
        bench = _Bench(options, reference, progress)
        first = Contender(Way.UNCACHED, model, None, options.steps, options.solver, options.seed)
        chosen = model.settings(None, None, None, options.cache)
        is_plan = isinstance(chosen.cache, Plan)
        cached_first = replace(first, way=Way.CACHED, cache=chosen.cache)
        if is_plan:
            cached_first = replace(cached_first, steps=chosen.steps, solver=chosen.solver, grid=chosen.grid)
        uncached = bench.draw(first, options.num_uncached) if options.uncached is None else bench.stored(first)
        cached = bench.draw(cached_first)
        drawn = [uncached, cached, *(bench.draw(rival) for rival in bench.rivals(cached))]
        timings, rounding = bench.time(drawn, None if pytorch is None else pytorch.model)
    progress("timing: steps", 0.0)
    costs = step_costs_apart(options.bundle, options.backend, options.threads, options.batch_size)
    few = len(uncached.series)
    alike = judge(cached.series[:few], reference, options.quality)  # as many as uncached ones
    paired = {uncached.contender.name: rounding}
    if cached.contender.solver == options.solver:  # from the same noise
        paired[cached.contender.name] = paired_error(cached.series[:few], uncached.series, reference)
    yardsticks = bench.yardsticks()
    record = Record(
        created=now(),
        model=_facts(model.manifest),
        options=plain(asdict(replace(options, cache=Auto.AUTO)) | {"cache": chosen.facts}),
        machine=machine,
        baseline=None if pytorch is None else pytorch.choice,
        rows=_rows(timings, drawn, paired, yardsticks),
        loss_time=loss(alike.time, uncached.quality.time, options.quality.level),
        loss_frequency=loss(alike.frequency, uncached.quality.frequency, options.quality.level),
        steps=costs,
        failures=failures_of(alike, uncached.quality, yardsticks[MEAN_SAMPLE], options.max_sw_loss),
    )
    write_records(options.bundle / REPORTS / RECORD_FILE, [record])
    assert cached.samples is not None
    drawn_here = {"e2crf": cached.samples} | ({"uncached": uncached.samples} if uncached.samples is not None else {})
    return Comparison(record, reference, uncached.series, cached.samples, drawn_here)


@dataclass(frozen=True)
class Cost:
    """What drawing one sample asks of the network, and of memory."""

    passes: float
    hit_rate: float
    cache_bytes: int


@dataclass(frozen=True)
class _Drawn:
    """One way of sampling, what it drew, and what that is worth."""

    contender: Contender
    series: Series
    cost: Cost
    quality: Quality
    samples: Samples | None = None  # None: they come from a file


@dataclass(frozen=True)
class _Bench:
    """What all measurements of one bench have in common."""

    options: CompareOptions
    reference: Reference
    progress: Progress

    def draw(self, contender: Contender, num_samples: int | None = None) -> _Drawn:
        """Draw the samples that quality is judged by, and judge them."""
        samples = contender.draw(num_samples or self.options.num_samples, self.options.sampling_batch, self.progress)
        self.progress(f"judging: {contender.name}", 0.0)
        stats, quality = samples.stats, judge(samples.series, self.reference, self.options.quality)
        cost = Cost(stats.passes, stats.hit_rate, stats.cache_bytes)
        return _Drawn(contender, samples.series, cost, quality, samples)

    def stored(self, contender: Contender) -> _Drawn:
        """Uncached samples from a file, refused if they are not what `contender` would draw."""
        path, wanted = self.options.uncached, self.options.num_uncached or self.options.num_samples
        assert path is not None
        series, facts = read_samples(path)
        expected = {"source_digest": contender.model.manifest.source.digest, "steps": contender.steps,
                    "solver": contender.solver, "grid": contender.grid, "seed": contender.seed, "first_sample": 0,
                    "cache": None}  # fmt: skip
        for name, value in expected.items():
            found = facts.get(name, "nothing")
            require(found == value, f"{path} must hold uncached samples with {name} {value}", found,
                    "draw them with `e2crf sample --uncached` and the settings of the bench")  # fmt: skip
        require(len(series) >= min(wanted, 2), f"{path} must hold samples", len(series), "draw more")
        series = series[:wanted]
        cost = Cost(float(contender.steps), 0.0, int(facts.get("stats", {}).get("cache_bytes", 0)))
        return _Drawn(contender, series, cost, judge(series, self.reference, self.options.quality))

    def rivals(self, cached: _Drawn) -> Iterator[Contender]:
        """What a cache has to beat: fewer steps at equal passes and at equal quality, and plainer caches."""
        passes = cached.cost.passes
        few, as_good = self._fewer_steps(cached)
        yield few
        if as_good is not None:
            yield replace(as_good, way=Way.FEWER_AS_GOOD)
        yield fixed_interval(cached.contender, passes)
        yield stale_features(cached.contender)

    def _fewer_steps(self, cached: _Drawn) -> tuple[Contender, Contender | None]:
        """The best rival of as many passes, and the cheapest one as good as the cache, None if none is."""
        count = min(self.options.num_search, self.options.num_samples)
        target = judge(cached.series[:count], self.reference, _ROUGHLY)
        least = max(1, math.ceil(cached.cost.passes - 0.01))
        at_equal: Contender | None = None
        ways: tuple[tuple[Solver, TimeGrid], ...] = FEW_STEP_SOLVERS
        for passes in _counts_from(least, min(self.options.most_passes, 4 * least)):
            tried = [fewer_steps(cached.contender, solver, grid, passes) for solver, grid in ways]
            over = []
            for rival in tried:
                self.progress(f"looking for an equal: {passes} passes", passes / self.options.most_passes)
                found = judge(rival.draw(count, self.options.sampling_batch).series, self.reference, _ROUGHLY)
                over.append(
                    max(found.time.sliced / target.time.sliced, found.frequency.sliced / target.frequency.sliced)
                )
            best = min(range(len(tried)), key=over.__getitem__)
            at_equal = at_equal or tried[best]
            ways = tuple(ways[index] for index in sorted(range(len(ways)), key=over.__getitem__)[:2])  # the best two
            if over[best] <= 1 + self.options.equal_within:
                return at_equal, tried[best]
        assert at_equal is not None
        return at_equal, None

    def time(self, drawn: list[_Drawn], pytorch: Model | None) -> tuple[list[Timing], float | None]:
        """Race all ways of sampling; also the paired error of the first to PyTorch, if that takes part."""
        rivals = [one.contender for one in drawn]
        if pytorch is not None:
            rivals.insert(0, replace(rivals[0], model=pytorch))
        size, turns = self.options.batch_size, count()
        num_turns = len(rivals) * (self.options.race.warmups + self.options.race.rounds)
        last: dict[str, Series] = {}

        def rival(one: Contender) -> Rival:
            def sample(steps: int) -> None:
                last[one.name] = replace(one, steps=steps).draw(size, size).series

            return Rival(one.name, sample, one.steps, size, is_uniform=one.cache is None)

        def tell(name: str) -> None:
            self.progress(f"timing: {name}", next(turns) / num_turns)

        timings = race([rival(one) for one in rivals], self.options.race, on_turn=tell)
        if pytorch is None:
            return timings, None
        same = replace(rivals[1], steps=timings[0].measured_steps).draw(size, size).series
        return timings, paired_error(last[rivals[0].name], same, self.reference)

    def yardsticks(self) -> dict[str, Quality]:
        """Real series and their mean, judged as samples are."""
        return {
            FLOOR: floor(self.reference, self.options.num_samples, self.options.quality),
            MEAN_SAMPLE: mean_sample(self.reference, self.options.quality),
        }


def _counts_from(least: int, most: int) -> list[int]:
    """Numbers of passes from the cache's own upwards, in growing steps."""
    counts = [least]
    while counts[-1] < most:
        counts.append(counts[-1] + max(1, counts[-1] // 5))
    return counts


def _rows(
    timings: list[Timing],
    drawn: list[_Drawn],
    paired: dict[str, float | None],
    yardsticks: dict[str, Quality],
) -> tuple[Row, ...]:
    by_name = {one.contender.name: one for one in drawn}
    uncached = drawn[0].contender
    level = yardsticks[FLOOR]
    rows = []
    for timing in timings:
        row = Row(
            timing.name,
            steps=uncached.steps,
            solver=uncached.solver,
            ms_per_sample=timing.median_ms,
            p90_ms_per_sample=timing.p90_ms,
            speedup=timing.speedup,
            measured_steps=timing.measured_steps,
            passes=float(uncached.steps),
            hit_rate=0.0,
            paired_error=paired.get(timing.name),
        )
        if (one := by_name.get(timing.name)) is not None:
            row = replace(
                row,
                steps=one.contender.steps,
                solver=one.contender.solver,
                grid=one.contender.grid,
                passes=one.cost.passes,
                hit_rate=one.cost.hit_rate,
                cache_bytes=one.cost.cache_bytes,
                **figures_of(one.quality, level),
            )
        rows.append(row)
    return (*rows, *(Row(name, **figures_of(quality, level)) for name, quality in yardsticks.items()))


def figures_of(quality: Quality, level: Quality) -> dict[str, Any]:
    """The quality columns of a row; `level` is that of real series."""
    figures: dict[str, Any] = {name: getattr(quality, name) for name in ("num_samples", "num_diverged", "num_left_out")}
    for domain in ("time", "frequency"):
        distance, least = getattr(quality, domain), getattr(level, domain)
        figures |= {
            f"sw_{domain}": distance.sliced,
            f"sw_{domain}_low": distance.low,
            f"sw_{domain}_high": distance.high,
            f"sw_{domain}_pot": distance.sliced_pot,
            f"sw_{domain}_over_floor": distance.sliced / least.sliced,
            f"marginal_{domain}": distance.marginal,
        }
    return figures


def _facts(manifest: Manifest) -> dict[str, Any]:
    """What was benched, without folders."""
    return {
        "source": asdict(manifest.source),
        "network": asdict(manifest.network),
        "diffusion": asdict(manifest.diffusion),
        "parity": manifest.parity,
    }
