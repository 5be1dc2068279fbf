"""Any set of the UCR and UEA archives by its name, read by aeon, with the archive's own train and test split.

aeon ships GunPoint (150 steps) and BasicMotions (100 steps, 6 channels) among others: these need no network.
A set is looked for in `data_dir/ucr/<name>/` first, then among those aeon ships or has downloaded before;
what is in neither place aeon downloads from zenodo.org into its own cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.datasets.base import Array, Dataset, Series, as_series
from train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Ucr(Dataset):
    """Which set of the archives."""

    name: str = "GunPoint"
    data_dir: str = "data"

    @property
    def label(self) -> str:
        """`ucr/` and the name of the set."""
        return f"ucr/{self.name}"

    def read(self) -> Series:
        """Series [n, N, C]; aeon's are [n, C, N]."""
        return Series(train=self._read("train"), test=self._read("test"))

    def _read(self, split: str) -> Array:
        series = self._load(split)
        if isinstance(series, list):
            lengths = {values.shape[-1] for values in series}
            raise DataError(
                f"{self.label} ({split}) must have series of one length, found {min(lengths)} to "
                f"{max(lengths)} steps; try its equal-length form datamodule.name={self.name}_eq, "
                "or another set"
            )
        if np.isnan(series).any():
            raise DataError(
                f"{self.label} ({split}) must have no missing values, found some in "
                f"{np.isnan(series).any(axis=(1, 2)).sum()} of {len(series)} series; "
                f"try its imputed form datamodule.name={self.name}_nmv, or another set"
            )
        return as_series(series.transpose(0, 2, 1), f"{self.label} ({split})")

    def _load(self, split: str) -> Any:
        """What aeon returns: an array [n, C, N], or a list of arrays [C, N] of unequal length."""
        from aeon.datasets import load_classification  # numba comes with it: seconds

        folder = Path(self.data_dir).expanduser() / "ucr"
        base_name = self.name.removesuffix("_eq").removesuffix("_nmv")
        own = str(folder) if (folder / base_name).is_dir() else None
        try:
            return load_classification(self.name, split=split, extract_path=own)[0]
        except Exception as error:  # aeon raises many kinds, from its parser, the network and the file system
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{self.label} ({split}) cannot be read, aeon says: {reason:.200}; "
                f"check the name and the network, or put {self.name}_TRAIN.ts and {self.name}_TEST.ts "
                f"into {folder / base_name}"
            ) from error
