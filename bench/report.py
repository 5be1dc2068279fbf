"""A record as people read it: one table, its conditions in a sentence each, the verdict; then one line of JSON.

On a terminal the table is drawn by rich (in two parts where it is narrow), and where things were kept is said instead
of the JSON; anywhere else it is Markdown that can be pasted as it is. A column says once how its cells are written,
which fields of a row they are made of, and what they mean, so that the terminal, Markdown and the page (`page`) tell
the same. Progress goes to stderr and only to a terminal. `write_results` keeps what a bench made: table, pictures,
samples.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bench.compare import Comparison
from bench.contenders import Progress as Tell
from bench.contenders import Way, whole_passes
from bench.few_steps import most_tried
from bench.records import Kind, Record, Row, write_whole
from bench.steps import told
from runtime.output import write_samples
from runtime.solvers import TimeGrid

MISSING = ""
TABLE_FILE = "table.md"
_SOLVER = 1  # the columns up to this one may break into lines
_NUM_COST = 6  # columns of what a rival is and costs; the others are of quality
_BUSY = 0.5  # load for each core, from which on a machine was not idle
_WIDE = 112  # characters that all columns need side by side


@dataclass(frozen=True)
class Column:
    """One column of a table of rows."""

    title: str
    tell: Callable[[Row], str]
    fields: tuple[str, ...]  # of the row, that a cell is made of
    meaning: str


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number with its unit, nothing for what was not measured or is not finite."""
    return MISSING if value is None or not math.isfinite(value) else format(value, form) + unit


def milliseconds(value: float | None) -> str:
    """Three digits of milliseconds, all of them from 100 on."""
    return number(value, ".3g" if value is not None and value < 100 else ",.0f")


def times(value: float | None) -> str:
    """How many times faster, to three digits."""
    return number(value, ".3g", "x") if value is None or value < 999.5 else f"{float(f'{value:.3g}'):,.0f}x"


def distance(value: float | None, low: float | None, high: float | None) -> str:
    """A distance ± half its interval, to two digits of the half width."""
    if value is None or low is None or high is None or not math.isfinite(value + low + high):
        return MISSING
    half = (high - low) / 2
    decimals = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 3
    return f"{value:.{decimals}f} ± {half:.{decimals}f}"


def _sliced(row: Row, domain: str) -> str:
    """A distance, and that of the cached row on as many samples where this one is of fewer."""
    told = distance(*(getattr(row, name) for name in _domain(domain)))
    alike = number(getattr(row, f"cached_sw_{domain}"), ".3g")
    return f"{told} ({alike})" if told and alike else told


def solver_and_steps(row: Row) -> str:
    """Solver, time grid where it is not the uniform one, and steps."""
    grid = row.grid if row.grid != TimeGrid.UNIFORM else None
    return " ".join(str(part) for part in (row.solver, grid, row.steps) if part is not None)


SCALED = "* timed over fewer steps and scaled up."


def is_scaled(row: Row) -> bool:
    """Whether the time of a row was measured over fewer steps and scaled up."""
    return row.ms_per_sample is not None and (row.measured_steps or 0) < (row.steps or 0)


def _interval(row: Row) -> str:
    low, high = milliseconds(row.low_ms_per_sample), milliseconds(row.high_ms_per_sample)
    return f"{low} to {high}" if low and high else MISSING


def _events(row: Row) -> str:
    return ", ".join(f"{name} {count:.3g}" for name, count in (row.events or {}).items())


def _domain(name: str) -> tuple[str, ...]:
    return f"sw_{name}", f"sw_{name}_low", f"sw_{name}_high"


def _plain(title: str, field: str, meaning: str, form: str = ".3g") -> Column:
    return Column(title, lambda row: number(getattr(row, field), form), (field,), meaning)


MAIN = (
    Column("rival", lambda row: row.rival, ("rival",), "what was run, or a yardstick"),
    Column("solver, steps", solver_and_steps, ("solver", "grid", "steps"),
           "how the trajectory from noise to series is solved, on which times unless even, in how many steps"),
    Column("ms per sample", lambda row: milliseconds(row.ms_per_sample) + ("*" if is_scaled(row) else ""),
           ("ms_per_sample", "measured_steps"), "milliseconds for one series, median over rounds"),
    Column("faster", lambda row: times(row.speedup), ("speedup",),
           "than the first row: its quickest round over this one's"),
    Column("passes", lambda row: number(row.passes, ".4g"), ("passes",),
           "what a sample asks of the network, in whole passes of it"),
    Column("hit rate", lambda row: number(row.hit_rate, ".1%"), ("hit_rate",),
           "share of the tokens, over all steps, that were not recomputed"),
    Column("SW time", lambda row: _sliced(row, "time"), (*_domain("time"), "cached_sw_time"),
           "sliced Wasserstein-2 distance to real series, data units, ± half its interval; smaller is better, and "
           "smaller for more samples: of a row of fewer, E2-CRF's on as many stands in parentheses"),
    Column("SW frequency", lambda row: _sliced(row, "frequency"), (*_domain("frequency"), "cached_sw_frequency"),
           "the same distance between spectra"),
    Column("paired error", lambda row: number(row.paired_error, ".2g"), ("paired_error",),
           "median RMS between the same samples, in standard deviations of the data: uncached against PyTorch, "
           "caches against uncached"),
    Column("diverged", lambda row: MISSING if row.num_samples is None else f"{row.num_diverged} of {row.num_samples}",
           ("num_diverged", "num_samples", "num_left_out"), "samples far larger than any real one, or not finite"),
)  # fmt: skip
COLUMNS = tuple(column.title for column in MAIN)

