"""Promises of your own series: every series kept, in the order and shape the options say, and a sentence per fault."""

import datetime
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.test_train_datasets import cell, edit_row
from tests.test_train_nasa import refused
from train.config import compose_config, options_from_config, resumed_config
from train.datasets import Csv, Npz, Parquet, Series
from train.datasets.cache import FOLDER
from train.errors import ConfigError, DataError

VALUES = np.random.default_rng(0).normal(size=(10, 6, 2)).round(3).astype(np.float32)


def together(data: Series) -> np.ndarray:
    return np.concatenate([data.train, data.test])


def shuffled(values: np.ndarray, seed: int = 42) -> np.ndarray:
    """Oracle: torch's order by the global generator, as upstream draws it."""
    torch.manual_seed(seed)
    return values[torch.randperm(len(values)).numpy()]


def npz(path: Path, **options: Any) -> Npz:
    return Npz(kind="npz", path=str(path), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_one_array_is_shuffled_and_split(tmp_path: Path, dtype: type) -> None:
    values = (VALUES * 100).astype(dtype)
    path = tmp_path / "mine.npz"
    np.savez(path, anything=values)
    data = npz(path, random_seed=3, train_fraction=0.7).read()
    assert data.train.shape == (7, 6, 2)
    assert data.train.dtype == np.float32
    assert np.array_equal(together(data), shuffled(values, 3).astype(np.float32))
    np.save(tmp_path / "mine.npy", values[:, :, 0])
    data = npz(tmp_path / "mine.npy").read()
    assert (data.train.shape, data.test.shape) == ((9, 6, 1), (1, 6, 1))


def test_train_and_test_arrays_keep_their_split_and_their_order(tmp_path: Path) -> None:
    # The layout of a run's own `reference.npz`.
    np.savez(tmp_path / "both.npz", train=VALUES[:6], test=VALUES[6:], other=np.arange(3))
    data = npz(tmp_path / "both.npz").read()
    assert np.array_equal(data.train, VALUES[:6])
    assert np.array_equal(data.test, VALUES[6:])
    np.save(tmp_path / "a.npy", VALUES[:6])
    np.save(tmp_path / "b.npy", VALUES[6:])
    data = npz(tmp_path / "a.npy", test_path=str(tmp_path / "b.npy")).read()
    assert np.array_equal(together(data), VALUES)
    assert len(npz(tmp_path / "both.npz", array="train").read().train) == 5
    assert not (tmp_path / FOLDER).exists()  # nothing to preprocess, nothing to keep


class Anything:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "several": (
        {"a": VALUES, "b": VALUES},
        "hold arrays train and test, or a single one, found a, b; set datamodule.array",
    ),
    "one dimension": ({"a": VALUES[0, 0]}, r"array a must hold numbers \[n, N, C\], .* found float32 \[2\]; reshape"),
    "no series": ({"a": VALUES[:0]}, r"found float32 \[0, 6, 2\]"),
    "words": ({"a": np.array([["x"]])}, r"found <U1 \[1, 1\]"),
    "complex numbers": ({"a": VALUES + 1j}, r"found complex64 \[10, 6, 2\]"),
    "nan": ({"a": np.where(VALUES[4, 2, 1] == VALUES, np.nan, VALUES)}, "series 5, step 3, channel 2 must be a finite"),
    "objects": ({"a": np.array([[Anything()]], dtype=object)}, "found none that can be read; save it again"),
    "nothing": ({}, "must hold at least one array, found none"),
    "shapes": ({"train": VALUES, "test": VALUES[:, :5]}, "must have the same shape"),
}


