"""ECG heartbeats: the Kaggle data set `shayanfazeli/heartbeat` (MIT-BIH beats; Kachuee et al. 2018).

Two CSV files, `mitbih_train.csv` and `mitbih_test.csv`, one beat per row: 187 values at 125 Hz, zero-padded
and scaled to [0, 1], then the class label, which is not used here. The files have no header.
(FourierDiffusion reads the first beat of each file as a header; here all 87,554 and 21,892 are kept.)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from train.datasets.base import Array, Dataset, Series, as_series
from train.datasets.tables import REPAIR, file_rows, is_finite, is_number
from train.errors import DataError

NUM_STEPS = 187
NUM_COLUMNS = NUM_STEPS + 1  # the label comes last


@dataclass(frozen=True, kw_only=True)
class Ecg(Dataset):
    """Where the heartbeat files are: in `data_dir/ecg`, or in `data_dir` itself."""

    data_dir: str = "data"

    def read(self) -> Series:
        """Both files as series [n, 187, 1]."""
        return Series(*(_read_beats(self._find(f"mitbih_{split}.csv")) for split in ("train", "test")))

    def _find(self, file: str) -> Path:
        folder = Path(self.data_dir).expanduser()
        candidates = [folder / "ecg" / file, folder / file]
        for path in candidates:
            if path.is_file():
                return path
        raise DataError(
            f"the ECG data needs {file}, found neither {candidates[0]} nor {candidates[1]}; download "
            "https://www.kaggle.com/datasets/shayanfazeli/heartbeat and set datamodule.data_dir to its folder"
        )


def _read_beats(path: Path) -> Array:
    """All beats of a file, [n, 187, 1]."""
    try:
        with np.errstate(over="ignore"):  # too large for float32: infinite, and found below
            table = pd.read_csv(path, header=None, dtype=np.float32).to_numpy()
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise _fault(path, str(error)) from error
    if table.shape[1] != NUM_COLUMNS or not is_finite(table):
        raise _fault(path)
    return as_series(table[:, :NUM_STEPS, None], path)


def _fault(path: Path, reason: str = "no reason found") -> DataError:
    """The first thing wrong with a file, found by reading it slowly."""
    row = 0
    try:
        for row, cells in file_rows(path, "numbers"):
            if (problem := _problem(cells)) is not None:
                return DataError(f"{path}, row {row}{problem}; {REPAIR}")
    except DataError as error:
        return error
    if row == 0:
        return DataError(f"{path} must hold one heartbeat per row, found an empty file; {REPAIR}")
    return DataError(f"{path} cannot be read ({reason}); download it again")


def _problem(cells: list[str]) -> str | None:
    if len(cells) != NUM_COLUMNS:
        return f" must have {NUM_COLUMNS} columns ({NUM_STEPS} values and a label), found {len(cells)}"
    for column, cell in enumerate(cells, start=1):
        if not is_number(cell):
            return f", column {column} must be a finite number, found {cell!r:.40}"
    return None
