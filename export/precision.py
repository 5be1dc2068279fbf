"""fp32, fp16, bf16: the precision of a network, written into its graphs; TensorRT has no flag for it any more.

A typed graph computes the products of the layers (`Gemm`, `MatMul`) in the half type, and all else in float32:

    softmax, LayerNorm, residual sums   rounding there is what half precision is known to break
    embed and head, whole               the latents and the score are the sampler's, and times become angles of
                                        hundreds of radians; with C channels these parts cost next to nothing
    z, t, hidden, score                 what flows between the parts is the residual stream

Keys and values are kept in the half type. They are results of a half product, so that a wider cache would hold
the same numbers; and the caches are most of the memory and, in a partial step, most of the traffic.

`typed` makes such a graph out of an fp32 one, whoever wrote it. `emulated` goes back: a float32 graph that rounds
wherever the typed one does, with the sums inside a product in float32, as on tensor cores.
"""

from collections.abc import Mapping
from enum import StrEnum

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.manifest import FLOAT32_PARTS

FLOAT = int(TensorProto.FLOAT)
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_MOVES = frozenset(  # take the type of what they move
    {"Concat", "Expand", "Gather", "Identity", "Relu", "Reshape", "ScatterElements", "ScatterND", "Slice", "Split",
     "Squeeze", "Transpose", "Unsqueeze"}
)  # fmt: skip


class PrecisionError(Exception):
    """A network cannot be written in a precision."""

    exit_code = 1


class Precision(StrEnum):
    """What the products of the layers are computed in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def onnx_type(self) -> int:
        """The element type in ONNX."""
        types = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
        return int(types[self])

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The nearest values that the precision has, in float32."""
        kind: np.dtype[np.generic] = helper.tensor_dtype_to_np_dtype(self.onnx_type)
        return values.astype(kind).astype(np.float32)

    @property
    def min_sqnr_db(self) -> dict[str, float]:
        """Least SQNR against float32 that a verified bundle has: of a part, the chain of all, a 20-step trajectory.

        20 dB less than trained models were measured to have (70 and 50 dB, trajectories down to 58 and 38).
        """
        part, chain, trajectory = {"fp16": (50.0, 45.0, 40.0), "bf16": (32.0, 27.0, 22.0)}[self]
        return {"part": part, "chain": chain, "trajectory": trajectory}


