"""K/V-only caching, which is what FastFourierDiffusion's code does: all tokens computed, some keys and values kept.

Its layers (`CachedTransformerEncoderLayer`) compute query, attention, output projection and MLP of every token at
every step, and project keys and values anew only of the tokens to be recomputed; those of the others are kept. Of
the 4 D + 2 N + 2 D_ff multiply-adds that a full pass takes per token, layer and channel this spares at most 2 D: 3 %
at the published size (`kv_share`).

Here is that scheme mended, in the form in which it is fastest, so that it loses by nothing but itself: in ONNX
Runtime, as one graph made from the bundle's `step`, in place. Every sample has keys and values of its own (there, a
batch shares those of its first sample), and those kept are a layer's own (there, a full step keeps projections of
the layer's output instead of its input). All of them are renewed every R network steps and those of the K lowest
frequencies in between, as its README says; its code raises an R below 100 to 500 and renews none in between.

    with KvOnlyBackend(bundle, manifest) as backend:
        Model(manifest, backend).sample(64, cache=E2CRF(policy="never"))
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.whole_steps import Buffers, WholeSteps
from export.manifest import Manifest, Network, Tensor
from runtime.backends.ort import OrtBackend
from runtime.errors import require

R, K = 10, 5  # the published README's
_FILE = "kv_only.onnx"


class KvOnlyBackend(WholeSteps):
    """The network of a bundle with transformer graphs in fp32, keys and values reused; `R` and `K` as published."""

    def __init__(self, bundle: Path, manifest: Manifest, *, R: int = R, K: int = K, threads: int | None = None) -> None:
        super().__init__(manifest, OrtBackend.name)
        network, precision = manifest.network, manifest.precision
        require(network.num_heads > 0, "K/V-only caching needs a transformer", network.backbone, "leave this rival out")
        require(precision == "fp32", "K/V-only caching is written for graphs in fp32", precision, "export in fp32")
        require(R >= 1, "R must be at least 1", R, "10 is the published one")
        require(K >= 1, "K must be at least 1", K, "5 is the published one")
        self._network, self._R = network, R
        self._low = np.flatnonzero(np.asarray(manifest.tokens.frequency) < K)
        step = manifest.graphs["step"]
        caches = [tensor for tensor in step.inputs if tensor.name.startswith("past_")]
        self._caches = [tensor.name.removeprefix("past_") for tensor in caches]
        self._folder = tempfile.TemporaryDirectory(prefix="kv-only-")
        write_kv_only_graph(bundle / step.file, network, Path(self._folder.name) / _FILE)
        graph = replace(step, file=_FILE, digest="", inputs=[*step.inputs, Tensor("kv_token", "int64", ["B", "K"])])
        self._inner = OrtBackend(Path(self._folder.name), {"step": graph}, threads=threads, compiled=False)

    def cost(self, k: int) -> float:
        """A pass without the projections that are spared."""
        spared = 0.0 if k % self._R == 0 else 1.0 - len(self._low) / self._network.num_tokens
        return 1.0 - kv_share(self._network) * spared

    def kept_bytes(self, batch: int) -> int:
        """Keys and values of all layers."""
        return 4 * batch * len(self._caches) * self._network.num_tokens * self._network.d_model

    def prepare(self, inputs: Buffers, outputs: Buffers) -> Callable[[int], None]:
        """The answer to network step k over these buffers, with keys and values of its own."""
        batch, network = len(inputs["z"]), self._network
        shape = (batch, network.num_heads, network.num_tokens, network.head_dim)
        kept = {name: np.zeros(shape, np.float32) for name in self._caches}
        every = np.tile(np.arange(network.num_tokens), (batch, 1))

        def bound(kv_token: NDArray[np.int64]) -> Callable[[], None]:
            past = {f"past_{name}": array for name, array in kept.items()}
            present = {f"present_{name}": array for name, array in kept.items()}
            given = {"z": inputs["z"], "t": inputs["t"], "token": every, "kv_token": kv_token}
            return self._inner.bind("step", given | past, {"score": outputs["score"]} | present)

        full, partial = bound(every), bound(np.tile(self._low, (batch, 1)))

        def answer(k: int) -> None:
            (full if k % self._R == 0 else partial)()

        return answer

    def close(self) -> None:
        """Free the session, and the graph's file."""
        self._inner.close()
        self._folder.cleanup()


def kv_share(network: Network) -> float:
    """The share of a full pass's multiply-adds in the layers that projects keys and values."""
    projections = 2 * network.d_model
    return projections / (2 * projections + 2 * network.num_tokens + 2 * network.d_ff)


