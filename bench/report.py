"""A record as people read it: one table, its conditions in a sentence, the verdict; then one line of JSON.

On a terminal the table is drawn by rich (in two parts where it is narrow), anywhere else it is Markdown
that can be pasted as it is. Progress goes to stderr and only to a terminal. `write_results` keeps what a
bench made: table, pictures, samples.
"""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.compare import Comparison
from bench.contenders import Progress as Tell
from bench.contenders import Way
from bench.quality import Loss
from bench.records import Record, Row, write_whole
from bench.steps import told
from runtime.output import write_samples
from runtime.solvers import TimeGrid

COLUMNS = (
    "rival",
    "solver, steps",
    "ms per sample",
    "faster",
    "passes",
    "hit rate",
    "SW time",
    "SW frequency",
    "paired error",
    "diverged",
)
MISSING = ""
TABLE_FILE = "table.md"
_SOLVER = 1  # the columns up to this one may break into lines
_NUM_COST = 6  # columns of what a rival is and costs; the others are of quality
_WIDE = 112  # characters that all columns need side by side


def cells_of(row: Row) -> list[str]:
    """The cells of a row, in the order of `COLUMNS`."""
    return [
        row.rival,
        _steps(row),
        _milliseconds(row.ms_per_sample) + ("*" if (row.measured_steps or 0) < (row.steps or 0) else ""),
        _number(row.speedup, ".3g") + ("x" if row.speedup is not None else MISSING),
        _number(row.passes, ".4g"),
        _number(row.hit_rate, ".1%"),
        _distance(row.sw_time, row.sw_time_low, row.sw_time_high),
        _distance(row.sw_frequency, row.sw_frequency_low, row.sw_frequency_high),
        _number(row.paired_error, ".2g"),
        MISSING if row.num_samples is None else f"{row.num_diverged} of {row.num_samples}",
    ]


def notes_of(record: Record) -> list[str]:
    """The sentences under the table: conditions, how to read it, verdict."""
    options, network, machine = record.options, record.model["network"], record.machine
    libraries = ", ".join(f"{name} {number}" for name, number in machine.libraries.items())
    torch = f"; PyTorch with {record.baseline}" if record.baseline else ""
    notes = [
        f"{record.model['source']['data']}, N = {network['num_tokens']}, C = {network['num_channels']}, "
        f"{network['num_layers']} layers of width {network['d_model']}; {options['solver']}, "
        f"batch {options['batch_size']}, median of {options['race']['rounds']} interleaved rounds; "
        f"quality on {options['num_samples']} samples against the {options['part']} series.",
        f"{machine.cpu}, {machine.num_usable_cores} cores, load {machine.load_average} before; {libraries}{torch}.",
        f"SW: sliced Wasserstein-2 in data units, ± half its {options['quality']['level']:.0%} interval over "
        "samples. Paired error: median RMS between the same samples in data std, uncached against PyTorch "
        "and E2-CRF against uncached.",
        f"Caching changes SW by {_loss(record.loss_time)} in the time domain and by "
        f"{_loss(record.loss_frequency)} in the frequency domain.",
    ]
    if record.rows and not any(row.rival.endswith(Way.FEWER_AS_GOOD) for row in record.rows):
        notes.append("The best two ways of taking few steps were not as good at up to four times the passes.")
    if record.steps is not None:
        notes.append(told(record.steps))
    if any((row.measured_steps or 0) < (row.steps or 0) for row in record.rows):
        notes.append("* timed over fewer steps and scaled up.")
    if left_out := [row for row in record.rows if row.num_left_out]:
        listed = ", ".join(f"{row.num_left_out} of {row.rival}" for row in left_out)
        notes.append(f"Not finite, so in no distance: {listed}.")
    return notes + [f"FAILED: {failure}." for failure in record.failures]


def markdown_of(record: Record) -> str:
    """The table and its notes in Markdown."""
    return markdown_table(record.rows) + "\n\n" + "\n\n".join(notes_of(record)) + "\n"


def markdown_table(rows: Iterable[Row]) -> str:
    """Rows as a table in Markdown."""
    lines = [list(COLUMNS), ["---"] + ["---:"] * (len(COLUMNS) - 1), *(cells_of(row) for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def show(record: Record, out: TextIO | None = None) -> None:
    """Print a record: table and notes, and the JSON line last."""
    stream = out or sys.stdout
    if stream.isatty():
        console = Console(file=stream)
        narrow = [range(_NUM_COST), [0, *range(_NUM_COST, len(COLUMNS))]]
        for columns in [range(len(COLUMNS))] if console.width >= _WIDE else narrow:
            console.print(_table(record, columns))
        for note in notes_of(record):
            console.print(note, highlight=False, markup=False)
    else:
        stream.write(markdown_of(record) + "\n")
    stream.write(record.to_line() + "\n")


def _table(record: Record, columns: Iterable[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index in columns:
        side: Literal["left", "right"] = "right" if index else "left"
        title = COLUMNS[index].replace(" ", "\n")
        table.add_column(title, justify=side, no_wrap=index > _SOLVER, overflow="fold")
    for row in record.rows:
        cells = cells_of(row)
        table.add_row(*(cells[index] for index in columns))
    return table


def write_results(found: Comparison, folder: Path) -> list[Path]:
    """Write the samples, the pictures and, last, the table of a comparison; the files made."""
    from bench.pictures import draw_pictures  # matplotlib takes its time to load

    pictures = draw_pictures(found, folder)
    for name, drawn in found.drawn.items():
        write_samples(folder / f"{name}.npz", drawn, found.record.options)
    write_whole(folder / TABLE_FILE, markdown_of(found.record))
    return [*pictures, *(folder / f"{name}.npz" for name in found.drawn), folder / TABLE_FILE]


@contextmanager
def progress_on_terminal() -> Iterator[Tell]:
    """A progress bar on stderr for the length of the block; quiet where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda doing, share: bar.update(task, description=doing, completed=share)


def _steps(row: Row) -> str:
    """Solver, time grid where it is not the uniform one, and steps."""
    grid = row.grid if row.grid != TimeGrid.UNIFORM else None
    return " ".join(str(part) for part in (row.solver, grid, row.steps) if part is not None)


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _milliseconds(value: float | None) -> str:
    return _number(value, ".3g" if value is not None and value < 100 else ",.0f")


def _distance(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or low is None or high is None:
        return MISSING
    half = (high - low) / 2
    decimals = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 3  # two digits of the half width
    return f"{value:.{decimals}f} ± {half:.{decimals}f}"


def _loss(loss: Loss) -> str:
    return f"{loss.value:+.1%} ({loss.low:+.1%} to {loss.high:+.1%})"
