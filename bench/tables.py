"""The tables of a report that are not rows of one record: across data sets, by K and R, of steps, stages and starts.

A table is the same for Markdown and for the page: titles with what they mean, and cells that keep, beside their text,
the unrounded number and the field it comes from.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from bench import published
from bench.contenders import Way
from bench.published import PAPER, PublishedRow
from bench.records import Record, Row, Stages, Start
from bench.report import MAIN, Column, at, markdown_grid, number, solver_and_steps, times
from bench.rows import FLOOR, MEAN_SAMPLE
from bench.steps import StepCosts


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and where it comes from."""

    text: str
    source: str = ""  # fields and their values, unrounded
    shade: float | None = None  # 0 to 1, of a matrix


@dataclass(frozen=True)
class Table:
    """Titles with their meaning, and rows of cells; the first cell of a row names it."""

    titles: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_grid([title for title, _ in self.titles], [[cell.text for cell in row] for row in self.rows])


def source_of(row: Row, fields: Iterable[str]) -> str:
    """The fields of a row that are there, unrounded: "sw_time 0.0421, sw_time_low 0.0398"."""
    values = {name: getattr(row, name) for name in fields}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def of_rows(rows: Iterable[Row], columns: Sequence[Column] = MAIN) -> Table:
    """Rows of a record, by these columns."""
    return Table(
        tuple((column.title, column.meaning) for column in columns),
        tuple(tuple(Cell(column.tell(row), source_of(row, column.fields)) for column in columns) for row in rows),
    )


def numbered(table: Table) -> Table:
    """The same with its rows numbered, for a chart to name them by."""
    rows = ((replace(row[0], text=f"{index}. {row[0].text}"), *row[1:]) for index, row in enumerate(table.rows, 1))
    return replace(table, rows=tuple(rows))


def row_of(record: Record, way: str) -> Row | None:
    """The row of a way of sampling on the backend, not of its twins on PyTorch, or of a yardstick; None without one."""
    found = (row for row in record.rows if row.rival == way or row.rival.endswith(f", {way}"))
    own = (row for row in found if row.same_as is None and not row.rival.startswith(("pytorch", "torch.compile")))
    return next(own, None)


def short_name(rival: str) -> str:
    """A rival without its backend, unless it is a twin on PyTorch or the split graphs."""
    backend, _, way = rival.partition(", ")
    return rival if backend in ("pytorch", "torch.compile") or backend.endswith(" split") else way or rival


def name_of(record: Record) -> str:
    """What a record calls its data, else its bundle."""
    return str(at(record.model, "source", "data") or record.options.get("bundle") or "a model")


def data_sets(records: Sequence[Record]) -> Table:
    """One row per bench: what caching saves on each data set, and what that costs in quality."""
    ways = {"uncached": Way.UNCACHED, "E2-CRF": Way.CACHED, "fewer steps": Way.FEWER, "floor": FLOOR,
            "mean sample": MEAN_SAMPLE}  # fmt: skip
    titles = [
        ("data", "what the model was trained on"),
        ("batch", "series that are sampled at once"),
        ("faster", "E2-CRF over the first row of its table, which is PyTorch where it took part"),
        ("faster, fewer steps", "the honest rival: as many passes and nothing reused"),
        ("few steps as good", "what the same takes to be as near to real series, where that was found"),
        ("as good, same prior phase", "what it takes in the prior phase of E2-CRF; a quick bench does not look"),
        ("passes", "what a sample of E2-CRF asks of the network, in whole passes; uncached it is one for each step"),
    ]
    fields = {domain: (f"sw_{domain}", f"sw_{domain}_low", f"sw_{domain}_high") for domain in ("time", "frequency")}
    titles += [(f"SW {domain}, {title}", f"sliced Wasserstein-2 distance in the {domain} domain: {way}; in parentheses "
                "of how many series, where not as many as of E2-CRF: fewer are further away")
               for domain in fields for title, way in ways.items()]  # fmt: skip
    titles.append(("diverged", "of the samples of E2-CRF"))
    titles += [(f"published SW {domain}", "uncached and cached in the E2-CRF paper: other models of all series")
               for domain in fields]  # fmt: skip
    rows = []
    for record in records:
        by_way = {title: row_of(record, way) or Row("") for title, way in ways.items()}
        cached, fewer = by_way["E2-CRF"], by_way["fewer steps"]
        batch = record.options.get("batch_size")
        cells = [
            Cell(name_of(record)),
            Cell("" if batch is None else str(batch), "options.batch_size"),
            *(Cell(times(row.speedup), source_of(row, ("speedup",))) for row in (cached, fewer)),
            _as_good(record, Way.FEWER_AS_GOOD, "none found"),
            _as_good(record, Way.FEWER_SAME_PRIOR, "none found" if record.options.get("quick") is False else ""),
            Cell(number(cached.passes, ".4g"), source_of(cached, ("passes",))),
        ]
        cells += [Cell(_distance(row, names[0], cached), source_of(row, (*names, "num_samples")))
                  for names in fields.values() for row in by_way.values()]  # fmt: skip
        diverged = "" if cached.num_samples is None else f"{cached.num_diverged} of {cached.num_samples}"
        cells.append(Cell(diverged, source_of(cached, ("num_diverged", "num_samples"))))
        rows.append((*cells, *(Cell(_published(name_of(record), domain), PAPER) for domain in fields)))
    return Table(tuple(titles), tuple(rows))


