"""The score network of a bundle, as the sampler calls it: prepared calls over fixed buffers.

The network can be driven as one graph (`step`) or as its parts (`split`: embed, every layer, head; L + 2
calls). Both write keys and values of the given tokens into the caches of the batch and let these tokens
attend to all N; both serve every number of tokens S from 1 to N. A network without K/V (its `step` graph
takes no past keys) only knows S = N.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest, layer_name
from runtime.backends.base import Backend
from runtime.errors import OptionError, require

_BINDING_BYTES = 2**13  # an allowance, not measured
Buffers = dict[str, NDArray[Any]]
_KEPT_BYTES = 2**26  # of the buffers of prepared calls: a plan needs two calls, 64 samples on their own ways thousands


class Graphs(StrEnum):
    """Which graphs drive the network."""

    STEP = "step"
    SPLIT = "split"


@dataclass(frozen=True)
class Call:
    """A prepared network call for S tokens per sample: fill z, t and token, run, read score."""

    z: NDArray[np.float32]  # [B, S, C]
    t: NDArray[np.float32]  # [B]
    token: NDArray[np.int64]  # [B, S]
    score: NDArray[np.float32]  # [B, S, C]
    hidden: NDArray[np.float32] | None  # [B, S, D], the features z_L, where they were asked for
    run: Callable[[], None]

    @property
    def nbytes(self) -> int:
        """Bytes of its buffers, and an allowance for its binding."""
        buffers = (self.z, self.t, self.token, self.score, self.hidden)
        return sum(array.nbytes for array in buffers if array is not None) + _BINDING_BYTES


def has_kv(backend: Backend) -> bool:
    """Whether the network takes cached keys and values, so that some tokens can be computed without the rest."""
    return any(tensor.name.startswith("past_key") for tensor in backend.signature("step").inputs)


class ScoreNetwork:
    """The network for one batch of one trajectory: its K/V caches, and its calls by number of tokens."""

    def __init__(self, manifest: Manifest, backend: Backend, batch: int, graphs: Graphs = Graphs.STEP) -> None:
        self._manifest, self._backend, self._batch, self._graphs = manifest, backend, batch, graphs
        network = manifest.network
        signature = backend.signature("step")
        self.has_cache = has_kv(backend)
        self._takes = {tensor.name for tensor in signature.inputs}
        self._gives = {tensor.name for tensor in signature.outputs}
        shape = (batch, network.num_heads, network.num_tokens, network.head_dim) if self.has_cache else (0,)
        layers = range(network.num_layers if self.has_cache else 0)
        kinds = [tensor.dtype for tensor in signature.inputs if tensor.name.startswith("past_key")]
        kind = kinds[0] if kinds else "float32"  # of fp16 graphs: float16
        self.keys = [backend.zeros(shape, kind) for _ in layers]
        self.values = [backend.zeros(shape, kind) for _ in layers]
        self._calls: dict[tuple[int, int, int, bool], Call] = {}  # those that were asked for longest ago come first
        self._call_bytes = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of the K/V caches: L * 2 * B * N * d_model * 4 (fp16: * 2), or 0 without K/V."""
        return sum(array.nbytes for array in (*self.keys, *self.values))

    @property
    def d_model(self) -> int:
        """Width of the features."""
        return self._manifest.network.d_model

    def call(self, num_tokens: int, first: int = 0, last: int | None = None, *, features: bool = False) -> Call:
        """The prepared call for S = `num_tokens` of samples first .. last - 1; the same object while it is in use.

        Without K/V only all tokens can be asked for.
        """
        key = (num_tokens, first, self._batch if last is None else last, features)
        if (call := self._calls.pop(key, None)) is None:
            call = self._prepare(*key)
            self._call_bytes += call.nbytes
            while self._calls and self._call_bytes > _KEPT_BYTES:
                self._call_bytes -= self._calls.pop(next(iter(self._calls))).nbytes
        self._calls[key] = call
        return call

    def _prepare(self, num_tokens: int, first: int, last: int, features: bool) -> Call:
        network = self._manifest.network
        assert self.has_cache or num_tokens == network.num_tokens, "only whole steps without K/V"
        rows = (last - first, num_tokens, network.num_channels)
        buffers: Buffers = {
            "z": np.zeros(rows, np.float32),
            "t": np.zeros(last - first, np.float32),
            "token": np.tile(np.arange(num_tokens, dtype=np.int64), (last - first, 1)),
            "score": np.zeros(rows, np.float32),
        }
        if features:
            self._require_features()
            buffers["hidden"] = np.zeros((*rows[:2], network.d_model), np.float32)
        bind = self._bind_step if self._graphs is Graphs.STEP else self._bind_split
        run = bind(buffers, slice(first, last))
        return Call(buffers["z"], buffers["t"], buffers["token"], buffers["score"], buffers.get("hidden"), run)

    def _require_features(self) -> None:
        require(self._manifest.network.backbone != "mlp", "the event intensity needs features of each token",
                "one row in an mlp", "take policy interval")  # fmt: skip
        if self._graphs is Graphs.STEP and "hidden" not in self._gives:
            raise OptionError(
                "the event intensity needs the features of the last layer, found a step graph that does not give "
                "them; export the bundle again, or use the split graphs"
            )

    def _bind_step(self, buffers: Buffers, samples: slice) -> Callable[[], None]:
        caches = {
            f"{kind}_{index:02d}": array[samples]
            for kind, arrays in (("key", self.keys), ("value", self.values))
            for index, array in enumerate(arrays)
        }
        inputs = buffers | {f"past_{name}": array for name, array in caches.items()}
        outputs = {name: array for name, array in buffers.items() if name in ("score", "hidden")}
        outputs |= {f"present_{name}": array for name, array in caches.items()}
        return self._backend.bind(
            "step",
            {name: array for name, array in inputs.items() if name in self._takes},
            {name: array for name, array in outputs.items() if name in self._gives},
        )

    def _bind_split(self, buffers: Buffers, samples: slice) -> Callable[[], None]:
        bind, token, num_layers = self._backend.bind, buffers["token"], self._manifest.network.num_layers
        embed = self._backend.signature("embed")
        sizes = dict(zip(("B", "S"), token.shape, strict=True))
        shape = [size if isinstance(size, int) else sizes[size] for size in embed.outputs[0].shape]
        hidden = [np.zeros(shape, np.float32) for _ in range(2)]
        if "hidden" in buffers:
            hidden[num_layers % 2] = buffers["hidden"]
        calls = [bind("embed", {tensor.name: buffers[tensor.name] for tensor in embed.inputs}, {"hidden": hidden[0]})]
        for index in range(num_layers):
            inputs, outputs = {"hidden": hidden[index % 2]}, {"hidden_out": hidden[(index + 1) % 2]}
            if self.has_cache:
                key, value = self.keys[index][samples], self.values[index][samples]
                inputs |= {"token": token, "past_key": key, "past_value": value}
                outputs |= {"present_key": key, "present_value": value}
            calls.append(bind(layer_name(index), inputs, outputs))
        calls.append(bind("head", {"hidden": hidden[num_layers % 2]}, {"score": buffers["score"]}))

        def run() -> None:
            for call in calls:
                call()

        return run
