"""ONNX Runtime on the CPU: the embedded default.

Sessions open on first use, so a run that needs only `step` never loads the parts. `bind` hands ONNX Runtime
the addresses of NumPy buffers through an IOBinding: nothing is copied, and a K/V cache bound as input and
output under one address is updated in place (the CPU scatter kernels then skip their copy; a test compares
this with the plain call, since no document promises it).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.manifest import Graph
from runtime.backends.base import Arrays, BackendBase
from runtime.errors import BackendError, require


class OrtBackend(BackendBase):
    """The graphs of a bundle in ONNX Runtime sessions; `threads` within one operator, default all cores."""

    name = "onnxruntime"

    def __init__(self, bundle: Path, graphs: Mapping[str, Graph], *, threads: int | None = None) -> None:
        super().__init__(graphs)
        require(
            threads is None or threads >= 1,
            "threads must be at least 1",
            threads,
            "leave it out for all cores",
        )
        self._bundle = bundle
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._options = ort.SessionOptions()
        self._options.log_severity_level = 3  # errors only
        self._options.intra_op_num_threads = threads or 0

    def _session(self, graph: str) -> ort.InferenceSession:
        if graph not in self._sessions:
            path = self._bundle / self.signature(graph).file
            try:
                session = ort.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime raises its own unrelated types
                raise BackendError(f"ONNX Runtime cannot open {path}: {error}; export the bundle again") from error
            self._sessions[graph] = session
        return self._sessions[graph]

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph once: named arrays in, named arrays out."""
        session = self._session(graph)
        names = [output.name for output in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph {graph}: {error}; check shapes and memory") from error

    def bind(self, graph: str, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare a call over these very buffers, without a copy on either side."""
        session = self._session(graph)
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *_address(name, array))
        for name, array in outputs.items():
            binding.bind_output(name, *_address(name, array))
        run, buffers = session.run_with_iobinding, (inputs, outputs)

        def call(_keep_alive: object = buffers) -> None:
            run(binding)

        return call

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()


def _address(name: str, array: NDArray[Any]) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
    assert array.flags.c_contiguous, f"buffer {name} is not contiguous"
    return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
