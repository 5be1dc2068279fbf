"""K and R against each other: what a full refresh every R steps and K low frequencies in between are worth.

    python -m bench.grid bundles/ecg                                  # interval refreshes, reusing the residual
    python -m bench.grid bundles/ecg --preset readme -K 0,5 -R 10,50  # the published form
    python -m bench.grid model_id=latest num_samples=20 num_diffusion_steps=100      # in upstream's words

Smaller R and larger K both recompute more. The published grid varies both in the published policy, which a
`--preset` names; without one each cell is the interval policy with its closed form. Every cell draws from the same
noise as the uncached row above them, so that the paired errors of cells compare where distances of few samples do not.

The record goes to `<bundle>/reports/grid.json`: the uncached row, then a row per cell, all R of the first K first;
the lists `K` and `R` are among its options.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from bench.cache import UNCACHED
from bench.contenders import Contender, Progress, Way
from bench.latency import RaceOptions
from bench.machine import describe_machine
from bench.quality import QualityOptions
from bench.records import Kind, Record, Row, write_records
from bench.reference import Reference
from bench.report import markdown_grid, progress_on_terminal
from bench.rows import REPORTS, judged, record_of, timed, yardstick
from bench.words import Named, opened, words_for
from runtime.cache.options import E2CRF, Preset
from runtime.errors import require
from runtime.sampler import DEFAULT_SOLVER, DEFAULT_STEPS, Model
from runtime.verbs.shared import Json, numbers

RECORD_FILE = "grid.json"
USUAL_K, USUAL_R = (0, 3, 5, 10, 19), (5, 10, 20, 50, 100)


@dataclass(frozen=True)
class GridOptions:
    """Which cells, and on how much."""

    K: tuple[int, ...] | None = None  # None: of the usual ones those that the model has
    R: tuple[int, ...] = USUAL_R
    preset: str | None = None  # None: interval refreshes with the residual
    num_samples: int = 48
    steps: int = DEFAULT_STEPS
    solver: str = DEFAULT_SOLVER
    seed: int = 0
    sampling_batch: int = 64  # for quality
    batch_size: int = 1  # for cost
    rounds: int = 2  # of timing; 0: none
    quality: QualityOptions = field(default_factory=QualityOptions)

    def __post_init__(self) -> None:
        require(self.K is None or len(self.K) > 0, "name at least one K", self.K, "leave it out for the usual ones")
        require(len(self.R) > 0, "name at least one R", self.R, "leave it out for the usual ones")
        require(self.num_samples >= 2, "num_samples must be at least 2", self.num_samples, "48 is the default")
        require(self.rounds >= 0, "rounds must not be negative", self.rounds, "0 times nothing")
        for R in self.R:
            self.cache(0, R)

    def cache(self, K: int, R: int) -> E2CRF:
        """The cache of a cell; an `OptionError` for a K or R that cannot be."""
        return E2CRF(R=R, K=K) if self.preset is None else E2CRF.preset(self.preset, R=R, K=K)

    def low_counts(self, model: Model) -> tuple[int, ...]:
        """The K of the grid; 0 alone for a model that computes whole steps only."""
        if self.K is not None:
            return self.K
        most = 0 if model.facts.tokens.obstacle is not None else model.facts.tokens.num_frequencies
        return tuple(K for K in USUAL_K if most >= K)


def cell(K: int, R: int) -> str:
    """What the row of a cell is called."""
    return f"K {K}, R {R}"


def grid(
    model: Model,
    reference: Reference,
    options: GridOptions,
    progress: Progress = lambda doing, share: None,
) -> Record:
    """Draw and judge every cell; an `OptionError`, before the first, for one that the model cannot do."""
    machine = describe_machine()  # before this adds its own load
    uncached = Contender(Way.UNCACHED, model, None, options.steps, options.solver, options.seed)
    low_counts = options.low_counts(model)
    rivals = {UNCACHED: uncached} | {
        cell(K, R): replace(uncached, way=Way.INTERVAL, cache=options.cache(K, R))
        for K in low_counts
        for R in options.R
    }
    by = yardstick(reference, options.num_samples, options.quality)
    drawn = judged(rivals, by, options.num_samples, options.sampling_batch, progress)
    rows = [row if row.rival == UNCACHED else replace(row, policy=row.rival) for row, _ in drawn]
    race = RaceOptions(options.rounds) if options.rounds else None
    rows = timed(rows, rivals, options.batch_size, race, progress)
    return record_of(Kind.GRID, model, asdict(options) | {"K": low_counts}, machine, rows)


def markdown_of(record: Record) -> str:
    """SW in the time domain and passes of every cell: K down, R across; the uncached row below."""
    rows = {row.rival: row for row in record.rows}
    K, R = record.options["K"], record.options["R"]
    cells = [[f"K {low}", *(_told(rows[cell(low, one)]) for one in R)] for low in K]
    matrix = markdown_grid(["SW time (passes)", *(f"R {one}" for one in R)], cells)
    return f"{matrix}\n\nUncached: {_told(rows[UNCACHED])}; {record.options['num_samples']} samples each."


def _told(row: Row) -> str:
    distance = "not finite" if row.sw_time is None else f"{row.sw_time:.4g}"
    diverged = f", {row.num_diverged} diverged" if row.num_diverged else ""
    return f"{distance} ({row.passes:.4g}{diverged})"


def _list(usual: Sequence[int]) -> str:
    return ",".join(str(one) for one in usual)


def main(
    model: Named,
    K: Annotated[str | None, typer.Option("-K", help=f"As {_list(USUAL_K)}; default: those the model has.")] = None,
    R: Annotated[str, typer.Option("-R", help="Steps between full refreshes.")] = _list(USUAL_R),
    preset: Annotated[str | None, typer.Option(help=f"Published set: {', '.join(Preset)}.")] = None,
    reference: Annotated[str | None, typer.Option(help="Real series (.npz); default: those of the run.")] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n")] = 48,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = DEFAULT_STEPS,
    solver: Annotated[str, typer.Option(help="Solver.")] = DEFAULT_SOLVER,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    rounds: Annotated[int, typer.Option(help="Rounds of timing, in turn; 0: none.")] = 2,
    threads: Annotated[int | None, typer.Option(help="Threads within one operator.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the record; default: in the bundle's reports.")] = None,
    as_json: Json = False,
) -> None:
    """Measure every K with every R.

    Example: python -m bench.grid bundles/ecg -K 0,5,19 -R 10,50,100
    """
    words = words_for(model, num_samples, steps, seed, solver)
    options = GridOptions(
        None if K is None else numbers(K, "-K", "0,5,10"), numbers(R, "-R", "10,50"), preset, words.num_samples,
        words.num_diffusion_steps, words.solver, words.random_seed, rounds=rounds,
    )  # fmt: skip
    with opened(words.model_id, reference, threads) as (bundle, real), progress_on_terminal() as progress:
        record = grid(bundle, real, options, progress)
        assert bundle.bundle is not None
        write_records(out or bundle.bundle / REPORTS / RECORD_FILE, [record])
    print(record.to_line() if as_json else markdown_of(record))


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
