"""What the cache promises: which tokens it recomputes and when, what it tells of that, and what plans do.

The networks are random and tiny: what is held here is exact bookkeeping, not quality. Where the numbers of two
runs are compared, the tolerance is a share of the largest number in the series.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.manifest import Graph, Standardisation
from runtime.backends.base import Arrays, Backend
from runtime.cache.feedback import Feedback
from runtime.cache.options import E2CRF
from runtime.cache.plan import PLAN_FILE, Plan, PlanError, read_plan
from runtime.cache.policy import (
    Cache,
    Decision,
    Decisions,
    Event,
    Needs,
    Policy,
    Reuse,
    Signals,
    Step,
    TokenFacts,
    steps_of,
)
from runtime.errors import CacheWarning, OptionError
from runtime.fourier import frequencies
from runtime.noise import uniform
from runtime.sampler import Model, StepInfo, load
from runtime.sde import VP
from tests.tiny import gaussian, make_bundle

N, C = 15, 2
FREQUENCY = np.asarray(frequencies(N), np.int64)
STEPS = steps_of(VP(), np.linspace(1, 1e-5, 100))
EVERYTHING = Needs.CHANGE | Needs.INTENSITY | Needs.IMPACT | Needs.SURPRISE
SIGNALS = ("refresh_age", "token_age", "change", "energy", "intensity", "impact", "surprise", "lots")
MIXED = E2CRF(policy="e2crf", K=1, R=9, random_probe_ratio=0.2, tau_0=2.0, tau_warn=0.02, error_feedback=0.1)
quiet = pytest.mark.filterwarnings("ignore::runtime.errors.CacheWarning")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder, _ = make_bundle(tmp_path_factory.mktemp("tiny"))
    with load(folder, threads=1) as model:
        yield model


@dataclass
class Listening:
    """A backend as it is; it counts network calls and their rows of tokens, and keeps what went through them."""

    inner: Backend
    calls: int = 0
    rows: int = 0
    full_rows: int = 0
    heard: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    name: str = "listening"

    def signature(self, graph: str) -> Graph:
        return self.inner.signature(graph)

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return self.inner.run(graph, feeds)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.inner.zeros(shape, dtype)

    def trajectory(self, *facts: Any, **options: Any) -> None:
        return None

    def bind(self, graph: str, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        call = self.inner.bind(graph, inputs, outputs)

        def counted() -> None:
            call()
            if "score" in outputs:  # step, or head: the last of the parts
                batch, num_tokens, _ = outputs["score"].shape
                self.calls, self.rows = self.calls + 1, self.rows + batch * num_tokens
                self.full_rows += batch * num_tokens if num_tokens == N else 0
                self.heard.append({name: array.copy() for name, array in {**inputs, **outputs}.items()})

        return counted

    def close(self) -> None:
        """The one who opened it closes it."""


@dataclass
class Watched:
    """A cache as it is, and what its policy saw and decided at every step of one batch."""

    inner: Cache
    needs: Needs = EVERYTHING
    seen: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    decided: list[Decisions] = field(default_factory=list)

    @property
    def reuse(self) -> str:
        return self.inner.reuse

    @property
    def feedback(self) -> float:
        return self.inner.feedback

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        policy = self.inner.concrete(facts, steps)

        def watched(step: Step, signals: Signals) -> Decisions:
            self.seen.append({name: np.array(getattr(signals, name)) for name in SIGNALS})
            self.decided.append(policy(step, signals))
            return self.decided[-1]

        return watched


@dataclass
class Scripted:
    """A plug-in: what a sample does at a step is a function of both; `alike` says it once for all samples."""

    script: Callable[[int, int], Decision]
    reuse: str = Reuse.RESIDUAL
    needs: Needs = Needs.NOTHING
    feedback: float = 0.0
    first_sample: int = 0
    alike: bool = False

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        def policy(step: Step, signals: Signals) -> Decisions:
            if self.alike:
                return self.script(self.first_sample, step.index)
            return [self.script(self.first_sample + k, step.index) for k in range(len(signals.refresh_age))]

        return policy


def anything(sample: int, step: int) -> Decision:
    """Different samples do different things: begin at steps 8 to 10, refresh, recompute some tokens, reuse."""
    begin = 8 + sample % 3
    if step < begin:
        return Decision(Event.PRIOR)
    if step == begin:
        return Decision(Event.FIRST if sample % 2 else Event.REFRESH)
    rng = np.random.default_rng([sample, step])
    tokens = np.sort(rng.choice(N, rng.integers(1, N), replace=False))
    known = [Decision(Event.REUSE), Decision(Event.LOW, np.flatnonzero(FREQUENCY < 2)), Decision(Event.CHOSEN, tokens)]
    return [*known, Decision(Event.REFRESH), Decision(Event.TRIGGER)][rng.choice(5, p=[0.3, 0.2, 0.3, 0.1, 0.1])]


def close(found: NDArray[Any], expected: NDArray[Any], share: float) -> None:
    """Equal to a share of the largest expected number."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max() + 1e-12)


