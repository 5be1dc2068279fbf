"""Promises of the preparation: domain, standardisation, constants told apart, one order per (seed, epoch)."""

import numpy as np
import pytest
import torch

from runtime import fourier
from train.data import EpochOrder, tokens_from_series, training_batches, validation_batches
from train.datasets import Series
from train.errors import DataError


def series(num: int = 40, num_steps: int = 12, num_channels: int = 2) -> Series:
    generator = np.random.default_rng(0)
    x = generator.normal(3.0, 2.0, (2 * num, num_steps, num_channels)).astype(np.float32)
    return Series(train=x[:num], test=x[num:])


@pytest.mark.parametrize("fourier_transform", [True, False])
def test_training_tokens_are_standardised_and_lead_back_to_the_series(fourier_transform: bool) -> None:
    # Oracle: torch's unbiased std, as FourierDiffusion takes it. 1e-6: one rounding to float32.
    data = series()
    tokens = tokens_from_series(data, fourier_transform=fourier_transform, standardize=True)
    plain = fourier.dft(data.train.astype(np.float64)) if fourier_transform else data.train.astype(np.float64)
    np.testing.assert_allclose(tokens.mean, torch.from_numpy(plain).mean(dim=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tokens.std, torch.from_numpy(plain).std(dim=0), rtol=1e-6)
    np.testing.assert_allclose(tokens.train.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(tokens.train.std(0, ddof=1), 1.0, atol=1e-6)
    for z, x in ((tokens.train, data.train), (tokens.test, data.test)):  # the test split by the train statistics
        back = tokens.mean + tokens.std * z
        np.testing.assert_allclose(fourier.idft(back) if fourier_transform else back, x, atol=1e-5)
    assert {a.dtype for a in (tokens.train, tokens.test, tokens.mean, tokens.std)} == {np.dtype(np.float32)}
    assert (tokens.num_tokens, tokens.num_channels) == (12, 2)


def test_noise_shape_belongs_to_the_domain() -> None:
    np.testing.assert_allclose(
        tokens_from_series(series(), fourier_transform=True, standardize=True).noise_shape, fourier.noise_shape(12)
    )
    tokens = tokens_from_series(series(), fourier_transform=False, standardize=True)
    assert np.array_equal(tokens.noise_shape, np.ones(12, np.float32))


def test_without_standardisation_tokens_are_the_spectrum() -> None:
    tokens = tokens_from_series(series(), fourier_transform=True, standardize=False)
    assert np.array_equal(tokens.mean, np.zeros((12, 2)))
    assert np.array_equal(tokens.std, np.ones((12, 2)))
    np.testing.assert_allclose(tokens.train, fourier.dft(series().train), rtol=1e-5, atol=1e-5)


def test_a_constant_token_has_std_zero_and_z_zero() -> None:
    # Equal sums leave frequency 0 constant, but only up to the rounding of the float32 series.
    data = series()
    centred = Series(*(x - x.mean(axis=1, keepdims=True, dtype=np.float64) + 5 for x in (data.train, data.test)))
    rounded = Series(centred.train.astype(np.float32), centred.test.astype(np.float32))
    tokens = tokens_from_series(rounded, fourier_transform=True, standardize=True)
    assert np.array_equal(tokens.std == 0, np.arange(12)[:, None].repeat(2, 1) == 0)
    assert not tokens.train[:, 0].any()
    assert not tokens.test[:, 0].any()
    np.testing.assert_allclose(tokens.mean[0], 5 * np.sqrt(12), rtol=1e-6)


def test_a_token_that_only_varies_in_the_test_split_stays_zero() -> None:
    data = series()
    data.train[:, 3] = 1.5
    tokens = tokens_from_series(data, fourier_transform=False, standardize=True)
    assert not tokens.std[3].any()
    assert not tokens.test[:, 3].any()
    assert np.isfinite(tokens.test).all()


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("fourier_transform", [True, False])
def test_series_that_are_all_the_same_are_refused(fourier_transform: bool, standardize: bool) -> None:
    one = np.random.default_rng(0).normal(3.0, 2.0, (1, 12, 2)).astype(np.float32)
    for same in (one, np.zeros_like(one)):
        data = Series(same.repeat(40, axis=0), same.repeat(5, axis=0))
        with pytest.raises(DataError, match="found 40 train series that are all the same; there is nothing to learn"):
            tokens_from_series(data, fourier_transform=fourier_transform, standardize=standardize)


def test_too_few_series_are_refused() -> None:
    data = series()
    with pytest.raises(DataError, match="at least 2 train and 2 test series, found 1 and 40"):
        tokens_from_series(Series(data.train[:1], data.test), fourier_transform=True, standardize=True)


def test_order_is_a_shuffle_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochOrder(50, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(50))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_batches_hold_every_series_once() -> None:
    tokens = tokens_from_series(series(), fourier_transform=True, standardize=True)
    shuffled = torch.cat([batch[0] for batch in training_batches(tokens, 16, seed=0)])
    assert len(shuffled) == 40
    assert not torch.equal(shuffled, torch.from_numpy(tokens.train))
    assert torch.equal(shuffled.sum(0).round(decimals=3), torch.from_numpy(tokens.train).sum(0).round(decimals=3))
    ordered = torch.cat([batch[0] for batch in validation_batches(tokens, 16)])
    assert torch.equal(ordered, torch.from_numpy(tokens.test))
