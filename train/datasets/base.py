"""What every data set is: a frozen record of options that can read itself.

To add one, write a file with a subclass of `Dataset`, name it in `DATASETS` (`train/datasets/__init__.py`),
and give it a config in `train/conf/datamodule/`. Nothing else in the room has to know. A set that is made of raw
files which others publish is a `FileDataset` (`files.py`): finding, downloading and caching come with it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.errors import DataError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Series:
    """A data set in memory: float32 series [n, N, C] in the time domain and in data units."""

    train: Array
    test: Array

    def __post_init__(self) -> None:
        if self.train.shape[1:] != self.test.shape[1:]:
            raise DataError(
                f"train and test series must have the same shape, found {self.train.shape[1:]} and "
                f"{self.test.shape[1:]} (time steps, channels); check that both files belong together"
            )


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Options common to all data sets."""

    kind: str  # the config's word for the data set
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}; the usual value is 64")

    @property
    def label(self) -> str:
        """What checkpoints and reports call the data, e.g. `ucr/GunPoint`."""
        return self.kind

    @abstractmethod
    def read(self) -> Series:
        """Read train and test series; `DataError` if that cannot be done."""


def as_series(values: NDArray[np.floating], source: Path | str) -> Array:
    """The values [n, N, C] as contiguous float32, refused where one is not finite."""
    with np.errstate(over="ignore"):  # too large for float32: infinite, and found below
        series = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(series).all():
        sample, step, channel = np.argwhere(~np.isfinite(series))[0]
        raise DataError(
            f"{source}: series {sample + 1}, step {step + 1}, channel {channel + 1} must be a finite number, "
            f"found {values[sample, step, channel]}; remove or repair that series"
        )
    return series
