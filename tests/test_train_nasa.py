"""Promises of the battery data: cycles, windows, channels and split of FourierDiffusion, and a sentence per fault."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_train_datasets import beside, cell, edit_row
from train.config import compose_config, options_from_config
from train.datasets import Nasa
from train.errors import ConfigError, DataError

REAL = Path("../shared/data/nasa")

WINDOW = {"charge": 10, "discharge": 15}
CUTOFF = {"charge": 5000, "discharge": 1995}
COLUMNS = {
    kind: ["Voltage_measured", "Current_measured", "Temperature_measured", f"Current_{end}", f"Voltage_{end}", "Time"]
    for kind, end in (("charge", "charge"), ("discharge", "load"))
}


def random_cycle(kind: str, seed: int) -> np.ndarray:
    """Rows [n, 6] of the file's columns: uneven steps of up to a window from 0 s to beyond the cutoff."""
    generator = np.random.default_rng(seed)
    steps = generator.uniform(0.3, 1.0, size=int(4 * CUTOFF[kind] / WINDOW[kind])) * WINDOW[kind]
    time = np.concatenate([[0.0], np.cumsum(steps)])
    time = time[: np.argmax(time > CUTOFF[kind]) + 3]
    values = generator.normal(size=(len(time), 5)) + 10 * np.arange(1, 6)  # each channel around its own value
    return np.column_stack([values, time])


def write_cycle(path: Path, kind: str, rows: np.ndarray) -> None:
    # `Time` is found by its name, so it comes first here.
    names = ["Time", *COLUMNS[kind][:-1]]
    lines = [",".join(names), *(",".join(map(repr, [row[-1], *row[:-1]])) for row in rows.tolist())]
    path.write_text("\n".join(lines) + "\n")


def write_set(folder: Path, kind: str, cycles: dict[str, np.ndarray], order: list[str] | None = None) -> Path:
    """`cleaned_dataset` below the folder, with an impedance file that is no table of a cycle; its metadata."""
    data = folder / "cleaned_dataset" / "data"
    data.mkdir(parents=True)
    listed = ["type,start_time,battery_id,filename,Capacity", "impedance,[2010. 7. 21.],B0047,90000.csv,"]
    (data / "90000.csv").write_text("Sense_current\n(1-2j)\n")
    for name in order or list(cycles):
        write_cycle(data / name, kind, cycles[name])
        listed.append(f"{kind},[2010. 7. 21.],B0047,{name},1.5")
    metadata = data.parent / "metadata.csv"
    metadata.write_text("\n".join(listed) + "\n")
    return metadata


def discharge(folder: Path) -> Nasa:
    return Nasa(kind="nasa", subdataset="discharge", data_dir=str(folder))


