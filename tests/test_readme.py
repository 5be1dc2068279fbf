"""The README tells the truth: its files, commands and targets exist, and none is left out."""

import re
from pathlib import Path

import pytest

from bench.records import read_records
from bench.report import cells_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS = ("train", "export", "engines", "runtime", "bench")


def _captioned() -> dict[str, set[str]]:
    """File names in the captioned list, by room."""
    listed: dict[str, set[str]] = {}
    room = ""
    for line in README.partition("## Files")[2].partition("## ")[0].splitlines():
        if title := re.match(r"\| \*\*(\w+)/\*\*", line):
            room = title[1]
        names = re.findall(r"`([\w/]+\.py)`", line.split("|")[1] if "|" in line else "")
        folder = ""
        for name in names:
            folder = name.rpartition("/")[0] or folder
            listed.setdefault(room, set()).add(f"{folder}/{name.rpartition('/')[2]}".lstrip("/"))
    return listed


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_has_a_caption_and_every_caption_a_file(room: str) -> None:
    files = {path.relative_to(ROOT / room).as_posix() for path in (ROOT / room).rglob("*.py")}
    assert _captioned().get(room, set()) == {name for name in files if not name.endswith("__init__.py")}


def test_the_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_ci_calls_the_tests() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_table_is_the_committed_record() -> None:
    """Every row of the README's table is a row of the record, digit for digit."""
    (record,) = read_records(ROOT / "bench/results/ecg-published-cpu.json")
    rows = ["| " + " | ".join(cells_of(row)) + " |" for row in record.rows]
    assert len(rows) == 8
    assert [row for row in rows if row not in README.splitlines()] == []
