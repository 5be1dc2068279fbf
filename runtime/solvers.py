"""Solvers of the reverse process, each one function that reads like its algorithm.

Every step of every solver here is affine in what the sampler holds, so a solver is the table of its
coefficients, made once per trajectory in float64:

    z_next = a_i z + b_i z0 + c_i z0_before + d_i G e

with z0 the data prediction at step i, z0_before that of step i - 1, and e standard normal. One-step solvers
have c = 0, deterministic ones d = 0. In the function bodies `alpha, sigma` belong to the time t of a step and
`alpha_s, sigma_s` to the time s it leads to; the last step leads to clean data and, except in Euler-Maruyama,
returns z0 itself. The exponential solvers work in half-log-SNR lambda = log(alpha / sigma), the variable in
which the reverse process is linear but for z0; their h is the step in lambda.

All of them consume the data prediction z0, never the score: near t = 1 the score of a network carries an
error that its division by alpha amplifies, and everything that reuse and the prior phase know is about z0.
The sampler applies the table; a GPU backend reads the same table from device memory.

The solvers take any strictly decreasing times; `time_grid` makes the usual ones. A two-step solver trusts the
line through two data predictions, so it wants steps in lambda that grow slowly (`logsnr`, `quadratic`), and
where they grow fast it follows the line less far than published (see `_log_snr_steps`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from runtime.errors import require
from runtime.sde import EPS, VP, Process

Times = NDArray[np.float64]
MOST_STEPS = 100_000  # a trajectory keeps tables of N values for each


@dataclass(frozen=True)
class StepTable:
    """Coefficients of T solver steps, [T] each: z_next = latent z + data z0 + previous z0_before + noise G e."""

    latent: Times
    data: Times
    previous: Times  # of the data prediction of the step before; all zero for a one-step solver
    noise: Times


class TimeGrid(StrEnum):
    """The time grids by name."""

    UNIFORM = "uniform"
    QUADRATIC = "quadratic"
    LOGSNR = "logsnr"


def uniform_times(num_steps: int, eps: float = EPS) -> Times:
    """The reference time grid [T]: `linspace(1, eps, T)`; the network is asked at each of these times."""
    require(num_steps >= 1, "the number of steps must be at least 1", num_steps, "the reference uses 1000")
    require(num_steps <= MOST_STEPS, f"the number of steps must be at most {MOST_STEPS}", num_steps,
            "the reference uses 1000")  # fmt: skip
    return np.linspace(1.0, eps, num_steps)


def time_grid(grid: TimeGrid, process: Process, num_steps: int, eps: float = EPS) -> Times:
    """Times [T] from 1 to eps inclusive (0 < eps < 1), strictly decreasing; for T = 1 the time 1 alone.

    uniform: equal steps in t. quadratic: equal steps in sqrt(t) (Song et al. 2021, arXiv 2010.02502, app. D.2).
    logsnr: equal steps in log(alpha / sigma) (Lu et al. 2022, arXiv 2206.00927, sec. 3.4); for VE these are the
    uniform ones.
    """
    times = uniform_times(num_steps, eps)
    ends = times[[0, -1]]
    if grid == TimeGrid.QUADRATIC:
        times = np.linspace(1.0, np.sqrt(eps), num_steps) ** 2
    elif grid == TimeGrid.LOGSNR and isinstance(process, VP):
        first, last = _half_log_snr(process, np.array([1.0, eps]))
        times = _vp_times(process, np.linspace(first, last, num_steps))
    times[[0, -1]] = ends  # exactly, whatever the round trip did to them
    return times


def _half_log_snr(process: Process, times: Times) -> Times:
    """lambda = log(alpha / sigma) at each time; it grows as t falls."""
    return np.asarray(np.log(process.alpha(times) / process.sigma(times)))


def _vp_times(process: VP, half_log_snr: Times) -> Times:
    """The times of lambda: its inverse in closed form (Lu et al. 2022, arXiv 2206.00927, app. D.4).

    With y = -2 log alpha = log(1 + exp(-2 lambda)), t is the root of (beta_1 - beta_0) t^2 / 2 + beta_0 t = y,
    in the form that loses no digits near t = 0 and holds for beta_1 = beta_0.
    """
    beta_0, growth = process.beta_0, process.beta_1 - process.beta_0
    y = np.logaddexp(0.0, -2.0 * half_log_snr)
    return np.asarray(2.0 * y / (beta_0 + np.sqrt(beta_0**2 + 2.0 * growth * y)))


def euler_maruyama(process: Process, times: Times) -> StepTable:
    """Reverse SDE by Euler-Maruyama (Song et al. 2021, eq. 6, discretised), as FourierDiffusion samples.

    z_next = z - (f z - g^2 G^2 s) dt + g sqrt(dt) G e, with the score s = (alpha z0 - z) / (sigma G)^2 and
    dt the step to the next time; the last step repeats the one before it, and so ends at eps - dt.
    """
    alpha, sigma = process.alpha(times), process.sigma(times)
    f, g = process.drift(times), process.diffusion(times)
    dt = times[:-1] - times[1:] if len(times) > 1 else times
    dt = np.append(dt, dt[-1])[: len(times)]
    dt = np.where(abs(dt - dt[0]) < 1e-14, dt[0], dt)  # equal steps stay so: the reference has one constant dt
    pull = g**2 * dt / sigma**2
    return StepTable(
        latent=1.0 - f * dt - pull, data=alpha * pull, previous=np.zeros_like(times), noise=g * np.sqrt(dt)
    )


def ancestral(process: Process, times: Times) -> StepTable:
    """The exact Gaussian posterior step q(z_s | z_t, z0) (Ho et al. 2020, eq. 6-7, in continuous time).

    With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2:
    z_s = (a sigma_s^2 / sigma_t^2) z + (alpha_s v / sigma_t^2) z0 + (sigma_s sqrt(v) / sigma_t) G e.
    The last step returns z0 itself.
    """
    alpha, sigma, alpha_s, sigma_s = _both_ends(process, times)
    a = alpha / alpha_s
    v = sigma**2 - (a * sigma_s) ** 2
    latent = a * sigma_s**2 / sigma**2
    data = alpha_s * v / sigma**2
    data[-1] = 1.0
    return StepTable(latent, data, previous=np.zeros_like(times), noise=sigma_s * np.sqrt(v) / sigma)


def ddim(process: Process, times: Times) -> StepTable:
    """The deterministic step of DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with its sigma = 0).

    z_s = alpha_s z0 + sigma_s (z - alpha_t z0) / sigma_t: the noise that z0 implies, rescaled. First order for
    the probability-flow ODE.
    """
    alpha, sigma, alpha_s, sigma_s = _both_ends(process, times)
    latent = sigma_s / sigma
    zero = np.zeros_like(times)
    return StepTable(latent, data=alpha_s - alpha * latent, previous=zero, noise=zero)


def dpmpp_2m(process: Process, times: Times) -> StepTable:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): probability-flow ODE, second order.

    z_s = (sigma_s / sigma_t) z + alpha_s (1 - exp(-h)) D, where D = z0 + (z0 - z0_before) / 2r with
    r = h_before / h is the line through the last two data predictions at half of the step. The first and the
    last step are of first order, D = z0.
    """
    _, sigma, alpha_s, sigma_s = _both_ends(process, times)
    h, half_r = _log_snr_steps(process, times)
    weight = -alpha_s * np.expm1(-h)
    return StepTable(
        latent=sigma_s / sigma,
        data=weight * (1.0 + half_r),
        previous=-weight * half_r,
        noise=np.zeros_like(times),
    )


