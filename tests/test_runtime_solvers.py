"""Solvers against closed forms: the Gaussian posterior, the score form of Euler-Maruyama, and whole Gaussians."""

import numpy as np
import pytest

from runtime.errors import OptionError
from runtime.sampler import UNCACHED
from runtime.sde import VE, VP, Process, process_from_facts, signal_to_noise
from runtime.solvers import ancestral, euler_maruyama, uniform_times
from tests.tiny import gaussian

PROCESSES = [VP(), VE(0.01, 5.0)]


@pytest.mark.parametrize("process", PROCESSES)
def test_alpha_and_sigma_integrate_drift_and_diffusion(process: Process) -> None:
    """Oracle: central differences of d log alpha / dt = f and d sigma^2 / dt = 2 f sigma^2 + g^2."""
    t, h = np.linspace(0.05, 0.95, 19), 1e-6
    slope = (np.log(process.alpha(t + h)) - np.log(process.alpha(t - h))) / (2 * h)
    np.testing.assert_allclose(slope, process.drift(t), atol=1e-6)
    growth = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    expected = 2 * process.drift(t) * process.sigma(t) ** 2 + process.diffusion(t) ** 2
    np.testing.assert_allclose(growth, expected, rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_is_the_bayes_posterior(process: Process) -> None:
    """Oracle: conditioning the joint Gaussian of (z_s, z_t) given z0, written out independently."""
    times = uniform_times(12)
    table = ancestral(process, times)
    for i in range(len(times) - 1):
        t, s = times[i], times[i + 1]
        alpha_t, sigma_t, alpha_s, sigma_s = process.alpha(t), process.sigma(t), process.alpha(s), process.sigma(s)
        covariance = alpha_t / alpha_s * sigma_s**2  # of z_s and z_t given z0
        gain = covariance / sigma_t**2
        assert table.latent[i] == pytest.approx(gain)
        assert table.data[i] == pytest.approx(alpha_s - gain * alpha_t, abs=1e-12)
        assert table.noise[i] ** 2 == pytest.approx(sigma_s**2 - gain * covariance, abs=1e-12)
    assert (table.latent[-1], table.data[-1], table.noise[-1]) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("process", PROCESSES)
def test_euler_maruyama_is_the_score_step_of_upstream(process: Process) -> None:
    """Oracle: z - (f z - g^2 G^2 s) dt + g sqrt(dt) G e, with the score spelled out."""
    rng = np.random.default_rng(0)
    times = uniform_times(50)
    table, dt = euler_maruyama(process, times), times[0] - times[1]
    z, score, noise, shape = (rng.standard_normal(6) for _ in range(4))
    for i, t in enumerate(times):
        f, g = process.drift(t), process.diffusion(t)
        expected = z - (f * z - (g * shape) ** 2 * score) * dt + g * np.sqrt(dt) * shape * noise
        data = (z + (process.sigma(t) * shape) ** 2 * score) / process.alpha(t)
        found = table.latent[i] * z + table.data[i] * data + table.noise[i] * shape * noise
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("domain", ["frequency", "time"])
@pytest.mark.parametrize("num_tokens", [10, 11])
@pytest.mark.parametrize("solver", ["ancestral", "euler_maruyama"])
def test_samples_of_a_gaussian_have_its_mean_and_covariance(solver: str, num_tokens: int, domain: str) -> None:
    """A wrong G, alpha, sigma, token order or standardisation shows here.

    Oracle: the mean and covariance the model was made from. Tolerances: five standard errors of 6,000
    samples, plus 3 % (ancestral) or 6 % (Euler) of the largest variance for 250 steps.
    """
    made = gaussian(num_tokens, VP(), domain)
    count = 6000
    series = made.model.sample(count, steps=250, solver=solver, cache=None, batch_size=3000).series[:, :, 0]
    scale = made.covariance.max()
    np.testing.assert_allclose(series.mean(axis=0), made.mean, atol=5 * np.sqrt(scale / count))
    allowed = 5 * scale * np.sqrt(2 / count) + (0.03 if solver == "ancestral" else 0.06) * scale
    np.testing.assert_allclose(np.cov(series.T), made.covariance, atol=allowed)


def test_a_wrong_noise_shape_would_show() -> None:
    """The test above can fail: the same check refuses samples drawn with G = 1 everywhere."""
    made = gaussian(10, VP(), "frequency")
    made.model.manifest.tokens.noise_shape[:] = [1.0] * 10
    series = made.model.sample(3000, steps=100, cache=None, batch_size=3000).series[:, :, 0]
    assert np.abs(np.cov(series.T) - made.covariance).max() > 0.2 * made.covariance.max()


def test_a_variance_exploding_gaussian_is_sampled_too() -> None:
    made = gaussian(8, VE(0.01, 30.0), "frequency")
    series = made.model.sample(6000, steps=300, cache=UNCACHED, batch_size=3000).series[:, :, 0]
    scale = made.covariance.max()
    np.testing.assert_allclose(np.cov(series.T), made.covariance, atol=5 * scale * np.sqrt(2 / 6000) + 0.05 * scale)


def test_signal_to_noise_is_alpha_for_vp() -> None:
    t = np.linspace(0.01, 1, 7)
    np.testing.assert_allclose(signal_to_noise(VP(), t), VP().alpha(t))


def test_impossible_processes_and_steps_are_refused() -> None:
    with pytest.raises(OptionError, match="0 < beta_0 <= beta_1"):
        VP(5.0, 1.0)
    with pytest.raises(OptionError, match="known ones are vp, ve"):
        process_from_facts("cosine", {})
    with pytest.raises(OptionError, match="takes the parameters"):
        process_from_facts("vp", {"beta_0": 0.1})
    with pytest.raises(OptionError, match="steps must be at least 1"):
        uniform_times(0)
