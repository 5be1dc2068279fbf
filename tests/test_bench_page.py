"""The page tells what the records say and nothing else: traceable, escaped, self-contained, legible everywhere."""

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

from bench.contenders import Way
from bench.machine import Machine
from bench.page import looks_of, read_filed, write_report
from bench.quality import Loss
from bench.records import Chart, Curve, Kind, Recomputed, Record, RecordError, Row, Stages, Start, write_records
from bench.report import COLUMNS, cells_of, details_of, markdown_of, times
from bench.steps import StepCosts
from bench.tables import matrices, place_of

RESULTS = Path(__file__).parent.parent / "bench" / "results"
STYLE = Path(__file__).parent.parent / "bench" / "page.css"
HOSTILE = "<script>alert('1')</script>\"&|`[x](y)"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MACHINE = Machine("a processor", 2, 2, None, "Linux", "3.11", {"numpy": "2.3"}, 0.5)
MODEL = {"source": {"data": "waves", "run_id": "waves-1"}, "network": {"num_tokens": 16, "num_channels": 1}}
STEPS = (0.0, 1.0, 2.0)


def row(rival: str, ms: float | None, sw: float | None, **more: object) -> Row:
    figures = {} if sw is None else {
        "sw_time": sw, "sw_time_low": 0.9 * sw, "sw_time_high": 1.1 * sw, "sw_frequency": sw,
        "sw_frequency_low": 0.9 * sw, "sw_frequency_high": 1.1 * sw, "sw_time_over_floor": sw / 0.02,
        "sw_frequency_over_floor": sw / 0.02, "num_samples": 64, "num_diverged": 0, "num_left_out": 0,
    }  # fmt: skip
    timed = {} if ms is None else {"ms_per_sample": ms, "steps": 100, "measured_steps": 100, "solver": "ddim"}
    return Row(rival, **(timed | figures | more))  # type: ignore[arg-type]


ROWS = (
    row("pytorch, uncached", 1500.0, None, speedup=1.0, passes=100.0),
    row("onnxruntime, uncached", 700.0, 0.05, speedup=2.1, passes=100.0),
    row("onnxruntime, E2-CRF", 1.2345678, 0.040123456, speedup=1231.79, passes=4.0, p99_ms_per_sample=1.7),
    row("onnxruntime, fewer steps", 1.5, 0.047, speedup=901.0, passes=4.0),
    row("real series (floor)", None, 0.02),
)
BENCH = Record(
    created="2026-01-02T03:04:05+00:00", model=MODEL, machine=MACHINE, baseline="fast path on", rows=ROWS,
    options={"bundle": "waves", "num_samples": 64, "steps": 100, "solver": "ddim", "seed": 0, "batch_size": 1,
             "part": "test", "race": {"rounds": 3}, "quality": {"level": 0.95}},
    loss_time=Loss(-0.02, -0.1, 0.1), loss_frequency=Loss(0.01, -0.1, 0.1),
)  # fmt: skip
FULL = replace(
    BENCH,
    steps=StepCosts(1, 5, 15.0, 0.6, 0.01, 0.002, 25.0, 1500.0, 0.2, 0.1, 16.0, 0.7),
    stages=(Stages("full", 0.1, 0.2, 14.0, 0.2, 0.1, 0.4), Stages("empty", 0.01, 0.0, 0.0, 0.0, 0.01, 0.01)),
    starts=(Start("onnxruntime", None, 1.2, 0.09, 0.04, 412_000_000),),
    recomputed=Recomputed(100, ((1.0, 0.0, 1.0), (1.0, 0.0, 0.5))),
    curves=(
        Curve(Chart.SPECTRUM, "real", STEPS, (3.0, 1.0, 0.1), (1.0, 0.5, 0.05), (5.0, 2.0, 0.2)),
        Curve(Chart.SPECTRUM, "E2-CRF", STEPS, (3.1, 1.1, 0.1), (1.0, 0.5, 0.05), (5.0, 2.0, 0.2)),
        Curve(Chart.AUTOCORRELATION, "real", STEPS, (1.0, 0.5, -0.1)),
        Curve(Chart.PAIRED_ERROR, "E2-CRF", STEPS, (1e-7, None, 0.1)),
        Curve(Chart.HIT_RATE, "E2-CRF", STEPS, (1.0, 0.0, 1.0)),
        Curve(Chart.INTENSITY, "E2-CRF", STEPS, (None, 0.5, 0.1)),
        Curve(Chart.SERIES, "uncached 1", STEPS, (0.1, 0.4, 0.2)),
        Curve(Chart.SERIES, "E2-CRF 1", STEPS, (0.1, 0.5, 0.2)),
    ),
)
ABLATION = Record(
    "2026-01-03T00:00:00+00:00", MODEL, {"claims": {"weighting helps": False, "intensity falls": None}}, MACHINE, None,
    (row("baseline", None, 0.05, passes=100.0), row("full", None, 0.06, passes=50.0)), kind=Kind.ABLATION,
)  # fmt: skip
GRID = Record(
    "2026-01-03T00:00:00+00:00", MODEL, {"K": [0, 3], "R": [5, 50]}, MACHINE, None,
    (row("uncached", None, 0.05), *(row(f"K {K}, R {R}", None, 0.04 + R / 1e3 + K / 1e4, passes=100 / R + K)
                                    for K in (0, 3) for R in (5, 50))), kind=Kind.GRID,
)  # fmt: skip
PARETO = Record(
    "2026-01-03T00:00:00+00:00", MODEL, {"frontier": ["b", "a"], "best": "a", "equal_within": 0.02}, MACHINE, None,
    (row("a", 9.0, 0.03), row("b", 2.0, 0.05), row("c", 10.0, 0.07), row("real series (floor)", None, 0.02)),
    kind=Kind.PARETO,
)  # fmt: skip
ALL = (FULL, ABLATION, GRID, PARETO)


