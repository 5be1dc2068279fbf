"""The cost of each kind of step: positive, in the right order, and told without what cannot be measured."""

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from gaussian_bundle import write_gaussian_bundle

from bench.steps import COMPILED, StepCosts, step_costs, told
from runtime.backends.few_tokens import widths_here
from runtime.sampler import load
from tests.tiny import make_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of some size, so that a full step costs more than the bookkeeping of an empty one."""
    made, _ = make_bundle(tmp_path_factory.mktemp("steps"), num_tokens=64, d_model=24, d_ff=128)
    return made


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_kind_of_step_costs_something_and_a_full_one_most(folder: Path, batch_size: int) -> None:
    with load(folder, threads=1) as model:
        costs = step_costs(model, batch_size, rounds=3)
    assert (costs.batch_size, costs.num_low_tokens) == (batch_size, 5)
    assert costs.low_by == (COMPILED if batch_size == 1 and widths_here() else None)
    for one in fields(StepCosts):
        assert one.name == "low_by" or getattr(costs, one.name) > 0, one.name
    assert costs.full_ms > 3 * costs.empty_ms  # 20 times on an idle machine
    assert costs.full_over_empty > 3
    assert costs.full_ms > 3 * costs.coasting_ms  # 50 times
    assert (costs.low_ms or 0) > costs.empty_ms


def test_calls_of_uneven_length_leave_no_step_cheaper_than_nothing(tmp_path: Path) -> None:
    """A single call that is faster than the average one must not be taken off as if it were average."""
    with load(write_gaussian_bundle(tmp_path / "bundle"), "fake") as model:
        run, calls = model.backend.run, iter(range(10**6))

        def uneven(graph: str, feeds: Any) -> Any:
            time.sleep(0.02 + 0.01 * (next(calls) % 2))  # of the turns without the network, the even calls
            return run(graph, feeds)

        model.backend.run = uneven  # type: ignore[method-assign]
        costs = step_costs(model, 2, rounds=2)
    assert costs.full_ms > 20
    assert 0 < costs.coasting_ms < 0.1  # the one call of 100 steps is 0.2 ms a step
    assert 0 < costs.empty_ms < 0.15
    assert costs.full_over_empty > 0


def test_a_network_without_kv_has_no_partial_steps(tmp_path: Path) -> None:
    with load(write_gaussian_bundle(tmp_path / "bundle"), "fake") as model:
        costs = step_costs(model, 1, rounds=1)
    for name in ("low_ms", "full_over_low", "python_of_low_ms", "split_full_ms", "split_low_ms"):
        assert getattr(costs, name) is None
    sentence = told(costs)
    assert sentence.startswith("Steps of a batch of 1: full ")
    assert sentence.endswith(".")
    assert "tokens" not in sentence
    assert "None" not in sentence


def test_all_figures_are_told() -> None:
    costs = StepCosts(
        batch_size=4,
        num_low_tokens=5,
        full_ms=20.0,
        low_ms=2.5,
        empty_ms=0.04,
        coasting_ms=0.003,
        full_over_low=8.0,
        full_over_empty=500.0,
        python_of_full_ms=0.5,
        python_of_low_ms=0.123,
        split_full_ms=25.0,
        split_low_ms=4.5,
    )
    assert told(costs) == (
        "Steps of a batch of 4: full 20 ms; "
        "5 tokens 2.5 ms (1/8), of which outside the network 0.123 ms; "
        "empty 40 µs (1/500); empty among many 3 µs; by split graphs full 25 ms, few tokens 4.5 ms."
    )
    assert "; 5 tokens 2.5 ms (1/8, compiled code), of which" in told(replace(costs, low_by=COMPILED))
