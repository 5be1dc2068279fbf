"""ONNX Runtime: the embedded default on the CPU, and its CUDA provider on a GPU.

Sessions open on first use, so a run that needs only `step` never loads the parts. `bind` hands ONNX Runtime
the addresses of NumPy buffers through an IOBinding: nothing is copied, and a K/V cache bound as input and
output under one address is updated in place (the CPU scatter kernels then skip their copy; a test compares
this with the plain call, since no document promises it).

On a device the caches are memory of that device, bound in place in the same way; latents, tokens and scores have
a twin there at a fixed address and are copied. Every bound call is then one CUDA graph, where the provider can
capture the graph; TF32 is off, so that samples are the CPU's. The tests run this path with the CPU as the device;
the provider itself is for `make gpu-check`.
"""

import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.manifest import Graph
from runtime.backends.base import CUDA_PROVIDER_REMEDY, Arrays, BackendBase, Device
from runtime.backends.few_tokens import MOST, FewTokens, open_few_tokens
from runtime.errors import BackendError, BackendWarning, require

_CUDA = "CUDAExecutionProvider"
_MOST_OFF = 1e-4  # relative; what rounding explains is a hundredth of it


class OrtBackend(BackendBase):
    """The graphs of a bundle in ONNX Runtime sessions; `threads` within one operator, default all cores.

    `has_own_memory` is whether the device is to be treated as one with memory of its own; left out: not the CPU.
    Without `compiled` all steps are ONNX Runtime's, those of few tokens too.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Path,
        graphs: Mapping[str, Graph],
        *,
        threads: int | None = None,
        device: str = Device.CPU,
        has_own_memory: bool | None = None,
        compiled: bool = True,
    ) -> None:
        super().__init__(graphs)
        require(
            threads is None or threads >= 1,
            "threads must be at least 1",
            threads,
            "leave it out for all cores",
        )
        if device == Device.CUDA and _CUDA not in (found := ort.get_available_providers()):
            raise BackendError(
                f"--device cuda needs an NVIDIA GPU and ONNX Runtime with {_CUDA}, found {', '.join(found)}; "
                f"{CUDA_PROVIDER_REMEDY}, or leave the device out"
            )
        if device == Device.CUDA:
            with redirect_stdout(sys.stderr):  # where it finds no library, it prints
                ort.preload_dlls()  # those that came as Python packages
        self._bundle, self._device = bundle, str(device)
        self._has_own_memory = device != Device.CPU if has_own_memory is None else has_own_memory
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._captured: set[str] = set()  # graphs whose calls are CUDA graphs
        self._numbers = count(1)  # of CUDA graphs
        self._threads = threads or 0
        self._may_use_compiled = compiled and not self._has_own_memory

    @cached_property
    def few_tokens(self) -> FewTokens | None:
        """The step of few tokens as compiled code; None where there is none, or it is not what the graph computes."""
        signature = self._graphs.get("step")
        if signature is None or not self._may_use_compiled:
            return None
        few = open_few_tokens(self._bundle / signature.file, signature)
        if few is None or (off := few.off_from(lambda feeds: self.run("step", feeds))) <= _MOST_OFF:
            return few
        warnings.warn(f"the compiled step of few tokens is {off:.1e} off {signature.file}, at most {_MOST_OFF:g} is "
                      "rounding: ONNX Runtime computes these steps", BackendWarning, stacklevel=2)  # fmt: skip
        return None

    def _session(self, graph: str) -> ort.InferenceSession:
        if graph not in self._sessions:
            path = self._bundle / self.signature(graph).file
            try:
                self._sessions[graph] = self._open(graph, str(path))
            except BackendError:
                raise
            except Exception as error:  # ONNX Runtime raises its own unrelated types
                raise BackendError(f"ONNX Runtime cannot open {path}: {error}; export the bundle again") from error
        return self._sessions[graph]

    def _open(self, graph: str, path: str) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = self._threads
        if graph != "step":  # one of many sessions: its threads must not look for work while others compute
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._device == Device.CPU:
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        usual = {"use_tf32": "0"}
        try:
            session = ort.InferenceSession(
                path, options, providers=[(_CUDA, usual | {"enable_cuda_graph": "1"}), "CPUExecutionProvider"]
            )
            self._captured.add(graph)
        except Exception as error:  # some node of the graph runs elsewhere
            warnings.warn(f"ONNX Runtime cannot capture {graph} as a CUDA graph, its kernels are launched one by one: "
                          f"{' '.join(str(error).split())[:200]}", BackendWarning, stacklevel=2)  # fmt: skip
            session = ort.InferenceSession(path, options, providers=[(_CUDA, usual), "CPUExecutionProvider"])
        if _CUDA not in session.get_providers():  # it falls back without an error
            raise BackendError(
                f"--device cuda needs an NVIDIA GPU that {_CUDA} can use, and it could use none here; "
                "see `e2crf doctor`, or leave the device out"
            )
        return session

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph once: named arrays in, named arrays out."""
        session = self._session(graph)
        names = [output.name for output in session.get_outputs()]
        try:
            return dict(zip(names, session.run(names, dict(feeds), self._once(graph)), strict=True))
        except Exception as error:
            raise _failed(graph, error, _batch(feeds)) from error

    def _once(self, graph: str, number: int = -1) -> ort.RunOptions | None:
        """Options of a run that is CUDA graph `number`, -1 for none; of a session without them None."""
        if graph not in self._captured:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return options

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A cache of keys or values: a NumPy array, or memory of the device."""
        if not self._has_own_memory:
            return super().zeros(shape, dtype)
        return DeviceCache(shape, dtype, self._device)

    def bind(self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None]:
        """Prepare a call over these very buffers, without a copy on either side; on a device with those of caches."""
        if graph == "step" and (few := self._bind_compiled(inputs, outputs)) is not None:
            return few
        session = self._session(graph)
        binding = session.io_binding()
        if self._has_own_memory:
            return self._bind_device(graph, session, binding, inputs, outputs)
        for name, array in inputs.items():
            binding.bind_input(name, *_address(name, array))
        for name, array in outputs.items():
            binding.bind_output(name, *_address(name, array))
        run, buffers = session.run_with_iobinding, (inputs, outputs)

        def call(_keep_alive: object = buffers) -> None:
            try:
                run(binding)
            except Exception as error:
                raise _failed(graph, error, _batch(inputs)) from error

        return call

    def _bind_compiled(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None] | None:
        if "token" not in inputs or inputs["token"].shape[1] > MOST or self.few_tokens is None:
            return None
        return self.few_tokens.bind(inputs, outputs)

    def _bind_device(
        self,
        graph: str,
        session: ort.InferenceSession,
        binding: Any,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
    ) -> Callable[[], None]:
        twins: dict[str, ort.OrtValue] = {}
        for values, attach in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, value in values.items():
                if isinstance(value, DeviceRows):
                    attach(name, self._device, 0, value.dtype, value.shape, value.address)
                else:
                    twins[name] = twin = _memory(value.shape, value.dtype.type, self._device)
                    attach(name, self._device, 0, value.dtype.type, value.shape, twin.data_ptr())
        sent = [(twins[name], value) for name, value in inputs.items() if name in twins]
        fetched = [(twins[name], value) for name, value in outputs.items() if name in twins]
        options, held = self._once(graph, next(self._numbers)), (inputs, outputs)

        def call(_keep_alive: object = held) -> None:
            for twin, value in sent:
                twin.update_inplace(value)
            try:
                session.run_with_iobinding(binding, options)
            except Exception as error:
                raise _failed(graph, error, _batch(inputs)) from error
            for twin, value in fetched:
                value[...] = twin.numpy()

        return call

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()


class DeviceCache:
    """Keys or values of a batch in memory of a device; samples of it are bound by address."""

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._value = _memory(shape, self._dtype.type, device)
        self._value.update_inplace(np.zeros(shape, dtype))
        self.nbytes = int(np.prod(shape)) * self._dtype.itemsize

    def __getitem__(self, samples: slice) -> "DeviceRows":
        first, last, _ = samples.indices(self._shape[0])
        offset = first * (self.nbytes // self._shape[0])
        return DeviceRows(self._value, self._value.data_ptr() + offset, (last - first, *self._shape[1:]),
                          self._dtype.type)  # fmt: skip


class DeviceRows:
    """Some samples of a cache."""

    def __init__(self, owner: ort.OrtValue, address: int, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._owner, self.address, self.shape, self.dtype = owner, address, shape, dtype


def _memory(shape: tuple[int, ...], dtype: type[np.generic], device: str) -> ort.OrtValue:
    try:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
    except Exception as error:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize / 2**20
        raise BackendError(
            f"ONNX Runtime could not take {size:,.1f} MiB of {device} memory for a batch of {shape[0]} "
            f"({' '.join(str(error).split())}); take --batch-size {max(1, shape[0] // 2)}, or leave the device out"
        ) from error


def _failed(graph: str, error: Exception, batch: int) -> BackendError:
    said = " ".join(str(error).split())
    smaller = f"take --batch-size {batch // 2}" if batch > 1 else "export the bundle again"
    return BackendError(f"ONNX Runtime failed in graph {graph}: {said}; check shapes, or {smaller}")


def _batch(inputs: Mapping[str, Any]) -> int:
    return int(next(iter(inputs.values())).shape[0])


def _address(name: str, array: NDArray[Any]) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
    assert array.flags.c_contiguous, f"buffer {name} is not contiguous"
    return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