def _distance(row: Row, field: str, cached: Row) -> str:
    told = number(getattr(row, field), ".3g")
    return f"{told} ({row.num_samples})" if told and row.num_samples not in (1, cached.num_samples) else told


def _as_good(record: Record, way: Way, without: str) -> Cell:
    """Speed and passes of few steps of equal quality."""
    if (row := row_of(record, way)) is None:
        return Cell(without)
    told = f"{times(row.speedup)}, {number(row.passes, '.4g')} pass{'' if row.passes == 1 else 'es'}"
    return Cell(told, source_of(row, ("speedup", "passes")))


def _published(data: str, domain: str) -> str:
    pairs = {one.data: (getattr(one, domain), getattr(one, f"{domain}_cached")) for one in published.QUALITY}
    return "{:g} and {:g}".format(*pairs[data]) if data in pairs else ""


def as_published(rows: Iterable[PublishedRow]) -> Table:
    """What the paper printed of such rows, on ECG."""
    titles = (
        ("setting", "as the paper names it"),
        ("faster", "than no caching"),
        ("SW", "sliced Wasserstein distance"),
    )
    return Table(titles, tuple(
        (Cell(row.name), Cell(f"{row.speedup:.2f}x", PAPER), Cell(f"{row.sw:g}", PAPER)) for row in rows
    ))  # fmt: skip


def step_costs(costs: StepCosts) -> Table:
    """What each kind of step costs, whole, and against a full one."""
    titles = (
        ("step", f"of a batch of {costs.batch_size}"),
        ("ms", "median over rounds"),
        ("of a full step", "ratio within a round"),
        ("outside the network, ms", "decision, bookkeeping, solver"),
        ("by split graphs, ms", "one call per part of the network instead of one for all"),
    )

    def row(name: str, ms: str, over: str = "", outside: str = "", split: str = "") -> tuple[Cell, ...]:
        def cell(field: str) -> Cell:
            value = getattr(costs, field) if field else None
            return Cell(number(value, ".3g"), "" if value is None else f"steps.{field} {value}")

        ratio = cell(over)
        return (Cell(name), cell(ms), Cell(f"1/{ratio.text}" if ratio.text else "", ratio.source), cell(outside),
                cell(split))  # fmt: skip

    low = row(f"{costs.num_low_tokens} tokens", "low_ms", "full_over_low", "python_of_low_ms", "split_low_ms")
    return Table(titles, (
        row("full", "full_ms", "", "python_of_full_ms", "split_full_ms"),
        *([low] if costs.low_ms is not None else []),
        row("empty", "empty_ms", "full_over_empty"),
        row("empty among many", "coasting_ms"),
    ))  # fmt: skip


STAGES = ("selection", "embed", "layers", "head", "update", "python")
_STAGE_MEANINGS = ("policy and signals", "tokens in", "the transformer", "tokens out",
                   "solver, and what is kept of the prediction", "all else")  # fmt: skip


def parts_of(one: Stages) -> list[float]:
    """Milliseconds of each of `STAGES`."""
    return [getattr(one, f"{name}_ms") for name in STAGES]


def stages(found: Iterable[Stages]) -> Table:
    """Milliseconds per step by stage."""
    titles = zip((f"{name} ms" for name in STAGES), _STAGE_MEANINGS, strict=True)
    return Table(
        (("step", "which kind of step"), *titles, ("sum ms", "of the medians")),
        tuple(
            (
                Cell(one.step),
                *(Cell(f"{ms:.3g}", f"{name}_ms {ms}") for name, ms in zip(STAGES, parts_of(one), strict=True)),
                Cell(f"{sum(parts_of(one)):.3g}"),
            )
            for one in found
        ),
    )


