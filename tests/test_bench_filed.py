"""Records are found in files, folders and bundles, each once."""

from pathlib import Path

from bench.filed import read_filed
from bench.records import write_records
from tests.made_up_records import BENCH, GRID


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
