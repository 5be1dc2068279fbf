"""Backends of a GPU in the bench, without one: TensorRT's real code over a driver that records, ONNX Runtime's device
path with the CPU as the device."""

import ctypes
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import CompareOptions, Comparison, compare
from bench.latency import RaceOptions
from bench.on_gpu import OnGpu
from bench.quality import QualityOptions
from bench.records import Row
from bench.startup import StartRival
from engines.flavor import Flavor
from engines.recipe import Recipe
from runtime.backends.ort import OrtBackend
from runtime.cache.plan import Plan
from runtime.errors import BackendError
from tests.recording_driver import GPU, RecordingDriver, compiled_kernels, open_recorded, write_engines
from tests.tiny import make_bundle

STEPS, WAYS = 12, ("uncached", "E2-CRF")


class OrtOnDevice(OrtBackend):
    """ONNX Runtime that takes the CPU for a GPU with memory of its own."""

    def __init__(self, *arguments: Any, device: str = "cpu", **options: Any) -> None:
        super().__init__(*arguments, has_own_memory=device == "cuda", **options)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> CompareOptions:
    """The shortest bench of a tiny model with engines for TensorRT and a plan that recomputes few tokens, too."""
    folder = tmp_path_factory.mktemp("on_gpu")
    bundle, checkpoint = make_bundle(folder)
    write_engines(bundle, Recipe(flavor=Flavor.TENSORRT, batch=4, buckets=(8,)))
    np.save(folder / "real.npy", np.random.default_rng(0).standard_normal((20, 15, 2)).astype(np.float32))
    plan = Plan(source_digest=checkpoint.digest, steps=STEPS, solver="ancestral", refreshes=(3, 8), K=2, low_steps=(5,))
    return CompareOptions(
        bundle, folder / "real.npy", num_samples=4, num_search=2, most_passes=2, batch_size=2, steps=STEPS, cache=plan,
        threads=1, race=RaceOptions(rounds=1, warmups=0, turn_s=0.0), quick=True,
        quality=QualityOptions(num_directions=20, num_resamples=10, interval_directions=5),
    )  # fmt: skip


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, kernels: ctypes.CDLL) -> list[RecordingDriver]:
    """A machine with a GPU on which ONNX Runtime and TensorRT open; the drivers that were opened."""
    drivers: list[RecordingDriver] = []

    def open_tensorrt(bundle: Path, manifest: Any, flavor: str, *, stream: Any = None) -> Any:
        if flavor != Flavor.TENSORRT:
            raise BackendError(f"{bundle} has no engine of step for flavour rtx, none was found; build one")
        backend, driver = open_recorded(bundle, kernels)
        drivers.append(driver)
        return backend

    monkeypatch.setattr("bench.twins.visible_gpu", lambda: GPU)
    monkeypatch.setattr("runtime.backends.tensorrt.open_tensorrt", open_tensorrt)
    monkeypatch.setattr("runtime.backends.ort.OrtBackend", OrtOnDevice)
    return drivers


def rows_by_name(found: Comparison) -> dict[str, Row]:
    return {row.rival: row for row in found.record.rows}


def test_backends_that_open_on_the_gpu_are_twins_of_both_rows(
    options: CompareOptions, with_gpu: list[RecordingDriver]
) -> None:
    """Oracle of what they draw: the CPU's samples, as the timed batch measures it.

    1e-3 data std: rounding over 12 steps of an untrained network, whose samples are hundreds of them large.
    """
    found = compare(options)
    rows = rows_by_name(found)
    for backend in ("onnxruntime cuda", "tensorrt"):
        for way in WAYS:
            twin, judged = rows[f"{backend}, {way}"], rows[f"onnxruntime, {way}"]
            assert twin.same_as == judged.rival
            assert (twin.sw_time, twin.spectral, twin.num_samples) == (judged.sw_time, judged.spectral, 4)
            assert twin.ms_per_sample is not None
            assert twin.speedup is not None
            assert twin.paired_error is not None
            assert twin.paired_error < 1e-3
    (driver,) = with_gpu
    assert {"context", "launch", "replay"} <= {entry[0] for entry in driver.log}  # the bench ran on it, captured
    assert found.record.notes == (
        "tensorrt-rtx: bundle has no engine of step for flavour rtx, none was found; build one",
    )  # without the folders that the bundle lies in