DETAILS = (
    MAIN[0],
    Column("cache", lambda row: row.policy or MISSING, ("policy",), "which cache, in words"),
    Column("precision", lambda row: row.precision or MISSING, ("precision",), "of the network"),
    Column("interval of ms", _interval, ("low_ms_per_sample", "high_ms_per_sample"), "of the median over rounds"),
    Column("p90 ms", lambda row: milliseconds(row.p90_ms_per_sample), ("p90_ms_per_sample",),
           "nine trajectories of ten are faster"),
    Column("p99 ms", lambda row: milliseconds(row.p99_ms_per_sample), ("p99_ms_per_sample",),
           "99 trajectories of 100 are faster"),
    Column("in the network", lambda row: number(row.network_share, ".1%"), ("network_share",),
           "share of the time; the rest is launches, the solver and Python"),
    Column("cache MB", lambda row: number(None if row.cache_bytes is None else row.cache_bytes / 1e6, ".3g"),
           ("cache_bytes",), "memory of cached keys and values"),
    _plain("SW time / floor", "sw_time_over_floor", "1 is as close as real series are to each other"),
    _plain("SW time, POT", "sw_time_pot", "root of the mean of squares, as the library POT takes it"),
    _plain("marginal time", "marginal_time", "mean Wasserstein-2 distance of single time steps"),
    _plain("marginal time, POT", "marginal_time_pot", "the same by the root of the mean of squares"),
    _plain("SW frequency / floor", "sw_frequency_over_floor", "1 is as close as real series are to each other"),
    _plain("SW frequency, POT", "sw_frequency_pot", "root of the mean of squares, as the library POT takes it"),
    _plain("marginal frequency", "marginal_frequency", "mean Wasserstein-2 distance of single tokens"),
    _plain("marginal frequency, POT", "marginal_frequency_pot", "the same by the root of the mean of squares"),
    _plain("spectral", "spectral", "distance of the spectra: how energy is spread over frequencies"),
    _plain("autocorrelation", "autocorrelation", "distance of the autocorrelations: how a step depends on earlier"),
    Column("events", _events, ("events",), "steps by what was done in them, per sample"),
)  # fmt: skip


def cells_of(row: Row) -> list[str]:
    """The cells of a row, in the order of `COLUMNS`."""
    return [column.tell(row) for column in MAIN]


def details_of(rows: Iterable[Row]) -> tuple[Column, ...]:
    """The columns of `DETAILS` that have anything to tell of these rows; none if only names are left."""
    rows = tuple(rows)
    columns = tuple(column for column in DETAILS if any(column.tell(row) for row in rows))
    return columns if len(columns) > 1 else ()


def conditions_of(record: Record) -> list[str]:
    """What was measured and where, a sentence each."""
    options, machine = record.options, record.machine
    tokens, channels, layers, width = (
        at(record.model, "network", name) for name in ("num_tokens", "num_channels", "num_layers", "d_model")
    )
    facts = [
        (at(record.model, "source", "data"), "{}"),
        (tokens, "N = {}"),
        (channels, "C = {}"),
        (layers, "{} layers" + (f" of width {width}" if width is not None else "")),
    ]
    timing = [
        (options.get("solver"), "{}"),
        (options.get("batch_size"), "batch {}"),
        (at(options, "race", "rounds"), "median of {} interleaved rounds"),
    ]
    quality = [
        (options.get("num_samples"), "quality on {} samples"),
        (options.get("part"), "against the {} series"),
    ]
    told_parts = [
        ", ".join(form.format(value) for value, form in facts if value is not None),
        ", ".join(form.format(value) for value, form in timing if value is not None),
        " ".join(form.format(value) for value, form in quality if value is not None),
    ]
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    load = "" if machine.load_average is None else f", load {machine.load_average} before"
    torch = f"; PyTorch with {record.baseline}" if record.baseline else ""
    gpu = f", {machine.gpu}" if machine.gpu else ""
    return [
        *([sentence + "."] if (sentence := "; ".join(part for part in told_parts if part)) else []),
        f"{machine.cpu}{gpu}, {machine.num_usable_cores} cores{load}; {libraries}{torch}.",
    ]


