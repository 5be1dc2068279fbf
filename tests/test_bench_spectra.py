"""Spectra and autocorrelations: exact against sums written out, true to closed forms, robust where nothing is there."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bench.spectra import (
    autocorrelation,
    autocorrelation_distance,
    median_spectrum,
    spectral_density,
    spectral_distance,
)
from runtime.fourier import dft, idft

ROUNDING = 1e-12  # relative; both sides work in double precision


def noise(n: int, num_steps: int = 24, num_channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, num_steps, num_channels))


def autoregression(n: int, num_steps: int, phi: float) -> np.ndarray:
    """Stationary AR(1) series [n, N, 1] of variance 1."""
    x = noise(n, num_steps, 1)
    x[:, 1:] *= np.sqrt(1 - phi**2)
    for step in range(1, num_steps):
        x[:, step] += phi * x[:, step - 1]
    return x


@pytest.mark.parametrize("num_steps", [23, 24])
def test_the_energies_of_all_frequencies_are_the_energy_of_the_series(num_steps: int) -> None:
    series = noise(7, num_steps)
    assert_allclose(spectral_density(series).sum(axis=1), np.square(series).sum(axis=(1, 2)), rtol=ROUNDING)
    alone = [np.median(spectral_density(series[:, :, [c]]), axis=0) for c in range(2)]
    assert_allclose(median_spectrum(series), np.transpose(alone), rtol=ROUNDING)


def test_a_wave_has_its_energy_at_its_frequency() -> None:
    wave = np.cos(2 * np.pi * 5 * np.arange(24) / 24 + 0.3)[None, :, None]
    assert_allclose(spectral_density(wave)[0], np.where(np.arange(13) == 5, 12.0, 0.0), atol=1e-12)


def test_more_series_than_a_block_are_no_other_sum() -> None:
    series = noise(1100, 10)
    assert_allclose(spectral_density(series)[600:], spectral_density(series[600:]), rtol=ROUNDING)
    parts = [autocorrelation(part) * len(part) for part in (series[:300], series[300:])]
    assert_allclose(autocorrelation(series), sum(parts) / 1100, rtol=ROUNDING)


def test_equal_sets_have_no_distance_in_any_order() -> None:
    series = noise(50)
    shuffled = np.random.default_rng(1).permutation(series)
    assert spectral_distance(series, series) == autocorrelation_distance(series, series) == 0.0
    assert spectral_distance(shuffled, series) < 1e-12
    assert autocorrelation_distance(shuffled, series) < 1e-12


def test_the_spectral_distance_is_the_rms_of_decibels() -> None:
    real = noise(40)
    assert_allclose(spectral_distance(2 * real, real), 20 * np.log10(2), rtol=1e-9)
    tokens = dft(real)
    tokens[:, 3, 1] *= 10  # the real part of frequency 3 of one channel
    tokens[:, 13 + 2, 1] *= 10  # its imaginary part: 20 dB at 1 of 13 frequencies in 1 of 2 channels
    assert_allclose(spectral_distance(idft(tokens), real), 20 / np.sqrt(26), rtol=1e-9)


def test_a_few_diverged_series_do_not_hide_the_rest() -> None:
    real, samples = noise(400), noise(400, seed=1)
    alone = spectral_distance(samples, real)
    samples[:4] *= 1e6
    assert spectral_distance(samples, real) < 1.2 * alone


def test_neither_distance_depends_on_the_unit_of_a_channel() -> None:
    real, samples, unit = noise(40), noise(30, seed=1) * 1.3, np.array([1e-6, 1e6])
    assert_allclose(spectral_distance(samples * unit, real * unit), spectral_distance(samples, real), rtol=1e-9)
    assert_allclose(
        autocorrelation_distance(samples * unit, real * unit), autocorrelation_distance(samples, real), rtol=1e-9
    )


def test_white_noise_and_red_noise_are_told_apart_by_both() -> None:
    real, alike, other = autoregression(300, 48, 0.8), autoregression(600, 48, 0.8)[300:], noise(300, 48, 1, seed=3)
    assert spectral_distance(other, real) > 5 * spectral_distance(alike, real)
    assert autocorrelation_distance(other, real) > 5 * autocorrelation_distance(alike, real)


def test_the_autocorrelation_is_the_textbook_sum() -> None:
    series = noise(5, 11)
    centred = series - series.mean(axis=1, keepdims=True)
    oracle = [
        np.mean((centred[:, lag:] * centred[:, : 11 - lag]).sum(axis=1) / np.square(centred).sum(axis=1), axis=0)
        for lag in range(6)
    ]
    assert_allclose(autocorrelation(series), oracle, rtol=1e-9)


def test_the_autocorrelation_of_an_autoregression_is_its_powers() -> None:
    # The estimate is biased by O(1 / N): 1,000 steps of 100 series leave 0.01.
    found = autocorrelation(autoregression(100, 1000, 0.7))[:10, 0]
    assert_allclose(found, 0.7 ** np.arange(10), atol=0.02)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", [0.0, 0.1, -3e7])
def test_a_constant_channel_of_the_real_series_is_left_out(level: float, dtype: type) -> None:
    real, samples = noise(30, 187).astype(dtype), noise(30, 187, seed=1).astype(dtype)
    alone = [measure(samples[:, :, :1], real[:, :, :1]) for measure in (spectral_distance, autocorrelation_distance)]
    real[:, :, 1] = samples[:, :, 1] = level
    samples[3, 5, 1] += dtype(0.01)  # would be far off, were it looked at
    assert_allclose(autocorrelation_distance(samples, real), alone[1], rtol=1e-6)
    num_places = 94 + (level != 0)  # a level is energy at frequency 0, and as good as equal
    assert_allclose(spectral_distance(samples, real), alone[0] * np.sqrt(94 / num_places), rtol=1e-5)


def test_samples_without_energy_are_far_away_and_not_infinitely_so() -> None:
    real = noise(30)
    assert 100 < spectral_distance(np.zeros_like(real), real) < 200
    assert 0 < autocorrelation_distance(np.zeros_like(real), real) < 1


def test_where_real_series_say_nothing_there_is_no_number() -> None:
    samples = noise(30)
    assert np.isnan(spectral_distance(samples, np.zeros_like(samples)))
    assert np.isnan(autocorrelation_distance(samples, np.ones_like(samples)))
    assert np.isnan(autocorrelation_distance(samples[:, :1], samples[:, :1]))


@pytest.mark.parametrize("measure", [spectral_distance, autocorrelation_distance])
@pytest.mark.parametrize(
    ("samples", "real", "message"),
    [
        (noise(5, 23), noise(5), r"the same N and C, found \(\[23, 2\], \[24, 2\]\); name the reference"),
        (noise(5, 24, 1), noise(5), r"found \(\[24, 1\], \[24, 2\]\)"),
        (noise(5)[:, :, 0], noise(5), r"samples must be an array \[n, N, C\] .* found \[5, 24\]"),
        (noise(0), noise(5), r"samples .* one series or more, found \[0, 24, 2\]; give more"),
        (noise(5), noise(0), r"real series .* one series or more, found \[0, 24, 2\]; give more"),
    ],
)
def test_sets_that_cannot_be_compared_are_an_error(measure, samples, real, message: str) -> None:  # type: ignore
    with pytest.raises(ValueError, match=message):
        measure(samples, real)
