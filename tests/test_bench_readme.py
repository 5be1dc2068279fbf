"""The tables of a README are written from records, by comments that name them, and nothing else is touched."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.readme import main, with_tables
from bench.records import Record, RecordError, write_records
from runtime.errors import OptionError
from tests.commands import run
from tests.made_up_records import BENCH, GRID, row

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
