"""The parts of a network as ONNX graphs, written node by node; and `step`, composed from the parts.

The graphs are authored here instead of traced, for three reasons: they are the smallest that compute the
part (no shape chains of an exporter, no fused attention that a parser drops), every name in them is ours,
and writing a bundle takes a second instead of a minute. `verify` holds each of them against the torch part
it stands for. Opset 20, decomposed attention, ScatterND cache writes: what ONNX Runtime runs fast on a CPU
and TensorRT and TensorRT-RTX parse.

B and S are dynamic, N is fixed; one graph serves every S from 1 to N.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.manifest import Tensor, layer_name
from train.networks import TransformerScore

OPSET = 20
IR_VERSION = 10
_ONNX_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class GraphWriter:
    """Collects nodes and weights; every method returns the name of the value it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[np.generic]] = {}

    def constant(self, name: str, values: object, dtype: type[np.generic] = np.int64) -> str:
        """A named constant or weight."""
        self.weights[name] = np.array(values, dtype, order="C")
        return name

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: object) -> str:
        """One node with one output; the output carries the node's name."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str, tensor: object) -> str:
        """A float32 weight taken from a torch parameter."""
        return self.constant(name, tensor, np.float32)

    def linear(self, hidden: str, layer: nn.Linear, name: str) -> str:
        """Rows [R, in] -> [R, out] by one Gemm."""
        weight = self.weight(f"{name}_weight", layer.weight.numpy().T)
        return self.op("Gemm", [hidden, weight, self.weight(f"{name}_bias", layer.bias.numpy())], name)

    def finish(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> onnx.ModelProto:
        """The checked model."""
        weights = [numpy_helper.from_array(values, key) for key, values in self.weights.items()]
        graph = helper.make_graph(self.nodes, name, _infos(inputs), _infos(outputs), weights)
        return _model(graph)


def _infos(tensors: Sequence[Tensor]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(t.name, _ONNX_TYPES[t.dtype], t.shape) for t in tensors]


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="e2crf",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def embed_graph(network: TransformerScore) -> onnx.ModelProto:
    """z [B, S, C], t [B], token [B, S] -> hidden [B, S, D]."""
    options, time = network.options, network.time_encoder
    d_model = options.d_model
    g = GraphWriter()
    # Position table and embedding bias are added once, here.
    table = network.pos_encoder.embedding.weight.numpy() + network.embedder.bias.numpy()
    position = g.op("Gather", [g.weight("position_table", table), "token"], "position", axis=0)
    weight = g.weight("embedder_weight", network.embedder.weight.numpy().T)
    tokens = g.op("Add", [g.op("MatMul", ["z", weight], "embedded"), position], "tokens")
    # t * W, then * 2, then * pi: torch's order, since angles of hundreds of radians remember their rounding.
    column = g.op("Unsqueeze", ["t", g.constant("one", [1])], "t_column")
    angle = g.op("Mul", [column, g.weight("time_W", time.W.numpy()[None, :])], "t_times_W")
    angle = g.op("Mul", [angle, g.weight("two", 2.0)], "t_times_2W")
    angle = g.op("Mul", [angle, g.weight("pi", np.pi)], "angle")
    waves = [g.op("Sin", [angle], "sine"), g.op("Cos", [angle], "cosine")]
    features = g.op("Concat", waves, "waves", axis=1)
    if 2 * time.W.numel() != d_model:  # odd d_model: the last cosine is dropped
        bounds = [g.constant("zero", [0]), g.constant("d_model", [d_model]), "one"]
        features = g.op("Slice", [features, *bounds], "waves_used")
    projected = g.op("Unsqueeze", [g.linear(features, time.dense, "time_dense"), "one"], "time_features")
    g.op("Add", [tokens, projected], "hidden")
    inputs = [
        Tensor("z", "float32", ["B", "S", options.num_channels]),
        Tensor("t", "float32", ["B"]),
        Tensor("token", "int64", ["B", "S"]),
    ]
    outputs = [Tensor("hidden", "float32", ["B", "S", d_model])]
    return g.finish("embed", inputs, outputs)


def _cache_rows(g: GraphWriter, token_shape: str, num_heads: int) -> str:
    """Where the S tokens of every head live in a cache [B, H, N, Dh]: indices [B, H, S, 3] for ScatterND."""
    batch, active = (g.op("Gather", [token_shape, g.constant(f"axis_{i}", i)], f"size_{i}") for i in (0, 1))
    unit = g.constant("unit", [1])
    parts = [g.op("Unsqueeze", [part, g.constant("front", [0])], f"{part}_1d") for part in (batch, active)]
    full = g.op("Concat", [parts[0], g.constant("num_heads", [num_heads]), parts[1], unit], "rows_shape", axis=0)
    samples = g.op("Range", [g.constant("first", 0), batch, g.constant("stride", 1)], "samples")
    samples = g.op("Reshape", [samples, g.constant("as_samples", [-1, 1, 1, 1])], "samples_4d")
    heads = g.constant("heads_4d", np.arange(num_heads).reshape(1, num_heads, 1, 1))
    tokens = g.op("Unsqueeze", ["token", g.constant("around", [1, 3])], "tokens_4d")
    columns = [g.op("Expand", [part, full], f"{part}_all") for part in (samples, heads, tokens)]
    return g.op("Concat", columns, "cache_rows", axis=3)


def layer_graph(layer: nn.TransformerEncoderLayer, num_tokens: int, name: str) -> onnx.ModelProto:
    """hidden [B, S, D], token [B, S], past K/V [B, H, N, Dh] -> hidden_out, present K/V.

    The work runs on rows [B * S, D], where a Gemm takes its bias and its ReLU along.
    """
    attention = layer.self_attn
    d_model, num_heads = attention.embed_dim, attention.num_heads
    head_dim = d_model // num_heads
    g = GraphWriter()
    as_rows = g.constant("as_rows", [-1, d_model])
    rows = g.op("Reshape", ["hidden", as_rows], "rows")
    # Shapes come from `token`, which all layers share, so that `step` computes each of them once.
    token_shape = g.op("Shape", ["token"], "token_shape")
    hidden_shape = g.op("Concat", [token_shape, g.constant("d_model", [d_model])], "hidden_shape", axis=0)
    # One projection for q, k, v, with the 1/sqrt(Dh) of attention folded into q.
    scale = np.ones(3 * d_model, np.float32)
    scale[:d_model] = head_dim**-0.5
    weight = g.weight("qkv_weight", attention.in_proj_weight.numpy().T * scale)
    bias = g.weight("qkv_bias", attention.in_proj_bias.numpy() * scale)
    qkv = g.op("Gemm", [rows, weight, bias], "qkv")
    heads = g.constant("split_heads", [3 * num_heads, head_dim])
    split_shape = g.op("Concat", [token_shape, heads], "qkv_shape", axis=0)
    qkv = g.op("Transpose", [g.op("Reshape", [qkv, split_shape], "qkv_heads")], "qkv_first", perm=[0, 2, 1, 3])
    g.nodes.append(helper.make_node("Split", [qkv], ["query", "new_key", "new_value"], axis=1, num_outputs=3))
    where = _cache_rows(g, token_shape, num_heads)
    for kind in ("key", "value"):
        g.op("ScatterND", [f"past_{kind}", where, f"new_{kind}"], f"present_{kind}")
    key = g.op("Transpose", ["present_key"], "key_columns", perm=[0, 1, 3, 2])
    attend = g.op("Softmax", [g.op("MatMul", ["query", key], "attention")], "weights", axis=-1)
    context = g.op("MatMul", [attend, "present_value"], "context_heads")
    context = g.op("Transpose", [context], "context_tokens", perm=[0, 2, 1, 3])
    context = g.linear(g.op("Reshape", [context, as_rows], "context_rows"), attention.out_proj, "out_proj")
    rows = _add_and_norm(g, rows, context, layer.norm1, "norm1")
    inner = g.op("Relu", [g.linear(rows, layer.linear1, "linear1")], "inner")
    rows = _add_and_norm(g, rows, g.linear(inner, layer.linear2, "linear2"), layer.norm2, "norm2")
    g.op("Reshape", [rows, hidden_shape], "hidden_out")
    cache = ["B", num_heads, num_tokens, head_dim]
    hidden = ["B", "S", d_model]
    inputs = [
        Tensor("hidden", "float32", list(hidden)),
        Tensor("token", "int64", ["B", "S"]),
        Tensor("past_key", "float32", list(cache)),
        Tensor("past_value", "float32", list(cache)),
    ]
    outputs = [
        Tensor("hidden_out", "float32", list(hidden)),
        Tensor("present_key", "float32", list(cache)),
        Tensor("present_value", "float32", list(cache)),
    ]
    return g.finish(name, inputs, outputs)


def _add_and_norm(g: GraphWriter, rows: str, update: str, norm: nn.LayerNorm, name: str) -> str:
    weights = [g.weight(f"{name}_weight", norm.weight.numpy()), g.weight(f"{name}_bias", norm.bias.numpy())]
    added = g.op("Add", [rows, update], f"{name}_sum")
    return g.op("LayerNormalization", [added, *weights], name, axis=-1, epsilon=norm.eps)


def head_graph(network: TransformerScore) -> onnx.ModelProto:
    """hidden [B, S, D] -> score [B, S, C]."""
    g = GraphWriter()
    weight = g.weight("unembedder_weight", network.unembedder.weight.numpy().T)
    bias = g.weight("unembedder_bias", network.unembedder.bias.numpy())
    g.op("Add", [g.op("MatMul", ["hidden", weight], "projected"), bias], "score")
    inputs = [Tensor("hidden", "float32", ["B", "S", network.options.d_model])]
    outputs = [Tensor("score", "float32", ["B", "S", network.options.num_channels])]
    return g.finish("head", inputs, outputs)


def compose_step(parts: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """Chain the part graphs into one: hidden flows through, every layer keeps its own K/V.

    Inputs z, t, token, past_key_00, past_value_00, ...; outputs score, hidden (the features that the head reads),
    present_key_00, present_value_00, ...
    Inner names are prefixed with their part. What the parts have in common is kept once, since with few tokens
    a step is as long as its list of nodes: equal constants (so that equal nodes can be merged), and the rows that
    a layer would only reshape for the next one to reshape back.
    """
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    inputs: list[onnx.ValueInfoProto] = []
    outputs: list[onnx.ValueInfoProto] = []
    hidden = "embed/hidden"  # what flows from part to part
    rows = ""  # the same as rows [B * S, D], from the first layer on
    shared: dict[bytes, str] = {}  # constants by content
    last = max(name for name in parts if name.startswith("layer_"))
    for name, part in parts.items():
        index = name.removeprefix("layer_")
        public = {"z": "z", "t": "t", "token": "token", "score": "score", "hidden": hidden}
        for kind in ("past_key", "past_value", "present_key", "present_value"):
            public[kind] = f"{kind}_{index}"
        if name == last:
            public["hidden_out"] = "hidden"
        for weight in part.graph.initializer:
            own, content = f"{name}/{weight.name}", _content(weight)
            public[weight.name] = shared.setdefault(content, own) if weight.data_type == TensorProto.INT64 else own
            if public[weight.name] == own:
                weights.append(onnx.TensorProto.FromString(weight.SerializeToString()))
                weights[-1].name = own
        if rows:
            public["rows"] = rows
        for node in part.graph.node:
            if (node.name == "rows" and rows) or (node.name == "hidden_out" and name != last):
                continue
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            nodes[-1].name = f"{name}/{node.name}"
            for names in (nodes[-1].input, nodes[-1].output):
                names[:] = [public.get(value, f"{name}/{value}") for value in names]
        for ports, side in ((part.graph.input, inputs), (part.graph.output, outputs)):
            for port in ports:
                if port.name in public and port.name != "hidden" and public[port.name] not in {p.name for p in side}:
                    side.append(onnx.ValueInfoProto.FromString(port.SerializeToString()))
                    side[-1].name = public[port.name]
        if name.startswith("layer"):
            hidden = public.get("hidden_out", f"{name}/hidden_out")
            rows = f"{name}/norm2"
    outputs.sort(key=lambda port: ("score", "hidden").index(port.name) if port.name in ("score", "hidden") else 2)
    return _model(helper.make_graph(nodes, "step", inputs, outputs, weights))


def _content(weight: onnx.TensorProto) -> bytes:
    """Shape and values of a constant, alike for alike constants of any name."""
    nameless = onnx.TensorProto.FromString(weight.SerializeToString())
    nameless.ClearField("name")
    content: bytes = nameless.SerializeToString(deterministic=True)
    return content


def tensors_of(ports: Sequence[onnx.ValueInfoProto]) -> list[Tensor]:
    """Graph inputs or outputs as manifest records."""
    names = {code: name for name, code in _ONNX_TYPES.items()}
    return [
        Tensor(
            port.name,
            names[port.type.tensor_type.elem_type],
            [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim],
        )
        for port in ports
    ]


def graphs_of(network: TransformerScore) -> dict[str, onnx.ModelProto]:
    """Every graph of a bundle by name: embed, the layers, head, step."""
    num_tokens = network.options.num_tokens
    parts = {"embed": embed_graph(network)}
    for index, layer in enumerate(network.backbone.layers):
        name = layer_name(index)
        parts[name] = layer_graph(layer, num_tokens, name)
    parts["head"] = head_graph(network)
    return {**parts, "step": compose_step(parts)}
