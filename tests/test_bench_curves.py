"""Curves say what they are called: medians, means and shares by frequency, lag and step, fit for a record."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tiny import Gaussian, gaussian

from bench.curves import (
    autocorrelation_curves,
    cache_curves,
    paired_error_by_step,
    recomputed_of,
    series_curves,
    shrunk,
    spectrum_curves,
)
from bench.records import Chart
from bench.spectra import autocorrelation, spectral_density
from runtime.cache.options import E2CRF
from runtime.errors import OptionError
from runtime.sampler import StepInfo
from runtime.sde import VP

DIGITS = 6e-4  # relative: four significant ones
STEPS, EVERY = 40, E2CRF(R=5, alpha_prior=0.2)


@pytest.fixture(scope="module")
def known() -> Gaussian:
    return gaussian(12, VP(), "frequency")


@pytest.fixture(scope="module")
def series() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 12, 2)).cumsum(axis=1)


def test_a_spectrum_is_the_median_with_its_band(series: np.ndarray) -> None:
    real, cached = spectrum_curves({"real": series, "cached": 2 * series})
    density = spectral_density(series)
    assert (real.chart, real.name, cached.name) == (Chart.SPECTRUM, "real", "cached")
    assert real.x == tuple(range(7))
    for found, share in ((real.low, 0.1), (real.y, 0.5), (real.high, 0.9)):
        assert_allclose(found, np.quantile(density, share, axis=0), rtol=DIGITS)
    assert_allclose(cached.y, 4 * np.median(density, axis=0), rtol=DIGITS)


def test_autocorrelation_is_the_mean_over_channels(series: np.ndarray) -> None:
    (found,) = autocorrelation_curves({"real": series})
    assert found.y[0] == 1.0
    assert_allclose(found.y, autocorrelation(series).mean(axis=1), rtol=DIGITS, atol=1e-6)


def test_series_that_are_not_finite_are_left_out_of_statistics_and_open_in_lines(series: np.ndarray) -> None:
    broken = series.copy()
    broken[1, 3, 0] = np.inf
    for curves in (spectrum_curves, autocorrelation_curves):
        assert curves({"a": broken}) == curves({"a": np.delete(series, 1, axis=0)})
    first, second = series_curves({"uncached": broken}, num=2)
    assert (first.name, second.name) == ("uncached 1", "uncached 2")
    assert_allclose(first.y, series[0, :, 0], rtol=DIGITS)
    assert second.y[3] is None
    with pytest.raises(ValueError, match="a curve of broken needs a series that is finite, found 'none of 40'; draw"):
        spectrum_curves({"broken": np.full_like(series, np.nan)})


def test_equal_caches_take_equal_steps_and_another_one_does_not(known: Gaussian) -> None:
    same = paired_error_by_step(known.model, E2CRF(policy="never", alpha_prior=0.0), n=3, steps=STEPS)
    assert same.y == (0.0,) * STEPS
    found = paired_error_by_step(known.model, EVERY, n=3, steps=STEPS)
    assert (found.chart, found.name, found.x) == (Chart.PAIRED_ERROR, "E2-CRF", tuple(range(STEPS)))
    assert all(value > 0 for value in found.y)


def test_the_paired_error_is_the_median_over_samples_at_each_step(known: Gaussian) -> None:
    latents: list[np.ndarray] = []

    def keep(step: StepInfo) -> None:
        latents.append(step.z.copy())

    for cache in (E2CRF(policy="never"), EVERY):
        known.model.sample(5, steps=STEPS, solver="ddim", seed=3, cache=cache, on_step=keep)
    one, other = np.split(np.array(latents, np.float64), 2)
    oracle = np.median(np.sqrt(np.square(one - other).mean(axis=(2, 3))), axis=1)
    found = paired_error_by_step(
        known.model, EVERY, baseline=E2CRF(policy="never"), n=5, steps=STEPS, solver="ddim", seed=3, name="every 5"
    )
    assert_allclose(found.y, oracle, rtol=DIGITS, atol=1e-12)
    assert found.name == "every 5"
    assert found.y[0] == 0.0  # the prior phase is the same


@pytest.mark.parametrize("n", [0, 17])
def test_all_steps_are_kept_of_few_samples_only(known: Gaussian, n: int) -> None:
    with pytest.raises(OptionError, match=f"n must lie in 1 .. 16, since all their steps are kept, found {n}; 8 is"):
        paired_error_by_step(known.model, EVERY, n=n, steps=STEPS)


def test_the_hit_rate_is_one_where_nothing_was_recomputed(known: Gaussian) -> None:
    stats = known.model.sample(4, steps=STEPS, cache=EVERY).stats
    (found,) = cache_curves(stats, "E2-CRF")  # an interval looks at no features: no intensity
    assert found.chart == Chart.HIT_RATE
    assert set(found.y) == {0.0, 1.0}
    assert np.mean(found.y) == pytest.approx(stats.hit_rate)


def test_intensity_is_drawn_where_it_was_measured(known: Gaussian) -> None:
    stats = known.model.sample(4, steps=STEPS, cache=EVERY).stats
    stats.intensity[[7, 9]] = 0.25, 0.5
    _, found = cache_curves(stats, "E2-CRF")
    assert (found.chart, found.x, found.y) == (Chart.INTENSITY, (7.0, 9.0), (0.25, 0.5))


def test_a_heatmap_is_shrunk_without_losing_a_step(known: Gaussian) -> None:
    stats = known.model.sample(2, steps=300, cache=E2CRF(R=100)).stats
    found = recomputed_of(stats)
    assert (found.num_steps, len(found.share), len(found.share[0])) == (300, 7, 125)
    refreshes = int((stats.recomputed.sum(axis=1) > 0).sum())
    assert [sum(row) for row in found.share] == [refreshes] * 7
    whole = known.model.sample(2, steps=STEPS, cache=EVERY).stats
    assert np.array_equal(recomputed_of(whole).share, whole.heatmap())


def test_a_stretch_of_a_heatmap_is_the_largest_of_its_steps() -> None:
    heatmap = np.random.default_rng(0).random((3, 12))
    assert np.array_equal(shrunk(heatmap, 4), heatmap.reshape(3, 4, 3).max(axis=2))
    assert np.array_equal(shrunk(heatmap, 12), heatmap)


def test_curves_are_plain_json(known: Gaussian, series: np.ndarray) -> None:
    stats = known.model.sample(2, steps=STEPS, cache=EVERY).stats
    curves = [*spectrum_curves({"a": series}), *series_curves({"a": series}), *cache_curves(stats, "b")]
    written = json.dumps([*map(asdict, curves), asdict(recomputed_of(stats))], allow_nan=False)
    assert json.loads(written)[0]["chart"] == "energy by frequency"
