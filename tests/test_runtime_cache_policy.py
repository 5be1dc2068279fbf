"""Which tokens a cache recomputes, and when: the published set, its bounds, and the direction of every knob."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cache.options import E2CRF
from runtime.cache.policy import Reason
from runtime.sampler import Model
from tests import opened
from tests.cache_doubles import FREQUENCY, N, Watched, close, decided_by, made_up, quiet, recomputed_by

tiny = opened.tiny


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["interval", "e2crf"]),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.5, 20.0, np.inf]),
)
@quiet
def test_no_token_is_older_than_max_age(
    tiny: Model, policy: str, R: int, max_age: int, K: int, probes: float, tau_0: float
) -> None:
    """On a real trajectory, by the record and by watching: what a step uses is younger than max_age and R."""
    own = {"random_probe_ratio": probes, "tau_0": tau_0} if policy == "e2crf" else {}
    cache = Watched(E2CRF(policy=policy, R=R, max_age=max_age, K=K, **own))  # type: ignore[arg-type]
    stats = tiny.sample(3, steps=30, cache=cache).stats
    assert np.nanmax(stats.age) < min(R, max_age)
    begun = [seen["token_age"] for i, seen in enumerate(cache.seen) if seen["refresh_age"].max() < i + 1]
    assert begun
    assert max(age.max() for age in begun) <= min(R, max_age)  # when it was decided


@pytest.mark.parametrize("cache", [{"R": 1}, {"trigger": "impact", "tolerance": 0.0, "K": 1}], ids=["R", "tolerance"])
@pytest.mark.parametrize("solver", ["ancestral", "ddim", "dpmpp_2m_sde"])
@quiet
def test_a_cache_that_may_not_be_wrong_is_the_uncached_sampler_bit_for_bit(
    tiny: Model, cache: dict[str, Any], solver: str
) -> None:
    uncached = tiny.sample(3, steps=25, solver=solver, cache=None).series
    cached = tiny.sample(3, steps=25, solver=solver, cache=E2CRF(policy="e2crf", alpha_prior=0.0, **cache)).series
    assert np.array_equal(uncached, cached)


@pytest.mark.parametrize("knobs", [{"tau_0": 0.0}, {"random_probe_ratio": 1.0}, {"K": 8}, {"max_age": 1}],
                         ids=lambda knobs: next(iter(knobs)))  # fmt: skip
@quiet
def test_choosing_every_token_is_the_uncached_sampler(tiny: Model, knobs: dict[str, Any]) -> None:
    """1e-5 of the scale: the tokens in another order."""
    quiet_ones: dict[str, Any] = {"tau_0": np.inf, "random_probe_ratio": 0.0, "K": 0, "R": 10**6, "trigger": "none"}
    uncached = tiny.sample(3, steps=25, cache=None).series
    cached = tiny.sample(3, steps=25, cache=E2CRF(policy="e2crf", alpha_prior=0.0, **(quiet_ones | knobs)))
    assert cached.stats.hit_rate == 0.0
    assert cached.stats.event_counts == {"first": 3, "chosen": 72}
    close(cached.series, uncached, 1e-5)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.01, 0.1, 1.0]), st.integers(1, 12), st.booleans())
def test_both_tokens_of_a_frequency_share_a_fate(seed: int, tau_0: float, max_age: int, weighted: bool) -> None:
    cache = E2CRF(policy="e2crf", K=2, tau_0=tau_0, max_age=max_age, energy_weighting=weighted, tau_safe=0.05)
    chosen = recomputed_by(cache, made_up(seed))
    for frequency in range(N // 2 + 1):
        together = chosen[:, frequency == FREQUENCY]
        assert (together.all(axis=1) == together.any(axis=1)).all()


@given(st.integers(0, 10**6))
def test_a_sample_recomputes_exactly_the_published_set_and_says_why(seed: int) -> None:
    """Oracle: eq. 14-16 written out, token by token, for thresholds that all have a say."""
    cache = E2CRF(policy="e2crf", K=2, R=10, tau_0=0.1, eps=0.01, tau_warn=1.0, tau_safe=0.2, max_age=7,
                  random_probe_ratio=0.3)  # fmt: skip
    signals = made_up(seed)
    chosen, decisions = recomputed_by(cache, signals), decided_by(cache, signals)
    for b in range(3):
        full = signals.refresh_age[b] >= 10 or signals.intensity[b] > 1.0

        def is_changed(k: int, b: int = b) -> bool:
            threshold = 0.1 / (0.01 + signals.energy[b, k])
            return bool(signals.change[b, k] > threshold and signals.intensity[b] > 0.2)

        for frequency in range(N // 2 + 1):
            tokens = np.flatnonzero(frequency == FREQUENCY)
            reasons = {
                Reason.LOW: frequency < 2,
                Reason.CHANGE: any(is_changed(int(k)) for k in tokens),
                Reason.AGE: (signals.token_age[b, tokens] >= 7).any(),
                Reason.PROBE: signals.lots[b, frequency] < 0.3,
            }
            assert (chosen[b, tokens] == (full or any(reasons.values()))).all()
            if not full and any(reasons.values()):
                first = next(reason for reason, holds in reasons.items() if holds)
                named, why = decisions[b].tokens, decisions[b].reasons
                assert named is not None
                assert why is not None
                assert [list(Reason)[why[named == token].item()] for token in tokens] == [first] * len(tokens)


BASE = {"K": 1, "R": 12, "random_probe_ratio": 0.1, "tau_0": 20.0, "eps": 0.1, "tau_safe": 0.0}
LADDERS: dict[str, tuple[dict[str, Any], list[Any]]] = {  # every next value must recompute more
    "K": ({}, [0, 1, 0.2, 6, 0.5]),  # below 1 it is a share of the tokens
    "random_probe_ratio": ({}, [0.0, 0.2, 0.6, 1.0]),
    "R": ({}, [40, 12, 5, 1]),
    "max_age": ({}, [12, 6, 3, 1]),
    "tau_0": ({}, [np.inf, 50.0, 5.0, 0.0]),
    "tau_warn": ({}, [np.inf, 0.02, 0.005, 0.0]),
    "tau_safe": ({"tau_0": 2.0}, [0.5, 0.02, 0.005, 0.0]),
    "tolerance": ({"trigger": "impact"}, [np.inf, 0.1, 0.02, 0.0]),
    "alpha_prior": ({}, [0.6, 0.3, 0.1, 0.0]),
    "eps": ({}, [0.0, 1.0, 10.0, 1e6]),
}


@pytest.mark.parametrize("knob", LADDERS)
@quiet
def test_each_knob_of_policy_e2crf_recomputes_more_in_its_stated_direction(tiny: Model, knob: str) -> None:
    """Strictly, at every rung, over whole trajectories; the docstring of `cache.options` names the directions."""
    others, values = LADDERS[knob]
    counts = [
        int(tiny.sample(4, steps=60, cache=E2CRF(policy="e2crf", **(BASE | others | {knob: value}))).stats
            .recomputed.sum())
        for value in values
    ]  # fmt: skip
    assert all(less < more for less, more in pairwise(counts)), counts


@given(st.sampled_from(sorted(LADDERS)), st.integers(0, 10**6))
def test_no_knob_of_policy_e2crf_ever_drops_a_token_in_its_stated_direction(knob: str, seed: int) -> None:
    """For the same signals, every token that was recomputed still is."""
    others, values = LADDERS[knob]
    signals = made_up(seed)
    sets = [recomputed_by(E2CRF(policy="e2crf", **(BASE | others | {knob: value})), signals) for value in values]
    for less, more in pairwise(sets):
        assert (less <= more).all()


@given(st.integers(0, 10**6), st.floats(0.001, 10.0), st.floats(1.01, 100.0))
def test_a_token_with_more_energy_is_recomputed_at_a_smaller_change(seed: int, change: float, factor: float) -> None:
    """Also: without energy weighting the energy has no say."""
    signals = made_up(seed, batch=1)
    signals.change[:] = change
    cache = E2CRF(policy="e2crf", K=0, random_probe_ratio=0.0, R=100, tau_0=0.1, trigger="none")
    chosen = recomputed_by(cache, signals)
    energy = np.stack([signals.energy[0, f == FREQUENCY].max() for f in FREQUENCY])
    assert np.array_equal(chosen[0], np.float32(change) * (np.float32(1e-6) + energy) > np.float32(0.1))
    signals.energy *= np.float32(factor)
    assert (chosen <= recomputed_by(cache, signals)).all()
    unweighted = recomputed_by(replace(cache, energy_weighting=False), signals)
    assert (unweighted == (np.float32(change) > 0.1)).all()
