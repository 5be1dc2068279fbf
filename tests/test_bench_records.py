"""Records survive the trip to disk whole, and are never read by guessing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.machine import describe_machine
from bench.quality import Loss
from bench.records import SCHEMA, Record, RecordError, Row, now, read_records, write_records


@pytest.fixture
def record() -> Record:
    return Record(
        created=now(),
        model={"source": {"data": "ecg"}},
        options={"steps": 100},
        machine=describe_machine(),
        baseline="fast path off, 2 threads: 3 ms a pass",
        rows=(Row("a", steps=100, sw_time=0.5), Row("b", paired_error=0.1)),
        loss_time=Loss(0.01, -0.02, 0.03),
        loss_frequency=Loss(0.0, 0.0, 0.0),
        failures=("it got worse; refresh more often",),
    )


def test_records_come_back_as_they_were_one_a_line(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    write_records(path, [record, replace(record, failures=())])
    assert read_records(path) == [record, replace(record, failures=())]
    assert [r.passed for r in read_records(path)] == [False, True]
    assert len(path.read_text().splitlines()) == 2
    assert [file.name for file in path.parent.iterdir()] == ["bench.json"]  # no stage is left behind


def test_numbers_that_are_not_finite_are_null(record: Record) -> None:
    broken = replace(record, rows=(Row("a", paired_error=float("inf"), sw_time=float("nan")),))
    (row,) = json.loads(broken.to_line())["rows"]
    assert row["paired_error"] is row["sw_time"] is None


def test_a_failed_write_leaves_the_old_file(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    write_records(path, [record])

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_records(path, [replace(record, failures=())])
    assert read_records(path) == [record]
    assert list(tmp_path.iterdir()) == [path]


def test_another_schema_is_refused_in_one_sentence(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(json.loads(record.to_line()) | {"schema": SCHEMA + 1}))
    with pytest.raises(RecordError) as caught:
        read_records(path)
    message = str(caught.value)
    assert f"has schema {SCHEMA + 1}, this version reads schema {SCHEMA}; run the bench again" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[:40], "is not a record"),
        (lambda line: "[1, 2]", "is not a record"),
        (lambda line: line.replace('"steps"', '"stride"'), "is damaged"),
        (lambda line: line.replace('"machine"', '"engine"'), "is damaged"),
        (
            lambda line: line.replace('"baseline": ', '"loss_time": NaN, "baseline": ', 1),
            "is not a record .NaN is no number",
        ),
        (lambda line: "[" * 100_000, "is not a record"),
    ],
)
def test_damage_is_named_by_line(record: Record, tmp_path: Path, damage, message: str) -> None:  # type: ignore
    path = tmp_path / "bench.json"
    path.write_text(record.to_line() + "\n" + damage(record.to_line()) + "\n")
    with pytest.raises(RecordError, match=f"line 2 of .* {message} .*; run the bench again"):
        read_records(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [{"rival": "a", "sw_time": "fast"}]}, "sw_time must be float, found 'fast'"),
        ({"rows": [{"rival": "a", "steps": True}]}, "steps must be int, found 'True'"),
        ({"rows": {"rival": "a"}}, "rows must be list"),
        ({"notes": "one"}, "notes must be list, found 'one'"),
        ({"machine": 7}, "machine must be dict, found '7'"),
        ({"created": None}, "created must be str, found 'None'"),
        ({"kind": "dream"}, "its kind must be one of bench, ablation, grid, pareto, found 'dream'"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named_with_its_field(
    record: Record, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(json.loads(record.to_line()) | change))
    with pytest.raises(RecordError, match=f"line 1 of .* is damaged .*{says}.*; run the bench again"):
        read_records(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="make some with `e2crf bench`"):
        read_records(tmp_path / "bench.json")