def notes_of(record: Record) -> list[str]:
    """The sentences under the table: conditions, how to read it, verdict."""
    level = at(record.options, "quality", "level")
    interval = f"its {level:.0%} interval" if isinstance(level, float) else "its interval"
    notes = [
        *conditions_of(record),
        f"SW: sliced Wasserstein-2 in data units, ± half {interval} over samples. Paired error: median RMS between "
        "the same samples in data std, uncached against PyTorch and E2-CRF against uncached.",
        *verdicts_of(record),
    ]
    if record.steps is not None:
        notes.append(told(record.steps))
    return notes + [f"FAILED: {failure}." for failure in record.failures]


def verdicts_of(record: Record) -> list[str]:
    """What the rows say beside their figures, a sentence each; failures are told apart from these."""
    notes = []
    if record.loss_time is not None and record.loss_frequency is not None:
        changes = [f"{loss.value:+.1%} ({loss.low:+.1%} to {loss.high:+.1%})"
                   for loss in (record.loss_time, record.loss_frequency)]  # fmt: skip
        notes.append(f"Caching changes SW by {changes[0]} in the time domain and by {changes[1]} "
                     "in the frequency domain.")  # fmt: skip
    rivals = [row.rival for row in record.rows]
    if any(row.same_as for row in record.rows):
        notes.append(
            "PyTorch, the split graphs and backends of a GPU draw the same samples, as their paired error in the timed "
            "batch shows: their quality is that of the row they repeat."
        )
    if record.kind == Kind.BENCH and rivals and not any(rival.endswith(Way.FEWER_AS_GOOD) for rival in rivals):
        notes.append(f"The best ways of taking few steps were not as good{_at_up_to(record)}.")
    load, cores = record.machine.load_average, record.machine.num_usable_cores
    if load is not None and load > _BUSY * cores:
        notes.append(f"As it began the load of the last minute was {load:g} on {cores} cores: what ran before it, or "
                     "others, who may have disturbed it.")  # fmt: skip
    if any(is_scaled(row) for row in record.rows):
        notes.append(SCALED)
    if left_out := [row for row in record.rows if row.num_left_out]:
        listed = ", ".join(f"{row.num_left_out} of {row.rival}" for row in left_out)
        notes.append(f"Not finite, so in no distance: {listed}.")
    return [*notes, *record.notes]


def _at_up_to(record: Record) -> str:
    """How many passes of few steps were tried, where a record tells."""
    most = record.options.get("most_passes")
    cached = next((row.passes for row in record.rows if row.rival.endswith(Way.CACHED)), None)
    return "" if most is None or cached is None else f" at up to {most_tried(whole_passes(cached), most)} passes"


def at(facts: Any, *path: str) -> Any:
    """A value deep in facts, None where the way there ends."""
    for name in path:
        facts = facts.get(name) if isinstance(facts, dict) else None
    return facts


def markdown_of(record: Record) -> str:
    """The table, its notes and the details in Markdown."""
    parts = [markdown_table(record.rows), *(markdown_text(note) for note in notes_of(record))]
    if columns := details_of(record.rows):
        parts.append(markdown_table(record.rows, columns))
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Iterable[Row], columns: Sequence[Column] = MAIN) -> str:
    """Rows as a table in Markdown."""
    return markdown_grid(
        [column.title for column in columns], [[column.tell(row) for column in columns] for row in rows]
    )


def markdown_grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as a table in Markdown, the first column to the left and the others to the right."""
    told_rows = [[markdown_text(cell) for cell in cells] for cells in (titles, *rows)]
    lines = [told_rows[0], ["---"] + ["---:"] * (len(titles) - 1), *told_rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown_text(text: str) -> str:
    """Text that means itself in Markdown, on one line."""
    return re.sub(r"([\\`|\[\]<])", r"\\\1", " ".join(text.split()))


def show(record: Record, out: TextIO | None = None, places: Mapping[str, Path] | None = None) -> None:
    """Print a record of any kind: table and notes; last, on a terminal what was kept where, elsewhere the JSON line."""
    stream = out or sys.stdout
    if stream.isatty():
        console = Console(file=stream)
        narrow = [range(_NUM_COST), [0, *range(_NUM_COST, len(COLUMNS))]]
        for columns in [range(len(COLUMNS))] if console.width >= _WIDE else narrow:
            console.print(_table(record, columns))
        for note in notes_of(record):
            console.print(note, highlight=False, markup=False)
        stream.write("".join(f"{what}: {place}\n" for what, place in (places or {}).items()))
    else:
        stream.write(markdown_of(record) + "\n" + record.to_line() + "\n")


def _table(record: Record, columns: Iterable[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index in columns:
        side: Literal["left", "right"] = "right" if index else "left"
        title = COLUMNS[index].replace(" ", "\n")
        table.add_column(title, justify=side, no_wrap=index > _SOLVER, overflow="fold")
    for row in record.rows:
        cells = cells_of(row)
        table.add_row(*(Text(cells[index]) for index in columns))
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
