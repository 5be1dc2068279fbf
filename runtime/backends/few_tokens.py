"""Steps of few tokens on a CPU, in compiled C: `few_tokens.c`, of which this is the other half.

A step of five tokens is two hundred operations of a microsecond each, and ONNX Runtime takes as long to go from one
to the next. Where a C compiler was there when the package was installed, such steps are one call of our own, over the
same buffers: one and a half to three times as fast, on one core, and the same numbers to rounding. Everywhere else,
and for all else (more tokens, several samples, half precision), ONNX Runtime computes them.

    few = open_few_tokens(Path("bundles/ecg/onnx/step.onnx"), signature)   # None: not compiled, or another network
    call = few.bind(inputs, outputs)                                       # None: not few tokens
"""

import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.manifest import Graph
from runtime.backends.base import Arrays
from runtime.backends.initializers import read_initializers
from runtime.errors import BackendError

MOST = 16  # S at most; with more the cores of ONNX Runtime are ahead
_INNER = 256  # as in few_tokens.c
VECTORS = {16: "AVX-512", 8: "AVX2", 4: "NEON"}  # by the floats in one

Weights = Mapping[str, NDArray[np.float32]]


class _Sizes(NamedTuple):
    """Those of a network, in the order of `struct call`."""

    channels: int
    d_model: int
    heads: int
    layers: int
    d_ff: int
    tokens: int


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in (*_Sizes._fields, "active")),
        *((name, ctypes.c_void_p) for name in ("z", "t", "token", "caches", "weights", "score", "hidden")),
    )


@cache
def _library() -> ctypes.CDLL | None:
    """What was compiled when the package was installed."""
    spec = importlib.util.find_spec("runtime.backends._few_tokens")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
        library.few_tokens_step.argtypes = (ctypes.c_int, ctypes.c_void_p)
    except (OSError, AttributeError):  # of another machine
        return None
    return library


def widths_here() -> tuple[int, ...]:
    """Floats in the vectors that this processor has compiled code for, the widest first; none where there is none."""
    library = _library()
    return () if library is None else tuple(width for width in VECTORS if library.few_tokens_has(width))


def what_computes_them() -> str:
    """What computes steps of few tokens on this machine, and what to do where it could be faster."""
    if widths := widths_here():
        return f"compiled code ({VECTORS[widths[0]]})"
    if _library() is None:
        return "ONNX Runtime too; compiled they are up to three times as fast: install GCC or Clang, then e2crf again"
    return f"ONNX Runtime too, since this processor has none of {', '.join(VECTORS.values())}"


class FewTokens:
    """The network of a step graph, packed for the vectors of this processor."""

    def __init__(self, weights: Weights, num_heads: int, num_tokens: int, width: int) -> None:
        """Weights by their names in the step graph; a KeyError or ValueError where these are not of such a network."""
        embedder, inner = weights["embed/embedder_weight"], weights["layer_00/linear1_weight"]
        num_layers = sum(name.endswith("/qkv_weight") for name in weights)
        self._sizes = _Sizes(len(embedder), len(inner), num_heads, num_layers, inner.shape[1], num_tokens)
        self._width = width
        self._weights = _aligned(np.concatenate([part.ravel() for part in _packed(weights, self._sizes, width)]))

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Callable[[], None] | None:
        """A step over these very buffers, as `Backend.bind`; None for several samples, many tokens, copied caches."""
        sizes, (batch, active) = self._sizes, inputs["token"].shape
        names = [f"{kind}_{layer:02d}" for kind in ("key", "value") for layer in range(sizes.layers)]
        caches = [inputs[f"past_{name}"] for name in names]
        is_in_place = all(kept is outputs[f"present_{name}"] for name, kept in zip(names, caches, strict=True))
        is_few = batch == 1 and 0 < active <= min(MOST, sizes.tokens - 1)
        if not is_few or not is_in_place or (library := _library()) is None:
            return None
        addresses = (ctypes.c_void_p * len(caches))(*(array.ctypes.data for array in caches))
        z, t, token = (inputs[name].ctypes.data for name in ("z", "t", "token"))
        score = outputs["score"].ctypes.data
        hidden = outputs["hidden"].ctypes.data if "hidden" in outputs else None
        call = _Call(*sizes, active, z, t, token, ctypes.addressof(addresses), self._weights.ctypes.data, score, hidden)
        step, width, pointer = library.few_tokens_step, self._width, ctypes.byref(call)

        def run(_keep_alive: object = (inputs, outputs, addresses, self)) -> None:
            if step(width, pointer):
                raise BackendError(f"tokens must be from 0 to {sizes.tokens - 1}, found {inputs['token'].tolist()}; "
                                   "correct the policy that chose them")  # fmt: skip

        return run

    def off_from(self, graph: Callable[[Arrays], dict[str, NDArray[Any]]]) -> float:
        """How far a step is from the graph's over the same noise: the largest error over the largest value."""
        sizes, noise, active = self._sizes, np.random.default_rng(0), min(MOST, self._sizes.tokens - 1)
        shapes: dict[str, tuple[int, ...]] = {"z": (1, active, sizes.channels), "t": (1,)}
        cache_shape = (1, sizes.heads, sizes.tokens, sizes.d_model // sizes.heads)
        shapes |= {
            f"past_{kind}_{layer:02d}": cache_shape for kind in ("key", "value") for layer in range(sizes.layers)
        }
        feeds: dict[str, NDArray[Any]] = {
            name: noise.uniform(0, 1, shape).astype(np.float32) for name, shape in shapes.items()
        }
        feeds["token"] = noise.permutation(sizes.tokens)[None, :active]
        expected = graph(feeds)
        found = {name: feeds[name.replace("present", "past")] for name in expected if name.startswith("present")}
        found |= {name: np.zeros_like(values) for name, values in expected.items() if name not in found}
        if (call := self.bind(feeds, found)) is None:
            return np.inf
        call()
        return max(_relative_error(found[name], values) for name, values in expected.items())


def open_few_tokens(path: Path, signature: Graph) -> FewTokens | None:
    """The network of a step graph in compiled form; None where nothing is compiled or the graph is of another kind."""
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in signature.inputs}
    dtype, cache_shape = shapes.get("past_key_00", ("", []))
    widths = widths_here()
    if not widths or dtype != "float32":
        return None
    _, num_heads, num_tokens, _ = (size if isinstance(size, int) else 0 for size in cache_shape)
    try:
        return FewTokens(read_initializers(path), num_heads, num_tokens, widths[0])
    except (KeyError, ValueError, OSError):  # a file that is not there is for ONNX Runtime to tell
        return None


