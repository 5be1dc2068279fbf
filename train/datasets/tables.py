"""What the data sets made of CSV files share: rows and numbers read with their faults named, and upstream's split.

pandas reads a file in no time, but where it fails it seldom says which cell is to blame, and a missing number is NaN
to it. So each file is read by pandas first; only where that fails, or leaves a value that cannot be used, it is read
again cell by cell, and the first thing wrong becomes the `DataError`. A file in order is never read twice.

A data set whose files have a header makes a `Table` of each, reads it, and raises `Table.fault` where it cannot use
what it got. Files of numbers without a header are read by `read_numbers`.
"""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from train.datasets.base import Array, Series
from train.errors import DataError

Item = TypeVar("Item")

TRAIN_FRACTION = 0.9
ROWS_AT_ONCE = 1_000_000  # of a file too large to be read whole
DAY = "a date such as 2019-01-31"
LARGEST = float(np.finfo(np.float32).max)  # series are float32
REPAIR = "repair the file or download it again"


def check_seed(seed: int) -> None:
    """`ValueError` if torch cannot be seeded with it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"datamodule.random_seed must lie in 0 .. 2^32 - 1, found {seed}; choose another")


def split_series(series: Array, seed: int, train_fraction: float = TRAIN_FRACTION) -> Series:
    """9 to 1 in the order that torch shuffles with this seed: the same series on each side as in FourierDiffusion."""
    order = torch.randperm(len(series), generator=torch.Generator().manual_seed(seed)).numpy()
    num_train = int(train_fraction * len(series))
    return Series(train=series[order[:num_train]], test=series[order[num_train:]])


def parse_day(text: str) -> datetime:
    """The day that `DAY` describes; `ValueError` for any other text."""
    if len(text) != 10:  # strptime reads 2019-1-31 too
        raise ValueError
    return datetime.strptime(text, "%Y-%m-%d")


def check_period(start_date: str, end_date: str) -> None:
    """`ValueError` if these are no days, or not in this order."""
    for name, date in (("start_date", start_date), ("end_date", end_date)):
        try:
            parse_day(date)
        except ValueError:
            raise ValueError(f"{name} must be {DAY}, found {date!r}; correct it") from None
    if start_date >= end_date:
        raise ValueError(f"end_date must come after start_date, found {end_date} and {start_date}; choose a later one")


def tracked(items: Iterable[Item], description: str) -> Iterable[Item]:
    """The items, with a progress bar where somebody watches."""
    return track(items, description, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


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


def row_of(path: Path, index: int) -> int:
    """The line number of the row that pandas calls by this index."""
    return next(row for k, (row, _) in enumerate(table_rows(path, ())) if k == index)


def read_numbers(path: Path, num_columns: int | None = None) -> Array:
    """A file of numbers without a header, [rows, columns], as many columns as are told or in the first row."""
    try:
        with np.errstate(over="ignore"):  # too large for float32: infinite, and found below
            table = pd.read_csv(path, header=None, dtype=np.float32).to_numpy()
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise _fault_of_numbers(path, num_columns, str(error)) from error
    if table.shape[1] != (num_columns or table.shape[1]) or not is_finite(table):
        raise _fault_of_numbers(path, num_columns)
    return table


def _fault_of_numbers(path: Path, num_columns: int | None, reason: str = "no reason found") -> DataError:
    """The first thing wrong with such a file, found by reading it slowly."""
    row = 0
    try:
        for row, cells in file_rows(path, "numbers"):
            num_columns = num_columns or len(cells)
            if len(cells) != num_columns:
                return DataError(f"{path}, row {row} must have {num_columns} columns, found {len(cells)}; {REPAIR}")
            for column, cell in enumerate(cells, start=1):
                if not is_number(cell):
                    return DataError(
                        f"{path}, row {row}, column {column} must be a finite number, found {cell!r:.40}; {REPAIR}"
                    )
    except DataError as error:
        return error
    if row == 0:
        return DataError(f"{path} must hold one series per row, found an empty file; {REPAIR}")
    return _unreadable(path, reason)


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be read ({' '.join(reason.split()):.200}); download it again")


@dataclass(frozen=True)
class Table:
    """A CSV file with a header: a key, readable in every row, and numbers, which must be finite where used."""

    path: Path
    key: str
    key_kind: str  # in words
    parse_key: Callable[[str], object]  # `ValueError` if a cell is no key
    numbers: tuple[str, ...]
    texts: tuple[str, ...] = ()  # read as they are
    if_words: str = REPAIR  # what to do where words are in place of numbers; {column} stands for its name

    def read(self, key_type: type) -> pd.DataFrame:
        """Key, texts and numbers, at least one row; empty numbers are NaN, and whether that is a fault is not asked."""
        try:
            return self._checked(pd.read_csv(self.path, **self._how(key_type)))
        except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
            raise self.fault(str(error)) from error

    def parts(self, key_type: type) -> Iterator[pd.DataFrame]:
        """The same in parts of many rows, for a file that is too large to be read whole."""
        try:
            with pd.read_csv(self.path, chunksize=ROWS_AT_ONCE, **self._how(key_type)) as parts:
                yield from map(self._checked, parts)
        except (ValueError, OSError) as error:
            raise self.fault(str(error)) from error

    def _how(self, key_type: type) -> dict[str, Any]:
        texts = self.texts if key_type is float else (self.key, *self.texts)
        return {
            "dtype": dict.fromkeys({self.key, *self.numbers} - {*texts}, float),
            "converters": dict.fromkeys(texts, str),  # else pandas takes a text that says NA for a missing one
            "low_memory": False,
        }

    def _checked(self, table: pd.DataFrame) -> pd.DataFrame:
        columns = [self.key, *self.texts, *self.numbers]
        # All columns were read: with a choice of them pandas would cut rows that are too long without a word.
        # Where the first row is longer than the header, pandas takes its first cell for an index.
        if not isinstance(table.index, pd.RangeIndex) or not {*columns} <= {*table.columns} or table.empty:
            raise self.fault()
        return table[columns]

    def fault(self, reason: str = "no reason found", is_used: Callable[[str], bool] = lambda key: True) -> DataError:
        """The first thing wrong, found by reading the file slowly; numbers matter in the rows whose key is used."""
        try:
            for row, cells in table_rows(self.path, (self.key, *self.texts, *self.numbers)):
                if (problem := self._problem(cells, is_used)) is not None:
                    column, kind = problem
                    advice = self.if_words.replace("{column}", column) if _is_word(cells[column]) else REPAIR
                    return DataError(
                        f"{self.path}, row {row}, column {column} must be {kind}, found {cells[column]!r:.40}; {advice}"
                    )
        except DataError as error:
            return error
        return _unreadable(self.path, reason)

    def _problem(self, cells: dict[str, str], is_used: Callable[[str], bool]) -> tuple[str, str] | None:
        """The column that is wrong, and what it must be."""
        key = cells[self.key]
        try:
            self.parse_key(key)
        except ValueError:
            return self.key, self.key_kind
        for name in self.numbers if is_used(key) else ():
            if not is_number(cells[name]):
                return name, "a finite number"
        return None


def _is_word(cell: str) -> bool:
    """Whether the cell is filled, but not by a number, not even by an infinite or a missing one."""
    try:
        float(cell)
    except ValueError:
        return bool(cell.strip())
    return False
