"""How good samples are: their distance to real series, what diverged, and what caching changed.

Distances are sliced and marginal Wasserstein-2 (`wasserstein.py`) in data units, between sets of series flattened to
[n, N C]: in the time domain, and in the frequency domain on the orthonormal tokens of
`runtime.fourier.dft`, not standardised. The tokens hold each mirrored frequency once, so the two domains
weigh frequencies differently and neither number follows from the other. Beside them stand the distances of
median spectra and of mean autocorrelations (`spectra.py`). Read all against the `floor` (real series in the
generator's place) and the `mean_sample` (a generator that knows nothing but the mean).

A sample diverged if a value is not finite, or if its RMS, each channel centred and scaled by the reference,
is above `diverged_above` times the largest of any reference series. It is counted and stays in: only a
value that is not finite cannot enter a distance, and `num_left_out` says how many samples that cost.

The interval is a bootstrap over the generated samples, centred: repeated samples in a resample push every
distance up, and far more than the distance itself scatters when the generator is good. The plain percentile
interval then misses the estimate it is for (3 % coverage at a nominal 95 %, measured on Gaussians), so that
shift is taken off. The interval therefore says: another n samples of this generator would score in here.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bench.reference import Reference, Series
from bench.spectra import autocorrelation_distance, spectral_distance
from bench.wasserstein import (
    marginal_distances,
    mean_of_roots,
    random_directions,
    resampled_means,
    root_of_mean,
    sliced_distances,
)
from runtime.errors import require
from runtime.fourier import dft


@dataclass(frozen=True)
class QualityOptions:
    """How distances are measured; the defaults take seconds for 10,000 samples."""

    num_directions: int = 1000
    num_resamples: int = 200
    interval_directions: int = 128  # the scatter over samples is common to directions: a part of them shows it
    level: float = 0.95
    diverged_above: float = 10.0  # times the largest RMS of a reference series
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_directions", "num_resamples", "interval_directions"):
            require(
                getattr(self, name) >= 1,
                f"{name} must be at least 1",
                getattr(self, name),
                "keep the default",
            )
        require(0 < self.level < 1, "level must lie between 0 and 1", self.level, "the usual value is 0.95")
        require(self.diverged_above > 1, "diverged_above must exceed 1", self.diverged_above, "10 is the default")


@dataclass(frozen=True)
class Distance:
    """How far samples are from the reference in one domain, in data units."""

    sliced: float  # mean over directions of W2, as FourierDiffusion reports it
    sliced_pot: float  # root of the mean over directions of W2 squared, as POT reports it
    marginal: float  # mean over coordinates of W2, as FourierDiffusion reports it
    marginal_pot: float  # root of the mean over coordinates of W2 squared
    low: float  # interval of `sliced`
    high: float
    replicates: NDArray[np.float64] = field(repr=False)  # [num_resamples] of `sliced`, centred on it


@dataclass(frozen=True)
class Quality:
    """What a set of samples is worth."""

    num_samples: int
    num_left_out: int  # not finite, so in no distance
    num_diverged: int  # these, and those far too large
    time: Distance
    frequency: Distance
    spectral: float  # dB; NaN where most real series are zero
    autocorrelation: float  # NaN if every real series is constant


def judge(series: Series, reference: Reference, options: QualityOptions | None = None) -> Quality:
    """Judge samples [n, N, C] in data units; ValueError if fewer than two finite ones or of another shape.

    Two are enough for a number, and hundreds for one that says something: the floor of as many shows which.
    """
    options = options or QualityOptions()
    finite = _check(series, reference)
    kept = series[finite].astype(np.float64)
    real = reference.series.astype(np.float64)
    return Quality(
        num_samples=len(series),
        num_left_out=int((~finite).sum()),
        num_diverged=int(_diverged(series, reference, options.diverged_above).sum()),
        time=_distance(kept, real, options),
        frequency=_distance(dft(kept), dft(real), options),
        spectral=spectral_distance(kept, real),
        autocorrelation=autocorrelation_distance(kept, real),
    )


def floor(reference: Reference, num_samples: int, options: QualityOptions | None = None) -> Quality:
    """Judge real series in the generator's place: `num_samples` held-out ones, or all if there are fewer."""
    options = options or QualityOptions()
    held_out = reference.held_out
    chosen = np.random.default_rng(options.seed).permutation(len(held_out))[:num_samples]
    return judge(held_out[chosen], reference, options)