def typed(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A float32 graph in a precision (fp32: as it is); a `PrecisionError` if a weight is beyond its range."""
    return model if precision is Precision.FP32 else _Typing(model, precision).result()


def typed_graphs(graphs: Mapping[str, onnx.ModelProto], precision: Precision) -> dict[str, onnx.ModelProto]:
    """All graphs of a bundle in a precision; a `PrecisionError` where it would change none of them."""
    made = {name: typed(model, precision) for name, model in graphs.items()}
    if precision is not Precision.FP32 and all(made[name].graph.node == graphs[name].graph.node for name in graphs):
        raise PrecisionError(
            f"no part of this network would be computed in {precision}: its layers are recurrent, and recurrent "
            "layers stay in float32; leave --dtype out"
        )
    return made


class _Typing:
    """One pass over the nodes, which come in the order they run."""

    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        self._model, self._precision, self._half = model, precision, precision.onnx_type
        self._types = _types_of(model)  # of every value; those of floats change on the way
        self._floats = {name for name, kind in self._types.items() if kind == FLOAT}
        self._weights = {weight.name: weight for weight in model.graph.initializer}
        self._used: dict[str, onnx.TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._cast: set[str] = set()

    def result(self) -> onnx.ModelProto:
        """The typed model."""
        graph = self._model.graph
        inputs, outputs = ([self._port(port) for port in side] for side in (graph.input, graph.output))
        given = {port.name: port.type.tensor_type.elem_type for port in outputs}
        self._types |= {port.name: port.type.tensor_type.elem_type for port in inputs}
        for node in graph.node:
            self._add(node, given)
        made = helper.make_graph(self._nodes, graph.name, inputs, outputs, list(self._used.values()))
        return _like(self._model, made)

    def _port(self, port: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        copy = onnx.ValueInfoProto.FromString(port.SerializeToString())
        if port.name.startswith(("past_", "present_")):
            copy.type.tensor_type.elem_type = self._half
        return copy

    def _add(self, node: onnx.NodeProto, given: dict[str, int]) -> None:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        kind = self._kind(node)
        copy.input[:] = [self._as(value, kind) for value in node.input]
        self._nodes.append(copy)
        for position, value in enumerate(node.output):
            if value not in self._floats:
                continue
            self._types[value] = kind
            if given.get(value, kind) != kind:  # an output of the graph in another type than it is computed in
                raw = copy.output[position] = f"{value}_raw"
                self._nodes.append(helper.make_node("Cast", [raw], [value], name=value + "_cast", to=given[value]))
                self._types[value] = given[value]

    def _kind(self, node: onnx.NodeProto) -> int:
        """The type that the floats of a node are in."""
        part = node.name.partition("/")[0] if "/" in node.name else self._model.graph.name
        if part in FLOAT32_PARTS:
            return FLOAT
        if node.op_type in _PRODUCTS:
            return self._half
        is_half = node.op_type in _MOVES and self._types[node.input[0]] == self._half
        return self._half if is_half else FLOAT

    def _as(self, value: str, kind: int) -> str:
        """The name under which a value is there in a type; a cast is made once."""
        weight = self._weights.get(value)
        if weight is not None and (kind == FLOAT or value not in self._floats):
            self._used[value] = weight
            return value
        if value not in self._floats or (weight is None and self._types[value] == kind):
            return value
        name = f"{value}_{self._precision if kind == self._half else 'fp32'}"
        if weight is not None:
            if name not in self._used:
                self._used[name] = self._rounded(weight, name)
        elif name not in self._cast:
            self._cast.add(name)
            self._nodes.append(helper.make_node("Cast", [value], [name], name=name, to=kind))
        return name

    def _rounded(self, weight: onnx.TensorProto, name: str) -> onnx.TensorProto:
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            rounded = values.astype(helper.tensor_dtype_to_np_dtype(self._half))
        if not np.isfinite(rounded.astype(np.float32)).all():
            raise PrecisionError(
                f"{weight.name} of {self._model.graph.name} does not fit into {self._precision}: its largest value is "
                f"{np.abs(values).max():.3g}; export with --dtype bf16, or train with a smaller weight"
            )
        return numpy_helper.from_array(rounded, name)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A typed graph in float32 that rounds every half value to the half type right after it is made."""
    types, graph = _types_of(model), model.graph
    halves = {name: kind for name, kind in types.items() if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)}
    nodes: list[onnx.NodeProto] = []

    def rounding(source: str, target: str, kind: int) -> None:
        nodes.append(helper.make_node("Cast", [source], [f"{target}_half"], name=f"{target}_half", to=kind))
        nodes.append(helper.make_node("Cast", [f"{target}_half"], [target], name=f"{target}_rounded", to=FLOAT))

    for node in graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for attribute in copy.attribute:
            if copy.op_type == "Cast" and attribute.name == "to" and attribute.i in halves.values():
                attribute.i = FLOAT
        nodes.append(copy)
        for position, value in enumerate(node.output):
            if value in halves:
                copy.output[position] = f"{value}_wide"
                rounding(f"{value}_wide", value, halves[value])
    weights = [
        numpy_helper.from_array(_wide(weight), weight.name) if weight.name in halves else weight
        for weight in graph.initializer
    ]
    ports = [
        [_as_float(port) if port.name in halves else port for port in side] for side in (graph.input, graph.output)
    ]
    return _like(model, helper.make_graph(nodes, graph.name, ports[0], ports[1], weights))


def _wide(weight: onnx.TensorProto) -> NDArray[np.float32]:
    values: NDArray[np.float32] = numpy_helper.to_array(weight).astype(np.float32)
    return values


def _as_float(port: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto.FromString(port.SerializeToString())
    copy.type.tensor_type.elem_type = FLOAT
    return copy


def _types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value and weight."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return values | {weight.name: weight.data_type for weight in graph.initializer}


def _like(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    """A checked model with the versions of another."""
    made = helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version, producer_name=model.producer_name
    )
    onnx.checker.check_model(made, full_check=True)
    return made
