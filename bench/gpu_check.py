"""`make gpu-check`: does every backend compute on this GPU what the CPU computes, and how fast; in minutes.

    python -m bench.gpu_check --out gpu-check          # writes gpu-check.json and gpu-check.md there

Nothing is downloaded: the model has the published size and random weights, which cost what trained ones cost, made so
that latents stay as large as trained ones keep them. The CPU says what is right, in float32: scores, then the latents
of 50-step trajectories under the same noise: uncached, by a fitted plan, by a plan whose guard refreshes more, and with
some tokens computed against cached keys and values. Each contender then has a process of its own, since one process
takes one flavour of TensorRT, and one that breaks must not take the others along; whoever cannot run here says why in
one sentence, and whoever takes too long or breaks is told by the cells that it finished. Those that run come again by
split graphs, and in half precision.

A cell is whole trajectories, from noise to series, timed by device events (without cuda.core by the clock); `call` is
the network call within (TensorRT: by device events, too; others: by the clock, copies and launch included), `rest` what
a step costs beside it, `faster` is over PyTorch eager uncached with as many steps in the same batch.

The check fails if a contender that runs is off by more than the tolerances (float32 without TF32, sums in another
order, and the same rounding over 50 steps; half precision by its signal-to-noise ratio), before it was timed or after,
if one breaks on its way, and if none runs at all.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from bench.baseline import TorchGpu
from bench.gpu_model import CHECKPOINT, REFRESHES, STEPS, Errors, bundle_of, errors_of, make_model, plan_of
from bench.machine import Machine, describe_machine
from bench.on_gpu import OnGpu
from bench.records import plain, write_whole
from engines.describe import examine_engines
from engines.gpu import visible_gpu
from export.checkpoint import read_checkpoint
from export.manifest import read_manifest
from export.precision import Precision
from export.verify import sqnr_db
from runtime.cache.plan import Plan
from runtime.doctor import examine
from runtime.errors import BackendError, BackendWarning, parse_word
from runtime.sampler import Model
from runtime.score import Graphs

MANY_STEPS = 1000  # in batches of one alone
BUCKET = 8  # tokens that engines take beside all of them
BATCHES = (1, 16, 256)
SCORE_TOLERANCE, TRAJECTORY_TOLERANCE = 1e-4, 1e-3  # of the largest value
LEAST_SQNR_DB, HALF_TOLERANCE = 40.0, 1e-2  # of scores and, of the largest value, of latents in half precision
LIMIT_S = 460.0  # for all of it
CELL_S = 3.0  # of one cell
_SLOWEST_S = 150.0  # of one contender, building included
_RESERVED_S = 25.0  # for each that is still to come
_REPEATS = {STEPS: 10, MANY_STEPS: 3}  # of a cell, at least
_FINDING = '{"name": '  # how the line begins that a process of its own ends with
Clock = Callable[[Callable[[], object]], float]


class Contender(StrEnum):
    """Who is measured, in this order."""

    EAGER = "pytorch-eager"
    TENSORRT = OnGpu.TENSORRT.value
    ORT = OnGpu.ORT.value
    RTX = OnGpu.RTX.value
    COMPILED = "pytorch-compiled"  # with CUDA graphs
    TENSORRT_SPLIT = f"{TENSORRT} split"
    ORT_SPLIT = f"{ORT} split"
    RTX_SPLIT = f"{RTX} split"
    TENSORRT_HALF = f"{TENSORRT} fp16"
    ORT_HALF = f"{ORT} fp16"
    RTX_HALF = f"{RTX} fp16"

    @property
    def form_of(self) -> "Contender | None":
        """Of whom this is another form, which is measured in fewer cells and where that one runs; None: of nobody."""
        name, _, form = self.rpartition(" ")
        return Contender(name) if form in (Graphs.SPLIT, Precision.FP16) else None

    @property
    def graphs(self) -> Graphs:
        """The graphs that drive the network."""
        return Graphs.SPLIT if self.endswith(Graphs.SPLIT) else Graphs.STEP

    @property
    def precision(self) -> Precision:
        """That of the layers' products."""
        return Precision.FP16 if self.endswith(Precision.FP16) else Precision.FP32


