"""Denoising score matching for any process of `runtime.sde`, with the noise shape G of either domain.

A clean token z_0 becomes z_t = alpha z_0 + sigma G e, whose conditional score is -e / (sigma G). The network
is fitted to that target under a weight; its minimiser is the score of the noisy data whatever the weight is
(Vincent 2011; Song et al. 2021, arXiv 2011.13456, eq. 7). G is diagonal, so no matrix is ever formed.

The draws (t, e) are arguments: training passes fresh ones, validation the same ones every epoch.
"""

from enum import StrEnum

import torch
from torch import Tensor, nn

from runtime.sde import EPS, Process


class Weighting(StrEnum):
    """How the squared error of the score counts at time t and token k."""

    INVERSE_TRACE = "inverse_trace"  # 1 / tr(Sigma^-1), one weight per sample; Crabbé et al., the default
    MAHALANOBIS = "mahalanobis"  # Sigma_kk; what FourierDiffusion turns on as `likelihood_weighting`


def draw_times(num: int, generator: torch.Generator | None = None) -> Tensor:
    """Times [num], uniform in [EPS, 1)."""
    return EPS + (1.0 - EPS) * torch.rand(num, generator=generator)


def score_matching_loss(
    network: nn.Module,
    clean: Tensor,
    *,
    t: Tensor,
    noise: Tensor,
    process: Process,
    noise_shape: Tensor,
    weighting: Weighting = Weighting.INVERSE_TRACE,
    token_weight: Tensor | None = None,
) -> Tensor:
    """The loss of a score network on clean tokens [B, N, C] at times [B] under standard noise [B, N, C].

    `noise_shape` is G [N]. The mean over tokens and channels and samples, weighted by `token_weight` [N, C] where
    there is one (`energy_weights`); both weightings make it independent of the size of sigma. At t = EPS the target
    reaches 1 / (sigma G), some hundreds, so keep float32.
    """
    alpha = process.alpha(t)[:, None, None]
    std = process.sigma(t)[:, None] * noise_shape  # [B, N]
    score = network(alpha * clean + std[..., None] * noise, t)
    error = score + noise / std[..., None]
    variance = std**2
    if weighting is Weighting.INVERSE_TRACE:
        variance = 1.0 / (1.0 / variance).sum(dim=1, keepdim=True)  # [B, 1]
    weighted = variance[..., None] * error**2
    loss: Tensor = (weighted if token_weight is None else weighted * token_weight).mean()
    return loss


def energy_weights(std: Tensor, power: float) -> Tensor:
    """Token weights [N, C] proportional to `std`^power, with mean 1; `std` [N, C] is that of the clean tokens.

    Standardised tokens all count alike, though most have next to no energy in the series; by a power of 1/2 a briefly
    trained network first learns what is seen. A constant token (std 0) counts as the one that varies least: of it,
    too, the score must be known.
    """
    varying = std > 0
    weights: Tensor = torch.where(varying, std, std[varying].min()) ** power
    return weights / weights.mean()
