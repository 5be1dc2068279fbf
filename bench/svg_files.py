"""The figures of a record as SVG files that stand alone: with title, caption and colours of their own.

    svg_file(record, "generated-series", "ecg.json")   # the text of one
    chart_names(record)                                # which there are

A browser shows such a file as a picture (`<img>`), light or dark by its reader's theme; it asks for nothing else.
"""

import re
from html import escape
from importlib import resources
from textwrap import wrap

from bench.figures import charts_for
from bench.records import Record
from runtime.errors import OptionError

_MARGIN, _LINE = 12, 16
_HEAD = re.compile(r'<svg viewBox="0 0 (\d+) (\d+)"')


def chart_style() -> str:
    """The style sheet of all charts, on a page or alone."""
    return resources.files("bench").joinpath("charts.css").read_text(encoding="utf-8")


def chart_names(record: Record) -> list[str]:
    """The names of its charts: their titles in small letters, with hyphens."""
    return [_name_of(figure.title) for figure in charts_for(record)]


def svg_file(record: Record, name: str, source: str) -> str:
    """The text of the file of one chart, which tells its `source`; an `OptionError` for a chart that it lacks."""
    figure = next((one for one in charts_for(record) if _name_of(one.title) == name), None)
    if figure is None:
        raise OptionError(f"{source} has no chart {name}; it has {', '.join(chart_names(record)) or 'none'}")
    drawn = figure.draw(name, figure.title, figure.description)
    head = _HEAD.match(drawn)
    assert head is not None
    told = wrap(f"{figure.caption} From {source}.", 54, break_on_hyphens=False)
    above = 22 + _LINE * len(told) + 10
    width, height = int(head[1]) + 2 * _MARGIN, int(head[2]) + above + _MARGIN
    lines = "".join(f'<text class="muted" y="{_LINE * row - above + 38}">{escape(line)}</text>'
                    for row, line in enumerate(told))  # fmt: skip
    opening, _, rest = drawn[head.end() :].partition(">")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{-_MARGIN} {-above} {width} {height}"{opening}>\n<style>\n{chart_style()}'
        "svg { font-family: var(--font); }\n</style>\n"
        f'<rect x="{-_MARGIN}" y="{-above}" width="{width}" height="{height}" style="fill: var(--paper)"/>'
        f'<text y="{20 - above}" font-size="15" font-weight="600">{escape(figure.title)}</text>{lines}{rest}\n'
    )


def _name_of(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
