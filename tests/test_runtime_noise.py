"""Noise depends on (seed, sample, step) alone, and is normal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import OptionError
from runtime.noise import NoiseStream, standard_normal


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 70))
def test_a_draw_is_the_same_in_any_batch_and_any_chunk(seed: int, sample: int, step: int, values: int) -> None:
    alone = standard_normal(seed, np.array([sample]), step, 1, values)[0, 0]
    together = standard_normal(seed, np.array([sample + 1, sample]), max(0, step - 3), 7, values)
    assert np.array_equal(alone, together[min(step, 3), 1])


def test_bits_are_those_of_philox_at_the_documented_counter() -> None:
    """Oracle: NumPy's Philox set to the counter of the docstring, and Box-Muller in float64."""
    seed, sample, step, values = 7, 3, 5, 11
    blocks = 2  # ceil(11 / 8)
    generator = np.random.Philox(key=seed, counter=(sample << 64) + step * blocks - 1)
    words = generator.random_raw(4 * blocks)
    radius = np.sqrt(-2 * np.log(((words >> 32).astype(np.float64) + 0.5) / 2**32))
    angle = 2 * np.pi * (words & 0xFFFFFFFF).astype(np.float64) / 2**32
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:values]
    found = standard_normal(seed, np.array([sample]), step, 1, values)[0, 0]
    np.testing.assert_allclose(found, expected, atol=5e-6)  # float32 angles up to 2 pi


def test_draws_are_standard_normal_and_independent_across_samples_and_steps() -> None:
    """Tolerances: five standard errors of 400,000 draws."""
    draws = standard_normal(0, np.arange(200), 0, 40, 50).astype(np.float64)
    count = draws.size
    assert abs(draws.mean()) < 5 / np.sqrt(count)
    assert abs(draws.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((draws**4).mean() - 3) < 5 * np.sqrt(96 / count)
    for shifted in (draws[1:] * draws[:-1], draws[:, 1:] * draws[:, :-1], draws[..., 1:] * draws[..., :-1]):
        assert abs(shifted.mean()) < 5 / np.sqrt(shifted.size)


@pytest.mark.parametrize("batch", [1, 3, 200])
def test_a_stream_gives_what_standard_normal_gives(batch: int) -> None:
    """Chunks must not show: forwards, and again from the start."""
    samples, steps = np.arange(batch) + 5, 30
    stream = NoiseStream(1, samples, (19, 2), steps)
    expected = standard_normal(1, samples, 0, steps + 1, 38).reshape(steps + 1, batch, 19, 2)
    assert np.array_equal(stream.prior(), expected[0])
    for i in [*range(steps), 0, steps - 1]:
        assert np.array_equal(stream.step(i), expected[i + 1])


def test_another_seed_is_another_draw_and_a_bad_seed_is_refused() -> None:
    one, two = (standard_normal(seed, np.arange(2), 0, 1, 8) for seed in (0, 1))
    assert not np.any(one == two)
    with pytest.raises(OptionError, match="seed must be an integer from 0"):
        standard_normal(-1, np.arange(1), 0, 1, 8)