@dataclass
class Made:
    """Signals made up for a policy."""

    since_refresh: int | None
    refresh_age: NDArray[np.int64]
    token_age: NDArray[np.int64]
    change: NDArray[np.float32]
    energy: NDArray[np.float32]
    intensity: NDArray[np.float32]
    impact: NDArray[np.float32]
    surprise: NDArray[np.float32]
    lots: NDArray[np.float32]


def made_up(seed: int, batch: int = 3) -> Made:
    """Random signals in the middle of a trajectory."""
    rng = np.random.default_rng(seed)
    refresh_age = rng.integers(1, 12, batch)

    def amounts(*shape: int) -> NDArray[np.float32]:
        amounts: NDArray[np.float32] = np.exp(rng.normal(-1.0, 2.0, shape)).astype(np.float32)
        return amounts

    return Made(
        since_refresh=int(refresh_age.max()),
        refresh_age=refresh_age,
        token_age=np.minimum(refresh_age[:, None], rng.integers(1, 12, (batch, N))),
        change=amounts(batch, N),
        energy=amounts(batch, N),
        intensity=amounts(batch),
        impact=amounts(batch),
        surprise=amounts(batch),
        lots=rng.random((batch, N // 2 + 1), np.float32),
    )


def recomputed_by(cache: Cache, signals: Made) -> NDArray[np.bool_]:
    """Which tokens a policy asks the network for, [B, N]."""
    decisions = cache.concrete(TokenFacts(FREQUENCY), STEPS)(STEPS[80], signals)
    batch = len(signals.refresh_age)
    chosen = np.zeros((batch, N), np.bool_)
    for row, decision in enumerate([decisions] * batch if isinstance(decisions, Decision) else decisions):
        if decision.event.is_full:
            chosen[row] = True
        elif decision.tokens is not None:
            chosen[row, decision.tokens] = True
    return chosen


# ---- which tokens, and when


@pytest.mark.parametrize("cache", [E2CRF(), MIXED, E2CRF.preset("readme"), E2CRF(K=0)])
@quiet
def test_the_first_network_step_computes_all_tokens(tiny: Model, cache: E2CRF) -> None:
    stats = tiny.sample(3, steps=40, cache=cache).stats
    first = int(np.flatnonzero(stats.recomputed.any(axis=1))[0])
    assert np.array_equal(stats.recomputed[first], 3 * stats.tokens_per_frequency)
    assert stats.events[first, list(Event).index(Event.FIRST)] == 3
    assert np.isnan(stats.age[:first]).all()
    assert not np.isnan(stats.age[first:]).any()


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
def test_a_sample_recomputes_exactly_the_published_set(seed: int) -> None:
    """Oracle: eq. 14-16 written out, token by token, for thresholds that all have a say."""
    cache = E2CRF(policy="e2crf", K=2, R=10, tau_0=0.1, eps=0.01, tau_warn=1.0, tau_safe=0.2, max_age=7,
                  random_probe_ratio=0.3)  # fmt: skip
    signals = made_up(seed)
    chosen = recomputed_by(cache, signals)
    for b in range(3):
        full = signals.refresh_age[b] >= 10 or signals.intensity[b] > 1.0

        def wanted(k: int, b: int = b) -> bool:
            threshold = 0.1 / (0.01 + signals.energy[b, k])
            is_changed = signals.change[b, k] > threshold and signals.intensity[b] > 0.2
            return bool(is_changed or signals.token_age[b, k] >= 7)

        for frequency in range(N // 2 + 1):
            tokens = np.flatnonzero(frequency == FREQUENCY)
            is_probe = signals.lots[b, frequency] < 0.3
            expected = full or frequency < 2 or is_probe or any(wanted(int(k)) for k in tokens)
            assert (chosen[b, tokens] == expected).all()


# ---- directions

BASE = {"K": 1, "R": 12, "random_probe_ratio": 0.1, "tau_0": 20.0, "eps": 0.1, "tau_safe": 0.0}
LADDERS: dict[str, tuple[dict[str, Any], list[Any]]] = {  # every next value must recompute more
    "K": ({}, [0, 1, 3, 6]),
    "random_probe_ratio": ({}, [0.0, 0.2, 0.6, 1.0]),
    "R": ({}, [40, 12, 5, 1]),
    "max_age": ({}, [12, 6, 3, 1]),
    "tau_0": ({}, [np.inf, 50.0, 5.0, 0.0]),
    "tau_warn": ({}, [np.inf, 0.02, 0.005, 0.0]),
    "tau_safe": ({"tau_0": 2.0}, [1.0, 0.02, 0.005, 0.0]),
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


def test_energy_is_weighted_by_the_spectrum_of_the_data(tiny: Model) -> None:
    """Oracle: z squared times the variance of its token over the mean variance; 1e-5 of the largest."""
    cache, latents = Watched(MIXED), []
    tiny.sample(3, steps=30, cache=cache, on_step=lambda info: latents.append(info.z.copy()))
    variance = np.square(np.asarray(tiny.manifest.standardisation.std))  # [N, C]
    for z, seen in zip(latents[:-1], cache.seen[1:], strict=True):
        close(seen["energy"], (np.square(z) * variance / variance.sum() * N).sum(axis=2), 1e-5)


def test_the_units_of_the_data_change_no_decision(tiny: Model) -> None:
    """Data in a tenth of the unit: the same tokens at the same steps, and ten times the series (1e-5)."""
    scale = tiny.manifest.standardisation
    mean, std = (10.0 * np.asarray(values) for values in (scale.mean, scale.std))
    scaled = Model(replace(tiny.manifest, standardisation=Standardisation(mean.tolist(), std.tolist())), tiny.backend)
    for cache in (MIXED, E2CRF(policy="e2crf", K=1, R=30, tau_0=2.0, trigger="impact", tolerance=0.05)):
        one, ten = (model.sample(4, steps=60, cache=cache) for model in (tiny, scaled))
        assert one.stats.event_counts["chosen"] > 40
        assert one.stats.event_counts["trigger"] > 0
        assert np.array_equal(one.stats.recomputed, ten.stats.recomputed)
        assert np.array_equal(one.stats.events, ten.stats.events)
        close(ten.series, 10 * one.series, 1e-5)


# ---- samples on their own


def test_a_sample_of_policy_e2crf_is_the_same_in_any_batch(tiny: Model) -> None:
    """Oracle: the sample drawn alone; 1e-4 of the scale, what float32 matmuls leave. Probes included."""
    many = tiny.sample(12, steps=40, cache=MIXED, batch_size=12)
    kinds = (many.stats.events > 0).sum(axis=1)
    assert (kinds > 1).sum() > 5  # samples really did different things
    fives = tiny.sample(12, steps=40, cache=MIXED, batch_size=5)
    close(fives.series, many.series, 1e-4)
    assert np.array_equal(fives.stats.recomputed, many.stats.recomputed)
    counts = np.zeros_like(many.stats.recomputed)
    for k in range(12):
        alone = tiny.sample(1, steps=40, cache=MIXED, first_sample=k)
        close(alone.series[0], many.series[k], 1e-4)
        counts += alone.stats.recomputed
        assert many.stats.sample_tokens[k] == alone.stats.recomputed.sum()
        assert np.array_equal(many.stats.sample_events[k], alone.stats.events.sum(axis=0))
    assert np.array_equal(counts, many.stats.recomputed)


@pytest.mark.parametrize("reuse", list(Reuse))
@pytest.mark.parametrize("solver", ["ancestral", "dpmpp_2m"])
def test_samples_that_do_different_things_each_get_what_they_get_alone(tiny: Model, reuse: str, solver: str) -> None:
    """A plug-in that knows no mercy, error feedback included; 1e-5 of the scale. Its signals agree too."""
    together = Watched(Scripted(anything, reuse, feedback=0.1))
    many = tiny.sample(6, steps=32, solver=solver, cache=together)
    for k in range(6):
        alone = Watched(Scripted(anything, reuse, feedback=0.1, first_sample=k))
        close(tiny.sample(1, steps=32, solver=solver, cache=alone, first_sample=k).series[0], many.series[k], 1e-5)
        for name in SIGNALS:
            one, all_ = (np.stack([seen[name] for seen in cache.seen]) for cache in (alone, together))
            np.testing.assert_allclose(one[:, 0], all_[:, k], rtol=1e-3, atol=1e-4 * np.abs(all_).max(), err_msg=name)


@pytest.mark.parametrize("size", [1, 3, 5, 9, 14])
def test_one_decision_for_all_is_that_decision_for_each(tiny: Model, size: int) -> None:
    """Sets chosen per sample are padded; the padding shows in no number (1e-5 of each signal's largest)."""

    def script(sample: int, step: int) -> Decision:
        if step < 8:
            return Decision(Event.PRIOR)
        if step % 6 == 2:
            return Decision(Event.REFRESH)
        return Decision(Event.CHOSEN, np.arange(size) + step % (N - size + 1))

    told = [Watched(Scripted(script, feedback=0.5, alike=alike)) for alike in (True, False)]
    alike, each = (tiny.sample(3, steps=32, cache=cache) for cache in told)
    close(each.series, alike.series, 1e-5)
    assert np.array_equal(each.stats.recomputed, alike.stats.recomputed)
    for name in SIGNALS:
        one, other = (np.stack([seen[name] for seen in cache.seen]) for cache in told)
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * np.abs(one).max(), err_msg=name)
    np.testing.assert_allclose(each.stats.intensity, alike.stats.intensity, rtol=1e-3)


def test_lots_are_the_uniform_draws_of_seed_sample_and_step(tiny: Model) -> None:
    cache = Watched(MIXED)
    tiny.sample(3, steps=30, cache=cache, seed=5, first_sample=7)
    for i, seen in enumerate(cache.seen):  # the prior phase is decided once
        assert seen["lots"].shape == (3, N // 2 + 1)
        step = i if i == 0 else 30 - len(cache.seen) + i
        assert np.array_equal(seen["lots"], uniform(5, np.arange(7, 10), step, N // 2 + 1))


# ---- signals


def test_change_is_the_squared_way_since_the_token_was_recomputed(tiny: Model) -> None:
    """Oracle: eq. 15 from the latents that `on_step` hears of; 1e-5 of the largest."""
    cache = Watched(MIXED)
    latents: dict[int, NDArray[np.float32]] = {}
    tiny.sample(3, steps=30, cache=cache, on_step=lambda info: latents.__setitem__(info.index + 1, info.z.copy()))
    for i in range(20, 30):
        made = i - cache.seen[i]["token_age"]  # [B, N]
        then = np.stack([[latents[int(made[b, k])][b, k] for k in range(N)] for b in range(3)])
        close(cache.seen[i]["change"], np.square(latents[i] - then).sum(axis=2), 1e-5)


def test_intensity_is_the_relative_change_of_the_features_recomputed(tiny: Model) -> None:
    """Oracle: eq. 14 over what the graph gave, each token once; 1e-5. And 0 after a refresh."""
    listening = Listening(tiny.backend)
    cache = Watched(Scripted(anything))
    Model(tiny.manifest, listening).sample(1, steps=40, cache=cache)
    features, calls = np.zeros((N, tiny.manifest.network.d_model)), iter(listening.heard)
    expected = 0.0
    stats = []
    for seen, decisions in zip(cache.seen, cache.decided, strict=True):
        assert seen["intensity"][0] == pytest.approx(expected, rel=1e-5)
        assert isinstance(decisions, list)
        if decisions[0].event in (Event.PRIOR, Event.REUSE):
            continue
        call = next(calls)
        tokens, where = np.unique(call["token"][0], return_index=True)
        hidden = call["hidden"][0, where]
        if decisions[0].event.is_full:
            expected = 0.0
        else:
            old = features[tokens]
            expected = np.square(hidden - old).sum() / (np.square(old).sum() + 1e-6)
            stats.append(expected)
        features[tokens] = hidden
    assert len(stats) > 10
    assert next(calls, None) is None


def test_impact_adds_up_what_the_probes_missed(tiny: Model) -> None:
    """Oracle: alpha_s^2 v / sigma_t^2 rms of the probe error, over the steps since the refresh; 1e-4.

    In mode `data` the probe error of a token is how far its data prediction moved.
    """
    infos: list[StepInfo] = []
    cache = Watched(Scripted(anything, Reuse.DATA))
    tiny.sample(1, steps=40, cache=cache, on_step=lambda info: infos.append(replace(info, data=info.data.copy())))
    times = np.linspace(1, 1e-5, 40)
    alpha, sigma = VP().alpha(times), VP().sigma(times)
    alpha_s, sigma_s = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    v = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
    weight = np.square(np.asarray(tiny.manifest.standardisation.std))
    impact = error = surprise = 0.0
    is_begun, largest = False, 0.0
    for i, (seen, decisions) in enumerate(zip(cache.seen, cache.decided, strict=True)):
        assert seen["impact"][0] == pytest.approx(impact, rel=1e-4)
        assert seen["surprise"][0] == pytest.approx(surprise, rel=1e-4)
        assert isinstance(decisions, list)
        event, tokens = decisions[0].event, decisions[0].tokens
        moved = infos[i].data[0] - infos[i - 1].data[0]
        if event.is_full:
            if is_begun:
                surprise = float(np.sqrt((weight * moved**2).sum() / weight.sum()))
            is_begun, impact, error = True, 0.0, 0.0
        elif tokens is not None:
            error = float(np.sqrt((weight * moved**2)[tokens].sum() / weight[tokens].sum()))
        impact += alpha_s[i] ** 2 * v[i] / sigma[i] ** 2 * error
        largest = max(largest, impact)
    assert largest > 0
    assert surprise > 0


def test_a_surprise_before_the_second_refresh_of_a_sample_is_zero(tiny: Model) -> None:
    """Also where its neighbour in the batch is refreshed for the second time."""

    def script(sample: int, step: int) -> Decision:
        begin = 8 if sample == 0 else 12
        return Decision(Event.PRIOR) if step < begin else Decision(Event.REFRESH)

    cache = Watched(Scripted(script))
    tiny.sample(2, steps=16, cache=cache)
    surprise = np.stack([seen["surprise"] for seen in cache.seen])
    assert (surprise[:10, 0] == 0).all()
    assert (surprise[10:, 0] > 0).all()
    assert (surprise[:14, 1] == 0).all()
    assert (surprise[14:, 1] > 0).all()


# ---- error feedback


@quiet
def test_error_feedback_of_zero_is_off_and_any_other_is_not(tiny: Model) -> None:
    cache = E2CRF(policy="e2crf", K=1, R=20, random_probe_ratio=0.2, tau_0=np.inf, trigger="none")
    off, zero, on = (
        tiny.sample(3, steps=60, cache=replace(cache, error_feedback=value)).series for value in (None, 0.0, 0.5)
    )
    assert np.array_equal(off, zero)
    assert np.abs(on - off).max() > 1e-3 * np.abs(off).max()


@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.floats(0.0, 2.0))
def test_a_neighbour_takes_over_part_of_the_probe_error_in_its_own_kind(seed: int, most: float, limit: float) -> None:
    """Re moves by the errors of Re alone and Im by those of Im, by at most the share allowed, toward the error.

    Oracle: the mean of the docstring, written out; 1e-5.
    """
    rng = np.random.default_rng(seed)
    probed = np.sort(rng.choice(N // 2 + 1, 3, replace=False))
    tokens = np.flatnonzero(np.isin(FREQUENCY, probed))
    is_im = np.arange(N) > N // 2
    error = rng.standard_normal((1, len(tokens), C)).astype(np.float32)
    value = np.zeros((1, N, C), np.float32)
    counts = np.ones((1, len(tokens)), np.bool_)
    Feedback(FREQUENCY, most).apply(value, error, tokens[None], counts, np.array([limit], np.float32))
    for k in range(N):
        near = np.exp(-np.abs(FREQUENCY[tokens] - FREQUENCY[k])) * (is_im[tokens] == is_im[k])
        expected = min(most, limit) * (near[:, None] * error[0]).sum(axis=0) / (near.sum() + 1.0)
        np.testing.assert_allclose(value[0, k], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("needs", [Needs.NOTHING, Needs.INTENSITY])
@pytest.mark.parametrize("alike", [True, False])
def test_a_probed_token_keeps_its_true_value_and_its_neighbour_moves_toward_the_error(
    tiny: Model, needs: Needs, alike: bool
) -> None:
    """In mode `data` what is cached is the data prediction itself, so `on_step` tells it.

    One token is probed, so its neighbour takes over a e / (1 + e) of the error e = exp(-distance), with
    a = min(1, r / 2) where the intensity r is known; 1e-4 of the largest.
    """
    re, im = 3, N // 2 + 3  # Re and Im of frequency 3
    assert FREQUENCY[re] == FREQUENCY[im] == 3
    begin, probe = 8, 16

    def script(sample: int, step: int) -> Decision:
        if step <= begin:
            return Decision(Event.PRIOR if step < begin else Event.FIRST)
        return Decision(Event.CHOSEN, np.array([re])) if step == probe else Decision(Event.REUSE)

    data: list[NDArray[np.float32]] = []
    cache = Scripted(script, Reuse.DATA, needs=needs, feedback=1.0, alike=alike)
    watched = Watched(cache, needs=needs | Needs.CHANGE | Needs.IMPACT)
    stats = tiny.sample(1, steps=32, cache=watched, on_step=lambda info: data.append(info.data[0].copy())).stats
    before, at, after = data[probe - 1], data[probe], data[probe + 1]
    error = at[re] - before[re]
    assert np.abs(error).min() > 1e-4
    assert np.array_equal(at[re], after[re])
    share = 1.0 if needs is Needs.NOTHING else 0.5 * float(stats.intensity[probe])
    assert 0.01 < share <= 1.0
    for k in range(N):
        near = np.exp(-abs(FREQUENCY[k] - 3)) if k <= N // 2 else 0.0
        expected = before[k] + share * near / (1.0 + near) * error
        if k != re:
            close(after[k], expected, 1e-4 if k <= N // 2 else 0.0)


# ---- the record


@pytest.mark.parametrize("graphs", ["step", "split"])
@pytest.mark.parametrize(
    "cache", [None, E2CRF(R=9, K=2), MIXED, Scripted(anything)], ids=["uncached", "interval", "e2crf", "plug-in"]
)
def test_statistics_add_up_to_what_the_backend_ran(tiny: Model, cache: Cache | None, graphs: str) -> None:
    """Oracle: a backend that counts its calls and the rows of tokens in them, padding included."""
    listening = Listening(tiny.backend)
    stats = Model(tiny.manifest, listening, graphs=graphs).sample(7, steps=40, cache=cache, batch_size=4).stats
    assert (stats.work.calls, stats.work.tokens) == (listening.calls, listening.rows)
    assert stats.work.full_tokens <= listening.full_rows
    assert stats.recomputed.sum() <= stats.work.tokens
    assert stats.passes == listening.rows / (7 * N)
    assert stats.hit_rate == pytest.approx(1 - stats.recomputed.sum() / (7 * N * 40))
    assert stats.ideal_speedup == pytest.approx(40 / stats.passes)
    assert sum(stats.event_counts.values()) == 7 * 40
    assert (stats.events.sum(axis=1) == 7).all()
    assert stats.sample_tokens.shape == (7,)
    assert stats.sample_tokens.sum() == stats.recomputed.sum()
    assert np.array_equal(stats.sample_events.sum(axis=0), stats.events.sum(axis=0))
    assert (stats.sample_events.sum(axis=1) == 40).all()
    full = sum(stats.event_counts.get(event, 0) for event in Event if event.is_full)
    assert stats.work.full_tokens == full * N
    if not isinstance(cache, Scripted) and cache is not MIXED:
        assert stats.recomputed.sum() == stats.work.tokens  # nothing is padded
    assert 0.0 <= stats.heatmap().min() <= stats.heatmap().max() <= 1.0
    assert json.loads(json.dumps(stats.summary()))["network_calls"] == listening.calls


def test_the_record_says_how_old_the_tokens_were(tiny: Model) -> None:
    """Oracle: the ages a policy sees, one step later; mean and largest of the batch."""
    cache = Watched(MIXED)
    stats = tiny.sample(4, steps=40, cache=cache, on_step=lambda info: None).stats
    for i in range(30, 39):
        ages = cache.seen[i + 1]["token_age"] - 1
        assert stats.age[i] == pytest.approx((ages.mean(), ages.max()))


@quiet
def test_the_record_tells_the_age_of_the_worst_batch(tiny: Model) -> None:
    """Oracle: the batches drawn one by one. In the first the guard of a plan speaks up, in the second it does not."""
    watched = Watched(plan_for(tiny, (14, 20)))
    tiny.sample(2, steps=40, cache=watched, on_step=lambda info: None)
    loud, calm = sorted((float(off), k) for k, off in enumerate(watched.seen[21]["surprise"]))[::-1]
    cache = plan_for(tiny, (14, 20), surprise=(1e9, (loud[0] + calm[0]) / 2), guard=1.0)
    both = tiny.sample(2, cache=cache, batch_size=1).stats
    one, other = (tiny.sample(1, cache=cache, first_sample=k).stats for k in (loud[1], calm[1]))
    assert (one.age[30, 1], other.age[30, 1]) == (0, 10)
    np.testing.assert_array_equal(both.age, np.fmax(one.age, other.age))


def test_the_record_knows_tokens_by_number_not_by_frequency(tiny: Model) -> None:
    """A plug-in may recompute the Re of a frequency alone: its Im grows older, in the record too."""

    def script(sample: int, step: int) -> Decision:
        return Decision(Event.CHOSEN, np.arange(N // 2 + 1)) if step else Decision(Event.FIRST)

    stats = tiny.sample(2, steps=10, cache=Scripted(script, alike=True)).stats
    assert stats.age[9, 1] == 9
    assert stats.age[9, 0] == pytest.approx(9 * (N // 2) / N)


@pytest.mark.parametrize("alike", [True, False])
def test_the_order_of_a_set_does_not_matter_nor_does_the_array_it_comes_in(tiny: Model, alike: bool) -> None:
    """A plug-in that keeps one array and writes it anew, backwards, all N tokens included; 1e-5 of the scale."""
    kept = {size: np.zeros(size, np.int64) for size in (5, N)}

    def chosen(step: int) -> NDArray[np.int64]:
        size = (5, N)[step % 2]
        return (np.arange(size) + step) % N

    def fresh(sample: int, step: int) -> Decision:
        if step < 9:
            return Decision(Event.PRIOR if step < 8 else Event.FIRST)
        return Decision(Event.REFRESH) if step % 5 == 0 else Decision(Event.CHOSEN, np.sort(chosen(step)))

    def reused(sample: int, step: int) -> Decision:
        decision = fresh(sample, step)
        if decision.tokens is None:
            return decision
        array = kept[len(decision.tokens)]
        array[:] = chosen(step)[::-1]
        return Decision(Event.CHOSEN, array)

    one, other = (tiny.sample(2, steps=32, cache=Scripted(script, alike=alike)) for script in (fresh, reused))
    close(other.series, one.series, 1e-5)
    assert np.array_equal(one.stats.recomputed, other.stats.recomputed)


def test_the_record_tells_the_intensity_of_the_partial_steps_alone(tiny: Model) -> None:
    """Oracle: the signal a step later, over the samples that recomputed a part; NaN where none did."""
    cache = Watched(Scripted(anything))
    stats = tiny.sample(3, steps=40, cache=cache).stats
    told = 0
    for i in range(39):
        decisions = cache.decided[i]
        assert isinstance(decisions, list)
        partial = [decision.tokens is not None for decision in decisions]
        if any(partial):
            assert stats.intensity[i] == pytest.approx(cache.seen[i + 1]["intensity"][partial].mean(), rel=1e-5)
            told += 1
        else:
            assert np.isnan(stats.intensity[i])
    assert 10 < told < 39


def test_a_cache_that_never_reuses_warns(tiny: Model) -> None:
    with pytest.warns(CacheWarning, match="never reused anything"):
        tiny.sample(2, steps=20, cache=E2CRF(R=1))


@pytest.mark.parametrize("cache", [E2CRF(R=10**6), E2CRF(policy="e2crf", R=10**6, trigger="none")])
def test_a_cache_that_never_refreshes_warns(tiny: Model, cache: E2CRF) -> None:
    with pytest.warns(CacheWarning, match="never refreshed after the first network step"):
        tiny.sample(2, steps=20, cache=cache)


def test_what_is_meant_does_not_warn(tiny: Model) -> None:
    """Warnings are errors here: policy never, the uncached sampler, plans and plug-ins keep silent."""
    digest = tiny.manifest.source.digest
    once = Plan(source_digest=digest, steps=20, solver="ancestral", refreshes=(12,))
    always = Plan(source_digest=digest, steps=20, solver="ancestral", refreshes=tuple(range(20)))
    for cache in (E2CRF(policy="never"), None, once, always, Scripted(anything), E2CRF(R=5)):
        assert len(tiny.sample(2, steps=20, cache=cache).series) == 2


# ---- graphs


@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("knobs", [{}, {"trigger": "impact", "tau_warn": None}], ids=["feature", "impact"])
def test_step_and_split_graphs_agree_on_every_event(tmp_path: Path, knobs: dict[str, Any], num_layers: int) -> None:
    """The features come out of both: the same decisions, and the same samples to 1e-5 of the scale."""
    folder, _ = make_bundle(tmp_path, num_layers=num_layers)
    cache = replace(MIXED, **knobs)
    models = [load(folder, threads=1, graphs=graphs) for graphs in ("step", "split")]
    one, other = (model.sample(4, steps=40, cache=cache) for model in models)
    assert one.stats.event_counts["chosen"] > 20
    assert np.array_equal(one.stats.recomputed, other.stats.recomputed)
    np.testing.assert_allclose(one.stats.intensity, other.stats.intensity, rtol=1e-3)
    close(other.series, one.series, 1e-5)


def test_a_step_graph_that_gives_no_features_is_refused_where_they_are_needed(tiny: Model) -> None:
    """An older bundle: the other triggers and the split graphs serve it still."""
    step = tiny.manifest.graphs["step"]
    without = replace(step, outputs=[tensor for tensor in step.outputs if tensor.name != "hidden"])
    assert len(without.outputs) == len(step.outputs) - 1

    @dataclass
    class Older(Listening):
        def signature(self, graph: str) -> Graph:
            return without if graph == "step" else self.inner.signature(graph)

    older = Older(tiny.backend)
    with pytest.raises(OptionError, match=r"needs the features of the last layer, found a step graph .* export the "):
        Model(tiny.manifest, older).sample(2, steps=20, cache=E2CRF(policy="e2crf", K=1))
    for model, cache in (
        (Model(tiny.manifest, older), E2CRF(policy="e2crf", K=1, trigger="impact")),
        (Model(tiny.manifest, older, graphs="split"), E2CRF(policy="e2crf", K=1)),
    ):
        expected = tiny.sample(2, steps=20, cache=cache).series
        close(model.sample(2, steps=20, cache=cache).series, expected, 1e-5)


# ---- options

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
    ("make", "says"),
    [
        (lambda: E2CRF.preset("thesis"), "known ones are readme, paper, paper-best"),
        (lambda: E2CRF.preset("paper", tau=1), "unknown knob tau; the known ones are K, R, alpha_prior"),
        (lambda: E2CRF(tau_0=0.1), "tau_0 belongs to policy e2crf, found it with policy interval"),
        (lambda: E2CRF(trigger="none"), "trigger belongs to policy e2crf"),
        (lambda: E2CRF(error_feedback=0.1), "error_feedback belongs to policy e2crf"),
        (lambda: E2CRF(energy_weighting=False), "energy_weighting belongs to policy e2crf"),
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


@pytest.mark.parametrize("knob", ["random_probe_ratio", "error_feedback"])
def test_shares_above_one_are_refused(knob: str) -> None:
    with pytest.raises(OptionError, match=f"{knob} must lie between 0 and 1"):
        E2CRF(policy="e2crf", **{knob: 1.5})  # type: ignore[arg-type]


def test_policy_e2crf_is_refused_where_tokens_cannot_be_computed_alone() -> None:
    for domain, why in (("time", "tokens of this model are time steps"), ("frequency", "has no K/V cache")):
        with pytest.raises(OptionError, match=f"recomputes some tokens alone, but .*{why}; use policy interval"):
            gaussian(10, VP(), domain).model.sample(1, steps=5, cache=E2CRF(policy="e2crf"))


# ---- plans


def plan_for(model: Model, refreshes: tuple[int, ...], steps: int = 40, **more: Any) -> Plan:
    settings_ = {"solver": "ancestral", "source_digest": model.manifest.source.digest} | more
    return Plan(steps=steps, refreshes=refreshes, **settings_)


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


def changed(**values: Any) -> Callable[[dict[str, Any]], str]:
    return lambda plan: json.dumps(plan | values)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda plan: "not JSON", r"is not a plan \(Expecting value"),
        (lambda plan: "", "is not a plan"),
        (lambda plan: json.dumps(plan)[:-3], "is not a plan"),
        (lambda plan: json.dumps([plan]), "has schema None, this version reads schema 1"),
        (changed(schema=2), "has schema 2, this version reads schema 1"),
        (lambda plan: json.dumps({k: v for k, v in plan.items() if k != "guard"}), "found a difference in guard"),
        (changed(mood=1), "found a difference in mood"),
        (changed(refreshes=[30, 20]), "refreshes must be rising steps from 0 to 39, found"),
        (changed(refreshes=[20, 20]), "refreshes must be rising steps"),
        (changed(refreshes=[20, 40]), "refreshes must be rising steps"),
        (changed(refreshes=[-1, 20]), "refreshes must be rising steps"),
        (changed(refreshes=[20.5, 30]), "refreshes must be rising steps"),
        (changed(refreshes=["20", "30"]), "refreshes must be rising steps"),
        (changed(refreshes=[20, None]), "is not a plan"),
        (changed(refreshes=[]), "refreshes must not be empty"),
        (changed(refreshes="20"), "refreshes must be a list, found '20'"),
        (changed(low_steps="25"), "low_steps must be a list"),
        (changed(surprise=0.5), "surprise must be a list"),
        (changed(low_steps=[35, 25]), "low_steps must be rising steps"),
        (changed(surprise=[0.5, float("nan")]), "surprise and guard must be positive numbers"),
        (changed(surprise=[0.5, float("inf")]), "surprise and guard must be positive numbers"),
        (changed(surprise=[0.5, -0.5]), "surprise and guard must be positive numbers"),
        (changed(surprise=[0.5, "0.5"]), "is not a plan"),
        (changed(surprise=[0.5]), "surprise must have one number per refresh, found 1"),
        (changed(guard=-1.0), "surprise and guard must be positive numbers"),
        (changed(guard="4"), "is not a plan"),
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
    ],
)  # fmt: skip
def test_a_broken_plan_file_is_one_sentence(
    tiny: Model, tmp_path: Path, spoil: Callable[[dict[str, Any]], str], says: str
) -> None:
    plan = plan_for(tiny, (20, 30), low_steps=(25,), surprise=(0.5, 0.5))
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
