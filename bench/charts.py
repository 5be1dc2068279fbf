"""Charts as inline SVG, drawn by code: axes, lines with bands, points with intervals, shares, rasters, small panels.

    svg = lines("spectrum", "Energy by frequency", "...", [Line("real", 0, x, y)], x_label=..., y_label=..., log_y=True)

A chart is 360 units wide, the width of a phone, so that its letters are legible there; a page lays several side by
side where there is room. Colours are the classes s0 to s7 (see `charts.css`), which follow the reader's theme, and
each comes with a dash and a marker of its own: nothing is told by colour alone. What is not measured (None) is a gap;
so is what a log axis cannot show. Marks carry their figures as tooltips, and every chart a title and a description
for those who listen. Text is escaped here; there are no scripts, no fonts and no references to anything outside.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from bench.scales import Scale, scale_over, tick_label

WIDTH = 360.0
NUM_LOOKS = 8  # of colours, dashes and markers; a look beyond them is an earlier colour with another marker and dash
DASHES = ("", "5 4", "13 3", "8 3 2 3", "2 3", "9 2 2 2 2 2", "4 2", "1 3")
_SIZE = 12.0  # of letters
_LETTER = 0.62 * _SIZE  # width of a letter, on average
_PLOT = 190.0  # height of a plot
_STROKE = 'fill="none" stroke="currentColor" stroke-linejoin="round"'
_LEVELS = 20  # of opacity in a raster
_FAR = 10.0  # times the least value: where straight axes end

Numbers = Sequence[float | None]

MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",  # circle
    "M-3.6-3.6h7.2v7.2h-7.2z",  # square
    "M0-4.8L4.5 3.4h-9z",  # triangle
    "M0-5.2L4.6 0L0 5.2L-4.6 0z",  # diamond
    "M0 4.8L4.5-3.4h-9z",  # triangle, down
    "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # plus
    "M-4.4-2.6L-2.6-4.4L0-1.8L2.6-4.4L4.4-2.6L1.8 0L4.4 2.6L2.6 4.4L0 1.8L-2.6 4.4L-4.4 2.6L-1.8 0z",  # cross
    "M0-5l4.8 3.5l-1.9 5.5h-5.8l-1.9-5.5z",  # pentagon
)


@dataclass(frozen=True)
class Line:
    """One line with its bounds, if there are any: around the first of a chart a band, around others thin lines."""

    name: str
    look: int  # index of colour, dash and marker
    x: Sequence[float]
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None


@dataclass(frozen=True)
class Point:
    """One point, with an interval in y if there are bounds."""

    name: str  # of its kind, in the legend
    look: int
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""  # below it, to the left
    told: str = ""  # in its tooltip


@dataclass(frozen=True)
class Bar:
    """Parts of a whole, in the order of the legend."""

    name: str
    parts: Sequence[float]
    told: str  # beside the name


def lines(
    key: str,
    title: str,
    description: str,
    drawn: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    height: float = _PLOT,
) -> str:
    """Lines over one axis, with their bands; `key` is the id of the chart on its page."""
    legend, top = _legend([(line.name, line.look, _line_sample) for line in drawn] if len(drawn) > 1 else [])
    top += 1.6 * _SIZE
    bottom = top + height
    bounds = [value for line in drawn for some in (line.y, line.low, line.high) for value in some or ()]
    y = scale_over(bounds, bottom, top, log=log_y)
    left = _room_for(y)
    x = scale_over((value for line in drawn for value in line.x), left, WIDTH - 8, log=False, margin=0.0)
    parts = [*legend, *_axes(x, y, x_label, y_label)]
    for line in drawn:
        dash = _dash(line.look) if len(drawn) > 1 else ""
        parts.append(f'<g class="s{line.look % NUM_LOOKS}"><title>{escape(line.name)}</title>')
        if line.low is not None and line.high is not None and line is drawn[0]:
            band = _band(x, y, line.x, line.low, line.high)
            parts.append(f'<path d="{band}" fill="currentColor" fill-opacity=".14"/>')
        elif line.low is not None and line.high is not None:
            edges = _path(x, y, line.x, line.low) + _path(x, y, line.x, line.high)
            parts.append(f'<path d="{edges}" {_STROKE} stroke-width=".8" stroke-opacity=".7"{dash}/>')
        parts.append(f'<path d="{_path(x, y, line.x, line.y)}" {_STROKE} stroke-width="1.9"{dash}/></g>')
    return _svg(key, title, description, bottom + 2.9 * _SIZE, parts)


def points(
    key: str,
    title: str,
    description: str,
    drawn: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    floor: tuple[str, float] | None = None,
    frontier: Sequence[tuple[float, float]] = (),
    height: float = 240.0,
) -> str:
    """Points over two log axes, with intervals, a level to be compared with, and a frontier as a stair."""
    entries = {point.name: (point.name, point.look, _mark_sample) for point in drawn}
    legend, top = _legend([*entries.values(), *([(floor[0], 0, _floor_sample)] if floor else [])])
    top += 1.6 * _SIZE
    bottom = top + height
    bounds = [value for point in drawn for value in (point.y, point.low, point.high)]
    y = scale_over([*bounds, floor[1] if floor else None], bottom, top, log=True)
    left = _room_for(y)
    x = scale_over((point.x for point in drawn), left, WIDTH - 8, log=True, margin=0.08)
    parts = [*legend, *_axes(x, y, x_label, y_label)]
    if floor and y.shows(floor[1]):
        parts.append(
            f'<path class="s0" d="M{left:.1f} {y(floor[1]):.1f}H{WIDTH - 8:.1f}" stroke="currentColor" '
            f'stroke-width="1.4" stroke-dasharray="6 4"><title>{escape(floor[0])}: {floor[1]:.6g}</title></path>'
        )
    if len(frontier) > 1:
        (x0, y0), *others = sorted(frontier)
        stair = f"M{x(x0):.1f} {y(y0):.1f}" + "".join(f"H{x(a):.1f}V{y(b):.1f}" for a, b in others)
        parts.append(f'<path class="muted" d="{stair}" fill="none" stroke="currentColor" stroke-width="1.2"/>')
    on_top = sorted(drawn, key=lambda point: not point.label)  # what is named, and what comes first
    for point in reversed(on_top):
        if x.shows(point.x) and y.shows(point.y):
            faint = ' opacity=".5"' if frontier and not point.label else ""
            parts.append(f"<g{faint}>{_point(x, y, point)}</g>")
    return _svg(key, title, description, bottom + 2.9 * _SIZE, parts)


def ranges(
    key: str,
    title: str,
    description: str,
    titles: Sequence[str],
    drawn: Sequence[tuple[str, int, Sequence[Point | None]]],
    floors: Sequence[tuple[str, float] | None],
) -> str:
    """Names down, one axis across per title: a point with its interval in each, and a floor.

    The axis is straight from 0, or logarithmic where one point would press the others together.
    """
    legend, top = _legend([(floors[0][0], 0, _upright_sample)] if floors[0] else [])
    head, step = top + 1.9 * _SIZE, 2.9 * _SIZE
    bottom = head + step * len(drawn) + 0.3 * _SIZE
    gap = 18.0
    width = (WIDTH - 8 - gap * (len(titles) - 1)) / len(titles)
    parts = list(legend)
    for index, (name, floor) in enumerate(zip(titles, floors, strict=True)):
        start = 4 + index * (width + gap)
        found = [cells[index] for _, _, cells in drawn]
        values = [*(point.x for point in found if point is not None), *([floor[1]] if floor else [])]
        log = min(values, default=0.0) > 0 and max(values) > _FAR * min(values)
        bounds = [value for point in found if point is not None for value in (point.low, point.high)]
        x = scale_over([*values, *bounds, *([] if log else [0.0])], start, start + width, log=log)
        told = f"{name}, log" if log else name
        parts += [_text(start, top + 0.9 * _SIZE, told, "muted"), *_below(x, bottom, "", 4)]
        if floor:
            marks = "".join(f"M{x(floor[1]):.1f} {head + step * row + 1.3 * _SIZE:.1f}v14" for row in range(len(drawn)))
            parts.append(
                f'<path class="s0" d="{marks}" {_STROKE} stroke-width="2"><title>{escape(floor[0])}: '
                f"{floor[1]:.6g}</title></path>"
            )
        for row, point in enumerate(found):
            if point is not None:
                parts.append(_across(x, head + step * row + 1.9 * _SIZE, point))
    for row, (name, _, _) in enumerate(drawn):
        parts.append(_text(4, head + step * row + 1.0 * _SIZE, name, "ink"))
    return _svg(key, title, description, bottom + 1.8 * _SIZE, parts)


def shares(key: str, title: str, description: str, names: Sequence[str], bars: Sequence[Bar]) -> str:
    """Horizontal bars of equal length, each divided into its parts; parts are numbered as in the legend."""
    legend, top = _legend([(f"{index} {name}", index, _block_sample) for index, name in enumerate(names, 1)])
    parts, left, width = list(legend), 2.0, WIDTH - 10
    for bar in bars:
        top += 1.7 * _SIZE
        parts.append(f'<text x="{left}" y="{top:.1f}">{escape(bar.name)}'
                     f'<tspan class="muted" dx="8">{escape(bar.told)}</tspan></text>')  # fmt: skip
        top += 0.5 * _SIZE
        at, whole = left, sum(bar.parts) or 1.0
        for index, (name, part) in enumerate(zip(names, bar.parts, strict=True), 1):
            length = part / whole * width
            parts.append(
                f'<g class="s{index % NUM_LOOKS}"><rect x="{at:.2f}" y="{top:.1f}" width="{max(length - 1, 0):.2f}" '
                f'height="20" fill="currentColor"><title>{escape(name)}: {part / whole:.1%}</title></rect></g>'
            )
            if length > 1.5 * _LETTER:
                parts.append(
                    f'<text class="on" x="{at + length / 2 - 0.5:.1f}" y="{top + 14.3:.1f}" text-anchor="middle" '
                    f'pointer-events="none">{index}</text>'
                )
            at += length
        top += 22
    return _svg(key, title, description, top + 4, parts)


def raster(
    key: str,
    title: str,
    description: str,
    share: Sequence[Sequence[float]],
    *,
    across: float,
    x_label: str,
    y_label: str,
    height: float = 170.0,
) -> str:
    """A picture of shares [rows][columns], 0 empty to 1 full, row 0 at the bottom; columns run from 0 to `across`."""
    top = 1.6 * _SIZE
    bottom = top + height
    rows, columns = len(share), len(share[0])
    y = Scale(-0.5, rows - 0.5, bottom, top)
    x = Scale(0.0, across, _room_for(y), WIDTH - 8)
    wide, high = (x.end - x.start) / columns, height / rows
    paths: dict[int, list[str]] = {}
    for column in range(columns):
        levels = [math.ceil(_LEVELS * min(max(share[row][column], 0.0), 1.0) - 1e-9) for row in range(rows)]
        for level, run in groupby(range(rows), key=levels.__getitem__):
            cells = list(run)
            if level:  # cells of one level are one path, so that they may overlap and leave no seam
                place = f"M{x.start + column * wide:.2f} {bottom - (cells[-1] + 1) * high:.2f}"
                paths.setdefault(level, []).append(
                    f"{place}h{wide + 0.4:.2f}v{len(cells) * high:.2f}h-{wide + 0.4:.2f}z"
                )
    parts = _axes(x, y, x_label, y_label)
    parts += [
        f'<path class="s2" fill="currentColor" fill-opacity="{level / _LEVELS:.2f}" d="{"".join(cells)}"/>'
        for level, cells in sorted(paths.items())
    ]
    return _svg(key, title, description, bottom + 2.9 * _SIZE, parts)


def panels(
    key: str,
    title: str,
    description: str,
    columns: Sequence[tuple[str, Sequence[Line]]],
    *,
    x_label: str,
    y_label: str,
    height: float = 46.0,
) -> str:
    """Small plots, one per line, under the names of their columns; all on the same axes."""
    drawn = [line for _, found in columns for line in found]
    y_values = [value for line in drawn for value in line.y]
    top, gap, step = 3.4 * _SIZE, 14.0, height + 8
    left = _room_for(scale_over(y_values, height, 0.0, log=False), 2)
    width = (WIDTH - 8 - left - gap * (len(columns) - 1)) / len(columns)
    bottom = top + step * max(len(found) for _, found in columns)
    parts = [_text(0, 1.1 * _SIZE, y_label, "muted")]
    for index, (name, found) in enumerate(columns):
        start = left + index * (width + gap)
        x = scale_over((value for line in drawn for value in line.x), start, start + width, log=False, margin=0.0)
        parts.append(_text(start, 2.5 * _SIZE, name, "ink"))
        for row, line in enumerate(found):
            y = scale_over(y_values, top + step * row + height, top + step * row, log=False)
            parts += _grid(y, start, 2, start + width, labelled=index == 0)
            parts.append(
                f'<path class="s{line.look % NUM_LOOKS}" d="{_path(x, y, line.x, line.y)}" {_STROKE} '
                f'stroke-width="1.5"><title>{escape(line.name)}</title></path>'
            )
        parts += _below(x, bottom, x_label if index == 0 else "", 5 if len(columns) == 1 else 3)
    return _svg(key, title, description, bottom + 2.9 * _SIZE, parts)


# --- parts ------------------------------------------------------------------------------------------


def _svg(key: str, title: str, description: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-labelledby="{key}-t {key}-d" '
        f'font-size="{_SIZE:g}"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>' + "".join(parts) + "</svg>"
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _shape_of(look: int) -> int:
    """The index of its marker and dash: no two looks share both colour and shape, up to the square of `NUM_LOOKS`."""
    return (look + 3 * (look // NUM_LOOKS)) % NUM_LOOKS


def _dash(look: int) -> str:
    dash = DASHES[_shape_of(look)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _line_sample(look: int) -> str:
    return f'<path d="M0-4h20" stroke="currentColor" stroke-width="2"{_dash(look)}/>'


def _floor_sample(look: int) -> str:
    return '<path d="M0-4h20" stroke="currentColor" stroke-width="1.4" stroke-dasharray="6 4"/>'


def _upright_sample(look: int) -> str:
    return '<path d="M12-11v14" stroke="currentColor" stroke-width="2"/>'


def _mark_sample(look: int) -> str:
    return f'<path transform="translate(12 -4)" d="{MARKERS[_shape_of(look)]}" fill="currentColor"/>'


def _block_sample(look: int) -> str:
    return '<path d="M6-9.5h11v11h-11z" fill="currentColor"/>'


def _legend(entries: Sequence[tuple[str, int, Callable[[int], str]]]) -> tuple[list[str], float]:
    """The entries in as many lines as they need, and where they end."""
    parts, x, y = [], 0.0, _SIZE
    for name, look, sample in entries:
        shown = name if len(name) <= 44 else name[:43] + "…"
        width = 26 + _LETTER * len(shown) + 12
        if x and x + width - 12 > WIDTH:
            x, y = 0.0, y + 1.4 * _SIZE
        parts.append(f'<g class="s{look % NUM_LOOKS}" transform="translate({x:.1f} {y:.1f})">{sample(look)}</g>')
        parts.append(_text(x + 26, y, shown, "ink"))
        x += width
    return parts, y + 0.8 * _SIZE if entries else 0.0


def _room_for(y: Scale, count: int = 5) -> float:
    return 9 + _LETTER * max((len(tick_label(tick)) for tick in y.ticks(count)), default=1)


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    """Grid, ticks and labels; the label of y stands on top, where it can be read."""
    return [_text(0, y.end - 0.7 * _SIZE, y_label, "muted"), *_grid(y, x.start, 5), *_below(x, y.start, x_label)]


def _grid(y: Scale, left: float, count: int, right: float = WIDTH - 8, *, labelled: bool = True) -> list[str]:
    parts = []
    for tick in y.ticks(count):
        parts.append(f'<path class="grid" d="M{left:.1f} {y(tick):.1f}H{right:.1f}"/>')
        if labelled:
            parts.append(_text(left - 5, y(tick) + 0.35 * _SIZE, tick_label(tick), "muted", "end"))
    return parts


def _below(x: Scale, bottom: float, label: str, count: int = 5) -> list[str]:
    parts = [f'<path class="axis" d="M{x.start:.1f} {bottom:.1f}H{x.end:.1f}"/>']
    for tick in x.ticks(count):
        half = 0.5 * _LETTER * len(tick_label(tick))
        at = min(max(x(tick), half), WIDTH - half)
        parts.append(f'<path class="axis" d="M{x(tick):.1f} {bottom:.1f}v4"/>')
        parts.append(_text(at, bottom + 1.35 * _SIZE, tick_label(tick), "muted", "middle"))
    return [*parts, *([_text((x.start + x.end) / 2, bottom + 2.6 * _SIZE, label, "muted", "middle")] if label else [])]


def _path(x: Scale, y: Scale, xs: Sequence[float], ys: Numbers) -> str:
    """A line with a gap wherever there is no value; a value between two gaps is a dot."""
    parts: list[str] = []
    for shown, run in groupby(zip(xs, ys, strict=True), key=lambda pair: y.shows(pair[1])):
        if shown:
            places = [f"{x(a):.1f} {y(b):.1f}" for a, b in run if b is not None]
            parts.append("M" + "L".join(places) + ("h.1" if len(places) == 1 else ""))
    return "".join(parts)


def _band(x: Scale, y: Scale, xs: Sequence[float], lows: Numbers, highs: Numbers) -> str:
    parts: list[str] = []
    triples = zip(xs, lows, highs, strict=True)
    for shown, run in groupby(triples, key=lambda triple: y.shows(triple[1]) and y.shows(triple[2])):
        if shown:
            cells = [(x(a), y(low), y(high)) for a, low, high in run if low is not None and high is not None]
            edge = [(a, low) for a, low, _ in cells] + [(a, high) for a, _, high in reversed(cells)]
            parts.append("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in edge) + "z")
    return "".join(parts)


def _across(x: Scale, at: float, point: Point) -> str:
    """A point at a height, its interval lying."""
    parts = [f'<g class="s{point.look % NUM_LOOKS}"><title>{escape(point.told or point.name)}</title>']
    if point.low is not None and point.high is not None:
        low, high = x(point.low) if x.shows(point.low) else x.start, x(point.high)
        bar = f"M{low:.1f} {at:.1f}H{high:.1f}M{low:.1f} {at - 3:.1f}v6M{high:.1f} {at - 3:.1f}v6"
        parts.append(f'<path d="{bar}" {_STROKE} stroke-width="1.4"/>')
    mark = MARKERS[_shape_of(point.look)]
    place = f"translate({x(point.x):.1f} {at:.1f})"
    return "".join([*parts, f'<path transform="{place}" d="{mark}" fill="currentColor" class="mark"/></g>'])


def _point(x: Scale, y: Scale, point: Point) -> str:
    at, height = x(point.x), y(point.y)
    parts = [f'<g class="s{point.look % NUM_LOOKS}"><title>{escape(point.told or point.name)}</title>']
    if point.low is not None and point.high is not None and y.shows(point.low) and y.shows(point.high):
        low, high = y(point.low), y(point.high)
        bar = f"M{at:.1f} {low:.1f}V{high:.1f}M{at - 3:.1f} {low:.1f}h6M{at - 3:.1f} {high:.1f}h6"
        parts.append(f'<path d="{bar}" stroke="currentColor" stroke-width="1.3" fill="none"/>')
    mark = MARKERS[_shape_of(point.look)]
    parts.append(
        f'<path transform="translate({at:.1f} {height:.1f})" d="{mark}" fill="currentColor" class="mark"/></g>'
    )
    if point.label:
        parts.append(_text(at - 6, height + 1.1 * _SIZE, point.label, "ink", "end"))
    return "".join(parts)
