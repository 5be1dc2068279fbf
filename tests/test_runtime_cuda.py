"""The kernels' arithmetic against NumPy, and every call of the real driver against the libraries that are installed.

No GPU is here: the kernels are compiled by the host's C compiler, and the libraries' own classes are asked for
their names and signatures while the real driver's code runs.
"""

import ctypes
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.backends.cuda import CudaDriver, OutOfMemory
from runtime.backends.cuda_kernels import FRAME, KERNELS, SOURCE, THREADS
from runtime.errors import BackendError
from runtime.noise import standard_normal
from tests.recording_driver import compiled_kernels


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled_kernels(tmp_path_factory.mktemp("kernels"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 3), st.integers(0, 300))
def test_noise_is_that_of_the_host(
    kernels: ctypes.CDLL, seed: int, sample: int, tokens: int, channels: int, step: int
) -> None:
    """The prior by `start`, a step's noise by `coast` with all else zero. Tolerance: two units in the last place
    of the largest draw, for libm's logarithm and NumPy's may differ in the last bit."""
    samples, width, num_steps = np.array([sample, sample + 7], np.int64), tokens * channels, step + 1
    held: dict[str, Any] = {name: np.zeros((2, tokens, channels), np.float32)
                            for name in ("z", "data", "before", "value", "slope", "unheld")}  # fmt: skip
    held |= {"sample": samples, "times": np.zeros(num_steps), "surprise": np.zeros(2, np.float32)}
    held |= {"made": np.zeros((2, tokens), np.int64), "control": np.zeros(2, np.int64)}
    held |= {name: np.zeros(2, np.int64) for name in ("mask", "prior")}
    held |= {name: np.zeros((num_steps, tokens, channels), np.float32) for name in ("gaussian", "from_latent")}
    held |= {"from_value": np.zeros((num_steps, tokens), np.float32), "scalars": np.zeros((num_steps, 5), np.float32)}
    held |= {name: np.ones((num_steps, tokens), np.float32) for name in ("step_noise", "prior_scale")}
    frame = np.zeros((), FRAME)
    for name, value in {"batch": 2, "tokens": tokens, "channels": channels, "is_stochastic": 1, "seed": seed}.items():
        frame[name] = value
    for name, array in held.items():
        frame[name] = array.ctypes.data
    at = ctypes.c_int64(frame.ctypes.data)
    kernels.start(at)
    expected = standard_normal(seed, samples, 0, 1, width)[0]
    np.testing.assert_allclose(held["z"].reshape(2, -1), expected, atol=2e-6)
    kernels.coast(at, ctypes.c_int64(step), ctypes.c_int64(step + 1), ctypes.c_int64(0))
    expected = standard_normal(seed, samples, step + 1, 1, width)[0]
    np.testing.assert_allclose(held["z"].reshape(2, -1), expected, atol=2e-6)
    assert held["control"].tolist() == [0, step + 1]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no CUDA compiler here")
def test_the_source_is_cuda(tmp_path: Path) -> None:
    (tmp_path / "kernels.cu").write_text(SOURCE, encoding="utf-8")
    command = ["nvcc", "-cubin", "-arch=sm_90", "-std=c++17", "-Werror", "all-warnings", "-o", "kernels.cubin"]
    subprocess.run([*command, "kernels.cu"], cwd=tmp_path, check=True)
    content = (tmp_path / "kernels.cubin").read_bytes()
    assert all(name.encode() in content for name in KERNELS)


# --- the driver's calls ---------------------------------------------------------------------------------

HANDLE = 77  # of the stream
ENGINE = bytes(120)


class Strict:
    """Stands for an object of a library's class: has its members and no others, and takes what they take."""

    def __init__(self, kind: Any, calls: list[str], **returns: Any) -> None:
        self._kind, self._calls, self._returns = kind, calls, returns

    def __getattr__(self, name: str) -> Any:
        member = inspect.getattr_static(self._kind, name)  # AttributeError where there is none
        self._calls.append(f"{self._kind.__name__}.{name}")
        if not callable(getattr(self._kind, name)):
            return self._returns[name]
        bound = isinstance(member, staticmethod | classmethod)
        return strict_call(getattr(self._kind, name), self._returns.get(name), skips_self=not bound)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._returns["made"]


class Moment(Strict):
    """An event; two of them lie 2 ms apart."""

    def __sub__(self, earlier: "Moment") -> float:
        assert callable(self._kind.__sub__)
        assert self._calls[-1] == "Event.sync", "read before it has come"
        return 2.0


