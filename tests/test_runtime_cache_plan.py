"""Plans: they recompute at exactly their steps, come back from their file, are refused elsewhere, and guard."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cache.options import E2CRF
from runtime.cache.plan import PLAN_FILE, SCHEMA, Plan, PlanError, read_plan
from runtime.cache.policy import Event
from runtime.errors import OptionError
from runtime.sampler import Model, StepInfo, load
from runtime.sde import VP
from tests import opened
from tests.cache_doubles import Watched, close, plan_for
from tests.tiny import gaussian

tiny = opened.tiny


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.integers(12, 39), min_size=1, max_size=8),
    st.sets(st.integers(0, 39), max_size=8),
    st.integers(0, 4),
    st.sampled_from(["ancestral", "ddim", "dpmpp_2m"]),
)
def test_a_plan_recomputes_at_exactly_its_steps(
    tiny: Model, refreshes: set[int], lows: set[int], K: int, solver: str
) -> None:
    rising = tuple(sorted(refreshes))
    cache = plan_for(tiny, rising, K=K, low_steps=tuple(sorted(lows)), solver=solver)
    stats = tiny.sample(2, solver=solver, cache=cache).stats
    expected = np.zeros_like(stats.recomputed)
    expected[list(rising)] = 2 * stats.tokens_per_frequency
    partial = [i for i in lows - refreshes if i > rising[0]]
    expected[partial, :K] = 2 * stats.tokens_per_frequency[:K]
    assert np.array_equal(stats.recomputed, expected)
    assert stats.work.tokens == expected.sum()
    columns = dict(zip(Event, stats.events.T, strict=True))
    assert columns[Event.PRIOR].sum() == 2 * rising[0]
    assert columns[Event.FIRST].sum() == 2
    assert columns[Event.LOW].sum() == (2 * len(partial) if K else 0)


def test_a_plan_comes_back_from_its_file_as_it_was(tiny: Model, tmp_path: Path) -> None:
    plan = plan_for(tiny, (20, 30), K=2, low_steps=(25, 35), surprise=(0.5, 0.25), guard=3.0, reuse="data-linear",
                    grid="logsnr", measured={"passes": 2.0, "cases": [1, 2]})  # fmt: skip
    plan.write(tmp_path / PLAN_FILE)
    assert read_plan(tmp_path / PLAN_FILE) == plan
    plan_for(tiny, (3,)).write(tmp_path / PLAN_FILE)  # replaced whole
    assert read_plan(tmp_path / PLAN_FILE) == plan_for(tiny, (3,))
    assert [path.name for path in tmp_path.iterdir()] == [PLAN_FILE]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"steps": 41}, "the plan is for steps 40, found steps 41; calibrate"),
        ({"solver": "ddim"}, "the plan is for solver ancestral, found solver ddim; calibrate"),
        ({"grid": "quadratic"}, "the plan is for time grid uniform, found time grid quadratic; calibrate"),
    ],
)
def test_a_plan_of_other_settings_is_refused_with_the_reason(tiny: Model, call: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        tiny.sample(1, **({"cache": plan_for(tiny, (20,))} | call))


def test_a_plan_of_another_checkpoint_is_refused_with_the_reason(tiny: Model) -> None:
    found = tiny.manifest.source.digest[:12]
    with pytest.raises(PlanError, match=f"the plan is for checkpoint 000000000000, found checkpoint {found}; "):
        tiny.sample(1, cache=plan_for(tiny, (20,), source_digest="0" * 64))


@pytest.mark.parametrize("spoil", [lambda digest: digest[:12], lambda digest: digest[:12] + "0" * 52])
def test_a_digest_that_only_begins_alike_is_of_another_checkpoint(tiny: Model, spoil: Callable[[str], str]) -> None:
    found = tiny.manifest.source.digest
    said = f"the plan is for checkpoint {spoil(found)}, found checkpoint {found}; calibrate"
    with pytest.raises(PlanError, match=said):
        tiny.sample(1, cache=plan_for(tiny, (20,), source_digest=spoil(found)))


def changed(**values: Any) -> Callable[[dict[str, Any]], str]:
    return lambda plan: json.dumps(plan | values)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda plan: "not JSON", r"is not a plan \(Expecting value"),
        (lambda plan: "", "is not a plan"),
        (lambda plan: json.dumps(plan)[:-3], "is not a plan"),
        (lambda plan: json.dumps([plan]), f"has schema None, this version reads schema {SCHEMA}"),
        (changed(schema=True), f"has schema True, this version reads schema {SCHEMA}"),
        (changed(schema=SCHEMA + 1), f"has schema {SCHEMA + 1}, this version reads schema {SCHEMA}"),
        (lambda plan: json.dumps({k: v for k, v in plan.items() if k != "guard"}), "found a difference in guard"),
        (changed(mood=1), "found a difference in mood"),
        (changed(refreshes=[30, 20]), "refreshes must be rising steps from 0 to 39, found"),
        (changed(refreshes=[20, 20]), "refreshes must be rising steps"),
        (changed(refreshes=[20, 40]), "refreshes must be rising steps"),
        (changed(refreshes=[-1, 20]), "refreshes must be rising steps"),
        (changed(refreshes=[20.5, 30]), "refreshes must be rising steps"),
        (changed(refreshes=["20", "30"]), "refreshes must be rising steps"),
        (changed(refreshes=[20, None]), "refreshes must be rising steps"),
        (changed(refreshes=[]), "refreshes must not be empty"),
        (changed(refreshes="20"), "refreshes must be a list, found '20'"),
        (changed(low_steps="25"), "low_steps must be a list"),
        (changed(surprise=0.5), "surprise must be a list"),
        (changed(low_steps=[35, 25]), "low_steps must be rising steps"),
        (changed(surprise=[0.5, float("nan")]), "surprise and guard must be numbers that are not negative"),
        (changed(surprise=[0.5, float("inf")]), "surprise and guard must be numbers that are not negative"),
        (changed(surprise=[0.5, -0.5]), "surprise and guard must be numbers that are not negative"),
        (changed(surprise=[0.5, "0.5"]), "surprise and guard must be numbers that are not negative"),
        (changed(measured=None), "measured must be a record, found None"),
        (changed(surprise=[0.5]), "surprise must have one number per refresh, found 1"),
        (changed(guard=-1.0), "surprise and guard must be numbers that are not negative"),
        (changed(guard="4"), "surprise and guard must be numbers that are not negative"),
        (changed(guard=True), "surprise and guard must be numbers that are not negative"),
        (changed(steps=True), "steps must be a whole number of at least 1, found True"),
        (changed(K=True), "K must be a whole number that is not negative, found True"),
        (changed(steps=0), "steps must be a whole number of at least 1, found 0"),
        (changed(steps=40.5), "steps must be a whole number of at least 1, found 40.5"),
        (changed(steps="40"), "steps must be a whole number"),
        (changed(K=-1), "K must be a whole number that is not negative, found -1"),
        (changed(K=1.5), "K must be a whole number that is not negative, found 1.5"),
        (changed(K=None), "K must be a whole number"),
        (changed(solver="rk4"), "unknown solver 'rk4'"),
        (changed(solver=None), "unknown solver None"),
        (changed(grid=["uniform"]), "unknown time grid"),
        (changed(reuse="latents"), "unknown reuse mode 'latents'"),
        (changed(source_digest=None), "source_digest must be a text, found None"),
        (changed(source_digest=7), "source_digest must be a text, found 7"),
        (changed(guard=10**400), "surprise and guard must be numbers that are not negative"),
        (changed(surprise=[0.5, 10**400]), "surprise and guard must be numbers that are not negative"),
        (changed(fit=[{"value": [[10**400]]}]), "a fit must be rows of finite numbers, found '1000"),
        (lambda plan: "[" * 10**5, r"is not a plan \(lists within lists"),
        (changed(K=2, low_steps=[]), "a K needs low_steps at which it is recomputed, found 2; name them, or set K to"),
        (changed(K=0), "low_steps need a K to recompute, found"),
        (changed(low_steps=[10, 25]), "low_steps must come after the first refresh, step 20, found"),
    ],
)  # fmt: skip
def test_a_broken_plan_file_is_one_sentence(
    tiny: Model, tmp_path: Path, spoil: Callable[[dict[str, Any]], str], says: str
) -> None:
    plan = plan_for(tiny, (20, 30), K=2, low_steps=(25,), surprise=(0.5, 0.5))
    (tmp_path / PLAN_FILE).write_text(spoil(json.loads(plan.to_json())), encoding="utf-8")
    with pytest.raises(PlanError, match=says) as caught:
        read_plan(tmp_path / PLAN_FILE)
    assert "\n" not in str(caught.value)
    assert PLAN_FILE in str(caught.value)


def test_a_missing_or_unreadable_plan_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no plan at .*; make one with `e2crf calibrate`"):
        read_plan(tmp_path / PLAN_FILE)
    (tmp_path / PLAN_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="is not a plan"):
        read_plan(tmp_path / PLAN_FILE)
    with pytest.raises(PlanError, match="is not a plan"):
        read_plan(tmp_path)


@pytest.fixture
def planned(tiny: Model, tmp_path: Path) -> tuple[Model, Plan]:
    """The bundle with a plan in it."""
    assert tiny.bundle is not None
    folder = Path(shutil.copytree(tiny.bundle, tmp_path / "bundle"))
    plan = plan_for(tiny, (20, 30), solver="ddim", grid="quadratic")
    plan.write(folder / PLAN_FILE)
    return load(folder, threads=1), plan


def test_a_plan_in_the_bundle_is_taken_by_itself(planned: tuple[Model, Plan]) -> None:
    """What is left out comes from it; what is named must agree, or name another cache. Bitwise."""
    model, plan = planned
    drawn = model.sample(2)
    named = model.sample(2, steps=40, solver="ddim", grid="quadratic", cache=plan)
    assert np.array_equal(drawn.series, named.series)
    assert drawn.stats.num_steps == 40
    assert drawn.stats.event_counts == {"prior": 40, "first": 2, "refresh": 2, "reuse": 36}
    for other in ({"steps": 41}, {"solver": "ancestral"}, {"grid": "uniform"}):
        with pytest.raises(PlanError, match="the plan is for"):
            model.sample(2, **other)


def test_a_cache_of_its_own_ignores_the_plan_in_the_bundle(planned: tuple[Model, Plan]) -> None:
    model, _ = planned
    by_options = model.sample(2, steps=41, cache=E2CRF()).stats
    assert by_options.event_counts["refresh"] > 10
    uncached = model.sample(2, steps=41, cache=None).stats
    assert uncached.hit_rate == 0.0
    assert model.settings(None, None, None, E2CRF()).steps == 1000


def test_a_broken_plan_in_the_bundle_stands_in_the_way_of_those_who_want_it_alone(planned: tuple[Model, Plan]) -> None:
    model, _ = planned
    assert model.bundle is not None
    (model.bundle / PLAN_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(PlanError, match="has schema None"):
        model.sample(1)
    assert len(model.sample(1, steps=5, cache=None).series) == 1
    (model.bundle / PLAN_FILE).unlink()
    assert model.plan() is None


@pytest.mark.parametrize("on_step", [None, lambda info: None], ids=["fused", "stepped"])
def test_the_guard_refreshes_once_more_half_way(tiny: Model, on_step: Callable[[StepInfo], None] | None) -> None:
    """Limits of 0: every sample, once, between every two refreshes of which the first could be off; huge: never."""
    refreshes = (14, 20, 24, 25, 32)
    strict, lax = (plan_for(tiny, refreshes, surprise=(off,) * 5, guard=1.0) for off in (0.0, 1e9))
    stats = tiny.sample(3, cache=strict, on_step=on_step).stats
    triggered = stats.events[:, list(Event).index(Event.TRIGGER)]
    assert {i: int(triggered[i]) for i in np.flatnonzero(triggered)} == {22: 3, 28: 3, 36: 3}  # 24 to 25: no half
    assert tiny.sample(3, cache=lax, on_step=on_step).stats.event_counts == {
        "prior": 42, "first": 3, "refresh": 12, "reuse": 63,
    }  # fmt: skip


def test_the_guard_sees_to_each_sample_alone(tiny: Model) -> None:
    """Limits in the middle of what the samples show: some are refreshed; each is what it is alone, to 1e-4."""
    watched = Watched(plan_for(tiny, (14, 20, 32), K=1, low_steps=(17, 26, 36)))
    tiny.sample(8, steps=40, cache=watched, on_step=lambda info: None)
    limits = [float(np.median(watched.seen[i + 1]["surprise"])) for i in (14, 20, 32)]
    cache = plan_for(tiny, (14, 20, 32), K=1, low_steps=(17, 26, 36), surprise=tuple(limits), guard=1.0)
    many = tiny.sample(8, cache=cache)
    assert 0 < many.stats.events[26, list(Event).index(Event.TRIGGER)] < 8
    assert many.stats.events[26].sum() == 8
    for k in range(8):
        close(tiny.sample(1, cache=cache, first_sample=k).series[0], many.series[k], 1e-4)


def test_a_plan_that_a_model_cannot_follow_is_refused(tiny: Model) -> None:
    with pytest.raises(OptionError, match="K must not exceed the 8 frequencies, found 9"):
        tiny.sample(1, cache=plan_for(tiny, (20,), K=9))
    other = gaussian(10, VP(), "frequency").model
    with pytest.raises(OptionError, match=r"recomputes low frequencies alone, but .* has no K/V cache"):
        other.sample(1, cache=plan_for(other, (20,), K=1, low_steps=(25,)))
    assert len(other.sample(2, cache=plan_for(other, (20, 30))).series) == 2
