"""Solvers against closed forms: single steps, whole Gaussians, and how fast the error falls with the steps.

A solver is an affine recursion, and for Gaussian data N(0, v) the exact data prediction is linear in z. So the
mean and the variance of what a solver makes follow from its table without drawing a sample (`moments`), and
are compared with those of the exact reverse process (`Marginals`).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from runtime.errors import OptionError, parse_word
from runtime.sampler import UNCACHED
from runtime.sde import EPS, VE, VP, Process, process_from_facts, signal_to_noise
from runtime.solvers import (
    SOLVERS,
    Solver,
    StepTable,
    TimeGrid,
    Times,
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    euler_maruyama,
    time_grid,
    uniform_times,
)
from tests.tiny import gaussian

PROCESSES = [VP(), VE(0.01, 5.0)]
WIDE = [VP(), VP(1.0, 1.0), VE()]  # constant beta, and the usual VE with sigma up to 50
TO_CLEAN = [solver for solver in Solver if solver is not Solver.EULER_MARUYAMA]
DETERMINISTIC = [Solver.DDIM, Solver.DPMPP_2M]


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


@pytest.mark.parametrize("grid", [TimeGrid.QUADRATIC, TimeGrid.LOGSNR])
@pytest.mark.parametrize("process", PROCESSES)
def test_euler_maruyama_takes_each_step_as_long_as_the_grid_says(process: Process, grid: TimeGrid) -> None:
    """Oracle: the growth of the noise, g^2 dt, with dt to the next time and at the end the one before it."""
    times = time_grid(grid, process, 30)
    noise = euler_maruyama(process, times).noise
    np.testing.assert_allclose(noise[:-1] ** 2, process.diffusion(times[:-1]) ** 2 * (times[:-1] - times[1:]))
    assert noise[-1] ** 2 == pytest.approx(process.diffusion(EPS) ** 2 * (times[-2] - times[-1]))


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100, 1000, 5000])
@pytest.mark.parametrize("process", WIDE)
def test_euler_maruyama_is_bitwise_the_reference_on_the_uniform_grid(process: Process, num_steps: int) -> None:
    """Oracle: the one constant dt of the reference, to the last step, which ends at eps - dt."""
    times = uniform_times(num_steps)
    dt = times[0] - times[1] if num_steps > 1 else times[0]
    pull = process.diffusion(times) ** 2 * dt / process.sigma(times) ** 2
    table = euler_maruyama(process, times)
    np.testing.assert_array_equal(table.latent, 1.0 - process.drift(times) * dt - pull)
    np.testing.assert_array_equal(table.data, process.alpha(times) * pull)
    np.testing.assert_array_equal(table.noise, process.diffusion(times) * np.sqrt(dt))


@pytest.mark.parametrize("grid", TimeGrid)
@pytest.mark.parametrize("solver", TO_CLEAN)
@pytest.mark.parametrize("process", WIDE)
def test_a_point_stays_on_its_path_and_ends_in_its_data(process: Process, solver: Solver, grid: TimeGrid) -> None:
    """Data that is one point z0 moves along alpha z0, so alpha_s = latent alpha + data + previous, exactly."""
    times = time_grid(grid, process, 200)
    alpha, table = process.alpha(times), SOLVERS[solver](process, times)
    arrives = table.latent * alpha + table.data + table.previous
    np.testing.assert_allclose(arrives, np.append(alpha[1:], 1.0), rtol=1e-12)
    assert (table.latent[-1], table.data[-1], table.previous[-1], table.noise[-1]) == (0.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize("process", WIDE)
def test_a_deterministic_step_rescales_the_noise(process: Process, solver: Solver) -> None:
    """Pure noise, z = sigma e with z0 = 0, goes to sigma_s e, and nothing is drawn."""
    times = time_grid(TimeGrid.LOGSNR, process, 50)
    sigma, table = process.sigma(times), SOLVERS[solver](process, times)
    np.testing.assert_allclose(table.latent * sigma, np.append(sigma[1:], 0.0), rtol=1e-12)
    assert not table.noise.any()


@pytest.mark.parametrize("solver", [Solver.DPMPP_2M, Solver.DPMPP_2M_SDE])
@pytest.mark.parametrize("grid", TimeGrid)
@pytest.mark.parametrize("process", PROCESSES)
def test_two_step_solvers_are_the_published_recursion(process: Process, grid: TimeGrid, solver: Solver) -> None:
    """Oracle: the recursion in x = z / alpha and sigma / alpha alone (k-diffusion), its line limited."""
    rng = np.random.default_rng(0)
    times = time_grid(grid, process, 9)
    alpha, ratio = process.alpha(times), process.sigma(times) / process.alpha(times)
    table, eta = SOLVERS[solver](process, times), float(solver is Solver.DPMPP_2M_SDE)
    z, before = rng.standard_normal(6), np.full(6, 100.0)  # of no weight in the first step
    for i in range(8):
        z0, noise = rng.standard_normal(6), rng.standard_normal(6)
        h = np.log(ratio[i] / ratio[i + 1])
        line = z0 if i == 0 else z0 + (z0 - before) * min(0.5, h / (2.0 * np.log(ratio[i - 1] / ratio[i])))
        x = ratio[i + 1] / ratio[i] * np.exp(-eta * h) * z / alpha[i] + (1.0 - np.exp(-h - eta * h)) * line
        x += noise * ratio[i + 1] * np.sqrt(1.0 - np.exp(-2.0 * eta * h))
        z = table.latent[i] * z + table.data[i] * z0 + table.previous[i] * before + table.noise[i] * noise
        np.testing.assert_allclose(z, alpha[i + 1] * x, rtol=1e-9, atol=1e-12)
        before = z0


@pytest.mark.parametrize("process", WIDE)
def test_without_history_the_two_step_solvers_are_their_one_step_kin(process: Process) -> None:
    """With z0 = z0_before, 2M is DDIM and its SDE is the Gaussian posterior; both never look back for T <= 2."""
    for two_step, one_step in [(dpmpp_2m, ddim), (dpmpp_2m_sde, ancestral)]:
        for num_steps in (1, 2, 40):
            times = time_grid(TimeGrid.QUADRATIC, process, num_steps)
            found, expected = two_step(process, times), one_step(process, times)
            np.testing.assert_allclose(found.latent, expected.latent, rtol=1e-11)
            np.testing.assert_allclose(found.data + found.previous, expected.data, rtol=1e-10)
            np.testing.assert_allclose(found.noise, expected.noise, rtol=1e-10)
            assert np.flatnonzero(found.previous).tolist() == list(range(1, num_steps - 1))
            assert not expected.previous.any()


@dataclass(frozen=True)
class Marginals:
    """The exact reverse process of data N(0, v) with noise shape G at given times [T]."""

    variance: Times  # of z
    posterior: Times  # the data prediction is posterior z
    ode: float  # z_last / z_first along the probability-flow ODE
    sde: float  # E[z_last | z_first] / z_first of the reverse SDE

    @classmethod
    def at(cls, process: Process, times: Times, v: float, shape: float) -> "Marginals":
        alpha = process.alpha(times)
        variance = alpha**2 * v + (process.sigma(times) * shape) ** 2
        change = variance[-1] / variance[0]
        return cls(variance, alpha * v / variance, np.sqrt(change), alpha[0] / alpha[-1] * change)


def moments(table: StepTable, exact: Marginals, shape: float, num_steps: int) -> tuple[float, float]:
    """The mean after so many steps of one that starts at 1, and the variance of what starts with the exact one."""
    mean, covariance = np.array([1.0, 0.0]), np.diag([exact.variance[0], 0.0])  # of z and the z before
    for i in range(num_steps):
        now = table.latent[i] + table.data[i] * exact.posterior[i]
        step = np.array([[now, table.previous[i] * exact.posterior[i - 1]], [1.0, 0.0]])
        mean, covariance = step @ mean, step @ covariance @ step.T
        covariance[0, 0] += (table.noise[i] * shape) ** 2
    return mean[0], covariance[0, 0]


@pytest.mark.parametrize("shape", [1.0, np.sqrt(0.5)])
@pytest.mark.parametrize("v", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("process", [VP(), VE()])
@pytest.mark.parametrize(
    ("solver", "allowed"),
    [
        (Solver.EULER_MARUYAMA, 5e-3),
        (Solver.ANCESTRAL, 1.5e-2),
        (Solver.DDIM, 7e-3),
        (Solver.DPMPP_2M, 5e-4),
        (Solver.DPMPP_2M_SDE, 5e-4),
    ],
)
def test_a_thousand_steps_end_in_the_variance_of_the_data(
    solver: Solver, allowed: float, process: Process, v: float, shape: float
) -> None:
    """Relative tolerances: what order one and two leave at T = 1000; VE's sigma_min alone leaves 4e-4 at v = 1/4."""
    times = time_grid(TimeGrid.LOGSNR, process, 1000)
    exact = Marginals.at(process, times, v, shape)
    _, variance = moments(SOLVERS[solver](process, times), exact, shape, 1000)
    assert variance == pytest.approx(v, rel=allowed)


