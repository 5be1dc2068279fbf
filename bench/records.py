"""What a bench found, frozen, and as one line of JSON.

A record is one line: the line that ends a bench's stdout, the line in `<bundle>/reports/bench.json`, and a
line among others in a history that a person keeps with `cat`. It carries its schema number and is never
read by guessing: every value is checked, so that whoever reads a broken record is told the same sentence.
Numbers that were not measured, or are not finite, are null.

Every measurement of this room ends in a record of one form, whatever its `kind`: rows of cost and quality, and
curves for what runs over steps or frequencies. So one report draws them all. Real series are never in a record,
only what was measured on them.
"""

import dataclasses
import json
import math
import os
import types
import typing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from pathlib import Path
from types import NoneType
from typing import Any

from bench.machine import Machine
from bench.quality import Loss
from bench.steps import StepCosts

SCHEMA = 2  # bump when an older reader would misread a newer record


class RecordError(Exception):
    """A file of records is missing, damaged, or of another schema."""

    exit_code = 2


class Kind(StrEnum):
    """What a record is of."""

    BENCH = "bench"  # a model against its rivals
    ABLATION = "ablation"  # the published policy with one part taken away
    GRID = "grid"  # K and R
    PARETO = "pareto"  # solver x steps x policy x precision


@dataclass(frozen=True)
class Row:
    """One rival, or one yardstick, with its cost and its quality side by side."""

    rival: str
    steps: int | None = None
    solver: str | None = None
    grid: str | None = None  # of the times
    policy: str | None = None  # the cache in words: "plan of 4 refreshes", "R 50, K 3"
    precision: str | None = None  # of the network: fp32, fp16, bf16
    ms_per_sample: float | None = None  # median over rounds
    low_ms_per_sample: float | None = None  # interval of that median
    high_ms_per_sample: float | None = None
    p90_ms_per_sample: float | None = None
    p99_ms_per_sample: float | None = None
    speedup: float | None = None  # over the first rival, by the quickest round of both
    low_speedup: float | None = None  # its interval
    high_speedup: float | None = None
    network_share: float | None = None  # of the time of a batch: in network calls, on a GPU by device events
    measured_steps: int | None = None  # below `steps`: timed in part and scaled up
    rounds_ms: tuple[float, ...] | None = None  # per sample, round by round
    beside_ms: tuple[float, ...] | None = None  # of the first rival right before and after, which speedup is over
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
    marginal_time_pot: float | None = None
    sw_frequency: float | None = None
    sw_frequency_low: float | None = None
    sw_frequency_high: float | None = None
    sw_frequency_pot: float | None = None
    marginal_frequency: float | None = None
    marginal_frequency_pot: float | None = None
    sw_time_over_floor: float | None = None
    sw_frequency_over_floor: float | None = None
    cached_sw_time: float | None = None  # of the cached row on as many samples, where this one is of fewer
    cached_sw_frequency: float | None = None
    spectral: float | None = None  # dB, log-spectral distance, see `spectra`
    autocorrelation: float | None = None  # RMS distance of the autocorrelations
    paired_error: float | None = None  # data std; uncached against PyTorch, E2-CRF against uncached
    events: dict[str, float] | None = None  # steps by what was done, per sample
    same_as: str | None = None  # the rival whose samples these are up to rounding: the quality is measured there


@dataclass(frozen=True)
class Start:
    """What stands between a machine and the first sample, measured in a process of its own."""

    rival: str
    build_s: float | None  # once per model: export of the graphs or engines, compilation; None: nothing to build
    load_s: float  # imports, opening, checking
    first_sample_s: float  # the first trajectory of a batch, allocation included
    steady_s: float  # one of the next
    peak_bytes: int  # of the whole process, the operating system's count


@dataclass(frozen=True)
class Stages:
    """Where the time of a step goes, milliseconds per step of a batch; medians."""

    step: str  # "full", "5 tokens", "empty"
    selection_ms: float  # policy and signals
    embed_ms: float
    layers_ms: float
    head_ms: float
    update_ms: float  # the solver, and what is kept of the prediction
    python_ms: float  # all else


