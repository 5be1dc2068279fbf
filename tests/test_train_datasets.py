"""Promises of the data sets: every series kept, shapes and dtypes as declared, and one sentence for each bad input."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import fourier
from train.config import compose_config, options_from_config
from train.datasets import Ecg, Series, Synthetic, Ucr
from train.datasets.spectrum import delocalisation, smooth_spectrum
from train.errors import ConfigError, DataError

REAL = Path("../shared/data/ecg")


def beside(real: Path, folder: Path) -> str:
    """A folder that holds the real files by links, so that no cache is written among them."""
    for path in real.resolve().iterdir():
        (folder / path.name).symlink_to(path)
    return str(folder)


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
def test_real_heartbeats_are_read_whole(tmp_path: Path) -> None:
    # Upstream reads 499 of the 500 rows of each.
    data = Ecg(kind="ecg", data_dir=beside(REAL, tmp_path)).read()
    assert data.train.shape == data.test.shape == (500, 187, 1)
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
    "a column too few": (edit_row(3, lambda cells: cells[:-1]), "row 3 must have 188 columns, found 187"),
    "a column too many": (edit_row(3, lambda cells: [*cells, "0"]), "row 3 must have 188 columns, found 189"),
    "a first row too short": (edit_row(1, lambda cells: cells[:9]), "row 1 must have 188 columns, found 9"),
    "text": (edit_row(4, cell(7, "oops")), "row 4, column 7 must be a finite number, found 'oops'"),
    "a header": (edit_row(1, lambda cells: [f"c{i}" for i in range(188)]), "row 1, column 1 .* found 'c0'"),
    "an empty cell": (edit_row(2, cell(188, "")), "row 2, column 188 .* found ''"),
    "nan": (edit_row(5, cell(1, "nan")), "row 5, column 1 .* found 'nan'"),
    "inf": (edit_row(5, cell(2, "-inf")), "row 5, column 2 .* found '-inf'"),
    "a number beyond float32": (edit_row(5, cell(2, "1e300")), "row 5, column 2 .* found '1e300'"),
    "an empty file": (lambda path: path.write_text(""), "found an empty file"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00\x81" * 40), "must be a text file of numbers"),
    "an archive": (lambda path: path.write_bytes(b"PK\x03\x04\x00\x00"), "row 1 must have 188 columns|text file"),
    "no file": (
        lambda path: path.unlink(),
        r"found none in .*/ecg, no mitbih_\w+.csv in ",
    ),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be opened .Is a directory."),
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


def beats_with_pulse(num: int) -> np.ndarray:
    """Series [num, 187, 1], each a pulse that is wider than that of the series before."""
    time = np.arange(187) - 93
    return np.exp(-((time / (1 + np.arange(num))[:, None]) ** 2))[:, :, None].astype(np.float32)


def delocalisation_by_loops(x: np.ndarray) -> tuple[float, float]:
    """Oracle: the definition, for one series [N, C], on the full spectrum."""
    num = len(x)
    found = []
    for energy in ((x**2).sum(1), (np.abs(np.fft.fft(x, axis=0)) ** 2).sum(1)):
        spreads = [
            sum(energy[t] * min(abs(s - t), num - abs(s - t)) ** 2 for t in range(num)) / energy.sum()
            for s in range(num)
        ]
        found.append(min(spreads))
    return found[0], found[1]


@pytest.mark.parametrize("num_steps", [12, 13])
def test_delocalisation_is_the_smallest_mean_squared_distance_around_the_circle(num_steps: int) -> None:
    x = np.random.default_rng(0).normal(size=(3, num_steps, 2))
    np.testing.assert_allclose(np.transpose(delocalisation(x)), [delocalisation_by_loops(one) for one in x], rtol=1e-9)


def test_a_pulse_is_local_in_time_and_a_sine_in_frequency() -> None:
    pulse = np.eye(16)[3][None, :, None]
    time, frequency = delocalisation(pulse)
    assert time[0] == 0
    np.testing.assert_allclose(frequency[0], np.mean(np.minimum(np.arange(16), 16 - np.arange(16)) ** 2))
    assert np.isnan(delocalisation(np.zeros((1, 16, 1)))[0][0])


def test_the_localisation_subsample_is_the_thousand_training_beats_most_local_in_time(tmp_path: Path) -> None:
    # Widths cycle through 30 values, so that the most local thousand of 1200 are those of the 25 smallest.
    rows = beats_with_pulse(30)[np.arange(1200) % 30, :, 0]
    for name, part in (("train", rows), ("test", rows[:40])):
        np.savetxt(
            tmp_path / f"mitbih_{name}.csv", np.column_stack([part, np.zeros(len(part))]), fmt="%.6g", delimiter=","
        )
    with (tmp_path / "mitbih_train.csv").open("a") as file:
        file.write(",".join(["0"] * 188) + "\n")  # no energy, no place
    data = Ecg(kind="ecg", data_dir=str(tmp_path), subsample_localization=True).read()
    assert (data.train.shape, data.test.shape) == ((1000, 187, 1), (40, 187, 1))
    np.testing.assert_allclose(data.train[:40], np.broadcast_to(data.train[:1], (40, 187, 1)))  # the narrowest first
    widths = data.train.sum(axis=(1, 2))
    assert (np.diff(widths) > -1e-3).all()
    assert np.isclose(widths[-1], rows[24].sum(), rtol=1e-4)


@pytest.mark.parametrize("num_steps", [12, 13])
def test_smoothing_averages_tokens_by_the_distance_of_their_frequencies(num_steps: int) -> None:
    # Oracle: the weighted mean of the definition, token by token.
    x = np.random.default_rng(0).normal(size=(2, num_steps, 3))
    tokens, frequency = fourier.dft(x), fourier.frequencies(num_steps)
    weights = np.exp(-(((frequency[:, None] - frequency) / 1.5) ** 2) / 2)
    wanted = np.stack([np.average(tokens, axis=1, weights=row) for row in weights], axis=1)
    np.testing.assert_allclose(fourier.dft(smooth_spectrum(x, 1.5)), wanted, atol=1e-12)


def test_the_smoother_makes_beats_more_local_in_time_and_can_be_turned_off(tmp_path: Path) -> None:
    write_beats(tmp_path)
    plain, same, smooth = (
        Ecg(kind="ecg", data_dir=str(tmp_path), **options).read()  # type: ignore[arg-type]
        for options in ({}, {"smoother_width": 4.0, "smooth_frequency": False}, {"smoother_width": 4.0})
    )
    assert np.array_equal(plain.train, same.train)
    assert smooth.train.dtype == np.float32
    np.testing.assert_allclose(smooth.test, smooth_spectrum(plain.test, 4.0), atol=1e-6)
    assert delocalisation(smooth.train)[0].mean() < 0.5 * delocalisation(plain.train)[0].mean()


def test_upstreams_names_of_the_ecg_options_work() -> None:
    names = ("subsample_localization=true", "smooth_frequency=true", "smoother_width=2.5")
    options = options_from_config(compose_config(["datamodule=ecg", *(f"datamodule.{name}" for name in names)])).dataset
    assert options == Ecg(kind="ecg", subsample_localization=True, smoother_width=2.5)
    with pytest.raises(ConfigError, match="smoother_width must be a number from 0, found -1"):
        options_from_config(compose_config(["datamodule.smoother_width=-1"]))