def dpmpp_2m_sde(process: Process, times: Times) -> StepTable:
    """SDE-DPM-Solver++(2M), midpoint, eta = 1 (Lu et al. 2022, arXiv 2211.01095, on diffusion SDEs).

    z_s = (sigma_s / sigma_t) exp(-h) z + alpha_s (1 - exp(-2h)) D + sigma_s sqrt(1 - exp(-2h)) G e with D as in
    `dpmpp_2m`; k-diffusion's `sample_dpmpp_2m_sde` in (alpha, sigma). With D = z0 it is `ancestral`.
    """
    _, sigma, alpha_s, sigma_s = _both_ends(process, times)
    h, half_r = _log_snr_steps(process, times)
    fresh = -np.expm1(-2.0 * h)
    weight = alpha_s * fresh
    return StepTable(
        latent=sigma_s / sigma * np.exp(-h),
        data=weight * (1.0 + half_r),
        previous=-weight * half_r,
        noise=sigma_s * np.sqrt(fresh),
    )


def _both_ends(process: Process, times: Times) -> tuple[Times, Times, Times, Times]:
    """alpha and sigma [T] where each step starts, then where it ends; the last one ends at clean data, (1, 0)."""
    alpha, sigma = process.alpha(times), process.sigma(times)
    return alpha, sigma, np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)


def _log_snr_steps(process: Process, times: Times) -> tuple[Times, Times]:
    """Each step h [T] in lambda, infinite for the last, and 1 / 2r = h / (2 h_before), 0 where first order.

    The line is never followed further than the step before was long (1 / 2r at most 1/2), which the published
    algorithm would do where steps grow fast: on the uniform grid the step to eps is seven times the one before
    it, and 16 steps then miss the variance of a Gaussian by 72 %, with the limit by 1 %. Where steps grow slowly
    nothing changes.
    """
    h = np.append(np.diff(_half_log_snr(process, times)), np.inf)
    half_r = np.zeros_like(h)
    half_r[1:-1] = np.minimum(h[1:-1] / (2.0 * h[:-2]), 0.5)
    return h, half_r


class Solver(StrEnum):
    """The solvers by name."""

    EULER_MARUYAMA = "euler_maruyama"
    ANCESTRAL = "ancestral"
    DDIM = "ddim"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"


SOLVERS: dict[Solver, Callable[[Process, Times], StepTable]] = {
    Solver.EULER_MARUYAMA: euler_maruyama,
    Solver.ANCESTRAL: ancestral,
    Solver.DDIM: ddim,
    Solver.DPMPP_2M: dpmpp_2m,
    Solver.DPMPP_2M_SDE: dpmpp_2m_sde,
}