@dataclass(frozen=True)
class Cell:
    """Trajectories of one batch size, uncached or with a plan."""

    batch: int
    steps: int
    mode: str
    repeats: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    call_ms: float  # one network call
    rest_ms: float  # of one step, beside the network
    gpu: str  # memory in use and clocks, as nvidia-smi tells


@dataclass(frozen=True)
class Finding:
    """What became of one contender."""

    name: str
    reason: str = ""  # why it does not run here, or what broke
    notes: tuple[str, ...] = ()  # what it warned of
    score_error: float = float("nan")  # against the CPU, of the largest value
    trajectory_error: float = float("nan")
    sqnr_db: float = float("nan")  # of scores
    precision: str = Precision.FP32
    cells: list[Cell] = field(default_factory=list)
    is_begun: bool = False  # it could be opened
    is_whole: bool = False  # all cells, and held against the CPU again

    @property
    def verdict(self) -> str:
        """One word, or why it does not run."""
        if self.reason:
            return self.reason
        is_near = self.score_error <= SCORE_TOLERANCE and self.trajectory_error <= TRAJECTORY_TOLERANCE
        is_like = self.sqnr_db >= LEAST_SQNR_DB and self.trajectory_error <= HALF_TOLERANCE
        return "right" if (is_near if self.precision == Precision.FP32 else is_like) else "WRONG"

    @property
    def is_at_fault(self) -> bool:
        """Whether it is wrong, or broke after it had begun."""
        return self.verdict == "WRONG" or bool(self.reason and self.is_begun)


@dataclass(frozen=True)
class Report:
    """What the JSON file holds."""

    machine: Machine
    doctor: str
    findings: list[Finding]
    seconds: float


def open_contender(contender: Contender, folder: Path) -> Model:
    """A contender over the model of a folder; an error in one sentence where it does not run."""
    bundle = bundle_of(folder, contender.precision)
    if contender in (Contender.EAGER, Contender.COMPILED):
        if not torch.cuda.is_available():
            raise BackendError(f"PyTorch {torch.__version__} sees no GPU, found none; install its build for CUDA")
        network = read_checkpoint(folder / CHECKPOINT).network
        backend = TorchGpu(network, is_compiled=contender is Contender.COMPILED)
        return Model(read_manifest(bundle), backend)
    one = OnGpu(contender.form_of or contender)
    one.build(bundle, max(BATCHES), best_batch=16, buckets=(BUCKET,), graphs=contender.graphs)
    return one.open(bundle, contender.graphs)


def device_clock() -> Clock:
    """Seconds between two events on the device, around work that has ended when it returns.

    PyTorch and ONNX Runtime need no cuda.core; where it is missing, or too old, the clock tells the same.
    """
    try:
        from cuda.core import Device, EventOptions

        device, options = Device(), EventOptions(timing_enabled=True)
    except (ImportError, TypeError):
        return host_clock
    device.set_current()
    stream = device.create_stream()

    def seconds(work: Callable[[], object]) -> float:
        start = stream.record(options=options)
        work()
        end = stream.record(options=options)
        end.sync()
        return float(end - start) / 1e3

    return seconds


