"""The parts of a network as ONNX graphs, written node by node; and `step`, composed from the parts.

The graphs are authored here instead of traced, for three reasons: they are the smallest that compute the
part (no shape chains of an exporter, no fused attention that a parser drops), every name in them is ours,
and writing a bundle takes a second instead of a minute. `verify` holds each of them against the torch part
it stands for. Opset 20, decomposed attention, ScatterND cache writes: what ONNX Runtime runs fast on a CPU
and TensorRT and TensorRT-RTX parse.

B and S are dynamic, N is fixed; one graph serves every S from 1 to N. LSTM and MLP have no K/V to keep between
calls: their graphs take all N tokens and no token index, and their layers only hidden.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.manifest import Tensor, layer_name
from train.networks import GaussianFourierProjection, LSTMScore, MLPScore, ScoreNet, TransformerScore

OPSET = 20
IR_VERSION = 10
_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
}


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

    def row_linear(self, hidden: str, layer: nn.Linear, name: str, *, result: str | None = None) -> str:
        """The same for any leading dimensions, [..., in] -> [..., out]."""
        weight = self.weight(f"{name}_weight", layer.weight.numpy().T)
        bias = self.weight(f"{name}_bias", layer.bias.numpy())
        return self.op("Add", [self.op("MatMul", [hidden, weight], f"{name}_product"), bias], result or name)

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
    options = network.options
    g = GraphWriter()
    # Position table and embedding bias are added once, here.
    table = network.pos_encoder.embedding.weight.numpy() + network.embedder.bias.numpy()
    position = g.op("Gather", [g.weight("position_table", table), "token"], "position", axis=0)
    weight = g.weight("embedder_weight", network.embedder.weight.numpy().T)
    tokens = g.op("Add", [g.op("MatMul", ["z", weight], "embedded"), position], "tokens")
    g.op("Add", [tokens, g.op("Unsqueeze", [_time_rows(g, network.time_encoder), "one"], "time_features")], "hidden")
    inputs = [
        Tensor("z", "float32", ["B", "S", options.num_channels]),
        Tensor("t", "float32", ["B"]),
        Tensor("token", "int64", ["B", "S"]),
    ]
    outputs = [Tensor("hidden", "float32", ["B", "S", options.d_model])]
    return g.finish("embed", inputs, outputs)


def _time_rows(g: GraphWriter, time: GaussianFourierProjection) -> str:
    """The features of the times t [B], [B, D]."""
    d_model = time.d_model
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
    return g.linear(features, time.dense, "time_dense")


def whole_embed_graph(network: LSTMScore | MLPScore) -> onnx.ModelProto:
    """z [B, N, C], t [B] -> hidden [B, N, D], or [B, D] of an MLP."""
    options, is_flat = network.options, isinstance(network, MLPScore)
    g = GraphWriter()
    if is_flat:
        values = g.constant("as_row", [-1, options.num_tokens * options.num_channels])
        embedded = g.linear(g.op("Reshape", ["z", values], "row"), network.embedder, "embedder")
        time = _time_rows(g, network.time_encoder)
    else:
        embedded = g.row_linear("z", network.embedder, "embedder")
        time = g.op("Unsqueeze", [_time_rows(g, network.time_encoder), "one"], "time_features")
    g.op("Add", [embedded, time], "hidden")
    inputs = [Tensor("z", "float32", ["B", options.num_tokens, options.num_channels]), Tensor("t", "float32", ["B"])]
    return g.finish("embed", inputs, [Tensor("hidden", "float32", _whole_hidden(network))])


def _whole_hidden(network: LSTMScore | MLPScore) -> list[int | str]:
    """The shape of the features of a network without K/V."""
    options = network.options
    return ["B", options.d_model] if isinstance(network, MLPScore) else ["B", options.num_tokens, options.d_model]


def residual_graph(network: LSTMScore | MLPScore, layer: nn.Module, name: str) -> onnx.ModelProto:
    """hidden -> hidden_out, the same shape: one LSTM or one block of an MLP, added to its input."""
    g = GraphWriter()
    if isinstance(layer, nn.LSTM):
        update = _lstm(g, layer)
    else:
        first, last = (one for one in layer.children() if isinstance(one, nn.Linear))
        update = g.linear(g.op("Relu", [g.linear("hidden", first, "linear1")], "inner"), last, "linear2")
    g.op("Add", ["hidden", update], "hidden_out")
    shape = _whole_hidden(network)
    return g.finish(name, [Tensor("hidden", "float32", shape)], [Tensor("hidden_out", "float32", shape)])


def _lstm(g: GraphWriter, layer: nn.LSTM) -> str:
    """hidden [B, N, D] through a one-way LSTM from a state of zero; [B, N, D].

    ONNX orders the gates input, output, forget, cell, torch input, forget, cell, output; time comes first.
    """
    gates = np.r_[0:1, 3:4, 1:2, 2:3]
    size = layer.hidden_size

    def ordered(tensor: object) -> NDArray[np.float32]:
        parts: NDArray[np.float32] = np.asarray(tensor).reshape(4, size, -1)[gates]
        return parts.reshape(1, 4 * size, -1)

    weights = [g.weight(name, ordered(getattr(layer, f"weight_{name}_l0"))) for name in ("ih", "hh")]
    biases = [ordered(getattr(layer, f"bias_{name}_l0"))[..., 0] for name in ("ih", "hh")]
    bias = g.weight("bias", np.concatenate(biases, axis=1))
    steps = g.op("Transpose", ["hidden"], "time_first", perm=[1, 0, 2])
    states = g.op("LSTM", [steps, *weights, bias], "states", hidden_size=size)  # [N, 1, B, D]
    states = g.op("Squeeze", [states, g.constant("direction", [1])], "one_way")
    return g.op("Transpose", [states], "batch_first", perm=[1, 0, 2])


def _cache_rows(g: GraphWriter, token_shape: str, num_heads: int, num_tokens: int) -> str:
    """Where the S tokens of every head live in a cache [B, H, N, Dh]: indices [B, S, H, 3] for ScatterND.

    In the order in which keys and values leave their product, so that these are written without being transposed.
    """
    table = np.zeros((num_tokens, num_heads, 3), np.int64)
    table[..., 1], table[..., 2] = np.arange(num_heads), np.arange(num_tokens)[:, None]
    of_first = g.op("Gather", [g.constant("rows_of_first", table), "token"], "rows_of_first_sample", axis=0)
    batch = g.op("Gather", [token_shape, g.constant("axis_0", 0)], "size_0")
    samples = g.op("Range", [g.constant("first", 0), batch, g.constant("stride", 1)], "samples")
    samples = g.op("Reshape", [samples, g.constant("as_samples", [-1, 1, 1, 1])], "samples_4d")
    samples = g.op("Mul", [samples, g.constant("in_front", [1, 0, 0])], "samples_in_front")
    return g.op("Add", [of_first, samples], "cache_rows")


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
    qkv = g.op("Reshape", [qkv, split_shape], "qkv_heads")
    g.nodes.append(helper.make_node("Split", [qkv], ["query_heads", "new_key", "new_value"], axis=2, num_outputs=3))
    g.op("Transpose", ["query_heads"], "query", perm=[0, 2, 1, 3])
    where = _cache_rows(g, token_shape, num_heads, num_tokens)
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


def head_graph(network: ScoreNet) -> onnx.ModelProto:
    """hidden [B, S, D] -> score [B, S, C]; without K/V, S = N, and of an MLP hidden [B, D]."""
    options = network.options
    g = GraphWriter()
    hidden: list[int | str] = ["B", "S", options.d_model]
    active: int | str = "S"
    if not isinstance(network, TransformerScore):
        hidden, active = _whole_hidden(network), options.num_tokens
    if isinstance(network, MLPScore):
        shape = g.constant("as_tokens", [-1, options.num_tokens, options.num_channels])
        g.op("Reshape", [g.linear("hidden", network.unembedder, "unembedder"), shape], "score")
    else:
        g.row_linear("hidden", network.unembedder, "unembedder", result="score")
    score: list[int | str] = ["B", active, options.num_channels]
    return g.finish("head", [Tensor("hidden", "float32", hidden)], [Tensor("score", "float32", score)])


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
        works_on_rows = any(node.name == "rows" for node in part.graph.node)
        for node in part.graph.node:
            if works_on_rows and ((node.name == "rows" and rows) or (node.name == "hidden_out" and name != last)):
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
            rows = f"{name}/norm2" if works_on_rows else ""
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


def graphs_of(network: ScoreNet) -> dict[str, onnx.ModelProto]:
    """Every graph of a bundle by name: embed, the layers, head, step."""
    if isinstance(network, TransformerScore):
        parts = {"embed": embed_graph(network)}
        for index, layer in enumerate(network.backbone.layers):
            parts[layer_name(index)] = layer_graph(layer, network.options.num_tokens, layer_name(index))
    else:
        parts = {"embed": whole_embed_graph(network)}
        for index, layer in enumerate(network.backbone):
            parts[layer_name(index)] = residual_graph(network, layer, layer_name(index))
    parts["head"] = head_graph(network)
    return {**parts, "step": compose_step(parts)}
