"""NASA batteries: the Kaggle data set `patrickfleith/nasa-battery-dataset`, charge or discharge cycles.

A cleaned CSV release of the Li-ion aging data of NASA's Prognostics Center (Saha and Goebel, NASA Ames).
`cleaned_dataset/metadata.csv` lists the cycles, `cleaned_dataset/data/NNNNN.csv` holds one each: voltages in V,
currents in A, the temperature in °C and `Time` in s from the start of the cycle, sampled unevenly.

The series are those of FourierDiffusion: a cycle is averaged over windows of 15 s up to 1995 s (discharge: 134
steps, 5 channels) or of 10 s up to 5000 s (charge: 501 steps, 5 channels). Window k reaches from k - 1 lengths,
excluded, to k, included, so that window 0 holds the sample at 0 s alone; a sample at the very end is not read.
Cycles that end earlier, or have a gap longer than a window anywhere, are left out. The others are ordered by file
name, shuffled by torch, and split 9 to 1. With `remove_outlier_feature`, upstream's default, charge cycles lose the
temperature and, which the name does not say, every second window (251 steps, 4 channels).
The whole set has 2,663 usable charge cycles and 1,951 discharge cycles.
(Where a window is empty all the same, FourierDiffusion trains on NaN; here such a file is named.)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from train.datasets.base import Array, Series, as_series
from train.datasets.files import FileDataset, Source
from train.datasets.tables import Table, check_seed, is_finite, split_series, table_rows, tracked
from train.errors import DataError


@dataclass(frozen=True)
class _Cycle:
    """What is read of one kind of cycle."""

    channels: tuple[str, ...]  # columns, in the order of the series' channels
    window: int  # s
    cutoff: int  # s, a multiple of the window

    @property
    def num_steps(self) -> int:
        return self.cutoff // self.window + 1  # the first is the sample at 0 s


_MEASURED = ("Voltage_measured", "Current_measured", "Temperature_measured")
_CYCLES = {
    "charge": _Cycle((*_MEASURED, "Current_charge", "Voltage_charge"), window=10, cutoff=5000),
    "discharge": _Cycle((*_MEASURED, "Current_load", "Voltage_load"), window=15, cutoff=1995),
}
_TEMPERATURE = _MEASURED.index("Temperature_measured")


@dataclass(frozen=True, kw_only=True)
class Nasa(FileDataset):
    """Which cycles, and how they are split."""

    source: ClassVar[Source] = Source(
        title="NASA",
        files=("cleaned_dataset/metadata.csv", "cleaned_dataset/data/*.csv"),
        folders=("nasa",),
        kaggle="patrickfleith/nasa-battery-dataset",
    )

    subdataset: str = "charge"
    remove_outlier_feature: bool = True  # of charge cycles; no effect on discharge
    random_seed: int = 42  # of the split

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.random_seed)
        if self.subdataset not in _CYCLES:
            raise ValueError(f"subdataset must be one of {', '.join(_CYCLES)}, found {self.subdataset!r}; choose one")

    @property
    def label(self) -> str:
        """`nasa/` and the kind of cycle."""
        return f"nasa/{self.subdataset}"

    def preprocess(self, folder: Path) -> Series:
        """Series [n, 134, 5] of discharge cycles, [n, 251, 4] or [n, 501, 5] of charge cycles."""
        cycle, metadata = _CYCLES[self.subdataset], folder / "cleaned_dataset" / "metadata.csv"
        paths = _cycle_files(metadata, self.subdataset)
        read = (_read_cycle(path, cycle) for path in tracked(paths, "reading cycles"))
        series = [values for values in read if values is not None]
        if not series:
            raise DataError(
                f"{metadata} must list {self.subdataset} cycles longer than {cycle.cutoff} s without gaps over "
                f"{cycle.window} s, found none among {len(paths)}; use the whole data set"
            )
        stacked = np.stack(series)
        if self.subdataset == "charge" and self.remove_outlier_feature:
            stacked = np.delete(stacked[:, ::2], _TEMPERATURE, axis=2)
        return split_series(stacked, self.random_seed)


def _cycle_files(metadata: Path, subdataset: str) -> list[Path]:
    """The files of all cycles of this kind, ordered by name."""
    rows: dict[str, int] = {}
    for row, cells in table_rows(metadata, ("type", "filename")):
        name = cells["filename"]
        if cells["type"] != subdataset:
            continue
        path = metadata.parent / "data" / name
        if name in rows:
            raise DataError(
                f"{metadata}, row {row}: a file must be listed once, found {name} in row {rows[name]} too; remove one"
            )
        if not path.is_file():
            raise DataError(
                f"{metadata}, row {row} names {name!r}, found no file {path}; download it again or remove the row"
            )
        rows[name] = row
    if not rows:
        raise DataError(f"{metadata} must list cycles of type {subdataset!r}, found none; download it again")
    return [metadata.parent / "data" / name for name in sorted(rows)]


def _read_cycle(path: Path, cycle: _Cycle) -> Array | None:
    """A cycle's means over the windows, [N, C]; None if it is too short or has a gap."""
    table = Table(path, "Time", "a number of seconds from 0", _seconds, cycle.channels)
    columns = table.read(float)
    time = columns["Time"].to_numpy()
    if not (np.isfinite(time) & (time >= 0)).all():
        raise table.fault()
    if time.max() <= cycle.cutoff or (len(time) > 1 and np.diff(time).max() > cycle.window):
        return None
    columns = columns[time < cycle.cutoff]
    if not is_finite(columns[list(cycle.channels)].to_numpy()):
        raise table.fault(is_used=lambda cell: _seconds(cell) < cycle.cutoff)
    edges = np.arange(0, cycle.cutoff + 1, cycle.window)  # upper ones, included
    window = np.searchsorted(edges, columns["Time"].to_numpy())
    means = columns[list(cycle.channels)].groupby(window).mean()
    if len(means) < cycle.num_steps:
        empty = int(np.setdiff1d(np.arange(cycle.num_steps), means.index)[0])
        raise DataError(
            f"{path} must have a row in each window of {cycle.window} s, from 0 s to before {cycle.cutoff} s, "
            f"found none in window {empty}, up to {edges[empty]} s; repair the file or remove its row from metadata.csv"
        )
    return as_series(means.to_numpy(), path)


def _seconds(cell: str) -> float:
    if not 0 <= (seconds := float(cell)) < float("inf"):
        raise ValueError
    return seconds
