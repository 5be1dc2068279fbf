"""What is held between refreshes: a linear function of what a refresh found, and the plan that carries it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.cache.hold import LinearHold
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan, PlanError, read_plan
from runtime.cache.policy import Reuse
from runtime.describe import describe_bundle
from runtime.errors import OptionError
from runtime.noise import NoiseStream
from runtime.sampler import Model, load
from runtime.solvers import Solver, TimeGrid
from tests.tiny import make_bundle

STEPS, SHAPE = 40, (15, 2)
REFRESHES = (5, 16, 29)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder, _ = make_bundle(tmp_path_factory.mktemp("tiny"))
    with load(folder, threads=1) as opened:
        yield opened


def hold_of(value: float = 0.0, before: float = 0.0, latent: float = 0.0, offset: float = 0.0) -> LinearHold:
    return LinearHold(*(np.full(SHAPE, number, np.float32) for number in (value, before, latent, offset)))


def plan_of(model: Model, *fit: LinearHold, **options: Any) -> Plan:
    usual: dict[str, Any] = {"solver": "ddim", "reuse": Reuse.RESIDUAL_FITTED, "refreshes": REFRESHES}
    return Plan(source_digest=model.manifest.source.digest, steps=STEPS, fit=fit, **usual | options)


def held_by_hand(model: Model, *fit: LinearHold) -> NDArray[np.float64]:
    """The latents of samples 0 .. 3, every step taken by itself in float64 but for the network."""
    schedule, _, _ = model.schedule(Solver.DDIM, STEPS, TimeGrid.UNIFORM, Reuse.RESIDUAL_FITTED)
    z = schedule.prior_scale * NoiseStream(0, np.arange(4), SHAPE, STEPS).prior().astype(np.float64)
    held, before = np.zeros_like(z), np.zeros_like(z)
    for i in range(STEPS):
        data = schedule.gaussian[i] * z + (held if i > REFRESHES[0] else 0.0)
        if i in REFRESHES:
            score = model.score(z.astype(np.float32), np.full(4, schedule.times[i], np.float32))
            data = schedule.score_to_data[i] * score + schedule.latent_to_data[i] * z
            value, one = data - schedule.gaussian[i] * z, fit[REFRESHES.index(i)]
            held = one.value * value + one.before * before + one.latent * z + one.offset
            before = value
        z = schedule.step_latent[i] * z + schedule.step_data[i] * data
    return z


def test_what_is_held_enters_every_step_up_to_the_next_refresh(model: Model) -> None:
    """Oracle: the sampler written out in float64; tolerance 1e-5 of the largest, float32 over 40 steps."""
    fit = (hold_of(0.8, latent=0.02, offset=0.01), hold_of(1.3, -0.4), hold_of(0.7, 0.2, -0.03, -0.02))
    expected = held_by_hand(model, *fit)
    for on_step in (None, lambda info: None):  # steps taken together, and one by one
        found = model.sample(4, cache=plan_of(model, *fit), on_step=on_step).z
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_to_hold_the_new_value_is_to_hold_the_residual(model: Model) -> None:
    fitted = model.sample(4, cache=plan_of(model, *[hold_of(1.0)] * 3))
    plain = model.sample(4, cache=plan_of(model, reuse=Reuse.RESIDUAL))
    assert np.array_equal(fitted.z, plain.z)
    assert np.array_equal(fitted.stats.recomputed, plain.stats.recomputed)


def test_a_sample_does_not_depend_on_its_batch(model: Model) -> None:
    plan = plan_of(model, hold_of(0.8), hold_of(1.3, -0.4), hold_of(0.7, 0.2, -0.03))
    together, apart = (model.sample(6, cache=plan, batch_size=size).z for size in (6, 2))
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-5 * np.abs(together).max())


def test_a_plan_file_gives_back_the_very_numbers(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fit = [LinearHold(*(rng.normal(size=(4, *SHAPE)) / 3).astype(np.float32)) for _ in REFRESHES]
    plan = plan_of(model, *fit)
    plan.write(tmp_path / "plan.json")
    read = read_plan(tmp_path / "plan.json")
    for one, other in zip(read.fit, fit, strict=True):
        assert np.array_equal(one.tables, other.tables)
        assert one.tables.dtype == np.float32
    assert read.to_json() == plan.to_json()
    assert len(plan.to_json().splitlines()) < 40  # what is fitted takes one line


def test_a_plan_of_before_is_read(model: Model, tmp_path: Path) -> None:
    value = json.loads(plan_of(model, reuse=Reuse.RESIDUAL_LINEAR).to_json()) | {"schema": 1}
    del value["fit"]
    (tmp_path / "plan.json").write_text(json.dumps(value))
    assert read_plan(tmp_path / "plan.json") == plan_of(model, reuse=Reuse.RESIDUAL_LINEAR)


def _without_offset(value: dict[str, Any]) -> None:
    del value["fit"][0]["offset"]


def _ragged(value: dict[str, Any]) -> None:
    value["fit"][0]["offset"][0] = [1.0]


def _of_other_shapes(value: dict[str, Any]) -> None:
    value["fit"][0]["offset"] = value["fit"][0]["offset"][:-1]


def _not_finite(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"][3][1] = float("nan")


def _not_a_number(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"][3][1] = "much"


def _a_number_in_a_text(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"][3][1] = "1.5"


def _all_in_texts(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"] = [[str(x) for x in row] for row in value["fit"][1]["latent"]]


def _a_truth(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"][3][1] = True


def _huge(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"][3][1] = 10**400


def _beyond_float32(value: dict[str, Any]) -> None:
    value["fit"][1]["latent"][3][1] = 1e39


def _not_a_list(value: dict[str, Any]) -> None:
    value["fit"] = {}


def _not_a_fit(value: dict[str, Any]) -> None:
    value["fit"] = [1.0, 2.0, 3.0]


def _too_few(value: dict[str, Any]) -> None:
    value["fit"].pop()


def _of_another_mode(value: dict[str, Any]) -> None:
    value["reuse"] = "residual"


@pytest.mark.parametrize(
    "spoil",
    [_without_offset, _ragged, _of_other_shapes, _not_finite, _not_a_number, _a_number_in_a_text, _all_in_texts,
     _a_truth, _huge, _beyond_float32, _not_a_list, _not_a_fit, _too_few, _of_another_mode],
)  # fmt: skip
def test_a_broken_fit_is_refused(model: Model, tmp_path: Path, spoil: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(plan_of(model, *[hold_of(1.0)] * 3).to_json())
    spoil(value)
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(PlanError, match=r"plan\.json.*calibrate` again"):
        read_plan(tmp_path / "plan.json")


def test_a_fit_of_another_model_is_refused(model: Model) -> None:
    other = LinearHold(*np.ones((4, 16, 2), np.float32))
    plan = replace(plan_of(model, *[hold_of(1.0)] * 3), fit=(other,) * 3)
    with pytest.raises(PlanError, match=r"must be for \[N, C\] = \(15, 2\), found \(16, 2\); calibrate again"):
        model.sample(1, cache=plan)


def test_only_a_plan_has_what_is_fitted() -> None:
    said = r"without a plan, reuse must be one of feature, .*, found 'residual-fitted'; `e2crf calibrate` makes a plan"
    with pytest.raises(OptionError, match=said):
        E2CRF(reuse="residual-fitted")


def test_inspect_shows_a_fitted_plan(model: Model, tmp_path: Path) -> None:
    assert model.bundle is not None
    shutil.copytree(model.bundle, tmp_path / "bundle")
    plan = plan_of(model, *[hold_of(1.0)] * 3)
    plan.write(tmp_path / "bundle" / "plan.json")
    facts, text = describe_bundle(tmp_path / "bundle")
    assert json.loads(json.dumps(facts))["plan"]["fit"][0]["value"] == np.ones(SHAPE).tolist()
    assert "residual-fitted: all tokens at steps (5, 16, 29)" in text
