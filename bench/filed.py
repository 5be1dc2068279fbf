"""Records and where they were found: files, folders and bundles looked through, each record once.

read_filed([Path("bench/results"), Path("bundles/ecg")])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.records import Kind, Record, RecordError, read_records
from bench.rows import REPORTS
from bench.tables import name_of
from export.manifest import MANIFEST_FILE


@dataclass(frozen=True)
class Filed:
    """A record, and where it was found."""

    record: Record
    name: str  # of the file, and the line where it holds several
    key: str  # of its section among the records of the page

    @property
    def made(self) -> str:
        """When, to the minute."""
        return self.record.created[:16].replace("T", " ") + " UTC"


def read_filed(paths: Sequence[Path]) -> list[Filed]:
    """All records of files and folders, each once, by kind, data and time; a `RecordError` if there are none.

    Of a bundle its `reports` are taken, of any other folder its `.json` and those of the bundles in it.
    """
    found: dict[str, tuple[Record, str]] = {}
    for path in dict.fromkeys(file for place in paths for file in _files(place)):
        records = read_records(path)
        folder = f"{path.parent.parent.name}/{REPORTS}/" if path.parent.name == REPORTS else ""
        for index, record in enumerate(records, 1):
            name = f"{folder}{path.name}" + (f", line {index}" if len(records) > 1 else "")
            found.setdefault(record.to_line(), (record, name))
    if not found:
        places = ", ".join(map(str, paths)) or "nothing"
        raise RecordError(f"a report needs records, found none in {places}; make some with `e2crf bench`")
    order = list(Kind)
    by_kind = sorted(found.values(), key=lambda one: (order.index(Kind(one[0].kind)), name_of(one[0]), one[0].created))
    return [Filed(record, name, f"record-{index}") for index, (record, name) in enumerate(by_kind, 1)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    of_bundle = sorted(path.glob(f"{REPORTS}/*.json"))
    if (path / MANIFEST_FILE).exists():
        return of_bundle
    return [*sorted(path.glob("*.json")), *of_bundle, *sorted(path.glob(f"*/{REPORTS}/*.json"))]
