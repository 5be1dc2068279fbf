"""`make gpu-check` as far as it goes without a GPU: the model, the comparison, the cells, the table, the refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import gpu_check
from bench.baseline import TorchGpu
from bench.gpu_check import Contender, Finding, Report, examine_contender, main, make_model, markdown_of
from bench.machine import describe_machine
from engines.errors import EngineError
from export.checkpoint import read_checkpoint
from export.manifest import read_manifest
from runtime.errors import BackendError
from runtime.sampler import Model, load
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
    return Model(read_manifest(folder / "bundle"), TorchGpu(network, device="cpu", is_compiled=False))


def test_a_contender_is_held_against_the_cpu_and_timed(folder: Path) -> None:
    found = examine_contender("pytorch-eager", opened(folder), folder, seconds, cell_s=0.0, batches=(1, 3))
    assert found.verdict == "right"
    assert 0 < found.score_error < 1e-5
    assert [(cell.batch, cell.mode) for cell in found.cells] == [
        (1, "uncached"), (1, "plan"), (3, "uncached"), (3, "plan"),
    ]  # fmt: skip
    assert all(cell.p50_ms == cell.p99_ms == pytest.approx(50) and cell.repeats == 10 for cell in found.cells)
    assert all(cell.call_ms > 0 for cell in found.cells)


def test_a_contender_that_computes_something_else_is_wrong(folder: Path) -> None:
    found = examine_contender("broken", opened(folder, changed=0.1), folder, seconds, cell_s=0.0, batches=())
    assert found.verdict == "WRONG"


def test_the_reference_is_the_cpus(folder: Path) -> None:
    with load(folder / "bundle") as model, np.load(folder / "reference.npz") as reference:
        again = model.sample(2, steps=gpu_check.STEPS, solver="ancestral", cache=None).z
        np.testing.assert_array_equal(again, reference["trajectory"])


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
    assert f"| pytorch-eager | nan | nan | {finding.reason} |" in table


def test_the_table_holds_every_cell(folder: Path) -> None:
    found = examine_contender("a", opened(folder), folder, seconds, cell_s=0.0, batches=(1,))
    lines = markdown_of(Report(describe_machine(), "", [found], 3.0)).splitlines()
    assert [line.split("|")[1:5] for line in lines[-2:]] == [
        [" a ", " 1 ", " uncached ", " 50 "], [" a ", " 1 ", " plan ", " 50 "],
    ]  # fmt: skip
    assert isinstance(found, Finding)
