"""Your own series: what `npz`, `csv` and `parquet` have in common, and `npz` itself.

`path` names the file, by the folder you are in. Either `test_path` names a second one with the test series, or the
series of the one are shuffled by torch and split by `train_fraction`. All series must have the same number of steps
and channels, and no value may be missing: cut, pad or fill them first.
"""

import re
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.datasets.base import Array, Dataset, Series, as_series
from train.datasets.tables import TRAIN_FRACTION, check_seed, split_series
from train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class OwnSeries(Dataset):
    """Where the series are, and how they are split."""

    path: str = ""
    test_path: str | None = None
    train_fraction: float = TRAIN_FRACTION  # of the series, where there is no test_path
    random_seed: int = 42  # of the split

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.random_seed)
        if not self.path:
            raise ValueError(f"datamodule.path must name your file, found none; add datamodule.path=series.{self.kind}")
        if not 0 < self.train_fraction < 1:
            raise ValueError(
                f"train_fraction must lie between 0 and 1, found {self.train_fraction}; the usual value is 0.9"
            )

    @property
    def label(self) -> str:
        """The kind of file and its name, e.g. `npz/sensors`."""
        stem = re.sub(r"[^\w.-]+", "-", Path(self.path).stem)
        return f"{self.kind}/{stem}"

    def read(self) -> Series:
        """Series [n, N, C] of both files, or of the one, split."""
        if self.test_path is not None:
            return Series(*(self._read_file(path) for path in self._files()))
        return split_series(self._read_file(*self._files()), self.random_seed, self.train_fraction)

    def _files(self) -> list[Path]:
        """One file or two; `DataError` names the one that is not there."""
        paths = [Path(path).expanduser() for path in (self.path, self.test_path) if path is not None]
        for path in paths:
            if not path.is_file():
                raise DataError(f"the series are in {path}, found no such file; correct datamodule.path or test_path")
        return paths

    @abstractmethod
    def _read_file(self, path: Path) -> Array:
        """All series of a file."""


@dataclass(frozen=True, kw_only=True)
class Npz(OwnSeries):
    """Arrays that NumPy saved, [n, N, C] or [n, N]: `train` and `test`, or one, in `.npz`, or one in `.npy`."""

    array: str | None = None  # its name where there are several

    def read(self) -> Series:
        """Series [n, N, C]; the split is the file's own where it holds `train` and `test`."""
        if self.array is None and self.test_path is None:
            (path,) = self._files()
            arrays = _load(path)
            if {"train", "test"} <= arrays.keys():
                return Series(*(_as_series(arrays[name], f"{path}, array {name}") for name in ("train", "test")))
        return super().read()

    def _read_file(self, path: Path) -> Array:
        arrays = _load(path)
        name = self.array if self.array is not None else next(iter(arrays))
        if name not in arrays or (self.array is None and len(arrays) > 1):
            wanted = "arrays train and test, or a single one" if self.array is None else f"an array {name}"
            raise DataError(
                f"{path} must hold {wanted}, found {', '.join(arrays)}; set datamodule.array to the name of one"
            )
        return _as_series(arrays[name], f"{path}, array {name}")


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file by name, at least one; that of an `.npy` file is called `series`."""
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            arrays = {"series": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except Exception as error:  # on other bytes NumPy may raise anything, and its text may advise to unpickle them
        raise DataError(
            f"{path} must hold arrays of numbers saved by NumPy, found none that can be read; "
            "save it again with numpy.savez(path, train=..., test=...)"
        ) from error
    if not arrays:
        raise DataError(f"{path} must hold at least one array, found none; save it again")
    return arrays


def _as_series(values: NDArray[Any], where: str) -> Array:
    if values.ndim not in (2, 3) or values.size == 0 or values.dtype.kind not in "fiub":
        raise DataError(
            f"{where} must hold numbers [n, N, C], or [n, N] for one channel, found {values.dtype} "
            f"{list(values.shape)}; reshape it"
        )
    return as_series(values if values.ndim == 3 else values[:, :, None], where)
