"""From nothing to the first sample: every rival in a process of its own, and reasons in place of crashes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.records import Start
from bench.startup import StartOptions, StartRival, measure_starts, peak_bytes
from export.checkpoint import Checkpoint
from tests.tiny import make_bundle

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A small transformer."""
    return make_bundle(tmp_path_factory.mktemp("startup"))


def test_pytorch_and_onnx_runtime_start_and_are_told_apart(made: tuple[Path, Checkpoint]) -> None:
    """PyTorch is the larger process, nothing is built for it, and its imports are in what loading took."""
    bundle, checkpoint = made
    before = sorted(bundle.rglob("*"))
    heard: list[str] = []
    options = StartOptions(bundle, checkpoint.path, batch_size=2, steps=3, threads=1)
    found = measure_starts(options, (StartRival.EAGER, StartRival.STEP), heard.append)
    assert found.missing == ()
    eager, step = found.starts
    assert heard == [eager.rival, step.rival] == ["pytorch eager", "onnxruntime step"]
    assert eager.build_s is None
    assert step.build_s is not None
    assert step.build_s > 0
    assert eager.load_s > step.load_s > 0.05
    assert eager.peak_bytes > step.peak_bytes > 20e6
    for start in found.starts:
        assert 0 < start.steady_s < start.load_s
        assert 0 < start.first_sample_s < start.load_s
    assert sorted(bundle.rglob("*")) == before  # what is built is built elsewhere


def test_without_a_checkpoint_pytorch_is_left_out_and_the_bundle_runs(made: tuple[Path, Checkpoint]) -> None:
    found = measure_starts(
        StartOptions(made[0], steps=2, threads=1), (StartRival.EAGER, StartRival.COMPILED, StartRival.SPLIT)
    )
    assert found.missing == (
        "pytorch eager: it needs the checkpoint, and none was given",
        "torch.compile: it needs the checkpoint, and none was given",
    )
    (split,) = found.starts
    assert (split.rival, split.build_s) == ("onnxruntime split", None)


def test_who_needs_a_gpu_says_so_where_there_is_none(
    made: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.gpu.visible_gpu", lambda: None)
    found = measure_starts(StartOptions(made[0]), (StartRival.CUDA, StartRival.TENSORRT, StartRival.RTX))
    assert found.starts == ()
    assert [one.partition(":")[0] for one in found.missing] == ["onnxruntime cuda", "tensorrt", "tensorrt-rtx"]
    assert all(one.endswith("it needs an NVIDIA GPU and its driver, and none was found here") for one in found.missing)


def test_a_process_that_fails_or_hangs_is_a_reason(made: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    """A damaged bundle is told as the runtime tells it; the time limit holds."""
    damaged = shutil.copytree(made[0], tmp_path / "damaged")
    (damaged / "onnx" / "step.onnx").write_bytes(b"")
    (told,) = measure_starts(StartOptions(damaged), (StartRival.STEP,)).missing
    assert told.startswith("onnxruntime step: onnx/step.onnx of ")
    assert told.endswith("export the bundle again")
    (told,) = measure_starts(StartOptions(made[0], limit_s=0.01), (StartRival.STEP,)).missing
    assert told == "onnxruntime step: it took longer than 0.01 s; raise limit_s"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++, and there is none here")
def test_compilation_is_what_is_built_for_torch_compile(made: tuple[Path, Checkpoint]) -> None:
    options = StartOptions(made[0], made[1].path, steps=3, threads=1)
    found = measure_starts(options, (StartRival.COMPILED,))
    (start,) = found.starts
    assert start.build_s is not None
    assert start.build_s > 100 * start.steady_s


def test_the_memory_of_a_process_is_its_own() -> None:
    """Of getrusage a child would have at least the 300 MB of its parent."""
    filled = np.ones(300_000_000, np.uint8)
    code = "from bench.startup import peak_bytes; print(peak_bytes())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert peak_bytes() > len(filled)
    assert 1e6 < int(ran.stdout) < 100e6


def test_the_program_imports_nothing_before_it_is_asked_to() -> None:
    """Imports are measured: what the bench needs must not be among those of a rival."""
    code = "import sys, bench.startup; print([m for m in ('numpy', 'torch', 'onnxruntime') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("change", [{"steps": 1}, {"batch_size": 0}])
def test_options_that_cannot_be_meant_are_an_error(made: tuple[Path, Checkpoint], change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        StartOptions(made[0], **change)  # type: ignore[arg-type]


def test_a_start_is_a_part_of_a_record(made: tuple[Path, Checkpoint]) -> None:
    found = measure_starts(StartOptions(made[0], steps=2, threads=1), (StartRival.STEP,))
    assert Start(**json.loads(json.dumps(vars(found.starts[0])))) == found.starts[0]
