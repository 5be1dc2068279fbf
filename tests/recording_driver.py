"""A GPU made of host memory: what the TensorRT backend asks of its driver is written down, checked and carried out.

Kernels are the real source, compiled by the host's C compiler; engines run their ONNX graph in ONNX Runtime. Fresh
memory is full of NaN, and so is memory again that nobody holds any more. What a GPU would not forgive is an assertion
here: an address outside any block or not aligned, an output where an input lies, a copy from or to the host within a
capture, a shape outside the profile of its engine.
"""

import ctypes
import json
import shutil
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from engines.flavor import Flavor
from engines.gpu import Gpu
from engines.key import Ingredients
from engines.recipe import Recipe, graphs_to_build, profiles_of
from engines.store import Store
from export.manifest import Graph, read_manifest
from runtime.backends.cuda import Block, OutOfMemory
from runtime.backends.cuda_kernels import SOURCE
from runtime.backends.tensorrt import TensorrtBackend

GPU = Gpu("NVIDIA H200", (9, 0), 13000)
LIBRARY = "11.4.0"
_TYPES = {"float32": np.float32, "float16": np.float16, "int64": np.int64}
Bounds = dict[str, tuple[tuple[int, ...], ...]]  # of a profile: least, best and largest shape, by input


def compiled_kernels(folder: Path) -> ctypes.CDLL:
    """The kernels as functions of the host; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = folder / "kernels.c", folder / "kernels.so"
    source.write_text(SOURCE, encoding="utf-8")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-DE2CRF_HOST", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source), "-lm"], check=True)
    return ctypes.CDLL(str(library))


def write_engines(
    bundle: Path,
    recipe: Recipe,
    *,
    library: str = LIBRARY,
    target: str = GPU.target,
    digest: str | None = None,
) -> None:
    """Engines of a bundle that a `RecordingDriver` runs: the name of a graph, and where it is."""
    manifest, store = read_manifest(bundle), Store(bundle)
    with store.lock(lambda line: None):
        for name, graph in graphs_to_build(manifest, recipe.parts).items():
            profiles = profiles_of(graph, recipe, manifest.network.num_tokens)
            made = Ingredients(name, digest or graph.digest, recipe.flavor, library, target, recipe.tf32, profiles)
            bounds = [profile.shapes(graph) for profile in profiles]
            engine = {"graph": name, "file": str(bundle / graph.file), "profiles": bounds}
            store.write(made, json.dumps(engine).encode(), 0.0)


def open_recorded(bundle: Path, kernels: ctypes.CDLL, **options: Any) -> tuple[TensorrtBackend, "RecordingDriver"]:
    """The real backend over a recording driver."""
    manifest = read_manifest(bundle)
    driver = RecordingDriver(kernels, bundle, manifest.graphs, **options)
    flavor = Flavor.TENSORRT
    return TensorrtBackend(bundle, manifest, flavor, driver, LIBRARY, GPU), driver


class RecordingDriver:
    """See the module; `log` holds what was asked, in order: (what, ...)."""

    stream = 0x57AEA

    def __init__(
        self,
        kernels: ctypes.CDLL,
        bundle: Path,
        graphs: dict[str, Graph],
        *,
        memory: int = 1 << 40,
        can_capture: bool = True,
    ) -> None:
        self._kernels, self._bundle, self.graphs = kernels, bundle, graphs
        self._left, self._can_capture = memory, can_capture
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._freed: list[NDArray[np.uint8]] = []  # what nobody holds any more: NaN again, and never handed out twice
        self.log: list[tuple[Any, ...]] = []
        self._capturing: list[Callable[[], None]] | None = None
        self.sessions: dict[str, ort.InferenceSession] = {}
        self.num_graphs = 0

    # --- memory ----------------------------------------------------------------------------------------

    def allocate(self, size: int) -> Block:
        assert self._capturing is None, "memory is taken within a capture"
        if size > self._left:
            raise OutOfMemory(f"no room for {size} bytes; take less")
        self._left -= size
        raw = np.full(size + 512, 0xFF, np.uint8)  # NaN
        address = -(-raw.ctypes.data // 256) * 256
        self._blocks[address] = raw
        self.log.append(("allocate", address, size))
        owner = _Owner()
        weakref.finalize(owner, self._free, address, size)
        return Block(address, size, owner)

    def _free(self, address: int, size: int) -> None:
        raw = self._blocks.pop(address)
        raw[...] = 0xFF
        self._freed.append(raw)
        self._left += size

    def free_memory(self) -> int:
        return self._left

    def holds(self, address: int, size: int) -> bool:
        """Whether a block has these bytes; blocks are few."""
        return any(
            start <= address and address + size <= raw.ctypes.data + raw.nbytes for start, raw in self._blocks.items()
        )

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self._host_copy("upload", address, array)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: NDArray[Any], address: int) -> None:
        self._host_copy("download", address, array)
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def mirror(self, address: int, count: int) -> "RecordedMirror":
        assert self.holds(address, 4 * count)
        return RecordedMirror(self, address, count)

    def _host_copy(self, what: str, address: int, array: NDArray[Any]) -> None:
        assert self._capturing is None, f"{what} within a capture"
        assert array.flags.c_contiguous
        assert self.holds(address, array.nbytes)
        self.log.append((what, address, array.nbytes))

    def copy(self, target: int, source: int, size: int) -> None:
        assert self.holds(target, size)
        assert self.holds(source, size)
        self._do(("copy", target, source, size), lambda: ctypes.memmove(target, source, size))

    def zero(self, address: int, size: int) -> None:
        assert self.holds(address, size)
        self._do(("zero", address, size), lambda: ctypes.memset(address, 0, size))

    # --- the stream ------------------------------------------------------------------------------------

    def _do(self, entry: tuple[Any, ...], work: Callable[[], Any]) -> None:
        if self._capturing is not None:
            self._capturing.append(work)
            self.log.append(("captured", *entry))
        else:
            self.log.append(entry)
            work()

    def launch(self, kernel: str, count: int, *arguments: int) -> None:
        assert count > 0
        function = getattr(self._kernels, kernel)
        self._do(("launch", kernel, count, *arguments), lambda: function(*map(ctypes.c_int64, arguments)))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if not self._can_capture:
            raise RuntimeError("operation not permitted when stream is capturing")
        self._capturing, number = [], self.num_graphs
        self.num_graphs += 1
        work()
        nodes, self._capturing = self._capturing, None

        def replay() -> None:
            self.log.append(("replay", number))
            for node in nodes:
                node()

        return replay

    def record(self) -> "Moment":
        assert self._capturing is None
        return Moment()

    def synchronize(self) -> None:
        self.log.append(("synchronize",))

    def load(self, engine: bytes) -> "RecordedEngine":
        made = json.loads(engine)
        self.log.append(("load", made["graph"]))
        return RecordedEngine(self, made["graph"], made["file"], made["profiles"])

    def run_engine(self, name: str, file: str, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        if name not in self.sessions:
            options = ort.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = 1, 3
            self.sessions[name] = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        graph = self.graphs[name]
        for tensor in graph.inputs:
            assert self.holds(addresses[tensor.name], int(np.prod(shapes[tensor.name])) * _TYPES[tensor.dtype]().nbytes)
        feeds = {tensor.name: _view(addresses[tensor.name], shapes[tensor.name], tensor.dtype).copy()
                 for tensor in graph.inputs}  # fmt: skip
        for tensor, result in zip(graph.outputs, self.sessions[name].run(None, feeds), strict=True):
            assert self.holds(addresses[tensor.name], result.nbytes)
            _view(addresses[tensor.name], result.shape, tensor.dtype)[...] = result


class _Owner:
    """Holds a block until it is dropped."""


class RecordedMirror:
    """Holds what its block had when it was fetched, and NaN before."""

    def __init__(self, driver: RecordingDriver, address: int, count: int) -> None:
        self._driver, self._address, self._floats = driver, address, np.full(count, np.nan, np.float32)

    def fetch(self) -> None:
        assert self._driver._capturing is None
        self._driver.log.append(("fetch", self._address, self._floats.nbytes))
        ctypes.memmove(self._floats.ctypes.data, self._address, self._floats.nbytes)

    def numpy(self) -> NDArray[np.float32]:
        self._driver.log.append(("wait",))
        return self._floats.copy()


class Moment:
    def since(self, earlier: "Moment") -> float:
        return 1e-3


class RecordedEngine:
    def __init__(self, driver: RecordingDriver, name: str, file: str, profiles: list[Bounds]) -> None:
        self._driver, self.name, self.file, self._profiles = driver, name, file, profiles

    def context(self, profile: int) -> "RecordedContext":
        self._driver.log.append(("context", self.name, profile))
        return RecordedContext(self._driver, self.name, self.file, profile, self._profiles[profile])


class RecordedContext:
    def __init__(self, driver: RecordingDriver, name: str, file: str, profile: int, bounds: Bounds) -> None:
        self._driver, self.name, self._file, self._profile = driver, name, file, profile
        self._bounds = bounds
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, largest = self._bounds[name]
        assert len(shape) == len(least)
        fits = all(low <= size <= high for low, size, high in zip(least, shape, largest, strict=True))
        assert fits, f"{name} {shape} is outside profile {self._profile} of {self.name}: {least} to {largest}"
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        assert address % 256 == 0, f"{name} is not aligned"
        self._addresses[name] = address

    def enqueue(self) -> None:
        graph = self._driver.graphs[self.name]
        inputs, outputs = ({tensor.name for tensor in side} for side in (graph.inputs, graph.outputs))
        assert set(self._shapes) == inputs
        assert set(self._addresses) == inputs | outputs, "TensorRT wants an address for every tensor"
        for tensor in graph.inputs:
            shape = self._shapes[tensor.name]
            assert len(shape) == len(tensor.shape)
            assert self._driver.holds(self._addresses[tensor.name], int(np.prod(shape)) * _TYPES[tensor.dtype]().nbytes)
        written = {self._addresses[name] for name in outputs}
        assert len(written) == len(outputs)
        assert not written & {self._addresses[name] for name in inputs}, "an output lies on an input"
        shapes, addresses = dict(self._shapes), dict(self._addresses)  # as a capture would keep them
        entry = ("enqueue", self.name, self._profile, tuple(sorted(addresses.items())))
        self._driver._do(entry, lambda: self._driver.run_engine(self.name, self._file, shapes, addresses))


def _view(address: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    kind = np.dtype(_TYPES[dtype])
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)
