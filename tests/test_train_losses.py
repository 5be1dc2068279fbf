"""Promises of the loss: the right minimum, noise and weights. Oracle: Gaussian data, in closed form."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runtime.fourier import noise_shape
from runtime.sde import EPS, VE, VP, Process
from train.losses import Weighting, draw_times, energy_weights, score_matching_loss

N, C = 8, 2
VARIANCE = torch.linspace(0.25, 2.0, N, dtype=torch.float64)  # of the clean tokens
SHAPE = torch.from_numpy(noise_shape(N))
PROCESSES = [pytest.param(VP(), id="vp"), pytest.param(VE(), id="ve")]


class GaussianScore(nn.Module):
    """The score of independent Gaussian tokens under noise, times a factor that is 1 for the truth."""

    def __init__(self, process: Process, factor: float = 1.0) -> None:
        super().__init__()
        self.process = process
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        variance = self.process.alpha(t)[:, None] ** 2 * VARIANCE + (self.process.sigma(t)[:, None] * SHAPE) ** 2
        return -self.factor * z / variance[..., None]


def draws(num: int, t: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens of the Gaussian, times, noise."""
    generator = torch.Generator().manual_seed(3)
    clean = VARIANCE.sqrt()[:, None] * torch.randn(num, N, C, generator=generator, dtype=torch.float64)
    times = draw_times(num, generator).double() if t is None else torch.full((num,), t, dtype=torch.float64)
    return clean, times, torch.randn(num, N, C, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", Weighting)
@pytest.mark.parametrize("t", [0.05, 0.3, 0.9])
def test_exact_score_has_the_analytic_loss(process: Process, weighting: Weighting, t: float) -> None:
    # E|s + e / (sigma G)|^2 = 1 / (sigma G)^2 - 1 / (alpha^2 v + sigma^2 G^2): what no network can know of e.
    clean, times, noise = draws(100_000, t)
    found = score_matching_loss(
        GaussianScore(process), clean, t=times, noise=noise, process=process, noise_shape=SHAPE, weighting=weighting
    )
    alpha, variance = float(process.alpha(t)), (float(process.sigma(t)) * SHAPE) ** 2
    unknown = 1.0 / variance - 1.0 / (alpha**2 * VARIANCE + variance)
    weight = 1.0 / (1.0 / variance).sum() if weighting is Weighting.INVERSE_TRACE else variance
    # 1.6 million squared normals estimate their mean to 0.15 %
    torch.testing.assert_close(found, (weight * unknown).mean(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", Weighting)
def test_exact_score_is_a_minimum(process: Process, weighting: Weighting) -> None:
    # The gradient along the scale of the score vanishes at the truth and points back to it from either side.
    clean, times, noise = draws(100_000)
    gradients = []
    for factor in (0.5, 1.0, 1.5):
        network = GaussianScore(process, factor)
        score_matching_loss(
            network, clean, t=times, noise=noise, process=process, noise_shape=SHAPE, weighting=weighting
        ).backward()
        assert network.factor.grad is not None
        gradients.append(float(network.factor.grad))
    low, truth, high = gradients
    assert low < 0 < high
    assert abs(truth) < 0.02 * (high - low)  # Monte Carlo error of the same draws


@pytest.mark.parametrize("process", PROCESSES)
def test_tokens_are_noised_by_sigma_times_shape(process: Process) -> None:
    # Oracle: z_t = alpha z_0 + sigma G e written out; rtol 1e-12 for the order of products in float64.
    seen = {}

    class Listener(nn.Module):
        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            seen["z"] = z
            return torch.zeros_like(z)

    clean, times, noise = draws(5)
    score_matching_loss(Listener(), clean, t=times, noise=noise, process=process, noise_shape=SHAPE)
    alpha, sigma = process.alpha(times.numpy()), process.sigma(times.numpy())
    wanted = alpha[:, None, None] * clean.numpy() + (
        sigma[:, None, None] * SHAPE.numpy()[None, :, None] * noise.numpy()
    )
    np.testing.assert_allclose(seen["z"].numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("weighting", Weighting)
def test_loss_equals_its_definition_with_dense_matrices(weighting: Weighting) -> None:
    # Oracle: FourierDiffusion's definition, with Sigma as an N x N matrix; rtol 1e-12 in float64.
    process, network = VP(), GaussianScore(VP(), 0.7)
    clean, times, noise = draws(6)
    found = score_matching_loss(
        network, clean, t=times, noise=noise, process=process, noise_shape=SHAPE, weighting=weighting
    )
    root = torch.diag_embed(process.sigma(times)[:, None] * SHAPE)  # [B, N, N]
    noisy = process.alpha(times)[:, None, None] * clean + root @ noise
    error = network(noisy, times) + torch.linalg.inv(root) @ noise
    if weighting is Weighting.INVERSE_TRACE:
        trace = torch.linalg.inv(root @ root).diagonal(dim1=1, dim2=2).sum(-1)
        wanted = (error**2 / trace[:, None, None]).mean()
    else:
        wanted = ((root @ error) ** 2).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weighting", Weighting)
def test_token_weights_multiply_each_tokens_error(weighting: Weighting) -> None:
    clean, times, noise = draws(6)
    process, network = VP(), GaussianScore(VP(), 0.7)

    def loss(token_weight: Tensor | None) -> float:
        return score_matching_loss(
            network, clean, t=times, noise=noise, process=process, noise_shape=SHAPE, weighting=weighting,
            token_weight=token_weight,
        ).item()  # fmt: skip

    alone = [loss(one) for one in torch.eye(N * C, dtype=torch.float64).reshape(-1, N, C)]
    weight = torch.rand(N, C, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert loss(None) == pytest.approx(sum(alone), rel=1e-12)
    assert loss(weight) == pytest.approx(sum(np.array(alone) * weight.flatten().numpy()), rel=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_weighted_by_energy_the_exact_score_is_still_a_minimum_of_every_token(process: Process) -> None:
    clean, times, noise = draws(100_000)
    gradients = []
    for factor in (0.5, 1.0, 1.5):
        network = GaussianScore(process, 1.0)
        network.factor = nn.Parameter(torch.full((N, 1), factor, dtype=torch.float64))
        score_matching_loss(
            network, clean, t=times, noise=noise, process=process, noise_shape=SHAPE,
            token_weight=energy_weights(VARIANCE.sqrt()[:, None], 1.0),
        ).backward()  # fmt: skip
        assert network.factor.grad is not None
        gradients.append(network.factor.grad[:, 0])
    low, truth, high = gradients
    assert (low < 0).all()
    assert (high > 0).all()
    assert (truth.abs() < 0.05 * (high - low)).all()  # Monte Carlo error of the same draws, token by token


def test_energy_weights_are_a_power_of_the_std_with_mean_one() -> None:
    std = torch.tensor([[4.0], [1.0], [0.0], [0.25]])
    found = energy_weights(std, 0.5)
    assert float(found.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(found / found[1], torch.tensor([[2.0], [1.0], [0.5], [0.5]]))  # constant: as the least
    torch.testing.assert_close(energy_weights(std, 0.0), torch.ones(4, 1))


def test_times_cover_the_interval_and_repeat_with_their_generator() -> None:
    times = draw_times(10_000, torch.Generator().manual_seed(0))
    assert EPS <= times.min() < 1e-3 < 1 - 1e-3 < times.max() <= 1.0
    assert torch.equal(times, draw_times(10_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("process", PROCESSES)
def test_loss_is_finite_in_float32_at_both_ends_of_time(process: Process) -> None:
    times = torch.tensor([EPS, 1.0])
    loss = score_matching_loss(
        GaussianScore(process).float(),
        torch.ones(2, N, C),
        t=times,
        noise=torch.ones(2, N, C),
        process=process,
        noise_shape=SHAPE.float(),
    )
    assert torch.isfinite(loss)