def report(folder: Path, *records: Record) -> tuple[str, str]:
    """The page and the summary of these records."""
    write_records(folder / "records.json", list(records))
    page, summary = write_report([folder / "records.json"], folder / "out")
    return page.read_text(encoding="utf-8"), summary.read_text(encoding="utf-8")


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


def test_every_row_of_every_committed_record_is_on_the_page(tmp_path: Path) -> None:
    page, summary = (path.read_text(encoding="utf-8") for path in write_report([RESULTS], tmp_path))
    cells = set(Tags(page).cells)
    filed = read_filed([RESULTS])
    assert len(filed) == len(list(RESULTS.glob("*.json")))
    for one in filed:
        for found in one.record.rows:
            assert {cell for cell in cells_of(found) if cell} <= cells
            assert "| " + " | ".join(cells_of(found)) + " |" in summary


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


def test_tables_of_the_summary_are_even(tmp_path: Path) -> None:
    _, summary = report(tmp_path, *ALL, replace(BENCH, model={"source": {"data": "a|b"}}))
    for table in re.findall(r"(?:^\|.*\n)+", summary, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


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


def test_all_that_was_measured_is_drawn(tmp_path: Path) -> None:
    page, _ = report(tmp_path, FULL)
    drawn = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert drawn == [
        "Distance to real series", "Distance against time", "Energy by frequency", "Autocorrelation",
        "Paired error by step", "Hit rate by step", "Event intensity by step", "Generated series",
        "What was recomputed when", "Where the time of a step goes",
    ]  # fmt: skip
    for folded in ("More figures of each row", "What each kind of step costs", "From nothing to the first sample"):
        assert f"<summary>{folded}</summary>" in page


def test_several_benches_are_set_side_by_side_and_one_is_not(tmp_path: Path) -> None:
    other = replace(BENCH, model={"source": {"data": "prices"}})
    page, summary = report(tmp_path, BENCH, other)
    assert '<h2 id="data-sets-h">The data sets side by side' in page
    line = "| prices | 1 | 1,230x | 901x | 4 | 0.05 | 0.0401 | 0.047 | 0.02 | 0.05 | 0.0401 | 0.047 | 0.02 | 0 of 64 |"
    assert line in summary
    assert "side by side" not in report(tmp_path / "one", BENCH)[1]
    few = replace(BENCH, rows=(ROWS[0], replace(ROWS[1], num_samples=8), *ROWS[2:]))
    assert "waves: uncached on 8 samples, E2-CRF on 64; " in report(tmp_path / "few", few, other)[1]
    assert "; a distance is smaller for more samples" not in summary


def test_the_first_sentence_names_the_honest_rival_beside_the_gain(tmp_path: Path) -> None:
    page, _ = report(tmp_path, BENCH)
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', page)
    assert "in 1.23 ms, 1,230 times faster than pytorch, uncached, with 4 passes of the network instead of 100" in lead
    assert "distance to real series is 0.0401 (uncached 0.05; real series to each other 0.02)" in lead
    assert "fewer steps without a cache at as many passes, is 901 times faster, at distance 0.047" in lead


def test_a_grid_is_a_matrix_and_the_smaller_distance_is_shaded_more(tmp_path: Path) -> None:
    sw = matrices(GRID)["SW time"]
    assert [title for title, _ in sw.titles] == ["K", "R 5", "R 50"]
    assert [[cell.text for cell in found] for found in sw.rows] == [["0", "0.045", "0.09"], ["3", "0.0453", "0.0903"]]
    assert sw.rows[0][1].shade == 1.0
    assert sw.rows[1][2].shade == 0.0
    page, _ = report(tmp_path, GRID)
    assert 'class="shaded" style="--share:1.00" title="sw_time 0.045"' in page


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Row("K 3, R 50"), (3, 50)),
        (Row("a", policy="R 5, K 0.1"), (0.1, 5)),
        (Row("a", policy="R=5, K=2"), (2, 5)),
        (Row("uncached"), None),
        (Row("a", policy="plan of 4 refreshes"), None),
    ],
)
def test_k_and_r_are_read_from_the_words_of_a_policy(found: Row, expected: tuple[float, float] | None) -> None:
    assert place_of(found) == expected


