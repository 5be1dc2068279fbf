"""ECG heartbeats: the Kaggle data set `shayanfazeli/heartbeat` (MIT-BIH beats; Kachuee et al. 2018).

Two CSV files, `mitbih_train.csv` and `mitbih_test.csv`, one beat per row: 187 values at 125 Hz, zero-padded
and scaled to [0, 1], then the class label, which is not used here. The files have no header.
(FourierDiffusion reads the first beat of each file as a header; here all 87,554 and 21,892 are kept.)

Two options make the variants of its paper: `subsample_localization` keeps the 1000 training beats that are most local
in time, and `smoother_width` smooths the spectra. (There the width does nothing unless `smooth_frequency` is set too.)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from train.datasets.base import Series, as_series
from train.datasets.files import FileDataset, Source
from train.datasets.spectrum import most_localised, smooth_spectrum
from train.datasets.tables import read_numbers

NUM_STEPS = 187
NUM_LOCALISED = 1000


@dataclass(frozen=True, kw_only=True)
class Ecg(FileDataset):
    """Which beats, and what is done to them."""

    source: ClassVar[Source] = Source(
        title="ECG",
        files=("mitbih_train.csv", "mitbih_test.csv"),
        folders=("ecg",),
        kaggle="shayanfazeli/heartbeat",
    )

    subsample_localization: bool = False
    smooth_frequency: bool = True  # false: the width is not used
    smoother_width: float = 0.0  # of the Gaussian kernel, in frequencies; 0: spectra as they are

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoother_width < float("inf"):
            raise ValueError(f"smoother_width must be a number from 0, found {self.smoother_width}; 0 smooths nothing")

    def preprocess(self, folder: Path) -> Series:
        """Both files as series [n, 187, 1]."""
        # The label comes last.
        train, test = (read_numbers(folder / file, NUM_STEPS + 1)[:, :NUM_STEPS, None] for file in self.source.files)
        if self.subsample_localization:
            train = train[most_localised(train, NUM_LOCALISED)]
        if self.smooth_frequency and self.smoother_width > 0:
            train, test = (smooth_spectrum(beats, self.smoother_width) for beats in (train, test))
        return Series(*(as_series(beats, folder) for beats in (train, test)))
