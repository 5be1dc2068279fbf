"""Records as one page: a self-contained HTML file and the same in Markdown.

    write_report([Path("bench/results"), Path("bundles/ecg")], Path("report"))   # report.html, report.md

A record becomes a `Section`, which says what is shown before anything is drawn: tables, figures, sentences and the
command that repeats it. The page and the Markdown are two ways of writing the same sections. The page asks nothing of
the network, runs no script and follows the reader's theme (`page.css`). Every table and figure names its record, every
cell keeps its unrounded figure as a tooltip, and the records themselves stand whole at the end. All that comes from a
record is text: it is checked before it is shown, and escaped where it is.
"""

import dataclasses
import json
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any

from bench import charts, published, tables
from bench.contenders import Way
from bench.records import Chart, Curve, Kind, Record, RecordError, Row, read_records, write_whole
from bench.report import (
    MAIN,
    at,
    conditions_of,
    details_of,
    markdown_text,
    milliseconds,
    number,
    solver_and_steps,
    times,
    verdicts_of,
)
from bench.rows import FLOOR, MEAN_SAMPLE, REPORTS
from bench.tables import Table, name_of, row_of
from export.manifest import MANIFEST_FILE

PAGE_FILE, SUMMARY_FILE = "report.html", "report.md"
MOST_PANELS, MOST_COLUMNS = 6, 3  # of generated series: one under the other, and side by side

WORDS = {
    "N, C": "time steps and channels of a series; its spectrum has as many tokens as it has steps",
    "uncached": "every step asks the network about every token: the reference for speed and quality",
    "E2-CRF": "the cached sampler: the network is asked at few steps, closed form and cache do the rest",
    "fewer steps": "no cache: a good solver with so few steps that it costs as many passes; the honest rival",
    "fewer steps, as good": "the cheapest such way whose samples are as close to real series as the cached ones",
    "fixed interval": "a cache that refreshes every so many steps, as often as E2-CRF but not where it matters most",
    "stale features": "the same refreshes, but reusing what the published code reuses",
    FLOOR: "real series held against other real series: the distance that sampling error alone makes",
    MEAN_SAMPLE: "the mean of all real series, over and over: what a model must beat to be worth anything",
}
_OWN = (Way.CACHED, "full")  # the rows that a reader looks for first
_LOOKS = {"real": 0, "uncached": 1, "baseline": 1, "e2-crf": 2, "cached": 2, "full": 2, "as good": 6, "fewer": 3,
          "interval": 4, "stale": 5, "pytorch": 7}  # fmt: skip


@dataclass(frozen=True)
class Filed:
    """A record, and where it was found."""

    record: Record
    name: str  # of the file, and the line where it holds several
    key: str  # of its section among the records of the page

    @property
    def made(self) -> str:
        """When, to the minute."""
        return self.record.created[:16].replace("T", " ") + " UTC"


@dataclass(frozen=True)
class Figure:
    """One chart and what it shows."""

    title: str
    caption: str
    draw: Callable[[str, str, str], str]  # key, title, description -> SVG
    description: str  # for those who do not see it
    large: bool = False


@dataclass(frozen=True)
class Section:
    """What is shown of one record, or of several together."""

    key: str
    title: str
    beside: str
    sources: tuple[Filed, ...]
    lead: str = ""
    first: tuple[tuple[str, Table], ...] = ()  # tables by caption, in sight
    side_by_side: bool = False
    notes: tuple[str, ...] = ()
    command: str = ""
    figures: tuple[Figure, ...] = ()
    folded: tuple[tuple[str, Table], ...] = ()
    failures: tuple[str, ...] = ()


