"""Judging samples: floors, intervals, diverged samples, paired error and loss mean what they say."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bench.quality import Quality, QualityOptions, floor, judge, loss, mean_sample, paired_error
from bench.reference import Part, Reference, read_reference, reference_from_series
from bench.spectra import autocorrelation_distance, spectral_distance
from bench.wasserstein import marginal_distances, random_directions, sliced_distances
from runtime.fourier import dft, frequencies

QUICK = QualityOptions(num_directions=100, num_resamples=60, interval_directions=40)


def waves(n: int, seed: int, num_channels: int = 1) -> np.ndarray:
    """Smooth random series [n, 24, C]: three random harmonics and a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(24)[None, :, None] / 24
    parts = [
        generator.standard_normal((n, 1, num_channels)) * np.cos(2 * np.pi * (k * time + generator.random((n, 1, 1))))
        for k in (1, 2, 3)
    ]
    return (sum(parts) + 0.1 * generator.standard_normal((n, 24, num_channels))).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_from_series(waves(800, 0), seed=1)


def numbers(quality: Quality) -> list[float]:
    return [
        getattr(domain, name)
        for domain in (quality.time, quality.frequency)
        for name in ("sliced", "sliced_pot", "marginal", "marginal_pot", "low", "high")
    ] + [quality.spectral, quality.autocorrelation]


def test_real_series_score_between_themselves_and_the_mean_sample(reference: Reference) -> None:
    real, mean = floor(reference, 400, QUICK), mean_sample(reference, QUICK)
    wrong = judge(reference.held_out * 1.5, reference, QUICK)
    for domain in ("time", "frequency"):
        distances = [getattr(quality, domain).sliced for quality in (real, wrong, mean)]
        assert 0 < distances[0] < distances[1] < distances[2]


def test_every_distance_is_there_in_both_definitions(reference: Reference) -> None:
    samples = waves(200, 3) * 1.2
    quality = judge(samples, reference, QUICK)
    for found, transform in ((quality.time, lambda x: x), (quality.frequency, dft)):
        x, y = (transform(v.astype(np.float64))[:, :, 0] for v in (samples, reference.series))
        sliced, marginal = sliced_distances(x, y, random_directions(100, 24, 0)), marginal_distances(x, y)
        assert_allclose([found.sliced, found.marginal], [sliced.mean(), marginal.mean()], rtol=1e-12)
        rms = [np.sqrt(np.mean(distances**2)) for distances in (sliced, marginal)]
        assert_allclose([found.sliced_pot, found.marginal_pot], rms, rtol=1e-12)


def test_spectra_and_autocorrelations_are_compared_on_finite_samples(reference: Reference) -> None:
    samples = waves(60, 3)
    quality = judge(np.concatenate([samples, np.full((1, 24, 1), np.nan, np.float32)]), reference, QUICK)
    assert_allclose(quality.spectral, spectral_distance(samples, reference.series), rtol=1e-12)
    assert_allclose(quality.autocorrelation, autocorrelation_distance(samples, reference.series), rtol=1e-12)


def test_white_noise_of_the_right_size_is_told_by_its_spectrum_and_autocorrelation(reference: Reference) -> None:
    noise = reference.scale * np.random.default_rng(4).standard_normal((400, 24, 1))
    real, wrong = floor(reference, 400, QUICK), judge(noise, reference, QUICK)
    assert wrong.spectral > 20 * real.spectral
    assert wrong.autocorrelation > 20 * real.autocorrelation


def test_the_mean_sample_is_one_point_against_all(reference: Reference) -> None:
    assert mean_sample(reference, QUICK).num_samples == 1
    mean = reference.held_out.mean(axis=0, dtype=np.float64).reshape(1, -1)
    directions = random_directions(100, 24, 0)
    real = reference.series.reshape(len(reference.series), -1)
    assert_allclose(
        mean_sample(reference, QUICK).time.sliced, sliced_distances(mean, real, directions).mean(), rtol=1e-12
    )


def test_the_floor_compares_as_many_series_as_there_are_samples(reference: Reference) -> None:
    few, many = floor(reference, 50, QUICK), floor(reference, 10_000, QUICK)
    assert (few.num_samples, many.num_samples) == (50, 400)
    assert few.time.sliced > many.time.sliced
    assert numbers(floor(reference, 50, QUICK)) == numbers(few)


