"""The page as HTML: traceable, escaped, self-contained, legible in both themes and on a narrow screen."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from bench.filed import read_filed
from bench.records import Kind, Record, Row
from bench.report import markdown_of
from tests.made_up_records import ABLATION, ALL, BENCH, FULL, MACHINE, ROWS, report

STYLES = Path(__file__).parent.parent / "bench"
HOSTILE = "<script>alert('1')</script>\"&|`[x](y)"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Tags(HTMLParser):
    """The tags of a page, refused if they do not close in order."""

    VOID = frozenset(("meta", "link", "br"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.found if name == tag]

    def ids(self) -> list[str]:
        return [value for _, attrs in self.found if (value := attrs.get("id"))]


def test_every_table_and_figure_names_its_record_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    page, _ = report(tmp_path, *ALL)
    tags = Tags(page)
    ids = tags.ids()
    assert len(ids) == len(set(ids))
    targets = [str(attrs["href"]) for attrs in tags.all("a")]
    assert all(target.startswith("#") and target[1:] in ids for target in targets)
    for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        assert re.search(r'From <a href="#record-\d+">records.json, line \d</a>', figure)
    for section in re.findall(r'<section id="part-.*?</section>', page, re.DOTALL):
        assert re.search(r'<p class="from">From <a href="#record-\d+">records.json, line \d</a>, 2026-01-0\d', section)


def test_a_cell_keeps_its_unrounded_figure_and_the_record_stands_whole_at_the_end(tmp_path: Path) -> None:
    page, _ = report(tmp_path, FULL)
    titles = {attrs["title"] for attrs in Tags(page).all("td") if "title" in attrs}
    assert "ms_per_sample 1.2345678, measured_steps 100" in titles
    assert any(title and title.startswith("sw_time 0.040123456, sw_time_low 0.0361") for title in titles)
    (text,) = re.findall(r"<summary>The whole record</summary><pre>(.*?)</pre>", page, re.DOTALL)
    (tmp_path / "again.json").write_text("".join(unescape(text).splitlines()), encoding="utf-8")
    assert [one.record for one in read_filed([tmp_path / "again.json"])] == [FULL]


def test_the_page_needs_nothing_from_outside_and_runs_no_script(tmp_path: Path) -> None:
    page, _ = report(tmp_path, *ALL)
    tags = Tags(page)
    assert {name for name, _ in tags.found} & {"script", "img", "image", "iframe", "object", "use"} == set()
    assert not re.search(r"https?:|url\(|@import|javascript:| on\w+=", page)
    assert [attrs["href"] for attrs in tags.all("link")] == ["data:,"]


def test_headings_go_down_step_by_step_and_tables_have_scoped_headers(tmp_path: Path) -> None:
    page, _ = report(tmp_path, *ALL)
    tags = Tags(page)
    levels = [int(name[1]) for name, _ in tags.found if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert {attrs.get("scope") for attrs in tags.all("th")} == {"row", "col"}
    assert all(attrs.get("aria-labelledby") for attrs in tags.all("svg"))


def test_whatever_a_record_says_is_text(tmp_path: Path) -> None:
    """One row, model, option, curve, failure and machine that would rather be markup."""
    hostile = replace(
        FULL, model={"source": {"data": HOSTILE}},
        options={"bundle": HOSTILE, "solver": HOSTILE, "batch_size": HOSTILE},
        machine=replace(MACHINE, cpu=HOSTILE, libraries={HOSTILE: HOSTILE}), baseline=HOSTILE, failures=(HOSTILE,),
        rows=tuple(replace(one, rival=one.rival + HOSTILE, solver=HOSTILE, policy=HOSTILE, events={HOSTILE: 1.0})
                   for one in ROWS),
        curves=tuple(replace(curve, name=HOSTILE) for curve in FULL.curves[:5]),
        stages=(replace(FULL.stages[0], step=HOSTILE),), starts=(replace(FULL.starts[0], rival=HOSTILE),),
        created=HOSTILE,
    )  # fmt: skip
    page, summary = report(tmp_path, hostile, replace(ABLATION, options={"claims": {HOSTILE: HOSTILE}}), hostile)
    tags = Tags(page)
    assert not tags.all("script")
    assert escape(HOSTILE) in page
    assert not re.search(r"(?<!\\)<script", re.sub(r"```sh\n.*?\n```", "", summary))  # in a fence it is text
    tables = [line for line in summary.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables if "rival" in line or HOSTILE[:3] in line}


def test_what_was_not_measured_is_empty_and_brings_no_headings(tmp_path: Path) -> None:
    bare = Record("2026", {}, {}, MACHINE, None, (Row("a", ms_per_sample=float("nan"), sw_time=float("inf")), Row("b")))
    for kind in Kind:
        page, summary = report(tmp_path / kind, replace(bare, kind=kind))
        assert "<figure" not in page
        assert 'class="figures"' not in page
        assert page.count("<details>") == 2 + (
            kind is not Kind.BENCH
        )  # the words, the record, and all ways or the paper
        for text in (page, summary, markdown_of(replace(bare, kind=kind))):
            assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)


# --- how it looks -----------------------------------------------------------------------------------


def palettes() -> list[dict[str, tuple[float, float, float]]]:
    """The colours of the light and of the dark theme, 0 to 1."""
    light, dark = (STYLES / "charts.css").read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
    found = []
    for text in (light, dark[: dark.index("}")]):
        colours = {name: tuple(int(value[at : at + 2], 16) / 255 for at in (0, 2, 4))
                   for name, value in re.findall(r"--([\w-]+): #(\w{6})", text)}  # fmt: skip
        (shade,) = re.findall(r"--shade: (\d+) (\d+) (\d+)", text)
        found.append(colours | {"shade": tuple(int(value) / 255 for value in shade)})
    return found  # type: ignore[return-value]


def contrast(one: Iterable[float], other: Iterable[float]) -> float:
    """The contrast ratio of WCAG 2: 1 to 21."""

    def luminance(colour: Iterable[float]) -> float:
        linear = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour)
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_contrast_of_black_and_white_is_21() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_stand_out_in_both_themes(theme: int) -> None:
    """4.5 to 1, as WCAG 2 AA asks of text; lines and bars carry text or are as thin."""
    colours = palettes()[theme]
    for name in ("ink", "muted", "link", "bad", *(f"s{index}" for index in range(8))):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("ink", "muted"):
        assert contrast(colours[name], colours["panel"]) >= 4.5, name
    most = 0.3  # of the shade behind a cell
    assert f"calc({most:g} * var(--share))".replace("0.3", ".3") in (STYLES / "page.css").read_text(encoding="utf-8")
    behind = [
        most * shade + (1 - most) * paper for shade, paper in zip(colours["shade"], colours["paper"], strict=True)
    ]
    assert contrast(colours["ink"], behind) >= 4.5


def in_chromium(page: Path, dark: bool) -> str:
    """The page after its scripts, as Chromium sees it."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--user-data-dir={page.parent / 'profile'}", f"--blink-settings=preferredColorScheme={int(not dark)}",
               "--dump-dom", page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_nothing_scrolls_sideways_or_loads_and_the_theme_is_the_reader_s(tmp_path: Path) -> None:
    """At 360 pixels, everything unfolded: in a frame, since a window is never so narrow."""
    page, _ = report(tmp_path, *ALL, replace(BENCH, model={"source": {"data": "a_name_that_is_long_" * 6}}))
    page = page.replace("<details>", "<details open>")
    probe = """<!doctype html><body><script>
        onload = () => { document.title = Array.from(frames).map((frame) => [
          frame.innerWidth, frame.document.documentElement.scrollWidth,
          frame.performance.getEntriesByType("resource").length, frame.document.querySelectorAll("svg").length,
          frame.getComputedStyle(frame.document.body).backgroundColor].join(";")).join("|") }</script>"""
    frames = "".join(
        f'<iframe style="width:{width}px;border:0" srcdoc="{escape(page)}"></iframe>' for width in (360, 1200)
    )
    (tmp_path / "probe.html").write_text(probe + frames, encoding="utf-8")
    colours = set()
    for dark in (False, True):
        (title,) = re.findall(r"<title>(.*?)</title>", in_chromium(tmp_path / "probe.html", dark))[:1]
        for told, width in zip(title.split("|"), (360, 1200), strict=True):
            inner, scrolled, loaded, drawn, colour = told.split(";")
            assert int(inner) == width
            assert int(scrolled) <= width
            assert int(loaded) == 0
            assert int(drawn) == page.count("<svg")
            colours.add((dark, colour))
    assert colours == {(False, "rgb(255, 255, 255)"), (True, "rgb(20, 23, 27)")}
