"""What samples are worth to a calibration: scores, how they compare, and what a few samples show for sure."""

from dataclasses import replace

import numpy as np
import pytest

from bench.judges import Judges, Score, own_judges
from runtime.sampler import Model
from tests import calibrating
from tests.calibrating import STEPS

correlated = calibrating.correlated


def test_a_score_is_within_the_budget_in_both_domains() -> None:
    bar = Score(1.0, 2.0, 0, 8)
    assert Score(1.1, 2.2, 0, 8).within(bar, bar, 0.1 + 1e-9)
    assert not Score(1.1, 2.3, 0, 8).within(bar, bar, 0.1 + 1e-9)
    assert not Score(1.2, 2.0, 0, 8).within(bar, bar, 0.1)
    assert Score(0.9, 2.5, 0, 8).over(bar) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("diverged", "of_uncached", "is_within"),
    [((0, 32), (0, 8), True), ((1, 1024), (0, 8), False), ((4, 32), (1, 8), True), ((5, 32), (1, 8), False),
     ((0, 1), (8, 8), True), ((1, 8), (2, 32), False)],
)  # fmt: skip
def test_no_larger_share_may_diverge_than_of_the_uncached_samples(
    diverged: tuple[int, int], of_uncached: tuple[int, int], is_within: bool
) -> None:
    bar = Score(1.0, 1.0, 9, 9)  # whose own share says nothing
    assert Score(1.0, 1.0, *diverged).within(bar, Score(1.0, 1.0, *of_uncached), 0.1) is is_within


def test_a_score_counts_what_the_sampler_says_has_diverged(correlated: Model) -> None:
    judges = own_judges(correlated.sample(32, steps=STEPS, cache=None).series, 0)
    drawn = correlated.sample(16, steps=STEPS, cache=None, seed=1)
    assert (judges.score(drawn).num_diverged, judges.score(drawn).num_samples) == (0, 16)
    far = replace(drawn, stats=replace(drawn.stats, num_diverged=3))  # though all are finite
    assert judges.score(far).num_diverged == 3


def test_a_plan_that_smooths_is_no_better_for_its_smaller_distance() -> None:
    """The slacks are 1 dB and 0.03; what exceeds them counts in tens of dB and as it is."""
    bar = Score(1.0, 1.0, 0, 8, spectral=3.0, autocorrelation=0.03)
    assert Score(0.9, 0.9, 0, 8, spectral=3.9, autocorrelation=0.05).within(bar, bar, 0.0)
    assert not Score(0.9, 0.9, 0, 8, spectral=10.8, autocorrelation=0.05).within(bar, bar, 0.02)
    assert not Score(0.9, 0.9, 0, 8, spectral=3.0, autocorrelation=0.19).within(bar, bar, 0.02)
    assert Score(0.9, 0.9, 0, 8, spectral=10.8).over(bar) == pytest.approx(0.68)
    assert Score(0.9, 0.9, 0, 8, autocorrelation=0.19).over(bar) == pytest.approx(0.13)


def test_a_bar_is_raised_by_squared_distances_and_by_what_else_is_worse() -> None:
    bar = Score(3.0, 6.0, 0, 8, spectral=1.0, autocorrelation=0.1)
    other, than = (Score(1.0, 1.0, 0, 8, spectral, 0.2) for spectral in (5.0, 3.0))
    assert bar.raised((16.0, 64.0), other, than) == Score(5.0, 10.0, 0, 8, 3.0, 0.1)
    assert bar.raised((0.0, 0.0), than, other) == bar  # what is better does not lower it


def _normal_judges() -> Judges:
    """A thousand series of independent standard normals."""
    return own_judges(np.random.default_rng(1).normal(size=(1000, 16, 1)).astype(np.float32), 0)


@pytest.mark.parametrize("num_samples", [8, 14, 200])
def test_growth_in_squares_is_of_any_number_of_samples(num_samples: int) -> None:
    """Oracle: scaled by 1.5, W2 along each direction is 0.5 more in the limit, of which a few samples show less."""
    judges, judged = _normal_judges(), np.random.default_rng(2).normal(size=(40, num_samples, 16, 1)).astype(np.float32)
    found = np.array([judges.surely_further(1.5 * series, series) for series in judged])
    assert 0.1 < np.median(found) < 0.25
    assert np.mean(found > 0.25) < 0.1  # two standard errors less than what was found
    assert judges.surely_further(judged[0], 1.5 * judged[0]) == (0.0, 0.0)


@pytest.mark.parametrize("num_samples", [14, 200])
def test_what_is_no_further_is_rarely_said_to_be(num_samples: int) -> None:
    judges, noise = _normal_judges(), np.random.default_rng(3)
    pairs = noise.normal(size=(60, 2, num_samples, 16, 1)).astype(np.float32)
    found = np.array([judges.surely_further(one, other) for one, other in pairs])
    assert np.mean(found.max(axis=1) > 0) < 0.15


def test_samples_that_are_not_finite_show_nothing_for_sure() -> None:
    judges, series = _normal_judges(), np.random.default_rng(4).normal(size=(10, 16, 1)).astype(np.float32)
    broken = np.where(np.arange(10)[:, None, None] < 3, np.float32(np.nan), series)
    assert judges.surely_further(9 * series, broken) == judges.surely_further(9 * broken, series) == (0.0, 0.0)
    assert min(judges.surely_further(9 * series[2:], series[2:])) > 0  # eight are enough
