"""Steps taken at once end where the single steps end, for everything that takes steps at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.manifest import Diffusion
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import UNFITTED, Cache, Decision, Event, Needs, Policy, Reuse, Signals, Step, TokenFacts
from runtime.cache.state import Trajectory
from runtime.leaps import Leaps
from runtime.noise import NoiseStream
from runtime.sampler import Model, load
from runtime.schedule import schedule_of
from runtime.sde import VE, VP, Process, facts_from_process
from runtime.solvers import Solver, TimeGrid
from tests.tiny import gaussian, make_bundle

ONE_STEP = [Solver.EULER_MARUYAMA, Solver.ANCESTRAL, Solver.DDIM]
MULTISTEP = [Solver.DPMPP_2M, Solver.DPMPP_2M_SDE]
PROCESSES = [VP(), VE(0.01, 30.0)]
Leap = tuple[int, int, Event]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder, _ = make_bundle(tmp_path_factory.mktemp("tiny"))
    with load(folder, threads=1) as model:
        yield model


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Leap]:
    """The leaps that are taken; and chunks of noise so small that leaps cross them."""
    leaps: list[Leap] = []
    coast = Trajectory.coast

    def noted(self: Trajectory, i: int, j: int, event: Event) -> None:
        leaps.append((i, j, event))
        coast(self, i, j, event)

    monkeypatch.setattr(Trajectory, "coast", noted)
    monkeypatch.setattr(NoiseStream, "NORMAL_CHUNK", 3 * 4 * 30)  # three steps of four samples
    monkeypatch.setattr(NoiseStream, "WORD_CHUNK", 7 * 4 * 30)
    return leaps


def of_process(model: Model, process: Process) -> Model:
    """The same network, taken for one of another process."""
    kind, parameters = facts_from_process(process)
    diffusion = model.manifest.diffusion
    return Model(replace(model.manifest, diffusion=Diffusion(kind, parameters, diffusion.eps, diffusion.domain)),
                 model.backend)  # fmt: skip


def miss(model: Model, cache: Cache, solver: str, steps: int = 60, grid: str = "uniform") -> float:
    """How far leaping is from stepping, in shares of the largest number."""
    drawn = model.sample(4, steps=steps, solver=solver, grid=grid, cache=cache)
    stepped = model.sample(4, steps=steps, solver=solver, grid=grid, cache=cache, on_step=lambda info: None)
    assert np.array_equal(drawn.stats.recomputed, stepped.stats.recomputed)
    assert np.array_equal(drawn.stats.events, stepped.stats.events)
    np.testing.assert_array_equal(drawn.stats.age, stepped.stats.age)
    assert np.isfinite(stepped.series).all()
    return float(np.abs(drawn.series - stepped.series).max() / np.abs(stepped.series).max())


def allowed(solver: Solver, reuse: Reuse) -> float:
    """1e-4 of the scale; measured are 7e-6, and 1.5e-4 for stale or last-minute scores in Euler-Maruyama.

    There its last steps, where dt is long beside sigma^2, cancel numbers a few thousand times their result,
    and it is the single steps that lose the digits.
    """
    return 5e-4 if (solver, reuse) == (Solver.EULER_MARUYAMA, Reuse.FEATURE) else 1e-4


@pytest.mark.parametrize("low", [0, 2], ids=["no-low", "low"])
@pytest.mark.parametrize("reuse", UNFITTED)
@pytest.mark.parametrize("process", PROCESSES, ids=["VP", "VE"])
@pytest.mark.parametrize("solver", ONE_STEP)
def test_leaps_end_where_single_steps_end(
    tiny: Model, taken: list[Leap], solver: Solver, process: Process, reuse: Reuse, low: int
) -> None:
    """To the share `allowed`; the record is the same to the last number."""
    cache = E2CRF(R=15, K=low, low_every=4 if low else None, reuse=reuse)
    assert miss(of_process(tiny, process), cache, solver) < allowed(solver, reuse)
    lengths = [j - i for i, j, _ in taken]
    assert max(lengths) > 12
    assert min(lengths) >= 2
    assert {event for _, _, event in taken} == {Event.PRIOR, Event.REUSE}


@settings(max_examples=25, deadline=None)
@given(
    st.sets(st.integers(15, 39), min_size=1, max_size=6),
    st.sets(st.integers(15, 39), max_size=4),
    st.sampled_from(ONE_STEP),
    st.sampled_from([Reuse.RESIDUAL_LINEAR, Reuse.DATA_LINEAR, Reuse.FEATURE]),
    st.sampled_from(["uniform", "quadratic"]),
    st.booleans(),
)
def test_a_plan_leaps_where_single_steps_end(
    tiny: Model, refreshes: set[int], lows: set[int], solver: Solver, reuse: Reuse, grid: str, is_guarded: bool
) -> None:
    """Any refreshes, any low steps, with a guard that refreshes everything once more or without."""
    plan = Plan(
        source_digest=tiny.manifest.source.digest, steps=40, solver=solver, grid=grid, reuse=reuse,
        refreshes=tuple(sorted(refreshes)), K=2, low_steps=tuple(sorted(lows)),
        surprise=(0.0,) * len(refreshes) if is_guarded else (),
    )  # fmt: skip
    assert miss(tiny, plan, solver, 40, grid) < allowed(solver, Reuse.FEATURE)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_solvers_that_look_back_never_leap(tiny: Model, taken: list[Leap], solver: Solver) -> None:
    """With or without `on_step`: the same steps, bitwise; and the samples are finite."""
    for reuse in UNFITTED:
        cache = E2CRF(R=15, K=2, low_every=4, reuse=reuse)
        assert miss(tiny, cache, solver, grid="logsnr") == 0.0
    assert not taken
    tiny.sample(4, steps=60, solver="ddim", cache=E2CRF(R=15, K=0))
    assert taken  # the watch works


@pytest.mark.parametrize("steps_at_once", [1, 7])
def test_impact_adds_up_over_a_leap_as_over_its_steps(tiny: Model, taken: list[Leap], steps_at_once: int) -> None:
    """A plug-in that probes a token and then reuses; 1e-4 against `on_step`, which forces single steps."""
    impacts: list[float] = []

    class Probing:
        reuse, needs, feedback = Reuse.RESIDUAL, Needs.IMPACT, 0.0

        def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
            def policy(step: Step, signals: Signals) -> Decision:
                i = step.index
                if i < 20:
                    return Decision(Event.PRIOR, until=20)
                if i == 41:
                    impacts.append(float(signals.impact[0]))
                tokens = np.array([2]) if i == 21 else None
                event = Event.FIRST if i == 20 else Event.CHOSEN if i == 21 else Event.REUSE
                return Decision(event, tokens, until=i + steps_at_once if 22 <= i <= 35 else 0)

            return policy

    tiny.sample(1, steps=60, cache=Probing())
    assert len(taken) == 1 + (2 if steps_at_once > 1 else 0)
    tiny.sample(1, steps=60, cache=Probing(), on_step=lambda info: None)
    assert impacts[0] > 0
    assert impacts[0] == pytest.approx(impacts[1], rel=1e-4)


def test_a_step_alone_is_not_a_leap(tiny: Model, taken: list[Leap]) -> None:
    tiny.sample(2, steps=60, cache=E2CRF(R=2, K=0))
    assert [event for _, _, event in taken] == [Event.PRIOR]


@pytest.mark.parametrize("process", [VP(), VE(0.01, 30.0)], ids=["VP", "VE"])
@pytest.mark.parametrize("reuse", UNFITTED)
@pytest.mark.parametrize("solver", ONE_STEP)
def test_a_leap_is_its_single_steps_multiplied_out(process: Process, reuse: Reuse, solver: Solver) -> None:
    """Oracle: the recursion of the solver in float64, from random latents, values, slopes and noise; 1e-5."""
    manifest = gaussian(9, process, "frequency").model.manifest
    schedule = schedule_of(manifest, solver, 30, TimeGrid.UNIFORM, reuse)
    rng = np.random.default_rng(0)
    start, value, slope = rng.standard_normal((3, 9, 1))
    slope *= reuse.is_linear
    normals = rng.standard_normal((30, 9, 1))
    for i, j, prior in ((0, 12, True), (3, 5, True), (12, 29, False), (20, 30, False), (28, 30, False)):
        leap = Leaps(schedule).get(i, j, prior=prior)
        z = start.copy()
        for m in range(i, j):
            cached = value + slope * (schedule.times[m] - schedule.times[i])
            reused = schedule.from_latent[m] * z + schedule.from_value[m] * cached
            data = schedule.gaussian[m] * z if prior else reused
            z = schedule.step_latent[m] * z + schedule.step_data[m] * data + schedule.step_noise[m] * normals[m]
        found = leap.latent * start
        assert (leap.value is None) == (leap.slope is None) == prior
        if leap.value is not None and leap.slope is not None:
            found = found + leap.value * value + leap.slope * slope
        assert (leap.noise is None) == (solver is Solver.DDIM)
        if leap.noise is not None:
            found = found + (leap.noise * normals[i:j]).sum(axis=0)
        np.testing.assert_allclose(found, z, rtol=0, atol=1e-5 * np.abs(z).max())


def test_leaps_are_kept_and_not_mixed_up(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same object for the same steps; another for the prior phase; and the memory is bounded."""
    leaps = Leaps(schedule_of(tiny.manifest, Solver.DDIM, 60, TimeGrid.UNIFORM, Reuse.RESIDUAL))
    one = leaps.get(3, 9, prior=True)
    assert leaps.get(3, 9, prior=True) is one
    assert leaps.get(3, 9, prior=False) is not one
    assert leaps.get(3, 9, prior=False).value is not None
    most = 40 * leaps.get(3, 9, prior=False).nbytes
    monkeypatch.setattr("runtime.leaps._KEPT_BYTES", most)
    for i in range(20):
        for j in range(i + 2, 60):
            leap = leaps.get(i, j, prior=False)
            assert leaps.get(i, j, prior=False) is leap
            assert sum(one.nbytes for one in leaps._made.values()) <= most


def test_tables_of_channels_that_are_alike_are_kept_once(tiny: Model) -> None:
    """A channel stands for all where all vary; the reuse mode that predicts as the prior does shares its table."""
    schedule = schedule_of(tiny.manifest, Solver.DDIM, 60, TimeGrid.UNIFORM, Reuse.RESIDUAL)
    assert schedule.gaussian.shape == (60, 15, 1)
    assert schedule.from_latent is schedule.gaussian
    scale = tiny.manifest.standardisation
    std = np.array(scale.std)
    std[3, 1] = 0.0
    uneven = replace(tiny.manifest, standardisation=replace(scale, std=std.tolist()))
    schedule = schedule_of(uneven, Solver.DDIM, 60, TimeGrid.UNIFORM, Reuse.FEATURE)
    assert (schedule.gaussian.shape, schedule.from_latent.shape) == ((60, 15, 2), (60, 15, 1))
    assert not schedule.gaussian[:, 3, 1].any()
    assert schedule.gaussian[:, 3, 0].all()
