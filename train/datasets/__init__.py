"""The data sets a model can be trained on, by the word the config uses for them."""

from train.datasets.base import Dataset, Series
from train.datasets.ecg import Ecg
from train.datasets.nasa import Nasa
from train.datasets.nasdaq import Nasdaq
from train.datasets.synthetic import Synthetic
from train.datasets.ucr import Ucr

DATASETS: dict[str, type[Dataset]] = {
    "ecg": Ecg,
    "nasa": Nasa,
    "nasdaq": Nasdaq,
    "synthetic": Synthetic,
    "ucr": Ucr,
}

__all__ = ["DATASETS", "Dataset", "Ecg", "Nasa", "Nasdaq", "Series", "Synthetic", "Ucr"]
