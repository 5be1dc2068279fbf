"""The figures of a record: which charts it has something for, what they show, and the same for those who see none.

A `Figure` is said before it is drawn: `charts` draws it where it is put, under a key that no other figure has. A way
of sampling looks the same in all of them (`looks_of`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from bench import charts, tables
from bench.contenders import Way
from bench.records import Chart, Curve, Kind, Record, Row
from bench.report import solver_and_steps
from bench.rows import FLOOR

MOST_PANELS, MOST_COLUMNS = 6, 3  # of generated series: one under the other, and side by side
_LOOKS = {"real": 0, "uncached": 1, "baseline": 1, "e2-crf": 2, "cached": 2, "full": 2, "as good": 6, "fewer": 3,
          "interval": 4, "stale": 5, "pytorch": 7}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One chart and what it shows."""

    title: str
    caption: str
    draw: Callable[[str, str, str], str]  # key, title, description -> SVG
    description: str  # for those who do not see it
    large: bool = False


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


def charts_for(record: Record) -> Iterator[Figure]:
    """The charts that a record has anything for."""
    if record.kind == Kind.BENCH:
        yield from _cost_figures(record)
    if record.kind == Kind.PARETO:
        yield from _pareto_figure(record)
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
    names = [tables.short_name(row.rival) for row in judged]
    looks = looks_of(names)
    floor = tables.row_of(record, FLOOR) or Row("")
    level, level_frequency = (
        None if value is None else (FLOOR, value) for value in (floor.sw_time, floor.sw_frequency)
    )
    most = max(row.num_samples or 0 for row in judged)
    drawn = [
        charts.Point(name, look, row.ms_per_sample or 0.0, row.sw_time or 0.0, row.sw_time_low, row.sw_time_high,
                     told=f"{row.rival}: {tables.source_of(row, ('ms_per_sample', 'sw_time'))}")
        for row, name, look in zip(judged, names, looks, strict=True)
        if not name.startswith(Way.FEWER_EACH) and row.num_samples == most
    ]  # fmt: skip
    lying = [(name if row.num_samples == most else f"{name} ({row.num_samples} samples)", look,
              [_lying(row, look, domain) for domain in ("time", "frequency")])
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
        "Lower left is better. Of fewer steps only the best solver's; ways that drew fewer samples are left out.",
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
        "Drawn on the same axes"
        + ("; those side by side are of the same noise where the solver is the same." if len(columns) > 1 else "."),
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


def _pareto_figure(record: Record) -> Iterator[Figure]:
    best = tables.frontier(record)
    judged = [
        (row, row.ms_per_sample, over) for row in record.rows if row.ms_per_sample and (over := tables.over_floor(row))
    ]
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
    """A look for each name: of a way of sampling the same in every chart, and none twice."""
    chosen: dict[int, int] = {}
    for index, name in enumerate(names):
        look = next((look for word, look in _LOOKS.items() if word in name.lower()), None)
        if look is not None and look not in chosen.values():
            chosen[index] = look
    free = (look for look in count(1) if look not in chosen.values() and look % charts.NUM_LOOKS)
    return [chosen[index] if index in chosen else next(free) for index in range(len(names))]
