"""Records made up for the tests of the report: one of each kind, of whose figures every digit is known."""

from dataclasses import replace
from pathlib import Path

from bench.machine import Machine
from bench.page import write_report
from bench.quality import Loss
from bench.records import Chart, Curve, Kind, Recomputed, Record, Row, Stages, Start, write_records
from bench.steps import StepCosts

MACHINE = Machine("a processor", 2, 2, None, "Linux", "3.11", {"numpy": "2.3"}, 0.5)
MODEL = {"source": {"data": "waves", "run_id": "waves-1"}, "network": {"num_tokens": 16, "num_channels": 1}}
STEPS = (0.0, 1.0, 2.0)


def row(rival: str, ms: float | None, sw: float | None, **more: object) -> Row:
    figures = {} if sw is None else {
        "sw_time": sw, "sw_time_low": 0.9 * sw, "sw_time_high": 1.1 * sw, "sw_frequency": sw,
        "sw_frequency_low": 0.9 * sw, "sw_frequency_high": 1.1 * sw, "sw_time_over_floor": sw / 0.02,
        "sw_frequency_over_floor": sw / 0.02, "num_samples": 64, "num_diverged": 0, "num_left_out": 0,
    }  # fmt: skip
    timed = {} if ms is None else {"ms_per_sample": ms, "steps": 100, "measured_steps": 100, "solver": "ddim"}
    return Row(rival, **(timed | figures | more))  # type: ignore[arg-type]


ROWS = (
    row("pytorch, uncached", 1500.0, None, speedup=1.0, passes=100.0),
    row("onnxruntime, uncached", 700.0, 0.05, speedup=2.1, passes=100.0),
    row("onnxruntime, E2-CRF", 1.2345678, 0.040123456, speedup=1231.79, passes=4.0, p99_ms_per_sample=1.7),
    row("onnxruntime, fewer steps", 1.5, 0.047, speedup=901.0, passes=4.0),
    row("real series (floor)", None, 0.02),
)
BENCH = Record(
    created="2026-01-02T03:04:05+00:00", model=MODEL, machine=MACHINE, baseline="fast path on", rows=ROWS,
    options={"bundle": "waves", "num_samples": 64, "steps": 100, "solver": "ddim", "seed": 0, "batch_size": 1,
             "part": "test", "race": {"rounds": 3}, "quality": {"level": 0.95}},
    loss_time=Loss(-0.02, -0.1, 0.1), loss_frequency=Loss(0.01, -0.1, 0.1),
)  # fmt: skip
FULL = replace(
    BENCH,
    steps=StepCosts(1, 5, 15.0, 0.6, 0.01, 0.002, 25.0, 1500.0, 0.2, 0.1, 16.0, 0.7),
    stages=(Stages("full", 0.1, 0.2, 14.0, 0.2, 0.1, 0.4), Stages("empty", 0.01, 0.0, 0.0, 0.0, 0.01, 0.01)),
    starts=(Start("onnxruntime", None, 1.2, 0.09, 0.04, 412_000_000),),
    recomputed=Recomputed(100, ((1.0, 0.0, 1.0), (1.0, 0.0, 0.5))),
    curves=(
        Curve(Chart.SPECTRUM, "real", STEPS, (3.0, 1.0, 0.1), (1.0, 0.5, 0.05), (5.0, 2.0, 0.2)),
        Curve(Chart.SPECTRUM, "E2-CRF", STEPS, (3.1, 1.1, 0.1), (1.0, 0.5, 0.05), (5.0, 2.0, 0.2)),
        Curve(Chart.AUTOCORRELATION, "real", STEPS, (1.0, 0.5, -0.1)),
        Curve(Chart.PAIRED_ERROR, "E2-CRF", STEPS, (1e-7, None, 0.1)),
        Curve(Chart.HIT_RATE, "E2-CRF", STEPS, (1.0, 0.0, 1.0)),
        Curve(Chart.INTENSITY, "E2-CRF", STEPS, (None, 0.5, 0.1)),
        Curve(Chart.SERIES, "uncached 1", STEPS, (0.1, 0.4, 0.2)),
        Curve(Chart.SERIES, "E2-CRF 1", STEPS, (0.1, 0.5, 0.2)),
    ),
)
ABLATION = Record(
    "2026-01-03T00:00:00+00:00", MODEL, {"claims": {"weighting helps": False, "intensity falls": None}}, MACHINE, None,
    (row("baseline", None, 0.05, passes=100.0), row("full", None, 0.06, passes=50.0)), kind=Kind.ABLATION,
)  # fmt: skip
GRID = Record(
    "2026-01-03T00:00:00+00:00", MODEL, {"K": [0, 3], "R": [5, 50]}, MACHINE, None,
    (row("uncached", None, 0.05), *(row(f"K {K}, R {R}", None, 0.04 + R / 1e3 + K / 1e4, passes=100 / R + K)
                                    for K in (0, 3) for R in (5, 50))), kind=Kind.GRID,
)  # fmt: skip
PARETO = Record(
    "2026-01-03T00:00:00+00:00", MODEL, {"frontier": ["b", "a"], "best": "a", "equal_within": 0.02}, MACHINE, None,
    (row("a", 9.0, 0.03), row("b", 2.0, 0.05), row("c", 10.0, 0.07), row("real series (floor)", None, 0.02)),
    kind=Kind.PARETO,
)  # fmt: skip
ALL = (FULL, ABLATION, GRID, PARETO)


def report(folder: Path, *records: Record) -> tuple[str, str]:
    """The page and the summary of these records."""
    write_records(folder / "records.json", list(records))
    page, summary = write_report([folder / "records.json"], folder / "out")
    return page.read_text(encoding="utf-8"), summary.read_text(encoding="utf-8")
