"""The mean and std that a model was trained under, computed again from its data.

Checkpoints of ours hold them; those of FourierDiffusion do not, and their owner names the data instead.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.config import compose_config, options_from_config
from train.data import tokens_from_series

Array = NDArray[np.float32]


def statistics_of_data(overrides: Sequence[str], domain: str) -> tuple[Array, Array]:
    """Mean and std [N, C] of the training tokens of the data set that overrides such as `datamodule=ecg` name.

    `domain` is "frequency" or "time". Raises a `TrainError` whose text is meant for the user.
    """
    series = options_from_config(compose_config(overrides)).dataset.read()
    tokens = tokens_from_series(series, fourier_transform=domain == "frequency", standardize=True)
    return tokens.mean, tokens.std