def means_by_window(kind: str, rows: np.ndarray) -> np.ndarray:
    """Oracle: window k takes the rows with (k - 1) w < Time <= k w and Time < cutoff."""
    time, width = rows[:, -1], WINDOW[kind]
    windows = range(CUTOFF[kind] // width + 1)
    taken = [((k - 1) * width < time) & (time <= k * width) & (time < CUTOFF[kind]) for k in windows]
    return np.stack([rows[rows_of_window, :5].mean(axis=0) for rows_of_window in taken])


@pytest.mark.parametrize(("kind", "num_steps"), [("charge", 501), ("discharge", 134)])
@pytest.mark.parametrize("subfolder", ["nasa", "."])
def test_cycles_are_averaged_ordered_by_name_and_split_by_torch(
    tmp_path: Path, kind: str, num_steps: int, subfolder: str
) -> None:
    names = [f"0{k}.csv" for k in range(1000, 1011)]
    cycles = {name: random_cycle(kind, seed) for seed, name in enumerate(names)}
    write_set(tmp_path / subfolder, kind, cycles, order=names[::-1])
    options = Nasa(kind="nasa", subdataset=kind, remove_outlier_feature=False, data_dir=str(tmp_path), random_seed=5)
    data = options.read()
    assert (data.train.shape, data.test.shape) == ((9, num_steps, 5), (2, num_steps, 5))  # int(0.9 * 11)
    assert data.train.dtype == data.test.dtype == np.float32
    torch.manual_seed(5)
    wanted = np.stack([means_by_window(kind, cycles[name]) for name in names])[torch.randperm(11).numpy()]
    np.testing.assert_allclose(np.concatenate([data.train, data.test]), wanted, rtol=3e-7)  # float32 of float64 means


def test_charge_without_the_outlier_feature_is_every_second_window_without_temperature(tmp_path: Path) -> None:
    write_set(tmp_path, "charge", {f"{k}.csv": random_cycle("charge", k) for k in range(3)})
    whole = Nasa(kind="nasa", remove_outlier_feature=False, data_dir=str(tmp_path)).read()
    data = Nasa(kind="nasa", data_dir=str(tmp_path)).read()
    assert data.train.shape == (2, 251, 4)
    for part, of in ((data.train, whole.train), (data.test, whole.test)):
        assert np.array_equal(part, of[:, ::2][..., [0, 1, 3, 4]])


def test_short_cycles_and_those_with_gaps_are_left_out(tmp_path: Path) -> None:
    # Sampled every 7.5 s from 1 s on, so that no row falls on the cutoff; the level tells the cycles apart.
    def even(level: float, last: float = 2010.0, lost: int = 0) -> np.ndarray:
        time = np.concatenate([[0.0], np.arange(1.0, last, 7.5), [last]])
        time = np.delete(time, range(21, 21 + lost))
        return np.column_stack([np.full((len(time), 5), level), time])

    cycles = {
        "1.csv": even(1.0),
        "2.csv": even(2.0, last=1995.0),  # ends at the cutoff: too short
        "3.csv": even(3.0, last=1995.001),  # ends beyond it
        "4.csv": even(4.0, lost=1),  # a gap of one window exactly
        "5.csv": even(5.0, lost=2),  # 22.5 s
        "6.csv": np.concatenate([even(6.0), [[6.0] * 5 + [2025.5]]]),  # a gap after the cutoff
        "7.csv": even(7.0, last=900.0),
        "8.csv": np.concatenate([even(8.0), [[np.nan] * 5 + [2025.0]]]),  # what is not used may be missing
    }
    write_set(tmp_path, "discharge", cycles)
    data = discharge(tmp_path).read()
    levels = np.concatenate([data.train, data.test])
    assert sorted(levels[:, 50, 0].tolist()) == [1.0, 3.0, 4.0, 8.0]
    assert np.array_equal(levels, np.broadcast_to(levels[:, :1, :1], levels.shape))


@pytest.mark.parametrize(
    ("edit", "window"),
    [
        (lambda rows: rows[1:], r"window 0, up to 0 s"),  # begins late
        (lambda rows: rows[(rows[:, -1] <= 1980) | (rows[:, -1] >= 1995)], r"window 133, up to 1995 s"),
    ],
    ids=["no row at 0 s", "only the cutoff in the last window"],
)
def test_an_empty_window_is_named_instead_of_becoming_nan(
    tmp_path: Path, edit: Callable[[np.ndarray], np.ndarray], window: str
) -> None:
    time = np.arange(0.0, 2011.0, 5.0)
    rows = edit(np.column_stack([np.ones((len(time), 5)), time]))
    write_set(tmp_path, "discharge", {"00007.csv": rows})
    with pytest.raises(DataError, match=rf"00007\.csv must have a row in each window of 15 s, .* none in {window};"):
        discharge(tmp_path).read()


def refused(read: Callable[[], object], path: Path, sentence: str) -> None:
    """One sentence: where (path, row, column), what was found, what to do."""
    with pytest.raises(DataError, match=sentence) as caught:
        read()
    message = str(caught.value)
    assert str(path) in message
    assert ";" in message
    assert "\n" not in message


TABLE_DAMAGES = {  # of any file of numbers below a header; column 1 is the key
    "a cell too few": (edit_row(4, lambda cells: cells[:5]), "row 4 must have [67] columns .* found 5;"),
    "a cell too many": (edit_row(4, lambda cells: [*cells, "0"]), "row 4 must have (6 .* found 7|7 .* found 8);"),
    "a first row too long": (edit_row(2, lambda cells: [*cells, "0"]), "row 2 must have . columns as the header has"),
    "text": (edit_row(4, cell(2, "oops")), "row 4, column (Voltage_measured|Open) .* a finite number, found 'oops'"),
    "nan": (edit_row(5, cell(3, "nan")), "row 5, column (Current_measured|High) .* found 'nan'"),
    "inf": (edit_row(8, cell(3, "-inf")), "row 8, column (Current_measured|High) .* found '-inf'"),
    "a number beyond float32": (
        edit_row(3, cell(4, "1e39")),
        "row 3, column (Temperature_measured|Low) .* found '1e39'",
    ),
    "no key": (edit_row(6, cell(1, "")), "row 6, column (Time|Date) must be a .* found ''"),
    "an empty file": (lambda path: path.write_text(""), "must have a header and rows below it, found an empty file"),
    "a header only": (lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"), "found a header only"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 40), "must be a text file of comma-separated values"),
    "a page of the web": (lambda path: path.write_text("<html>\nno\n</html>\n"), "row 1 must name the columns .* no "),
}
DAMAGES = TABLE_DAMAGES | {  # of a cycle
    "a column missing": (edit_row(1, cell(6, "Voltage")), r"columns Time, .*, Voltage_load, found no Voltage_load;"),
    "an empty cell": (edit_row(4, cell(3, "")), "row 4, column Current_measured must be .* found ''"),
    "a date for a time": (
        edit_row(6, cell(1, "2010-07-21")),
        "row 6, column Time must be a number of seconds from 0, found '2010-07-21'",
    ),
    "a time before 0": (edit_row(6, cell(1, "-3")), "row 6, column Time .* found '-3'"),
    "a time without end": (edit_row(6, cell(1, "inf")), "row 6, column Time .* found 'inf'"),
    "no file": (lambda path: path.unlink(), r"metadata.csv, row 4 names '00002.csv', found no file .*00002.csv"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cycle_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    metadata = write_set(tmp_path, "discharge", {f"0000{k}.csv": random_cycle("discharge", k) for k in (1, 2, 3)})
    path = metadata.parent / "data" / "00002.csv"
    damage(path)
    refused(discharge(tmp_path).read, path, sentence)


KAGGLE = "(done for you with pip install 'e2crf[kaggle]' and a Kaggle token)"

METADATA_DAMAGES = {
    "a column missing": (edit_row(1, cell(4, "file")), "row 1 must name the columns type, filename, found no filename"),
    "a cell too few": (edit_row(3, lambda cells: cells[:-1]), "row 3 must have 5 columns .* found 4"),
    "a name missing": (edit_row(3, cell(4, "")), "row 3 names '', found no file"),
    "a file listed twice": (edit_row(4, cell(4, "00001.csv")), "row 4: .* found 00001.csv in row 3 too"),
    "no such cycle": (lambda path: path.write_text("type,filename\ncharge,1.csv\n"), "type 'discharge', found none"),
    "an empty file": (lambda path: path.write_text(""), "found an empty file"),
    "a header only": (lambda path: path.write_text("type,filename\n"), "found a header only"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\x81"), "must be a text file"),
}


@pytest.mark.parametrize(("damage", "sentence"), METADATA_DAMAGES.values(), ids=METADATA_DAMAGES.keys())
def test_damaged_metadata_are_one_sentence(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    metadata = write_set(tmp_path, "discharge", {f"0000{k}.csv": random_cycle("discharge", k) for k in (1, 2)})
    damage(metadata)
    refused(discharge(tmp_path).read, metadata, sentence)


def test_a_missing_set_is_said_with_its_files_folders_and_source(tmp_path: Path) -> None:
    write_set(tmp_path, "discharge", {"1.csv": random_cycle("discharge", 1)}).unlink()
    metadata, data, nasa = r"cleaned_dataset/metadata\.csv", r"cleaned_dataset/data/\*\.csv", tmp_path / "nasa"
    found = f"none in {re.escape(str(nasa))}, no {metadata} in {re.escape(str(tmp_path))};"
    source = "download https://www.kaggle.com/datasets/patrickfleith/nasa-battery-dataset"
    how = f"{re.escape(KAGGLE)} into {re.escape(str(nasa))}"
    with pytest.raises(DataError, match=f"needs {metadata} and {data}, found {found} {source} {how}, or set"):
        discharge(tmp_path).read()


def test_a_set_of_unusable_cycles_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, "charge", {"1.csv": random_cycle("charge", 1)[:50]})
    with pytest.raises(DataError, match="charge cycles longer than 5000 s without gaps over 10 s, found none among 1;"):
        Nasa(kind="nasa", data_dir=str(tmp_path)).read()


def test_upstreams_options_work_and_wrong_ones_are_named() -> None:
    overrides = ["datamodule=nasa", "datamodule.subdataset=discharge", "random_seed=7"]
    options = options_from_config(compose_config(overrides)).dataset
    assert options == Nasa(kind="nasa", subdataset="discharge", random_seed=7, batch_size=16)
    assert options.label == "nasa/discharge"
    assert options_from_config(compose_config(["datamodule=nasa"])).dataset.label == "nasa/charge"
    for override, sentence in (
        ("subdataset=impedance", "subdataset must be one of charge, discharge, found 'impedance'"),
        ("random_seed=-1", "random_seed must lie in"),
        ("batch_size=0", "batch_size must be at least 1"),
        ("remove_outlier_feature=some", r"datamodule\.remove_outlier_feature"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            options_from_config(compose_config(["datamodule=nasa", f"datamodule.{override}"]))


@pytest.mark.skipif(not REAL.is_dir(), reason="the battery files are not here")
@pytest.mark.parametrize(
    ("kind", "remove", "train", "test"),
    [
        ("discharge", True, (192, 134, 5), (22, 134, 5)),
        ("charge", True, (66, 251, 4), (8, 251, 4)),
        ("charge", False, (66, 501, 5), (8, 501, 5)),
    ],
)
def test_real_cycles_are_as_many_as_upstream_reads(
    tmp_path: Path, kind: str, remove: bool, train: tuple[int, ...], test: tuple[int, ...]
) -> None:
    # Oracle: the counts of FourierDiffusion's own preprocessing on the same files.
    data = Nasa(kind="nasa", subdataset=kind, remove_outlier_feature=remove, data_dir=beside(REAL, tmp_path)).read()
    assert (data.train.shape, data.test.shape) == (train, test)
    assert 1.5 < np.median(data.train[..., 0]) < 4.5  # V, of a Li-ion cell