def host_clock(work: Callable[[], object]) -> float:
    """Seconds by the clock, around work that has ended when it returns."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def examine_contender(
    name: str,
    model: Model,
    folder: Path,
    clock: Clock,
    *,
    cell_s: float = CELL_S,
    batches: tuple[int, ...] = BATCHES,
    many_steps: int | None = MANY_STEPS,
    tell: Callable[[Finding], None] = lambda finding: None,
) -> Finding:
    """Hold a contender against the CPU, time it, and hold it against the CPU again, when all is captured.

    `tell` hears what is known so far after every cell.
    """
    settings = [(batch, STEPS) for batch in batches]
    settings += [(1, many_steps)] if many_steps is not None and 1 in batches else []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", BackendWarning)

        def finding(errors: Errors, cells: list[Cell]) -> Finding:
            notes = [str(one.message) for one in warned if issubclass(one.category, BackendWarning)]
            if clock is host_clock:
                notes.append(
                    "timed by the clock of the host: cuda.core is missing or too old, pip install 'e2crf[gpu]'"
                )
            trajectory = float(np.max([error for what, (error, _) in errors.items() if what != "score"]))  # NaN stays
            score, ratio = errors["score"]
            return Finding(name, "", tuple(dict.fromkeys(notes)), score, trajectory, sqnr_db(ratio),
                           model.manifest.precision, cells, is_begun=True)  # fmt: skip

        errors, cells = errors_of(model, folder), list[Cell]()
        for batch, steps in settings:
            for mode, cache in (("uncached", None), ("plan", plan_of(model, steps))):
                cells.append(_cell(model, clock, batch, steps, mode, cache, cell_s))
                tell(finding(errors, list(cells)))
        again = errors_of(model, folder)
        worst = {what: tuple(np.maximum(error, again[what]).tolist()) for what, error in errors.items()}  # NaN stays
        return replace(finding(worst, cells), is_whole=True)


def _cell(model: Model, clock: Clock, batch: int, steps: int, mode: str, cache: Plan | None, cell_s: float) -> Cell:
    def sample() -> None:
        drawn.append(model.sample(batch, steps=steps, solver="ddim", cache=cache, batch_size=batch).stats)
        del drawn[:-1]

    drawn: list[Any] = []
    for _ in range(2):  # contexts, captures, compilation
        sample()
    taken, begun = [clock(sample)], time.perf_counter()
    while len(taken) < _REPEATS.get(steps, 1) or (len(taken) < 300 and time.perf_counter() - begun < cell_s):
        taken.append(clock(sample))
    work = drawn[0].work
    p50, p90, p99 = (float(np.quantile(taken, q)) * 1e3 for q in (0.5, 0.9, 0.99))
    call = work.seconds / work.calls * 1e3
    return Cell(batch, steps, mode, len(taken), p50, p90, p99, call, (p50 - work.seconds * 1e3) / steps, _gpu_state())


def _gpu_state() -> str:
    query = ["nvidia-smi", "--query-gpu=memory.used,clocks.sm,clocks.mem", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return found.stdout.strip().splitlines()[0]
    return ""


def run_apart(contender: Contender, folder: Path, limit_s: float) -> Finding:
    """Examine a contender in a process of its own."""
    command = [sys.executable, "-m", "bench.gpu_check", "--one", contender, "--out", str(folder)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, limit_s))
    except subprocess.TimeoutExpired as error:
        late = f"took longer than the {limit_s:.0f} s that were left for it"
        said = error.stdout or b""  # bytes, whatever was asked for
        found = _told(said.decode("utf-8", "replace") if isinstance(said, bytes) else said)
        if found is None or not found.cells:  # nothing was held against the CPU
            return Finding(contender, late)
        return replace(found, notes=(*found.notes, late))
    found = _told(ran.stdout)
    if found is not None and (ran.returncode == 0 or found.is_whole):
        return found
    words, ended = ran.stderr.strip().splitlines(), f"ended with code {ran.returncode}"
    broke = ": ".join([ended, *words[-1:]])
    if words and ran.returncode in (1, 2):
        broke = words[-1].removeprefix("error: ")
    return Finding(contender, broke) if found is None else replace(found, reason=broke)


def _told(printed: str) -> Finding | None:
    """The last finding that a process printed, also where it broke only when it ended."""
    for line in reversed(printed.splitlines()):
        if line.startswith(_FINDING):
            with suppress(ValueError):  # half a line
                value = json.loads(line)
                cells, notes = [Cell(**cell) for cell in value["cells"]], tuple(value["notes"])
                return Finding(**(value | {"cells": cells, "notes": notes}))
    return None


def check(tell: Callable[[str], None]) -> Report:
    """All of it; a `BackendError` without a GPU."""
    if (gpu := visible_gpu()) is None:
        raise BackendError(
            "gpu-check needs an NVIDIA GPU and its driver, and none was found here; run it on the machine with the "
            "GPU, `make test` checks the rest here"
        )
    begun, machine = time.perf_counter(), describe_machine()
    doctor = "\n".join((examine(gpu.target)[1], examine_engines(gpu)[1]))
    with tempfile.TemporaryDirectory() as name:
        tell("a model, and what the CPU computes with it")
        folder, findings = make_model(Path(name)), list[Finding]()
        for place, contender in enumerate(Contender, 1):
            unopened = {finding.name: finding.reason for finding in findings if finding.reason and not finding.is_begun}
            if contender.form_of in unopened:
                findings.append(Finding(contender, f"not tried, as {contender.form_of}: {unopened[contender.form_of]}"))
                continue
            tell(contender)
            left = LIMIT_S - (time.perf_counter() - begun) - _RESERVED_S * (len(Contender) - place)
            findings.append(run_apart(contender, folder, min(_SLOWEST_S, left)))
    return Report(machine, doctor, findings, time.perf_counter() - begun)


def markdown_of(report: Report) -> str:
    """Verdicts and cells as tables."""
    lines = [
        f"{report.machine.gpu}; {report.seconds:.0f} s; {len(REFRESHES)} network calls with the plan",
        "",
        "| contender | scores off by | trajectory off by | SQNR dB | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {f.name} | {f.score_error:.1e} | {f.trajectory_error:.1e} | {f.sqnr_db:.1f} | {f.verdict} |"
        for f in report.findings
    ]
    notes = [f"- {finding.name}: {note}" for finding in report.findings for note in finding.notes]
    lines += ["", *notes] if notes else []
    lines += [
        "",
        "| contender | batch | steps | | p50 ms | p90 ms | p99 ms | faster | call ms | rest ms a step | GPU |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    eager = {
        (c.batch, c.steps): c.p50_ms
        for finding in report.findings
        if finding.name == Contender.EAGER
        for c in finding.cells
        if c.mode == "uncached"
    }
    for finding in report.findings:
        for c in finding.cells:
            faster = eager.get((c.batch, c.steps), float("nan")) / c.p50_ms  # than PyTorch eager, uncached
            figures = (c.p50_ms, c.p90_ms, c.p99_ms, faster, c.call_ms, c.rest_ms)
            times = " | ".join(f"{value:.3g}" for value in figures)
            lines.append(f"| {finding.name} | {c.batch} | {c.steps} | {c.mode} | {times} | {c.gpu} |")
    return "\n".join(lines) + "\n"


def main(
    out: Annotated[Path, typer.Option(help="Folder for gpu-check.json and gpu-check.md.")] = Path("gpu-check"),
    one: Annotated[str | None, typer.Option(hidden=True, help="Examine this contender over the model in OUT.")] = None,
) -> None:
    """Check every backend on this GPU against the CPU, and time it.

    Example: python -m bench.gpu_check --out gpu-check
    """
    if one is not None:
        contender = parse_word(Contender, one, "contender")
        with open_contender(contender, out) as model:

            def tell(finding: Finding) -> None:
                print(json.dumps(asdict(finding)), flush=True)

            tell(Finding(contender, is_begun=True))
            clock = device_clock()
            if contender.form_of is None:
                found = examine_contender(contender, model, out, clock, tell=tell)
            else:
                found = examine_contender(
                    contender, model, out, clock, cell_s=1.0, batches=BATCHES[:2], many_steps=None, tell=tell
                )
            tell(found)
        return
    report = check(lambda line: print(line, file=sys.stderr, flush=True))
    out.mkdir(parents=True, exist_ok=True)
    text = markdown_of(report)
    write_whole(out / "gpu-check.json", json.dumps(plain(asdict(report)), indent=1) + "\n")
    write_whole(out / "gpu-check.md", text)
    print(text, end="")
    if any(one.is_at_fault for one in report.findings) or all(one.reason for one in report.findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