FINE = (80, 160, 320, 640)  # numbers of steps from 1 to 0.01, away from the singular end


def falling(errors: list[float]) -> list[float]:
    """The observed order between each number of steps and its double."""
    return [float(np.log2(coarse / fine)) for coarse, fine in pairwise(errors)]


@pytest.mark.parametrize("shape", [1.0, np.sqrt(0.5)])
@pytest.mark.parametrize("v", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("grid", TimeGrid)
@pytest.mark.parametrize("process", [VP(), VE()])
def test_every_solver_converges_with_its_order(process: Process, grid: TimeGrid, v: float, shape: float) -> None:
    """Relative errors of the mean and the variance at t = 0.01 against the exact reverse process.

    A deterministic solver is measured along the ODE, where the variance says no more than the mean. The
    exponential stochastic ones have the mean exactly (their data predictions are a martingale), so they are
    measured by the variance, in which Euler-Maruyama may be better than its order.
    """
    means, variances = {}, {}
    for solver in Solver:
        mean_errors, variance_errors = [], []
        for num_steps in FINE:
            times = time_grid(grid, process, num_steps + 1, eps=0.01)
            exact = Marginals.at(process, times, v, shape)
            mean, variance = moments(SOLVERS[solver](process, times), exact, shape, num_steps)
            mean_errors.append(abs(mean / (exact.ode if solver in DETERMINISTIC else exact.sde) - 1.0))
            variance_errors.append(abs(variance / exact.variance[-1] - 1.0))
        means[solver], variances[solver] = mean_errors, variance_errors
    for order in falling(means[Solver.DDIM]) + falling(variances[Solver.ANCESTRAL]):
        assert 0.85 < order < 1.2
    for errors in (means[Solver.DPMPP_2M], variances[Solver.DPMPP_2M_SDE]):
        assert np.mean(falling(errors)) > 1.6  # over three doublings: single ones vary where an error crosses zero
    for solver in (Solver.ANCESTRAL, Solver.DPMPP_2M_SDE):
        assert max(means[solver]) < 1e-12
    assert 0.75 < falling(means[Solver.EULER_MARUYAMA])[-1] < 1.1
    assert falling(variances[Solver.EULER_MARUYAMA])[-1] > 0.85
    for better, worse in [(Solver.DPMPP_2M, Solver.DDIM), (Solver.DPMPP_2M_SDE, Solver.ANCESTRAL)]:
        assert variances[better][-1] < 0.1 * variances[worse][-1]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 16, 1000])
