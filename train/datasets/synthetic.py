"""Synthetic sines, sin(frequency t + phase) with frequency ~ Beta(2, 2) and phase ~ N(0, 1).

The process of Fourier Flows (Alaa et al. 2021), as FourierDiffusion uses it. Nothing is read or written: the
same options always make the same series, so this is the data set for tests and first steps.
"""

from dataclasses import dataclass

import numpy as np

from train.datasets.base import Dataset, Series, as_series


@dataclass(frozen=True, kw_only=True)
class Synthetic(Dataset):
    """How many sines of which length."""

    max_len: int = 100
    num_samples: int = 1000  # for training, and as many again for testing
    random_seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_len", "num_samples"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, found {getattr(self, name)}; choose a larger one")

    def read(self) -> Series:
        """Series [num_samples, max_len, 1], twice."""
        generator = np.random.default_rng(self.random_seed)
        phase = generator.normal(size=(2 * self.num_samples, 1))
        frequency = generator.beta(2.0, 2.0, size=(2 * self.num_samples, 1))  # radians per step
        series = as_series(np.sin(frequency * np.arange(self.max_len) + phase)[..., None], "synthetic")
        return Series(train=series[: self.num_samples], test=series[self.num_samples :])
