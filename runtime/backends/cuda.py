"""What a backend asks of a GPU, and the one place that asks it: cuda.core for memory, streams, kernels and graphs,
TensorRT or TensorRT-RTX for engines.

`Driver` is all of it. `CudaDriver` is the real one; the tests have another one that writes down every call and
carries it out on the CPU, so that the code above this file runs whole trajectories without a GPU. What is called
here of the three libraries is held against their installed modules by name and signature; that it runs is for
`make gpu-check`, on a GPU.

Addresses and kernel arguments are plain integers of 64 bits. Everything goes through one stream, in order: host
arrays are free again when `upload` returns and filled when `download` does. A stream of the caller's (pycuda's)
is taken by its handle, and with it the context that it belongs to.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from export.manifest import Tensor
from runtime.backends.cuda_kernels import KERNELS, SOURCE, THREADS
from runtime.errors import BackendError

Array = NDArray[Any]
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}  # bytes; NumPy knows no bfloat16


def shape_of(tensor: Tensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor where its named dimensions (B, S) have these sizes."""
    return tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)


def bytes_of(tensor: Tensor, sizes: Mapping[str, int]) -> int:
    """The bytes it then takes."""
    return int(np.prod(shape_of(tensor, sizes))) * ITEM_SIZES[tensor.dtype]


class OutOfMemory(BackendError):
    """The GPU has no room; whoever knows the batch says which one would fit."""

    def of_batch(self, batch: int) -> BackendError:
        """The same, with a batch to take instead."""
        remedy = f"take --batch-size {batch // 2}" if batch > 1 else "end what else uses it, or take a larger one"
        return BackendError(f"a batch of {batch} does not fit the GPU ({self}); {remedy}")


@contextmanager
def room_for(batch: int) -> Iterator[None]:
    """Where memory for a batch is taken: names a smaller one if there is no room."""
    try:
        yield
    except OutOfMemory as error:
        raise error.of_batch(batch) from error


@dataclass(frozen=True)
class Block:
    """Device memory, free when nobody holds it any more."""

    address: int  # of 256-byte alignment
    size: int
    owner: object


class Event(Protocol):
    """A moment of the stream."""

    def since(self, earlier: Any) -> float:
        """Seconds between two moments; waits for the later one."""


class Mirror(Protocol):
    """A twin on the host of some floats on the device."""

    def fetch(self) -> None:
        """Copy what the device has when the stream gets here; the host goes on."""

    def numpy(self) -> Array:
        """What was fetched last, a copy; waits for that alone, not for what was put on the stream behind it."""


class Context(Protocol):
    """An engine at work, under one optimization profile."""

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """The shape of an input."""

    def set_address(self, name: str, address: int) -> None:
        """Where a tensor lies."""

    def enqueue(self) -> None:
        """Run the engine on the stream."""


class Engine(Protocol):
    """An engine, ready to run."""

    def context(self, profile: int) -> Context:
        """A context of its own, under the profile of that number."""


class Driver(Protocol):
    """A GPU, as a backend sees it."""

    @property
    def stream(self) -> int:
        """The handle of the stream."""

    def allocate(self, size: int) -> Block:
        """Device memory; an `OutOfMemory` where there is no room."""

    def free_memory(self) -> int:
        """Bytes that are free on the GPU."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a host array to the device."""

    def download(self, array: Array, address: int) -> None:
        """Copy from the device into a host array, and wait for it."""

    def mirror(self, address: int, count: int) -> Mirror:
        """A twin on the host of `count` floats there."""

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy on the device."""

    def zero(self, address: int, size: int) -> None:
        """Fill with zeros."""

    def launch(self, kernel: str, count: int, *arguments: int) -> None:
        """Run a kernel of `cuda_kernels` over `count` elements."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts on the stream, as one launch; nothing runs meanwhile."""

    def record(self) -> Event:
        """This moment of the stream."""

    def synchronize(self) -> None:
        """Wait for the stream."""

    def load(self, engine: bytes) -> Engine:
        """Make an engine ready."""


