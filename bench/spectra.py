"""Spectra and autocorrelations of sets of series [n, N, C]: what the eye looks for in a time series, as numbers.

    spectral_distance(samples, real)          # dB, 0 for equal spectra
    autocorrelation_distance(samples, real)   # of correlations, 0 for equal ones

Both compare the middle of the sets, so that they see what sliced Wasserstein distances weigh little: the energy of
weak frequencies, in ratios, and the memory of a series, whatever its size. Neither sees more than that: a set
in which every series has the median spectrum is at 0. Between two finite sets of real series neither is 0; read
them against those of the floor. A few samples that diverged move neither by much; they are counted elsewhere.

Sources: the log-spectral distance, Gray and Markel, "Distance measures for speech processing" (IEEE Trans. ASSP,
1976), here between median periodograms, since a few loud series rule every mean of energies; the autocorrelation,
Box and Jenkins, "Time series analysis" (1970); its distance after the ACF score of Wiese et al., "Quant GANs" (2020),
as a root mean square, so that it does not grow with the number of lags.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bench.reference import Series
from runtime.errors import require
from runtime.fourier import dft, frequencies

SPECTRAL_SLACK, CORRELATION_SLACK = 1.0, 0.03  # dB and correlation: more than noise moves them in a set of hundreds
_ROUNDING = float(np.finfo(np.float32).eps) ** 2  # energy of rounding, as a share of the energy of float32 series
_BLOCK = 512  # series at once: 75 MB for 365 steps of 13 channels


def excess(found: tuple[float, float], target: tuple[float, float]) -> float:
    """How much further spectra and autocorrelations are off than those aimed at, beyond the slack, as a growth.

    Of the spectral distance in dB a tenth, of the other all, the larger. Minus infinity within the slack, so that it
    decides nothing among good ones. NaN, of real series that have no such property, counts as equal.
    """
    spectral, correlation = (float(np.nan_to_num(one - other)) for one, other in zip(found, target, strict=True))
    growth = max((spectral - SPECTRAL_SLACK) / 10.0, correlation - CORRELATION_SLACK)
    return growth if growth > 0 else -math.inf


def spectral_density(series: Series) -> NDArray[np.float64]:
    """Energy by frequency of each series, over all channels: [n, N, C] -> [n, F], mirror images included."""
    frequency = frequencies(series.shape[1])
    counted = np.equal.outer(frequency, np.arange(frequency.max() + 1)).astype(np.float64)  # [N, F]
    counted *= counted.sum(axis=0)  # a frequency of two tokens has a mirror image
    return np.concatenate([np.square(dft(block)).sum(axis=2) @ counted for block in _blocks(series)])


def median_spectrum(series: Series) -> NDArray[np.float64]:
    """Energy by frequency and channel, median over series: [n, N, C] -> [F, C], in data units squared."""
    channels = range(series.shape[2])
    return np.stack([np.median(spectral_density(series[:, :, [c]]), axis=0) for c in channels], axis=1)


def spectral_distance(samples: Series, real: Series) -> float:
    """The log-spectral distance of samples [n, N, C] to real series [m, N, C], in dB.

    The root mean square, over frequencies and channels, of 10 log10 of median energy over median energy: 0 for
    equal spectra, 3 where all of them are off by a factor of 2. Left out is where the real series have no energy beyond
    rounding (all but frequency 0 of a constant channel); there, what samples have counts only in other distances.
    Samples without energy where real series have some count as if they had that of rounding. NaN where most real
    series are zero.
    """
    _check(samples, real)
    expected, found = median_spectrum(real), median_spectrum(samples)
    least = _ROUNDING * expected.sum(axis=0)  # [C]
    is_there = expected > least
    if not is_there.any():
        return float("nan")
    decibels = 10 * np.log10(np.maximum(found, least)[is_there] / expected[is_there])
    return float(np.sqrt(np.mean(np.square(decibels))))


def autocorrelation(series: Series) -> NDArray[np.float64]:
    """The mean over series of their autocorrelation by lag 0 .. N/2 and channel: [n, N, C] -> [L, C].

    Of each series, about its own mean: sum_t x_t x_(t + lag) / sum_t x_t^2, 1 at lag 0 and in [-1, 1] (the sum runs
    over N - lag terms, so that it falls with the lag). A channel that is constant in a series has none: 0 at every lag.
    """
    num_steps = series.shape[1]
    power: NDArray[np.float64] | float = 0.0
    for block in _blocks(series):
        size = np.square(block).sum(axis=1, keepdims=True)  # [b, 1, C]
        centred = block - block.mean(axis=1, keepdims=True)
        energy = np.square(centred).sum(axis=1, keepdims=True)
        is_moving = energy > _ROUNDING * size
        centred *= np.divide(1.0, np.sqrt(energy), out=np.zeros_like(energy), where=is_moving)
        transformed = np.fft.rfft(centred, n=2 * num_steps, axis=1)  # padded: nothing wraps around
        power = power + (np.square(transformed.real) + np.square(transformed.imag)).sum(axis=0)
    mean: NDArray[np.float64] = np.fft.irfft(power, n=2 * num_steps, axis=0) / len(series)
    return mean[: num_steps // 2 + 1]


def autocorrelation_distance(samples: Series, real: Series) -> float:
    """How far the mean autocorrelation of samples [n, N, C] is from that of real series [m, N, C], in [0, 2].

    The root mean square of the difference over lags 1 .. N/2 and channels, without channels that are constant in
    every real series; NaN if all are, or for series of one step.
    """
    _check(samples, real)
    expected = autocorrelation(real)
    is_moving = expected[0] > 0
    gap = (autocorrelation(samples) - expected)[1:, is_moving]
    return float(np.sqrt(np.mean(np.square(gap)))) if gap.size else float("nan")


def _blocks(series: Series) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(series), _BLOCK):
        yield series[start : start + _BLOCK].astype(np.float64)


def _check(samples: Series, real: Series) -> None:
    for name, values in (("samples", samples), ("real series", real)):
        require(values.ndim == 3 and values.size > 0, f"{name} must be an array [n, N, C] with one series or more",
                list(values.shape), "give more of them")  # fmt: skip
    shapes = list(samples.shape[1:]), list(real.shape[1:])
    require(shapes[0] == shapes[1], "samples and real series must have the same N and C", shapes,
            "name the reference that the model was trained on")  # fmt: skip
