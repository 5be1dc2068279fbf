"""The float32 weights of an ONNX file by name, without the package `onnx`, which sampling does not need otherwise.

An ONNX file is one protocol buffer: fields of a number and a wire type, one after the other, records within records.
Of these only the path to the weights is followed, model -> graph -> initializer -> name, shape, bytes (onnx.proto,
https://protobuf.dev/programming-guides/encoding); everything else is skipped by its length.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_GRAPH, _INITIALIZER = 7, 5  # of a model, of a graph
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9  # of a tensor
_FLOAT = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def read_initializers(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights that are stored in the file as float32 bytes; a ValueError where it is no protocol buffer."""
    weights = {}
    for graph in _records(memoryview(path.read_bytes()), _GRAPH):
        for tensor in _records(graph, _INITIALIZER):
            dims, kind, name, data = [], 0, "", None
            for number, value in _fields(tensor):
                if number == _NAME and isinstance(value, memoryview):
                    name = str(value, "utf-8")
                elif number == _RAW_DATA and isinstance(value, memoryview):
                    data = value
                elif number == _DIMS:
                    dims += [value] if isinstance(value, int) else list(_varints(value))
                elif number == _DATA_TYPE and isinstance(value, int):
                    kind = value
            if kind == _FLOAT and data is not None:
                weights[name] = np.frombuffer(data, "<f4").reshape(dims)
    return weights


def _records(buffer: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in _fields(buffer) if found == number and isinstance(value, memoryview))


def _fields(buffer: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers with their values: an integer, or bytes."""
    position = 0
    while position < len(buffer):
        tag, position = _varint(buffer, position)
        kind, size = tag & 7, 0
        if kind == _VARINT:
            value, position = _varint(buffer, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, position = _varint(buffer, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of wire type {kind}")
        if position + size > len(buffer):
            raise ValueError("a field that ends behind the file")
        yield tag >> 3, buffer[position : position + size]
        position += size


def _varints(buffer: memoryview) -> Iterator[int]:
    position = 0
    while position < len(buffer):
        value, position = _varint(buffer, position)
        yield value


def _varint(buffer: memoryview, position: int) -> tuple[int, int]:
    """The integer at a position, seven bits to a byte with the lowest first, and the position behind it."""
    value = shift = 0
    while True:
        if position >= len(buffer) or shift > 63:
            raise ValueError("a number without an end")
        byte = buffer[position]
        value, position, shift = value | (byte & 0x7F) << shift, position + 1, shift + 7
        if byte < 0x80:
            return value, position
