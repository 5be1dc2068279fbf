"""MIMIC-III: the first day of intensive-care stays, from `all_hourly_data.h5` as MIMIC-Extract writes it.

The data are restricted: who has a licence (physionet.org) runs MIMIC-Extract (Wang et al. 2020) and puts its file
here; nothing is downloaded. `patients` says how long each stay was (`max_hours`), and `vitals_labs` holds mean, count
and deviation of 104 measures in each hour of it, mostly missing.

The series are those of FourierDiffusion: the means of hours 0 to 23 of the stays that are longer than 30 hours, split
4 to 1 by patient. Each measure is standardised over the training hours in which it was taken. An hour without takes the
one before, else the mean of the stay, else 0. The `n_feats` measures that differ most between stays are the channels,
those that differ most first.
(FourierDiffusion fills with a method that pandas no longer has, and divides by 0 where a measure is constant.)
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from train.datasets.base import Series, as_series
from train.datasets.files import FileDataset, Source
from train.datasets.tables import check_seed
from train.errors import DataError

if TYPE_CHECKING:
    from train.datasets.stored_frame import StoredFrame

NUM_HOURS = 24
MIN_HOURS = NUM_HOURS + 6  # stays must be longer
TRAIN_FRACTION = 0.8


@dataclass(frozen=True, kw_only=True)
class MimicIII(FileDataset):
    """How many measures, and how the patients are split."""

    source: ClassVar[Source] = Source(
        title="MIMIC-III",
        files=("all_hourly_data.h5",),
        folders=("mimiciii",),
        how_to_get="run https://github.com/MLforHealth/MIMIC_Extract on your licensed copy, put its file",
    )

    n_feats: int = 40
    random_seed: int = 42  # of the split

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.random_seed)
        if self.n_feats < 1:
            raise ValueError(f"n_feats must be at least 1, found {self.n_feats}; the usual value is 40")

    def preprocess(self, folder: Path) -> Series:
        """Series [stays, 24, n_feats]."""
        path = folder / self.source.files[0]
        stays = _read_stays(path)
        if self.n_feats > stays.values.shape[2]:
            raise DataError(
                f"{path} must have {self.n_feats} measures, found {stays.values.shape[2]}; set datamodule.n_feats"
            )
        is_train = _is_train(stays.subject, self.random_seed)
        values = _impute(_standardise(stays.values, is_train))
        spread = values[is_train].std(axis=0, ddof=1).mean(axis=0)
        chosen = np.argsort(-spread, kind="stable")[: self.n_feats]
        series = as_series(values[:, :, chosen], path)
        return Series(train=series[is_train], test=series[~is_train])


@dataclass(frozen=True)
class _Stays:
    """The first hours of all stays that are long enough, in the order of the file."""

    subject: NDArray[np.int64]  # [stays]
    values: NDArray[np.float64]  # [stays, hours, measures], the latter by name; NaN where missing


def _read_stays(path: Path) -> _Stays:
    try:
        import h5py

        from train.datasets.stored_frame import StoredFrame
    except ImportError as error:
        raise DataError(
            "MIMIC-III needs the package h5py, found none; install it with pip install 'e2crf[mimiciii]'"
        ) from error
    try:
        with h5py.File(path) as file:
            return _stays(path, StoredFrame(file, "patients"), StoredFrame(file, "vitals_labs"))
    except (OSError, KeyError, ValueError, RuntimeError, IndexError, TypeError) as error:  # h5py's, by the damage
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} must be an HDF5 file of MIMIC-Extract, found one that cannot be read ({reason:.200}); "
            "write it again"
        ) from error


def _stays(path: Path, patients: "StoredFrame", vitals: "StoredFrame") -> _Stays:
    if ("max_hours",) not in patients.columns:
        raise DataError(f"{patients.name} must have a column max_hours, found none; write the file with MIMIC-Extract")
    measures = sorted(column for column in vitals.columns if column[-1] == "mean")
    if not measures:
        raise DataError(f"{vitals.name} must have columns called mean, found none; write the file with MIMIC-Extract")
    patient_stays = patients.rows("icustay_id")
    num_hours = patients.values([("max_hours",)], np.ones(len(patient_stays), bool))[:, 0]
    long_stays = patient_stays[num_hours > MIN_HOURS]
    hour, stay, subject = (vitals.rows(level) for level in ("hours_in", "icustay_id", "subject_id"))
    is_used = np.isin(stay, long_stays) & (hour < NUM_HOURS)
    hour, stay, subject = hour[is_used], stay[is_used], subject[is_used]
    if len(absent := np.setdiff1d(long_stays, stay)) or not len(long_stays):
        found = f"none of stay {absent[0]}" if len(absent) else "no such stay"
        raise DataError(
            f"{vitals.name} must have rows of every stay longer than {MIN_HOURS} hours in patients, found {found}; "
            "write the file again with MIMIC-Extract"
        )
    _, first, number = np.unique(stay, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))[number]  # stays by their first row
    first = np.sort(first)
    row = number * NUM_HOURS + hour  # where each hour goes
    if (wrong := np.bincount(row, minlength=len(first) * NUM_HOURS) != 1).any():
        k, missing_hour = divmod(int(wrong.argmax()), NUM_HOURS)
        raise DataError(
            f"{vitals.name} must have one row for each of the first {NUM_HOURS} hours, found none or several for hour "
            f"{missing_hour} of stay {stay[first[k]]}; write the file again with MIMIC-Extract"
        )
    measured = vitals.values(measures, is_used)
    if np.isinf(measured).any():
        k, measure = np.argwhere(np.isinf(measured))[0]
        raise DataError(
            f"{vitals.name}: {' '.join(measures[measure])} must be finite or missing, found {measured[k, measure]} in "
            f"hour {hour[k]} of stay {stay[k]}; write the file again with MIMIC-Extract"
        )
    values = np.empty((len(first), NUM_HOURS, len(measures)))
    values.reshape(-1, len(measures))[row] = measured
    return _Stays(subject[first], values)


def _is_train(subject: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which stays are trained on: those of the patients that upstream draws from a set of Python's, in its order."""
    subjects = np.random.RandomState(seed).permutation(list(set(subject.tolist())))
    return np.isin(subject, subjects[: int(TRAIN_FRACTION * len(subjects))])


def _standardise(values: NDArray[np.float64], is_train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """By mean and unbiased deviation of each measure; missing throughout where it does not vary."""
    measured = values[is_train].reshape(-1, values.shape[2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # never or once measured: NaN
        mean, std = np.nanmean(measured, axis=0), np.nanstd(measured, axis=0, ddof=1)
    return np.asarray((values - mean) / np.where(std > 0, std, np.nan))


def _impute(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Missing hours [stays, hours, measures] filled by the hour before, else the mean of the stay, else 0."""
    num_measured = (~np.isnan(values)).sum(axis=1)
    mean = np.nansum(values, axis=1) / np.maximum(num_measured, 1)
    filled = values.copy()
    for hour in range(1, values.shape[1]):
        filled[:, hour] = np.where(np.isnan(values[:, hour]), filled[:, hour - 1], values[:, hour])
    return np.where(np.isnan(filled), mean[:, None], filled)
