"""What a bench found, frozen, and as one line of JSON.

A record is one line: the line that ends a bench's stdout, the line in `<bundle>/reports/bench.json`, and a
line among others in a history that a person keeps with `cat`. It carries its schema number and is never
read by guessing. Numbers that were not measured, or are not finite, are null.
"""

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from bench.machine import Machine
from bench.quality import Loss
from bench.steps import StepCosts

SCHEMA = 1  # bump when an older reader would misread a newer record


class RecordError(Exception):
    """A file of records is missing, damaged, or of another schema."""


@dataclass(frozen=True)
class Row:
    """One rival, or one yardstick, with its cost and its quality side by side."""

    rival: str
    steps: int | None = None
    solver: str | None = None
    grid: str | None = None  # of the times
    ms_per_sample: float | None = None  # median over rounds
    p90_ms_per_sample: float | None = None
    speedup: float | None = None  # over the first rival, median over rounds
    measured_steps: int | None = None  # below `steps`: timed in part and scaled up
    passes: float | None = None  # network cost of one sample in full passes
    hit_rate: float | None = None
    cache_bytes: int | None = None
    num_samples: int | None = None
    num_diverged: int | None = None
    num_left_out: int | None = None  # not finite, so in no distance
    sw_time: float | None = None  # data units; mean over directions of W2
    sw_time_low: float | None = None
    sw_time_high: float | None = None
    sw_time_pot: float | None = None  # root of the mean of W2 squared
    marginal_time: float | None = None
    sw_frequency: float | None = None
    sw_frequency_low: float | None = None
    sw_frequency_high: float | None = None
    sw_frequency_pot: float | None = None
    marginal_frequency: float | None = None
    sw_time_over_floor: float | None = None
    sw_frequency_over_floor: float | None = None
    paired_error: float | None = None  # data std; uncached against PyTorch, E2-CRF against uncached


@dataclass(frozen=True)
class Record:
    """One bench: what ran, where, under which options, and what came out."""

    created: str  # UTC
    model: dict[str, Any]  # facts of the bundle
    options: dict[str, Any]
    machine: Machine
    baseline: str | None  # the settings the PyTorch rival ran under
    rows: tuple[Row, ...]
    loss_time: Loss
    loss_frequency: Loss
    steps: StepCosts | None = None  # what each kind of step costs
    failures: tuple[str, ...] = ()  # sentences; none: the gate is passed or was not asked for
    schema: int = SCHEMA

    @property
    def passed(self) -> bool:
        """Whether nothing that was asked for failed."""
        return not self.failures

    def to_line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(plain(dataclasses.asdict(self)), allow_nan=False)


def now() -> str:
    """The time of a record: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """A value as JSON knows it: of a path only its name, of a number that is not finite null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_records(path: Path, records: list[Record]) -> None:
    """Write records, one a line."""
    write_whole(path, "".join(record.to_line() + "\n" for record in records))


def write_whole(path: Path, text: str) -> None:
    """Write a text file by staging and renaming, so that it is whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        stage.write_text(text, encoding="utf-8")
        os.replace(stage, path)
    finally:
        stage.unlink(missing_ok=True)


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote; a `RecordError` in one sentence for anything else."""
    if not path.is_file():
        raise RecordError(f"no records at {path}; make some with `e2crf bench`")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_record(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _record(line: str, where: str) -> Record:
    try:
        value = json.loads(line)
        schema = value.get("schema")
    except (ValueError, AttributeError) as error:
        raise RecordError(f"{where} is not a record ({error}); run the bench again") from error
    if schema != SCHEMA:
        raise RecordError(
            f"{where} has schema {schema!r}, this version reads schema {SCHEMA}; "
            "run the bench again, or read it with the version of e2crf that wrote it"
        )
    try:
        return Record(
            **value
            | {
                "machine": Machine(**value["machine"]),
                "rows": tuple(Row(**row) for row in value["rows"]),
                "loss_time": Loss(**value["loss_time"]),
                "loss_frequency": Loss(**value["loss_frequency"]),
                "failures": tuple(value["failures"]),
                "steps": StepCosts(**value["steps"]) if value.get("steps") else None,
            }
        )
    except (KeyError, TypeError) as error:
        raise RecordError(f"{where} is damaged ({error}); run the bench again") from error