def test_the_frequency_domain_is_the_time_domain_seen_along_other_directions(reference: Reference) -> None:
    # dft is linear, u = x A, so u . d = x . (A d): rotating and stretching directions gives the same numbers.
    matrix = dft(np.eye(24)[:, :, None])[:, :, 0]
    directions = random_directions(100, 24, 0)
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (reference.held_out, reference.series))
    oracle = sliced_distances(x, y, directions @ matrix.T).mean()
    assert_allclose(judge(reference.held_out, reference, QUICK).frequency.sliced, oracle, rtol=1e-9)


def test_tokens_weighted_by_their_mirror_images_are_a_rotation_of_the_series() -> None:
    matrix = dft(np.eye(24)[:, :, None])[:, :, 0]
    twice = np.where(np.bincount(frequencies(24))[frequencies(24)] == 1, 1.0, np.sqrt(2.0))
    rotation = matrix * twice
    assert_allclose(rotation @ rotation.T, np.eye(24), atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_the_interval_covers_the_mean_over_fresh_samples(shift: float) -> None:
    # Nominal 90 %: of 60 independent sets, fewer than 44 covered has probability below 1e-4.
    options = QualityOptions(num_directions=20, num_resamples=80, interval_directions=20, level=0.9)
    reference = Reference(waves(150, 1), waves(150, 2))
    judged = [judge(waves(100, 100 + i) + shift, reference, options).time for i in range(60)]
    mean = np.mean([distance.sliced for distance in judged])
    assert sum(distance.low <= mean <= distance.high for distance in judged) >= 44
    assert all(distance.low <= distance.sliced <= distance.high for distance in judged)


def test_diverged_samples_are_counted_and_stay_in(reference: Reference) -> None:
    good = waves(60, 3)
    wild = good.copy()
    wild[7] = 1e6
    plain, spoilt = judge(good, reference, QUICK), judge(wild, reference, QUICK)
    assert (plain.num_diverged, spoilt.num_diverged, spoilt.num_left_out) == (0, 1, 0)
    assert spoilt.time.sliced > 1000 * plain.time.sliced


def test_samples_that_are_not_finite_are_left_out_and_reported(reference: Reference) -> None:
    samples = waves(60, 3)
    samples[[2, 5], 4] = [[np.nan], [np.inf]]
    quality = judge(samples, reference, QUICK)
    assert (quality.num_samples, quality.num_diverged, quality.num_left_out) == (60, 2, 2)
    kept = judge(np.delete(samples, [2, 5], axis=0), reference, QUICK)
    assert numbers(quality) == numbers(kept)


def test_a_small_channel_that_diverges_is_seen_beside_a_large_one() -> None:
    unit = np.array([1000.0, 1.0])
    reference = reference_from_series(waves(100, 0, 2) * unit)
    samples = waves(20, 3, 2) * unit
    samples[4, :, 1] = 200.0  # far below the first channel, 200 of its own standard deviations
    assert judge(samples, reference, QUICK).num_diverged == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((5, 23, 1)), r"\[24, 1\] as in the reference, found \[5, 23, 1\]; name the reference"),
        (np.zeros((5, 24, 2)), r"found \[5, 24, 2\]"),
        (np.zeros((5, 24)), r"found \[5, 24\]"),
        (np.zeros((1, 24, 1)), r"at least 2 samples, found 1; draw more"),
        (np.full((5, 24, 1), np.nan), r"at least 2 of the 5 samples must be finite, found 0; this model"),
    ],
)
def test_samples_that_cannot_be_judged_are_an_error(reference: Reference, samples: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(samples, reference, QUICK)


def test_paired_error_is_in_standard_deviations_of_each_channel() -> None:
    unit = np.array([100.0, 1.0])
    reference = reference_from_series(waves(200, 0, 2) * unit)
    samples = waves(9, 3, 2) * unit
    assert_allclose(paired_error(samples, samples + 0.25 * reference.scale, reference), 0.25, rtol=1e-6)
    assert paired_error(samples, samples, reference) == 0.0


def test_paired_error_is_a_median_that_counts_broken_samples(reference: Reference) -> None:
    samples = waves(5, 3)
    broken = samples + np.float32(0.1)
    broken[0] = np.nan
    assert np.isfinite(paired_error(samples, broken, reference))
    broken[:3] = np.nan
    assert paired_error(samples, broken, reference) == np.inf
    with pytest.raises(ValueError, match="paired samples must have one shape"):
        paired_error(samples, samples[:3], reference)


def test_loss_of_paired_samples_is_known_better_than_either_distance(reference: Reference) -> None:
    samples = waves(200, 3)
    base, close = judge(samples, reference, QUICK).time, judge(samples * 1.01, reference, QUICK).time
    found = loss(close, base)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(close.sliced / base.sliced - 1)
    assert found.high - found.low < 0.25 * (base.high - base.low) / base.sliced
    assert loss(base, base).value == loss(base, base).high == 0.0


def test_a_loss_needs_distances_judged_alike(reference: Reference) -> None:
    base, other = (judge(waves(20, 3), reference, replace(QUICK, num_resamples=n)).time for n in (60, 7))
    with pytest.raises(ValueError, match=r"as many resamples, found \(7, 60\); judge both alike"):
        loss(other, base)


@pytest.mark.slow
def test_ten_thousand_samples_are_judged_in_two_minutes() -> None:
    # By the defaults: 1,000 directions, 200 resamples, both domains. 9 s on one core when last run, 36 s without AVX.
    generator = np.random.default_rng(0)
    samples, real = (generator.standard_normal((n, 187, 1)).cumsum(axis=1) for n in (10_000, 4_000))
    begun = time.perf_counter()
    judge(samples, Reference(real, real[:2]))
    assert time.perf_counter() - begun < 120


def test_a_reference_file_judges_by_test_and_floors_by_train(tmp_path: Path) -> None:
    train, test = waves(30, 0), waves(20, 1)
    np.savez(tmp_path / "reference.npz", train=train, test=test)
    found = read_reference(tmp_path / "reference.npz")
    assert np.array_equal(found.series, test)
    assert np.array_equal(found.held_out, train)
    turned = read_reference(tmp_path / "reference.npz", Part.TRAIN)
    assert np.array_equal(turned.series, train)


def test_one_array_of_series_is_split_into_two_random_halves(tmp_path: Path) -> None:
    series = np.arange(22 * 6, dtype=np.float32).reshape(22, 6)
    np.save(tmp_path / "real.npy", series)
    np.savez(tmp_path / "real.npz", anything=series)
    for name in ("real.npy", "real.npz"):
        found = read_reference(tmp_path / name, seed=3)
        assert found.series.shape == found.held_out.shape == (11, 6, 1)
        together = np.concatenate([found.series, found.held_out])[:, :, 0]
        assert np.array_equal(np.sort(together, axis=0), series)
    assert not np.array_equal(found.series, read_reference(tmp_path / "real.npy", seed=4).series)


def test_references_that_cannot_judge_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*; training writes one"):
        read_reference(tmp_path / "missing.npz")
    np.savez(tmp_path / "odd.npz", a=waves(4, 0), b=waves(4, 0))
    with pytest.raises(ValueError, match=r"train and test, or one array, found \['a', 'b'\]; write it again"):
        read_reference(tmp_path / "odd.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "odd.npz").read_bytes()[:100])
    (tmp_path / "text.npy").write_text("not an array")
    for name in ("cut.npz", "text.npy"):
        with pytest.raises(ValueError, match=r"is not a whole npz or npy file of numbers .*; write it again"):
            read_reference(tmp_path / name)
    with pytest.raises(ValueError, match="the same N and C"):
        Reference(waves(4, 0), waves(4, 0, 2))
    with pytest.raises(ValueError, match="n of 2 or more, found"):
        Reference(waves(4, 0), waves(1, 0))
    np.savez(tmp_path / "empty.npz", train=waves(4, 0), test=waves(0, 0))
    with pytest.raises(ValueError, match=r"reference series .* n of 2 or more, found \[0, 24, 1\]; give more real"):
        read_reference(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="must be finite, found '1 values that are not'"):
        Reference(waves(4, 0), np.where(np.arange(96).reshape(4, 24, 1) == 5, np.nan, 0.0))


@pytest.mark.parametrize(
    "change", [{"num_directions": 0}, {"num_resamples": 0}, {"level": 1.0}, {"diverged_above": 0.5}]
)
def test_quality_options_that_cannot_be_meant_are_an_error(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(QUICK, **change)
