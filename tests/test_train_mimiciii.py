"""Promises of the intensive-care data, on made files of MIMIC-Extract's layout: the real ones are restricted.

`write_h5` lays the file out as pandas does, without pandas; where PyTables is installed, a file that pandas wrote
itself must read the same. The oracle of the series is FourierDiffusion's preprocessing, written out in pandas.
"""

import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.test_train_nasa import refused
from train.config import compose_config, options_from_config
from train.datasets import MimicIII, Series
from train.errors import ConfigError, DataError

h5py = pytest.importorskip("h5py")

IDS = ["subject_id", "hadm_id", "icustay_id"]
MEASURES = ["heart rate", "albumin", "constant", "temperature µ", "never", "once"]


def make_frames(num_stays: int = 15, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`patients` and `vitals_labs`: stays of 20 to 60 hours, subjects far apart, two thirds of the values missing."""
    generator = np.random.default_rng(seed)
    subjects = np.sort(generator.choice(90_000, num_stays, replace=False))
    stays = pd.MultiIndex.from_arrays([subjects, subjects + 7, generator.permutation(num_stays) + 200_000], names=IDS)
    hours = generator.integers(20, 60, num_stays)
    hours[:3] = 30, 31, 32  # 30 is too short
    patients = pd.DataFrame(
        {"gender": ["F", "M", None] * (num_stays // 3), "max_hours": hours, "los_icu": hours / 24}, index=stays
    ).astype({"gender": object})
    rows = [(*stay, hour) for stay, last in zip(stays, hours, strict=True) for hour in range(last + 1)]
    index = pd.MultiIndex.from_tuples(rows, names=[*IDS, "hours_in"])
    columns = pd.MultiIndex.from_product([MEASURES, ["count", "mean", "std"]], names=["LEVEL2", "Aggregation Function"])
    values = generator.normal(size=(len(rows), len(columns))) * np.repeat(np.arange(1, 7), 3)
    values[generator.uniform(size=values.shape) < 0.67] = np.nan
    vitals = pd.DataFrame(values, index, columns)
    vitals.loc[:, ("constant", "mean")] = vitals["constant", "mean"] * 0 + 3
    vitals.loc[:, ("never", "mean")] = np.nan
    vitals.loc[:, ("once", "mean")] = np.nan
    vitals.iloc[40, vitals.columns.get_loc(("once", "mean"))] = 5.0
    return patients, vitals


def write_index(group: Any, name: str, index: pd.Index) -> None:
    def put(name: str, labels: pd.Index | np.ndarray, title: str | None = None) -> None:
        values = np.asarray(labels)
        if values.dtype.kind in "OUT":
            values = np.array([str(value).encode() for value in values])
        group[name] = values
        group[name].attrs["name"] = np.bytes_(pickle.dumps(None, 0) if title is None else title.encode())

    if not isinstance(index, pd.MultiIndex):
        group.attrs[f"{name}_variety"] = np.bytes_("regular")
        return put(name, index, index.name)
    group.attrs[f"{name}_variety"], group.attrs[f"{name}_nlevels"] = np.bytes_("multi"), index.nlevels
    for i, (level, codes) in enumerate(zip(index.levels, index.codes, strict=True)):
        put(f"{name}_level{i}", level, index.names[i])
        group[f"{name}_label{i}"] = codes
    return None


def write_frame(file: Any, key: str, frame: pd.DataFrame) -> None:
    group = file.create_group(key)
    group.attrs["pandas_type"], group.attrs["encoding"] = np.bytes_("frame"), np.bytes_("UTF-8")
    write_index(group, "axis0", frame.columns)
    write_index(group, "axis1", frame.index)
    blocks = [frame.loc[:, frame.dtypes == dtype] for dtype in frame.dtypes.unique()]
    group.attrs["nblocks"] = len(blocks)
    for i, block in enumerate(blocks):
        write_index(group, f"block{i}_items", block.columns)
        values = block.to_numpy()
        if values.dtype == object:  # as PyTables stores them: a pickle in one row of bytes
            group.create_dataset(f"block{i}_values", (1,), h5py.vlen_dtype(np.uint8))
            group[f"block{i}_values"][0] = np.frombuffer(pickle.dumps(values), np.uint8)
        else:
            group[f"block{i}_values"] = values


def write_h5(folder: Path, patients: pd.DataFrame, vitals: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "all_hourly_data.h5"
    with h5py.File(path, "w") as file:
        write_frame(file, "patients", patients)
        write_frame(file, "vitals_labs", vitals)
    return path


def mimic(folder: Path, **options: Any) -> MimicIII:
    return MimicIII(**{"kind": "mimiciii", "data_dir": str(folder), "n_feats": 4, **options})


def as_upstream(patients: pd.DataFrame, vitals: pd.DataFrame, n_feats: int, seed: int) -> Series:
    """Oracle: FourierDiffusion's steps one by one, with its fill written for a pandas that has none."""
    long_stays = patients.index[patients["max_hours"] > 30].get_level_values("icustay_id")
    rows = vitals.index
    is_used = rows.get_level_values("icustay_id").isin(set(long_stays)) & (rows.get_level_values("hours_in") < 24)
    used = vitals.loc[is_used].xs("mean", axis=1, level=1).sort_index(axis=1)
    np.random.seed(seed)
    subjects = list(set(used.index.get_level_values("subject_id")))
    train_subjects = set(np.random.permutation(subjects)[: int(0.8 * len(subjects))])
    is_train = used.index.get_level_values("subject_id").isin(train_subjects)
    mean, std = used[is_train].mean(), used[is_train].std()
    scaled = ((used - mean) / std).replace([np.inf, -np.inf], np.nan)
    stay_mean = scaled.groupby(IDS).transform("mean")
    filled = scaled.groupby(IDS).ffill().fillna(stay_mean).fillna(0)
    arrays = [part.to_numpy().reshape(-1, 24, len(MEASURES)) for part in (filled[is_train], filled[~is_train])]
    order = np.argsort(-arrays[0].std(axis=0, ddof=1).mean(axis=0), kind="stable")[:n_feats]
    return Series(*(array[:, :, order].astype(np.float32) for array in arrays))


@pytest.mark.parametrize("subfolder", ["mimiciii", "."])
@pytest.mark.parametrize(("n_feats", "seed"), [(4, 42), (6, 3)])
def test_stays_are_filtered_split_standardised_filled_and_ranked(
    tmp_path: Path, subfolder: str, n_feats: int, seed: int
) -> None:
    patients, vitals = make_frames()
    write_h5(tmp_path / subfolder, patients, vitals)
    data = mimic(tmp_path, n_feats=n_feats, random_seed=seed).read()
    wanted = as_upstream(patients, vitals, n_feats, seed)
    num_long = int((patients["max_hours"] > 30).sum())
    assert len(data.train) + len(data.test) == num_long < 15
    assert data.train.shape == (int(0.8 * num_long), 24, n_feats)
    assert data.train.dtype == np.float32
    np.testing.assert_allclose(data.train, wanted.train, atol=1e-6)
    np.testing.assert_allclose(data.test, wanted.test, atol=1e-6)


def test_missing_hours_take_the_hour_before_then_the_mean_of_the_stay_then_zero(tmp_path: Path) -> None:
    patients, vitals = make_frames()
    stay = vitals.index.get_level_values("icustay_id") == patients.index[patients["max_hours"] > 30][0][2]
    ours = vitals["heart rate", "mean"].where(~stay)
    ours.iloc[np.flatnonzero(stay)[[5, 9]]] = [1.0, 2.0]
    vitals["heart rate", "mean"], vitals["albumin", "mean"] = ours, vitals["albumin", "mean"].where(~stay)
    write_h5(tmp_path, patients, vitals)
    data = mimic(tmp_path, n_feats=6).read()
    series = np.concatenate([data.train, data.test])
    # Only this stay has one value in hours 5 to 8 and another from 9 on, and their mean before; and one measure at 0.
    (found,) = (one for one in series if any(len(np.unique(channel)) == 3 for channel in one.T))
    (channel,) = (channel for channel in found.T if len(np.unique(channel)) == 3)
    np.testing.assert_allclose(channel[:5], (channel[5] + channel[9]) / 2, rtol=1e-5)
    assert np.unique(channel[5:9]).size == np.unique(channel[9:]).size == 1
    assert sum(not channel.any() for channel in found.T) >= 1


def test_a_file_that_pandas_wrote_reads_the_same(tmp_path: Path) -> None:
    pytest.importorskip("tables")
    patients, vitals = make_frames()
    write_h5(tmp_path / "ours", patients, vitals)
    (tmp_path / "theirs").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTables, on pickled columns and on spaces in names
        for key, frame in (("patients", patients), ("vitals_labs", vitals)):
            frame.to_hdf(tmp_path / "theirs" / "all_hourly_data.h5", key=key)
    ours, theirs = mimic(tmp_path / "ours").read(), mimic(tmp_path / "theirs").read()
    assert np.array_equal(ours.train, theirs.train)
    assert np.array_equal(ours.test, theirs.test)


class Bomb:
    """What a file must not be able to do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    patients, vitals = make_frames()
    path = write_h5(tmp_path, patients, vitals)
    bomb = pickle.dumps(Bomb(), 0)
    with h5py.File(path, "r+") as file:
        for group in (file, file["patients"], file["vitals_labs"], file["vitals_labs/axis1_level0"]):
            group.attrs["TITLE"] = np.bytes_(bomb)
        (block,) = (name for name in file["patients"] if file["patients"][name].dtype.kind == "O")
        file["patients"][block][0] = np.frombuffer(bomb, np.uint8)
    assert mimic(tmp_path).read().train.shape[1:] == (24, 4)
    with h5py.File(path, "r+") as file:
        del file["vitals_labs/axis0_level0"]
        file["vitals_labs"].create_dataset("axis0_level0", (1,), h5py.vlen_dtype(np.uint8))
    refused(mimic(tmp_path).read, path, "vitals_labs/axis0_level0 must hold numbers or names, found pickled objects;")


def test_stretches_of_a_large_table_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = make_frames()
    write_h5(tmp_path, *frames)
    monkeypatch.setattr("train.datasets.stored_frame.ROWS_AT_ONCE", 37)
    np.testing.assert_allclose(mimic(tmp_path).read().train, as_upstream(*frames, 4, 42).train, atol=1e-6)


def edited(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            edit(file)

    return damage


def rename(file: Any, old: str, new: str) -> None:
    names = file["patients/axis0"][()]
    names[names == old.encode()] = new.encode()
    file["patients/axis0"][...] = names


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (
        lambda path: path.write_bytes(b""),
        "must be an HDF5 file of MIMIC-Extract, found one that cannot be read",
    ),
    "text": (lambda path: path.write_text("<html>"), "found one that cannot be read .*; write it again"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:9000]), "found one that cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "found one that cannot be read"),
    "no patients": (
        edited(lambda file: file.pop("patients")),
        "patients must be a table .* found nothing of that name;",
    ),
    "no vitals": (edited(lambda file: file.pop("vitals_labs")), "vitals_labs must be a table .* found nothing"),
    "another format": (
        edited(lambda file: file["vitals_labs"].attrs.__setitem__("pandas_type", np.bytes_("frame_table"))),
        "vitals_labs must be a table that pandas stored in its fixed format, found something else;",
    ),
    "a part missing": (edited(lambda file: file["vitals_labs"].pop("axis1_label2")), "cannot be read .*axis1_label2"),
    "no values": (edited(lambda file: file["vitals_labs"].pop("block0_values")), "cannot be read .*block0_values"),
    "no max_hours": (
        edited(lambda file: rename(file, "max_hours", "min_hours")),
        "must have a column max_hours, found",
    ),
    "a level missing": (
        edited(lambda file: file["vitals_labs/axis1_level3"].attrs.__setitem__("name", np.bytes_("hour"))),
        "vitals_labs must have rows labelled by whole numbers hours_in, found none;",
    ),
    "a label too large": (
        edited(lambda file: file["vitals_labs/axis1_label0"].__setitem__(0, 99)),
        "cannot be read .*out of bounds",
    ),
    "a shape": (
        edited(
            lambda file: (
                file["vitals_labs"].pop("block0_values"),
                file.__setitem__("vitals_labs/block0_values", [[1.0]]),
            )
        ),
        r"block0_values must hold numbers \(\d+, 18\), found float64 \(1, 1\);",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: Callable[[Path], object], sentence: str) -> None:
    path = write_h5(tmp_path, *make_frames())
    damage(path)
    refused(mimic(tmp_path).read, path, sentence)


def test_stays_without_their_hours_are_named(tmp_path: Path) -> None:
    patients, vitals = make_frames()
    stay = patients.index[patients["max_hours"] > 30][2]
    path = write_h5(tmp_path, patients, vitals.drop((*stay, 7)))
    refused(mimic(tmp_path).read, path, f"found none or several for hour 7 of stay {stay[2]};")
    path = write_h5(tmp_path, patients, pd.concat([vitals, vitals.loc[[(*stay, 9)]]]))
    refused(mimic(tmp_path).read, path, f"found none or several for hour 9 of stay {stay[2]};")
    path = write_h5(tmp_path, patients, vitals.drop(stay))
    refused(mimic(tmp_path).read, path, f"longer than 30 hours in patients, found none of stay {stay[2]};")
    path = write_h5(tmp_path, patients.assign(max_hours=30), vitals)
    refused(mimic(tmp_path).read, path, "found no such stay;")


def test_values_and_numbers_of_measures_are_checked(tmp_path: Path) -> None:
    patients, vitals = make_frames()
    path = write_h5(tmp_path, patients, vitals)
    refused(mimic(tmp_path, n_feats=7).read, path, "must have 7 measures, found 6; set datamodule.n_feats")
    stay = patients.index[patients["max_hours"] > 30][0]
    vitals.loc[(*stay, 3), ("albumin", "mean")] = np.inf
    path = write_h5(tmp_path, patients, vitals)
    refused(
        mimic(tmp_path).read, path, f"albumin mean must be finite or missing, found inf in hour 3 of stay {stay[2]};"
    )
    path = write_h5(tmp_path, patients, vitals.rename(columns={"mean": "median"}, level=1))
    refused(mimic(tmp_path).read, path, "must have columns called mean, found none;")


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match=r"MIMIC-III data needs all_hourly_data.h5, .*; run https.*MIMIC_Extract on your"
    ) as caught:
        mimic(tmp_path).read()
    assert f"put its file into {tmp_path}/mimiciii, or set datamodule.data_dir" in str(caught.value)
    write_h5(tmp_path, *make_frames())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        DataError, match=r"needs the package h5py, found none; install it with pip install 'e2crf\[mimic"
    ):
        mimic(tmp_path).read()


def test_upstreams_options_work_and_wrong_ones_are_named() -> None:
    overrides = ["datamodule=mimiciii", "datamodule.n_feats=20", "random_seed=7"]
    options = options_from_config(compose_config(overrides)).dataset
    assert options == MimicIII(kind="mimiciii", n_feats=20, random_seed=7)
    assert options.label == "mimiciii"
    assert options_from_config(compose_config(overrides[:1])).dataset == MimicIII(kind="mimiciii", n_feats=40)
    with pytest.raises(ConfigError, match="n_feats must be at least 1, found 0"):
        options_from_config(compose_config(["datamodule=mimiciii", "datamodule.n_feats=0"]))
