"""From series to what the network sees: the domain, the standardisation, and batches in a known order.

`z = (tokens - mean) / std` per (token, channel), with mean and unbiased std over the training set. A token
that is constant in training has std 0 on record and z = 0: the network learns that there is nothing to say,
and `tokens = mean + std z` gives the constant back. "Constant" means that it varies by less than float32
resolves at the size of its channel, because a spectrum is computed and an exact zero comes out as 1e-9.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from runtime import fourier
from train.datasets import Series
from train.errors import DataError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Tokens:
    """Standardised tokens [n, N, C] of both splits, and how to get back; all float32."""

    train: Array
    test: Array
    mean: Array  # [N, C]
    std: Array  # [N, C]; 0 marks a constant token
    noise_shape: Array  # G, [N]

    @property
    def num_tokens(self) -> int:
        """N, the length of a series."""
        return len(self.mean)

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.mean[0])


def tokens_from_series(series: Series, *, fourier_transform: bool, standardize: bool) -> Tokens:
    """Bring series into the domain to train in; computed in float64, returned in float32."""
    if min(len(series.train), len(series.test)) < 2:
        raise DataError(
            f"training needs at least 2 train and 2 test series, found {len(series.train)} and "
            f"{len(series.test)}; use a larger data set"
        )
    train, test = (_to_domain(x.astype(np.float64), fourier_transform) for x in (series.train, series.test))
    shape = train.shape[1:]
    mean, std = train.mean(0), _std(train)
    if not std.any():
        raise DataError(
            f"training needs series that differ from each other, found {len(train)} train series that are all the "
            "same; there is nothing to learn, so check the file or use another data set"
        )
    if not standardize:
        mean, std = np.zeros(shape), np.ones(shape)
    inverse = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
    return Tokens(
        train=((train - mean) * inverse).astype(np.float32),
        test=((test - mean) * inverse).astype(np.float32),
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        noise_shape=(fourier.noise_shape(shape[0]) if fourier_transform else np.ones(shape[0])).astype(np.float32),
    )


def _to_domain(x: NDArray[np.floating], fourier_transform: bool) -> NDArray[np.floating]:
    return fourier.dft(x) if fourier_transform else x


def _std(tokens: NDArray[np.floating]) -> NDArray[np.floating]:
    """Unbiased standard deviation [N, C], 0 where it is below the resolution of float32 data."""
    std = tokens.std(axis=0, ddof=1)
    resolution = np.finfo(np.float32).eps * np.sqrt((tokens**2).mean(axis=(0, 1)))  # [C]
    return np.where(std > resolution, std, 0.0)


class EpochOrder(Sampler[int]):
    """A shuffle that depends on (seed, epoch) alone: a resumed run sees the batches it would have seen."""

    def __init__(self, num: int, seed: int) -> None:
        self.num, self.seed, self.epoch = num, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num)
        return iter(order.tolist())

    def __len__(self) -> int:
        return self.num


def training_batches(tokens: Tokens, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of the training split; the last one of an epoch may be smaller."""
    return _batches(tokens.train, batch_size, EpochOrder(len(tokens.train), seed))


def validation_batches(tokens: Tokens, batch_size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of the test split, in order."""
    return _batches(tokens.test, batch_size)


def _batches(z: Array, batch_size: int, order: EpochOrder | None = None) -> DataLoader[tuple[Tensor, ...]]:
    # A loader draws a seed for its workers; from its own generator, so that the global one is not moved on.
    return DataLoader(TensorDataset(torch.from_numpy(z)), batch_size, sampler=order, generator=torch.Generator())
