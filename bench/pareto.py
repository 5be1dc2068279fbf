"""Speed against quality: solver x steps x time grid x policy x precision, and what of it nothing else beats.

    python -m bench.pareto bundles/ecg                                          # 20 minutes at most
    python -m bench.pareto bundles/ecg --also bundles/ecg-fp16 --uncached uncached.npz --minutes 30

A way of sampling is on the *frontier* if none that is as fast is better. Its quality is one number: sliced Wasserstein
to the real series over that of other real series (the floor), in the worse of the two domains.

1. *Roughly*: all ways, the cheapest first, since what a way costs in passes is known without drawing it. Three rounds
   take as long each: few samples of all, three times as many of the third that is nearest the frontier, and so once
   more. When the time of a round is over, what has not been drawn in it is left out: nothing else is as dear.
2. *Fully*: the ways nearest the frontier, and the plan of the bundle, draw as many samples as a bench does and are
   timed side by side (`latency`), together with the uncached sampler and PyTorch where its checkpoint is at hand. Here
   they are also drawn from the bundles of `also`: the same checkpoint in other precisions, which moves samples by
   their rounding and needs no search of its own.

Ways reuse the residual between refreshes at a constant interval, which on a quadratic grid means more of them near the
end, or compute every step after the prior phase. Where refreshes do best is `calibrate`'s question (`--search`).

The record goes to `<bundle>/reports/pareto.json`; `frontier`, the names from fast to slow, and `best`, the fastest that
is nearly as good as any, are among its options.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from bench.contenders import Contender, Progress, Way, open_pytorch
from bench.latency import RaceOptions
from bench.machine import describe_machine
from bench.quality import QualityOptions, judge
from bench.records import Kind, Record, Row, write_records
from bench.reference import Part, Reference, Series, read_reference
from bench.report import markdown_table, progress_on_terminal
from bench.rows import (
    FLOOR,
    REPORTS,
    Yardstick,
    bare_row,
    figures_of,
    policy_in_words,
    record_of,
    row_of,
    stored,
    timed,
    yardstick,
)
from export.manifest import read_manifest
from export.places import RUNS, find_bundle, real_series, runs_in
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan
from runtime.cache.policy import Reuse, first_network_step
from runtime.errors import OptionError, parse_word, require
from runtime.output import keep_previous
from runtime.sampler import DEFAULT_SOLVER, DEFAULT_STEPS, Model, load
from runtime.score import ScoreNetwork
from runtime.solvers import Solver, TimeGrid
from runtime.verbs.shared import BundleArgument, Json, checkpoint_of_bundle, numbers

RECORD_FILE = "pareto.json"
GRIDS: dict[Solver, tuple[TimeGrid, ...]] = {
    Solver.EULER_MARUYAMA: (TimeGrid.UNIFORM,),  # as published
    Solver.ANCESTRAL: (TimeGrid.UNIFORM, TimeGrid.QUADRATIC),
    Solver.DDIM: (TimeGrid.UNIFORM, TimeGrid.QUADRATIC),
    Solver.DPMPP_2M: (TimeGrid.UNIFORM, TimeGrid.QUADRATIC, TimeGrid.LOGSNR),
    Solver.DPMPP_2M_SDE: (TimeGrid.UNIFORM, TimeGrid.QUADRATIC, TimeGrid.LOGSNR),
}  # that suit the solver
ROUGHLY = QualityOptions(num_directions=128, num_resamples=1, interval_directions=1)  # to compare, without intervals
_ROUNDS = 3  # of the rough part
_KEPT = 3  # one in so many goes on to the next round, with so many times the samples
_FEWEST, _MOST = 16, 32  # samples of the first round
_ROUGH_SHARE, _UNCACHED_SHARE = 0.5, 0.1  # of the time
_LEAST_SAVING = 8  # steps for each refresh
_LEAST_JUDGED = 32  # samples; fewer are not worth a distance


@dataclass(frozen=True)
class ParetoOptions:
    """Which ways, judged by what, on how much, for how long."""

    bundle: Path
    reference: Path  # npz with `train` and `test`, or any npz or npy of real series
    also: tuple[Path, ...] = ()  # bundles of the same checkpoint in other precisions
    checkpoint: Path | None = None  # the one the bundle was exported from, for the PyTorch rival
    part: str | None = None  # of the reference that judges; None: the larger one, which tells ways apart best
    solvers: tuple[str, ...] = tuple(Solver)
    steps: tuple[int, ...] = (4, 8, 16, 32, 100, 1000)
    refreshes: tuple[int, ...] = (1, 2, 4, 8)
    priors: tuple[float, ...] = (0.2, 0.45, 0.75, 0.9)  # signal-to-noise below which no network is asked
    most_passes: int = 32  # what costs more is not a candidate
    finalists: int = 10
    rough_only: bool = False  # no second part: rows as they stand after the first
    num_samples: int = 500  # of a finalist, if the time allows
    uncached: tuple[Path, ...] = ()  # files of uncached samples drawn before, by `e2crf sample --uncached`
    uncached_steps: int = DEFAULT_STEPS
    uncached_solver: str = DEFAULT_SOLVER
    equal_within: float = 0.02  # the best is the fastest whose distance is larger by no more than this share
    minutes: float = 20.0  # aimed at, on the machine it runs on
    sampling_batch: int = 64  # for quality
    batch_size: int = 1  # for cost
    seed: int = 0
    threads: int | None = None
    race: RaceOptions = field(default_factory=lambda: RaceOptions(rounds=5))
    quality: QualityOptions = field(default_factory=QualityOptions)

    def __post_init__(self) -> None:
        for solver in (*self.solvers, self.uncached_solver):
            parse_word(Solver, solver, "solver")
        if self.part is not None:
            parse_word(Part, self.part, "part of the reference")
        for name in ("solvers", "steps", "refreshes", "priors"):
            require(len(getattr(self, name)) > 0, f"name at least one of {name}", getattr(self, name),
                    "leave it out for the usual ones")  # fmt: skip
        for name in ("steps", "refreshes"):
            require(
                min(getattr(self, name)) >= 1, f"{name} must be at least 1", getattr(self, name), "see the usual ones"
            )
        for name in ("most_passes", "finalists", "sampling_batch", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name), "keep the default")
        require(self.num_samples >= 2, "num_samples must be at least 2", self.num_samples, "500 is the default")
        require(0 < self.minutes < 1e4, "minutes must be positive", self.minutes, "20 is the default")

    def judges(self) -> Reference:
        """The real series that judge."""
        if self.part is not None:
            return read_reference(self.reference, Part(self.part), self.seed)
        parts = [read_reference(self.reference, part, self.seed) for part in Part]
        return max(parts, key=lambda part: len(part.series))


@dataclass(frozen=True)
class Candidate:
    """A way of sampling, and what it costs in full passes, known before it is drawn."""

    contender: Contender
    passes: float

    @property
    def name(self) -> str:
        """What its row is called."""
        one = self.contender
        grid = "" if one.grid == TimeGrid.UNIFORM else f" {one.grid}"
        return f"{one.solver}{grid} {one.steps}, {policy_in_words(one.cache)}"

    @property
    def is_plan(self) -> bool:
        """Whether it is the calibrated plan, which is judged whatever came of it roughly."""
        return isinstance(self.contender.cache, Plan)


def candidates(model: Model, options: ParetoOptions) -> list[Candidate]:
    """All ways that are tried, the cheapest first; of those that ask the network at the same steps one."""
    found: dict[tuple[object, ...], Candidate] = {}
    for word in options.solvers:
        solver = Solver(word)
        for grid in GRIDS[solver]:
            for steps in options.steps:
                plain = Contender(Way.FEWER, model, None, steps, solver, options.seed, grid)
                for first, refreshes, candidate in _policies(plain, options):
                    found.setdefault((solver, grid, steps, first, *refreshes), candidate)
    if not options.rough_only and (plan := model.plan()) is not None:  # `calibrate` may be here to replace it
        plan.check(model.manifest, plan.steps, plan.solver, plan.grid)
        one = Contender(Way.CACHED, model, plan, plan.steps, plan.solver, options.seed, plan.grid)
        found["plan",] = Candidate(one, float(plan.measured.get("passes", len(plan.refreshes))))
    return sorted(found.values(), key=lambda one: one.passes)


def _policies(plain: Contender, options: ParetoOptions) -> Iterator[tuple[int, tuple[object, ...], Candidate]]:
    """Of one solver and time grid: the first network step, how refreshes follow it, and the candidate."""
    solver, grid = Solver(plain.solver), TimeGrid(plain.grid)
    steps = plain.model.schedule(solver, plain.steps, grid, Reuse.RESIDUAL)[2]
    for prior in options.priors:
        first = first_network_step(steps, prior)
        most = len(steps) - first
        if 0 < most <= options.most_passes:
            every = E2CRF(policy=PolicyName.NEVER, alpha_prior=prior)
            yield first, (1,), Candidate(replace(plain, cache=every), most)
        for count in options.refreshes:
            if most < _LEAST_SAVING * count:  # fewer steps do as much
                continue
            R = -(-most // count)
            for reuse in (Reuse.RESIDUAL, Reuse.RESIDUAL_LINEAR)[: -(-most // R)]:  # nothing to extrapolate from one
                cache = E2CRF(R=R, K=0, reuse=reuse, alpha_prior=prior)
                yield first, (R, reuse), Candidate(replace(plain, way=Way.INTERVAL, cache=cache), -(-most // R))


def distance_of(row: Row) -> float:
    """The quality of a row as one number, smaller is better; infinite if a sample is not finite, or none was judged."""
    over = row.sw_time_over_floor, row.sw_frequency_over_floor
    if row.num_left_out or over[0] is None or over[1] is None:
        return float("inf")
    return max(over[0], over[1])


def over_frontier(rows: Sequence[Row]) -> list[float]:
    """How many times as far each row is from the data as the best of those that are no slower: 1 on the frontier."""
    points = [(np.inf if row.ms_per_sample is None else row.ms_per_sample, distance_of(row)) for row in rows]
    over = []
    for cost, distance in points:
        best = min(other for price, other in points if price <= cost)
        over.append(distance / best if np.isfinite(distance) else np.inf)
    return over


def frontier(rows: Sequence[Row]) -> list[Row]:
    """The rows that no row as fast is better than, the fastest first."""
    on = [row for row, over in zip(rows, over_frontier(rows), strict=True) if over == 1.0]
    return sorted(on, key=lambda row: row.ms_per_sample or 0.0)


def best_of(rows: Sequence[Row], within: float) -> Row | None:
    """The fastest of the rows that are further from the data than the best by no more than a share; None of none."""
    on = frontier(rows)
    least = min((distance_of(row) for row in on), default=np.inf)
    return next((row for row in on if distance_of(row) <= (1 + within) * least), None)


Tried = tuple[Candidate, Row]


def search(model: Model, by: Reference, options: ParetoOptions, progress: Progress) -> list[Tried]:
    """The rough part: what was drawn in the last round, the nearest to the frontier first.

    The milliseconds of its rows are of whole batches, the network's and all between.
    """
    going = candidates(model, options)
    round_s = 60.0 * options.minutes * _ROUGH_SHARE / _ROUNDS
    total = sum(one.passes for one in going) * pass_seconds(model, options.sampling_batch)
    n = int(np.clip(round_s / total, _FEWEST, _MOST))
    for number in range(_ROUNDS):
        doing = f"trying {len(going)} ways on {n} samples"
        tried = list(_drawn_until(time.perf_counter() + round_s, going, n, by, options, doing, progress))
        ranked = ranked_by_frontier(tried)
        if number < _ROUNDS - 1:
            kept = ranked[: max(options.finalists, -(-len(ranked) // _KEPT))]
            kept += [one for one in ranked[len(kept) :] if one[0].is_plan]
            going, n = sorted((one for one, _ in kept), key=lambda one: one.passes), n * _KEPT
    return ranked


def ranked_by_frontier(tried: Sequence[Tried]) -> list[Tried]:
    """Those on the frontier first, then by how far they are over it; of equals the fastest first."""
    over = over_frontier([row for _, row in tried])
    order = sorted(range(len(tried)), key=lambda index: (over[index], tried[index][1].ms_per_sample or 0.0))
    return [tried[index] for index in order]


def _drawn_until(
    deadline: float, going: Sequence[Candidate], n: int, by: Reference, options: ParetoOptions, doing: str,
    progress: Progress,
) -> Iterator[Tried]:  # fmt: skip
    """Candidates in their order, until the time is over; always the first one, and the plan."""
    judge_by = yardstick(by, n, ROUGHLY)
    for number, candidate in enumerate(going):
        progress(doing, number / len(going))
        if number and time.perf_counter() > deadline and not candidate.is_plan:
            continue
        drawn = candidate.contender.draw(n, options.sampling_batch)
        row = row_of(candidate.name, candidate.contender, drawn, by=judge_by)
        yield candidate, replace(row, ms_per_sample=drawn.stats.seconds * 1e3 / n)


def call_seconds(model: Model, batch: int, num_tokens: int) -> float:
    """Seconds of one network call, the best of several."""
    call = ScoreNetwork(model.manifest, model.backend, batch, model.graphs).call(num_tokens)
    call.t[...] = 0.5
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        call.run()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def pass_seconds(model: Model, batch: int) -> float:
    """Seconds of a full pass of one sample in a batch."""
    return call_seconds(model, batch, model.manifest.network.num_tokens) / batch


def pareto(options: ParetoOptions, progress: Progress = lambda doing, share: None) -> Record:
    """Both parts; takes about `minutes`. An `OptionError` for a bundle in `also` of another checkpoint."""
    machine = describe_machine()  # before this adds its own load
    by = options.judges()
    with ExitStack() as stack:
        models = [stack.enter_context(load(path, threads=options.threads)) for path in (options.bundle, *options.also)]
        model = models[0]
        for other, path in zip(models[1:], options.also, strict=True):
            found, wanted = other.manifest.source.digest, model.manifest.source.digest
            require(found == wanted, f"{path} must be of the same checkpoint as {options.bundle}, {wanted[:12]}...",
                    f"{found[:12]}...", "export that checkpoint again with --dtype")  # fmt: skip
        uncached = Contender(Way.UNCACHED, model, None, options.uncached_steps, options.uncached_solver, options.seed)
        drawn_before = stored(options.uncached, uncached) if options.uncached else None
        tried = search(model, by, options, progress)
        chosen = ranked_by_frontier(tried)[: options.finalists]
        chosen += [one for one in tried if one[0].is_plan and one not in chosen]
        facts = asdict(options) | {"candidates": len(candidates(model, options)), "tried": len(tried)}
        if options.rough_only:
            rows = [row for _, row in chosen]
            return record_of(Kind.PARETO, model, facts | verdict_of(rows, options), machine, rows)
        pytorch = stack.enter_context(open_pytorch(options.checkpoint, model, options.batch_size))
        n = _affordable(chosen, len(models), options)
        judge_by = yardstick(by, n, options.quality)
        rivals = {uncached.name: uncached}
        rows = [_uncached_row(uncached, drawn_before, judge_by, n, options, progress)]
        for number, (candidate, _) in enumerate(chosen):
            for one in models:
                name = candidate.name + (f", {one.manifest.precision}" if options.also else "")
                progress(f"judging: {name}", number / len(chosen))
                rivals[name] = replace(candidate.contender, model=one)
                drawn = rivals[name].draw(n, options.sampling_batch)
                rows.append(row_of(name, rivals[name], drawn, by=judge_by))
        if pytorch is not None:
            plain = replace(uncached, model=pytorch.model)
            rivals = {plain.name: plain} | rivals
            rows.insert(0, Row(plain.name, plain.steps, plain.solver, plain.grid, rows[0].policy, "fp32",
                               passes=float(plain.steps), hit_rate=0.0))  # fmt: skip
        rows = timed(rows, rivals, options.batch_size, options.race, progress)
    verdict = verdict_of([row for row in rows if row.num_samples == n], options)
    level = judge_by.level
    record = record_of(Kind.PARETO, model, facts | {"num_samples": n} | verdict, machine,
                       [*rows, Row(FLOOR, **figures_of(level, level))])  # fmt: skip
    return replace(record, baseline=None if pytorch is None else pytorch.choice)


def verdict_of(rows: Sequence[Row], options: ParetoOptions) -> dict[str, object]:
    """The names on the frontier, the fastest first, and of the best."""
    best = best_of(rows, options.equal_within)
    return {"frontier": [row.rival for row in frontier(rows)], "best": None if best is None else best.rival}


def _affordable(chosen: Sequence[Tried], num_models: int, options: ParetoOptions) -> int:
    """How many samples of each finalist the second part has time for."""
    seconds = 60.0 * options.minutes * (1 - _ROUGH_SHARE - _UNCACHED_SHARE)
    each = sum(row.ms_per_sample or 0.0 for _, row in chosen) / 1e3 * num_models
    return max(min(_LEAST_JUDGED, options.num_samples), min(options.num_samples, int(seconds / each)))


def _uncached_row(
    uncached: Contender, drawn_before: tuple[Series, Row] | None, by: Yardstick, n: int, options: ParetoOptions,
    progress: Progress,
) -> Row:  # fmt: skip
    """The uncached sampler: samples drawn before, or as many as the time allows; no quality where that is too few."""
    if drawn_before is not None:
        series, row = drawn_before
        return replace(row, **figures_of(judge(series[:n], by.reference, by.options), by.level))
    each = uncached.steps * pass_seconds(uncached.model, options.sampling_batch)
    few = min(n, int(60.0 * options.minutes * _UNCACHED_SHARE / each))
    if few < min(n, _LEAST_JUDGED):
        return replace(bare_row(uncached), passes=float(uncached.steps), hit_rate=0.0)
    return row_of(uncached.name, uncached, uncached.draw(few, options.sampling_batch, progress), by=by)


def markdown_of(record: Record) -> str:
    """The rows as a table, and below it the frontier and the best."""
    options = record.options
    return "\n".join([
        markdown_table(record.rows),
        "",
        f"On the frontier, the fastest first: {'; '.join(options['frontier']) or 'none'}.",
        f"The fastest within {options['equal_within']:.0%} of the best quality: {options['best'] or 'none'}.",
        f"{options['candidates']} ways, {options['num_samples']} samples of each finalist.",
    ])  # fmt: skip


def main(
    bundle: BundleArgument,
    also: Annotated[list[Path] | None, typer.Option(help="Bundle of the same checkpoint in fp16 or bf16.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Real series (.npz); default: those of the run.")] = None,
    part: Annotated[str | None, typer.Option(help="Part that judges: test, train; default: the larger.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint; default: the run, where it is here.")] = None,
    steps: Annotated[str | None, typer.Option(help="Solver steps that are tried, as 8,32,1000.")] = None,
    solver: Annotated[str, typer.Option(help="Solvers that are tried.")] = ",".join(Solver),
    uncached: Annotated[
        list[Path] | None, typer.Option(help="Uncached samples drawn before (sample --uncached); may be repeated.")
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Series to judge finalists on.")] = 500,
    minutes: Annotated[float, typer.Option(help="Time it may take, about.")] = 20.0,
    rounds: Annotated[int, typer.Option(help="Rounds of timing, rivals in turn.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads within one operator.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the record; default: in the bundle's reports.")] = None,
    as_json: Json = False,
) -> None:
    """Find the ways of sampling that nothing else beats in both speed and quality.

    Example: python -m bench.pareto bundles/ecg --also bundles/ecg-fp16
    """
    run = read_manifest(bundle, verify_digests=False).source.run_id
    if (real := reference or real_series(run)) is None:
        raise OptionError(f"{bundle} must be judged by real series, found none of its run here; "
                          "name them with --reference")  # fmt: skip
    options = ParetoOptions(
        bundle,
        real,
        also=tuple(find_bundle(name) for name in also or ()),
        checkpoint=checkpoint_of_bundle(bundle, model).path if model or RUNS / str(run) in runs_in() else None,
        part=part,
        solvers=tuple(word.strip() for word in solver.split(",")),
        uncached=tuple(uncached or ()),
        num_samples=num_samples,
        minutes=minutes,
        race=RaceOptions(rounds=rounds),
        seed=seed,
        threads=threads,
    )
    if steps is not None:
        options = replace(options, steps=numbers(steps, "--steps", "8,32,1000"))
    with progress_on_terminal() as progress:
        record = pareto(options, progress)
    path = out or bundle / REPORTS / RECORD_FILE
    keep_previous(path)
    write_records(path, [record])
    print(record.to_line() if as_json else markdown_of(record))


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
