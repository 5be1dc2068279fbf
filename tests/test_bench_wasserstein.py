"""Distances: exact against the general solver of POT, true to closed forms, blind to what must not matter."""

import numpy as np
import ot
import pytest
from numpy.testing import assert_allclose

from bench.wasserstein import (
    marginal_distances,
    mean_of_roots,
    project,
    quantile_coupling,
    random_directions,
    resampled_means,
    resamples,
    root_of_mean,
    sliced_distances,
)

ROUNDING = 1e-12  # relative; both sides work in double precision


def normal(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (30, 30), (30, 12), (31, 12), (7, 100)])
def test_each_direction_equals_the_exact_transport_of_pot(n: int, m: int) -> None:
    x, y, directions = normal(n, 5), normal(m, 5, 1) + 0.3, random_directions(70, 5, 2)
    oracle = [np.sqrt(ot.emd2_1d(a, b)) for a, b in zip(project(x, directions), project(y, directions), strict=True)]
    assert_allclose(sliced_distances(x, y, directions), oracle, rtol=ROUNDING)


def test_ties_do_not_break_the_coupling() -> None:
    x, y = np.round(normal(40, 3)), np.round(normal(25, 3, 1))
    oracle = [np.sqrt(ot.emd2_1d(a, b)) for a, b in zip(x.T, y.T, strict=True)]
    assert_allclose(marginal_distances(x, y), oracle, rtol=ROUNDING)


def test_the_coupling_moves_all_mass_and_keeps_both_marginals() -> None:
    coupling = quantile_coupling(12, 30)
    assert len(coupling.mass) == 12 + 30 - 6  # cuts that fall together: gcd(12, 30)
    assert_allclose(np.bincount(coupling.first, coupling.mass), 1 / 12, rtol=ROUNDING)
    assert_allclose(np.bincount(coupling.second, coupling.mass), 1 / 30, rtol=ROUNDING)


def test_the_two_published_definitions_differ_as_named() -> None:
    x, y, directions = normal(60, 4), normal(50, 4, 1) * 2, random_directions(40, 4, 2)
    distances = sliced_distances(x, y, directions)
    assert_allclose(
        root_of_mean(distances), ot.sliced_wasserstein_distance(x, y, projections=directions.T), rtol=ROUNDING
    )
    roots = [np.sqrt(ot.emd2_1d(x @ d, y @ d)) for d in directions]
    assert_allclose(mean_of_roots(distances), np.mean(roots), rtol=ROUNDING)
    assert mean_of_roots(distances) < root_of_mean(distances)


def test_marginal_distances_are_sliced_ones_along_the_axes() -> None:
    x, y, axes = normal(60, 4), normal(50, 4, 1) * [1, 2, 3, 4], np.eye(4)
    assert_allclose(marginal_distances(x, y), sliced_distances(x, y, axes), rtol=ROUNDING)
    assert_allclose(
        root_of_mean(marginal_distances(x, y)), ot.sliced_wasserstein_distance(x, y, projections=axes), rtol=ROUNDING
    )


def test_a_shift_moves_every_direction_by_its_projection() -> None:
    x, shift, directions = normal(100, 6), np.arange(6.0), random_directions(50, 6, 1)
    assert_allclose(sliced_distances(x, x + shift, directions), np.abs(directions @ shift), rtol=1e-9)


def test_shifted_and_scaled_gaussians_come_near_the_closed_form() -> None:
    # W2(N(0, 1), N(m, s^2))^2 = m^2 + (s - 1)^2; 20,000 points leave about 1 % of sampling error.
    x, y = normal(20_000, 1), 0.5 + 2.0 * normal(20_000, 1, 1)
    assert_allclose(marginal_distances(x, y), np.hypot(0.5, 1.0), rtol=0.03)


def test_a_rotation_of_data_and_directions_changes_nothing() -> None:
    x, y, directions = normal(80, 5), normal(70, 5, 1) * 1.5, random_directions(30, 5, 2)
    rotation, _ = np.linalg.qr(normal(5, 5, 3))
    turned = sliced_distances(x @ rotation.T, y @ rotation.T, directions @ rotation.T)
    assert_allclose(turned, sliced_distances(x, y, directions), rtol=1e-9)


def test_order_of_points_is_irrelevant_and_the_distance_to_oneself_is_zero() -> None:
    x, y, directions = normal(50, 3), normal(40, 3, 1), random_directions(10, 3, 2)
    shuffled = np.random.default_rng(5).permutation(x)
    assert_allclose(sliced_distances(shuffled, y, directions), sliced_distances(x, y, directions), rtol=ROUNDING)
    assert_allclose(sliced_distances(x, x, directions), 0.0, atol=1e-12)
    assert_allclose(sliced_distances(x, y, directions), sliced_distances(y, x, directions), rtol=ROUNDING)


def test_directions_are_unit_vectors_fixed_by_the_seed() -> None:
    directions = random_directions(20, 7, 3)
    assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=ROUNDING)
    assert np.array_equal(directions, random_directions(20, 7, 3))
    assert not np.array_equal(directions, random_directions(20, 7, 4))


def test_data_drawn_with_the_same_seed_are_not_the_directions() -> None:
    # Seen along itself, a point of 50 dimensions stands out by 7 standard deviations.
    x, directions = normal(200, 50, seed=0), random_directions(20, 50, seed=0)
    assert np.abs(x @ directions.T).max() < 5.5


def test_replicates_are_the_distances_of_resampled_points() -> None:
    x, y, directions = normal(30, 4), normal(20, 4, 1), random_directions(70, 4, 2)
    oracle = [mean_of_roots(sliced_distances(x[draw], y, directions)) for draw in resamples(30, 5, seed=9)]
    assert_allclose(resampled_means(x, y, directions, 5, seed=9), oracle, rtol=ROUNDING)
