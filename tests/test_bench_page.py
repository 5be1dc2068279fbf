"""The page and its summary tell every row of their records, refuse broken ones, and are written whole or not at all."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench.filed import read_filed
from bench.page import write_report
from bench.records import Chart, Curve, Kind, Recomputed, RecordError
from bench.report import MAIN
from bench.tables import FRONTIER
from tests.made_up_records import ALL, BENCH, report
from tests.test_bench_markup import Tags

RESULTS = Path(__file__).parent.parent / "bench" / "results"


def test_every_row_of_every_committed_record_is_on_the_page(tmp_path: Path) -> None:
    page, summary = (path.read_text(encoding="utf-8") for path in write_report([RESULTS], tmp_path))
    cells = set(Tags(page).cells)
    filed = read_filed([RESULTS])
    assert len(filed) == len(list(RESULTS.glob("*.json")))
    for one in filed:
        columns = FRONTIER if one.record.kind == Kind.PARETO else MAIN
        for found in one.record.rows:
            told = [column.tell(found) for column in columns]
            assert {cell for cell in told if cell} <= cells
            assert "| " + " | ".join(told) + " |" in summary


def test_tables_of_the_summary_are_even(tmp_path: Path) -> None:
    _, summary = report(tmp_path, *ALL, replace(BENCH, model={"source": {"data": "a|b"}}))
    for table in re.findall(r"(?:^\|.*\n)+", summary, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


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