def strict_call(member: Any, result: Any, *, skips_self: bool = False) -> Callable[..., Any]:
    """A function that takes what `member` takes and gives `result`; of a pybind11 function by its docstring."""

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            signature = inspect.signature(member)
        except ValueError:
            counts = [line.count(": ") for line in re.findall(r"\(self: [^\n]*\) ->", member.__doc__)]
            counts += [count - line.count(" = ") for count, line in
                       zip(list(counts), re.findall(r"\(self: [^\n]*\) ->", member.__doc__), strict=True)]  # fmt: skip
            assert len(arguments) + 1 in counts, (member, counts)
            assert not options
        else:
            signature.bind(*([None] if skips_self else []), *arguments, **options)
        return result(*arguments, **options) if callable(result) and not isinstance(result, Strict) else result

    return call


def strict_trt(
    trt: ModuleType,
    calls: list[str],
    *,
    loads: bool = True,
    allows: bool = True,
    validity: tuple[Any, int] | None = None,
) -> Any:
    """A TensorRT whose objects are strict; `loads` an engine, `allows` what a context is told.

    `validity` is what TensorRT-RTX says of every engine.
    """

    def on_stream(*arguments: int) -> bool:
        assert arguments[-1] == HANDLE, "on another stream than the driver's"
        return allows

    def made(*settings: Any) -> Strict:
        for config in settings:  # RTX: all kernels at the first run, so that a capture finds them
            strategy = config.dynamic_shapes_kernel_specialization_strategy
            assert strategy == trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return context

    told: dict[str, Any] = dict.fromkeys(("set_input_shape", "set_tensor_address"), allows)
    told |= dict.fromkeys(("set_optimization_profile_async", "execute_async_v3"), on_stream)
    context = Strict(trt.IExecutionContext, calls, **told)
    returns: dict[str, Any] = {"create_execution_context": made}
    if hasattr(trt.ICudaEngine, "create_runtime_config"):
        returns["create_runtime_config"] = SimpleNamespace()
    engine = Strict(trt.ICudaEngine, calls, **returns) if loads else None
    made_by: dict[str, Any] = {"deserialize_cuda_engine": engine}
    if hasattr(trt.Runtime, "get_engine_validity"):
        header = 64  # bytes
        said = validity or (trt.EngineValidity.VALID, 0)
        made_by |= {"engine_header_size": header, "get_engine_validity": lambda told: _of_header(told, header, said)}
    module = SimpleNamespace(
        __name__=trt.__name__, __version__=trt.__version__, Logger=trt.Logger,
        Runtime=strict_call(trt.Runtime.__init__, Strict(trt.Runtime, calls, **made_by)),
    )  # fmt: skip
    for name in ("EngineValidity", "EngineInvalidityDiagnostics"):
        if hasattr(trt, name):
            setattr(module, name, getattr(trt, name))
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
        module.DynamicShapesKernelSpecializationStrategy = trt.DynamicShapesKernelSpecializationStrategy
    return module


def _of_header(told: bytes, header: int, said: tuple[Any, int]) -> tuple[Any, int]:
    assert len(told) == header, "all of an engine was read for its header"
    return said


