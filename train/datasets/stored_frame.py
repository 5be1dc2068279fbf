"""A table that pandas stored in an HDF5 file in its `fixed` format, read as the arrays that it is made of.

pandas itself reads such files through PyTables, which unpickles columns of objects and some attributes, and so runs
whatever the file tells it to. Here h5py reads numbers and names alone, and pickled parts are refused. What is where:

    <key>/axis0..  axis1..         labels of the columns, and of the rows
    <key>/block<k>_items..         which columns a block holds
    <key>/block<k>_values          their values, [rows, columns]

Labels are either one array of strings or numbers, or, in several levels, `..._level<i>` with the labels there are and
`..._label<i>` with the number of each row's own.
"""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

ROWS_AT_ONCE = 65_536


class StoredFrame:
    """One frame of an open file; `KeyError` and `ValueError` where it is not laid out like that."""

    def __init__(self, file: h5py.File, key: str) -> None:
        self.name = f"{file.filename}, {key}"
        found = file.get(key)
        if not isinstance(found, h5py.Group) or _text(found.attrs.get("pandas_type", "")) != "frame":
            wrong = "nothing of that name" if found is None else "something else"
            raise DataError(
                f"{self.name} must be a table that pandas stored in its fixed format, found {wrong}; "
                "write the file with MIMIC-Extract's own settings"
            )
        self._group = found

    def rows(self, level: str) -> NDArray[np.int64]:
        """The labels of all rows in the level of this name, whole numbers, [rows]."""
        for i in range(int(self._group.attrs.get("axis1_nlevels", 0))):
            if _text(self._group[f"axis1_level{i}"].attrs.get("name", "")) == level:
                labels, codes = self._array(f"axis1_level{i}"), self._array(f"axis1_label{i}")
                if labels.dtype.kind in "iu" and (codes >= 0).all():
                    return np.asarray(labels[codes], np.int64)
                break
        raise DataError(f"{self.name} must have rows labelled by whole numbers {level}, found none; {_AGAIN}")

    @property
    def columns(self) -> list[tuple[str, ...]]:
        """The labels of all columns, each as its levels."""
        return self._labels("axis0")

    def values(self, columns: list[tuple[str, ...]], is_used: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The numbers in these columns and the used rows, [used rows, columns]."""
        values = np.empty((int(is_used.sum()), len(columns)))
        for block in range(int(self._group.attrs["nblocks"])):
            items = self._labels(f"block{block}_items")
            ours = [k for k, column in enumerate(columns) if column in items]
            if ours:
                stored = self._numbers(f"block{block}_values", (len(is_used), len(items)))
                values[:, ours] = _read_rows(stored, is_used)[:, [items.index(columns[k]) for k in ours]]
        return values

    def _labels(self, axis: str) -> list[tuple[str, ...]]:
        if _text(self._group.attrs.get(f"{axis}_variety", "")) != "multi":
            return [(_text(label),) for label in self._array(axis)]
        levels = [
            [_text(label) for label in self._array(f"{axis}_level{i}")[self._array(f"{axis}_label{i}")]]
            for i in range(int(self._group.attrs[f"{axis}_nlevels"]))
        ]
        return list(zip(*levels, strict=True))

    def _array(self, name: str) -> NDArray[Any]:
        stored = self._group[name]
        self._refuse_objects(stored, name)
        return np.asarray(stored[()])

    def _numbers(self, name: str, shape: tuple[int, int]) -> h5py.Dataset:
        stored = self._group[name]
        self._refuse_objects(stored, name)
        if stored.shape != shape or stored.dtype.kind not in "fiub":
            raise DataError(
                f"{self.name}/{name} must hold numbers {shape}, found {stored.dtype} {stored.shape}; {_AGAIN}"
            )
        return stored

    def _refuse_objects(self, stored: h5py.Dataset, name: str) -> None:
        if stored.dtype.kind == "O":
            raise DataError(f"{self.name}/{name} must hold numbers or names, found pickled objects; {_AGAIN}")


_AGAIN = "write the file again with MIMIC-Extract"


def _read_rows(stored: h5py.Dataset, is_used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The used rows, read in stretches, since the whole may not fit into memory."""
    stretches = range(0, len(is_used), ROWS_AT_ONCE)
    parts = [
        stored[start : start + ROWS_AT_ONCE][used].astype(np.float64)
        for start in stretches
        if (used := is_used[start : start + ROWS_AT_ONCE]).any()
    ]
    return np.concatenate(parts) if parts else np.empty((0, stored.shape[1]))


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
