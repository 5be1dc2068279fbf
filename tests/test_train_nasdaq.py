"""Promises of the price data: the tickers, days, channels and split of FourierDiffusion, and a sentence per fault."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_train_datasets import beside, cell, edit_row
from tests.test_train_nasa import TABLE_DAMAGES, refused
from train.config import compose_config, options_from_config
from train.datasets import Nasdaq
from train.errors import ConfigError, DataError

REAL = Path("../shared/data/nasdaq")

COLUMNS = ["Open", "High", "Low", "Close", "Adj Close", "Volume"]  # as the files have them
SORTED = ["Adj Close", "Close", "High", "Low", "Open"]  # as the series have them
DAYS = ["2019-01-31", "2019-02-01", "2019-02-04", "2019-02-05", "2019-02-06", "2019-02-07", "2019-02-08", "2019-02-11"]
PERIOD = {"start_date": "2019-02-01", "end_date": "2019-02-11", "num_days": 6}  # all but the first and the last day


def prices_of(seed: int, num_days: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 500, size=(num_days, 6)).round(4)


def write_stock(folder: Path, ticker: str, days: Iterable[str], prices: np.ndarray) -> Path:
    stocks = folder / "stocks"
    stocks.mkdir(parents=True, exist_ok=True)
    rows = [f"{day},{','.join(map(str, row))}" for day, row in zip(days, prices.tolist(), strict=True)]
    path = stocks / f"{ticker}.csv"
    path.write_text("\n".join([",".join(["Date", *COLUMNS]), *rows]) + "\n")
    return path


def few_days(folder: Path, **options: str | int) -> Nasdaq:
    return Nasdaq(**{"kind": "nasdaq", "data_dir": str(folder), **PERIOD, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("subfolder", ["nasdaq", "."])
def test_a_year_of_prices_is_ordered_by_ticker_and_split_by_torch(tmp_path: Path, subfolder: str) -> None:
    # A ticker is a name, not a file name: AGM comes before AGM-A, although "AGM-A.csv" < "AGM.csv".
    tickers = sorted(["AGM", "AGM-A", "B", "CSV", "V", *(f"T{k}" for k in range(7))])
    year = np.arange("2019-01-01", "2020-01-01", dtype="datetime64[D]")
    days = ["2018-12-31", *np.sort(np.random.default_rng(0).choice(year, 252, replace=False)).astype(str), "2020-01-01"]
    prices = {ticker: prices_of(seed, 254) for seed, ticker in enumerate(tickers)}
    for ticker in reversed(tickers):
        write_stock(tmp_path / subfolder, ticker, days, prices[ticker])
    data = Nasdaq(kind="nasdaq", data_dir=str(tmp_path), random_seed=5).read()
    assert (data.train.shape, data.test.shape) == ((10, 252, 5), (2, 252, 5))  # int(0.9 * 12)
    assert data.train.dtype == data.test.dtype == np.float32
    columns = [COLUMNS.index(name) for name in SORTED]
    torch.manual_seed(5)
    wanted = np.stack([prices[ticker][1:-1, columns] for ticker in tickers])[torch.randperm(12).numpy()]
    assert np.array_equal(np.concatenate([data.train, data.test]), wanted.astype(np.float32))


def test_tickers_that_were_not_there_all_the_time_are_left_out(tmp_path: Path) -> None:
    def write(ticker: str, level: float, days: list[str]) -> None:
        write_stock(tmp_path, ticker, days, np.full((len(days), 6), level))

    write("WHOLE", 1.0, DAYS)
    write("FIRSTDAY", 2.0, DAYS[1:])  # begins on the first day: just in time
    write("LATE", 3.0, DAYS[2:])
    write("EARLY", 4.0, DAYS[:-1])  # no row on or after the end date
    write("AFTER", 5.0, [*DAYS[:-1], "2019-06-03"])
    write("FEWER", 6.0, [*DAYS[:3], *DAYS[4:]])
    write("MORE", 7.0, [*DAYS[:3], "2019-02-04", "2019-02-03", *DAYS[3:]])
    write("BACKWARDS", 8.0, DAYS[::-1])
    series = few_days(tmp_path).read()
    levels = np.concatenate([series.train, series.test])
    assert sorted(levels[:, 0, 0].tolist()) == [1.0, 2.0, 5.0, 8.0]
    assert levels.shape == (4, 6, 5)


def test_days_are_in_order_and_a_day_in_two_rows_counts_once_with_their_mean(tmp_path: Path) -> None:
    for ticker in ("A", "B"):
        write_stock(tmp_path, ticker, [*DAYS[::-1], DAYS[2]], np.arange(9.0)[:, None] * np.ones(6))
    data = few_days(tmp_path).read()
    assert data.train[0, :, 0].tolist() == [6.0, (5.0 + 8.0) / 2, 4.0, 3.0, 2.0, 1.0]


def test_rows_without_prices_do_no_harm_outside_the_period_or_where_they_make_a_day_too_many(tmp_path: Path) -> None:
    write_stock(tmp_path, "A", DAYS, prices_of(0, 8))
    for ticker, day in (("B", "2019-11-28"), ("C", "2019-02-09")):
        path = write_stock(tmp_path, ticker, DAYS, prices_of(1, 8))
        path.write_text(f"{path.read_text()}{day},,,,,,\n")
    data = few_days(tmp_path).read()
    assert len(data.train) + len(data.test) == 2


def blank_before(row: int) -> Callable[[Path], None]:
    """A row without prices after the period, and the same in it: only the latter is a fault."""

    def damage(path: Path) -> None:
        header, *lines = path.read_text().splitlines()
        lines[row - 3] = f"{lines[row - 3][:10]},,,,,,"
        path.write_text("\n".join([header, "2019-03-01,,,,,,", *lines]) + "\n")

    return damage


DAMAGES = TABLE_DAMAGES | {  # row 3 is the first day of the period, row 9 the first after it
    "a column missing": (edit_row(1, cell(6, "Adjusted")), "row 1 must name the columns Date, .* found no Adj Close;"),
    "an empty cell": (edit_row(4, cell(6, "")), "row 4, column Adj Close must be a finite number, found ''"),
    "a row without prices": (blank_before(5), "row 5, column Adj Close must be a finite number, found ''"),
    "a date of another form": (
        edit_row(4, cell(1, "04/02/2019")),
        "row 4, column Date must be a date such as 2019-01-31, found '04/02/2019'",
    ),
    "an impossible date": (edit_row(9, cell(1, "2019-02-30")), "row 9, column Date .* found '2019-02-30'"),
    "another day": (
        edit_row(4, cell(1, "2019-02-03")),
        "trading days of the files before it, found 2019-02-03 in only",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be opened .Is a directory."),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_stock_file_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    _, path, _ = (write_stock(tmp_path, ticker, DAYS, prices_of(seed, 8)) for seed, ticker in enumerate("ABC"))
    damage(path)
    refused(few_days(tmp_path).read, path, sentence)


def test_a_missing_set_is_said_with_its_files_folders_and_source(tmp_path: Path) -> None:
    (tmp_path / "stocks").mkdir()  # empty
    nasdaq, stocks = re.escape(str(tmp_path / "nasdaq")), r"stocks/\*\.csv"
    found = f"found none in {nasdaq}, none in {re.escape(str(tmp_path))};"
    source = "download https://www.kaggle.com/datasets/jacksoncrow/stock-market-dataset "
    with pytest.raises(
        DataError, match=f"needs {stocks}, {found} {source}.* into {nasdaq}, or set datamodule.data_dir"
    ):
        few_days(tmp_path).read()


def test_a_period_without_usable_tickers_says_what_there_is(tmp_path: Path) -> None:
    for seed, ticker in enumerate("ABC"):
        write_stock(tmp_path, ticker, DAYS, prices_of(seed, 8))
    write_stock(tmp_path, "D", DAYS[::7], prices_of(9, 2))
    with pytest.raises(DataError, match="with 252 trading days from 2019-02-01 to before 2019-02-11, found 6 in most;"):
        few_days(tmp_path, num_days=252).read()
    with pytest.raises(DataError, match=r"found no ticker with rows on both sides of it; set datamodule\.num_days, or"):
        few_days(tmp_path, end_date="2019-02-12").read()


def test_options_and_wrong_ones() -> None:
    overrides = ["datamodule=nasdaq", "datamodule.start_date=2018-01-01", "datamodule.num_days=503", "random_seed=7"]
    options = options_from_config(compose_config(overrides)).dataset
    assert options == Nasdaq(kind="nasdaq", start_date="2018-01-01", num_days=503, random_seed=7)
    assert options.label == "nasdaq"
    assert options_from_config(compose_config(["datamodule=nasdaq"])).dataset == Nasdaq(kind="nasdaq")
    for override, sentence in (
        ("start_date=2019-1-1", "start_date must be a date such as 2019-01-31, found '2019-1-1'"),
        ("end_date=tomorrow", "end_date must be a date such as 2019-01-31, found 'tomorrow'"),
        ("end_date=2019-01-01", "end_date must come after start_date, found 2019-01-01 and 2019-01-01"),
        ("num_days=1", "num_days must be at least 2, found 1"),
        ("random_seed=-1", "random_seed must lie in"),
        ("batch_size=0", "batch_size must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            options_from_config(compose_config(["datamodule=nasdaq", f"datamodule.{override}"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the price files are not here")
def test_real_tickers_are_as_many_as_upstream_reads(tmp_path: Path) -> None:
    # Oracle: the counts of FourierDiffusion's own preprocessing on the same files.
    data = Nasdaq(kind="nasdaq", data_dir=beside(REAL, tmp_path)).read()
    assert (data.train.shape, data.test.shape) == ((246, 252, 5), (28, 252, 5))
    adjusted, close, high, low, opening = np.moveaxis(data.train, -1, 0)
    assert (adjusted <= close * 1.0001).mean() > 0.99  # dividends make it lower
    assert (low <= np.minimum(opening, close)).mean() > 0.99
    assert (high >= np.maximum(opening, close)).mean() > 0.99
