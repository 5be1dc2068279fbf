"""What is fitted: the regression on numbers that are known, and fitted plans on Gaussians with correlated tokens.

Plans of very few refreshes are held against trajectories of the same model, on noise they were not fitted to, that ask
the network at every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bench.fit
from bench.calibration import Calibration
from bench.candidates import Candidate
from bench.fit import Teacher, fit, regress
from bench.quality import paired_error
from bench.reference import reference_from_series
from runtime.cache.hold import Floats, LinearHold
from runtime.cache.plan import Plan
from runtime.cache.policy import Reuse
from runtime.sampler import Model, StepInfo
from runtime.sde import VP
from runtime.solvers import Solver, TimeGrid
from tests import calibrating
from tests.calibrating import STEPS, calibration
from tests.tiny import gaussian

FIRST = 10  # end of the prior phase of a teacher
FREQUENCY = np.array([0, 1, 1, 2])

MODES = (Reuse.RESIDUAL, Reuse.RESIDUAL_FITTED)

Triple = tuple[Floats, Floats, Floats]

correlated = calibrating.correlated


# The regression


def made_up(n: int = 400) -> Triple:
    """Independent regressors [n, N = 4, C = 2] of unlike sizes, about means that are not zero."""
    rng = np.random.default_rng(0)
    value, before, z = (
        (level + scale * rng.standard_normal((n, 4, 2))).astype(np.float32)
        for level, scale in ((1.0, 1.0), (-2.0, 0.5), (0.3, 2.0))
    )
    return value, before, z


def coefficients() -> NDArray[np.float64]:
    """[3, F = 3, C = 2]"""
    return np.random.default_rng(1).uniform(-1.5, 1.5, (3, 3, 2))


def wanted_of(regressors: Triple, offset: NDArray[np.float64]) -> Floats:
    """The linear function of `coefficients`, one offset [N, C] per token."""
    parts = (one[FREQUENCY] * regressor for one, regressor in zip(coefficients(), regressors, strict=True))
    return np.asarray(sum(parts) + offset, np.float32)


OFFSET = np.random.default_rng(2).uniform(-1.0, 1.0, (4, 2))


def test_a_linear_function_is_found_but_for_the_pull() -> None:
    """Oracle: its coefficients. The pull takes 1e-3 of their distance, here up to 2.5, from holding the new value."""
    regressors = made_up()
    found = regress(wanted_of(regressors, OFFSET), regressors, FREQUENCY)
    expected = coefficients()[:, FREQUENCY]
    assert np.abs(found.tables[:3] - expected).max() < 4e-3  # regressors correlate by 1 / sqrt(400) at random
    assert np.abs(found.tables[:3] - expected).max() > 1e-5  # there is a pull
    assert np.array_equal(found.tables[:3, 1], found.tables[:3, 2])  # one frequency
    assert np.abs(found.offset - OFFSET).max() < 0.015  # 4e-3 times the means
    assert {table.dtype for table in (found.value, found.before, found.latent, found.offset)} == {np.dtype(np.float32)}
    missed = found.of(*regressors) - wanted_of(regressors, OFFSET)
    assert np.sqrt(np.mean(missed**2)) < 5e-3
    assert np.abs(missed.mean(axis=0)).max() < 1e-5  # no token is off on average


def test_of_noise_the_least_squares_are_found() -> None:
    """Oracle: `numpy.linalg.lstsq` of each frequency and channel, tokens about their own means."""
    regressors, rng = made_up(60), np.random.default_rng(3)
    wanted = wanted_of(regressors, OFFSET) + rng.standard_normal((60, 4, 2)).astype(np.float32)
    found = regress(wanted, regressors, FREQUENCY)
    columns, target = np.stack(regressors, axis=-1), wanted - wanted.mean(axis=0)
    columns = columns - columns.mean(axis=0)
    for k in range(3):
        of = np.isin(FREQUENCY, k)
        for channel in range(2):
            best = np.linalg.lstsq(columns[:, of, channel].reshape(-1, 3), target[:, of, channel].ravel())[0]
            for token in np.flatnonzero(of):
                assert np.abs(found.tables[:3, token, channel] - best).max() < 5e-3  # the pull


def test_what_never_varies_keeps_the_new_value() -> None:
    value, before, z = made_up()
    value[:, 3], before[:, 3], z[:, 3] = 0.7, 0.0, 0.0
    wanted = wanted_of((value, before, z), OFFSET)
    wanted[:, 3] = -0.2
    found = regress(wanted, (value, before, z), FREQUENCY)
    assert np.array_equal(found.tables[:3, 3], [[1, 1], [0, 0], [0, 0]])
    assert np.abs(found.of(value, before, z)[:, 3] + 0.2).max() < 1e-6  # float32
    no_first = regress(wanted_of((value, 0 * before, z), OFFSET), (value, 0 * before, z), FREQUENCY)
    assert not no_first.before.any()  # as at the first refresh
    assert np.abs(no_first.latent[:3] - coefficients()[2, FREQUENCY[:3]]).max() < 4e-3


@pytest.mark.parametrize("where", range(4))
@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_left_out(where: int, what: float) -> None:
    """Oracle: the fit without them."""
    regressors = made_up(20)
    wanted = wanted_of(regressors, OFFSET) + np.random.default_rng(4).standard_normal((20, 4, 2)).astype(np.float32)
    spoilt = [one.copy() for one in (*regressors, wanted)]
    spoilt[where][[3, 7], 1, 0] = what
    found = regress(spoilt[3], (spoilt[0], spoilt[1], spoilt[2]), FREQUENCY)
    kept = np.setdiff1d(np.arange(20), [3, 7])
    value, before, z = (one[kept] for one in regressors)
    assert np.array_equal(found.tables, regress(wanted[kept], (value, before, z), FREQUENCY).tables)


# The teacher


def plan_of(
    refreshes: Sequence[int], solver: Solver, reuse: Reuse, *fit: LinearHold, grid: TimeGrid = TimeGrid.UNIFORM
) -> Plan:
    return Plan(source_digest="none", steps=STEPS, solver=solver, grid=grid, reuse=reuse, refreshes=tuple(refreshes),
                fit=fit)  # fmt: skip


def taught(
    model: Model, solver: Solver, n: int = 100, *, grid: TimeGrid = TimeGrid.UNIFORM, batch_size: int = 64
) -> Teacher:
    """A teacher who asks the network at every step after the prior phase."""
    teacher = Teacher(STEPS, 7, 1)
    many = plan_of(range(FIRST, STEPS), solver, Reuse.RESIDUAL, grid=grid)
    model.sample(n, cache=many, seed=teacher.seed, batch_size=batch_size, on_step=teacher.watch)
    assert teacher.num_samples == n
    return teacher


@pytest.mark.parametrize("num_steps", [10, 60, 200, 201, 1000])
def test_the_nearest_steps_rise_and_none_is_the_end(num_steps: int) -> None:
    """Oracle: the gap of 200 steps that are kept evenly; all of them where there are no more."""
    teacher, rng = Teacher(num_steps, 0, 1), np.random.default_rng(0)
    assert len(teacher.kept) == min(num_steps, 200)
    assert teacher.kept[-1] == num_steps
    for count in (1, 2, 5, 9):
        asked = sorted(rng.choice(num_steps, count, replace=False).tolist())
        found = teacher.nearest(asked)
        assert list(found) == sorted(set(found))
        assert all(0 < step < num_steps and step in teacher.kept for step in found)
        far = max(1, -(-num_steps // 200))  # at either end; half of that elsewhere
        assert all(min(abs(step - one) for one in found) <= far for step in asked)
    assert teacher.nearest((0, 1, num_steps - 1)) == (teacher.kept[0], teacher.kept[-2])
    assert teacher.nearest(teacher.kept[:-1].tolist()) == tuple(teacher.kept[:-1].tolist())


def test_a_teacher_keeps_the_latents_that_a_step_begins_with_whatever_the_batches(correlated: Model) -> None:
    """Oracle: the latents after the step before; other batches round in another way, 1e-5 of the largest."""
    left: dict[int, Floats] = {}

    def watch(info: StepInfo) -> None:
        left[info.index + 1] = info.z.copy()

    many = plan_of(range(FIRST, STEPS), Solver.ANCESTRAL, Reuse.RESIDUAL)
    drawn = correlated.sample(20, cache=many, seed=7, on_step=watch)
    together = taught(correlated, Solver.ANCESTRAL, 20)
    apart = taught(correlated, Solver.ANCESTRAL, 20, batch_size=7)
    for step in (1, FIRST, 31, STEPS):
        assert np.array_equal(together.before(step), left[step])
        np.testing.assert_allclose(apart.before(step), left[step], rtol=0, atol=1e-5 * np.abs(left[step]).max())
    assert np.array_equal(together.before(STEPS), drawn.z)


# What a fit does


@pytest.mark.parametrize(
    ("solver", "factor"),  # measured: 34 to 187, 4.0 to 6.3, above 600: held, its last steps leave the data
    [(Solver.DDIM, 15.0), (Solver.ANCESTRAL, 2.5), (Solver.EULER_MARUYAMA, 50.0)],
)
@pytest.mark.parametrize("refreshes", [(30,), (30, 46), (20, 42)])
def test_fitted_refreshes_end_much_nearer_on_new_noise(
    correlated: Model, solver: Solver, factor: float, refreshes: tuple[int, ...]
) -> None:
    """Oracle: the network at every step; the distance to it of the better of holding and extrapolating."""
    teacher = taught(correlated, solver)
    target = correlated.sample(60, cache=plan_of(range(FIRST, STEPS), solver, Reuse.RESIDUAL), seed=0).series

    def missed(reuse: Reuse, *fit: LinearHold) -> float:
        drawn = correlated.sample(60, cache=plan_of(refreshes, solver, reuse, *fit), seed=0)
        return paired_error(drawn.series, target, reference_from_series(target))

    plain = min(missed(Reuse.RESIDUAL), missed(Reuse.RESIDUAL_LINEAR))
    found = fit(correlated, teacher, solver, TimeGrid.UNIFORM, refreshes)
    fitted = missed(Reuse.RESIDUAL_FITTED, *found)
    assert fitted < plain / factor
    assert fitted < 0.5  # data std


@dataclass(frozen=True)
class Exactly:
    """A hold that is not linear but right."""

    wanted: Floats

    def of(self, value: Floats, before: Floats, z: Floats) -> Floats:
        return self.wanted


@pytest.mark.parametrize("solver", [Solver.DDIM, Solver.ANCESTRAL, Solver.EULER_MARUYAMA])
@pytest.mark.parametrize("grid", TimeGrid)
def test_what_is_wanted_would_bring_the_latents_to_the_teachers(
    correlated: Model, monkeypatch: pytest.MonkeyPatch, solver: Solver, grid: TimeGrid
) -> None:
    """Oracle: the teacher's latents, at the next refresh and at the end, noise in between and all.

    1e-4 of the largest: what is wanted is divided by the weight it will be held with. Noise left out is 1e-1 and more.
    """
    teacher = taught(correlated, solver, 20, grid=grid)
    reached: list[Floats] = []

    def exactly(wanted: Floats, regressors: Triple, frequency: NDArray[np.int64]) -> Exactly:
        reached.append(regressors[2].copy())
        return Exactly(wanted)

    sample = correlated.sample

    def spied(n: int, **options: Any) -> Any:
        drawn = sample(n, **options)
        reached.append(drawn.z)
        return drawn

    monkeypatch.setattr(bench.fit, "regress", exactly)
    monkeypatch.setattr(correlated, "sample", spied)
    refreshes = (14, 30, 32, 46)
    fit(correlated, teacher, solver, grid, refreshes)
    for step, z in zip((*refreshes[1:], STEPS), reached[1:], strict=True):
        wanted = teacher.before(step)
        assert np.abs(z - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_value_that_is_used_up_at_once_is_kept_as_it_is(correlated: Model) -> None:
    """Neighbouring refreshes, and one at the last step: neither is held for anything, so that nothing is fitted."""
    teacher = taught(correlated, Solver.ANCESTRAL)
    found = fit(correlated, teacher, Solver.ANCESTRAL, TimeGrid.UNIFORM, (20, 21, 40, STEPS - 1))
    assert len(found) == 4
    for one in (found[0], found[3]):
        np.testing.assert_allclose(one.tables[:3], np.ones((3, 16, 1)) * [[[1]], [[0]], [[0]]], atol=1e-6)
        assert np.abs(one.offset).max() < 1e-6
    for one in (found[1], found[2]):
        assert np.abs(one.value - 1).max() > 0.01  # which is
    plan = plan_of((20, 21, 40, STEPS - 1), Solver.ANCESTRAL, Reuse.RESIDUAL_FITTED, *found)
    assert correlated.sample(5, cache=plan).stats.passes == 4


def test_each_refresh_corrects_what_those_before_it_left_over(correlated: Model) -> None:
    """A later refresh changes what the ones before are held for, and not the other way round."""
    teacher = taught(correlated, Solver.DDIM)
    two, other, alone = (
        fit(correlated, teacher, Solver.DDIM, TimeGrid.UNIFORM, r) for r in ((24, 44), (30, 44), (44,))
    )
    assert not np.allclose(two[1].tables, other[1].tables, atol=1e-3)
    assert not alone[0].before.any()
    assert two[1].before.any()
    three = fit(correlated, teacher, Solver.DDIM, TimeGrid.UNIFORM, (24, 44, 52))
    assert np.array_equal(three[0].tables, two[0].tables)


# In a calibration


def without_fit(model: Model, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Plan:
    with monkeypatch.context() as patched:
        patched.setattr(Calibration, "_teacher", lambda self, n: None)
        return calibration(model, **options).run()


def with_and_without_fit(model: Model, monkeypatch: pytest.MonkeyPatch, budget: float) -> tuple[Plan, Plan]:
    fitted, plain = calibration(model, budget=budget).run(), without_fit(model, monkeypatch, budget=budget)
    assert fitted.measured["met"]
    assert plain.measured["met"]
    assert (fitted.reuse, len(fitted.fit)) == (Reuse.RESIDUAL_FITTED, len(fitted.refreshes))
    assert plain.fit == ()
    return fitted, plain


@pytest.mark.parametrize("budget", [0.01, 0.02])
def test_a_fit_needs_fewer_refreshes(correlated: Model, monkeypatch: pytest.MonkeyPatch, budget: float) -> None:
    """Measured: one call for two. (Below a budget of 1 % it is chance which of the plans passes.)"""
    fitted, plain = with_and_without_fit(correlated, monkeypatch, budget)
    assert fitted.measured["passes"] < plain.measured["passes"]


def test_with_as_many_refreshes_a_fit_comes_nearer_to_every_step(
    correlated: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured: 0.056 for 0.139 data std, with a call each."""
    fitted, plain = with_and_without_fit(correlated, monkeypatch, budget=0.05)
    assert fitted.measured["passes"] == plain.measured["passes"]
    assert fitted.measured["paired_plan_to_dense"] < 0.5 * plain.measured["paired_plan_to_dense"]


