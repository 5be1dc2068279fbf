"""TensorRT and TensorRT-RTX: the engines of a bundle on a GPU.

    with runtime.load("bundles/ecg", backend="tensorrt") as model:       # or "tensorrt-rtx"
        model.sample(1000)
        model.backend.latents                  # z of the last batch on the device, for pycuda and its like

An engine is chosen from the bundle's store by what it was made of: the graph's digest, the library's version, the
GPU, the largest batch; the numbers of tokens that it has profiles for are the buckets. Keys and values never leave
the device: every cache is two blocks, read from one and written to the other, which then change places (an engine
may not write where it reads).

A schedule of refreshes (no cache, an interval, a plan) runs wholly on the device: see `cuda_trajectory`. Policies
that look at more than the surprise of a refresh run on the host over `bind`, with latents and scores copied.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.flavor import ALL_TARGETS, Flavor
from engines.gpu import Gpu, visible_gpu
from engines.key import Ingredients
from engines.store import Record, Store
from export.manifest import Graph, Manifest, Tensor, layer_name
from runtime.backends.base import Arrays, BackendBase
from runtime.backends.cuda import (
    ITEM_SIZES,
    Block,
    Context,
    CudaDriver,
    DeviceArray,
    Driver,
    Engine,
    room_for,
    shape_of,
)
from runtime.backends.cuda_trajectory import DeviceTrajectory, Lane, Part
from runtime.cache.policy import Needs
from runtime.cache.state import ModelFacts
from runtime.errors import BackendError
from runtime.noise import NoiseStream
from runtime.schedule import Schedule


def open_tensorrt(bundle: Path, manifest: Manifest, flavor: str, *, stream: Any = None) -> "TensorrtBackend":
    """Open the GPU of this machine; `stream` is one of the caller's (its handle, or an object that has it).

    A `BackendError` in one sentence where the GPU, a package or an engine is missing.
    """
    flavor = Flavor(flavor)
    name = f"backend {_name(flavor)}"
    if (gpu := visible_gpu()) is None:
        raise BackendError(
            f"{name} needs an NVIDIA GPU and its driver, and none was found here; "
            "sample with --backend onnxruntime, which needs none"
        )
    for module, extra in ((flavor.module, flavor.value), ("cuda.core", "gpu")):
        if not _is_installed(module):
            raise BackendError(
                f"{name} needs the package {module}, which is not installed; pip install 'e2crf[{extra}]'"
            )
    trt = importlib.import_module(flavor.module)
    try:
        driver = CudaDriver(trt, stream)
    except Exception as error:  # CUDA and its compiler raise their own unrelated types
        said = " ".join(str(error).split())
        raise BackendError(
            f"{name} cannot use the GPU here, {gpu.target}: {said}; bring its driver up to date, see `e2crf doctor`"
        ) from error
    return TensorrtBackend(bundle, manifest, flavor, driver, str(trt.__version__), gpu)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that the module lies in
        return False


def _name(flavor: Flavor) -> str:
    return "tensorrt" if flavor is Flavor.TENSORRT else "tensorrt-rtx"


class TensorrtBackend(BackendBase):
    """The engines of a bundle behind a driver; `library` is the version of TensorRT, `gpu` what it runs on."""

    def __init__(
        self, bundle: Path, manifest: Manifest, flavor: Flavor, driver: Driver, library: str, gpu: Gpu
    ) -> None:
        super().__init__(manifest.graphs)
        self.name, self.driver = _name(flavor), driver
        self._bundle, self._manifest, self._flavor = bundle, manifest, flavor
        self._library, self._gpu = library, gpu
        self._engines: dict[str, tuple[Record, Engine]] = {}  # by key
        self._chosen: dict[tuple[str, int], Record] = {}  # by graph and batch
        self._contexts: dict[tuple[str, int], Context] = {}  # of `bind`, by engine and bucket
        self._scratch: dict[tuple[str, str], Block] = {}  # of `bind`, by graph and tensor, as large as was needed yet
        self._lanes: dict[int, Lane] = {}  # of `trajectory`, by batch

    # --- engines ---------------------------------------------------------------------------------------

    def engine(self, graph: str, batch: int) -> tuple[Record, Engine]:
        """The engine of a graph that fits this bundle, library, GPU and batch, and its record."""
        if (graph, batch) not in self._chosen:
            self._chosen[graph, batch] = self._choose(graph, batch)
        key = self._chosen[graph, batch].ingredients.key
        if key not in self._engines:
            self._engines[key] = self._chosen[graph, batch], self.driver.load(Store(self._bundle).read(key))
        return self._engines[key]

    def _choose(self, graph: str, batch: int) -> Record:
        """Of those that fit one without TF32, for the batch or else the largest, with the most numbers of tokens."""
        digest, product = self.signature(graph).digest, self._flavor.product
        build = f"build one here with `e2crf build {self._bundle} --flavor {self._flavor}" + (
            "`" if graph == "step" else " --parts all`"
        )
        entries = Store(self._bundle).entries()
        found = [entry.record for entry in entries if entry.record is not None]
        left = [record for record in found if record.ingredients.graph == graph]
        faults = [entry.fault for entry in entries if entry.record is None and entry.key.rpartition("-")[0] == graph]
        here = self._gpu.target
        facts: tuple[tuple[str, str, Callable[[Ingredients], str]], ...] = (
            ("flavour", self._flavor.value, lambda made: made.flavor),
            ("graph with SHA-256", digest[:12], lambda made: made.graph_digest[:12]),
            (product, self._library, lambda made: made.library),
            ("GPU", here, lambda made: here if self._fits(made.target) else made.target),
        )
        for what, wanted, of in facts:
            kept = [record for record in left if of(record.ingredients) == wanted]
            if not kept:
                others = sorted({of(record.ingredients) for record in left})
                state = "none was found" if not faults else f"the one there {faults[0]}"
                state = f"those there are of {what} {', '.join(others)}" if others else state
                raise BackendError(f"{self._bundle} has no engine of {graph} for {what} {wanted}, {state}; {build}")
            left = kept

        def rank(record: Record) -> tuple[bool, int, int, int]:
            made, largest = record.ingredients, _largest_batch(record)
            return not made.tf32, min(largest, batch), len(made.profiles), -largest

        return max(left, key=rank)

    def _fits(self, target: str) -> bool:
        if self._flavor is Flavor.TENSORRT:
            return target == self._gpu.target
        return target == ALL_TARGETS or "{}.{}".format(*self._gpu.capability) in target.split(", ")

    def context(self, graph: str, batch: int, tokens: int) -> Context:
        """A new context of an engine for `batch` samples and a bucket of `tokens`."""
        record, engine = self.engine(graph, batch)
        sizes = [profile.tokens for profile in record.ingredients.profiles]
        largest = _largest_batch(record)
        if batch > largest:
            raise BackendError(
                f"the engine of {graph} takes batches of 1 to {largest}, found {batch}; take --batch-size {largest}, "
                f"or build with --batch {batch}"
            )
        if tokens not in sizes:
            raise BackendError(
                f"the engine of {graph} takes {', '.join(map(str, sizes))} tokens, found {tokens}; "
                f"build with --tokens {tokens}"
            )
        with room_for(batch):
            return engine.context(sizes.index(tokens))

    def bucket(self, graphs: Sequence[str], batch: int, size: int) -> int:
        """The least number of tokens, of those that the engines of all these graphs take, `size` can be padded to."""
        records = [self.engine(graph, batch)[0] for graph in graphs]
        each = [{profile.tokens for profile in record.ingredients.profiles} for record in records]
        sizes = set.intersection(*each)
        if size > max(sizes, default=0):
            raise BackendError(
                f"the engine of {graphs[0]} takes at most {max(sizes, default=0)} tokens, found {size}; "
                f"build with --tokens {size}"
            )
        return min(bound for bound in sizes if bound >= size)

    # --- the plain backend: host arrays in and out, caches on the device -------------------------------

    def zeros(self, shape: tuple[int, ...], dtype: str) -> "Cache":
        """Keys or values of a batch on the device."""
        with room_for(shape[0]):
            return Cache(self.driver, shape, dtype)

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph once: named arrays in, named arrays out."""
        signature = self.signature(graph)
        feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        sizes = _sizes(signature, feeds)
        results = {
            tensor.name: np.zeros(shape_of(tensor, sizes), np.dtype(tensor.dtype)) for tensor in signature.outputs
        }
        self.bind(graph, feeds, results)()
        return results

    def bind(self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        """Prepare a call: host arrays are copied, caches and arrays that are on a device (CUDA arrays) are not."""
        signature, driver = self.signature(graph), self.driver
        sizes = _sizes(signature, inputs)
        tokens = sizes.get("S", self._manifest.network.num_tokens)
        padded = sizes | {"S": self.bucket([graph], sizes["B"], tokens)}
        ports = [_Port(tensor, shape_of(tensor, padded), inputs[tensor.name]) for tensor in signature.inputs]
        results = [_Port(tensor, shape_of(tensor, padded), outputs.get(tensor.name)) for tensor in signature.outputs]
        with room_for(padded["B"]):
            for port in (*ports, *results):
                self._place(graph, port)
        key = self.engine(graph, padded["B"])[0].ingredients.key, padded["S"]
        if key not in self._contexts or padded["B"] > _largest_batch(self._engines[key[0]][0]):
            self._contexts[key] = self.context(graph, padded["B"], padded["S"])  # or says that the batch is too large
        context = self._contexts[key]

        def call() -> None:
            for port in (*ports, *results):
                self._place(graph, port)  # a larger batch may have taken larger scratch
            for port in ports:
                context.set_shape(port.name, port.shape)
                context.set_address(port.name, port.read(driver))
            for port in results:
                context.set_address(port.name, port.target())
            context.enqueue()
            for port in results:
                port.write(driver)
            for port in results:
                port.swap()

        return call

    def _place(self, graph: str, port: "_Port") -> None:
        """Give scratch to a tensor whose values lie nowhere on the device; calls take turns with it."""
        if not port.needs_scratch:
            return
        key = graph, port.name
        if key not in self._scratch or self._scratch[key].size < port.size:
            self._scratch.pop(key, None)  # free before the larger one is taken
            self._scratch[key] = self.driver.allocate(port.size)
        port.address = self._scratch[key].address

    # --- trajectories on the device --------------------------------------------------------------------

    def trajectory(
        self, facts: ModelFacts, schedule: Schedule, noise: NoiseStream,
        *, linear: bool, needs: Needs, feedback: float, graphs: str,
    ) -> DeviceTrajectory | None:  # fmt: skip
        """A trajectory on the device, for policies that need no more than the surprise; None for others."""
        if needs & ~Needs.SURPRISE or feedback:
            return None
        batch = len(noise.samples)
        lane = self._lanes.pop(batch, None)
        if lane is None or lane.is_busy:
            del lane  # one that was interrupted is freed before there is another
            while len(self._lanes) > 1:  # two are enough: most batches, and what is left at the end
                self._lanes.pop(next(iter(self._lanes)))
            lane = self._lane(graphs, batch)
        self._lanes[batch] = lane
        return DeviceTrajectory(lane, facts, schedule, noise, linear=linear, keeps_surprise=Needs.SURPRISE in needs)

    def _lane(self, graphs: str, batch: int) -> Lane:
        parts = self._parts(graphs)
        try:
            return Lane(self.driver, self._manifest, parts, batch, self)
        except BackendError:
            if not self._lanes:
                raise
        self._lanes.clear()  # the one of another batch may be what has the room
        return Lane(self.driver, self._manifest, parts, batch, self)

    def _parts(self, graphs: str) -> list[Part]:
        """The engines of a step in their order, with what their tensors are called among them."""
        if graphs == "step":
            return [Part("step", self.signature("step"), {})]
        layers = range(self._manifest.network.num_layers)
        names = ["embed", *map(layer_name, layers), "head"]
        parts = []
        for position, name in enumerate(names):
            kv = {f"{when}_{kind}": f"{when}_{kind}_{position - 1:02d}" for when in ("past", "present")
                  for kind in ("key", "value")}  # fmt: skip
            flow = {
                "hidden": f"hidden_{(position + (name == 'embed') + 1) % 2}",
                "hidden_out": f"hidden_{position % 2}",
            }
            parts.append(Part(name, self.signature(name), kv | flow))
        return parts

    @property
    def latents(self) -> DeviceArray:
        """z [B, N, C] of the batch drawn last, standardised, on the device; the next batch overwrites it."""
        if not self._lanes:
            raise BackendError("no batch was drawn on the device yet, found none; sample first, without policy e2crf")
        return next(reversed(self._lanes.values())).z

    def close(self) -> None:
        """Free what is held on the device."""
        self.driver.synchronize()
        for held in (self._lanes, self._contexts, self._scratch, self._chosen, self._engines):
            held.clear()


class Cache:
    """Keys or values of a batch: two blocks, read from the one, written to the other, swapped by every call."""

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: str) -> None:
        self.shape = shape
        self.nbytes = int(np.prod(shape)) * ITEM_SIZES[dtype]
        self.blocks = [driver.allocate(self.nbytes) for _ in range(2)]
        for block in self.blocks:
            driver.zero(block.address, self.nbytes)

    def __getitem__(self, samples: slice) -> "CacheRows":
        first, last, _ = samples.indices(self.shape[0])
        return CacheRows(self, first, last)


