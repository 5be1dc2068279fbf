"""NASDAQ prices: the Kaggle data set `jacksoncrow/stock-market-dataset` (Yahoo Finance, daily).

One file for each ticker, `stocks/<TICKER>.csv`, from its first trading day on: `Date` (2019-01-31) and prices in
US dollars, `Adj Close` adjusted for dividends and splits. The series are those of FourierDiffusion: the trading days
of 2019 (252) of every ticker that has a row on or before the first day of the year, one on or after the first day of
the next, and exactly that many days between; ordered by ticker, shuffled by torch, and split 9 to 1. The channels
are in alphabetical order (`CHANNELS`): upstream names them otherwise and its table sorts them. The volume is left
out there too. A day in two rows counts once, with the mean of both, as there.
(Where tickers have as many days but not the same ones, or a blank row among them, upstream fails without a name or
trains on NaN; here the file is named. Blank rows outside the period do no harm.)
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from train.datasets.base import Array, Series, as_series
from train.datasets.files import FileDataset, Source
from train.datasets.tables import DAY, Table, check_period, check_seed, is_finite, parse_day, split_series, tracked
from train.errors import DataError

CHANNELS = ("Adj Close", "Close", "High", "Low", "Open")


@dataclass(frozen=True, kw_only=True)
class Nasdaq(FileDataset):
    """Which days, and how the tickers are split."""

    source: ClassVar[Source] = Source(
        title="NASDAQ", files=("stocks/*.csv",), folders=("nasdaq",), kaggle="jacksoncrow/stock-market-dataset"
    )

    random_seed: int = 42  # of the split
    start_date: str = "2019-01-01"  # the first day
    end_date: str = "2020-01-01"  # the day after the last
    num_days: int = 252  # trading days between them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.random_seed)
        check_period(self.start_date, self.end_date)
        if self.num_days < 2:
            raise ValueError(f"num_days must be at least 2, found {self.num_days}; a year has about 252")

    def preprocess(self, folder: Path) -> Series:
        """Series [n, num_days, 5]."""
        folder = folder / "stocks"
        counts: Counter[int] = Counter()  # trading days of the active tickers
        days: pd.Index | None = None
        series: list[Array] = []
        for path in tracked(sorted(folder.glob("*.csv"), key=lambda path: path.stem), "reading tickers"):
            prices = self._read_prices(path)
            if prices is None:
                continue
            counts[len(prices)] += 1
            if len(prices) != self.num_days:
                continue
            days = prices.index if days is None else days
            if len(other := days.symmetric_difference(prices.index)):
                raise DataError(
                    f"{path} must have the trading days of the files before it, found {other[0]:%Y-%m-%d} in only one; "
                    "remove the file that is wrong"
                )
            series.append(as_series(prices.to_numpy(), path))
        if not series:
            usual = f"{counts.most_common(1)[0][0]} in most" if counts else "no ticker with rows on both sides of it"
            raise DataError(
                f"{folder} must hold tickers with {self.num_days} trading days from {self.start_date} to before "
                f"{self.end_date}, found {usual}; set datamodule.num_days, or choose another period"
            )
        return split_series(np.stack(series), self.random_seed)

    def _read_prices(self, path: Path) -> pd.DataFrame | None:
        """Prices by day and channel within the period; None if the ticker was not traded on both sides of it."""
        table = Table(path, "Date", DAY, parse_day, CHANNELS)
        columns = table.read(str)
        start, end = parse_day(self.start_date), parse_day(self.end_date)
        date = pd.to_datetime(columns["Date"], format="%Y-%m-%d", errors="coerce")
        if date.isna().any():
            raise table.fault()
        if date.min() > start or date.max() < end:
            return None
        columns = columns.assign(Date=date)[(date >= start) & (date < end)]
        if columns["Date"].nunique() == self.num_days and not is_finite(columns[list(CHANNELS)].to_numpy()):
            raise table.fault(is_used=lambda cell: start <= parse_day(cell) < end)
        return columns.groupby("Date")[list(CHANNELS)].mean()