@pytest.fixture(params=["tensorrt_rtx", "tensorrt", "tensorrt_lean"])
def trt(request: pytest.FixtureRequest) -> ModuleType:
    """The lean TensorRT has the names of the full one's runtime, and installs without a GPU."""
    return pytest.importorskip(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[str]]:
    """cuda.core with strict objects in place of those that need a GPU, and what was asked of them."""
    real = pytest.importorskip("cuda.core")
    bindings = importlib.import_module("cuda.bindings.driver")
    calls: list[str] = []
    graph = Strict(real.graph.Graph, calls)
    builder = Strict(real.graph.GraphBuilder, calls, complete=graph)
    event = Moment(real.Event, calls)
    stream = Strict(real.Stream, calls, handle=HANDLE, create_graph_builder=builder, record=event,
                    context="the caller's")  # fmt: skip
    buffer = Strict(real.Buffer, calls, handle=4096)
    copies, launches = list[tuple[int, int, int]](), list[tuple[Any, ...]]()

    def view(address: int, size: int) -> Strict:
        def copied(source: Any, *, stream: Any) -> None:
            assert stream._returns["handle"] == HANDLE
            assert source._returns["size"] == size
            copies.append((address, source._returns["handle"], size))

        return Strict(real.Buffer, calls, handle=address, size=size, copy_from=copied)

    def launched(stream: Any, config: Any, kernel: Any, *arguments: int) -> None:
        launches.append((config.grid, config.block, *arguments))

    locked = np.full(8, 7, np.float32)  # stands for page-locked memory
    twin = Strict(real.Buffer, calls, handle=locked.ctypes.data, size=locked.nbytes,
                  copy_from=view(locked.ctypes.data, locked.nbytes)._returns["copy_from"])  # fmt: skip
    pinned = Strict(real.LegacyPinnedMemoryResource, calls, allocate=twin)
    device = Strict(real.Device, calls, create_stream=stream, allocate=buffer, arch="90")
    stream._returns["device"] = device
    code = Strict(real.ObjectCode, calls, get_kernel=Strict(real.Kernel, calls))
    program = Strict(real.Program, calls, compile=code)
    assert real.Program.__doc__.startswith("Program(code: str | bytes | bytearray, code_type:")
    stand_in = SimpleNamespace(
        Device=lambda: device, Program=lambda code, code_type, options: program, LaunchConfig=real.LaunchConfig,
        ProgramOptions=real.ProgramOptions, EventOptions=real.EventOptions, launch=strict_call(real.launch, launched),
        Stream=Strict(real.Stream, calls, from_handle=stream), Buffer=Strict(real.Buffer, calls, from_handle=view),
        LegacyPinnedMemoryResource=lambda: pinned, locked=locked, copies=copies, launches=launches,
    )  # fmt: skip
    monkeypatch.setattr(sys.modules["cuda"], "core", stand_in)
    assert callable(bindings.cuMemGetInfo)
    monkeypatch.setattr(bindings, "cuMemGetInfo", lambda: (0, 5 << 20, 9 << 20))
    return stand_in, calls