class CacheRows:
    """Samples first .. last - 1 of a cache."""

    def __init__(self, cache: Cache, first: int, last: int) -> None:
        row = cache.nbytes // cache.shape[0]
        self.cache, self.shape = cache, (last - first, *cache.shape[1:])
        self.is_all, self.offset, self.nbytes = self.shape == cache.shape, first * row, (last - first) * row


class _Port:
    """One tensor of a bound call: its shape in the engine, and where its values come from or go to.

    Host arrays of S tokens are padded to the bucket by their first token. Some samples of a cache are copied out
    and back, since the address that an engine is given must be aligned; all of them are read and written in place.
    """

    def __init__(self, tensor: Tensor, shape: tuple[int, ...], value: Any) -> None:
        self.name, self.shape, self._value = tensor.name, shape, value
        self.size = int(np.prod(shape)) * ITEM_SIZES[tensor.dtype]
        self._is_cache = isinstance(value, CacheRows)
        self.address = 0
        self._host: NDArray[Any] | None = None
        if isinstance(value, np.ndarray):
            if value.dtype != tensor.dtype or not value.flags.c_contiguous:
                found = f"{value.dtype}{'' if value.flags.c_contiguous else ', not contiguous'}"
                raise BackendError(f"{tensor.name} must be a contiguous array of {tensor.dtype}, found {found}; "
                                   "convert it first")  # fmt: skip
            self._host = value if value.shape == shape else np.empty(shape, value.dtype)
        elif value is not None and not self._is_cache and hasattr(value, "__cuda_array_interface__"):
            self.address = int(value.__cuda_array_interface__["data"][0])
        self.needs_scratch = not self.address and not (self._is_cache and value.is_all)

    def read(self, driver: Driver) -> int:
        """The address of an input, its values in place."""
        if self._is_cache:
            block = self._value.cache.blocks[0]
            if self._value.is_all:
                return int(block.address)
            driver.copy(self.address, block.address + self._value.offset, self._value.nbytes)
        elif self._host is not None:
            if self._host is not self._value:
                tokens = self._value.shape[1]
                self._host[:, :tokens] = self._value
                self._host[:, tokens:] = self._value[:, :1]
            driver.upload(self.address, self._host)
        return self.address

    def target(self) -> int:
        """The address of an output."""
        return int(self._value.cache.blocks[1].address) if self._is_cache and self._value.is_all else self.address

    def write(self, driver: Driver) -> None:
        """Take an output to where it belongs."""
        if self._is_cache and not self._value.is_all:
            driver.copy(self._value.cache.blocks[0].address + self._value.offset, self.address, self._value.nbytes)
        elif self._host is not None:
            driver.download(self._host, self.address)
            if self._host is not self._value:
                self._value[...] = self._host[:, : self._value.shape[1]]

    def swap(self) -> None:
        """What was written is what is read next."""
        if self._is_cache and self._value.is_all:
            self._value.cache.blocks.reverse()


def _largest_batch(record: Record) -> int:
    return max(profile.batch[-1] for profile in record.ingredients.profiles)


def _sizes(signature: Graph, inputs: Mapping[str, Any]) -> dict[str, int]:
    """B and S, read off the inputs."""
    return {
        dim: size
        for tensor in signature.inputs
        for dim, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        if isinstance(dim, str)
    }
