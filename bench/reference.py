"""The real series that samples are judged against, and the real series that set the floor.

A distance between two finite sets is never zero, not even between two sets of real series. So every bench
puts real series through the same comparison as the samples: `held_out` series play the generator, the same
`series` judge them. That compares like with like; a floor from two halves of the judge would not, being a
distance between smaller sets, and would flatter every sample.

Training writes both parts to `reference.npz`. The test part judges and the train part sets the floor, since
a generator learnt from the latter should come as close to the former as the training series themselves do.
Turned around (`Part.TRAIN`, which is what FourierDiffusion reports), copying the training series would
score best. A file with one array of series is split into two random halves.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.places import real_series
from runtime.errors import OptionError, require

Series = NDArray[np.floating]


class Part(StrEnum):
    """Which part of a reference file judges the samples; the other one sets the floor."""

    TEST = "test"
    TRAIN = "train"


@dataclass(frozen=True)
class Reference:
    """Real series in data units: `series` [m, N, C] judge, `held_out` [h, N, C] set the floor."""

    series: Series
    held_out: Series

    def __post_init__(self) -> None:
        for name, values in (("reference", self.series), ("held-out", self.held_out)):
            require(
                values.ndim == 3 and len(values) >= 2,
                f"{name} series must be an array [n, N, C] with n of 2 or more",
                list(values.shape),
                "give more real series",
            )
            num_bad = int((~np.isfinite(values)).sum())
            require(num_bad == 0, f"{name} series must be finite", f"{num_bad} values that are not", "clean them")
        shapes = list(self.series.shape[1:]), list(self.held_out.shape[1:])
        require(
            shapes[0] == shapes[1],
            "both parts of a reference need the same N and C",
            shapes,
            "write it again",
        )

    @property
    def centre(self) -> NDArray[np.float64]:
        """The mean of each channel, [C]."""
        return np.asarray(self.series.mean(axis=(0, 1), dtype=np.float64))

    @property
    def scale(self) -> NDArray[np.float64]:
        """The standard deviation of each channel, [C]; 1 for a channel that is constant."""
        std = self.series.std(axis=(0, 1), dtype=np.float64)
        return np.where(std > 0, std, 1.0)


def reference_from_series(real: Series, seed: int = 0) -> Reference:
    """Two random halves of one set of real series [n, N, C]: the one judges, the other sets the floor."""
    order = np.random.default_rng(seed).permutation(len(real))
    return Reference(real[order[: len(real) // 2]], real[order[len(real) // 2 :]])


def _with_channel(values: Series) -> Series:
    return values[:, :, None] if values.ndim == 2 else values


def _arrays_of(path: Path) -> dict[str, Series]:
    """The arrays of an npz by name, or that of an npy as `series`."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"series": loaded}
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # on other bytes NumPy may raise anything
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise OptionError(
            f"{path} is not a whole npz or npy file of numbers that can be read{reason}; write it again"
        ) from error


def reference_of_run(run_id: str | None, path: str | None = None) -> Reference | None:
    """The reference in a named file, else that of a run, None where this is not here."""
    chosen = real_series(run_id) if path is None else Path(path)
    return None if chosen is None else read_reference(chosen)


def read_reference(path: Path, part: Part = Part.TEST, seed: int = 0) -> Reference:
    """The reference in an npz with `train` and `test`, or in a file with one array; [n, N] means C = 1."""
    require(
        path.is_file(),
        "a reference is an npz or npy file of real series [n, N, C]",
        f"no file {path}",
        "training writes one as reference.npz beside its checkpoints",
    )
    arrays = {name: _with_channel(values) for name, values in _arrays_of(path).items()}
    if set(arrays) == {str(p) for p in Part}:
        (other,) = set(Part) - {part}
        return Reference(arrays[part], arrays[other])
    if len(arrays) == 1:
        return reference_from_series(next(iter(arrays.values())), seed)
    raise OptionError(
        f"{path} must hold the arrays train and test, or one array, found {sorted(arrays)}; write it again so"
    )
