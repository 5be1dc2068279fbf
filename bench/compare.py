"""The bench: one model, one noise; PyTorch, ONNX Runtime, E2-CRF and every rival side by side.

    found = compare(CompareOptions(bundle=Path("bundles/ecg"), reference=Path("reference.npz")))
    found.record.rows, found.record.failures

*Cost*: all rivals sample trajectories of one batch, turn by turn (`latency`), from noise to series. PyTorch, the split
graphs and a GPU's backends (`twins`) take part in it uncached and with the cache.
*Quality*: each way of sampling draws `num_samples` series from the same noise, which are judged against
real ones (`quality`); two rows of real series stand below as yardsticks. A way that asks the network at most steps
draws `num_uncached` of them, since a thousand take hours at the published size; uncached samples of a file are all
judged. The loss is taken over as many of the cached ones.

The quality of a twin is that of the row it is the same as. Without a checkpoint there is no PyTorch row and the
uncached row comes first; on a GPU engines take part if they were built, and what does not open says why in the notes.

"Fewer steps" is the honest rival (`few_steps`): by every solver with as many passes as the cached row, and with as few
as it needs to be as good, in any prior phase and in that of the cached row. A cache has to beat the first two to be
worth having; over the third it tells what reuse gives beside the prior phase. The other rivals: `contenders`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from bench.contenders import (
    ROUGHLY,
    Contender,
    Progress,
    Way,
    miss_from,
    prior_of,
    priors_of,
    rivals_of,
    whole_passes,
    without_reuse,
)
from bench.curves import (
    autocorrelation_curves,
    cache_curves,
    paired_error_by_step,
    recomputed_of,
    series_curves,
    spectrum_curves,
)
from bench.few_steps import Bar, Look, as_good, best_of_each, each_way, looked_at
from bench.forms import Form
from bench.gate import failures_of
from bench.latency import RaceOptions, Rival, Timing, race
from bench.machine import describe_machine
from bench.quality import Quality, QualityOptions, floor, judge, loss, mean_sample, paired_error
from bench.records import Curve, Kind, Record, Row, Stages, write_records
from bench.reference import Part, Reference, Series, read_reference
from bench.rows import FLOOR, MEAN_SAMPLE, REPORTS, figures_of, record_of, row_of, stored, with_time
from bench.stages import stages_apart
from bench.startup import StartOptions, Starts, measure_starts
from bench.steps import step_costs_apart
from bench.twins import TwinOptions, Twins, open_twins
from runtime.backends.base import BackendName
from runtime.cache.plan import Plan
from runtime.cache.policy import Cache
from runtime.errors import parse_word, require
from runtime.output import keep_previous
from runtime.sampler import Auto, Samples, load
from runtime.solvers import Solver

RECORD_FILE = "bench.json"


@dataclass(frozen=True)
class CompareOptions:
    """What to compare, on how much, and how much worse caching may be."""

    bundle: Path
    reference: Path  # npz with `train` and `test`, or any npz or npy of real series
    checkpoint: Path | None = None  # the one the bundle was exported from, for the PyTorch rival
    part: str = Part.TEST  # the part of the reference that judges
    num_samples: int = 200  # for quality
    uncached: tuple[Path, ...] = ()  # files of uncached samples drawn before, by `e2crf sample --uncached`
    num_uncached: int | None = None  # drawn here by ways that ask the network at most steps; None: as many
    num_search: int = 128  # at most, for finding the rival of equal quality
    equal_within: float = 0.02  # a rival is as good if it misses by no more than this share (`contenders.miss_from`)
    most_passes: int = 32  # of a rival of equal quality; nor more than four times the cache's, or eight
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
    quick: bool = False  # without what takes longest: torch.compile, starts, stages, rivals that ask at most steps

    def __post_init__(self) -> None:
        parse_word(Part, self.part, "part of the reference")
        few = self.num_uncached
        require(few is None or 2 <= few <= self.num_samples, f"num_uncached must lie in 2 .. {self.num_samples}", few,
                "leave it out for as many")  # fmt: skip
        require(self.num_samples >= 2, "num_samples must be at least 2", self.num_samples, "take 64 or more")
        require(self.num_search >= 2, "num_search must be at least 2", self.num_search, "128 is the default")
        require(self.most_passes >= 1, "most_passes must be at least 1", self.most_passes, "32 is the default")
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
    previous: Path | None = None  # where the record that this one replaced is kept


def compare(options: CompareOptions, progress: Progress = lambda doing, share: None) -> Comparison:
    """Run the bench and write its record to `<bundle>/reports/bench.json`; what stood there is kept."""
    machine = describe_machine()  # before the bench adds its own load
    reference = read_reference(options.reference, Part(options.part), options.seed)
    bench = _Bench(options, reference, progress)
    with ExitStack() as opened:
        model = opened.enter_context(load(options.bundle, options.backend, threads=options.threads))
        expected, found = (
            [model.manifest.network.num_tokens, model.manifest.network.num_channels],
            list(reference.series.shape[1:]),
        )
        require(found == expected, f"real series must have [N, C] = {expected} as the model has", found,
                "name the reference that the model was trained on")  # fmt: skip
        first = Contender(Way.UNCACHED, model, None, options.steps, options.solver, options.seed)
        chosen = model.settings(None, None, None, options.cache)
        cached_first = replace(first, way=Way.CACHED, cache=chosen.cache)
        if isinstance(chosen.cache, Plan):
            cached_first = replace(cached_first, steps=chosen.steps, solver=chosen.solver, grid=chosen.grid)
        uncached = bench.stored(first, options.uncached) if options.uncached else bench.draw(first)
        cached = bench.draw(cached_first)
        rivals = [bench.draw(rival) for rival in bench.rivals(cached, first, opened)]
        twins = bench.twins(uncached, cached, opened)
        raced = bench.time([uncached, cached, *rivals], twins)
        few, drawn = len(uncached.series), [uncached, cached, *rivals]
        alike = bench.alike(cached, drawn)
        as_many = alike.get(few, cached.quality)  # as uncached ones
        assert as_many is not None
        assert uncached.quality is not None
        yardsticks = bench.yardsticks()
        failures = bench.failures(uncached, cached, yardsticks[MEAN_SAMPLE])
        curves = bench.curves(uncached, cached)
    progress("timing: steps", 0.0)
    costs = step_costs_apart(options.bundle, options.backend, options.threads, options.batch_size)
    starts = bench.starts()
    paired = dict(raced.rounding)
    if cached.contender.solver == options.solver:  # from the same noise
        paired[cached.contender.name] = paired_error(cached.series[:few], uncached.series, reference)
    rows = _rows(drawn, alike, twins, raced, paired, yardsticks)
    facts = asdict(replace(options, cache=Auto.AUTO)) | {"cache": chosen.facts, "num_real": len(reference.series)}
    record = replace(
        record_of(Kind.BENCH, model, facts, machine, rows),
        baseline="; ".join(twins.settings) or None,
        loss_time=loss(as_many.time, uncached.quality.time, options.quality.level),
        loss_frequency=loss(as_many.frequency, uncached.quality.frequency, options.quality.level),
        steps=costs,
        stages=bench.stages(chosen.cache),
        starts=starts.starts,
        curves=curves,
        recomputed=recomputed_of(cached.drawn.stats),
        notes=tuple(dict.fromkeys((*twins.missing, *starts.missing))),
        failures=failures,
    )
    path = options.bundle / REPORTS / RECORD_FILE
    previous = keep_previous(path)
    write_records(path, [record])
    drawn_here = {"e2crf": cached.drawn} | ({} if uncached.samples is None else {"uncached": uncached.samples})
    return Comparison(record, reference, uncached.series, cached.drawn, drawn_here, previous)


@dataclass(frozen=True)
class _Drawn:
    """One way of sampling, what it drew, what that cost and what it is worth."""

    contender: Contender
    series: Series
    row: Row
    quality: Quality | None  # None: fewer than two samples are finite, of a rival
    samples: Samples | None = None  # None: they come from a file

    @property
    def drawn(self) -> Samples:
        """The samples of what was drawn here."""
        assert self.samples is not None
        return self.samples


@dataclass(frozen=True)
class _Raced:
    """What the race found, by the name of a contender."""

    timings: list[Timing]
    rounding: dict[str, float]  # paired errors of the twins, in the batch that was timed
    network_shares: dict[str, float]  # of the time, in network calls


@dataclass(frozen=True)
class _Bench:
    """What all measurements of one bench have in common."""

    options: CompareOptions
    reference: Reference
    progress: Progress

    def draw(self, contender: Contender) -> _Drawn:
        """Draw the samples that quality is judged by, and judge them."""
        options, n = self.options, self.options.num_samples
        if contender.way.has_own_cost:
            n = options.num_uncached or n
        samples = contender.draw(n, options.sampling_batch, self.progress)
        self.progress(f"judging: {contender.name}", 0.0)
        is_own = contender.way in (Way.UNCACHED, Way.CACHED)  # without these two there is nothing to tell
        is_finite = np.isfinite(samples.series).all(axis=(1, 2))
        quality = judge(samples.series, self.reference, options.quality) if is_own or is_finite.sum() > 1 else None
        return _Drawn(contender, samples.series, row_of(contender.name, contender, samples), quality, samples)

    def alike(self, cached: _Drawn, drawn: list[_Drawn]) -> dict[int, Quality]:
        """The quality of the cached samples on fewer of them, by their number, where other ways drew fewer."""
        counts = sorted({len(one.series) for one in drawn} - {len(cached.series)})
        return {n: judge(cached.series[:n], self.reference, self.options.quality) for n in counts}

    def stored(self, contender: Contender, paths: Sequence[Path]) -> _Drawn:
        """Uncached samples from files, no more than are judged of others."""
        series, row = stored(paths, contender)
        series = series[: self.options.num_samples]
        return _Drawn(contender, series, row, judge(series, self.reference, self.options.quality))

    def looks(self, target: Series) -> tuple[Look, ...]:
        """How rivals of equal quality are judged: roughly on a few samples, as the table judges them on all."""
        options, looks = self.options, list[Look]()
        for n, unsure in looked_at(options.num_samples, options.num_search):
            directions = ROUGHLY.num_directions if unsure else options.quality.num_directions
            miss = miss_from(target[:n], self.reference, options.sampling_batch, self.progress, directions)
            looks.append(Look(miss, unsure))
        return tuple(looks)

    def rivals(self, cached: _Drawn, first: Contender, opened: ExitStack) -> Iterator[Contender]:
        """What a cache has to beat; their sessions are closed with `opened`."""
        options, passes = self.options, cached.drawn.stats.passes
        looks = self.looks(cached.series)
        bar, miss = Bar(looks, options.equal_within, options.most_passes), looks[0].miss
        priors, own = priors_of(cached.contender), [prior_of(cached.contender)]
        ways = each_way(cached.contender, whole_passes(passes), priors, miss)
        ranked = best_of_each(ways)
        best = replace(ranked[0], way=Way.FEWER)
        yield best
        if (found := as_good(ways, priors, bar)) is not None:
            yield found
        if not options.quick:
            ways = each_way(cached.contender, whole_passes(passes), own, miss)
            if (found := as_good(ways, own, bar)) is not None:
                yield replace(found, way=Way.FEWER_SAME_PRIOR)
        yield from ranked[1:]
        others = rivals_of(cached.contender, passes, first, best, miss, options.threads)
        for rival in opened.enter_context(others):
            if not (options.quick and rival.way.has_own_cost):
                yield rival

    def twins(self, uncached: _Drawn, cached: _Drawn, opened: ExitStack) -> Twins:
        """The same two ways on PyTorch, the split graphs and a GPU's backends, where they run."""
        options, work = self.options, cached.drawn.stats.work
        forms = (Form.EAGER,) if options.quick else (Form.EAGER, Form.COMPILED)  # speed-ups are over the first
        wanted = TwinOptions(options.bundle, options.checkpoint, options.batch_size, forms)
        whole = work.tokens == work.full_tokens
        return open_twins(uncached.contender, cached.contender, wanted, opened, self.progress, whole=whole)

    def time(self, drawn: list[_Drawn], twins: Twins) -> _Raced:
        """Race all ways of sampling, PyTorch first."""
        uncached, cached, *rivals = (one.contender for one in drawn)
        originals = {one.name: uncached for one in twins.of_uncached} | {one.name: cached for one in twins.of_cached}
        lineup = [*twins.of_uncached, uncached, cached, *twins.of_cached, *rivals]
        size, turns = self.options.batch_size, count()
        num_turns = len(lineup) * (self.options.race.warmups + self.options.race.rounds)
        last: dict[str, tuple[Samples, int]] = {}

        def rival(one: Contender) -> Rival:
            def sample(steps: int) -> None:
                last[one.name] = replace(one, steps=steps).draw(size, size), steps

            return Rival(one.name, sample, one.steps, size, is_uniform=one.cache is None)

        def tell(name: str) -> None:
            self.progress(f"timing: {name}", min(1.0, next(turns) / num_turns))

        timings = race([rival(one) for one in lineup], self.options.race, on_turn=tell)
        rounding = {}
        for name, original in originals.items():
            found, steps = last[name]
            same = replace(original, steps=steps).draw(size, size).series
            rounding[name] = paired_error(found.series, same, self.reference)
        shares = {name: found.stats.work.seconds / found.stats.seconds for name, (found, _) in last.items()}
        return _Raced(timings, rounding, shares)

    def failures(self, uncached: _Drawn, cached: _Drawn, mean: Quality) -> tuple[str, ...]:
        """What the gate objects to, which also sees the same prior phase with the network at every later step."""
        options = self.options
        if options.max_sw_loss is None:
            return ()
        n = min(len(uncached.series), options.num_uncached or options.num_samples)
        one = replace(cached.contender, way=Way.UNCACHED, cache=without_reuse(cached.contender))

        def tell(doing: str, share: float) -> None:
            self.progress("sampling: the same prior phase without reuse", share)

        without = one.draw(n, options.sampling_batch, tell).series
        alike, plain, every_step = (
            judge(series[:n], self.reference, options.quality) for series in (cached.series, uncached.series, without)
        )
        return failures_of(alike, plain, mean, options.max_sw_loss, every_step)

    def curves(self, uncached: _Drawn, cached: _Drawn) -> tuple[Curve, ...]:
        """What runs over frequencies, lags and steps."""
        generated = {Way.UNCACHED: uncached.series, Way.CACHED: cached.series}
        sets = {"real": self.reference.series} | {str(way): series for way, series in generated.items()}
        found = [
            *spectrum_curves(sets),
            *autocorrelation_curves(sets),
            *series_curves({str(way): series for way, series in generated.items()}),
            *cache_curves(cached.drawn.stats, Way.CACHED),
        ]
        if not self.options.quick:
            self.progress("following single steps", 0.0)
            one = cached.contender
            assert one.cache is not None
            curve = paired_error_by_step(
                one.model, one.cache, baseline=without_reuse(one), steps=one.steps, solver=one.solver, grid=one.grid,
                seed=one.seed,
            )  # fmt: skip
            found.append(curve)
        return tuple(found)

    def stages(self, cache: Cache) -> tuple[Stages, ...]:
        """Where the time of a step goes."""
        options = self.options
        if options.quick or options.backend == BackendName.FAKE:
            return ()
        self.progress("timing: stages", 0.0)
        return stages_apart(options.bundle, options.backend, options.threads, options.batch_size, cache)

    def starts(self) -> Starts:
        """What stands before the first sample."""
        options = self.options
        if options.quick or options.backend == BackendName.FAKE:
            return Starts((), ())
        wanted = StartOptions(options.bundle, options.checkpoint, options.batch_size, threads=options.threads)
        return measure_starts(wanted, on_rival=lambda name: self.progress(f"starting: {name}", 0.0))

    def yardsticks(self) -> dict[str, Quality]:
        """Real series and their mean, judged as samples are."""
        return {
            FLOOR: floor(self.reference, self.options.num_samples, self.options.quality),
            MEAN_SAMPLE: mean_sample(self.reference, self.options.quality),
        }


def _rows(
    drawn: list[_Drawn],
    alike: dict[int, Quality],
    twins: Twins,
    raced: _Raced,
    paired: dict[str, float],
    yardsticks: dict[str, Quality],
) -> list[Row]:
    """The rows in the order of the race, and the yardsticks below them."""
    level = yardsticks[FLOOR]
    judged = {
        one.contender.name: one.row
        if one.quality is None
        else replace(one.row, **figures_of(one.quality, level, alike.get(len(one.series))))
        for one in drawn
    }
    uncached, cached = (judged[one.contender.name] for one in drawn[:2])
    rows = judged.copy()
    for contenders, original in ((twins.of_uncached, uncached), (twins.of_cached, cached)):
        for one in contenders:
            rows[one.name] = replace(original, rival=one.name, cache_bytes=None, same_as=original.rival)
    found = [
        replace(
            with_time(rows[timing.name], timing),
            paired_error=paired.get(timing.name),
            network_share=raced.network_shares[timing.name],
        )
        for timing in raced.timings
    ]
    return [*found, *(Row(name, **figures_of(quality, level)) for name, quality in yardsticks.items())]
