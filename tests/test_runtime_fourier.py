"""The token layout of the spectrum: invertible, energy-preserving, with the meaning that policies rely on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.fourier import dft, frequencies, idft, noise_shape


@given(st.integers(1, 40), st.integers(1, 3))
def test_the_inverse_gives_the_series_back(num_tokens: int, num_channels: int) -> None:
    series = np.random.default_rng(num_tokens).standard_normal((2, num_tokens, num_channels))
    np.testing.assert_allclose(idft(dft(series)), series, atol=1e-12)  # float64 rounding


@given(st.integers(1, 40))
def test_the_energy_of_a_series_is_that_of_its_tokens_over_G(num_tokens: int) -> None:
    series = np.random.default_rng(num_tokens).standard_normal((2, num_tokens, 1))
    energy = np.sum((dft(series)[:, :, 0] / noise_shape(num_tokens)) ** 2, axis=1)
    np.testing.assert_allclose(energy, np.sum(series[:, :, 0] ** 2, axis=1))


@given(st.integers(1, 40))
def test_a_cosine_lights_exactly_the_tokens_of_its_frequency(num_tokens: int) -> None:
    f = frequencies(num_tokens)
    for frequency in range(num_tokens // 2 + 1):
        wave = np.cos(2 * np.pi * frequency * np.arange(num_tokens) / num_tokens + 0.3)[None, :, None]
        lit = np.abs(dft(wave)[0, :, 0]) > 1e-9
        assert set(f[lit]) <= {frequency}
        assert lit.any()


@pytest.mark.parametrize("num_tokens", [9, 10])
def test_white_noise_has_the_noise_shape(num_tokens: int) -> None:
    """Oracle: the exact covariance of the transform of white noise, basis basis^T."""
    basis = dft(np.eye(num_tokens)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(basis.T @ basis, np.diag(noise_shape(num_tokens) ** 2), atol=1e-12)


def test_real_only_frequencies_have_one_token_and_all_others_two() -> None:
    assert frequencies(6).tolist() == [0, 1, 2, 3, 1, 2]
    assert frequencies(7).tolist() == [0, 1, 2, 3, 1, 2, 3]
    assert noise_shape(6)[[0, 3]].tolist() == [1.0, 1.0]


def test_float32_stays_float32() -> None:
    series = np.ones((1, 5, 1), np.float32)
    assert dft(series).dtype == idft(series).dtype == np.float32