def test_the_frontier_is_the_record_s_and_is_numbered_as_drawn(tmp_path: Path) -> None:
    page, summary = report(tmp_path, PARETO)
    assert "The fastest way within 2% of the best quality is a." in summary
    (table,) = re.findall(r"<caption>Nothing as fast is better than these</caption>.*?</table>", page)
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["1. b", "2. a"]
    (chart,) = re.findall(r"<svg.*?</svg>", page)
    assert re.findall(r'<text class="ink"[^>]*>(\d)</text>', chart) == ["2", "1"]  # in the order of the rows


def test_claims_are_told_as_the_record_answers_them(tmp_path: Path) -> None:
    _, summary = report(tmp_path, ABLATION)
    assert "- Claim: weighting helps: not borne out." in summary
    assert "- Claim: intensity falls: cannot be said from these rows." in summary


def test_a_gate_that_failed_is_said_before_the_table(tmp_path: Path) -> None:
    page, summary = report(tmp_path, replace(BENCH, failures=("it got worse; refresh more",)))
    assert page.index("it got worse; refresh more.") < page.index("<table>", page.index('id="part-1"'))
    assert "**Failed:** it got worse; refresh more." in summary


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (BENCH, "e2crf bench waves -n 64 --steps 100 --solver ddim --seed 0 --batch-size 1 --part test --rounds 3"),
        (GRID, "python -m bench.grid waves-1 -K 0,3 -R 5,50"),
        (ABLATION, "python -m bench.ablation waves-1"),
        (replace(PARETO, options={"bundle": "my bundle"}), "python -m bench.pareto 'my bundle'"),
        (replace(BENCH, options={"command": "make bench"}), "make bench"),
    ],
)
def test_the_command_that_repeats_a_record_is_told(tmp_path: Path, record: Record, command: str) -> None:
    page, summary = report(tmp_path, record)
    assert f'<pre class="command"><code>{escape(command)}</code></pre>' in page
    assert f"```sh\n{command}\n```" in summary


