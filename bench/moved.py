"""What moved between two records of one model: by how much, how sure that is, and whether it may.

    python -m bench.moved OLD.json NEW.json --max-regression 0.1
    e2crf bench bundles/ecg --compare OLD.json

A figure moved if it changed by more than its *noise*: the half widths of the two intervals, added as independent
errors are. Where a record has no interval of its milliseconds, the wider of p90 - median and 10 % stands for it. The
interval of a speed-up is of the quickest rounds, so that what slowed a round is not in it; where one of the two
records has none, a speed-up is as unsure in both as the milliseconds of the rival and of the first rival
together. Of passes, 1 % is noise; of counts of diverged samples, twice the root of both. The intervals of SW see
nothing of the two benches having drawn from the same noise, so that they err on the side of silence: smaller moves show
with more samples.

Not every pair of figures can be set side by side. Milliseconds are of one machine, while a speed-up, a ratio taken
within each run, outlives it. SW depends on the number of samples and on the real series that judge; the yardsticks of
a record are their fingerprint. A rival found by search, such as "fewer steps", may be another one today; only the
cached row stands for whatever the bundle's plan gives, and is followed through a new plan.
"""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.contenders import Way
from bench.records import Record, RecordError, Row, plain, read_records
from bench.spectra import CORRELATION_SLACK, SPECTRAL_SLACK
from runtime.command import run_as_command, say
from runtime.errors import require
from runtime.solvers import TimeGrid

UNSURE = 0.1  # of milliseconds without an interval
UNSURE_PASSES = 0.01
SAME_SERIES = 1e-6  # relative, between the distances of one yardstick in two records
COLUMNS = ("rival", "", "before", "now", "change", "noise", "verdict")


class Quantity(StrEnum):
    """What is followed from record to record."""

    FASTER = "faster"
    MILLISECONDS = "ms per sample"
    PASSES = "passes"
    SW_TIME = "SW time"
    SW_FREQUENCY = "SW frequency"
    SPECTRAL = "spectral distance"
    AUTOCORRELATION = "autocorrelation distance"
    DIVERGED = "diverged"


FIELDS = {
    Quantity.FASTER: "speedup",
    Quantity.MILLISECONDS: "ms_per_sample",
    Quantity.PASSES: "passes",
    Quantity.SW_TIME: "sw_time",
    Quantity.SW_FREQUENCY: "sw_frequency",
    Quantity.SPECTRAL: "spectral",
    Quantity.AUTOCORRELATION: "autocorrelation",
    Quantity.DIVERGED: "num_diverged",
}  # of `Row`
TIMED = (Quantity.FASTER, Quantity.MILLISECONDS)
SMOOTHNESS = {
    Quantity.SPECTRAL: SPECTRAL_SLACK,
    Quantity.AUTOCORRELATION: CORRELATION_SLACK,
}  # what they may grow by, as at the gate
JUDGED = (Quantity.SW_TIME, Quantity.SW_FREQUENCY, *SMOOTHNESS, Quantity.DIVERGED)
HELD = (Quantity.FASTER, *JUDGED)  # what may not get worse