def write_report(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write the page and its Markdown of records in files or folders into `out`; the files made.

    Of a bundle its `reports` are taken, of any other folder its `.json` and those of the bundles in it. A
    `RecordError`, before anything is written, for a file that is no record of this version, or if there are none.
    """
    filed = read_filed(paths)
    sections = list(sections_of(filed))
    written = {PAGE_FILE: html_of(sections, filed), SUMMARY_FILE: markdown_of(sections, filed)}
    for name, text in written.items():
        write_whole(out / name, text)
    return [out / name for name in written]


# --- reading ----------------------------------------------------------------------------------------


def read_filed(paths: Sequence[Path]) -> list[Filed]:
    """All records of files and folders, each once, by kind, data and time."""
    found: dict[str, tuple[Record, str]] = {}
    for path in dict.fromkeys(file for place in paths for file in _files(place)):
        records = read_records(path)
        for index, record in enumerate(records, 1):
            where = f"line {index} of {path}"
            if fault := _fault(Record, record, "the record") or _fault_of_meaning(record):
                raise RecordError(f"{where} is damaged ({fault}); run the bench again")
            folder = f"{path.parent.parent.name}/{REPORTS}/" if path.parent.name == REPORTS else ""
            name = f"{folder}{path.name}" + (f", line {index}" if len(records) > 1 else "")
            found.setdefault(record.to_line(), (record, name))
    if not found:
        places = ", ".join(map(str, paths)) or "nothing"
        raise RecordError(f"a report needs records, found none in {places}; make some with `e2crf bench`")
    order = list(Kind)
    by_kind = sorted(found.values(), key=lambda one: (order.index(Kind(one[0].kind)), name_of(one[0]), one[0].created))
    return [Filed(record, name, f"record-{index}") for index, (record, name) in enumerate(by_kind, 1)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    of_bundle = sorted(path.glob(f"{REPORTS}/*.json"))
    if (path / MANIFEST_FILE).exists():
        return of_bundle
    return [*sorted(path.glob("*.json")), *of_bundle, *sorted(path.glob(f"*/{REPORTS}/*.json"))]


def _fault(kind: Any, value: Any, name: str) -> str | None:
    """Where a value is not of its type, in words; `read_records` makes dataclasses but looks at no number."""
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if value is None else _fault(next(one for one in options if one is not NoneType), value, name)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        faults = (_fault(hint, getattr(value, field), field) for field, hint in hints.items())
        return next(filter(None, faults), None)
    if typing.get_origin(kind) is tuple:
        return next(filter(None, (_fault(options[0], one, name) for one in value)), None)
    wanted = {float: (int, float)}.get(kind, typing.get_origin(kind) or kind)
    if isinstance(value, wanted) and not isinstance(value, bool):
        return None
    return f"{name} must be {getattr(kind, '__name__', kind)}, found {str(value)[:40]!r}"


def _fault_of_meaning(record: Record) -> str | None:
    """What is of the right type and still cannot be shown."""
    if record.kind not in list(Kind):
        return f"its kind must be one of {', '.join(Kind)}, found {record.kind!r}"
    for curve in record.curves:
        if curve.chart not in list(Chart):
            return f"a curve must belong to one of {', '.join(Chart)}, found {curve.chart!r}"
        if len({len(values) for values in (curve.x, curve.y, curve.low, curve.high) if values is not None}) > 1:
            return f"the curve {curve.name!r} must have as many y as x"
    if record.recomputed is not None and len({len(row) for row in record.recomputed.share} | {0}) != 2:
        return "what was recomputed must be a matrix"
    return None


# --- what is shown ----------------------------------------------------------------------------------


def sections_of(filed: Sequence[Filed]) -> Iterator[Section]:
    """The sections of a page: what several benches have in common first, then one by one."""
    benches = tuple(one for one in filed if one.record.kind == Kind.BENCH)
    if len(benches) > 1:
        yield Section(
            "data-sets",
            "The data sets side by side",
            "what caching saves on each, and what it costs in quality; real series against real ones are the floor",
            benches,
            first=(("", tables.data_sets([one.record for one in benches])),),
            notes=tuple(note for one in benches if (note := _unlike_counts(one.record))),
        )
    makers = {Kind.BENCH: _bench, Kind.ABLATION: _ablation, Kind.GRID: _grid, Kind.PARETO: _pareto}
    for index, one in enumerate(filed, 1):
        section = makers[Kind(one.record.kind)](one)
        figures = (*section.figures, *_figures_of(one.record))
        yield dataclasses.replace(section, key=f"part-{index}", figures=figures, folded=_folded(section, one.record))


def _bench(one: Filed) -> Section:
    record, batch = one.record, one.record.options.get("batch_size")
    layers, width = (at(record.model, "network", name) for name in ("num_layers", "d_model"))
    facts = [f"batch {batch}" if batch is not None else "",
             f"{layers} layers of width {width}" if layers is not None else ""]  # fmt: skip
    return _section(
        one, "", ", ".join(filter(None, facts)), lead=_headline(record), first=(("", tables.of_rows(record.rows)),)
    )


def _ablation(one: Filed) -> Section:
    told = {True: "borne out", False: "not borne out", None: "cannot be said from these rows"}
    claims = one.record.options.get("claims")
    said = ([f"Claim: {claim}: {told.get(holds, str(holds))}." for claim, holds in claims.items()]
            if isinstance(claims, dict) else [])  # fmt: skip
    return _section(one, ": what each part of the policy is worth", "one part taken away at a time, same noise",
                    first=(("", tables.of_rows(one.record.rows)),), notes=said,
                    folded=(("As published, on ECG", tables.as_published(published.ABLATION)),))  # fmt: skip


def _grid(one: Filed) -> Section:
    matrices = tuple(tables.matrices(one.record).items())
    rows = tables.of_rows(one.record.rows)
    paper = "As published, on ECG", tables.as_published(published.GRID)
    beside = "K lowest frequencies between full refreshes every R steps; the stronger the colour, the better"
    return _section(one, ": K and R", beside,
                    first=matrices or (("", rows),), side_by_side=bool(matrices),
                    folded=(("All rows", rows), paper) if matrices else (paper,))  # fmt: skip


def _pareto(one: Filed) -> Section:
    record, rows = one.record, tables.of_rows(one.record.rows, tables.FRONTIER)
    best, chosen, within = tables.frontier(record), record.options.get("best"), record.options.get("equal_within")
    nearly = f" within {within:.0%} of the best quality" if isinstance(within, float) else " of nearly the best quality"
    return _section(
        one, ": speed against quality", f"{len(record.rows)} rows of one model",
        lead=f"The fastest way{nearly} is {chosen}." if chosen else "",
        first=(("Nothing as fast is better than these", tables.numbered(tables.of_rows(best, tables.FRONTIER))),)
        if best else (),
        folded=(("All ways", rows),), figures=tuple(_pareto_figure(record.rows, best)),
    )  # fmt: skip


def _section(one: Filed, title: str, beside: str, *, notes: Iterable[str] = (), **shown: Any) -> Section:
    record = one.record
    all_notes = (*notes, *verdicts_of(record), *conditions_of(record))
    return Section("", name_of(record) + title, beside, (one,), notes=all_notes, command=command_of(record),
                   failures=record.failures, **shown)  # fmt: skip


def _folded(section: Section, record: Record) -> tuple[tuple[str, Table], ...]:
    found = list(section.folded)
    if columns := details_of(record.rows):
        found.append(("More figures of each row", tables.of_rows(record.rows, columns)))
    if record.steps is not None:
        found.append(("What each kind of step costs", tables.step_costs(record.steps)))
    if record.stages:
        found.append(("Where the time of a step goes", tables.stages(record.stages)))
    if record.starts:
        found.append(("From nothing to the first sample", tables.starts(record.starts)))
    return tuple(found)


def _headline(record: Record) -> str:
    """What a bench found, in sentences for those who read one thing."""
    cached, uncached, fewer = (row_of(record, way) for way in (Way.CACHED, Way.UNCACHED, Way.FEWER))
    if cached is None or cached.ms_per_sample is None:
        return ""
    first = record.rows[0]
    said = f"E2-CRF draws a series in {milliseconds(cached.ms_per_sample)} ms"
    if cached.speedup is not None and first is not cached:
        said += f", {times(cached.speedup)[:-1]} times faster than {first.rival}"
    if cached.passes is not None and uncached is not None and uncached.passes is not None:
        said += (
            f", with {number(cached.passes, '.4g')} passes of the network instead of {number(uncached.passes, '.4g')}"
        )
    sentences = [said]
    if cached.sw_time is not None:
        floor = row_of(record, FLOOR)
        beside = [f"{name} {number(row.sw_time, '.3g')}" + _of(row, cached)
                  for name, row in (("uncached", uncached), ("real series to each other", floor))
                  if row is not None and row.sw_time is not None]  # fmt: skip
        sentences.append(f"Its distance to real series is {number(cached.sw_time, '.3g')}"
                         + (f" ({'; '.join(beside)})" if beside else ""))  # fmt: skip
    if fewer is not None and fewer.speedup is not None:
        sentences.append("The honest rival, fewer steps without a cache at as many passes, is "
                         f"{times(fewer.speedup)[:-1]} times faster"
                         + (f", at distance {number(fewer.sw_time, '.3g')}" if fewer.sw_time else ""))  # fmt: skip
    return ". ".join(sentences) + "."


def _unlike_counts(record: Record) -> str:
    """Where the uncached samples are fewer, so that their distance is larger for that alone."""
    cached, uncached = (row_of(record, way) for way in (Way.CACHED, Way.UNCACHED))
    if cached is None or uncached is None or not uncached.num_samples or uncached.num_samples == cached.num_samples:
        return ""
    return (f"{name_of(record)}: uncached on {uncached.num_samples} samples, E2-CRF on {cached.num_samples}; "
            "a distance is smaller for more samples, so compare the loss in its own section.")  # fmt: skip


def _of(row: Row, cached: Row) -> str:
    """How many samples a distance is of, where they are fewer: it is smaller for more."""
    return f" on {row.num_samples} samples" if row.num_samples != cached.num_samples else ""


def command_of(record: Record) -> str:
    """The command that repeats a record, with its settings spelled out; empty where they are not told."""
    options = record.options
    if isinstance(command := options.get("command"), str):
        return command
    named = options.get("bundle") or at(record.model, "source", "run_id")
    common = {"-n": "num_samples", "--steps": "steps", "--solver": "solver", "--seed": "seed"}
    words: dict[str, tuple[str, dict[str, str]]] = {
        Kind.BENCH: ("e2crf bench", {**common, "--num-uncached": "num_uncached", "--batch-size": "batch_size",
                                     "--part": "part", "--max-sw-loss": "max_sw_loss"}),
        Kind.ABLATION: ("python -m bench.ablation", {**common, "--preset": "preset", "--reuse": "reuse",
                                                     "--alpha-prior": "alpha_prior", "--only": "only",
                                                     "--rounds": "rounds"}),
        Kind.GRID: ("python -m bench.grid", {**common, "-K": "K", "-R": "R", "--preset": "preset"}),
        Kind.PARETO: ("python -m bench.pareto", {"-n": "num_samples", "--steps": "steps", "--solver": "solvers",
                                                 "--minutes": "minutes", "--seed": "seed"}),
    }  # fmt: skip
    verb, flags = words[record.kind]
    given = {flag: options.get(name) for flag, name in flags.items()}
    if record.kind == Kind.BENCH:
        race = options.get("race")
        given |= (
            {flag: race.get(name) for flag, name in (("--rounds", "rounds"), ("--limit-s", "limit_s"))} if race else {}
        )
    settings = [f"{flag} {_word(value)}" for flag, value in given.items() if value is not None]
    return " ".join([verb, _word(named or "BUNDLE"), *settings])


def _word(value: Any) -> str:
    """A setting as a shell takes it."""
    if isinstance(value, list):
        return shlex.quote(",".join(map(str, value)))
    return shlex.quote(f"{value:g}" if isinstance(value, float) else str(value))


# --- figures ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axes:
    """How the curves of a chart are drawn."""

    title: str
    caption: str
    x_label: str
    y_label: str
    log: bool | None = None  # None: where values differ by orders of magnitude


_AXES = {
    Chart.SPECTRUM: _Axes("Energy by frequency", "Median over series and 10 to 90 %: a good model's line lies on that "
                          "of real series.", "frequency", "energy, data units²", True),
    Chart.AUTOCORRELATION: _Axes("Autocorrelation", "How much a value tells of a later one.",
                                 "lag, time steps", "correlation", False),
    Chart.PAIRED_ERROR: _Axes("Paired error by step", "How far latents are from the uncached ones of the same noise.",
                              "step (noise on the left)", "median RMS, standardised"),
    Chart.HIT_RATE: _Axes("Hit rate by step", "Share of the tokens that were not recomputed.",
                          "step (noise on the left)", "share of tokens", False),
    Chart.INTENSITY: _Axes("Event intensity by step", "What the published trigger looks at: change of features.",
                           "step (noise on the left)", "r"),
}  # fmt: skip


def _figures_of(record: Record) -> Iterator[Figure]:
    """The charts that a record has anything for."""
    if record.kind == Kind.BENCH:
        yield from _cost_figures(record)
    names = list(dict.fromkeys(curve.name for curve in record.curves if curve.chart in _AXES))
    looks = dict(zip(names, looks_of(names), strict=True))
    for chart, axes in _AXES.items():
        if curves := [curve for curve in record.curves if curve.chart == chart]:
            yield _curves_figure(curves, axes, looks)
    if series := [curve for curve in record.curves if curve.chart == Chart.SERIES]:
        yield _series_figure(series)
    if record.recomputed is not None:
        yield _recomputed_figure(record)
    if record.stages:
        yield _stages_figure(record)


def _cost_figures(record: Record) -> Iterator[Figure]:
    """Distance against time, and the distances alone, row by row."""
    judged = [row for row in record.rows if row.ms_per_sample and row.sw_time and row.same_as is None]
    if len(judged) < 2:
        return
    names = [_short(row.rival) for row in judged]
    looks = looks_of(names)
    floor = row_of(record, FLOOR) or Row("")
    level, level_frequency = (
        None if value is None else (FLOOR, value) for value in (floor.sw_time, floor.sw_frequency)
    )
    drawn = [
        charts.Point(name, look, row.ms_per_sample or 0.0, row.sw_time or 0.0, row.sw_time_low, row.sw_time_high,
                     told=f"{row.rival}: {tables.source_of(row, ('ms_per_sample', 'sw_time'))}")
        for row, name, look in zip(judged, names, looks, strict=True)
    ]  # fmt: skip
    lying = [(name, look, [_lying(row, look, domain) for domain in ("time", "frequency")])
             for row, name, look in zip(judged, names, looks, strict=True)]  # fmt: skip
    yield Figure(
        "Distance to real series",
        "Left is better; bars are intervals over samples. Where bars overlap, the order may be chance.",
        lambda key, title, told: charts.ranges(key, title, told, ("SW time", "SW frequency"), lying,
                                               (level, level_frequency)),
        "; ".join(f"{row.rival}: {tables.source_of(row, ('sw_time', 'sw_frequency'))}" for row in judged),
    )  # fmt: skip
    yield Figure(
        "Distance against time",
        "Lower left is better.",
        lambda key, title, told: charts.points(key, title, told, drawn, x_label="ms per sample",
                                               y_label="SW time", floor=level),
        "; ".join(f"{point.name}: {point.x:.3g} ms, distance {point.y:.3g}" for point in drawn),
    )  # fmt: skip


def _lying(row: Row, look: int, domain: str) -> charts.Point | None:
    names = f"sw_{domain}", f"sw_{domain}_low", f"sw_{domain}_high"
    value, low, high = (getattr(row, name) for name in names)
    told = f"{row.rival}: {tables.source_of(row, names)}"
    return None if value is None else charts.Point(row.rival, look, value, 0.0, low, high, told=told)


def _curves_figure(curves: Sequence[Curve], axes: _Axes, looks: dict[str, int]) -> Figure:
    drawn = [charts.Line(curve.name, looks[curve.name], curve.x, curve.y, curve.low, curve.high) for curve in curves]
    log = _spans_orders(drawn) if axes.log is None else axes.log
    return Figure(
        axes.title,
        axes.caption,
        lambda key, title, told: charts.lines(key, title, told, drawn, x_label=axes.x_label, y_label=axes.y_label,
                                              log_y=log),
        "; ".join(_told_line(line) for line in drawn),
    )  # fmt: skip


def _series_figure(curves: Sequence[Curve]) -> Figure:
    sets: dict[str, list[Curve]] = {}
    for curve in curves:
        sets.setdefault(curve.name.rstrip("0123456789 ") or curve.name, []).append(curve)
    looks = looks_of(list(sets))
    columns = [(name, [charts.Line(curve.name, look, curve.x, curve.y) for curve in found[:MOST_PANELS]])
               for (name, found), look in zip(sets.items(), looks, strict=True)][:MOST_COLUMNS]  # fmt: skip
    return Figure(
        "Generated series",
        "Drawn on the same axes; those side by side are of the same noise where the solver is the same.",
        lambda key, title, told: charts.panels(key, title, told, columns, x_label="time step",
                                               y_label="channel 1, data units"),
        "; ".join(_told_line(line) for _, found in columns for line in found),
    )  # fmt: skip


def _recomputed_figure(record: Record) -> Figure:
    assert record.recomputed is not None
    share, steps = record.recomputed.share, record.recomputed.num_steps
    asked = sum(any(row[column] > 0 for row in share) for column in range(len(share[0])))
    return Figure(
        "What was recomputed when",
        "Coloured where the network was asked about a frequency, blank where it was not.",
        lambda key, title, told: charts.raster(key, title, told, share, across=steps, y_label="frequency",
                                               x_label="step (noise on the left)"),
        f"{len(share)} frequencies over {steps} steps; recomputed in {asked} of {len(share[0])} stretches of steps",
    )  # fmt: skip


def _stages_figure(record: Record) -> Figure:
    bars = [charts.Bar(one.step, tables.parts_of(one), f"{sum(tables.parts_of(one)):.3g} ms") for one in record.stages]
    return Figure(
        "Where the time of a step goes",
        "Each bar is one kind of step, all of its time.",
        lambda key, title, told: charts.shares(key, title, told, tables.STAGES, bars),
        "; ".join(f"{bar.name}, {bar.told}: " + ", ".join(
            f"{name} {part:.3g} ms" for name, part in zip(tables.STAGES, bar.parts, strict=True)) for bar in bars),
    )  # fmt: skip


def _pareto_figure(rows: Sequence[Row], best: Sequence[Row]) -> Iterator[Figure]:
    judged = [(row, row.ms_per_sample, over) for row in rows if row.ms_per_sample and (over := tables.over_floor(row))]
    if len(judged) < 2:
        return
    groups = list(dict.fromkeys(row.solver or "" for row, _, _ in judged))
    labels = {row.rival: str(index) for index, row in enumerate(best, 1)}
    drawn = [
        charts.Point(row.solver or row.rival, groups.index(row.solver or "") + 1, ms, over,
                     label=labels.get(row.rival, ""), told=_told_way(row))
        for row, ms, over in judged
    ]  # fmt: skip
    yield Figure(
        "Speed against quality",
        "Lower left is better. The line joins the best, numbered as the rows of the table.",
        lambda key, title, told: charts.points(
            key, title, told, drawn, x_label="ms per sample", y_label="SW over floor, worse domain", height=280.0,
            floor=(FLOOR, 1.0), frontier=[(ms, over) for row, ms, over in judged if row.rival in labels],
        ),
        "Best: " + "; ".join(_told_way(row) for row in best),
        large=True,
    )  # fmt: skip


def _told_way(row: Row) -> str:
    what = " ".join(filter(None, (row.rival, solver_and_steps(row), row.policy, row.precision)))
    return f"{what}: {tables.source_of(row, ('ms_per_sample', 'sw_time'))}"


def _told_line(line: charts.Line) -> str:
    values = [value for value in line.y if value is not None]
    return f"{line.name}: from {values[0]:.3g} to {values[-1]:.3g}" if values else f"{line.name}: nothing"


def _spans_orders(drawn: Iterable[charts.Line]) -> bool:
    values = [value for line in drawn for value in line.y if value is not None]
    above = [value for value in values if value > 0]
    return bool(above) and min(values) >= 0 and max(above) > 100 * min(above)


def looks_of(names: Sequence[str]) -> list[int]:
    """A look for each name: of a way of sampling the same in every chart, and none twice while any is free."""
    chosen: dict[int, int] = {}
    for index, name in enumerate(names):
        look = next((look for word, look in _LOOKS.items() if word in name.lower()), None)
        if look is not None and look not in chosen.values():
            chosen[index] = look
    free = [look for look in range(1, charts.NUM_LOOKS) if look not in chosen.values()] or [1]
    others = [index for index in range(len(names)) if index not in chosen]
    return [chosen[index] if index in chosen else free[others.index(index) % len(free)] for index in range(len(names))]


def _short(rival: str) -> str:
    """A rival without its backend, unless it is a twin on PyTorch or the split graphs."""
    backend, _, way = rival.partition(", ")
    return rival if backend in ("pytorch", "torch.compile") or backend.endswith(" split") else way or rival


# --- HTML -------------------------------------------------------------------------------------------


def html_of(sections: Sequence[Section], filed: Sequence[Filed]) -> str:
    """The page."""
    style = resources.files("bench").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{one.key}">{escape(_link_text(one))}</a></li>' for one in sections)
    return "\n".join([
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(_title(filed))}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        f"<header><h1>{escape(_title(filed))}</h1><p>{escape(_intro(filed))}</p></header>",
        f'<nav aria-label="Contents"><ul>{links}<li><a href="#records">Records</a></li></ul></nav>',
        _words_html(),
        "<main>",
        *(_section_html(one) for one in sections),
        "</main>",
        _records_html(filed),
        "</body>",
        "</html>",
        "",
    ])  # fmt: skip


def _title(filed: Sequence[Filed]) -> str:
    names = list(dict.fromkeys(name_of(one.record) for one in filed))
    return "Bench report: " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _intro(filed: Sequence[Filed]) -> str:
    count = "one record" if len(filed) == 1 else f"{len(filed)} records"
    return (
        "Time series sampled by diffusion models, with and without the E2-CRF cache: how long that takes, and how far "
        f"the samples are from real series. Made from {count}, whole on the page with machine, versions and settings; "
        "there a number tells all its digits when pointed at."
    )


def _link_text(section: Section) -> str:
    return section.title + (f", {section.beside.split(',')[0]}" if section.beside.startswith("batch") else "")


def _words_html() -> str:
    words = {column.title: column.meaning for column in MAIN[2:]} | WORDS
    entries = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words.items())
    return f'<details><summary>The words used here</summary><dl class="words">{entries}</dl></details>'


def _section_html(section: Section) -> str:
    head = f"{escape(section.title)}<small>{escape(section.beside)}</small>"
    parts = [f'<section id="{section.key}" aria-labelledby="{section.key}-h"><h2 id="{section.key}-h">{head}</h2>']
    parts += [f'<p class="failed"><b>Failed:</b> {escape(failure)}.</p>' for failure in section.failures]
    if section.lead:
        parts.append(f'<p class="lead">{escape(section.lead)}</p>')
    shown = "".join(_table_html(caption, table, section) for caption, table in section.first)
    parts.append(f'<div class="side">{shown}</div>' if section.side_by_side else shown)
    parts.append(_from_html(section.sources))
    if section.notes:
        parts.append('<ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in section.notes) + "</ul>")
    if section.command:
        parts.append(
            f'<p class="from">Repeat it with:</p><pre class="command"><code>{escape(section.command)}</code></pre>'
        )
    if section.figures:
        drawn = "".join(
            _figure_html(one, f"{section.key}-f{index}", section) for index, one in enumerate(section.figures)
        )
        parts.append(f'<div class="figures">{drawn}</div>')
    parts += [
        f"<details><summary>{escape(caption)}</summary>{_table_html('', table, section)}{_from_html(section.sources)}"
        "</details>"
        for caption, table in section.folded
    ]
    return "\n".join([*parts, "</section>"])


def _from_html(sources: Iterable[Filed]) -> str:
    told = "; ".join(f'<a href="#{one.key}">{escape(one.name)}</a>, {escape(one.made)}' for one in sources)
    return f'<p class="from">From {told}.</p>'


def _table_html(caption: str, table: Table, section: Section) -> str:
    head = "".join(f'<th scope="col" title="{escape(meaning)}">{escape(title)}</th>' for title, meaning in table.titles)
    body = "".join(_row_html(row) for row in table.rows)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    kind = ' class="narrow"' if section.side_by_side and caption else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption or section.title)}">'
        f"<table{kind}>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row_html(row: Sequence[tables.Cell]) -> str:
    name = row[0].text
    own, yard = _short(name) in _OWN, name in (FLOOR, MEAN_SAMPLE)
    kind = ' class="ours"' if own else ' class="yard"' if yard else ""
    return f'<tr{kind}><th scope="row">{escape(name)}</th>' + "".join(_cell_html(cell) for cell in row[1:]) + "</tr>"


def _cell_html(cell: tables.Cell) -> str:
    source = f' title="{escape(cell.source)}"' if cell.source else ""
    shade = "" if cell.shade is None else f' class="shaded" style="--share:{cell.shade:.2f}"'
    return f"<td{shade}{source}>{escape(cell.text)}</td>"


def _figure_html(figure: Figure, key: str, section: Section) -> str:
    sources = ", ".join(f'<a href="#{one.key}">{escape(one.name)}</a>' for one in section.sources)
    return (
        f"<figure{' class=large' if figure.large else ''}><figcaption><b>{escape(figure.title)}</b>"
        f"{escape(figure.caption)} <span>From {sources}.</span></figcaption>"
        f"{figure.draw(key, figure.title, figure.description)}</figure>"
    )


def _records_html(filed: Sequence[Filed]) -> str:
    return (
        '<section id="records" aria-labelledby="records-h"><h2 id="records-h">Records<small>every figure above, '
        "unrounded, with all settings</small></h2>" + "".join(_record_html(one) for one in filed) + "</section>"
    )


def _record_html(one: Filed) -> str:
    machine = one.record.machine
    facts = [("kind", one.record.kind), ("made", one.made), ("processor", machine.cpu),
             ("cores", f"{machine.num_usable_cores} of {machine.num_cores}"), ("graphics", machine.gpu or "none"),
             ("system", machine.system), ("Python", machine.python), *machine.libraries.items(),
             ("load before", "" if machine.load_average is None else str(machine.load_average))]  # fmt: skip
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in facts
    )
    return (
        f'<h3 id="{one.key}">{escape(one.name)}</h3><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(one.name)}"><table class="facts"><tbody>{rows}</tbody></table></div>'
        f"<details><summary>The whole record</summary><pre>{escape(_pretty(one.record))}</pre></details>"
    )


def _pretty(record: Record) -> str:
    """The record as JSON on many lines, lists of plain values on one."""
    text = json.dumps(json.loads(record.to_line()), indent=1, ensure_ascii=False)
    return re.sub(
        r"\[\n([^\[\]{}]*?)\n\s*\]", lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]).strip() + "]", text
    )


# --- Markdown ---------------------------------------------------------------------------------------


def markdown_of(sections: Sequence[Section], filed: Sequence[Filed]) -> str:
    """The same in Markdown, without the charts."""
    parts = [f"# {markdown_text(_title(filed))}", _intro(filed), f"With charts: [{PAGE_FILE}]({PAGE_FILE})."]
    for section in sections:
        parts += [f"## {markdown_text(section.title)}", markdown_text(section.beside)]
        parts += [f"**Failed:** {markdown_text(failure)}." for failure in section.failures]
        parts.append(markdown_text(section.lead))
        for caption, table in (*section.first, *section.folded):
            parts += [f"**{markdown_text(caption)}**" if caption else "", table.markdown()]
        parts.append("\n".join(f"- {markdown_text(note)}" for note in section.notes))
        parts.append(f"```sh\n{section.command.replace('`', '')}\n```" if section.command else "")
        sources = "; ".join(f"[{markdown_text(one.name)}]({PAGE_FILE}#{one.key}), {markdown_text(one.made)}"
                            for one in section.sources)  # fmt: skip
        parts.append(f"From {sources}.")
    return "\n\n".join(part for part in parts if part) + "\n"