def starts(found: Iterable[Start]) -> Table:
    """What stands before the first sample, by rival."""
    titles = (
        ("rival", "measured in a process of its own"),
        ("build s", "once per model: export of graphs or engines, compilation; empty: nothing to build"),
        ("load s", "imports, opening, checking"),
        ("first sample s", "the first trajectory, allocation included"),
        ("steady s", "one of the next"),
        ("memory MB", "largest size of the process, as the operating system counts it"),
    )

    def seconds(one: Start, field: str) -> Cell:
        value = getattr(one, field)
        return Cell(number(value, ".3g"), "" if value is None else f"{field} {value}")

    fields = ("build_s", "load_s", "first_sample_s", "steady_s")
    return Table(titles, tuple(
        (Cell(one.rival), *(seconds(one, field) for field in fields),
         Cell(f"{one.peak_bytes / 1e6:,.0f}", f"peak_bytes {one.peak_bytes}"))
        for one in found
    ))  # fmt: skip


def matrices(record: Record) -> dict[str, Table]:
    """A grid record as matrices of K by R, one per measure, shaded by it; none without two of either."""
    by_place: dict[str, dict[tuple[float, float], Row]] = {}
    for row in record.rows:
        if (place := place_of(row)) is not None:
            by_place.setdefault(" ".join(filter(None, (solver_and_steps(row), row.precision))), {})[place] = row
    measures = (
        ("SW time", "sw_time", ".3g"),
        ("SW frequency", "sw_frequency", ".3g"),
        ("passes", "passes", ".4g"),
        ("ms per sample", "ms_per_sample", ".3g"),
        ("faster", "speedup", ".3g"),
    )
    found = {}
    for setting, rows in by_place.items():
        for title, field, form in measures:
            if any(getattr(row, field) is not None for row in rows.values()):
                beside = f" ({setting})" if len(by_place) > 1 else ""
                found[title + beside] = _matrix(rows, field, form)
    return found


def place_of(row: Row) -> tuple[float, float] | None:
    """K and R of a row, as its policy in words, else its name, tells them."""
    for text in (row.policy or "", row.rival):
        numbers = [re.search(rf"\b{name}\s*=?\s*(\d+(?:\.\d+)?)", text) for name in "KR"]
        if all(numbers):
            K, R = (float(found[1]) for found in numbers if found)
            return K, R
    return None


def _matrix(rows: dict[tuple[float, float], Row], field: str, form: str) -> Table:
    values = {place: getattr(row, field) for place, row in rows.items()}
    known = [math.log(value) for value in values.values() if value is not None and 0 < value < math.inf]
    low, high = min(known, default=0.0), max(known, default=0.0)

    def cell(K: float, R: float) -> Cell:
        value = values.get((K, R))
        if value is None or not math.isfinite(value):
            return Cell("")
        share = (math.log(value) - low) / (high - low) if value > 0 and high > low else 0.0
        better = share if field == "speedup" else 1.0 - share
        return Cell(format(value, form), f"{field} {value}", better)

    across = sorted({R for _, R in rows})
    titles = [
        ("K", "lowest frequencies that are recomputed"),
        *((f"R {R:g}", "full refresh every R steps") for R in across),
    ]
    return Table(tuple(titles), tuple(
        (Cell(f"{K:g}"), *(cell(K, R) for R in across)) for K in sorted({K for K, _ in rows})
    ))  # fmt: skip


def over_floor(row: Row) -> float | None:
    """The distance of a row in units of the floor, in the worse of the two domains; None if it was not judged."""
    time, frequency = row.sw_time_over_floor, row.sw_frequency_over_floor
    return None if time is None or frequency is None else max(time, frequency)


def frontier(record: Record) -> list[Row]:
    """The rows on the frontier of a record, as it names them, fastest first."""
    names = record.options.get("frontier")
    by_name = {row.rival: row for row in record.rows}
    return [by_name[name] for name in names if name in by_name] if isinstance(names, list) else []


FRONTIER = (
    MAIN[0],
    Column("precision", lambda row: row.precision or "", ("precision",), "of the network"),
    MAIN[2],
    MAIN[4],
    Column("SW / floor", lambda row: number(over_floor(row), ".3g"), ("sw_time_over_floor", "sw_frequency_over_floor"),
           "in the worse of the two domains; 1 is as close as real series are to each other"),
    *(column for column in MAIN if column.title in ("SW time", "SW frequency", "diverged")),
)  # fmt: skip