def test_every_call_of_the_driver_is_one_that_the_libraries_take(trt: ModuleType, core: tuple[Any, list[str]]) -> None:
    calls = core[1]
    driver = CudaDriver(strict_trt(trt, calls))
    assert driver.stream == HANDLE
    block, values = driver.allocate(1024), np.zeros(8, np.float32)
    assert block.address == 4096
    driver.upload(block.address, values)
    driver.download(values, block.address)
    driver.copy(block.address, block.address + 512, 256)
    driver.zero(block.address, 1024)
    driver.launch("coast", 300, 4096, 0, 5, 1)
    driver.capture(lambda: driver.launch("advance", 300, 4096, 0))()
    first, last = driver.record(), driver.record()
    assert last.since(first) == pytest.approx(2e-3)  # the library tells milliseconds
    driver.synchronize()
    assert driver.free_memory() == 5 << 20
    context = driver.load(ENGINE).context(2)
    context.set_shape("z", (2, 15, 2))
    context.set_address("z", 4096)
    context.enqueue()
    host = values.ctypes.data
    assert core[0].copies == [(4096, host, 32), (host, 4096, 32), (4096, 4096 + 512, 256)]  # to, from, bytes
    blocks = -(-300 // THREADS)
    assert [(one[0][0], one[1][0]) for one in core[0].launches] == [(blocks, THREADS)] * 2
    assert [one[2:] for one in core[0].launches] == [(4096, 0, 5, 1), (4096, 0)]
    used = {name.partition(".")[0] for name in calls}
    assert used >= {"Device", "Stream", "Buffer", "GraphBuilder", "Graph", "ObjectCode", "IExecutionContext"}


def test_a_stream_of_the_callers_brings_its_context(trt: ModuleType, core: tuple[Any, list[str]]) -> None:
    calls = core[1]
    assert CudaDriver(strict_trt(trt, calls), stream=1234).stream == HANDLE
    assert [name for name in calls if name.startswith(("Stream", "Device"))][:4] == [
        "Stream.from_handle", "Stream.device", "Device.set_current", "Stream.context",
    ]  # fmt: skip


def test_a_call_that_a_library_does_not_take_is_noticed() -> None:
    """The check itself can fail."""
    real = pytest.importorskip("cuda.core")
    trt = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(TypeError):
        strict_call(real.Stream.record, None, skips_self=True)(1, 2, 3)
    with pytest.raises(AttributeError):
        _ = Strict(real.Stream, []).begin_capture
    with pytest.raises(AssertionError):
        strict_call(trt.IExecutionContext.set_tensor_address, True, skips_self=True)("z")


def test_what_tensorrt_refuses_is_said(trt: ModuleType, core: tuple[Any, list[str]]) -> None:
    calls = core[1]
    with pytest.raises(BackendError, match="refuses this engine on this GPU; delete"):
        CudaDriver(strict_trt(trt, calls, loads=False)).load(ENGINE)
    engine = CudaDriver(strict_trt(trt, calls, allows=False)).load(ENGINE)
    with pytest.raises(BackendError, match="refuses optimization profile 3"):
        engine.context(3)


@pytest.mark.parametrize(
    ("bits", "reason"), [(2, "unsupported cc"), (10, "unsupported cc, old cuda runtime"), (0, "no")]
)
def test_an_engine_of_another_gpu_is_refused_by_its_header(core: tuple[Any, list[str]], bits: int, reason: str) -> None:
    """Nothing is loaded of it: TensorRT-RTX on a data-centre GPU, say."""
    trt, calls = pytest.importorskip("tensorrt_rtx"), core[1]
    driver = CudaDriver(strict_trt(trt, calls, validity=(trt.EngineValidity.INVALID, bits)))
    with pytest.raises(BackendError, match=rf"on this GPU \({reason}.*\); delete .*--backend onnxruntime"):
        driver.load(ENGINE)
    assert "Runtime.deserialize_cuda_engine" not in calls


def test_what_rtx_says_of_a_header_is_read_as_it_says_it() -> None:
    """The real library, where there is no GPU: of zeros that they are no engine."""
    trt = pytest.importorskip("tensorrt_rtx")
    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    validity, found = runtime.get_engine_validity(bytes(runtime.engine_header_size))
    assert validity == trt.EngineValidity.INVALID
    assert found & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


def test_without_tensorrt_the_driver_does_all_but_engines(core: tuple[Any, list[str]]) -> None:
    driver = CudaDriver(None)
    driver.launch("coast", 300, 4096, 0, 5, 1)
    driver.synchronize()
    assert driver.allocate(8).address == 4096


def test_a_capture_that_fails_is_ended(core: tuple[Any, list[str]]) -> None:
    """Whether the work or the end of the capture fails: the stream must not go on capturing."""
    calls, driver = core[1], CudaDriver(None)
    with pytest.raises(ZeroDivisionError):
        driver.capture(lambda: print(1 // 0))
    assert calls[-1] == "GraphBuilder.close"

    def invalidated() -> None:
        raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

    driver._stream._returns["create_graph_builder"]._returns["end_building"] = invalidated
    with pytest.raises(RuntimeError, match="INVALIDATED"):
        driver.capture(lambda: None)
    assert calls[-1] == "GraphBuilder.close"


def test_a_host_array_is_free_when_its_upload_returns(core: tuple[Any, list[str]]) -> None:
    calls, driver = core[1], CudaDriver(None)
    driver.upload(4096, np.zeros(8, np.float32))
    assert calls[-1] == "Stream.sync"


def test_floats_are_fetched_while_the_host_goes_on(core: tuple[Any, list[str]]) -> None:
    """Into page-locked memory, and the host waits for that copy alone, when it reads."""
    stand_in, calls = core
    driver = CudaDriver(None)
    mirror = driver.mirror(4096, 8)
    mirror.fetch()
    assert stand_in.copies == [(stand_in.locked.ctypes.data, 4096, 32)]
    assert not [name for name in calls if name.endswith(".sync")]
    assert mirror.numpy().tolist() == [7.0] * 8
    assert [name for name in calls if name.endswith(".sync")] == ["Event.sync"]


def test_a_full_gpu_is_said_with_what_is_free(trt: ModuleType, core: tuple[Any, list[str]]) -> None:
    calls = core[1]
    driver = CudaDriver(strict_trt(trt, calls))

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: the API call failed")

    driver._device._returns["allocate"] = full
    with pytest.raises(OutOfMemory, match="no room for 64 MiB more, 5 MiB are free"):
        driver.allocate(64 << 20)
    said = str(OutOfMemory("no room").of_batch(9))
    assert said == "a batch of 9 does not fit the GPU (no room); take --batch-size 4"


def test_nothing_of_cuda_is_imported_on_the_cpu_path() -> None:
    code = "import sys, runtime, runtime.backends.ort\nfrom runtime.backends.base import open_backend\n"
    code += "print(sorted({'cuda', 'tensorrt', 'tensorrt_rtx', 'engines', 'pycuda', 'polygraphy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