def _relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))


def _packed(weights: Weights, sizes: _Sizes, width: int) -> Iterator[NDArray[np.float32]]:
    """The weights in the order in which a step reads them; all rows are filled up to whole vectors by zeros."""

    def row(name: str, size: int) -> NDArray[np.float32]:
        values = weights[name].reshape(-1)
        if len(values) != size:
            raise ValueError(f"{name} has {len(values)} values, not {size}")
        return _filled(values[None, :], width)

    def matrix(name: str, rows: int, columns: int) -> NDArray[np.float32]:
        if weights[name].shape != (rows, columns):
            raise ValueError(f"{name} is of shape {weights[name].shape}, not {(rows, columns)}")
        return _filled(weights[name], width)

    d_model, d_ff = sizes.d_model, sizes.d_ff
    yield row("embed/time_W", (d_model + 1) // 2)
    yield row("embed/time_dense_bias", d_model)
    yield from _panels(matrix("embed/time_dense_weight", d_model, d_model), width)
    yield matrix("embed/position_table", sizes.tokens, d_model)
    yield from _panels(matrix("embed/embedder_weight", sizes.channels, d_model), width)
    for layer in (f"layer_{index:02d}" for index in range(sizes.layers)):
        yield row(f"{layer}/qkv_bias", 3 * d_model)
        yield from _panels(matrix(f"{layer}/qkv_weight", d_model, 3 * d_model), width)
        yield row(f"{layer}/out_proj_bias", d_model)
        yield from _panels(matrix(f"{layer}/out_proj_weight", d_model, d_model), width)
        yield from (row(f"{layer}/norm1_{kind}", d_model) for kind in ("weight", "bias"))
        yield row(f"{layer}/linear2_bias", d_model)
        first_bias, first = row(f"{layer}/linear1_bias", d_ff), matrix(f"{layer}/linear1_weight", d_model, d_ff)
        second = matrix(f"{layer}/linear2_weight", d_ff, d_model)
        second = np.pad(second, ((0, first.shape[1] - d_ff), (0, 0)))
        for begin in range(0, first.shape[1], _INNER):
            part = slice(begin, begin + _INNER)
            yield first_bias[:, part]
            yield from _panels(first[:, part], width)
            yield from _panels(second[part], width)
        yield from (row(f"{layer}/norm2_{kind}", d_model) for kind in ("weight", "bias"))
    yield row("head/unembedder_bias", sizes.channels)
    yield from _panels(matrix("head/unembedder_weight", d_model, sizes.channels), width)


def _panels(matrix: NDArray[np.float32], width: int) -> Iterator[NDArray[np.float32]]:
    """[depth, columns] as panels [depth, 2 width], and [depth, width] for an odd rest."""
    for begin in range(0, matrix.shape[1], 2 * width):
        yield matrix[:, begin : begin + 2 * width]


def _filled(matrix: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """[rows, columns] with columns of zeros up to a multiple of `width`."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % width)))


def _aligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that begins at a cache line."""
    room = np.empty(len(values) + 16, np.float32)
    begin = -room.ctypes.data // 4 % 16
    room[begin : begin + len(values)] = values
    return room[begin : begin + len(values)]