class _Writer:
    """Collects the nodes and weights of a graph; every method returns the name of the value it made."""

    def __init__(self, weights: Mapping[str, NDArray[np.generic]], head_dim: int) -> None:
        self.nodes: list[Any] = []
        self.weights, self._head_dim = dict(weights), head_dim

    def constant(self, name: str, values: Any) -> str:
        self.weights[name] = np.array(values, order="C")
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def heads(self, rows: str, projection: Sequence[str], columns: slice, shape: str, name: str) -> str:
        """Rows [B * S, D] by some columns of a projection, as heads [B, S, h, Dh]; `shape` holds B and S."""
        weight, bias = (self.weights[part] for part in projection)
        own = [self.constant(f"{name}_weight", weight[:, columns]), self.constant(f"{name}_bias", bias[columns])]
        split = self.op(
            "Concat", [shape, self.constant(f"{name}_heads", [-1, self._head_dim])], f"{name}_shape", axis=0
        )
        return self.op("Reshape", [self.op("Gemm", [rows, *own], name), split], f"{name}_by_head")


def write_kv_only_graph(step: Path, network: Network, path: Path) -> None:
    """Write the `step` graph with one more input, kv_token [B, K]: whose keys and values are computed anew.

    Of each layer the one projection of q, k and v becomes two: q of all rows, k and v of the rows of kv_token. What
    comes between the projection and the attention is written anew, however the bundle has it.
    """
    model = onnx.load(str(step))
    graph = model.graph
    g = _Writer({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}, network.head_dim)
    shape = g.op("Shape", ["kv_token"], "kv_shape")
    batch = g.op("Gather", [shape, g.constant("kv_zero", 0)], "kv_batch")
    samples = g.op("Range", ["kv_zero", batch, g.constant("kv_one", 1)], "kv_samples")
    first = g.op("Mul", [samples, g.constant("kv_num_tokens", network.num_tokens)], "kv_first")
    first = g.op("Unsqueeze", [first, g.constant("kv_column", [1])], "kv_first_column")
    rows = g.op("Add", [first, "kv_token"], "kv_rows_2d")  # sample * N + token
    rows = g.op("Reshape", [rows, g.constant("kv_flat", [-1])], "kv_rows")
    where = _places(g, samples, network)
    for node in graph.node:
        layer, _, what = node.name.partition("/")
        if what == "qkv":
            hidden, *projection = node.input
            queries, others = slice(network.d_model), slice(network.d_model, None)
            query = g.heads(hidden, projection, queries, f"{layer}/token_shape", f"{layer}/q")
            g.op("Transpose", [query], f"{layer}/q_first", perm=[0, 2, 1, 3])
            some = g.op("Gather", [hidden, rows], f"{layer}/kv_hidden", axis=0)
            new = g.heads(some, projection, others, shape, f"{layer}/kv")
            outputs = [f"{layer}/kv_key", f"{layer}/kv_value"]
            g.nodes.append(onnx.helper.make_node("Split", [new], outputs, axis=2, num_outputs=2))
        elif what == "attention":
            node.input[0] = f"{layer}/q_first"
        elif what in ("present_key", "present_value"):
            node.input[1:] = [where, f"{layer}/kv_{what.removeprefix('present_')}"]
        g.nodes.append(node)
    nodes = _needed(g.nodes, {port.name for port in graph.output})
    used = {name for node in nodes for name in node.input}
    weights = [onnx.numpy_helper.from_array(values, name) for name, values in g.weights.items() if name in used]
    inputs = [*graph.input, onnx.helper.make_tensor_value_info("kv_token", onnx.TensorProto.INT64, ["B", "K"])]
    altered = onnx.helper.make_graph(nodes, "kv_only", inputs, graph.output, weights)
    made = onnx.helper.make_model(altered, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, str(path))


def _places(g: _Writer, samples: str, network: Network) -> str:
    """Where keys and values [B, K, H, Dh] of kv_token go in a cache [B, H, N, Dh]: [B, K, H, 3] for ScatterND."""
    table = np.zeros((network.num_tokens, network.num_heads, 3), np.int64)
    table[..., 1], table[..., 2] = np.arange(network.num_heads), np.arange(network.num_tokens)[:, None]
    of_first = g.op("Gather", [g.constant("kv_places", table), "kv_token"], "kv_places_of_first", axis=0)
    samples = g.op("Reshape", [samples, g.constant("kv_column_4d", [-1, 1, 1, 1])], "kv_samples_4d")
    samples = g.op("Mul", [samples, g.constant("kv_in_front", [1, 0, 0])], "kv_samples_in_front")
    return g.op("Add", [of_first, samples], "kv_where")


def _needed(nodes: Sequence[Any], outputs: set[str]) -> list[Any]:
    """Of nodes in their order those that outputs depend on."""
    wanted, kept = set(outputs), list[Any]()
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
