"""The knobs of the cache: published presets, and what cannot be meant is refused in a sentence."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from runtime.cache.options import E2CRF, PolicyName
from runtime.cache.policy import Needs
from runtime.errors import OptionError
from runtime.sampler import Model
from runtime.sde import VP
from tests import opened
from tests.cache_doubles import quiet
from tests.tiny import gaussian

tiny = opened.tiny

README = {"K": 5, "tau_0": 0.1, "R": 10, "tau_warn": 0.5, "random_probe_ratio": 0.05}
PAPER = {"K": 0.1, "tau_0": 0.01, "eps": 1e-6, "R": 50, "tau_safe": 0.1, "tau_warn": 0.5, "error_feedback": 0.1}


@pytest.mark.parametrize(
    ("name", "numbers", "low"),
    [("readme", README, 5), ("paper", PAPER, 2), ("paper-best", PAPER | {"K": 1, "R": 150}, 1)],
)
@quiet
def test_presets_hold_the_published_numbers_and_run(
    tiny: Model, name: str, numbers: dict[str, float], low: int
) -> None:
    """K = N / 10 of 15 tokens is two frequencies. Their score is what is reused, from the first step on."""
    cache = E2CRF.preset(name)
    assert {knob: getattr(cache, knob) for knob in numbers} == numbers
    assert (cache.policy, cache.reuse, cache.alpha_prior) == ("e2crf", "feature", 0.0)
    assert cache.energy_weighting is not False
    assert cache.trigger in (None, "feature")
    stats = tiny.sample(2, steps=20, cache=cache).stats
    assert (stats.recomputed[:, :low] == 2 * stats.tokens_per_frequency[:low]).all()
    assert E2CRF.preset(name, R=7).R == 7


@pytest.mark.parametrize(
    ("knobs", "policy"),
    [
        ({}, "interval"),
        ({"R": 10, "K": 5, "max_age": 4, "reuse": "feature", "alpha_prior": 0.0}, "interval"),  # of either policy
        ({"low_every": 2}, "interval"),
        (README, "e2crf"),
        (PAPER | {"random_probe_ratio": 0.0}, "e2crf"),
        ({"energy_weighting": False}, "e2crf"),
        ({"trigger": "none"}, "e2crf"),
        ({"tau_safe": 0.0}, "e2crf"),
    ],
)
def test_a_policy_that_is_left_out_is_the_one_of_the_knobs(knobs: dict[str, Any], policy: str) -> None:
    cache = E2CRF(**knobs)
    assert cache.policy is PolicyName(policy)
    assert cache == E2CRF(policy=policy, **knobs)
    assert replace(cache, alpha_prior=0.1).policy == policy


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: E2CRF.preset("thesis"), "known ones are readme, paper, paper-best"),
        (lambda: E2CRF.preset("paper", tau=1), "unknown knob tau; the known ones are K, R, a, alpha_prior"),
        (lambda: E2CRF(policy="interval", tau_0=0.1), "tau_0 belongs to policy e2crf, found it with policy interval"),
        (lambda: E2CRF(policy="never", trigger="none"), "trigger belongs to policy e2crf"),
        (
            lambda: replace(E2CRF(), error_feedback=0.1),
            "error_feedback belongs to policy e2crf, found it with policy i",
        ),
        (lambda: E2CRF(policy="interval", energy_weighting=False), "energy_weighting belongs to policy e2crf"),
        (lambda: E2CRF(tau_0=0.1, low_every=2), "low_every belongs to policy interval, found it with policy e2crf"),
        (lambda: E2CRF(policy=""), "unknown policy ''"),
        (lambda: E2CRF(policy="e2crf", low_every=2), "low_every belongs to policy interval, found it with policy e2c"),
        (lambda: E2CRF(policy="never", R=3), "R belongs to policy interval and e2crf, found it with policy never"),
        (lambda: E2CRF(policy="never", max_age=3), "max_age belongs to policy"),
        (lambda: E2CRF(policy="e2crf", tolerance=0.1), "tolerance is of trigger impact, found trigger feature"),
        (lambda: E2CRF(policy="e2crf", trigger="impact", tau_warn=1.0), "tau_warn is of trigger feature, found"),
        (lambda: E2CRF(policy="e2crf", trigger="none", tau_warn=1.0), "tau_warn is of trigger feature, found trigger"),
        (lambda: E2CRF(policy="e2crf", trigger="mood"), "known ones are none, feature, impact"),
        (lambda: E2CRF.preset("paper", trigger="impact"), "tau_warn is of trigger feature"),
        (lambda: E2CRF(max_age=0), "max_age must be a whole number of at least 1, found 0"),
        (lambda: E2CRF(R=2.5), "R must be a whole number"),  # type: ignore[arg-type]
        (lambda: E2CRF(K=1.5), "K must be a number of frequencies"),
        (lambda: E2CRF(R=True), "R must be a whole number of at least 1, found True"),
        (lambda: E2CRF(max_age=True), "max_age must be a whole number of at least 1, found True"),
        (lambda: E2CRF(low_every=True), "low_every must be a whole number of at least 1, found True"),
        (lambda: E2CRF(energy_weighting=0), "energy_weighting must be True or False, found 0"),  # type: ignore[arg-type]
        (lambda: E2CRF(energy_weighting="no"), "energy_weighting must be True or False, found 'no'"),  # type: ignore[arg-type]
        (lambda: E2CRF(tau_0=10**400), "tau_0 must be a number that a float can hold, found 'a larger one'; take"),
        (lambda: E2CRF(K=10**5000), "K must be a number that a float can hold"),
        (lambda: E2CRF(R=10**400), "R must be a number that a float can hold"),
        (lambda: E2CRF(tau_safe=0.9), "tau_safe must not exceed tau_warn = 0.5, found 0.9; lower it"),
        (lambda: E2CRF(tau_safe=0.6, tau_warn=0.5), "tau_safe must not exceed tau_warn = 0.5, found 0.6; lower it"),
        (lambda: E2CRF.preset("paper", tau_safe=0.6), "tau_safe must not exceed tau_warn = 0.5"),
        (lambda: E2CRF.preset("paper", a=0.1, error_feedback=0.1), "a and error_feedback are one knob"),
        (lambda: E2CRF(a=0.1, error_feedback=0.1), "a and error_feedback are one knob"),
        (lambda: E2CRF.preset("paper", a=2), "error_feedback must lie between 0 and 1.0, found 2"),
    ],
)
def test_contradictory_and_unknown_knobs_are_refused_in_a_sentence(make: Callable[[], E2CRF], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "knob",
    ["tau_0", "eps", "tau_warn", "tau_safe", "random_probe_ratio", "tolerance", "error_feedback", "K", "alpha_prior",
     "R", "max_age"],
)  # fmt: skip
@pytest.mark.parametrize("value", [-1, -0.5, float("nan")])
def test_negative_values_and_nan_are_refused_in_a_sentence(knob: str, value: float) -> None:
    trigger = {"trigger": "impact"} if knob == "tolerance" else {}
    with pytest.raises(OptionError, match=f"^{knob} must .*, found {value!r}; ") as caught:
        E2CRF(policy="e2crf", **trigger, **{knob: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_published_name_of_error_feedback_is_taken_as_it_is() -> None:
    assert E2CRF.preset("paper", a=0.05) == E2CRF.preset("paper", error_feedback=0.05)
    assert E2CRF.preset("paper", a=None) == E2CRF.preset("paper")
    assert E2CRF(a=0.05) == E2CRF(error_feedback=0.05)
    assert replace(E2CRF(a=0.05), R=7) == E2CRF(R=7, error_feedback=0.05)
    assert "a" not in asdict(E2CRF(a=0.05))


@pytest.mark.parametrize("word", [True, False])
def test_a_truth_of_numpy_is_a_truth(word: bool) -> None:
    assert E2CRF(energy_weighting=np.bool_(word)).energy_weighting is word  # type: ignore[arg-type]


@pytest.mark.parametrize("knob", ["random_probe_ratio", "error_feedback"])
def test_shares_above_one_are_refused(knob: str) -> None:
    with pytest.raises(OptionError, match=f"{knob} must lie between 0 and 1"):
        E2CRF(policy="e2crf", **{knob: 1.5})  # type: ignore[arg-type]


def test_policy_e2crf_is_refused_where_tokens_cannot_be_computed_alone() -> None:
    for domain, why in (("time", "tokens of this model are time steps"), ("frequency", "has no K/V cache")):
        with pytest.raises(OptionError, match=f"recomputes some tokens alone, but .*{why}; use policy interval"):
            gaussian(10, VP(), domain).model.sample(1, steps=5, cache=E2CRF(policy="e2crf"))


def test_signals_that_nothing_looks_at_are_not_kept() -> None:
    """Without a threshold neither changes nor what would silence it; a made-up trigger looks at nothing else."""
    assert E2CRF(tau_0=np.inf, tau_safe=0.1, trigger="none").needs == Needs.NOTHING
    assert E2CRF(tau_0=np.inf, trigger="impact").needs == Needs.IMPACT
    assert E2CRF(tau_0=0.1, tau_safe=0.1, trigger="impact").needs == Needs.CHANGE | Needs.INTENSITY | Needs.IMPACT
    assert E2CRF(tau_0=0.1, trigger="none").needs == Needs.CHANGE
