"""`make gpu-check` as far as it goes without a GPU: the model, the comparison, the cells, the table, the refusals."""

import json
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import gpu_check, gpu_model
from bench.baseline import TorchGpu
from bench.gpu_check import Contender, Finding, Report, examine_contender, main, markdown_of
from bench.gpu_model import make_model
from bench.machine import describe_machine
from engines.errors import EngineError
from engines.gpu import Gpu
from export.checkpoint import read_checkpoint
from export.manifest import read_manifest
from runtime.errors import BackendError, BackendWarning
from runtime.sampler import Model, load
from tests.commands import run
from train.networks import NetworkOptions

SMALL = NetworkOptions(num_tokens=15, num_channels=2, d_model=12, num_heads=3, num_layers=2, d_ff=16, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("made"), SMALL)


def seconds(work: object) -> float:
    """A clock for which everything takes 50 ms."""
    assert callable(work)
    work()
    return 0.05


def opened(folder: Path, *, changed: float = 0.0) -> Model:
    """PyTorch behind the check's own backend, on the CPU; `changed` damages a weight."""
    network = read_checkpoint(folder / "random.ckpt").network
    with torch.no_grad():
        next(iter(network.parameters())).add_(changed)
    return Model(read_manifest(folder / "bundle-fp32"), TorchGpu(network, device="cpu", is_compiled=False))


def test_a_contender_is_held_against_the_cpu_and_timed(folder: Path) -> None:
    told = list[Finding]()
    found = examine_contender(
        "pytorch-eager", opened(folder), folder, seconds, cell_s=0.0, batches=(1, 3), many_steps=100, tell=told.append
    )
    assert found.verdict == "right"
    assert 0 < found.score_error < 1e-5
    assert [(cell.batch, cell.steps, cell.mode) for cell in found.cells] == [
        (batch, steps, mode) for batch, steps in ((1, 50), (3, 50), (1, 100)) for mode in ("uncached", "plan")
    ]
    assert all(cell.p50_ms == cell.p99_ms == pytest.approx(50) for cell in found.cells)
    assert [cell.repeats for cell in found.cells] == [10, 10, 10, 10, 1, 1]
    assert found.is_whole
    assert not any(one.is_whole for one in told)
    assert [len(one.cells) for one in told] == [1, 2, 3, 4, 5, 6]
    assert all(cell.call_ms > 0 for cell in found.cells)


def test_a_contender_that_computes_something_else_is_wrong(folder: Path) -> None:
    found = examine_contender("broken", opened(folder, changed=0.1), folder, seconds, cell_s=0.0, batches=())
    assert found.verdict == "WRONG"


def test_the_reference_is_the_cpus(folder: Path) -> None:
    with load(folder / "bundle-fp32") as model, np.load(folder / "reference.npz") as reference:
        again = model.sample(2, steps=gpu_model.STEPS, solver="ancestral", cache=None).z
        np.testing.assert_array_equal(again, reference["trajectory"])


