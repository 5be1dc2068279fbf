"""US droughts: the Kaggle data set `cdminix/us-drought-meteorological-data`, the weather of counties day by day.

`train_timeseries/train_timeseries.csv` has a row for every county (`fips`) and day (`date`, 2019-01-31): 18 measures
of NASA POWER, then the drought score of the US Drought Monitor, known once a week and not used here. The series are
those of FourierDiffusion: all days from `start_date` to before `end_date` (2011) of every county, ordered by its
number, shuffled by torch, and split 9 to 1. Without the five measures that follow the temperature `T2M` closely, as
there, 13 channels are left. A day in two rows counts once, with the mean of both.
(FourierDiffusion drops whichever column misses a value anywhere, and then the wrong ones; a county without some of the
days becomes NaN there. Here the row or the county is named.)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from train.datasets.base import Series, as_series
from train.datasets.files import FileDataset, Source
from train.datasets.tables import DAY, Table, check_period, check_seed, is_finite, parse_day, split_series, tracked
from train.errors import DataError

_WIND = tuple(f"WS{height}M{what}" for height in (10, 50) for what in ("", "_MAX", "_MIN", "_RANGE"))
CORRELATED = ("T2MDEW", "T2MWET", "T2M_MAX", "T2M_MIN", "TS")  # with T2M
CHANNELS = ("PRECTOT", "PS", "QV2M", "T2M", *CORRELATED[:4], "T2M_RANGE", "TS", *_WIND)  # in the series' order


@dataclass(frozen=True, kw_only=True)
class UsDroughts(FileDataset):
    """Which days and measures, and how the counties are split."""

    source: ClassVar[Source] = Source(
        title="US droughts",
        files=("train_timeseries/train_timeseries.csv",),
        folders=("usdroughts", "droughts"),  # upstream's word for the folder is the second
        kaggle="cdminix/us-drought-meteorological-data",
    )

    start_date: str = "2011-01-01"  # the first day
    end_date: str = "2012-01-01"  # the day after the last
    remove_correlated_features: bool = True
    random_seed: int = 42  # of the split

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.random_seed)
        check_period(self.start_date, self.end_date)

    def preprocess(self, folder: Path) -> Series:
        """Series [counties, days, 13], or [counties, days, 18] with the correlated measures."""
        path = folder / self.source.files[0]
        measured = self._read_period(path)
        days = pd.date_range(self.start_date, self.end_date, inclusive="left")
        counties = measured.index.unique("fips")
        whole = measured.reindex(pd.MultiIndex.from_product([counties, days]))
        if (is_missing := whole.isna().any(axis=1)).any():
            county, day = is_missing.index[int(is_missing.argmax())]
            raise DataError(
                f"{path} must have a row for each county and day from {self.start_date} to before {self.end_date}, "
                f"found none for county {county:.0f} on {day:%Y-%m-%d}; choose other days, or remove that county"
            )
        channels = [name for name in CHANNELS if not (self.remove_correlated_features and name in CORRELATED)]
        values = whole[channels].to_numpy().reshape(len(counties), len(days), len(channels))
        return split_series(as_series(values, path), self.random_seed)

    def _read_period(self, path: Path) -> pd.DataFrame:
        """The measures by county and day within the period."""
        start, end = parse_day(self.start_date), parse_day(self.end_date)
        table = Table(path, "date", DAY, parse_day, ("fips", *CHANNELS))
        parts: list[pd.DataFrame] = []
        limits: list[pd.Timestamp] = []  # the first and the last day of each part
        for columns in tracked(table.parts(str), "reading the weather"):
            date = pd.to_datetime(columns["date"], format="%Y-%m-%d", errors="coerce")
            if date.isna().any():
                raise table.fault()
            limits += [date.min(), date.max()]
            used = columns.assign(date=date)[(date >= start) & (date < end)]
            if not is_finite(used[["fips", *CHANNELS]].to_numpy()):
                raise table.fault(is_used=lambda cell: start <= parse_day(cell) < end)
            parts.append(used)
        period = pd.concat(parts)
        if period.empty:
            raise DataError(
                f"{path} must have rows from {self.start_date} to before {self.end_date}, found days from "
                f"{min(limits):%Y-%m-%d} to {max(limits):%Y-%m-%d}; set datamodule.start_date and datamodule.end_date"
            )
        return period.groupby(["fips", "date"])[[*CHANNELS]].mean()