class DeviceArray:
    """An array on the device, with `__cuda_array_interface__`: pycuda, CuPy and PyTorch read it in place."""

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize
        self._driver, self._block = driver, driver.allocate(self.nbytes)
        self.address = self._block.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.address, False)
        return {"shape": self.shape, "typestr": self.dtype.str, "data": data, "version": 3, "stream": None}

    def numpy(self) -> Array:
        """A copy on the host."""
        array = np.empty(self.shape, self.dtype)
        self._driver.download(array, self.address)
        return array


class CudaDriver:
    """The real one: the GPU of this machine, one stream, and TensorRT or TensorRT-RTX (`trt`; None: no engines)."""

    def __init__(self, trt: ModuleType | None, stream: Any = None) -> None:
        from cuda import core
        from cuda.bindings import driver

        self._core, self._cuda, self._trt, self._lent = core, driver, trt, stream  # what was lent must stay alive
        if stream is None:
            self._device = core.Device()
            self._device.set_current()
            self._stream = self._device.create_stream()
        else:
            self._stream = core.Stream.from_handle(int(getattr(stream, "handle", stream)))
            self._device = self._stream.device
            self._device.set_current(self._stream.context)
        options = core.ProgramOptions(std="c++17", arch=f"sm_{self._device.arch}")
        compiled = core.Program(SOURCE, "c++", options).compile("cubin", name_expressions=())
        self._kernels = {name: compiled.get_kernel(name) for name in KERNELS}
        self._runtime = None if trt is None else trt.Runtime(trt.Logger(trt.Logger.ERROR))

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream.handle)

    def allocate(self, size: int) -> Block:
        """Device memory; an `OutOfMemory` where there is no room."""
        try:
            buffer = self._device.allocate(max(1, size), stream=self._stream)
        except Exception as error:  # CUDAError, which has no public name
            if "OUT_OF_MEMORY" not in str(error):
                raise
            raise OutOfMemory(
                f"no room for {size / 2**20:,.0f} MiB more, {self.free_memory() / 2**20:,.0f} MiB are free"
            ) from error
        return Block(int(buffer.handle), size, buffer)

    def free_memory(self) -> int:
        """Bytes that are free on the GPU."""
        _, free, _ = self._cuda.cuMemGetInfo()
        return int(free)

    def upload(self, address: int, array: Array) -> None:
        """Copy a host array to the device, and wait for it: what the driver has not staged is read from the array."""
        self.copy(address, array.ctypes.data, array.nbytes)
        self._stream.sync()

    def download(self, array: Array, address: int) -> None:
        """Copy from the device into a host array, and wait for it."""
        self.copy(array.ctypes.data, address, array.nbytes)
        self._stream.sync()

    def mirror(self, address: int, count: int) -> "CudaMirror":
        """A twin on the host of `count` floats there."""
        return CudaMirror(self._core, self._stream, address, count)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy on the device, or between it and the host: the driver tells them apart by address."""
        if size:
            view = self._core.Buffer.from_handle
            view(target, size).copy_from(view(source, size), stream=self._stream)

    def zero(self, address: int, size: int) -> None:
        """Fill with zeros."""
        if size:
            self._core.Buffer.from_handle(address, size).fill(0, stream=self._stream)

    def launch(self, kernel: str, count: int, *arguments: int) -> None:
        """Run a kernel of `cuda_kernels` over `count` elements."""
        config = self._core.LaunchConfig(grid=-(-count // THREADS), block=THREADS)
        self._core.launch(self._stream, config, self._kernels[kernel], *arguments)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts on the stream, as one launch; nothing runs meanwhile."""
        builder = self._stream.create_graph_builder()
        builder.begin_building("thread_local")
        try:
            work()
            builder.end_building()
        except BaseException:
            with suppress(Exception):
                builder.close()  # ends a capture that was invalidated, too
            raise
        graph, stream = builder.complete(), self._stream
        graph.upload(stream)
        return lambda: graph.launch(stream)

    def record(self) -> "CudaEvent":
        """This moment of the stream."""
        return CudaEvent(self._stream.record(options=self._core.EventOptions(timing_enabled=True)))

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.sync()

    def load(self, engine: bytes) -> "TrtEngine":
        """Make an engine ready."""
        assert self._trt is not None
        assert self._runtime is not None
        invalid = self._invalidity(engine)
        loaded = None if invalid else self._runtime.deserialize_cuda_engine(engine)
        if loaded is None:
            raise BackendError(
                f"{self._trt.__name__} {self._trt.__version__} refuses this engine on this GPU{invalid}; delete the "
                "bundle's folder engines/ and build again here (`e2crf doctor` says which flavour this GPU takes), or "
                "take --backend onnxruntime --device cuda"
            )
        return TrtEngine(self._trt, loaded, self.stream)

    def _invalidity(self, engine: bytes) -> str:
        """Why an engine cannot run here, by its header alone: empty where it can, and of TensorRT, which cannot tell.

        Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/engine-compatibility.html
        """
        assert self._trt is not None
        assert self._runtime is not None
        if not hasattr(self._runtime, "get_engine_validity"):
            return ""
        validity, found = self._runtime.get_engine_validity(engine[: self._runtime.engine_header_size])
        if validity != self._trt.EngineValidity.INVALID:
            return ""
        reasons = self._trt.EngineInvalidityDiagnostics.__members__.items()
        told = [name.lower().replace("_", " ") for name, bit in reasons if found & int(bit)]
        return f" ({', '.join(told) or 'no reason given'})"