def test_a_solver_that_looks_back_is_calibrated_without_a_fit(
    correlated: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the calibration that knows of no fit."""
    told: list[tuple[str, float]] = []
    calibrating = calibration(correlated, told, solver=Solver.DPMPP_2M)
    plan = calibrating.run()
    assert calibrating.planner.teacher is None
    assert plan.fit == ()
    assert plan.reuse != Reuse.RESIDUAL_FITTED
    assert "trajectories to fit to" not in {doing for doing, _ in told}
    assert plan.measured["num_samples"]["fit"] == 0  # it says so
    plain = without_fit(correlated, monkeypatch, solver=Solver.DPMPP_2M)
    assert (plain.refreshes, plain.reuse, plain.surprise) == (plan.refreshes, plan.reuse, plan.surprise)


@pytest.mark.parametrize("spacing", ["power 1", "power 1.5", "power 2"])
def test_refreshes_fall_on_steps_that_a_teacher_keeps(spacing: str) -> None:
    """Of 400 steps every second one is kept; the spacing of the same name without a fit may lie on any."""
    calibrating = calibration(gaussian(8, VP(), "frequency").model, steps=(400,))
    teacher = calibrating.planner.teacher = calibrating._teacher(48)
    kept = set(teacher.kept.tolist())
    assert len(kept) == 200
    others = set[int]()
    for alpha, count in ((0.1, 4), (0.3, 5), (0.6, 7)):
        plain, fitted = (calibrating.planner.plan(Candidate(alpha, spacing, mode), count) for mode in MODES)
        others |= set(plain.refreshes) - kept
        assert set(fitted.refreshes) <= kept
        assert np.abs(np.subtract(fitted.refreshes, plain.refreshes)).max() <= 1
        assert len(fitted.fit) == count
    assert others  # else it was chance


def test_a_sample_that_has_left_the_data_has_no_say() -> None:
    """Finite, but a thousand times too large: without it the very same numbers."""
    rng = np.random.default_rng(5)
    frequency = np.array([0, 1, 1], np.int64)
    value, before, z, wanted = rng.normal(size=(4, 50, 3, 2)).astype(np.float32)
    expected = regress(wanted[:-1], (value[:-1], before[:-1], z[:-1]), frequency)
    z[-1] *= 1e3
    assert np.array_equal(regress(wanted, (value, before, z), frequency).tables, expected.tables)


def test_where_all_samples_have_left_the_data_the_new_value_is_held() -> None:
    lost = np.full((4, 3, 2), np.nan, np.float32)
    found = regress(lost, (lost, lost, lost), np.array([0, 1, 1], np.int64))
    assert (
        [float(table.min()) for table in found.tables] == [float(table.max()) for table in found.tables] == [1, 0, 0, 0]
    )


def test_a_large_model_is_kept_at_fewer_steps() -> None:
    """Half a gigabyte: 2^27 numbers over the steps kept; but never at fewer than 20 steps."""
    assert [len(Teacher(1000, 0, values).kept) for values in (2**19, 2**20, 2**21, 2**25)] == [200, 128, 64, 20]
