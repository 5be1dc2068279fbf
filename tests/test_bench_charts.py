"""Charts are whole SVG: every mark lies on its paper, gaps stay gaps, and ticks are round."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from bench import charts
from bench.charts import Bar, Line, Point
from bench.scales import Scale

X = tuple(float(value) for value in range(20))
FALLING = tuple(10.0 ** (-value / 4) for value in range(20))
HOLED = tuple(None if index in (3, 4, 9) else value for index, value in enumerate(FALLING))
HOSTILE = "<script>alert('1')</script>\"&"


def _lines(**options: object) -> str:
    band = [Line(HOSTILE, 0, X, FALLING, FALLING, tuple(2 * value for value in FALLING)), Line("holed", 1, X, HOLED)]
    return charts.lines("k", "title", HOSTILE, band, x_label=HOSTILE, y_label="y", **options)  # type: ignore[arg-type]


def _points() -> str:
    drawn = [
        Point("a", 1, 3.0, 0.5, 0.4, 0.7, label="1"),
        Point(HOSTILE, 2, 7000.0, 0.05, label="a long label", told="b"),
    ]
    return charts.points("k", "title", "told", drawn, x_label="x", y_label="y", floor=("floor", 0.02),
                         frontier=[(3.0, 0.5), (7000.0, 0.05)])  # fmt: skip


def _ranges() -> str:
    drawn = [
        ("a", 1, [Point("a", 1, 2.0, 0.0, 1.5, 2.5), None]),
        (HOSTILE, 2, [Point("b", 2, 9.0, 0.0), Point("b", 2, 1e3, 0.0)]),
    ]
    return charts.ranges("k", "title", "told", ("one", "two"), drawn, (("floor", 0.5), None))


def _panels() -> str:
    columns = [("left", [Line("a", 1, X, FALLING), Line("b", 1, X, HOLED)]), (HOSTILE, [Line("c", 2, X, FALLING)])]
    return charts.panels("k", "title", "told", columns, x_label="x", y_label="y")


DRAWN: dict[str, Callable[[], str]] = {
    "lines": _lines,
    "log lines": lambda: _lines(log_y=True),
    "points": _points,
    "ranges": _ranges,
    "panels": _panels,
    "shares": lambda: charts.shares(
        "k", "title", "told", ("a", HOSTILE), [Bar("full", (1.0, 3.0), "4 ms"), Bar("0", (0.0, 0.0), "")]
    ),
    "raster": lambda: charts.raster(
        "k", "title", "told", ((1.0, 0.0), (0.5, 0.0)), across=1000, x_label="x", y_label="y"
    ),
}


def marks(svg: str) -> list[tuple[float, float]]:
    """Where the absolute places of paths, and texts, lie."""
    root = ElementTree.fromstring(svg)
    found = [
        (float(x), float(y))
        for path in root.iter("path")
        if "transform" not in path.attrib
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"])
    ]
    return found + [(float(text.attrib["x"]), float(text.attrib["y"])) for text in root.iter("text")]


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_is_well_formed_and_stays_on_its_paper(name: str) -> None:
    svg = DRAWN[name]()
    root = ElementTree.fromstring(svg)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    assert width == 360
    for x, y in marks(svg):
        if (x, y) != (0.0, -4.0):  # of the samples in a legend, which are moved as a whole
            assert -12 <= y <= height
            assert -0.1 <= x <= width
    assert not re.search(r"\b(nan|inf|None)\b", svg)


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_is_told_to_those_who_do_not_see_it_and_text_is_text(name: str) -> None:
    svg = DRAWN[name]()
    root = ElementTree.fromstring(svg)
    title, told = root[0], root[1]
    assert (title.tag, told.tag) == ("title", "desc")
    assert title.text
    assert told.text
    assert root.attrib["aria-labelledby"] == f"{title.attrib['id']} {told.attrib['id']}"
    assert root.attrib["role"] == "img"
    assert "<script" not in svg
    assert "href" not in svg


def test_what_is_not_measured_is_a_gap() -> None:
    """Two holes make three strokes; a log axis leaves out zeros and everything below."""
    scale = Scale(0.0, 20.0, 0.0, 200.0)
    assert charts._path(scale, scale, X, HOLED).count("M") == 3
    log = Scale(0.1, 10.0, 0.0, 200.0, log=True)
    assert charts._path(scale, log, (1.0, 2.0, 3.0), (0.0, 1.0, -1.0)) == "M20.0 100.0h.1"
    assert charts._path(scale, log, (1.0, 2.0), (None, math.nan)) == ""


def test_a_chart_of_nothing_is_still_a_chart() -> None:
    empty = [Line("nothing", 1, (), ()), Line("holes", 2, (0.0, 1.0), (None, None))]
    ElementTree.fromstring(charts.lines("k", "t", "d", empty, x_label="x", y_label="y", log_y=True))


def test_a_single_refresh_of_a_thousand_steps_is_seen() -> None:
    """One full column of 250 is one rectangle over all rows, more than a pixel wide on a phone."""
    share = [[1.0 if column == 77 else 0.0 for column in range(250)] for _ in range(94)]
    svg = charts.raster("k", "t", "d", share, across=1000, x_label="x", y_label="y")
    (cells,) = [path.attrib["d"] for path in ElementTree.fromstring(svg).iter("path") if "fill-opacity" in path.attrib]
    assert cells.count("M") == 1
    width, height = (float(value) for value in re.findall(r"h([\d.]+)v([\d.]+)", cells)[0])
    assert width > 1.2
    assert height == pytest.approx(170.0)


def test_a_share_is_as_dark_as_it_is_large() -> None:
    svg = charts.raster("k", "t", "d", ((0.0, 0.25, 1.0),), across=3, x_label="x", y_label="y")
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.25", "1.00"]


def test_the_parts_of_a_bar_fill_it_in_proportion() -> None:
    svg = charts.shares("k", "t", "d", ("a", "b"), [Bar("full", (1.0, 3.0), "")])
    first, second = [float(rect.attrib["width"]) + 1 for rect in ElementTree.fromstring(svg).iter("rect")]
    assert second == pytest.approx(3 * first, abs=0.05)
    assert first + second == pytest.approx(350)
    assert "75.0%" in svg


def test_no_two_looks_are_alike_without_colour() -> None:
    assert len(set(charts.DASHES)) == len(set(charts.MARKERS)) == charts.NUM_LOOKS