def mean_sample(reference: Reference, options: QualityOptions | None = None) -> Quality:
    """Judge a generator that only ever gives the mean of the held-out series."""
    mean = reference.held_out.mean(axis=0, keepdims=True, dtype=np.float64)
    return replace(judge(np.repeat(mean, 2, axis=0), reference, options), num_samples=1)  # two that are one


def paired_error(series: Series, other: Series, reference: Reference) -> float:
    """Median over samples of RMS(series - other), each channel in units of its standard deviation.

    For samples made from the same noise. A pair that is not finite on either side counts as infinite.
    """
    shapes = list(series.shape), list(other.shape)
    require(shapes[0] == shapes[1], "paired samples must have one shape", shapes, "draw both alike")
    finite = np.isfinite(series).all(axis=(1, 2)) & np.isfinite(other).all(axis=(1, 2))
    gap = (series[finite].astype(np.float64) - other[finite].astype(np.float64)) / reference.scale
    errors = np.full(len(series), np.inf)
    errors[finite] = np.sqrt(np.mean(np.square(gap), axis=(1, 2)))
    return float(np.median(errors))


@dataclass(frozen=True)
class Loss:
    """How much larger `sliced` is than for other samples: 0.05 is 5 % larger, below 0 is a gain."""

    value: float
    low: float
    high: float


def loss(samples: Distance, baseline: Distance, level: float = 0.95) -> Loss:
    """The loss of `samples` against `baseline`; both judged alike, and best drawn from the same noise.

    The replicates of the two resample the same indices, so that what a lucky draw of noise does to both falls
    out and the interval is much narrower than the two intervals side by side suggest.
    """
    counts = len(samples.replicates), len(baseline.replicates)
    require(counts[0] == counts[1], "a loss needs distances with as many resamples", counts, "judge both alike")
    low, high = _interval(samples.replicates / baseline.replicates - 1, level)
    return Loss(samples.sliced / baseline.sliced - 1, low, high)


def _interval(replicates: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _distance(points: Series, real: Series, options: QualityOptions) -> Distance:
    x, y = points.reshape(len(points), -1), real.reshape(len(real), -1)
    directions = random_directions(options.num_directions, x.shape[1], options.seed)
    distances = sliced_distances(x, y, directions)
    sliced = mean_of_roots(distances)
    few = directions[: options.interval_directions]
    replicates = resampled_means(x, y, few, options.num_resamples, options.seed)
    replicates += sliced - replicates.mean()
    low, high = _interval(replicates, options.level)
    marginals = marginal_distances(x, y)
    return Distance(
        sliced=sliced,
        sliced_pot=root_of_mean(distances),
        marginal=mean_of_roots(marginals),
        marginal_pot=root_of_mean(marginals),
        low=low,
        high=high,
        replicates=replicates,
    )


def _sizes(series: Series, reference: Reference) -> NDArray[np.float64]:
    """The RMS of each series, [n], channels centred and scaled; not finite where a value is not."""
    scaled = (series.astype(np.float64) - reference.centre) / reference.scale
    return np.asarray(np.sqrt(np.mean(np.square(scaled), axis=(1, 2))))


def _diverged(series: Series, reference: Reference, above: float) -> NDArray[np.bool_]:
    limit = above * _sizes(reference.series, reference).max()
    return np.asarray(~(_sizes(series, reference) <= limit))  # NaN is not below the limit either


def _check(series: Series, reference: Reference) -> NDArray[np.bool_]:
    """Which samples are finite, [n]; ValueError if they cannot be judged."""
    expected = list(reference.series.shape[1:])
    require(
        series.ndim == 3 and list(series.shape[1:]) == expected,
        f"samples must be an array [n, N, C] with [N, C] = {expected} as in the reference",
        list(series.shape),
        "name the reference that the model was trained on",
    )
    require(len(series) >= 2, "a distance needs at least 2 samples", len(series), "draw more")
    finite = np.isfinite(series).all(axis=(1, 2))
    require(
        int(finite.sum()) >= 2,
        f"at least 2 of the {len(series)} samples must be finite",
        int(finite.sum()),
        "this model or sampler diverges: try more steps or a better trained checkpoint",
    )
    return np.asarray(finite)
