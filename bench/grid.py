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
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from bench import sweep
from bench.cache import UNCACHED
from bench.contenders import Progress
from bench.records import Kind, Record, Row
from bench.reference import Reference
from bench.report import markdown_grid
from bench.words import Named, words_for
from runtime.cache.options import E2CRF, Preset
from runtime.cache.policy import Cache
from runtime.errors import require
from runtime.sampler import DEFAULT_SOLVER, DEFAULT_STEPS, Model
from runtime.verbs.shared import Json, numbers

RECORD_FILE = "grid.json"
USUAL_K, USUAL_R = (0, 3, 5, 10, 19), (5, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class GridOptions(sweep.SweepOptions):
    """Which cells, and on how much."""

    K: tuple[int, ...] | None = None  # None: of the usual ones those that the model has
    R: tuple[int, ...] = USUAL_R
    preset: str | None = None  # None: interval refreshes with the residual
    num_samples: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.K is None or len(self.K) > 0, "name at least one K", self.K, "leave it out for the usual ones")
        require(len(self.R) > 0, "name at least one R", self.R, "leave it out for the usual ones")
        for name in ("K", "R"):
            given = getattr(self, name) or ()
            require(len(set(given)) == len(given), f"{name} must name each number once", given, "leave out the others")
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
    options = replace(options, K=options.low_counts(model))
    caches: dict[str, Cache | None] = {cell(K, R): options.cache(K, R) for K in options.K or () for R in options.R}
    record = sweep.over(Kind.GRID, model, reference, {UNCACHED: None} | caches, options, progress)
    uncached, *cells = record.rows
    return replace(record, rows=(uncached, *(replace(row, policy=row.rival) for row in cells)))


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
    context: typer.Context,
    model: Named,
    K: Annotated[str | None, typer.Option("-K", help=f"As {_list(USUAL_K)}; default: those the model has.")] = None,
    R: Annotated[str, typer.Option("-R", help="Steps between full refreshes.")] = _list(USUAL_R),
    preset: Annotated[str | None, typer.Option(help=f"Published set: {', '.join(Preset)}.")] = None,
    reference: sweep.RealSeries = None,
    num_samples: sweep.NumSamples = GridOptions.num_samples,
    steps: sweep.Steps = DEFAULT_STEPS,
    solver: sweep.SolverName = DEFAULT_SOLVER,
    seed: sweep.Seed = 0,
    rounds: sweep.Rounds = GridOptions.rounds,
    threads: sweep.Threads = None,
    out: sweep.RecordFile = None,
    as_json: Json = False,
) -> None:
    """Measure every K with every R.

    Example: python -m bench.grid bundles/ecg -K 0,5,19 -R 10,50,100
    """
    words = words_for(context, model, num_samples, steps, seed, solver)
    options = GridOptions(
        K=None if K is None else numbers(K, "-K", "0,5,10"), R=numbers(R, "-R", "10,50"), preset=preset,
        num_samples=words.num_samples, steps=words.num_diffusion_steps, solver=words.solver, seed=words.random_seed,
        rounds=rounds,
    )  # fmt: skip
    record = sweep.run(grid, options, words.model_id, reference, threads, out, RECORD_FILE)
    print(record.to_line() if as_json else markdown_of(record))


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
