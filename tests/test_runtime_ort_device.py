"""ONNX Runtime with caches in memory of a device, the CPU standing in for one: samples are the plain backend's."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from export.manifest import read_manifest
from runtime.backends.base import CUDA_PROVIDER_REMEDY
from runtime.backends.ort import OrtBackend
from runtime.cache.options import E2CRF
from runtime.cli import main
from runtime.doctor import examine
from runtime.errors import BackendError, BackendWarning
from runtime.sampler import Model, load
from tests.tiny import make_bundle

CACHES = {
    "uncached": None,
    "interval": E2CRF(R=7, K=2, low_every=3),
    "published": E2CRF(policy="e2crf", K=2, R=8, error_feedback=0.1, random_probe_ratio=0.2),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("tiny"))[0]


@pytest.mark.parametrize("graphs", ["step", "split"])
@pytest.mark.parametrize("cache", CACHES)
def test_samples_are_bit_for_bit_those_of_the_plain_backend(bundle: Path, cache: str, graphs: str) -> None:
    """The same kernels on the same machine: no tolerance."""
    manifest = read_manifest(bundle)
    device = OrtBackend(bundle, manifest.graphs, threads=1, has_own_memory=True)
    plainly = OrtBackend(bundle, manifest.graphs, threads=1, compiled=False)
    with Model(manifest, plainly, graphs=graphs) as plain, Model(manifest, device, graphs=graphs) as model:
        for _ in range(2):  # the second time with buffers that were used before
            found, expected = (m.sample(5, steps=24, batch_size=3, cache=CACHES[cache]) for m in (model, plain))
            assert np.array_equal(found.z, expected.z)
        assert found.stats.cache_bytes == expected.stats.cache_bytes


def test_without_the_cuda_provider_one_sentence_says_so(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU and ONNX Runtime with CUDA\w+, found CPU"):
        load(bundle, device="cuda")
    for arguments in (["--device", "cuda"], ["--backend", "tensorrt"]):
        with pytest.raises(SystemExit) as stop:
            main(["sample", str(bundle), "--out", str(tmp_path / "samples.npz"), *arguments])
        assert stop.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert "NVIDIA GPU" in said


def test_a_trajectory_copies_no_caches_between_host_and_device(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, copied = read_manifest(bundle), []
    with Model(manifest, OrtBackend(bundle, manifest.graphs, threads=1, has_own_memory=True)) as model:
        model.sample(3, steps=6, batch_size=3, cache=None)
        real = ort.OrtValue.update_inplace

        def update(value: ort.OrtValue, data: np.ndarray) -> None:
            copied.append(data.shape)
            real(value, data)

        monkeypatch.setattr(ort.OrtValue, "update_inplace", update)
        model.sample(3, steps=6, batch_size=3, cache=None)
        assert {len(shape) for shape in copied} == {1, 2, 3}  # t; token; z
        cache = model.backend.zeros((2, 3), "float32")
        assert cache.nbytes == 24
        rows = cache[1:2]
        assert (rows.shape, rows.address - cache[0:1].address) == ((1, 3), 12)


def test_a_graph_that_cannot_be_captured_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = ort.InferenceSession, []

    def session(path: str, options: ort.SessionOptions, providers: list[object]) -> ort.InferenceSession:
        asked.append(providers)
        if len(asked) == 1:
            raise RuntimeError("graph capture: nodes are partitioned\nto the CPU")
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    with (
        load(bundle, device="cuda") as model,
        pytest.warns(BackendWarning, match="cannot capture head as a CUDA graph.*partitioned to the CPU"),
        pytest.raises(BackendError, match="could use none here"),
    ):
        model.backend.run("head", {})
    assert asked[1] == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def test_libraries_of_cuda_are_loaded_and_stdout_is_left_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: print("Failed to load libcudart.so"))
    with load(bundle, device="cuda"):
        assert capsys.readouterr() == ("", "Failed to load libcudart.so\n")


@pytest.mark.parametrize("has_provider", [True, False])
def test_doctor_says_how_to_get_the_provider(monkeypatch: pytest.MonkeyPatch, *, has_provider: bool) -> None:
    """Both packages of ONNX Runtime write one folder: installed together, the CUDA provider may be gone."""
    found = ["CPUExecutionProvider", *(["CUDAExecutionProvider"] if has_provider else [])]
    monkeypatch.setattr(ort, "get_available_providers", lambda: found)
    told = examine("NVIDIA H200 (9.0)")[0]["gpu"]
    assert told.startswith("NVIDIA H200 (9.0); sample with")
    assert "everything here runs on the CPU" in examine(None)[0]["gpu"]
    assert (CUDA_PROVIDER_REMEDY in told) is not has_provider


def test_doctor_says_that_an_installed_package_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    told, text = examine(None)
    assert told["sample"]["ready"] is False
    assert "NOT ready: ONNX Runtime is installed and cannot be imported (" in text


def test_a_provider_that_falls_back_to_the_cpu_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime opens the session all the same where its CUDA libraries are missing."""
    real, asked = ort.InferenceSession, []

    def session(path: str, options: ort.SessionOptions, providers: list[object]) -> ort.InferenceSession:
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    with load(bundle, device="cuda") as model:
        with pytest.raises(BackendError, match="could use none here"):
            model.backend.run("head", {})
        with pytest.raises(BackendError, match=r"of cuda memory for a batch of 6 \(.*\); take --batch-size 3"):
            model.sample(6, steps=4)
    first = asked[0][0]
    assert first == ("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})
