"""The data sets a model can be trained on, by the word the config uses for them."""

from train.datasets.base import Dataset, Series
from train.datasets.ecg import Ecg
from train.datasets.mimiciii import MimicIII
from train.datasets.nasa import Nasa
from train.datasets.nasdaq import Nasdaq
from train.datasets.own import Npz
from train.datasets.own_tables import Csv, Parquet
from train.datasets.synthetic import Synthetic
from train.datasets.ucr import Ucr
from train.datasets.usdroughts import UsDroughts

DATASETS: dict[str, type[Dataset]] = {
    "csv": Csv,
    "ecg": Ecg,
    "mimiciii": MimicIII,
    "nasa": Nasa,
    "nasdaq": Nasdaq,
    "npz": Npz,
    "parquet": Parquet,
    "synthetic": Synthetic,
    "ucr": Ucr,
    "usdroughts": UsDroughts,
}

__all__ = [
    "DATASETS",
    "Csv",
    "Dataset",
    "Ecg",
    "MimicIII",
    "Nasa",
    "Nasdaq",
    "Npz",
    "Parquet",
    "Series",
    "Synthetic",
    "Ucr",
    "UsDroughts",
]
