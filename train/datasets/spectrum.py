"""How far series are spread in time and in frequency, and spectra smoothed, which makes series more local in time.

FourierDiffusion does both to find out when the frequency domain helps (Crabbé et al., arXiv 2402.05933).
"""

import numpy as np
from numpy.typing import NDArray

from runtime import fourier

Array = NDArray[np.floating]


def delocalisation(x: Array) -> tuple[Array, Array]:
    """The spread of the energy of series [n, N, C] over time and over frequency, [n] each, in squared steps.

    The spread is the mean squared distance, around the circle, from the step it is smallest from; NaN for a series
    that is zero throughout.
    """
    step = np.arange(x.shape[1])
    distance = np.abs(step[:, None] - step)
    squared = np.minimum(distance, len(step) - distance) ** 2.0

    def spread(amplitude: Array) -> Array:
        energy = (amplitude**2).sum(axis=2)
        with np.errstate(invalid="ignore"):
            return np.asarray((energy @ squared).min(axis=1) / energy.sum(axis=1))

    x = x.astype(np.float64)
    return spread(x), spread(np.abs(np.fft.fft(x, axis=1)))


def most_localised(x: Array, num: int) -> NDArray[np.int64]:
    """Which series have the smallest spread over time by that over frequency, the smallest first."""
    time, frequency = delocalisation(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.argsort(time / frequency, kind="stable")[:num]  # NaN last


def smooth_spectrum(x: Array, width: float) -> Array:
    """Series [n, N, C] with every token of the spectrum averaged with its neighbours.

    The weights are Gaussian in the distance of the tokens' frequencies. Re and Im of a frequency have no distance
    and share a mean, as they do in FourierDiffusion, even where the width is next to nothing.
    """
    frequency = fourier.frequencies(x.shape[1])
    weight = np.exp(-(((frequency[:, None] - frequency) / width) ** 2) / 2)  # symmetric
    return fourier.idft(weight / weight.sum(axis=1, keepdims=True) @ fourier.dft(x.astype(np.float64)))
