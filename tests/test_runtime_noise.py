"""Noise depends on (seed, sample, step) alone, and is normal."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import OptionError
from runtime.noise import NoiseStream, Priors, standard_normal, uniform


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


@settings(max_examples=50)
@given(st.integers(0, 2**40), st.lists(st.integers(1, 5), min_size=1, max_size=12), st.booleans())
def test_priors_of_batches_are_step_0_of_their_samples(first: int, sizes: list[int], again: bool) -> None:
    """Whatever their sizes, in turn, and when a batch is asked for again after later ones; ahead by no more than 7."""
    shape, last = (19, 2), first + sum(sizes)
    expected = standard_normal(5, np.arange(first, last), 0, 1, 38).reshape(-1, *shape)
    with mock.patch.object(NoiseStream, "NORMAL_CHUNK", 7 * 38):
        priors = Priors(5, first, last, shape)
        for _ in range(1 + again):
            start = first
            for size in sizes:
                samples = np.arange(start, start + size)
                drawn = NoiseStream(5, samples, shape, 3, priors).prior()
                assert np.array_equal(drawn, expected[start - first : start - first + size])
                start += size


def test_another_seed_is_another_draw_and_a_bad_seed_is_refused() -> None:
    one, two = (standard_normal(seed, np.arange(2), 0, 1, 8) for seed in (0, 1))
    assert not np.any(one == two)
    with pytest.raises(OptionError, match="seed must be an integer from 0"):
        standard_normal(-1, np.arange(1), 0, 1, 8)


@settings(max_examples=50)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 8), st.sampled_from([(5, 3, False), (5, 3, True)]),
       st.integers(0, 2**32))  # fmt: skip
def test_weighted_noise_is_the_sum_of_its_steps(
    i: int, length: int, batch: int, kind: tuple[int, int, bool], seed: int
) -> None:
    """Whatever the chunks; forwards and back again. Oracle: step(i) by step, in float64; 1e-5."""

    class Chunked(NoiseStream):
        NORMAL_CHUNK, WORD_CHUNK = 4 * 15, 9 * 15

    num_tokens, num_channels, per_channel = kind
    j = min(i + length, 25)
    samples = np.arange(batch) + 3
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((j - i, num_tokens, num_channels if per_channel else 1)).astype(np.float32)
    start = rng.standard_normal((batch, num_tokens, num_channels)).astype(np.float32)
    plain = NoiseStream(seed, samples, (num_tokens, num_channels), 25)
    expected = start.astype(np.float64)
    for m in range(i, j):
        expected += weights[m - i].astype(np.float64) * plain.step(m)
    stream = Chunked(seed, samples, (num_tokens, num_channels), 25)
    for _ in range(2):
        out = start.copy()
        stream.add_weighted(i, j, weights, out)
        np.testing.assert_allclose(out, expected, atol=1e-5)
    assert np.array_equal(stream.step(i), plain.step(i))  # nothing was written over


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(0, 500), st.integers(1, 70))
def test_a_uniform_draw_is_of_its_seed_sample_and_step_alone(seed: int, sample: int, step: int, values: int) -> None:
    """In [0, 1), the same in any batch, and another for another seed, sample or step."""
    alone = uniform(seed, np.array([sample]), step, values)[0]
    assert alone.shape == (values,)
    assert alone.dtype == np.float32
    assert alone.min() >= 0.0
    assert alone.max() < 1.0
    together = uniform(seed, np.array([sample + 1, sample, sample + 2]), step, values)
    assert np.array_equal(together[1], alone)
    others = [
        uniform((seed + 1) % 2**64, np.array([sample]), step, 8),
        uniform(seed, np.array([sample]), step + 1, 8),
        uniform(seed, np.array([sample + 1]), step, 8),
    ]
    eight = uniform(seed, np.array([sample]), step, 8)[0]
    for other in others:
        assert not np.array_equal(other[0], eight)
        assert np.mean(other[0] == eight) < 0.5  # eight of 2^24 numbers


def test_uniform_bits_are_those_of_philox_under_the_second_purpose() -> None:
    """Oracle: NumPy's Philox with key (seed, 1), 24 high bits of a word each."""
    seed, sample, step, values = 7, 3, 5, 9
    blocks = 3  # ceil(9 words / 4)
    generator = np.random.Philox(key=seed + 2**64, counter=(sample << 64) + step * blocks - 1)
    expected = (generator.random_raw(values) >> 40) / 2.0**24
    assert np.array_equal(uniform(seed, np.array([sample]), step, values)[0], expected.astype(np.float32))


def test_uniform_draws_are_even_and_independent_of_each_other_and_of_the_noise() -> None:
    """Mean, variance and correlations within five standard errors of 400,000 draws."""
    draws = np.stack([uniform(0, np.arange(200), step, 50) for step in range(40)]).astype(np.float64)
    noise = standard_normal(0, np.arange(200), 0, 40, 50)
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / draws.size)
    centred = (draws - 0.5) * np.sqrt(12)
    assert abs((centred**2).mean() - 1) < 5 * np.sqrt((9 / 5 - 1) / draws.size)
    pairs = [centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1], centred[..., 1:] * centred[..., :-1]]
    for product in (*pairs, centred * noise, centred * (noise**2 - 1) / np.sqrt(2), (centred**2 - 1) * noise):
        assert abs(product.mean()) < 5 / np.sqrt(product.size)
    counts, _ = np.histogram(draws, bins=16, range=(0, 1))
    expected = draws.size / 16
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
