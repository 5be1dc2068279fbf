"""Promises of raw files: found where they are, downloaded where there is a token, and preprocessed once."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.test_train_datasets import write_beats
from train.datasets import Ecg, Series
from train.datasets.cache import FOLDER
from train.datasets.files import download
from train.errors import DataError


class FakeKaggle:
    """Stands for `kaggle.api.kaggle_api_extended.KaggleApi`; writes the heartbeat files."""

    def authenticate(self) -> None:
        print("a page about tokens")

    def dataset_download_files(self, dataset: str, path: str, unzip: bool, quiet: bool) -> None:
        assert (dataset, unzip, quiet) == ("shayanfazeli/heartbeat", True, False)
        print("Dataset URL: ...")
        write_beats(Path(path))


class NoToken(FakeKaggle):
    def authenticate(self) -> None:
        print("a page about tokens")
        raise SystemExit(1)


class OldNoToken(FakeKaggle):
    def authenticate(self) -> None:
        raise OSError("Could not find kaggle.json")


class Offline(FakeKaggle):
    def dataset_download_files(self, dataset: str, path: str, unzip: bool, quiet: bool) -> None:
        (Path(path) / "half.zip").write_bytes(b"PK")
        raise OSError("connection\nlost")


def install(api: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kaggle", "kaggle.api", "kaggle.api.kaggle_api_extended"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["kaggle.api.kaggle_api_extended"], "KaggleApi", api, raising=False)


def ecg(folder: Path, **options: object) -> Ecg:
    return Ecg(kind="ecg", data_dir=str(folder), **options)  # type: ignore[arg-type]


def test_missing_data_are_downloaded_into_the_folder_of_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(FakeKaggle, monkeypatch)
    assert ecg(tmp_path / "new").read().train.shape == (6, 187, 1)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ecg"]  # nothing staged is left
    output = capsys.readouterr()
    assert output.out == ""  # which is for the path of the checkpoint
    assert "downloading the Kaggle data set shayanfazeli/heartbeat to" in output.err
    assert "tokens" not in output.err


@pytest.mark.parametrize(
    ("api", "reason"),
    [
        (NoToken, "done for you with a Kaggle token, see https://www.kaggle.com/docs/api"),
        (OldNoToken, "done for you with a Kaggle token, see"),
        (Offline, "tried for you, failed with: connection lost"),
    ],
)
def test_a_download_that_cannot_be_done_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], api: type, reason: str
) -> None:
    install(api, monkeypatch)
    with pytest.raises(
        DataError, match=rf"needs mitbih_train.csv and mitbih_test.csv, .*; download .*\({reason}"
    ) as caught:
        ecg(tmp_path).read()
    assert f") into {tmp_path}/ecg, or set datamodule.data_dir to the folder that holds them" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert "tokens" not in "".join(capsys.readouterr())


def test_nothing_is_downloaded_over_files_of_yours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeKaggle, monkeypatch)
    (tmp_path / "ecg").mkdir()
    assert download("shayanfazeli/heartbeat", tmp_path / "ecg") is None  # empty: fine
    (tmp_path / "ecg" / "mitbih_test.csv").unlink()
    with pytest.raises(DataError, match=r"no mitbih_test.csv in .*something in the folder already"):
        ecg(tmp_path).read()


def stored(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*")) if (folder / FOLDER).exists() else []


def key_of(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return np.asarray(file["key"])


def mark(path: Path) -> None:
    """Replace the cached series by ones that no loader makes, under the same key."""
    np.savez(
        path, key=key_of(path), train=np.full((2, 187, 1), 7, np.float32), test=np.full((2, 187, 1), 7, np.float32)
    )


def is_marked(series: Series) -> bool:
    return bool((series.train == 7).all())


def test_the_second_reading_comes_from_the_cache(tmp_path: Path) -> None:
    write_beats(tmp_path)
    first, second = ecg(tmp_path).read(), ecg(tmp_path, batch_size=3).read()
    assert np.array_equal(first.train, second.train)
    assert np.array_equal(first.test, second.test)
    assert second.train.dtype == np.float32
    (path,) = stored(tmp_path)
    mark(path)
    assert is_marked(ecg(tmp_path).read())
    with np.load(path, allow_pickle=False) as file:  # numbers and one string, nothing that is executed
        assert {name: file[name].dtype.kind for name in file.files} == {"key": "U", "train": "f", "test": "f"}


def append(path: Path) -> None:
    path.write_text(path.read_text() * 2)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file is longer": lambda path: append(path),
    "a file is newer": lambda path: os.utime(path, (1, 1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_files_that_changed_are_read_again(tmp_path: Path, change: Callable[[Path], object]) -> None:
    write_beats(tmp_path)
    ecg(tmp_path).read()
    mark(*stored(tmp_path))
    change(tmp_path / "mitbih_test.csv")
    assert not is_marked(ecg(tmp_path).read())
    assert len(stored(tmp_path)) == 1  # the old one was replaced


def test_every_option_and_the_code_have_a_place_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_beats(tmp_path)
    ecg(tmp_path).read()
    mark(*stored(tmp_path))
    assert not is_marked(ecg(tmp_path, smoother_width=3.0).read())
    assert len(stored(tmp_path)) == 2
    assert is_marked(ecg(tmp_path).read())
    monkeypatch.setattr("train.datasets.cache._code", lambda: "a loader that was mended")
    assert not is_marked(ecg(tmp_path).read())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3000]),
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(np.float32(7).tobytes(), b"abcd", 1)),
    "text": lambda path: path.write_text(json.dumps({"train": 1})),
    "objects": lambda path: np.savez(path, key=np.array({"a": 1}, dtype=object)),
    "other arrays": lambda path: np.savez(path, key=key_of(path), train=np.zeros(3)),
    "other types": lambda path: np.savez(path, key=key_of(path), train=np.zeros(3), test=np.zeros(3)),
    "one array": lambda path: (
        np.save(path.with_suffix(".npy"), np.zeros(3)),
        os.replace(path.with_suffix(".npy"), path),
    ),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_broken_cache_is_made_again(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    wanted = write_beats(tmp_path)
    ecg(tmp_path).read()
    (path,) = stored(tmp_path)
    mark(path)
    damage(path)
    assert np.array_equal(ecg(tmp_path).read().train[..., 0], wanted[:6, :187])
    assert stored(tmp_path) == [path]
    if path.is_file():  # whole again
        mark(path)
        assert is_marked(ecg(tmp_path).read())


def test_a_folder_without_permission_has_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_beats(tmp_path)
    tmp_path.chmod(0o555)
    assert ecg(tmp_path).read().train.shape == (6, 187, 1)
    assert stored(tmp_path) == []
    tmp_path.chmod(0o755)

    def full(*arguments: object, **arrays: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    assert ecg(tmp_path).read().train.shape == (6, 187, 1)
    assert stored(tmp_path) == []


def test_damaged_files_leave_no_cache(tmp_path: Path) -> None:
    write_beats(tmp_path)
    (tmp_path / "mitbih_test.csv").write_text("")
    with pytest.raises(DataError, match="found an empty file"):
        ecg(tmp_path).read()
    assert stored(tmp_path) == []
