"""The bench: one model, one noise, one time grid; PyTorch, ONNX Runtime and E2-CRF side by side.

    found = compare(CompareOptions(bundle=Path("bundles/ecg"), reference=Path("reference.npz")))
    found.record.rows, found.record.failures

*Cost*: all rivals sample whole trajectories of one batch, turn by turn (`latency`), from noise to series.
*Quality*: each way of sampling draws `num_samples` series from the same noise, which are judged against
real ones (`quality`); two rows of real series stand below as yardsticks.

The quality of PyTorch is that of the uncached row, so its samples are drawn only for the batch that is
timed; the paired error of the uncached row says how far the two agree. Without a checkpoint there is no
PyTorch row and the uncached row comes first.

"Fewer steps" is the honest rival: no reuse, the same closed-form prior phase, and a time grid so coarse
that it costs as many passes as the cached row. A cache has to beat its quality to be worth having.
"""

from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from bench.contenders import Contender, Progress, Way, fewer_steps, open_pytorch
from bench.gate import failures_of
from bench.latency import RaceOptions, Rival, Timing, race
from bench.machine import describe_machine
from bench.quality import Quality, QualityOptions, floor, judge, loss, mean_sample, paired_error
from bench.records import Record, Row, now, plain, write_records
from bench.reference import Part, Reference, Series, read_reference
from export.manifest import Manifest
from runtime.backends.base import BackendName
from runtime.cache.options import E2CRF
from runtime.errors import parse_word, require
from runtime.sampler import Model, Samples, load
from runtime.solvers import Solver

REPORTS = "reports"
RECORD_FILE = "bench.json"
FLOOR = "real series (floor)"
MEAN_SAMPLE = "mean sample"


@dataclass(frozen=True)
class CompareOptions:
    """What to compare, on how much, and how much worse caching may be."""

    bundle: Path
    reference: Path  # npz with `train` and `test`, or any npz or npy of real series
    checkpoint: Path | None = None  # the one the bundle was exported from, for the PyTorch rival
    part: str = Part.TEST  # the part of the reference that judges
    num_samples: int = 200  # for quality
    sampling_batch: int = 64  # for quality
    batch_size: int = 1  # for cost
    steps: int = 1000
    solver: str = Solver.ANCESTRAL
    seed: int = 0
    cache: E2CRF = field(default_factory=E2CRF)
    backend: str = BackendName.ONNXRUNTIME
    threads: int | None = None  # of the backend; None: all cores
    race: RaceOptions = field(default_factory=RaceOptions)
    quality: QualityOptions = field(default_factory=QualityOptions)
    max_sw_loss: float | None = None  # 0.05: fail if caching makes a distance more than 5 % larger

    def __post_init__(self) -> None:
        parse_word(Part, self.part, "part of the reference")
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
    uncached: Samples
    cached: Samples


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
        uncached = bench.draw(first)
        cached = bench.draw(replace(first, way=Way.CACHED, cache=options.cache))
        cache, steps = fewer_steps(model, options.cache, options.steps, cached.samples.stats.passes)
        fewer = bench.draw(replace(first, way=Way.FEWER, cache=cache, steps=steps))
        drawn = [uncached, cached, fewer]
        timings, rounding = bench.time(drawn, None if pytorch is None else pytorch.model)
    paired = {
        uncached.contender.name: rounding,
        cached.contender.name: paired_error(cached.samples.series, uncached.samples.series, reference),
    }
    yardsticks = bench.yardsticks()
    record = Record(
        created=now(),
        model=_facts(model.manifest),
        options=plain(asdict(options)),
        machine=machine,
        baseline=None if pytorch is None else pytorch.choice,
        rows=_rows(timings, drawn, paired, yardsticks),
        loss_time=loss(cached.quality.time, uncached.quality.time, options.quality.level),
        loss_frequency=loss(cached.quality.frequency, uncached.quality.frequency, options.quality.level),
        failures=failures_of(cached.quality, uncached.quality, yardsticks[MEAN_SAMPLE], options.max_sw_loss),
    )
    write_records(options.bundle / REPORTS / RECORD_FILE, [record])
    return Comparison(record, reference, uncached.samples, cached.samples)


@dataclass(frozen=True)
class _Drawn:
    """One way of sampling, what it drew, and what that is worth."""

    contender: Contender
    samples: Samples
    quality: Quality


@dataclass(frozen=True)
class _Bench:
    """What all measurements of one bench have in common."""

    options: CompareOptions
    reference: Reference
    progress: Progress

    def draw(self, contender: Contender) -> _Drawn:
        """Draw the samples that quality is judged by, and judge them."""
        samples = contender.draw(self.options.num_samples, self.options.sampling_batch, self.progress)
        self.progress(f"judging: {contender.name}", 0.0)
        return _Drawn(contender, samples, judge(samples.series, self.reference, self.options.quality))

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


def _rows(
    timings: list[Timing],
    drawn: list[_Drawn],
    paired: dict[str, float | None],
    yardsticks: dict[str, Quality],
) -> tuple[Row, ...]:
    by_name = {one.contender.name: one for one in drawn}
    steps = drawn[0].contender.steps  # of the uncached rivals
    level = yardsticks[FLOOR]
    rows = []
    for timing in timings:
        row = Row(
            timing.name,
            steps=steps,
            ms_per_sample=timing.median_ms,
            p90_ms_per_sample=timing.p90_ms,
            speedup=timing.speedup,
            measured_steps=timing.measured_steps,
            passes=float(steps),
            hit_rate=0.0,
            paired_error=paired.get(timing.name),
        )
        if (one := by_name.get(timing.name)) is not None:
            stats = one.samples.stats
            row = replace(
                row,
                steps=one.contender.steps,
                passes=stats.passes,
                hit_rate=stats.hit_rate,
                cache_bytes=stats.cache_bytes,
                **_figures(one.quality, level),
            )
        rows.append(row)
    return (*rows, *(Row(name, **_figures(quality, level)) for name, quality in yardsticks.items()))


def _figures(quality: Quality, level: Quality) -> dict[str, Any]:
    """The quality columns of a row."""
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
