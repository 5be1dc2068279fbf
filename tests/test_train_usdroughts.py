"""Promises of the drought data: counties, days, channels and split of FourierDiffusion, and a sentence per fault."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_train_datasets import beside, cell, edit_row
from tests.test_train_nasa import refused
from train.config import compose_config, options_from_config
from train.datasets import UsDroughts
from train.errors import ConfigError, DataError

REAL = Path("../shared/data/usdroughts")

_WEATHER = ["PRECTOT", "PS", "QV2M", "T2M", "T2MDEW", "T2MWET", "T2M_MAX", "T2M_MIN", "T2M_RANGE", "TS"]
_WIND = [f"WS{height}M{what}" for height in (10, 50) for what in ("", "_MAX", "_MIN", "_RANGE")]
MEASURES = [*_WEATHER, *_WIND]
KEPT = [k for k in range(18) if k not in (4, 5, 6, 7, 9)]  # upstream's numbers of the correlated ones
COUNTIES = [1001, 1003, 41071, 56045, 9001]  # as the file has them
DAYS = np.arange("2010-12-31", "2011-01-08", dtype="datetime64[D]").astype(str).tolist()
PERIOD = {"start_date": "2011-01-01", "end_date": "2011-01-07"}  # all but the first and the last day


def write_weather(folder: Path, values: np.ndarray, counties: list[int] = COUNTIES, days: list[str] = DAYS) -> Path:
    """The file of these measures [counties, days, 18]; the score is known on one day."""
    path = folder / "train_timeseries" / "train_timeseries.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [",".join(["fips", "date", *MEASURES, "score"])]
    for county, series in zip(counties, values, strict=True):
        for day, row in zip(days, series.tolist(), strict=True):
            rows.append(f"{county},{day},{','.join(map(str, row))},{'1.5' if day == DAYS[2] else ''}")
    path.write_text("\n".join(rows) + "\n")
    return path


def weather(num_counties: int = 5, num_days: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_counties, num_days, 18)).round(3)


def few_days(folder: Path, **options: object) -> UsDroughts:
    return UsDroughts(**{"kind": "usdroughts", "data_dir": str(folder), **PERIOD, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("subfolder", ["usdroughts", "droughts", "."])
@pytest.mark.parametrize("remove", [True, False])
def test_counties_are_ordered_by_number_and_split_by_torch(tmp_path: Path, subfolder: str, remove: bool) -> None:
    values = weather()
    write_weather(tmp_path / subfolder, values)
    data = few_days(tmp_path, remove_correlated_features=remove, random_seed=5).read()
    channels = KEPT if remove else range(18)
    torch.manual_seed(5)
    order = np.argsort(COUNTIES)[torch.randperm(5).numpy()]
    wanted = values[order][:, 1:-1][..., list(channels)].astype(np.float32)
    assert data.train.shape == (4, 6, len(list(channels)))  # int(0.9 * 5)
    assert np.array_equal(np.concatenate([data.train, data.test]), wanted)


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_weather(tmp_path, weather())
    whole = few_days(tmp_path).read()
    (tmp_path / "again").mkdir()
    path = write_weather(tmp_path / "again", weather())
    monkeypatch.setattr("train.datasets.tables.ROWS_AT_ONCE", 7)
    parts = few_days(tmp_path / "again").read()
    assert np.array_equal(parts.train, whole.train)
    assert np.array_equal(parts.test, whole.test)
    edit_row(33, cell(5, "oops"))(path)
    refused(few_days(tmp_path / "again").read, path, "row 33, column QV2M must be a finite number, found 'oops'")


def test_a_day_in_two_rows_counts_once_with_their_mean_and_order_does_not_matter(tmp_path: Path) -> None:
    values = weather(3)
    path = write_weather(tmp_path, values, COUNTIES[:3])
    plain = few_days(tmp_path).read()
    header, *rows = path.read_text().splitlines()
    twice = rows[2].split(",")
    twice[2] = str(values[0, 2, 0] + 3)
    path.write_text("\n".join([header, *rows[::-1], ",".join(twice)]) + "\n")
    data = few_days(tmp_path).read()
    (difference,) = np.argwhere(np.concatenate([data.train, data.test]) != np.concatenate([plain.train, plain.test]))
    assert difference[1:].tolist() == [1, 0]
    np.testing.assert_allclose(
        np.abs(data.train - plain.train).max() + np.abs(data.test - plain.test).max(), 1.5, rtol=1e-6
    )


def test_what_is_not_used_may_be_missing(tmp_path: Path) -> None:
    path = write_weather(tmp_path, weather())
    edit_row(2, cell(4, ""))(path)  # 2010-12-31
    assert few_days(tmp_path).read().train.shape == (4, 6, 13)


def without_row(row: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[: row - 1], *lines[row:]]) + "\n")

    return damage


DAMAGES = {  # row 2 is 2010-12-31 of the first county
    "a column missing": (
        edit_row(1, cell(8, "PRESSURE")),
        "row 1 must name the columns date, fips, .* found no T2MWET;",
    ),
    "an empty cell": (edit_row(4, cell(9, "")), "row 4, column T2M_MAX must be a finite number, found ''"),
    "nan in a correlated measure": (edit_row(4, cell(12, "nan")), "row 4, column TS .* found 'nan'"),
    "no county": (edit_row(5, cell(1, "")), "row 5, column fips must be a finite number, found ''"),
    "a date of another form": (
        edit_row(4, cell(2, "01/02/2011")),
        "row 4, column date must be a date such as 2019-01-31",
    ),
    "an impossible date": (edit_row(9, cell(2, "2011-02-30")), "row 9, column date .* found '2011-02-30'"),
    "text": (edit_row(4, cell(3, "oops")), "row 4, column PRECTOT .* found 'oops'"),
    "a cell too few": (edit_row(4, lambda cells: cells[:9]), "row 4 must have 21 columns .* found 9"),
    "a cell too many": (edit_row(4, lambda cells: [*cells, "0"]), "row 4 must have 21 columns .* found 22"),
    "a row missing": (without_row(4), "for each county and day .* found none for county 1001 on 2011-01-02; choose"),
    "an empty file": (lambda path: path.write_text(""), "found an empty file"),
    "a header only": (lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"), "found a header only"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 40), "must be a text file of comma-separated values"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    path = write_weather(tmp_path, weather())
    damage(path)
    refused(few_days(tmp_path).read, path, sentence)


def test_an_empty_window_says_which_days_there_are(tmp_path: Path) -> None:
    path = write_weather(tmp_path, weather())
    sentence = (
        "rows from 2012-01-01 to before 2013-01-01, found days from 2010-12-31 to 2011-01-07; set datamodule.start"
    )
    refused(few_days(tmp_path, start_date="2012-01-01", end_date="2013-01-01").read, path, sentence)


def test_a_missing_set_is_said_with_its_file_folders_and_source(tmp_path: Path) -> None:
    name = r"train_timeseries/train_timeseries\.csv"
    found = ", ".join(f"none in {re.escape(str(tmp_path / folder))}" for folder in ("usdroughts", "droughts", "."))
    source = "https://www.kaggle.com/datasets/cdminix/us-drought-meteorological-data"
    with pytest.raises(DataError, match=f"needs {name}, found {found}; download {source} "):
        few_days(tmp_path).read()


@pytest.mark.parametrize("name", ["usdroughts", "droughts"])
def test_both_names_and_all_options_work_and_wrong_ones_are_named(name: str) -> None:
    overrides = [
        f"datamodule={name}",
        "datamodule.start_date=2013-01-01",
        "datamodule.end_date=2014-01-01",
        "random_seed=7",
    ]
    options = options_from_config(compose_config(overrides)).dataset
    assert options == UsDroughts(kind="usdroughts", start_date="2013-01-01", end_date="2014-01-01", random_seed=7)
    assert options.label == "usdroughts"
    default = options_from_config(compose_config([f"datamodule={name}"])).dataset
    assert default == UsDroughts(kind="usdroughts", start_date="2011-01-01", end_date="2012-01-01")
    for override, sentence in (
        ("start_date=2019-1-1", "start_date must be a date such as 2019-01-31, found '2019-1-1'"),
        ("end_date=2011-01-01", "end_date must come after start_date"),
        ("random_seed=-1", "random_seed must lie in"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            options_from_config(compose_config([f"datamodule={name}", f"datamodule.{override}"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the weather files are not here")
def test_real_counties_are_as_many_as_upstream_reads(tmp_path: Path) -> None:
    # Oracle: the counts of FourierDiffusion's own preprocessing on the same file, 36 counties.
    folder = beside(REAL, tmp_path)

    def real(start: int, end: int, remove: bool) -> UsDroughts:
        dates = {"start_date": f"{start}-01-01", "end_date": f"{end}-01-01"}
        return UsDroughts(kind="usdroughts", data_dir=folder, remove_correlated_features=remove, **dates)  # type: ignore[arg-type]

    data = real(2017, 2018, remove=False).read()
    assert (data.train.shape, data.test.shape) == ((32, 365, 18), (4, 365, 18))
    assert real(2017, 2020, remove=True).read().train.shape == (32, 1095, 13)
    warmest = data.train[:, :, MEASURES.index("T2M")].mean(axis=0).argmax()
    assert 180 < warmest < 250  # in Oregon's summer
    with pytest.raises(DataError, match="found days from 2017-01-01 to 2020-12-31;"):
        real(2011, 2012, remove=True).read()