@pytest.mark.parametrize(("arrays", "sentence"), ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_that_are_no_series_are_one_sentence(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=sentence) as caught:
        npz(path).read()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY\x01\x00", b"<html>"])
def test_a_file_that_numpy_did_not_save_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    refused(npz(path).read, path, "must hold arrays of numbers saved by NumPy, found none that can be read")
    refused(npz(tmp_path / "no.npz").read, tmp_path / "no.npz", "found no such file; correct datamodule.path")
    np.savez(path, a=VALUES)
    refused(npz(path, array="b").read, path, "must hold an array b, found a;")


# --- tables ---------------------------------------------------------------------------------------------

KINDS: dict[str, type[Csv] | type[Parquet]] = {"csv": Csv, "parquet": Parquet}


def write_table(folder: Path, kind: str, frame: pd.DataFrame) -> Path:
    path = folder / f"mine.{kind}"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def read_table(path: Path, **options: Any) -> Series:
    kind = path.suffix[1:]
    return KINDS[kind](kind=kind, path=str(path), **options).read()


def long_frame() -> pd.DataFrame:
    """Ten series of six steps and two channels; one is called NA, which pandas likes to take for a missing value."""
    names = np.array(["NA", "b", "c", "7", "e", "f", "g", "h", "i", "j"])
    rows = {"name": names.repeat(6), "t": np.tile(np.arange(6), 10), "x": VALUES[:, :, 0].ravel()}
    return pd.DataFrame(rows | {"y": VALUES[:, :, 1].ravel()})


LONG = {"layout": "long", "series_column": "name", "time_column": "t"}


@pytest.mark.parametrize("kind", KINDS)
def test_wide_tables_have_a_series_in_each_row(tmp_path: Path, kind: str) -> None:
    frame = pd.DataFrame(VALUES[:, :, 0], columns=[f"step {k}" for k in range(6)])
    data = read_table(write_table(tmp_path, kind, frame))
    assert data.train.shape == (9, 6, 1)
    assert np.array_equal(together(data), shuffled(VALUES[:, :, :1]))
    frame.insert(2, "who", [f"patient {k}" for k in range(10)])
    (tmp_path / "named").mkdir()
    assert np.array_equal(
        together(read_table(write_table(tmp_path / "named", kind, frame), series_column="who")), together(data)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_words_says_how_to_leave_it_out(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path, kind, long_frame().rename(columns={"name": "id"}).replace({"id": {"7": "s7"}}))
    found = "row 2, column id must be a finite number, found 'NA'" if kind == "csv" else "column id must hold numbers"
    refused(lambda: read_table(path), path, f"{found}.*series_column=id, .* a row is one step .*datamodule.layout=long")


@pytest.mark.parametrize("cell_of", ["", "nan", "inf"])
def test_a_number_that_is_missing_is_no_column_to_leave_out(tmp_path: Path, cell_of: str) -> None:
    path = write_table(tmp_path, "csv", pd.DataFrame(VALUES[:, :, 0], columns=[f"step {k}" for k in range(6)]))
    edit_row(3, cell(2, cell_of))(path)
    refused(lambda: read_table(path), path, f"row 3, column step 1 .*, found '{cell_of}'; repair the file or .* again$")


@pytest.mark.parametrize("names", [range(6), range(2001, 2007), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
def test_columns_named_by_steps_or_times_are_a_header(tmp_path: Path, names: Any) -> None:
    path = write_table(tmp_path, "csv", pd.DataFrame(VALUES[:, :, 0], columns=list(names)))
    assert len(together(read_table(path))) == 10


def test_a_csv_file_without_a_header_keeps_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    pd.DataFrame(VALUES[:, :, 0]).to_csv(path, header=False, index=False)
    assert np.array_equal(together(read_table(path, header=False)), shuffled(VALUES[:, :, :1]))
    refused(lambda: read_table(path), path, "row 1 must name the columns, found numbers only .*datamodule.header=false")
    edit_row(3, cell(2, "oops"))(path)
    refused(lambda: read_table(path, header=False), path, "row 3, column 2 must be a finite number, found 'oops'")
    edit_row(2, lambda cells: cells[:4])(path)
    refused(lambda: read_table(path, header=False), path, "row 2 must have 6 columns, found 4")


@pytest.mark.parametrize("kind", KINDS)
def test_long_tables_have_a_step_in_each_row_in_any_order(tmp_path: Path, kind: str) -> None:
    frame = long_frame()
    path = write_table(tmp_path, kind, frame)
    assert np.array_equal(together(read_table(path, **LONG)), shuffled(VALUES))
    assert np.array_equal(together(read_table(path, **LONG, channels=["y"])), shuffled(VALUES[:, :, 1:]))
    unordered = {"layout": "long", "series_column": "name", "channels": ["y", "x"]}
    assert np.array_equal(together(read_table(path, **unordered)), shuffled(VALUES[:, :, ::-1]))
    # Rows in any order: series are in the order in which they begin, their steps in that of the time.
    mixed = frame.sample(frac=1, random_state=0)
    (tmp_path / "mixed").mkdir()
    path = write_table(tmp_path / "mixed", kind, mixed)
    order = [frame["name"].unique().tolist().index(name) for name in mixed["name"].unique()]
    assert order != sorted(order)
    assert np.array_equal(together(read_table(path, **LONG)), shuffled(VALUES[order]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["number", "day", "minute", "zone", "timestamp"])
def test_times_are_numbers_or_dates(tmp_path: Path, kind: str, form: str) -> None:
    frame = long_frame()
    start = datetime.datetime(2019, 1, 30)
    texts = {
        "number": [100.5 - 98 * (5 - k) for k in range(6)],  # -389.5 .. 100.5: as text in another order
        "day": [f"{start + datetime.timedelta(days=k):%Y-%m-%d}" for k in range(6)],
        "minute": [f"{start + datetime.timedelta(minutes=50 * k):%Y-%m-%dT%H:%M}" for k in range(6)],
        "zone": [f"2019-01-30T12:00:00{zone}" for zone in ("+05:00", "+03:00", "+01:00", "Z", "-02:00", "-03:00")],
        "timestamp": list(pd.date_range("2019-01-31", periods=6, freq="h")),
    }
    frame["t"] = texts[form] * 10
    path = write_table(tmp_path, kind, frame[::-1])
    assert np.array_equal(together(read_table(path, **LONG)), shuffled(VALUES[::-1]))


def test_a_second_file_holds_the_test_series_and_tables_are_cached(tmp_path: Path) -> None:
    frame = long_frame()
    path = write_table(tmp_path, "csv", frame[:24])
    frame[24:].to_csv(tmp_path / "test.csv", index=False)
    data = read_table(path, **LONG, test_path=str(tmp_path / "test.csv"))
    assert np.array_equal(data.train, VALUES[:4])
    assert np.array_equal(data.test, VALUES[4:])
    (cached,) = (tmp_path / FOLDER).iterdir()
    frame[30:].to_csv(tmp_path / "test.csv", index=False)
    assert len(read_table(path, **LONG, test_path=str(tmp_path / "test.csv")).test) == 5
    assert [*(tmp_path / FOLDER).iterdir()] == [cached]


LONG_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {  # rows 2 to 7 are the first series
    "no name": (edit_row(9, cell(1, "")), "row 9, column name must be a name, found ''"),
    "a number missing": (edit_row(9, cell(3, "")), "row 9, column x must be a finite number, found ''"),
    "text": (edit_row(9, cell(4, "oops")), "row 9, column y .* found 'oops'"),
    "nan": (edit_row(9, cell(4, "nan")), "row 9, column y .* found 'nan'"),
    "a cell too few": (edit_row(9, lambda cells: cells[:3]), "row 9 must have 4 columns .* found 3"),
    "a cell too many": (edit_row(9, lambda cells: [*cells, "1"]), "row 9 must have 4 columns .* found 5"),
    "a bad time": (edit_row(9, cell(2, "soon")), "row 9, column t must be a number or a date .*, found 'soon'"),
    "no time": (edit_row(9, cell(2, "")), "row 9, column t must be a number or a date .*, found ''"),
    "an impossible date": (edit_row(9, cell(2, "2019-02-30")), "row 9, column t .* found '2019-02-30'"),
    "a time twice": (edit_row(9, cell(2, "0")), "row 9, column t must differ from row to row in a series; repair"),
    "a step missing": (
        lambda path: path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n"),
        "as many rows for each series, found 6 for NA and 5 for j; cut or pad them to one length",
    ),
    "a column missing": (edit_row(1, cell(2, "time")), "must have a column t, found name, time, x, y;"),
    "a column twice": (edit_row(1, cell(4, "x")), "each of its own name, found name, t, x, x; rename them"),
    "a header only": (lambda path: path.write_text("name,t,x,y\n"), "found a header only"),
    "an empty file": (lambda path: path.write_text(""), "row 1 must name the columns, found an empty file"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 40), "must be a text file of comma-separated values"),
}


@pytest.mark.parametrize(("damage", "sentence"), LONG_DAMAGES.values(), ids=LONG_DAMAGES.keys())
def test_a_damaged_csv_file_is_one_sentence(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    path = write_table(tmp_path, "csv", long_frame())
    damage(path)
    refused(lambda: read_table(path, **LONG), path, sentence)


def test_a_date_twice_is_found(tmp_path: Path) -> None:
    frame = long_frame().assign(t=[f"2019-01-{day}" for day in range(10, 16)] * 10)
    path = write_table(tmp_path, "csv", frame)
    edit_row(9, cell(2, "2019-01-10T00:00Z"))(path)
    refused(lambda: read_table(path, **LONG), path, "row 9, column t must differ from row to row in a series; repair")


def test_a_column_has_one_use(tmp_path: Path) -> None:
    path = write_table(tmp_path, "csv", long_frame())
    for options in (LONG | {"time_column": "name"}, LONG | {"channels": ["x", "t"]}):
        refused(lambda options=options: read_table(path, **options), path, "different columns .* found one twice")


def test_rows_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = write_table(tmp_path, "csv", long_frame())
    lines = path.read_text().splitlines()
    lines[8] = lines[8].replace("b,1,", "b,soon,")
    path.write_text("\n".join([lines[0], "", "", *lines[1:]]) + "\n")
    refused(lambda: read_table(path, **LONG), path, "row 11, column t")


@pytest.mark.parametrize(("row", "column", "text"), [(4, 1, "oops"), (4, 1, ""), (5, 3, "inf")])
def test_a_damaged_wide_csv_file_is_one_sentence(tmp_path: Path, row: int, column: int, text: str) -> None:
    path = write_table(tmp_path, "csv", pd.DataFrame(VALUES[:, :, 0], columns=[*"abcdef"]))
    edit_row(row, cell(column, text))(path)
    name = "abc"[column - 1]
    refused(lambda: read_table(path), path, f"row {row}, column {name} must be a finite number, found '{text}'")


PARQUET_DAMAGES: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "no name": (
        lambda frame: frame.assign(name=frame["name"].where(frame.index != 7)),
        "row 8, column name must name a",
    ),
    "a number missing": (
        lambda frame: frame.assign(x=frame["x"].where(frame.index != 7)),
        "row 8, column x .* found nan",
    ),
    "too large": (lambda frame: frame.assign(x=frame["x"].astype(float) + 1e300), "row 1, column x .* found 1e\\+300"),
    "text": (lambda frame: frame.assign(x="1"), "column x must hold numbers, found "),
    "a bad time": (lambda frame: frame.assign(t=["soon"] * 60), "row 1, column t must be a number or a date"),
    "no rows": (lambda frame: frame[:0], "must have at least one row, found none"),
    "a column missing": (lambda frame: frame.drop(columns="t"), "must have a column t, found name, x, y;"),
}


@pytest.mark.parametrize(("damage", "sentence"), PARQUET_DAMAGES.values(), ids=PARQUET_DAMAGES.keys())
def test_a_damaged_parquet_table_is_one_sentence(
    tmp_path: Path, damage: Callable[[pd.DataFrame], pd.DataFrame], sentence: str
) -> None:
    path = write_table(tmp_path, "parquet", damage(long_frame()))
    refused(lambda: read_table(path, **LONG), path, sentence)


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"name,t\na,1\n"])
def test_a_file_that_is_not_parquet_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "mine.parquet"
    path.write_bytes(content)
    refused(lambda: read_table(path, **LONG), path, "must be a Parquet file, found one that cannot be read")


def test_parquet_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"need the package pyarrow, found none; install it with pip install 'e2crf\[parq"
    ):
        read_table(tmp_path / "mine.parquet")


def test_options_and_wrong_ones() -> None:
    def options(*overrides: str) -> Any:
        return options_from_config(compose_config(overrides)).dataset

    assert options("datamodule=npz", "datamodule.path=a/my data.npz", "random_seed=7").label == "npz/my-data"
    found = options("datamodule=csv", "datamodule.path=a.csv", "datamodule.layout=long", "datamodule.series_column=id")
    assert found == Csv(kind="csv", path="a.csv", layout="long", series_column="id")
    found = options("datamodule=parquet", "datamodule.path=a", "datamodule.layout=long", "datamodule.series_column=id",
                    "datamodule.channels=[x,y]")  # fmt: skip
    assert found.channels == ["x", "y"]
    for overrides, sentence in (
        (("datamodule=npz",), r"datamodule.path must name your file, found none; add datamodule.path=series\.npz"),
        (("datamodule=csv", "datamodule.path=a", "datamodule.layout=tall"), "must be one of wide, long, found 'tall'"),
        (("datamodule=csv", "datamodule.path=a", "datamodule.layout=long"), "found no series_column; name that column"),
        (("datamodule=parquet", "datamodule.path=a", "datamodule.time_column=t"), "layout=wide has one series per row"),
        (
            ("datamodule=csv", "datamodule.path=a", "datamodule.series_column=t", "datamodule.header=false"),
            "header=false",
        ),
        (("datamodule=npz", "datamodule.path=a", "datamodule.train_fraction=1"), "must lie between 0 and 1, found 1"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            options(*overrides)


def test_a_resumed_run_may_find_its_data_elsewhere() -> None:
    stored = compose_config(["datamodule=npz", "datamodule.path=old.npz"])
    assert resumed_config(["datamodule=npz", "datamodule.path=new.npz"], stored).datamodule.path == "new.npz"
