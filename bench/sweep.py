"""One model under several caches: all draw from the same noise, are judged alike, and are timed in turn.

`ablation` and `grid` are such sweeps. They name the caches and say what they found; the rest stands here, with what
their commands take and how they end.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from bench.contenders import Contender, Progress, Way
from bench.latency import RaceOptions
from bench.machine import describe_machine
from bench.quality import QualityOptions
from bench.records import Curve, Record, Row, write_records
from bench.reference import Reference
from bench.report import progress_on_terminal
from bench.rows import REPORTS, judged, record_of, timed, yardstick
from bench.words import opened
from runtime.cache.policy import Cache
from runtime.errors import require
from runtime.output import keep_previous
from runtime.sampler import DEFAULT_SOLVER, DEFAULT_STEPS, Model, Samples

Options = TypeVar("Options", bound="SweepOptions")
RealSeries = Annotated[str | None, typer.Option(help="Real series (.npz); default: those of the run.")]
NumSamples = Annotated[int, typer.Option("--num-samples", "-n", help="Series of each cache.")]
Steps = Annotated[int, typer.Option(help="Solver steps.")]
SolverName = Annotated[str, typer.Option(help="Solver.")]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Rounds = Annotated[int, typer.Option(help="Rounds of timing, in turn; 0: none.")]
Threads = Annotated[int | None, typer.Option(help="Threads within one operator.")]
RecordFile = Annotated[Path | None, typer.Option(help="File of the record; default: in the bundle's reports.")]


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """On how much each cache is judged and timed."""

    num_samples: int = 64
    steps: int = DEFAULT_STEPS
    solver: str = DEFAULT_SOLVER
    seed: int = 0
    sampling_batch: int = 64  # for quality
    batch_size: int = 1  # for cost
    rounds: int = 2  # of timing; 0: none
    quality: QualityOptions = field(default_factory=QualityOptions)

    def __post_init__(self) -> None:
        enough = f"{type(self).num_samples} is the default"
        require(self.num_samples >= 2, "num_samples must be at least 2", self.num_samples, enough)
        require(self.rounds >= 0, "rounds must not be negative", self.rounds, "0 times nothing")


def over(
    kind: str,
    model: Model,
    reference: Reference,
    caches: Mapping[str, Cache | None],
    options: SweepOptions,
    progress: Progress,
    curves_of: Callable[[str, Samples], list[Curve]] = lambda name, drawn: [],
) -> Record:
    """Draw, judge and time caches by name, None for the uncached sampler, which comes first.

    `curves_of` takes from the samples of a cache what the record keeps as curves. An `OptionError`, before anything is
    drawn, for a cache that the model cannot do.
    """
    machine = describe_machine()  # before this adds its own load
    uncached = Contender(Way.UNCACHED, model, None, options.steps, options.solver, options.seed)
    rivals = {
        name: uncached if cache is None else replace(uncached, way=Way.INTERVAL, cache=cache)
        for name, cache in caches.items()
    }
    by = yardstick(reference, options.num_samples, options.quality)
    rows, curves = list[Row](), list[Curve]()
    for row, drawn in judged(rivals, by, options.num_samples, options.sampling_batch, progress):
        rows.append(row)
        curves += curves_of(row.rival, drawn)
    race = RaceOptions(options.rounds) if options.rounds else None
    rows = timed(rows, rivals, options.batch_size, race, progress)
    return replace(record_of(kind, model, asdict(options), machine, rows), curves=tuple(curves))


def run(
    measure: Callable[[Model, Reference, Options, Progress], Record],
    options: Options,
    model_id: str,
    reference: str | None,
    threads: int | None,
    out: Path | None,
    name: str,
) -> Record:
    """Measure a model, and keep the record under this name in the reports of its bundle, or in `out`."""
    with opened(model_id, reference, threads) as (model, real), progress_on_terminal() as progress:
        record = measure(model, real, options, progress)
        assert model.bundle is not None
        path = out or model.bundle / REPORTS / name
        keep_previous(path)
        write_records(path, [record])
    return record
