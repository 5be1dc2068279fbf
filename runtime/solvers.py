"""Solvers of the reverse process, each one function that reads like its algorithm.

Every step of every solver here is affine in what the sampler holds, so a solver is the table of its
coefficients, made once per trajectory in float64:

    z_next = a_i z + b_i z0 + c_i G e          (z0: the data prediction at step i, e: standard normal)

All of them consume the data prediction z0, never the score: near t = 1 the score of a network carries an
error that its division by alpha amplifies, and everything that reuse and the prior phase know is about z0.
The sampler applies the table; a GPU backend reads the same table from device memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from runtime.errors import require
from runtime.sde import EPS, Process

Times = NDArray[np.float64]


@dataclass(frozen=True)
class StepTable:
    """Coefficients of T solver steps, [T] each: z_next = latent z + data z0 + noise G e."""

    latent: Times
    data: Times
    noise: Times


def uniform_times(num_steps: int, eps: float = EPS) -> Times:
    """The reference time grid [T]: `linspace(1, eps, T)`; the network is asked at each of these times."""
    require(num_steps >= 1, "the number of steps must be at least 1", num_steps, "the reference uses 1000")
    return np.linspace(1.0, eps, num_steps)


def euler_maruyama(process: Process, times: Times) -> StepTable:
    """Reverse SDE by Euler-Maruyama (Song et al. 2021, eq. 6, discretised), as FourierDiffusion samples.

    z_next = z - (f z - g^2 G^2 s) dt + g sqrt(dt) G e, with the score s = (alpha z0 - z) / (sigma G)^2 and
    one constant dt = times[0] - times[1], also for the last step, which so ends at eps - dt.
    """
    alpha, sigma = process.alpha(times), process.sigma(times)
    f, g = process.drift(times), process.diffusion(times)
    dt = times[0] - times[1] if len(times) > 1 else times[0]
    pull = g**2 * dt / sigma**2
    return StepTable(latent=1.0 - f * dt - pull, data=alpha * pull, noise=g * np.sqrt(dt))


def ancestral(process: Process, times: Times) -> StepTable:
    """The exact Gaussian posterior step q(z_s | z_t, z0) (Ho et al. 2020, eq. 6-7, in continuous time).

    With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2:
    z_s = (a sigma_s^2 / sigma_t^2) z + (alpha_s v / sigma_t^2) z0 + (sigma_s sqrt(v) / sigma_t) G e.
    The last step returns z0 itself.
    """
    alpha, sigma = process.alpha(times), process.sigma(times)
    alpha_s, sigma_s = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    a = alpha / alpha_s
    v = sigma**2 - (a * sigma_s) ** 2
    latent = a * sigma_s**2 / sigma**2
    data = alpha_s * v / sigma**2
    data[-1] = 1.0
    return StepTable(latent=latent, data=data, noise=sigma_s * np.sqrt(v) / sigma)


class Solver(StrEnum):
    """The solvers by name."""

    EULER_MARUYAMA = "euler_maruyama"
    ANCESTRAL = "ancestral"


SOLVERS: dict[Solver, Callable[[Process, Times], StepTable]] = {
    Solver.EULER_MARUYAMA: euler_maruyama,
    Solver.ANCESTRAL: ancestral,
}