def test_folders_are_looked_through_and_no_record_is_told_twice(tmp_path: Path) -> None:
    """A bundle gives its reports, never its manifest or plan; a copy of a record is the record."""
    bundle = tmp_path / "bundles" / "waves"
    write_records(bundle / "reports" / "bench.json", [BENCH])
    for name in ("manifest.json", "plan.json"):
        (bundle / name).write_text("{}")
    write_records(tmp_path / "kept" / "a.json", [BENCH, GRID])
    assert [one.name for one in read_filed([bundle])] == ["waves/reports/bench.json"]
    assert [one.name for one in read_filed([bundle.parent])] == ["waves/reports/bench.json"]
    found = read_filed([bundle.parent, tmp_path / "kept"])
    assert [one.name for one in found] == ["waves/reports/bench.json", "a.json, line 2"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs records, found none"),
        ("{", "line 1 of .* is not a record"),
        ('{"schema": 1}', "has schema 1"),
        (replace(BENCH, kind="dream").to_line(), "line 1 of .* damaged .*its kind must be one of bench, ablation"),
        (replace(BENCH, curves=(Curve("dream", "a", (), ()),)).to_line(), "must belong to one of energy by frequency"),
        (replace(BENCH, curves=(Curve(Chart.SPECTRUM, "a", (1.0,), ()),)).to_line(), "must have as many y as x"),
        (replace(BENCH, recomputed=Recomputed(3, ((1.0,), (1.0, 0.0)))).to_line(), "must be a matrix"),
        (replace(BENCH, recomputed=Recomputed(3, ())).to_line(), "must be a matrix"),
        (BENCH.to_line().replace("1.2345678", '"fast"'), "ms_per_sample must be float, found 'fast'"),
        (BENCH.to_line().replace('"a processor"', "7"), "cpu must be str, found '7'"),
    ],
)
def test_bad_records_are_refused_in_a_sentence_and_the_report_that_is_there_stays(
    tmp_path: Path, text: str, says: str
) -> None:
    report(tmp_path, BENCH)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(RecordError, match=says) as caught:
        write_report([tmp_path / "bad.json"], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_nothing_to_report_is_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"needs records, found none in .*; make some with `e2crf bench`"):
        write_report([tmp_path], tmp_path / "out")
    with pytest.raises(RecordError, match="no records at"):
        write_report([tmp_path / "gone.json"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = report(tmp_path, BENCH)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report([RESULTS], tmp_path / "out")
    assert tuple((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md")) == before
    assert len(list((tmp_path / "out").iterdir())) == 2  # no stage is left behind


def test_a_report_depends_on_its_records_only(tmp_path: Path) -> None:
    assert report(tmp_path / "a", *ALL) == report(tmp_path / "b", *ALL)


def test_a_way_of_sampling_looks_the_same_in_every_chart() -> None:
    assert (
        looks_of(["uncached", "E2-CRF", "fewer steps"]) == looks_of(["real", "uncached", "E2-CRF", "fewer steps"])[1:]
    )
    many = looks_of([f"way {index}" for index in range(7)])
    assert sorted(many) == list(range(1, 8))
    assert looks_of(["real", "something"])[0] == 0


def test_records_of_any_kind_have_a_table_and_details(tmp_path: Path) -> None:
    for record in (*ALL, replace(BENCH, loss_time=None, loss_frequency=None)):
        told = markdown_of(record)
        assert told.startswith("| " + " | ".join(COLUMNS) + " |")
        assert ("Caching changes SW" in told) == (record.loss_time is not None)
        assert ("not as good at up to" in told) == (record.kind == Kind.BENCH)
    assert [column.title for column in details_of((Row("a", p99_ms_per_sample=1.0),))] == ["rival", "p99 ms"]
    assert details_of((Row("a"),)) == ()
    assert cells_of(Row("a", steps=100))[2] == ""  # not timed, so not scaled either


@pytest.mark.parametrize(
    ("value", "told"), [(1.0, "1x"), (394.6, "395x"), (999.7, "1,000x"), (1231.8, "1,230x"), (None, "")]
)
def test_speed_ups_have_three_digits(value: float | None, told: str) -> None:
    assert times(value) == told


# --- how it looks -----------------------------------------------------------------------------------


def palettes() -> list[dict[str, tuple[float, float, float]]]:
    """The colours of the light and of the dark theme, 0 to 1."""
    light, dark = STYLE.read_text(encoding="utf-8").split("@media (prefers-color-scheme: dark)")
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
    assert f"calc({most:g} * var(--share))".replace("0.3", ".3") in STYLE.read_text(encoding="utf-8")
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


def test_ways_are_named_as_the_bench_names_them() -> None:
    """The headline finds its rows by these words."""
    assert (Way.UNCACHED, Way.CACHED, Way.FEWER) == ("uncached", "E2-CRF", "fewer steps")
