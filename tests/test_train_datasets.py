"""Promises of the data sets: every series kept, shapes and dtypes as declared, and one sentence for each bad input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.datasets import Ecg, Series, Synthetic, Ucr
from train.errors import DataError

REAL = Path("../shared/data/ecg")


def write_beats(folder: Path, num_train: int = 6, num_test: int = 5) -> np.ndarray:
    """Files of the Kaggle layout; the values [n, 188] of both, train first."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).uniform(size=(num_train + num_test, 188)).astype(np.float32)
    values[:, -1] = np.arange(len(values)) % 5  # the label
    for name, rows in (("train", values[:num_train]), ("test", values[num_train:])):
        lines = "\n".join(",".join(f"{v:.18e}" for v in row) for row in rows) + "\n"
        (folder / f"mitbih_{name}.csv").write_text(lines)
    return values


@pytest.mark.parametrize("subfolder", ["ecg", "."])
def test_ecg_keeps_every_beat_and_drops_the_label(tmp_path: Path, subfolder: str) -> None:
    values = write_beats(tmp_path / subfolder)
    data = Ecg(kind="ecg", data_dir=str(tmp_path)).read()
    assert data.train.shape == (6, 187, 1)
    assert data.test.shape == (5, 187, 1)
    assert data.train.dtype == data.test.dtype == np.float32
    assert np.array_equal(np.concatenate([data.train, data.test])[..., 0], values[:, :187])  # 18 digits are exact


@pytest.mark.skipif(not REAL.is_dir(), reason="the heartbeat files are not here")
def test_real_heartbeats_are_read_whole() -> None:
    data = Ecg(kind="ecg", data_dir=str(REAL.parent)).read()
    rows = len((REAL / "mitbih_train.csv").read_text().splitlines())
    assert data.train.shape == (rows, 187, 1)
    assert data.train.min() >= 0
    assert data.train.max() <= 1


