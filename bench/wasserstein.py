"""Wasserstein-2 distances between two clouds of points, one direction at a time, and exact.

In one dimension the optimal transport between n and m equal weights pairs quantiles. Which ranks meet, and
with how much mass, depends on n and m alone, so that it is worked out once in integers
(`quantile_coupling`) and shared by all directions: sorting is all that is left, and unequal counts cost no
accuracy. The tests hold this to the general solver of POT (`ot.emd2_1d`).

"Sliced Wasserstein" names two numbers in the literature, and both are here. FourierDiffusion takes the root
of `ot.emd2_1d` in each direction and reports the mean over directions, and the largest (`fdiff.utils.wasserstein`,
`fdiff.sampling.metrics`; nothing is normalised there by default): `mean_of_roots`. `ot.sliced_wasserstein_distance`
of POT is the root of the mean of the squares: `root_of_mean`, never smaller. The marginal distance is upstream's, with
the coordinate axes as directions; POT names none, so `root_of_mean` of it is its definition taken over there.

    directions = random_directions(1000, x.shape[1], seed=0)
    mean_of_roots(sliced_distances(x, y, directions))            # x [n, dim], y [m, dim]
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# First words of the seeds here, so that data drawn by `default_rng(0)` are not the directions they are seen along.
_DIRECTIONS, _RESAMPLES = 0xD1BEC7, 0x4E5A3B
_BLOCK = 64  # directions that are sorted at once: 5 MB for 10,000 points


@dataclass(frozen=True)
class Coupling:
    """Which ranks of two sorted samples meet, and the mass of each meeting; [K] each, with K < n + m."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    mass: NDArray[np.float64]


def quantile_coupling(n: int, m: int) -> Coupling:
    """The optimal coupling of n with m sorted points of equal weight."""
    unit = n * m  # all cumulated weights are whole multiples of 1 / (n m), so nothing is rounded
    cuts = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    starts = np.concatenate([[0], cuts[:-1]])
    return Coupling(starts // m, starts // n, (cuts - starts) / unit)


def random_directions(num_directions: int, dim: int, seed: int) -> NDArray[np.float64]:
    """Unit vectors [num_directions, dim], uniform on the sphere."""
    vectors = np.random.default_rng((_DIRECTIONS, seed)).standard_normal((num_directions, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def project(points: Array, directions: Array) -> NDArray[np.float64]:
    """Points [n, dim] seen along directions [D, dim]: [D, n], in double precision."""
    return np.asarray(directions.astype(np.float64) @ points.astype(np.float64).T)


def distances_of_rows(first: Array, second: Array) -> NDArray[np.float64]:
    """W2 between each row of `first` [D, n] and the same row of `second` [D, m], both sorted: [D]."""
    coupling = quantile_coupling(first.shape[1], second.shape[1])
    gap = first[:, coupling.first] - second[:, coupling.second]  # [D, K]
    return np.asarray(np.sqrt(np.square(gap) @ coupling.mass))


def _blocks(num_rows: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, num_rows, _BLOCK)]


def sliced_distances(x: Array, y: Array, directions: Array) -> NDArray[np.float64]:
    """W2 between x [n, dim] and y [m, dim] along each of directions [D, dim]: [D]."""
    parts = [
        distances_of_rows(np.sort(project(x, directions[rows])), np.sort(project(y, directions[rows])))
        for rows in _blocks(len(directions))
    ]
    return np.concatenate(parts)


def marginal_distances(x: Array, y: Array) -> NDArray[np.float64]:
    """W2 between x [n, dim] and y [m, dim] in each coordinate: [dim]."""
    columns, others = x.T.astype(np.float64), y.T.astype(np.float64)
    parts = [distances_of_rows(np.sort(columns[rows]), np.sort(others[rows])) for rows in _blocks(len(columns))]
    return np.concatenate(parts)


def mean_of_roots(distances: Array) -> float:
    """Sliced W2 as FourierDiffusion defines it: the mean over directions of W2."""
    return float(np.mean(distances))


def root_of_mean(distances: Array) -> float:
    """Sliced W2 as POT defines it: the root of the mean over directions of W2 squared."""
    return float(np.sqrt(np.mean(np.square(distances))))


def resamples(n: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    """Indices of n points drawn with replacement, [num_resamples, n]; fixed by the arguments."""
    return np.random.default_rng((_RESAMPLES, seed)).integers(n, size=(num_resamples, n))


def resampled_means(x: Array, y: Array, directions: Array, num_resamples: int, seed: int) -> NDArray[np.float64]:
    """`mean_of_roots` for each of `num_resamples` draws of n points of x [n, dim] with replacement: [R].

    The draws depend on the seed and on n alone: two sets of samples made from the same noise are thus
    resampled together, and their replicates may be subtracted one from the other.
    """
    draws = resamples(len(x), num_resamples, seed)
    totals = np.zeros(num_resamples)
    for rows in _blocks(len(directions)):
        seen, others = project(x, directions[rows]), np.sort(project(y, directions[rows]))
        totals += [float(distances_of_rows(np.sort(seen[:, draw]), others).sum()) for draw in draws]
    return totals / len(directions)
