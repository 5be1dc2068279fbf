"""Where the time of a step goes: every stage gets what it spent, and together they are the step."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import write_gaussian_bundle

from bench.records import Stages
from bench.stages import measured_steps, row_of, stages
from bench.steps import step_costs
from export.checkpoint import Checkpoint
from export.manifest import read_manifest
from runtime.backends.ort import OrtBackend
from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.plan import Plan
from runtime.cache.policy import Needs, Policy, Signals, Step, TokenFacts
from runtime.sampler import Model, load
from tests.tiny import make_bundle

NUM_TOKENS, NUM_LAYERS = 15, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Checkpoint]:
    """A small transformer."""
    return make_bundle(tmp_path_factory.mktemp("stages"), num_tokens=NUM_TOKENS, num_layers=NUM_LAYERS)


class Clock:
    """A clock that stands still unless somebody spends time, or looks at it, which may cost a tick."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


class SlowBackend(OrtBackend):
    """ONNX Runtime whose parts take known times more: 2 embed, 5 each layer, 3 head, of few tokens half of it."""

    def __init__(self, bundle: Path, spend: Callable[[float], None]) -> None:
        super().__init__(bundle, read_manifest(bundle).graphs, threads=1)
        self.spend = spend

    def bind(self, graph: str, inputs: Any, outputs: Any) -> Callable[[], None]:
        call = super().bind(graph, inputs, outputs)
        num_tokens = inputs["hidden" if "hidden" in inputs else "z"].shape[1]
        cost = {"embed": 2.0, "head": 3.0}.get(graph, 5.0) * (1.0 if num_tokens == NUM_TOKENS else 0.5)

        def slow() -> None:
            call()
            self.spend(cost)

        return slow


@dataclass(frozen=True)
class SlowPolicy:
    """A cache that takes its time to decide."""

    spend: Callable[[float], None]
    reuse: str = "residual"
    needs: Needs = Needs.NOTHING
    feedback: float = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        inner = E2CRF().concrete(facts, steps)

        def policy(step: Step, signals: Signals) -> Any:
            self.spend(0.25)
            return inner(step, signals)

        return policy


def test_every_stage_gets_the_time_that_it_spent(made: tuple[Path, Checkpoint]) -> None:
    """By a clock that only graphs and the policy move, so to the digit."""
    clock = Clock()
    with Model(read_manifest(made[0]), SlowBackend(made[0], clock.spend)) as model:
        full, few, empty = stages(model, 2, SlowPolicy(clock.spend), rounds=1, clock=clock)
    assert full == Stages("full", 250.0, 2000.0, 5000.0 * NUM_LAYERS, 3000.0, 0.0, 0.0)
    assert few == Stages("5 tokens", 250.0, 1000.0, 2500.0 * NUM_LAYERS, 1500.0, 0.0, 0.0)
    assert empty == Stages("empty", 250.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def total(row: Stages) -> float:
    return sum(getattr(row, one.name) for one in fields(Stages) if one.name != "step")


def test_the_stages_add_up_to_the_step_as_it_is_measured_without_them(
    made: tuple[Path, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the split graphs of `steps`, which times whole trajectories; every look at the clock takes 1 µs."""
    clock = Clock(tick=1e-6)
    monkeypatch.setattr(time, "perf_counter", clock)
    with Model(read_manifest(made[0]), SlowBackend(made[0], clock.spend)) as model:
        full, few, _ = stages(model, 2, rounds=2, clock=clock)
        costs = step_costs(model, 2, rounds=2)
    assert costs.split_full_ms == pytest.approx(total(full), rel=1e-4)
    assert costs.split_low_ms == pytest.approx(total(few), rel=1e-4)


def test_the_stages_of_real_steps_add_up_to_them(made: tuple[Path, Checkpoint]) -> None:
    """Each is a median over steps of its own, so that on real times they add up within a few per cent only.

    The nearest of three, since where a neighbour comes in between medians are of unlike steps.
    """
    with load(made[0], threads=1) as model:
        turns = [measured_steps(model, 2, E2CRF(), rounds=8) for _ in range(3)]
    for name in ("full", "5 tokens", "empty"):
        off = []
        for measured in turns:
            steps = measured[name]
            assert len(steps) == 8 * 8
            off.append(total(row_of(name, steps)) / (1e3 * statistics.median(step["total"] for step in steps)) - 1)
        assert min(map(abs, off)) < 0.05
    assert all(set(measured) == {"full", "5 tokens", "empty"} for measured in turns)


@pytest.mark.parametrize("cache", [None, E2CRF(policy=PolicyName.E2CRF), "plan"], ids=["interval", "published", "plan"])
def test_any_cache_can_be_asked_and_all_stages_cost_something(made: tuple[Path, Checkpoint], cache: Any) -> None:
    if cache == "plan":
        cache = Plan(source_digest=made[1].digest, steps=40, solver="ddim", refreshes=(5, 20, 30), surprise=(0.1,) * 3)
    with load(made[0], threads=1) as model:
        full, few, empty = stages(model, 1, cache, rounds=2)
    for row in (full, few):
        assert min(getattr(row, one.name) for one in fields(Stages) if one.name != "step") > 0
    assert (empty.embed_ms, empty.layers_ms, empty.head_ms) == (0.0, 0.0, 0.0)
    assert min(empty.selection_ms, empty.update_ms, empty.python_ms) > 0
    assert total(empty) < total(few)


def test_the_published_selection_costs_more_than_a_schedule(made: tuple[Path, Checkpoint]) -> None:
    """Thresholds and probes for every sample against one comparison: 20 times and more on an idle machine."""
    with load(made[0], threads=1) as model:
        plain = stages(model, 4, E2CRF(), rounds=2)[-1]
        published = stages(model, 4, E2CRF(policy=PolicyName.E2CRF), rounds=2)[-1]
    assert published.selection_ms > 3 * plain.selection_ms


def test_what_is_measured_are_the_samplers_own_steps(made: tuple[Path, Checkpoint]) -> None:
    """The model that is measured samples as before, and its network was asked through its own backend."""
    with load(made[0], threads=1) as model:
        before = model.sample(2, steps=8, cache=None).z
        stages(model, 2, rounds=1)
        np.testing.assert_array_equal(model.sample(2, steps=8, cache=None).z, before)


def test_a_model_without_parts_has_no_stages(tmp_path: Path, made: tuple[Path, Checkpoint]) -> None:
    with load(write_gaussian_bundle(tmp_path / "bundle"), "fake") as model:
        assert stages(model, 1) == ()
    with load(made[0], threads=1) as model:
        model.backend.name = "tensorrt"
        assert stages(model, 1) == ()


def test_a_network_without_kv_has_full_and_empty_steps_only(made: tuple[Path, Checkpoint]) -> None:
    with load(made[0], threads=1) as model:
        model.facts = replace(model.facts, tokens=replace(model.facts.tokens, obstacle="as an LSTM"))
        rows = stages(model, 1, E2CRF(K=0), rounds=1)
    assert [row.step for row in rows] == ["full", "empty"]