def edit_row(row: int, edit: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[row - 1] = ",".join(edit(lines[row - 1].split(",")))
        path.write_text("\n".join(lines) + "\n")

    return damage


def cell(column: int, text: str) -> Callable[[list[str]], list[str]]:
    return lambda cells: [*cells[: column - 1], text, *cells[column:]]


DAMAGES = {
    "a column too few": (edit_row(3, lambda cells: cells[:-1]), "row 3 must have 188 columns .* found 187"),
    "a column too many": (edit_row(3, lambda cells: [*cells, "0"]), "row 3 must have 188 columns .* found 189"),
    "a first row too short": (edit_row(1, lambda cells: cells[:9]), "row 1 must have 188 columns .* found 9"),
    "text": (edit_row(4, cell(7, "oops")), "row 4, column 7 must be a finite number, found 'oops'"),
    "a header": (edit_row(1, lambda cells: [f"c{i}" for i in range(188)]), "row 1, column 1 .* found 'c0'"),
    "an empty cell": (edit_row(2, cell(188, "")), "row 2, column 188 .* found ''"),
    "nan": (edit_row(5, cell(1, "nan")), "row 5, column 1 .* found 'nan'"),
    "inf": (edit_row(5, cell(2, "-inf")), "row 5, column 2 .* found '-inf'"),
    "a number beyond float32": (edit_row(5, cell(2, "1e300")), "row 5, column 2 .* found '1e300'"),
    "an empty file": (lambda path: path.write_text(""), "found an empty file"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 40), "must be a text file of numbers"),
    "an archive": (lambda path: path.write_bytes(b"PK\x03\x04\x00\x00"), "row 1 must have 188 columns|text file"),
    "no file": (lambda path: path.unlink(), "found neither"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "found neither"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_ecg_file_is_one_sentence(
    tmp_path: Path, split: str, damage: Callable[[Path], None], sentence: str
) -> None:
    # What (path, row, column), what was found, what to do.
    write_beats(tmp_path)
    damage(tmp_path / f"mitbih_{split}.csv")
    with pytest.raises(DataError, match=sentence) as caught:
        Ecg(kind="ecg", data_dir=str(tmp_path)).read()
    message = str(caught.value)
    assert f"mitbih_{split}.csv" in message
    assert ";" in message
    assert "\n" not in message


def test_gunpoint_and_basicmotions_come_with_aeon_and_are_transposed() -> None:
    # Oracle: aeon's own arrays [n, C, N], and the archive's sizes.
    from aeon.datasets import load_basic_motions

    gunpoint = Ucr(kind="ucr").read()
    assert gunpoint.train.shape == (50, 150, 1)
    assert gunpoint.test.shape == (150, 150, 1)
    motions = Ucr(kind="ucr", name="BasicMotions").read()
    wanted = load_basic_motions(split="train")[0]
    assert motions.train.shape == motions.test.shape == (40, 100, 6)
    assert motions.train.dtype == np.float32
    assert np.array_equal(motions.train[3, :, 4], wanted[3, 4, :].astype(np.float32))


def test_ucr_says_what_it_cannot_use() -> None:
    with pytest.raises(DataError, match=r"one length, found 7 to 26 steps; .*JapaneseVowels_eq"):
        Ucr(kind="ucr", name="JapaneseVowels").read()
    with pytest.raises(DataError, match=r"ucr/NoSuchSet .train. cannot be read, aeon says: .*NoSuchSet"):
        Ucr(kind="ucr", name="NoSuchSet").read()


def test_ucr_reads_own_files_first_and_refuses_missing_values(tmp_path: Path) -> None:
    folder = tmp_path / "ucr" / "Own"
    folder.mkdir(parents=True)
    head = "@problemName Own\n@timestamps false\n@missing {}\n@univariate true\n@equalLength true\n@seriesLength 4\n"
    head += "@classLabel true 0 1\n@data\n"
    for split in ("TRAIN", "TEST"):
        (folder / f"Own_{split}.ts").write_text(head.format("false") + "1,2,3,4:0\n5,6,7,8:1\n")
    own = Ucr(kind="ucr", name="Own", data_dir=str(tmp_path))
    assert np.array_equal(own.read().train[..., 0], [[1, 2, 3, 4], [5, 6, 7, 8]])
    (folder / "Own_TEST.ts").write_text(head.format("true") + "1,?,3,4:0\n5,6,7,8:1\n")
    with pytest.raises(DataError, match=r"no missing values, found some in 1 of 2 series; .*Own_nmv"):
        own.read()


def test_ucr_maps_a_failed_download_to_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import aeon.datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("<urlopen error\n timed out>")

    monkeypatch.setattr(aeon.datasets, "load_classification", offline)
    with pytest.raises(DataError, match=r"aeon says: <urlopen error timed out>; check the name and the network"):
        Ucr(kind="ucr", name="Adiac").read()


def test_synthetic_series_are_sines_of_the_stated_law_and_repeat_with_their_seed() -> None:
    # Oracle: a sine of frequency f satisfies x[t+1] + x[t-1] = 2 cos(f) x[t]; Beta(2, 2) has mean 1/2, variance 1/20.
    options = Synthetic(kind="synthetic", num_samples=2000)
    data = options.read()
    assert data.train.shape == data.test.shape == (2000, 100, 1)
    assert data.train.dtype == np.float32
    x = data.train[..., 0].astype(np.float64)
    middle, neighbours = x[:, 1:-1], x[:, 2:] + x[:, :-2]
    cosine = (middle * neighbours).sum(1) / (middle**2).sum(1) / 2
    np.testing.assert_allclose(neighbours, 2 * cosine[:, None] * middle, atol=1e-5)  # float32 values
    frequency = np.arccos(np.clip(cosine, -1, 1))
    assert abs(frequency.mean() - 0.5) < 0.02
    assert abs(frequency.var() - 0.05) < 0.005
    assert np.array_equal(data.train, options.read().train)
    assert not np.array_equal(data.train, data.test)
    assert not np.array_equal(data.train, Synthetic(kind="synthetic", num_samples=2000, random_seed=1).read().train)


def test_splits_of_different_shape_are_refused() -> None:
    with pytest.raises(DataError, match="the same shape, found"):
        Series(np.zeros((2, 5, 1), np.float32), np.zeros((2, 6, 1), np.float32))