class CudaEvent:
    """A moment of the stream, timed by the device."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def since(self, earlier: "CudaEvent") -> float:
        """Seconds between two moments; waits for the later one."""
        self._event.sync()
        return float(self._event - earlier._event) / 1e3


class CudaMirror:
    """A twin of some floats in page-locked memory: into any other the driver would make the host wait for a copy."""

    def __init__(self, core: ModuleType, stream: Any, address: int, count: int) -> None:
        self._stream = stream
        self._done: Any = None  # the last copy
        self._source = core.Buffer.from_handle(address, 4 * count)
        self._twin = core.LegacyPinnedMemoryResource().allocate(4 * count)
        self._floats = np.ctypeslib.as_array((ctypes.c_float * count).from_address(int(self._twin.handle)))

    def fetch(self) -> None:
        """Copy what the device has when the stream gets here; the host goes on."""
        self._twin.copy_from(self._source, stream=self._stream)
        self._done = self._stream.record()

    def numpy(self) -> Array:
        """What was fetched last, a copy; waits for that alone, not for what was put on the stream behind it."""
        assert self._done is not None, "nothing was fetched"
        self._done.sync()
        return self._floats.copy()


class TrtEngine:
    """An engine of TensorRT or TensorRT-RTX; both have the same calls."""

    def __init__(self, trt: ModuleType, engine: Any, stream: int) -> None:
        self._trt, self._engine, self._stream = trt, engine, stream

    def context(self, profile: int) -> "TrtContext":
        """A context of its own, under the profile of that number."""
        settings = []
        if hasattr(self._trt, "DynamicShapesKernelSpecializationStrategy"):  # RTX: finish all kernels at the first run
            config = self._engine.create_runtime_config()
            strategy = self._trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
            settings.append(config)
        context = self._engine.create_execution_context(*settings)
        if context is None:
            raise OutOfMemory("TensorRT could make no context for an engine, most often for want of memory")
        if not context.set_optimization_profile_async(profile, self._stream):
            raise BackendError(f"TensorRT refuses optimization profile {profile} of an engine; build it again")
        return TrtContext(context, self._stream)


class TrtContext:
    """One execution context and its stream."""

    def __init__(self, context: Any, stream: int) -> None:
        self._context, self._stream = context, stream

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """The shape of an input."""
        if not self._context.set_input_shape(name, shape):
            raise BackendError(f"TensorRT refuses the shape {shape} of {name}; build the engine for this batch")

    def set_address(self, name: str, address: int) -> None:
        """Where a tensor lies."""
        if not self._context.set_tensor_address(name, address):
            raise BackendError(f"TensorRT refuses an address for {name}; export the bundle again and build it")

    def enqueue(self) -> None:
        """Run the engine on the stream."""
        if not self._context.execute_async_v3(self._stream):
            raise BackendError("TensorRT could not run an engine; run `e2crf doctor`, or build the engine again")