def test_an_engine_that_computes_something_else_shows_in_the_paired_error(
    options: CompareOptions, with_gpu: list[RecordingDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordingDriver, "run_engine", lambda *_: None)  # scores stay as they were
    rows = rows_by_name(compare(options))
    assert (rows["tensorrt, uncached"].paired_error or 0) > 0.1
    assert (rows["onnxruntime cuda, uncached"].paired_error or 0) < 1e-3


def test_what_breaks_on_the_gpu_is_a_sentence_and_no_row(
    options: CompareOptions, with_gpu: list[RecordingDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that no engine takes, and a library that raises a type of its own."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA failure 999:\n unknown error")

    monkeypatch.setattr(f"{__name__}.OrtOnDevice._bind_device", broken)
    found = compare(replace(options, batch_size=5))
    assert {name.partition(",")[0] for name in rows_by_name(found)} & set(OnGpu) == set()
    told = found.record.notes
    assert [note.partition(":")[0] for note in told] == list(OnGpu)
    assert told[0] == "onnxruntime cuda: RuntimeError: CUDA failure 999: unknown error"
    assert told[1].startswith("tensorrt: the engine of step takes batches of 1 to 4, found 5;")


def test_without_a_gpu_nothing_is_tried_and_nothing_is_told(
    options: CompareOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.twins.visible_gpu", lambda: None)
    monkeypatch.setattr(OnGpu, "open", lambda *_: pytest.fail("it was tried"))
    found = compare(options)
    assert found.record.notes == ()
    assert {row.rival for row in found.record.rows if row.same_as} == {f"onnxruntime split, {way}" for way in WAYS}


def test_a_bench_imports_no_library_of_a_gpu() -> None:
    code = "import bench.compare, sys; print({'cuda', 'tensorrt', 'tensorrt_rtx', 'polygraphy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_all_that_open_a_gpu_mean_the_same_by_a_name() -> None:
    assert {rival.value for rival in StartRival if rival.needs_gpu} == {one.value for one in OnGpu}


def test_pytorch_on_the_gpu_stands_beside_the_engines(
    options: CompareOptions, with_gpu: list[RecordingDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU for a GPU: eager is a twin of both rows, and a speed-up on a GPU has its own PyTorch to stand by."""
    monkeypatch.setattr("bench.baseline.TorchGpu.__init__.__kwdefaults__", {"device": "cpu"})
    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    plan = replace(options.cache, K=0, low_steps=())  # type: ignore[type-var]
    checkpoint = options.bundle.parent / "tiny.ckpt"
    rows = rows_by_name(compare(replace(options, cache=plan, checkpoint=checkpoint)))
    for name in ("pytorch cuda", "torch.compile cuda"):
        for way in WAYS:
            one = rows[f"{name}, {way}"]
            assert one.same_as == f"onnxruntime, {way}"
            assert one.paired_error is not None
            assert one.paired_error < 1e-4
            assert one.speedup is not None


def test_where_the_plan_asks_for_few_tokens_pytorch_on_the_gpu_is_uncached(
    options: CompareOptions, with_gpu: list[RecordingDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.baseline.TorchGpu.__init__.__kwdefaults__", {"device": "cpu"})
    monkeypatch.setattr("torch.compile", lambda module, **_: module)
    found = compare(replace(options, checkpoint=options.bundle.parent / "tiny.ckpt"))
    assert "pytorch cuda, uncached" in rows_by_name(found)
    assert "pytorch cuda, E2-CRF" not in rows_by_name(found)
    assert [note for note in found.record.notes if note.startswith("pytorch cuda, E2-CRF: ")]
