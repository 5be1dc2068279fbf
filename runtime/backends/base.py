"""The seam between the sampler and whatever runs the graphs.

A backend names its graphs, takes named arrays and gives named arrays. `run` is the plain form; `bind` is the
form of the hot path: it prepares one call over fixed buffers, so that a step allocates nothing. Where an
output buffer is an input buffer (the K/V caches), the backend writes in place.

    with open_backend("onnxruntime", bundle, manifest) as backend:
        backend.run("embed", {"z": z, "t": t, "token": token})["hidden"]
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from export.manifest import Graph, Manifest
from runtime.errors import BackendError, OptionError, parse_word, require

if TYPE_CHECKING:
    from runtime.cache.policy import Needs
    from runtime.cache.state import ModelFacts, Trajectory
    from runtime.noise import NoiseStream
    from runtime.schedule import Schedule

Arrays = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """What the sampler needs of a backend."""

    name: str

    def signature(self, graph: str) -> Graph:
        """Inputs and outputs of a graph; a `BackendError` if there is no such graph."""

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph once: named arrays in, named arrays out."""

    def bind(self, graph: str, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare a call over these very buffers; the callable reads the inputs and fills the outputs.

        Buffers are C-contiguous and stay where they are; a name may appear with the same array on both
        sides, and then the graph writes in place.
        """

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A cache of keys or values where the backend lives: as a NumPy array is sliced by sample and bound."""

    def trajectory(
        self, facts: "ModelFacts", schedule: "Schedule", noise: "NoiseStream",
        *, linear: bool, needs: "Needs", feedback: float, graphs: str,
    ) -> "Trajectory | None":  # fmt: skip
        """A batch at its start, in the backend's own memory; None where NumPy's arrays will do."""

    def close(self) -> None:
        """Free what the backend holds; it is not used afterwards."""


class BackendBase:
    """What backends share: the context manager, the signature table, and `bind` in terms of `run`."""

    name = "base"

    def __init__(self, graphs: Mapping[str, Graph]) -> None:
        self._graphs = dict(graphs)

    def signature(self, graph: str) -> Graph:
        """Inputs and outputs of a graph; a `BackendError` if there is no such graph."""
        if graph not in self._graphs:
            raise BackendError(
                f"backend {self.name} has no graph {graph!r}, it has {', '.join(self._graphs)}; export the bundle again"
            )
        return self._graphs[graph]

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph once: named arrays in, named arrays out."""
        raise NotImplementedError

    def bind(self, graph: str, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare a call over fixed buffers; this plain form copies the results into them."""

        def call() -> None:
            results = self.run(graph, inputs)
            for name, buffer in outputs.items():
                buffer[...] = results[name]

        return call

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A cache of keys or values where the backend lives."""
        return np.zeros(shape, dtype)

    def trajectory(
        self, facts: "ModelFacts", schedule: "Schedule", noise: "NoiseStream",
        *, linear: bool, needs: "Needs", feedback: float, graphs: str,
    ) -> "Trajectory | None":  # fmt: skip
        """None: the sampler's own, in NumPy's arrays."""
        return None

    def close(self) -> None:
        """Free what the backend holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class BackendName(StrEnum):
    """The backends by name."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    FAKE = "fake"


class Device(StrEnum):
    """The devices by name."""

    CPU = "cpu"
    CUDA = "cuda"


CUDA_PROVIDER_REMEDY = (  # both packages write one folder, and the last one stands
    "install onnxruntime-gpu in place of onnxruntime: `pip uninstall onnxruntime`, then "
    "`pip install --force-reinstall --no-deps onnxruntime-gpu`"
)
_DEVICES = {  # of each backend, its own choice first
    BackendName.ONNXRUNTIME: (Device.CPU, Device.CUDA),
    BackendName.TENSORRT: (Device.CUDA,),
    BackendName.TENSORRT_RTX: (Device.CUDA,),
    BackendName.FAKE: (Device.CPU,),
}


def open_backend(
    name: str,
    bundle: Path,
    manifest: Manifest,
    *,
    device: str | None = None,
    threads: int | None = None,
    stream: Any = None,
) -> BackendBase:
    """Open a backend by name over a bundle; `threads` is the number used within one operator.

    `stream` is for TensorRT: the handle of a stream of the caller's, or an object with that `handle` (pycuda's).
    """
    word = parse_word(BackendName, name, "backend")
    devices = _DEVICES[word]
    where = devices[0] if device is None else parse_word(Device, device, "device")
    if where not in devices:
        raise OptionError(
            f"backend {word} runs on the {devices[0]} only, found device {device!r}; leave the device out"
        )
    takes_stream = word in (BackendName.TENSORRT, BackendName.TENSORRT_RTX)
    require(stream is None or takes_stream, "a stream is for the TensorRT backends", str(word), "leave the stream out")
    if takes_stream:
        from runtime.backends.tensorrt import open_tensorrt

        flavor = "tensorrt" if word is BackendName.TENSORRT else "rtx"
        return open_tensorrt(bundle, manifest, flavor, stream=stream)
    if manifest.precision == "bf16":
        raise OptionError(
            f"ONNX Runtime computes no bf16 {'on a CPU' if where is Device.CPU else 'from NumPy arrays'}, found a "
            "bundle in bf16; export the model in fp32 or fp16, or build engines of this bundle with `e2crf build`"
        )
    if word is BackendName.FAKE:
        from runtime.backends.fake import gaussian_backend

        return gaussian_backend(manifest)
    from runtime.backends.ort import OrtBackend

    return OrtBackend(bundle, manifest.graphs, threads=threads, device=where)
