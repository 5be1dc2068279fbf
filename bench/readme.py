"""The tables and pictures of a README, made of the records that it names.

    python -m bench.readme README.md           # write them anew
    python -m bench.readme README.md --check   # exit code 1 if any would change

    <!-- in short: bench/results/ecg-published-cpu.json -->
    | rival | ms per sample | ...
    ![alt](bench/results/ecg-published-cpu.generated-series.svg)

A comment tells how much (`in short` or `in full`) and of which records of `e2crf bench`, by paths from the README's
folder; the table right below it is theirs. Of one record these are its rows, of several their data sets side by side.
A picture that is named as a record with one of its charts (`svg_files`) is drawn beside it, from its first record.
What stands between code fences stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.contenders import Way
from bench.records import Kind, Record, read_records, write_whole
from bench.report import MAIN, markdown_table
from bench.rows import FLOOR
from bench.svg_files import svg_file
from bench.tables import data_sets, row_of
from runtime.command import run_as_command
from runtime.errors import OptionError

TABLE = re.compile(r"^(<!-- (in short|in full): (.+) -->)(?:\n|\Z)((?:\|.*(?:\n|\Z))*)", re.MULTILINE)  # and the table
PICTURE = re.compile(r"""(?:\]\(|\bsrc=["'])([^\s()"']+)\.([\w-]+)\.svg\b""")  # path of a record, and its chart
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_SHORT_ROWS = (Way.UNCACHED, Way.CACHED, Way.FEWER, Way.FEWER_AS_GOOD, Way.STALE, Way.PUBLISHED, FLOOR)
_SHORT_COLUMNS = ("rival", "ms per sample", "faster", "passes", "SW time", "SW frequency")
_SHORT_DATA = ("data", "faster", "faster, fewer steps", "few steps as good", "passes", "SW time, uncached",
               "SW time, E2-CRF", "SW time, fewer steps", "SW time, floor", "SW time, mean sample")  # fmt: skip


def table_of(records: Sequence[Record], *, in_short: bool) -> str:
    """Of one record the rows but for those that repeat another one's samples, of several their data side by side.

    In short it is what matters most; the honest rivals are never left out.
    """
    if len(records) > 1:
        table = data_sets(records)
        shown = [place for place, (title, _) in enumerate(table.titles) if not in_short or title in _SHORT_DATA]
        return replace(
            table,
            titles=tuple(table.titles[place] for place in shown),
            rows=tuple(tuple(cells[place] for place in shown) for cells in table.rows),
        ).markdown()
    (record,) = records
    first, *others = record.rows
    if not in_short:
        return markdown_table([first, *(row for row in others if row.same_as is None)])
    found = [row for way in _SHORT_ROWS if (row := row_of(record, way)) is not None]
    return markdown_table([first, *found], [column for column in MAIN if column.title in _SHORT_COLUMNS])


def with_tables(text: str, folder: Path) -> str:
    """The text with every table as its records, by paths from `folder`, write it; a `RecordError` for no record."""

    def written(found: re.Match[str]) -> str:
        comment, how_much, paths, _ = found.groups()
        records = [record for path in paths.split() for record in read_records(folder / path)]
        if not records or not all(record.kind == Kind.BENCH and record.rows for record in records):
            kinds = ", ".join(record.kind + ("" if record.rows else " without rows") for record in records) or "none"
            raise OptionError(f"{paths} must hold records of `e2crf bench`, found {kinds}; name other ones")
        return f"{comment}\n{table_of(records, in_short=how_much == 'in short')}\n"

    parts = _FENCED.split(text)  # every second one is code
    return "".join(part if place % 2 else TABLE.sub(written, part) for place, part in enumerate(parts))


def pictures_of(text: str, folder: Path) -> dict[Path, str]:
    """The pictures that are named as charts of records which are there, by paths from `folder`; what each must hold."""
    drawn = {}
    for stem, chart in PICTURE.findall("".join(_FENCED.split(text)[::2])):
        path = folder / f"{stem}.json"
        if path.is_file():
            drawn[folder / f"{stem}.{chart}.svg"] = svg_file(read_records(path)[0], chart, path.name)
    return drawn


def main(
    readme: Annotated[Path, typer.Argument(help="Markdown file with comments that name records.")],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 if any would change.")] = False,
) -> None:
    """Write the tables of a README from their records, and draw its pictures.

    Example: python -m bench.readme README.md
    """
    try:
        raw = readme.read_bytes().decode("utf-8")
    except OSError as error:
        raise OptionError(f"cannot read {readme}: {error.strerror}; name a Markdown file") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{readme} is not text in UTF-8 ({error.reason}); name a Markdown file") from error
    text = raw.replace("\r\n", "\n")
    pictures = pictures_of(text, readme.parent)
    if TABLE.search(text) is None and not pictures:
        raise OptionError(f"{readme} names no records; write `<!-- in short: bench.json -->` where a table is to stand")
    written = with_tables(text, readme.parent)
    stale = {path: drawn for path, drawn in pictures.items() if not path.is_file() or path.read_text("utf-8") != drawn}
    changed = [*([readme] if written != text else []), *stale]
    if not changed:
        print(f"{readme}: all tables and pictures are as their records")
        return
    names = ", ".join(map(str, changed))
    if check:
        print(f"{names}: not as its records tell; `python -m bench.readme {readme}` writes it anew")
        raise typer.Exit(1)
    for path, drawn in stale.items():
        write_whole(path, drawn)
    if written != text:
        write_whole(readme.resolve(), written.replace("\n", "\r\n") if "\r\n" in raw else written)
    print(f"{names}: written anew")


if __name__ == "__main__":
    run_as_command(main)