@dataclass(frozen=True)
class Curve:
    """One line of one chart: what runs over steps, frequencies or time."""

    chart: str  # a word of `Chart`
    name: str  # of the line
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] | None = None  # a band around it
    high: tuple[float | None, ...] | None = None


class Chart(StrEnum):
    """The charts that curves belong to; x and y of each."""

    SPECTRUM = "energy by frequency"  # frequency; data units squared, median over series
    AUTOCORRELATION = "autocorrelation"  # lag in time steps; mean over series and channels
    PAIRED_ERROR = "paired error by step"  # step; median RMS to the uncached latents, in their standardised units
    HIT_RATE = "hit rate by step"  # step; share of tokens that were not recomputed
    INTENSITY = "event intensity by step"  # step; r of eq. 14, mean over samples
    SERIES = "generated series"  # time step; data units, channel 1


@dataclass(frozen=True)
class Recomputed:
    """What was recomputed when: the share of samples, by frequency and stretch of steps."""

    num_steps: int
    share: tuple[tuple[float, ...], ...]  # [F][stretches], each the largest of its steps


@dataclass(frozen=True)
class Record:
    """One measurement: what ran, where, under which options, and what came out."""

    created: str  # UTC
    model: dict[str, Any]  # facts of the bundle
    options: dict[str, Any]
    machine: Machine
    baseline: str | None  # the settings the PyTorch rival ran under
    rows: tuple[Row, ...]
    loss_time: Loss | None = None  # of the cached row against the uncached one
    loss_frequency: Loss | None = None
    steps: StepCosts | None = None  # what each kind of step costs
    stages: tuple[Stages, ...] = ()
    starts: tuple[Start, ...] = ()
    curves: tuple[Curve, ...] = ()
    recomputed: Recomputed | None = None  # by the cached row
    kind: str = Kind.BENCH
    notes: tuple[str, ...] = ()  # sentences: which rivals did not run, and why
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
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [_record(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _record(line: str, where: str) -> Record:
    try:
        value = json.loads(line, parse_constant=_refuse)
        schema = value.get("schema")
    except (ValueError, AttributeError, RecursionError) as error:
        raise RecordError(f"{where} is not a record ({error}); run the bench again") from error
    if schema != SCHEMA:
        raise RecordError(
            f"{where} has schema {schema!r}, this version reads schema {SCHEMA}; "
            "run the bench again, or read it with the version of e2crf that wrote it"
        )
    try:
        record: Record = _read_as(Record, value, "the record")
        _require_sense(record)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{where} is damaged ({error}); run the bench again") from error
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _read_as(kind: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type `kind`: dataclasses by their fields, tuples by their members.

    A `ValueError` names the value that is of another type.
    """
    options = [one for one in typing.get_args(kind) if one is not NoneType]
    if isinstance(kind, types.UnionType):
        return None if value is None else _read_as(options[0], value, name)
    origin = typing.get_origin(kind) or kind
    wanted = dict if dataclasses.is_dataclass(kind) else {tuple: list}.get(origin, origin)
    allowed: Any = (int, float) if wanted is float else wanted
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name} must be {wanted.__name__}, found {str(value)[:40]!r}")
    if wanted is list:
        return tuple(_read_as(options[0], one, name) for one in value)
    if not dataclasses.is_dataclass(kind):
        return value
    hints = typing.get_type_hints(kind)
    return kind(**{field: _read_as(hints[field], one, field) for field, one in value.items()})  # type: ignore[operator]


def _require_sense(record: Record) -> None:
    """Raise a `ValueError` for what is of the right type and still cannot be meant."""
    if record.kind not in list(Kind):
        raise ValueError(f"its kind must be one of {', '.join(Kind)}, found {record.kind!r}")
    for curve in record.curves:
        if curve.chart not in list(Chart):
            raise ValueError(f"a curve must belong to one of {', '.join(Chart)}, found {curve.chart!r}")
        if len({len(values) for values in (curve.x, curve.y, curve.low, curve.high) if values is not None}) > 1:
            raise ValueError(f"the curve {curve.name!r} must have as many y as x")
    if record.recomputed is not None and len({len(row) for row in record.recomputed.share} | {0}) != 2:
        raise ValueError("what was recomputed must be a matrix")
