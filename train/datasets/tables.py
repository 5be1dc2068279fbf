"""What the data sets made of CSV files share: rows and numbers read with their faults named, and upstream's split.

pandas reads a file in no time, but where it fails it seldom says which cell is to blame, and a missing number is NaN
to it. So each file is read by pandas first; only where that fails, or leaves a value that cannot be used, it is read
again cell by cell, and the first thing wrong becomes the `DataError`. A file in order is never read twice.

A data set whose files have a header makes a `Table` of each, reads it, and raises `Table.fault` where it cannot use
what it got. One without a header (`ecg.py`) walks over `file_rows` itself.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from train.datasets.base import Array, Series
from train.errors import DataError

TRAIN_FRACTION = 0.9
LARGEST = float(np.finfo(np.float32).max)  # series are float32
REPAIR = "repair the file or download it again"


def check_seed(seed: int) -> None:
    """`ValueError` if torch cannot be seeded with it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"datamodule.random_seed must lie in 0 .. 2^32 - 1, found {seed}; choose another")


def split_series(series: Array, seed: int) -> Series:
    """9 to 1 in the order that torch shuffles with this seed: the same series on each side as in FourierDiffusion."""
    order = torch.randperm(len(series), generator=torch.Generator().manual_seed(seed)).numpy()
    num_train = int(TRAIN_FRACTION * len(series))
    return Series(train=series[order[:num_train]], test=series[order[num_train:]])


def is_finite(values: NDArray[np.floating]) -> bool:
    """Whether all are numbers that float32 can hold."""
    return bool((np.abs(values) <= LARGEST).all())  # false for NaN


def is_number(cell: str) -> bool:
    """Whether the cell is a number that float32 can hold."""
    try:
        return abs(float(cell)) <= LARGEST
    except ValueError:
        return False


def file_rows(path: Path, content: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not blank; `DataError` for what is no text (its content in words)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}); check the file and its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} must be a text file of {content}, found other bytes ({error}); {REPAIR}") from error


def table_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column of each row; `DataError` for what is no table with these columns."""
    header: list[str] | None = None
    filled = False
    for row, cells in file_rows(path, "comma-separated values"):
        if header is None:
            header = cells
            if missing := [name for name in columns if name not in header]:
                raise DataError(
                    f"{path}, row {row} must name the columns {', '.join(columns)}, found no {', '.join(missing)}; "
                    f"{REPAIR}"
                )
        elif len(cells) != len(header):
            raise DataError(
                f"{path}, row {row} must have {len(header)} columns as the header has, found {len(cells)}; {REPAIR}"
            )
        else:
            filled = True
            yield row, dict(zip(header, cells, strict=True))
    if not filled:
        found = "an empty file" if header is None else "a header only"
        raise DataError(f"{path} must have a header and rows below it, found {found}; {REPAIR}")


@dataclass(frozen=True)
class Table:
    """A CSV file with a header: a key, readable in every row, and numbers, which must be finite where used."""

    path: Path
    key: str
    key_kind: str  # in words
    parse_key: Callable[[str], object]  # `ValueError` if a cell is no key
    numbers: tuple[str, ...]

    def read(self, key_type: type) -> pd.DataFrame:
        """The key and the numbers, at least one row; empty cells are NaN, and whether that is a fault is not asked."""
        types: dict[str, type] = {self.key: key_type, **dict.fromkeys(self.numbers, float)}
        try:
            # All columns: with a choice of them pandas would cut rows that are too long without a word.
            table = pd.read_csv(self.path, dtype=types, low_memory=False)
        except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
            raise self.fault(str(error)) from error
        # Where the first row is longer than the header, pandas takes its first cell for an index.
        if not isinstance(table.index, pd.RangeIndex) or not types.keys() <= set(table.columns) or table.empty:
            raise self.fault()
        return table[[*types]]

    def fault(self, reason: str = "no reason found", is_used: Callable[[str], bool] = lambda key: True) -> DataError:
        """The first thing wrong, found by reading the file slowly; numbers matter in the rows whose key is used."""
        try:
            for row, cells in table_rows(self.path, (self.key, *self.numbers)):
                if (problem := self._problem(cells, is_used)) is not None:
                    return DataError(f"{self.path}, row {row}, column {problem}; {REPAIR}")
        except DataError as error:
            return error
        return DataError(f"{self.path} cannot be read ({' '.join(reason.split()):.200}); download it again")

    def _problem(self, cells: dict[str, str], is_used: Callable[[str], bool]) -> str | None:
        key = cells[self.key]
        try:
            self.parse_key(key)
        except ValueError:
            return f"{self.key} must be {self.key_kind}, found {key!r:.40}"
        for name in self.numbers if is_used(key) else ():
            if not is_number(cells[name]):
                return f"{name} must be a finite number, found {cells[name]!r:.40}"
        return None