@pytest.mark.parametrize("grid", TimeGrid)
@pytest.mark.parametrize("process", WIDE)
def test_a_grid_runs_from_one_to_eps_and_always_falls(process: Process, grid: TimeGrid, num_steps: int) -> None:
    for eps in (EPS, 0.01):
        times = time_grid(grid, process, num_steps, eps)
        assert times.shape == (num_steps,)
        assert times[0] == 1.0
        assert num_steps == 1 or times[-1] == eps
        assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("process", WIDE)
def test_the_steps_of_each_grid_are_equal_in_its_variable(process: Process) -> None:
    times = {grid: time_grid(grid, process, 100) for grid in TimeGrid}
    np.testing.assert_array_equal(times[TimeGrid.UNIFORM], uniform_times(100))
    np.testing.assert_allclose(np.diff(np.sqrt(times[TimeGrid.QUADRATIC])), (np.sqrt(EPS) - 1.0) / 99, rtol=1e-12)
    log_snr = np.log(process.alpha(times[TimeGrid.LOGSNR]) / process.sigma(times[TimeGrid.LOGSNR]))
    np.testing.assert_allclose(np.diff(log_snr), (log_snr[-1] - log_snr[0]) / 99, rtol=1e-9)
    if isinstance(process, VE):
        np.testing.assert_array_equal(times[TimeGrid.LOGSNR], times[TimeGrid.UNIFORM])


@pytest.mark.parametrize("num_steps", [1, 2, 1000])
@pytest.mark.parametrize("solver", Solver)
@pytest.mark.parametrize("process", WIDE)
def test_every_table_is_finite_from_the_first_time_to_the_last(
    process: Process, solver: Solver, num_steps: int
) -> None:
    for grid in TimeGrid:
        table = SOLVERS[solver](process, time_grid(grid, process, num_steps))
        for column in (table.latent, table.data, table.previous, table.noise):
            assert column.shape == (num_steps,)
            assert np.isfinite(column).all()


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
    with pytest.raises(OptionError, match="steps must be at least 1"):
        time_grid(TimeGrid.LOGSNR, VP(), 0)
    with pytest.raises(OptionError, match="unknown time grid 'cosine'; the known ones are uniform, quadratic, logsnr"):
        parse_word(TimeGrid, "cosine", "time grid")
    with pytest.raises(OptionError, match=r"unknown solver 'heun'; .*ancestral, ddim, dpmpp_2m, dpmpp_2m_sde"):
        parse_word(Solver, "heun", "solver")
