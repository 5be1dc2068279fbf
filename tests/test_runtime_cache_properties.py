"""What holds of every cache that the knobs can name, whatever they are: drawn by hypothesis, run on a real network."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.policy import UNFITTED, Event
from runtime.sampler import Model
from runtime.solvers import Solver
from tests import opened
from tests.cache_doubles import Listening, N, close, quiet

tiny = opened.tiny
STEPS = 24
# The same ones every time: a threshold that is met to the last bit may fall either way in another batch.
few = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

shared = {
    "R": st.integers(1, 12),
    "K": st.sampled_from([0, 1, 3, 0.2]),
    "reuse": st.sampled_from(UNFITTED),
    "alpha_prior": st.sampled_from([0.0, 0.2, 0.6]),
    "max_age": st.none() | st.integers(1, 12),
}
own = {
    "tau_0": st.sampled_from([0.0, 0.1, 2.0, np.inf]),
    "energy_weighting": st.booleans(),
    "random_probe_ratio": st.sampled_from([0.0, 0.2, 1.0]),
    "tau_warn": st.sampled_from([None, 0.02, 0.5]),
    "error_feedback": st.sampled_from([None, 0.1]),
}
caches = st.one_of(
    st.fixed_dictionaries(shared | {"policy": st.just(PolicyName.INTERVAL)}),
    st.fixed_dictionaries(shared | own | {"policy": st.just(PolicyName.E2CRF)}),
)


@few
@given(caches, st.sampled_from(Solver))
@quiet
def test_the_first_network_step_computes_all_tokens_of_all_samples(
    tiny: Model, knobs: dict[str, Any], solver: Solver
) -> None:
    stats = tiny.sample(3, steps=STEPS, solver=solver, cache=E2CRF(**knobs)).stats
    first = int(np.flatnonzero(stats.recomputed.any(axis=1))[0])
    assert np.array_equal(stats.recomputed[first], 3 * stats.tokens_per_frequency)
    assert stats.events[first, list(Event).index(Event.FIRST)] == 3
    assert np.isnan(stats.age[:first]).all()
    assert not np.isnan(stats.age[first:]).any()


@few
@given(caches, st.sampled_from(Solver))
@quiet
def test_refreshing_at_every_step_is_the_uncached_sampler_bit_for_bit(
    tiny: Model, knobs: dict[str, Any], solver: Solver
) -> None:
    uncached = tiny.sample(3, steps=STEPS, solver=solver, cache=None).series
    every = tiny.sample(3, steps=STEPS, solver=solver, cache=E2CRF(**knobs | {"R": 1, "alpha_prior": 0.0})).series
    assert np.array_equal(uncached, every)


@few
@given(caches, st.integers(1, 5), st.permutations(range(5)))
@quiet
def test_neither_batch_nor_order_of_samples_matters(
    tiny: Model, knobs: dict[str, Any], batch_size: int, order: list[int]
) -> None:
    """Oracle: each drawn alone, in any order. 1e-4 of the scale, what float32 products leave."""
    together = tiny.sample(5, steps=STEPS, cache=E2CRF(**knobs), batch_size=batch_size)
    for k in order:
        alone = tiny.sample(1, steps=STEPS, cache=E2CRF(**knobs), first_sample=k)
        close(alone.series[0], together.series[k], 1e-4)
        assert together.stats.sample_tokens[k] == alone.stats.recomputed.sum()
        assert np.array_equal(together.stats.sample_events[k], alone.stats.sample_events[0])


@few
@given(caches, st.sampled_from(["step", "split"]), st.integers(1, 5))
@quiet
def test_statistics_add_up_to_what_the_network_was_asked(
    tiny: Model, knobs: dict[str, Any], graphs: str, batch_size: int
) -> None:
    """Oracle: a backend that counts its calls and their rows, padding included."""
    listening = Listening(tiny.backend)
    model = Model(tiny.manifest, listening, graphs=graphs)
    stats = model.sample(5, steps=STEPS, cache=E2CRF(**knobs), batch_size=batch_size).stats
    assert (stats.work.calls, stats.work.tokens) == (listening.calls, listening.rows)
    assert stats.passes == pytest.approx(listening.rows / (5 * N))
    assert stats.recomputed.sum() == stats.sample_tokens.sum() <= listening.rows
    assert stats.hit_rate == pytest.approx(1 - stats.recomputed.sum() / (5 * N * STEPS))
    assert (stats.events.sum(axis=1) == 5).all()
    assert (stats.sample_events.sum(axis=1) == STEPS).all()
    full = stats.events[:, [event.is_full for event in Event]].sum(axis=1)
    assert np.array_equal(stats.reasons.sum(axis=1), stats.recomputed.sum(axis=1) - full * N)  # each token has one
