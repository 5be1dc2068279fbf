"""Kernels, memory, events and captured graphs on a real GPU, without TensorRT: only the engines run on the host.

Where there is no GPU the same tests run over host memory, so that what is new on a GPU is the driver alone. Needs
cuda.core and NVRTC (`pip install 'e2crf[gpu]'`). Oracle: the CPU backend, same seed; tolerance 1e-5 of the latents'
scale, float32 in another order.
"""

import ctypes
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from engines.flavor import Flavor
from engines.gpu import visible_gpu
from export.manifest import Graph, read_manifest
from runtime.backends.cuda import CudaDriver
from runtime.backends.tensorrt import TensorrtBackend
from runtime.cache.hold import LinearHold
from runtime.cache.options import E2CRF
from runtime.cache.policy import Reuse
from runtime.sampler import Model
from tests.recording_driver import GPU, LIBRARY, RecordedEngine, RecordingDriver, compiled_kernels, write_engines
from tests.test_runtime_tensorrt import RECIPE, HeldApart, assert_same, plan_of
from tests.tiny import make_bundle

pytestmark = pytest.mark.filterwarnings("ignore::runtime.errors.BackendWarning")  # these engines cannot be captured
HAS_GPU = visible_gpu() is not None and importlib.util.find_spec("cuda") is not None
ON_GPU = pytest.param("cuda", marks=pytest.mark.skipif(not HAS_GPU, reason="no GPU, or no cuda.core, here"))


class HostEngines:
    """A driver whose engines copy their inputs to the host and their outputs back; a GPU cannot capture that."""

    graphs: dict[str, Graph]
    download: Callable[..., None]
    upload: Callable[..., None]

    def load(self, engine: bytes) -> RecordedEngine:
        made = json.loads(engine)
        return RecordedEngine(self, made["graph"], made["file"], made["profiles"])  # type: ignore[arg-type]

    def run_engine(self, name: str, file: str, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
        feeds = {}
        for tensor in self.graphs[name].inputs:
            feeds[tensor.name] = np.empty(shapes[tensor.name], tensor.dtype)
            self.download(feeds[tensor.name], addresses[tensor.name])
        for tensor, result in zip(self.graphs[name].outputs, session.run(None, feeds), strict=True):
            self.upload(addresses[tensor.name], np.ascontiguousarray(result))


class OnHost(HostEngines, RecordingDriver):
    """Host memory."""


class OnGpu(HostEngines, CudaDriver):
    """The memory, kernels and stream of the GPU here."""

    def __init__(self, graphs: dict[str, Graph]) -> None:
        super().__init__(None)
        self.graphs, self.log = graphs, list[Any]()

    def holds(self, address: int, size: int) -> bool:
        return True

    def _do(self, entry: Any, work: Callable[[], Any]) -> None:
        work()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = make_bundle(tmp_path_factory.mktemp("tiny"))
    write_engines(folder, RECIPE)
    return folder


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=["host", ON_GPU])
def model(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Model]:
    manifest = read_manifest(bundle)
    if request.param == "cuda":
        driver: Any = OnGpu(manifest.graphs)
    else:
        driver = OnHost(request.getfixturevalue("kernels"), bundle, manifest.graphs)
    backend = TensorrtBackend(bundle, manifest, Flavor.TENSORRT, driver, LIBRARY, GPU)
    with Model(manifest, backend, bundle=bundle) as opened:
        yield opened


@pytest.mark.parametrize("solver", ["euler_maruyama", "ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_uncached_samples_are_those_of_the_cpu(model: Model, bundle: Path, solver: str) -> None:
    assert assert_same(model, bundle, solver=solver, cache=None).stats.work.seconds > 0


@pytest.mark.parametrize("reuse", ["residual-linear", "feature"])
def test_cached_samples_are_those_of_the_cpu(model: Model, bundle: Path, reuse: str) -> None:
    """Refreshes, low frequencies padded to a bucket, prior phase, runs of steps that ask nothing."""
    assert_same(model, bundle, cache=E2CRF(R=7, K=2, low_every=3, reuse=reuse))


def test_samples_of_a_fitted_plan_are_those_of_the_cpu(model: Model, bundle: Path) -> None:
    rng = np.random.default_rng(3)
    fit = tuple(LinearHold(*rng.normal([[[1.0]], [[0.0]], [[0.0]], [[0.0]]], 0.1, (4, 15, 2)).astype(np.float32))
                for _ in range(3))  # fmt: skip
    assert_same(model, bundle, solver="ddim", cache=plan_of(bundle, reuse=Reuse.RESIDUAL_FITTED, fit=fit))


def test_samples_that_go_their_own_ways_are_those_of_the_cpu(model: Model, bundle: Path) -> None:
    """Under a mask: what the other samples keep is put back."""
    fit = [LinearHold(*np.full((4, 15, 2), share, np.float32)) for share in (0.1, 0.4)]
    assert_same(model, bundle, n=3, solver="ddim", cache=HeldApart(fit))


def test_samples_of_a_guarded_plan_are_those_of_the_cpu(model: Model, bundle: Path) -> None:
    """Limits that every surprise is above, once: at step 13 all samples are refreshed once more."""
    stats = assert_same(model, bundle, cache=plan_of(bundle, surprise=(1e9, 0.0, 1e9), guard=1.0)).stats
    assert stats.event_counts["trigger"] == 5


@pytest.mark.skipif(not HAS_GPU, reason="no GPU, or no cuda.core, here")
def test_what_was_fetched_is_of_its_moment() -> None:
    driver, values = CudaDriver(None), np.arange(64, dtype=np.float32)
    block = driver.allocate(values.nbytes)
    mirror = driver.mirror(block.address, 64)
    driver.upload(block.address, values)
    mirror.fetch()
    driver.zero(block.address, values.nbytes)
    assert np.array_equal(mirror.numpy(), values)


@pytest.mark.skipif(not HAS_GPU, reason="no GPU, or no cuda.core, here")
def test_kernels_are_replayed_as_a_captured_graph() -> None:
    driver, values = CudaDriver(None), np.arange(64, dtype=np.float32)
    source, target = driver.allocate(values.nbytes), driver.allocate(values.nbytes)
    driver.upload(source.address, values)
    driver.zero(target.address, values.nbytes)
    start = driver.record()
    replay = driver.capture(lambda: driver.copy(target.address, source.address, values.nbytes))
    found = np.full_like(values, -1)
    driver.download(found, target.address)
    assert not found.any()  # nothing ran while it was captured
    replay()
    driver.download(found, target.address)
    assert np.array_equal(found, values)
    assert driver.record().since(start) > 0