class Verdict(StrEnum):
    """What to think of a move."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "within noise"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Move:
    """One figure of one rival in both records."""

    rival: str
    quantity: Quantity
    old: float
    new: float
    noise: float | None  # half width of new - old, in their unit; None if they cannot be compared
    verdict: Verdict
    why: str = ""  # it cannot be compared

    @property
    def change(self) -> float | None:
        """As a share of the old figure, None if that is 0."""
        return self.new / self.old - 1 if self.old else None


@dataclass(frozen=True)
class MovedOptions:
    """How much worse a figure may get."""

    max_regression: float = 0.1  # of speed-up and SW, as a share of the old figure

    def __post_init__(self) -> None:
        limit = self.max_regression
        require(limit >= 0, "max_regression must not be negative", limit, "0.1 allows 10 %, inf everything")


@dataclass(frozen=True)
class Moved:
    """Two records set against each other."""

    moves: tuple[Move, ...]
    notes: tuple[str, ...]  # sentences: what was compared, and what could not be
    failures: tuple[str, ...]  # sentences; none: nothing got worse that may not


@dataclass(frozen=True)
class Setting:
    """What two records must share to be compared at all; None where a kind of record has no such option."""

    kind: str
    model: str  # the digest of its checkpoint
    solver: str | None
    steps: int | None
    batch: int | None


def setting_of(record: Record) -> Setting:
    """The setting of a record; a `RecordError` if it does not name its model."""
    try:
        digest = record.model["source"]["digest"]
    except (KeyError, TypeError) as error:
        raise RecordError(f"the record of {record.created} does not name its model; run the bench again") from error
    options = record.options
    return Setting(record.kind, digest, options.get("solver"), options.get("steps"), options.get("batch_size"))


def read_old(path: Path, setting: Setting) -> Record:
    """The newest, last record of a file; a sentence if it is damaged, or of something else than `setting`."""
    records = read_records(path)
    require(bool(records), f"{path} must hold a record", "none", "make one with `e2crf bench`")
    require_alike(setting_of(records[-1]), setting)
    return records[-1]


def require_alike(old: Setting, new: Setting) -> None:
    """Raise an `OptionError` that names the first thing in which two settings differ."""
    for name, now in asdict(new).items():
        before = getattr(old, name)
        found = f"{str(before)[:14]} before and {str(now)[:14]} now"  # digests are long
        require(before == now, f"both records must be of one {name}", found, f"compare with one of the same {name}")


def moved(old: Record, new: Record, options: MovedOptions | None = None) -> Moved:
    """Set every figure of `new` against that of `old`; `OptionError` if they are of different settings."""
    options = options or MovedOptions()
    require_alike(setting_of(old), setting_of(new))
    moves = tuple(move for pair in _pairs(old, new) for move in _moves(old, new, *pair))
    failures = (*(_failure(move, options) for move in moves if _fails(move, options)), *_lost(old, new))
    verdicts = [move.verdict for move in moves]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict)
    return Moved(moves, (f"{counts}.", *_notes(old, new)), failures)


def _rivals(record: Record) -> dict[str, Row]:
    """The rows that sample, by a name that no two of them share."""
    rows = [row for row in record.rows if row.steps is not None]  # the others are yardsticks
    names = [row.rival for row in rows]
    return {row.rival if names.count(row.rival) == 1 else f"{row.rival}, {_way(row)}": row for row in rows}


def _pairs(old: Record, new: Record) -> Iterator[tuple[str, Row, Row]]:
    before = _rivals(old)
    for name, row in _rivals(new).items():
        if name in before:
            yield name, before[name], row


def _way(row: Row) -> str:
    """How a row sampled, in words."""
    grid = row.grid if row.grid != TimeGrid.UNIFORM else None
    return " ".join(str(part) for part in (row.solver, grid, row.steps, row.policy, row.precision) if part is not None)


def _is_same_way(old: Row, new: Row) -> bool:
    """Whether two rows sampled alike, as far as both records tell."""

    def known(row: Row) -> tuple[object, ...]:
        return row.solver, row.steps, row.grid or TimeGrid.UNIFORM, row.policy, row.precision

    return all(one == other or None in (one, other) for one, other in zip(known(old), known(new), strict=True))


def _is_cached(row: Row) -> bool:
    return row.rival.endswith(f", {Way.CACHED}")


def _lost(old: Record, new: Record) -> Iterator[str]:
    """What was known of the cached row, and is not any more: nobody can say that it did not get worse."""
    for row in (row for row in old.rows if _is_cached(row) and row.same_as is None):
        now = next((one for one in new.rows if one.rival == row.rival), Row(row.rival))
        fields = {str(quantity): FIELDS[quantity] for quantity in HELD}
        if lost := [name for name, at in fields.items() if getattr(row, at) is not None and getattr(now, at) is None]:
            yield f"{row.rival}: without {', '.join(lost)}, which the record of before has; run the bench again"


def _moves(old: Record, new: Record, name: str, before: Row, now: Row) -> Iterator[Move]:
    for quantity, field in FIELDS.items():
        values = getattr(before, field), getattr(now, field)
        if None in values or (quantity is Quantity.FASTER and now is new.rows[0]):  # the first is 1x by definition
            continue
        noise = math.hypot(*_halves(quantity, (before, old.rows[0]), (now, new.rows[0])))
        change = values[1] - values[0]
        if why := _obstacle(quantity, old, new, before, now):
            yield Move(name, quantity, *values, None, Verdict.NOT_COMPARABLE, why)
        elif abs(change) <= noise:
            yield Move(name, quantity, *values, noise, Verdict.NOISE)
        else:
            is_better = (change > 0) == (quantity is Quantity.FASTER)
            yield Move(name, quantity, *values, noise, Verdict.BETTER if is_better else Verdict.WORSE)


def _obstacle(quantity: Quantity, old: Record, new: Record, before: Row, now: Row) -> str:
    """Why two figures cannot be compared, empty if they can."""
    if not (_is_same_way(before, now) or _is_cached(now)):
        return f"{_way(before)} before"
    if quantity in TIMED and old.options.get("threads") != new.options.get("threads"):
        return "other number of threads"
    if quantity is Quantity.FASTER and old.rows[0].rival != new.rows[0].rival:
        return f"faster than {old.rows[0].rival} before"
    if quantity is Quantity.MILLISECONDS and _computer(old) != _computer(new):
        return "other machine"
    if quantity in JUDGED and before.num_samples != now.num_samples:
        return f"of {before.num_samples} samples before, of {now.num_samples} now"
    if quantity in JUDGED and not _is_same_judge(old, new):
        return "other real series, or judged otherwise"
    return ""


def _computer(record: Record) -> tuple[object, ...]:
    machine = record.machine
    return machine.cpu, machine.num_cores, machine.num_usable_cores, machine.gpu


def _is_same_judge(old: Record, new: Record) -> bool:
    """Whether the same real series judged both, in the same way: yardsticks of as many series score the same."""
    before, now = _yardsticks(old), _yardsticks(new)
    return all(old.options.get(name) == new.options.get(name) for name in ("part", "quality")) and all(
        math.isclose(one, other, rel_tol=SAME_SERIES)
        for key in before.keys() & now.keys()
        for one, other in zip(before[key], now[key], strict=True)
    )


def _yardsticks(record: Record) -> dict[tuple[object, ...], tuple[float, float]]:
    yardsticks = (row for row in record.rows if row.steps is None)
    return {(row.rival, row.num_samples): (row.sw_time or 0, row.sw_frequency or 0) for row in yardsticks}


def _halves(quantity: Quantity, *rows: tuple[Row, Row]) -> list[float]:
    """Half the interval of a figure that is there, in its unit, of each row beside the first of its record."""
    if quantity is Quantity.FASTER:
        own = [_half_of(row.low_speedup, row.high_speedup) for row, _ in rows]
        if all(own):
            return own
    return [_half(quantity, row, first) for row, first in rows]


def _half(quantity: Quantity, row: Row, first: Row) -> float:
    match quantity:
        case Quantity.FASTER:
            return (row.speedup or 0) * math.hypot(_share(row), _share(first))
        case Quantity.MILLISECONDS:
            return (row.ms_per_sample or 0) * _share(row)
        case Quantity.PASSES:
            return (row.passes or 0) * UNSURE_PASSES
        case Quantity.SW_TIME:
            return _half_of(row.sw_time_low, row.sw_time_high)
        case Quantity.SW_FREQUENCY:
            return _half_of(row.sw_frequency_low, row.sw_frequency_high)
        case Quantity.SPECTRAL | Quantity.AUTOCORRELATION:
            return SMOOTHNESS[quantity] / math.sqrt(2)  # of two together what the gate allows
        case Quantity.DIVERGED:
            return 2 * math.sqrt(row.num_diverged or 0)  # of a count


def _half_of(low: float | None, high: float | None) -> float:
    """Half an interval; 0 if there is none."""
    return 0.0 if low is None or high is None else max(0.0, (high - low) / 2)


def _share(row: Row) -> float:
    """Half the interval of the milliseconds as a share of them."""
    median = row.ms_per_sample
    if not median:
        return UNSURE
    if half := _half_of(row.low_ms_per_sample, row.high_ms_per_sample):
        return half / median
    return max(UNSURE, ((row.p90_ms_per_sample or 0) - median) / median)


def _fails(move: Move, options: MovedOptions) -> bool:
    if move.verdict is not Verdict.WORSE or move.quantity not in HELD:
        return False
    return move.quantity in (*SMOOTHNESS, Quantity.DIVERGED) or abs(move.change or math.inf) > options.max_regression


def _failure(move: Move, options: MovedOptions) -> str:
    cells = dict(zip(COLUMNS, _cells(move), strict=True))
    beyond = f"a noise of {cells['noise']}"
    if move.quantity not in (*SMOOTHNESS, Quantity.DIVERGED):  # any beyond noise are too many
        beyond += f" and the {options.max_regression:.1%} that are allowed"
    change = f" ({cells['change']})" if cells["change"] else ""
    return (
        f"{move.rival}: {move.quantity} went from {cells['before']} to {cells['now']}{change}, beyond {beyond}; "
        "run the bench again on a quiet machine, or find what changed between the two"
    )


def _notes(old: Record, new: Record) -> Iterator[str]:
    yield f"Before: {_origin(old)}. Now: {_origin(new)}."
    if _computer(old) != _computer(new):
        yield "Milliseconds are of one machine; what is faster is a ratio within each run."
    versions = old.machine.libraries, new.machine.libraries
    changed = sorted(name for name in versions[0] | versions[1] if versions[0].get(name) != versions[1].get(name))
    if changed:
        told = (f"{name} {versions[0].get(name, 'absent')}, now {versions[1].get(name, 'absent')}" for name in changed)
        yield f"Other versions: {'; '.join(told)}."
    for name, before, now in _pairs(old, new):
        if _is_cached(now) and not _is_same_way(before, now):
            yield f"{name} was {_way(before)}, and is {_way(now)}."
    rivals = list(_rivals(old)), list(_rivals(new))
    for when, names, others in (("before", *rivals), ("now", *reversed(rivals))):
        if alone := [name for name in names if name not in others]:
            yield f"Only {when}: {'; '.join(alone)}."
    yield (
        "Noise: half the intervals of both records together; of times without one, the wider of p90 - median and "
        f"{UNSURE:.0%}; of passes {UNSURE_PASSES:.0%}; of counts twice the root of both; of spectra and "
        "autocorrelations what the gate allows."
    )


def _origin(record: Record) -> str:
    machine = record.machine
    return f"{record.created}, {machine.cpu}, {machine.num_usable_cores} cores, load {machine.load_average}"


def facts_of(found: Moved) -> dict[str, Any]:
    """What moved, as JSON knows it."""
    moves = [asdict(move) | {"change": move.change} for move in found.moves]
    return {"moves": plain(moves), "notes": list(found.notes), "failures": list(found.failures)}


def show_moves(found: Moved, out: TextIO | None = None) -> None:
    """Print what moved: drawn on a terminal, Markdown elsewhere; notes and failures below."""
    stream = out or sys.stdout
    sentences = [*found.notes, *(f"FAILED: {failure}." for failure in found.failures)]
    if stream.isatty():
        console = Console(file=stream)
        console.print(_table(found.moves))
        for sentence in sentences:
            console.print(sentence, highlight=False, markup=False)
    else:
        stream.write("\n\n".join([_markdown(found.moves), *sentences]) + "\n")


def _markdown(moves: tuple[Move, ...]) -> str:
    lines = [list(COLUMNS), ["---", "---", "---:", "---:", "---:", "---:", "---"], *map(_cells, moves)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _table(moves: tuple[Move, ...]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, title in enumerate(COLUMNS):
        side: Literal["left", "right"] = "right" if 2 <= index <= 5 else "left"
        table.add_column(title, justify=side, no_wrap=0 < index < 6, overflow="fold")
    rival = ""
    for move in moves:
        cells = _cells(move)
        table.add_row("" if move.rival == rival else move.rival, *cells[1:])
        rival = move.rival
    return table


def _cells(move: Move) -> list[str]:
    """The cells of a move, in the order of `COLUMNS`."""
    share = move.noise / move.old if move.noise is not None and move.old else None
    return [
        move.rival,
        str(move.quantity),
        _figure(move.quantity, move.old),
        _figure(move.quantity, move.new),
        "" if move.change is None else f"{move.change:+.1%}",
        f"± {share:.1%}" if share is not None else "" if move.noise is None else f"± {move.noise:.2g}",
        f"{move.verdict}: {move.why}" if move.why else str(move.verdict),
    ]


def _figure(quantity: Quantity, value: float) -> str:
    """Three digits, and the unit of what is faster."""
    return f"{float(f'{value:.3g}'):,g}" + ("x" if quantity is Quantity.FASTER else "")


def main(
    old: Annotated[Path, typer.Argument(help="Record of before (.json).")],
    new: Annotated[Path, typer.Argument(help="Record of now.")],
    max_regression: Annotated[float, typer.Option(help="Fail if speed-up or SW got worse by a larger share.")] = 0.1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else.")] = False,
) -> None:
    """Say what moved between two records of one model, and fail if something got worse beyond its noise.

    Example: python -m bench.moved bench/results/ecg-published-cpu.json bundles/ecg/reports/bench.json
    """
    options = MovedOptions(max_regression)
    records = read_records(new)
    require(bool(records), f"{new} must hold a record", "none", "make one with `e2crf bench`")
    found = moved(read_old(old, setting_of(records[-1])), records[-1], options)
    if as_json:
        print(json.dumps(facts_of(found)))
    else:
        show_moves(found)
    for failure in found.failures:
        say(failure)
    if found.failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_as_command(main)
