"""The tables and pictures of a README are made of the records that it names, and nothing else is touched."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.readme import main, pictures_of, with_tables
from bench.records import Record, RecordError, write_records
from runtime.errors import OptionError
from tests.commands import run
from tests.made_up_records import BENCH, FULL, GRID, row

TWIN = row("onnxruntime split, E2-CRF", 2.5, 0.040123456, same_as="onnxruntime, E2-CRF")
OTHER = replace(BENCH, rows=(*BENCH.rows, row("onnxruntime, Taylor, order 1", 9.0, 0.06), TWIN))
TEXT = """# ours

<!-- in short: results/a.json -->
| an | old | table |
and prose | with a bar
<!-- in full: results/a.json -->

<!-- in short: results/a.json results/b.json -->
"""


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    write_records(tmp_path / "results/a.json", [OTHER])
    write_records(tmp_path / "results/b.json", [BENCH])
    (tmp_path / "README.md").write_text(TEXT)
    return tmp_path / "README.md"


def test_each_comment_is_followed_by_the_table_of_its_records(readme: Path) -> None:
    written = with_tables(TEXT, readme.parent)
    short, full, sets = written.split("<!-- ")[1:]
    assert "| an | old | table |" not in written
    assert "\nand prose | with a bar\n" in short
    assert [line.split(" | ")[0] for line in short.splitlines() if line.startswith("| ")] == [
        "| rival", "| ---", "| pytorch, uncached", "| onnxruntime, uncached", "| onnxruntime, E2-CRF",
        "| onnxruntime, fewer steps", "| real series (floor)",
    ]  # fmt: skip
    assert "Taylor" in full
    assert "split" not in full  # its samples are those of another row
    assert "solver, steps" not in short
    assert "solver, steps" in full
    assert sets.count("| waves |") == 2


def test_a_second_time_changes_nothing(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(main, monkeypatch, str(readme), "--check") == 1
    assert readme.read_text() == TEXT
    assert run(main, monkeypatch, str(readme)) == 0
    written = readme.read_text()
    assert written != TEXT
    assert run(main, monkeypatch, str(readme), "--check") == 0
    assert run(main, monkeypatch, str(readme)) == 0
    assert readme.read_text() == written


def test_a_figure_changed_by_hand_is_found(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(main, monkeypatch, str(readme)) == 0
    readme.write_text(readme.read_text().replace("1,230x", "9,230x"))
    assert run(main, monkeypatch, str(readme), "--check") == 1


def test_a_picture_named_as_a_chart_of_a_record_is_drawn_beside_it(
    readme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(readme.parent / "results/c.json", [FULL])
    readme.write_text(
        "![series](results/c.generated-series.svg) <img src='results/c.autocorrelation.svg'> ![own](a.photo.svg)\n"
        "```\n![code](results/c.no-such.svg)\n```\n"
    )
    drawn = [readme.parent / "results" / f"c.{chart}.svg" for chart in ("generated-series", "autocorrelation")]
    assert run(main, monkeypatch, str(readme), "--check") == 1
    assert not any(path.exists() for path in drawn)
    assert run(main, monkeypatch, str(readme)) == 0
    assert sorted(readme.parent.rglob("*.svg")) == sorted(drawn)
    for path, title in zip(drawn, ("Generated series", "Autocorrelation"), strict=True):
        root = ElementTree.fromstring(path.read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[0] == title
        assert "c.json." in " ".join(texts)
        left, top, width, height = map(float, root.attrib["viewBox"].split())
        assert all(
            left <= float(text.get("x", 0)) <= left + width and top < float(text.attrib["y"]) < top + height
            for text in root.iter("{http://www.w3.org/2000/svg}text")
        )
    assert run(main, monkeypatch, str(readme), "--check") == 0
    drawn[0].write_text(drawn[0].read_text().replace("Generated", "Real"))
    assert run(main, monkeypatch, str(readme), "--check") == 1


def test_a_chart_that_a_record_lacks_is_told_with_those_it_has(readme: Path) -> None:
    with pytest.raises(OptionError, match=r"a\.json has no chart spectrum; it has distance-to-real-series, dist"):
        pictures_of("![](results/a.spectrum.svg)", readme.parent)


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_table_that_ends_the_file_is_written_whole(readme: Path, end: str) -> None:
    text = f"<!-- in short: results/a.json -->\n| of before |\n| stale |{end}"
    written = with_tables(text, readme.parent)
    assert "stale" not in written
    assert with_tables(f"<!-- in short: results/a.json -->{end}", readme.parent) == written


def test_code_line_ends_and_links_stay_as_they_are(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "```md\n<!-- in short: results/missing.json -->\n```\n"
    readme.write_bytes((code + TEXT).replace("\n", "\r\n").encode())
    link = readme.parent / "LINK.md"
    link.symlink_to(readme)
    assert run(main, monkeypatch, str(link)) == 0
    written = readme.read_bytes()
    assert link.is_symlink()
    assert written.startswith(code.replace("\n", "\r\n").encode())
    assert written.count(b"\n") == written.count(b"\r\n") > TEXT.count("\n")


@pytest.mark.parametrize("record", [GRID, replace(BENCH, rows=())])
def test_only_benches_are_told_in_this_form(readme: Path, record: Record) -> None:
    write_records(readme.parent / "results/b.json", [record])
    with pytest.raises(OptionError, match=f"must hold records of `e2crf bench`, found .*{record.kind}"):
        with_tables(TEXT, readme.parent)


def test_bad_input_is_told_and_nothing_is_written(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(main, monkeypatch, str(readme.parent / "missing.md")) == 2
    (readme.parent / "latin.md").write_bytes(b"\xe9")
    assert run(main, monkeypatch, str(readme.parent / "latin.md")) == 2
    (readme.parent / "plain.md").write_text("no table\n")
    assert run(main, monkeypatch, str(readme.parent / "plain.md")) == 2
    (readme.parent / "results/b.json").write_text("")
    with pytest.raises(OptionError, match="must hold records of `e2crf bench`, found none"):
        with_tables(TEXT.replace("results/a.json results/b.json", "results/b.json"), readme.parent)
    (readme.parent / "results/a.json").unlink()
    with pytest.raises(RecordError, match="no records at"):
        with_tables(TEXT, readme.parent)
    assert run(main, monkeypatch, str(readme)) == 2
    assert readme.read_text() == TEXT
