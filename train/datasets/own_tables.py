"""Your own series in a table, CSV or Parquet, laid out in one of two ways.

`layout=wide`: one series per row, one step per column, a single channel. `series_column`, if there is one, holds a
name and is left out. A CSV file without a header needs `header=false`.

`layout=long`: one step of one series per row. `series_column` tells the series apart, `time_column` (numbers, or dates
such as 2019-01-31 or 2019-01-31T12:00) puts their steps in order, without which they stay as they are in the file.
The other columns are the channels, or those that `channels` names. The rows of a series need not be together.
"""

from abc import abstractmethod
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from train.datasets.base import Array, Series, as_series
from train.datasets.cache import through_cache
from train.datasets.own import OwnSeries
from train.datasets.tables import LARGEST, REPAIR, Table, file_rows, is_finite, is_number, read_numbers, row_of
from train.errors import DataError

LEAVE_OUT = (
    "if it names the series leave it out with datamodule.series_column={column}, "
    "and where a row is one step of a series set datamodule.layout=long too"
)


class Layout(StrEnum):
    """What a row of the table is: a series, or a step of one."""

    WIDE = "wide"
    LONG = "long"


@dataclass(frozen=True, kw_only=True)
class OwnTable(OwnSeries):
    """What the columns of the table are."""

    layout: str = Layout.WIDE
    series_column: str | None = None
    time_column: str | None = None  # of the long layout
    channels: list[str] | None = None  # of the long layout; null: all other columns

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout not in [*Layout]:
            raise ValueError(f"layout must be one of {', '.join(Layout)}, found {self.layout!r}; choose one")
        if self.layout == Layout.LONG and self.series_column is None:
            raise ValueError("layout=long must know the series apart, found no series_column; name that column")
        if self.layout == Layout.WIDE and (self.time_column is not None or self.channels is not None):
            raise ValueError(
                "layout=wide has one series per row, found time_column or channels; leave them out, or set layout=long"
            )

    def read(self) -> Series:
        """Series [n, N, C], from the cache where these options have been read before."""
        files, options = self._files(), asdict(self)
        del options["batch_size"]
        return through_cache(files[0].parent, self.kind, options, files, super().read)

    def _read_file(self, path: Path) -> Array:
        names = self._column_names(path)
        labels = [name for name in (self.series_column, self.time_column) if name is not None]
        channels = self.channels or [name for name in names if name not in labels]
        if absent := [name for name in (*labels, *channels) if name not in names]:
            raise DataError(
                f"{path} must have a column {absent[0]}, found {', '.join(names):.200}; correct the options or the file"
            )
        if not channels or len(set(names)) < len(names):
            raise DataError(
                f"{path} must have columns of numbers, each of its own name, found {', '.join(names):.200}; rename them"
            )
        if len({*labels, *channels}) < len([*labels, *channels]):
            raise DataError(
                f"series_column, time_column and channels must be different columns of {path}, found one twice "
                f"({', '.join([*labels, *channels]):.200}); correct the options"
            )
        table = self._load(path, labels, channels)
        values = table[channels].to_numpy(np.float64)
        if self.layout == Layout.WIDE:
            return as_series(values[:, :, None], path)
        return as_series(self._stacked(path, table, values), path)

    def _stacked(self, path: Path, table: pd.DataFrame, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of the long layout as series [n, N, C], in the order in which the series begin."""
        number, names = pd.factorize(table[self.series_column])
        if (number < 0).any():
            raise self._fault(path, number < 0, f"column {self.series_column} must name a series, found nothing")
        time = np.arange(len(table)) if self.time_column is None else self._times(path, table[self.time_column])
        order = np.lexsort([time, number])
        number, time = number[order], time[order]
        if (is_same := (number[1:] == number[:-1]) & (time[1:] == time[:-1])).any():
            is_second = np.isin(np.arange(len(order)), order[1:][is_same])
            raise self._fault(path, is_second, f"column {self.time_column} must differ from row to row in a series")
        num_steps = np.bincount(number)
        if (is_other := num_steps != num_steps[0]).any():
            raise DataError(
                f"{path} must have as many rows for each series, found {num_steps[0]} for {names[0]} and "
                f"{num_steps[is_other][0]} for {names[is_other][0]}; cut or pad them to one length"
            )
        return np.asarray(values[order].reshape(len(names), num_steps[0], -1))

    def _times(self, path: Path, column: "pd.Series[Any]") -> NDArray[Any]:
        """Numbers in the order of the times."""
        if pd.api.types.is_datetime64_any_dtype(column):
            times = column
        else:
            numbers = pd.to_numeric(column, errors="coerce")
            dates = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
            times = dates if dates.isna().sum() < numbers.isna().sum() else numbers
        if (is_bad := times.isna().to_numpy()).any():
            what = f"column {column.name} must be a number or a date such as 2019-01-31"
            raise self._fault(path, is_bad, f"{what}, found {column[is_bad].iloc[0]!r:.40}")
        is_date = pd.api.types.is_datetime64_any_dtype(times)
        return np.asarray(times.to_numpy("datetime64[ns]" if is_date else None))

    def _fault(self, path: Path, is_bad: NDArray[np.bool_], problem: str) -> DataError:
        return DataError(f"{path}, row {self._row(path, int(is_bad.argmax()))}, {problem}; repair the file")

    @abstractmethod
    def _column_names(self, path: Path) -> list[str]: ...

    @abstractmethod
    def _load(self, path: Path, labels: list[str], channels: list[str]) -> pd.DataFrame:
        """Labels as they are and channels as finite numbers, at least one row."""

    @abstractmethod
    def _row(self, path: Path, index: int) -> int:
        """What a reader of the file calls the row."""


@dataclass(frozen=True, kw_only=True)
class Csv(OwnTable):
    """A CSV file."""

    header: bool = True  # whether the first row names the columns

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.header and (self.layout == Layout.LONG or self.series_column is not None):
            raise ValueError("header=false has no names for columns, found some; leave them out, or add a header")

    def _read_file(self, path: Path) -> Array:
        if not self.header:
            return as_series(read_numbers(path)[:, :, None], path)
        return super()._read_file(path)

    def _column_names(self, path: Path) -> list[str]:
        row, names = next(file_rows(path, "comma-separated values"), (1, []))
        if all(map(is_number, names)) and not _rises_evenly([*map(float, names)]):
            found = f"numbers only ({', '.join(names[:3])})" if names else "an empty file"
            raise DataError(f"{path}, row {row} must name the columns, found {found}; set datamodule.header=false")
        return names

    def _load(self, path: Path, labels: list[str], channels: list[str]) -> pd.DataFrame:
        if labels:
            table = Table(path, labels[0], "a name", _name, tuple(channels), tuple(labels[1:]))
            read = table.read(str)
            is_whole = bool(read[labels[0]].astype(bool).all())
        else:
            advice = f"{REPAIR}, or {LEAVE_OUT}"
            table = Table(path, channels[0], "a finite number", _number, tuple(channels[1:]), if_words=advice)
            read, is_whole = table.read(float), True
        if not is_whole or not is_finite(read[channels].to_numpy(np.float64)):
            raise table.fault()
        return read

    def _row(self, path: Path, index: int) -> int:
        return row_of(path, index)


def _rises_evenly(numbers: list[float]) -> bool:
    """Whether numbers that name the columns are steps or times, such as 0, 1, 2 or 2001, 2002, 2003."""
    steps = np.diff(numbers)
    return len(steps) > 0 and steps[0] > 0 and np.allclose(steps, steps[0])


def _name(cell: str) -> str:
    if not cell:
        raise ValueError
    return cell


def _number(cell: str) -> float:
    if not is_number(cell):
        raise ValueError
    return float(cell)


@dataclass(frozen=True, kw_only=True)
class Parquet(OwnTable):
    """A Parquet file; its rows count from 1."""

    def _column_names(self, path: Path) -> list[str]:
        return [*self._read_table(path, 0).columns]

    def _load(self, path: Path, labels: list[str], channels: list[str]) -> pd.DataFrame:
        table = self._read_table(path)[[*labels, *channels]]
        if table.empty:
            raise DataError(f"{path} must have at least one row, found none; write it again")
        for name in channels:
            if not pd.api.types.is_numeric_dtype(table[name]):
                advice = "" if labels else f", or {LEAVE_OUT.replace('{column}', name)}"
                raise DataError(
                    f"{path}, column {name} must hold numbers, found {table[name].dtype}; convert it{advice}"
                )
            values = table[name].to_numpy(np.float64, na_value=np.nan)
            if not is_finite(values):
                is_bad = ~(np.abs(values) <= LARGEST)
                raise self._fault(path, is_bad, f"column {name} must be a finite number, found {values[is_bad][0]}")
        return table

    def _read_table(self, path: Path, num_rows: int | None = None) -> pd.DataFrame:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise DataError(
                "Parquet files need the package pyarrow, found none; install it with pip install 'e2crf[parquet]'"
            ) from error
        try:
            table = parquet.ParquetFile(path).schema_arrow.empty_table() if num_rows == 0 else parquet.read_table(path)
            frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
        except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's own are kinds of these
            reason = " ".join(str(error).split())
            raise DataError(
                f"{path} must be a Parquet file, found one that cannot be read ({reason:.200}); write it again"
            ) from error
        return frame

    def _row(self, path: Path, index: int) -> int:
        return index + 1
