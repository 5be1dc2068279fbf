"""Promises of the averaged weights: the recurrence of a warmed-up EMA, and frozen parameters left alone."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from train.averaging import WarmedUpEMA, decay_after


def test_decay_warms_up_to_its_value() -> None:
    # Oracle: (1 + n) / (10 + n) by hand.
    assert decay_after(1, 0.999) == pytest.approx(2 / 11)
    assert decay_after(90, 0.999) == pytest.approx(0.91)
    assert decay_after(10**6, 0.999) == 0.999
    assert all(decay_after(n, 0.9) <= decay_after(n + 1, 0.9) <= 0.9 for n in range(1, 200))


def test_average_follows_its_recurrence_and_leaves_frozen_parameters_bitwise_alone() -> None:
    # Oracle: the recurrence in float64; rtol 1e-5 for float32 lerps over 60 steps.
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    model.bias.copy_(torch.tensor([30.123456, -7.654321]))
    frozen = model.bias.clone()
    averaged = AveragedModel(model, **WarmedUpEMA(0.9)._kwargs)
    wanted = None
    for step in range(60):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3, generator=generator))
        averaged.update_parameters(model)
        weight = model.weight.detach().double()
        decay = decay_after(step, 0.9)
        wanted = weight if wanted is None else decay * wanted + (1 - decay) * weight
    torch.testing.assert_close(averaged.module.weight.double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(averaged.module.bias, frozen)