def test_cached_keys_and_values_are_held_against_the_cpu_where_there_are_any(folder: Path) -> None:
    """Oracle: the other set of graphs. Tokens that are computed alone make other series than all of them do."""
    with load(folder / "bundle-fp32", graphs="split", threads=1) as model:
        found = gpu_model.computed(model)
        errors = gpu_model.errors_of(model, folder)
    assert set(errors) == {"score", "trajectory", "plan", "guard", "cached"}
    assert max(error for error, _ in errors.values()) < 1e-5
    assert set(gpu_model.errors_of(opened(folder), folder)) == {"score", "trajectory", "plan", "guard"}
    with load(folder / "bundle-fp32", threads=1) as model:
        every = model.sample(2, steps=gpu_model.STEPS, solver="ddim", cache=None).z
    assert np.abs(found["cached"] - every).max() > 1e-3 * np.abs(every).max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_every_contender_says_why_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="gpu-check needs an NVIDIA GPU and its driver, and none was found here"):
        main(out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for contender in (Contender.EAGER, Contender.COMPILED, Contender.ORT, Contender.TENSORRT):
        with pytest.raises((BackendError, EngineError), match=r"found|not installed") as said:
            gpu_check.open_contender(contender, folder)
        assert "; " in str(said.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_process_that_fails_is_a_line_of_the_table(folder: Path) -> None:
    finding = gpu_check.run_apart(Contender.EAGER, folder, 120.0)
    assert finding.reason.startswith(f"PyTorch {torch.__version__} sees no GPU")
    late = gpu_check.run_apart(Contender.EAGER, folder, 0.0)
    assert late.reason == "took longer than the 0 s that were left for it"
    table = markdown_of(Report(describe_machine(), "", [finding, late], 3.0))
    assert f"| pytorch-eager | nan | nan | nan | {finding.reason} |" in table


def run_made_up(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str, limit_s: float = 60.0) -> Finding:
    """What is made of a process that runs this Python."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        return real([sys.executable, "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", run)
    return gpu_check.run_apart(Contender.EAGER, folder, limit_s)


def test_a_process_that_breaks_when_it_ends_has_told_what_it_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine_contender("a", opened(folder), folder, seconds, cell_s=0.0, batches=(1,), many_steps=60)
    line = json.dumps(asdict(replace(found, notes=("slow",))))
    code = f"import os; print({line!r}); print('Failed to load something', flush=True); os.abort()"
    assert run_made_up(monkeypatch, folder, code) == replace(found, notes=("slow",))


def test_a_process_that_takes_too_long_has_told_the_cells_that_it_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[Finding]()
    examine_contender("a", opened(folder), folder, seconds, cell_s=0.0, batches=(3,), tell=told.append)
    lines = [json.dumps(asdict(one)) for one in told]
    code = (
        f"import time; print({lines[0]!r}); print({lines[1]!r}); print({lines[1][:90]!r}, flush=True); time.sleep(60)"
    )
    found = run_made_up(monkeypatch, folder, code, limit_s=5.0)
    assert found == replace(told[1], notes=("took longer than the 5 s that were left for it",))
    assert found.verdict == "right"


def test_a_process_that_breaks_before_its_end_is_told_by_what_broke(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[Finding]()
    examine_contender("a", opened(folder), folder, seconds, cell_s=0.0, batches=(3,), tell=told.append)
    code = f"import sys; print({json.dumps(asdict(told[0]))!r}, flush=True); sys.exit('error: out of memory')"
    found = run_made_up(monkeypatch, folder, code)
    assert found == replace(told[0], reason="out of memory")
    assert found.cells
    assert found.is_at_fault


def test_who_breaks_before_the_first_cell_is_at_fault_and_who_cannot_begin_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = json.dumps(asdict(Finding(Contender.EAGER, is_begun=True)))
    found = run_made_up(monkeypatch, folder, f"import os; print({begun!r}, flush=True); os.abort()")
    assert found.reason == "ended with code -6"
    assert found.is_at_fault
    monkeypatch.undo()
    found = run_made_up(monkeypatch, folder, f"import time; print({begun!r}, flush=True); time.sleep(60)", limit_s=5.0)
    assert found == Finding(Contender.EAGER, "took longer than the 5 s that were left for it")
    assert not found.is_at_fault


def test_a_crash_is_told_by_its_code_and_not_by_a_warning_before_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; print('[0.1, 2]'); sys.stderr.write('a warning'); sys.stderr.flush(); os.abort()"
    assert run_made_up(monkeypatch, folder, code).reason == "ended with code -6: a warning"


def test_without_cuda_core_the_host_tells_the_time_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    clock = gpu_check.device_clock()
    assert 0.01 < clock(lambda: time.sleep(0.01)) < 5
    found = examine_contender("a", opened(folder), folder, clock, cell_s=0.0, batches=())
    assert found.notes == ("timed by the clock of the host: cuda.core is missing or too old, pip install 'e2crf[gpu]'",)
    assert f"- a: {found.notes[0]}" in markdown_of(Report(describe_machine(), "", [found], 3.0))


def test_what_a_contender_warns_of_is_kept(folder: Path) -> None:
    def warning(work: object) -> float:
        warnings.warn("launched one by one", BackendWarning, stacklevel=1)
        return seconds(work)

    found = examine_contender("a", opened(folder), folder, warning, cell_s=0.0, batches=(1,), many_steps=60)
    assert found.notes == ("launched one by one",)


def test_what_goes_wrong_only_after_the_timing_is_wrong(folder: Path) -> None:
    model, calls = opened(folder), []

    def breaking(work: object) -> float:
        calls.append(work)
        with torch.no_grad():
            next(iter(model.backend._network.parameters())).add_(0.1)  # type: ignore[attr-defined]
        return seconds(work)

    assert examine_contender("a", model, folder, breaking, cell_s=0.0, batches=(1,), many_steps=60).verdict == "WRONG"
    assert calls


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([Finding("a", "no GPU")], 1),
        ([Finding("a", "", (), 0.0, 0.0)], 0),
        ([Finding("a", "", (), 0.0, 0.0), Finding("b", "no GPU")], 0),
        ([Finding("a", "", (), 0.0, 0.0), Finding("b", "broke", is_begun=True)], 1),
    ],
)
def test_a_check_that_checked_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, findings: list[Finding], code: int
) -> None:
    monkeypatch.setattr(gpu_check, "check", lambda tell: Report(describe_machine(), "", findings, 1.0))
    assert run(main, monkeypatch, "--out", str(tmp_path)) == code
    assert (tmp_path / "gpu-check.json").is_file()


def test_the_table_holds_every_cell(folder: Path) -> None:
    found = examine_contender("a", opened(folder), folder, seconds, cell_s=0.0, batches=(1,), many_steps=100)
    eager = replace(found, name=Contender.EAGER, cells=[replace(cell, p50_ms=150.0) for cell in found.cells])
    lines = markdown_of(Report(describe_machine(), "", [eager, found], 3.0)).splitlines()
    assert [line.split("|")[8] for line in lines[-8:]] == [" 1 "] * 4 + [" 3 "] * 4  # over eager, uncached
    assert [line.split("|")[1:6] for line in lines[-4:]] == [
        [" a ", " 1 ", f" {steps} ", f" {mode} ", " 50 "] for steps in (50, 100) for mode in ("uncached", "plan")
    ]
    assert isinstance(found, Finding)


def test_the_guard_of_the_check_refreshes_more(folder: Path) -> None:
    """Else it would be the plan without a guard once more."""
    with load(folder / "bundle-fp32", threads=1) as model:
        plan = gpu_model.plan_of(model)
        calls = [
            model.sample(2, cache=one).stats.work.calls for one in (plan, replace(plan, surprise=gpu_model.SURPRISE))
        ]
    assert calls == [4, 6]


def test_latents_stay_as_large_as_a_trained_network_s(folder: Path) -> None:
    """Half precision bears no others."""
    with np.load(folder / "reference.npz") as reference:
        assert 0.1 < np.abs(reference["trajectory"]).max() < 10


def test_half_precision_is_judged_by_its_signal_to_noise_ratio(folder: Path) -> None:
    """On the CPU, which has kernels of its own for it. In float32 the same errors would be too large."""
    with load(folder / "bundle-fp16", threads=1) as model:
        found = examine_contender("a", model, folder, seconds, cell_s=0.0, batches=())
    assert found.verdict == "right"
    assert gpu_check.LEAST_SQNR_DB < found.sqnr_db < 90
    assert replace(found, score_error=5e-4).verdict == "right"
    assert replace(found, score_error=5e-4, precision="fp32").verdict == "WRONG"
    assert replace(found, sqnr_db=39.9).verdict == replace(found, trajectory_error=0.02).verdict == "WRONG"
    assert replace(found, sqnr_db=float("nan")).verdict == "WRONG"


@pytest.mark.parametrize(
    ("contender", "of", "graphs", "precision"),
    [
        (Contender.EAGER, None, "step", "fp32"),
        (Contender.ORT, None, "step", "fp32"),
        (Contender.TENSORRT_SPLIT, Contender.TENSORRT, "split", "fp32"),
        (Contender.RTX_HALF, Contender.RTX, "step", "fp16"),
    ],
)
def test_forms_are_of_a_contender(contender: Contender, of: Contender | None, graphs: str, precision: str) -> None:
    assert (contender.form_of, contender.graphs, contender.precision) == (of, graphs, precision)


def test_forms_of_what_does_not_run_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def run_apart(contender: Contender, folder: Path, limit_s: float) -> Finding:
        tried.append(contender)
        return Finding(contender, "not installed" if contender is Contender.TENSORRT else "")

    monkeypatch.setattr(gpu_check, "run_apart", run_apart)
    monkeypatch.setattr(gpu_check, "make_model", lambda folder: folder)
    monkeypatch.setattr(gpu_check, "visible_gpu", lambda: Gpu("H", (9, 0), "1"))
    found = {finding.name: finding.reason for finding in gpu_check.check(lambda line: None).findings}
    assert list(found) == list(Contender)
    assert set(Contender) - set(tried) == {Contender.TENSORRT_SPLIT, Contender.TENSORRT_HALF}
    assert found[Contender.TENSORRT_HALF] == "not tried, as tensorrt: not installed"
