"""What judges the plans of a calibration, and the score of samples.

Quality is the distance to real series where there are any (of the run's own, or of a file, the larger of test and
train part: the plan is compared with the same model uncached, so that having seen them is no advantage), else to
what the model itself draws with many refreshes from other noise.

A score is sliced Wasserstein in the time and in the frequency domain, how many samples diverged, and how far spectra
and autocorrelations are off: a plan that asks the network too early draws series that are too smooth, and the sliced
distance, made of what has energy, does not see it.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.reference import Part, Reference, Series, read_reference, reference_from_series
from bench.spectra import autocorrelation_distance, excess, spectral_distance
from bench.wasserstein import mean_of_roots, random_directions, sliced_distances
from runtime.errors import require
from runtime.fourier import dft
from runtime.sampler import Samples

_NUM_DIRECTIONS = 256
_NUM_GROUPS = 8  # of samples, for a standard error; as many as the fewest uncached ones


@dataclass(frozen=True)
class Score:
    """Sliced Wasserstein to the judges in both domains, diverged samples, and how far spectra and correlations are."""

    time: float
    frequency: float
    num_diverged: int  # as the sampler counts them: not finite, or far outside the data
    num_samples: int
    spectral: float = 0.0  # dB
    autocorrelation: float = 0.0

    def within(self, bar: "Score", uncached: "Score", budget: float) -> bool:
        """Whether this is no worse than the bar by more than the budget, and diverges no more than uncached."""
        return self.over(bar) <= budget and not self.diverges_more(uncached)

    def diverges_more(self, uncached: "Score") -> bool:
        """Whether a larger share of the samples diverged than of the uncached ones; of none it is never larger."""
        return self.num_diverged * uncached.num_samples > uncached.num_diverged * self.num_samples

    def over(self, bar: "Score") -> float:
        """How much worse than the bar: the larger growth of both domains, or what exceeds a slack of the others."""
        return max(
            self.time / bar.time - 1.0,
            self.frequency / bar.frequency - 1.0,
            excess((self.spectral, self.autocorrelation), (bar.spectral, bar.autocorrelation)),
        )

    def raised(self, squares: tuple[float, float], other: "Score", than: "Score") -> "Score":
        """This, further away by these squared distances (time, frequency), and by what else `other` is worse `than`."""
        return replace(
            self,
            time=math.sqrt(self.time**2 + squares[0]),
            frequency=math.sqrt(self.frequency**2 + squares[1]),
            spectral=self.spectral + max(0.0, other.spectral - than.spectral),
            autocorrelation=self.autocorrelation + max(0.0, other.autocorrelation - than.autocorrelation),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "sw_time": self.time,
            "sw_frequency": self.frequency,
            "num_diverged": self.num_diverged,
            "spectral": self.spectral,
            "autocorrelation": self.autocorrelation,
        }


@dataclass(frozen=True)
class Judges:
    """The series that samples are held against, and the directions [D, N C] along which."""

    reference: Reference
    name: str  # who they are, in words
    directions: NDArray[np.float64]

    def score(self, drawn: Samples) -> Score:
        """The score of samples by those that are finite; infinitely bad where fewer than two are.

        The sampler says which of them diverged: a finite one may have left the data too.
        """
        series, num_diverged = drawn.series, drawn.stats.num_diverged
        kept = series[_are_finite(series)].astype(np.float64)
        if len(kept) < 2:
            return Score(np.inf, np.inf, num_diverged, len(series), np.inf, np.inf)
        real = self.reference.series.astype(np.float64)
        others = spectral_distance(kept, real), autocorrelation_distance(kept, real)
        plain = (float(np.nan_to_num(one)) for one in others)
        return Score(*self._distances(kept), num_diverged, len(series), *plain)

    def surely_further(self, series: Series, other: Series) -> tuple[float, float]:
        """How much further `series` are than `other` ones of the same noise: squared distances (time, frequency).

        Squares, since what a small number of samples adds to a distance is then nearly the same of both; two standard
        errors less than what was found (jackknife over groups), and never below 0.
        """
        kept = _are_finite(series) & _are_finite(other)
        if np.count_nonzero(kept) < _NUM_GROUPS:
            return 0.0, 0.0
        both = [one[kept].astype(np.float64) for one in (series, other)]
        group = np.arange(len(both[0])) % _NUM_GROUPS

        def difference(of: NDArray[np.bool_]) -> NDArray[np.float64]:
            first, second = (np.square(self._distances(one[of])) for one in both)
            return np.asarray(first - second)

        found = difference(group >= 0)
        without = np.stack([difference(group != one) for one in range(_NUM_GROUPS)])
        error = np.sqrt((_NUM_GROUPS - 1) * without.var(axis=0))
        in_time, in_frequency = np.maximum(found - 2.0 * error, 0.0)
        return float(in_time), float(in_frequency)

    def _distances(self, series: NDArray[np.float64]) -> tuple[float, float]:
        real = self.reference.series.astype(np.float64)
        in_time, in_frequency = (
            mean_of_roots(sliced_distances(a.reshape(len(a), -1), b.reshape(len(b), -1), self.directions))
            for a, b in ((series, real), (dft(series), dft(real)))
        )
        return in_time, in_frequency


def real_judges(path: Path, seed: int) -> Judges:
    """The real series of a file, its larger part: a few series tell plans apart badly."""
    parts = [read_reference(path, part) for part in (Part.TEST, Part.TRAIN)]
    reference = max(parts, key=lambda part: len(part.series))
    return _judges(reference, f"{len(reference.series)} real series", seed)


def own_judges(series: Series, seed: int) -> Judges:
    """Series that the model drew itself, those of them that are finite."""
    finite = series[_are_finite(series)]
    require_finite(len(finite), len(series))
    return _judges(reference_from_series(finite), "the model's own series", seed)


def require_finite(count: int, total: int) -> None:
    """Refuse a model that draws next to nothing but NaN: nothing could be told from that."""
    require(count >= 4, "the model draws series that are not finite", f"{total - count} of {total}", "train longer")


def _are_finite(series: Series) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(series).all(axis=(1, 2)))


def _judges(reference: Reference, name: str, seed: int) -> Judges:
    return Judges(reference, name, random_directions(_NUM_DIRECTIONS, reference.series[0].size, seed))
