"""What a run tells of its cache: calls, tokens, ages, intensities, events, and warnings where it was of no use."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import REUSE, Cache, Decision, Event
from runtime.cache.stats import Recorder
from runtime.errors import CacheWarning
from runtime.sampler import Model
from tests import opened
from tests.cache_doubles import MIXED, Listening, N, Scripted, Watched, anything, close, plan_for, quiet

tiny = opened.tiny


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


def test_batches_that_refresh_at_other_steps_are_told_apart() -> None:
    """Ages that were drawn up for one batch hold for those alone that asked at the same steps."""
    trajectory: Any = SimpleNamespace(batch=1, keeps_intensity=False)
    whole = Recorder(np.arange(3), 10)
    for refreshes in ((0, 5), (0, 5), (0,), (0, 5)):
        batch = Recorder(np.arange(3), 10, 1)
        for i in range(10):
            batch.record(i, i + 1, Decision(Event.REFRESH) if i in refreshes else REUSE, trajectory)
        whole.add(batch)
    np.testing.assert_array_equal(whole.finish(4, 0, 1.0).age, np.stack([np.arange(10)] * 2, axis=1))


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


@pytest.mark.parametrize(
    "knobs", [{"tau_0": 0.0}, {"random_probe_ratio": 1.0}, {"K": 8, "policy": "e2crf"}, {"K": 8, "low_every": 1},
              {"max_age": 1}, {"max_age": 1, "policy": "e2crf"}],
    ids=["threshold", "probes", "K", "low steps", "age", "age by events"])  # fmt: skip
def test_a_cache_that_chooses_every_token_at_every_step_warns_that_it_never_reuses(
    tiny: Model, knobs: dict[str, Any]
) -> None:
    """Whatever such a step is called. One K less, and it reuses."""
    with pytest.warns(CacheWarning, match="never reused anything: every step after the prior phase recomputed") as told:
        stats = tiny.sample(2, steps=20, cache=E2CRF(R=5, **knobs)).stats
    assert len(told) == 1
    prior = stats.event_counts["prior"]
    assert stats.recomputed.sum() == N * (2 * 20 - prior)
    if "low_every" in knobs:
        tiny.sample(2, steps=20, cache=E2CRF(R=5, **knobs | {"K": 7}))


@pytest.mark.parametrize("alike", [True, False])
def test_the_samples_that_were_never_refreshed_are_counted(tiny: Model, alike: bool) -> None:
    """Sample 0 is refreshed at step 5, sample 1 is not; alike, both are."""

    def script(sample: int, step: int) -> Decision:
        return Decision(Event.FIRST) if step == 0 else Decision(Event.REFRESH) if step == 5 - sample * 9 else REUSE

    stats = tiny.sample(2, steps=8, cache=Scripted(script, alike=alike)).stats
    said = "the cache was never refreshed after the first network step in 1 of 2 samples; lower R"
    assert stats.warnings == (() if alike else (said,))


def test_the_achieved_speedup_is_full_passes_over_the_clock(tiny: Model) -> None:
    """By hand: two full calls of N tokens for three samples take 0.6 s, so 40 steps 12 s; the run took 1.5 s."""
    stats = tiny.sample(3, steps=40, cache=E2CRF(R=9, K=0)).stats
    work = replace(stats.work, full_calls=2, full_tokens=2 * 3 * N, full_seconds=0.6)
    known = replace(stats, work=work, seconds=1.5)
    assert known.achieved_speedup == pytest.approx(8.0)
    assert known.summary()["achieved_speedup"] == 8.0


@pytest.mark.parametrize("cache", [E2CRF(R=10**6), E2CRF(policy="e2crf", R=10**6, trigger="none")])
def test_a_cache_that_never_refreshes_warns(tiny: Model, cache: E2CRF) -> None:
    with pytest.warns(CacheWarning, match="never refreshed after the first network step"):
        tiny.sample(2, steps=20, cache=cache)


def test_thresholds_that_nothing_can_pass_are_told(tiny: Model) -> None:
    with pytest.warns(CacheWarning, match="no token is recomputed between refreshes, so that no threshold"):
        tiny.sample(2, steps=20, cache=E2CRF.preset("paper", K=0, R=5))
    tiny.sample(2, steps=20, cache=E2CRF.preset("readme", K=0, random_probe_ratio=0.0, R=5))  # tau_0 looks at z alone


@pytest.mark.parametrize("cache", [E2CRF(R=2), E2CRF(policy="never"), E2CRF(policy="e2crf")])
def test_a_run_that_never_asks_the_network_warns(tiny: Model, cache: E2CRF) -> None:
    """One step lies at t = 1, in the prior phase."""
    with pytest.warns(CacheWarning, match="the network was never asked"):
        stats = tiny.sample(2, steps=1, cache=cache).stats
    summary = stats.summary()
    assert summary["ideal_speedup"] is None
    assert summary["achieved_speedup"] is None


def test_what_is_meant_does_not_warn(tiny: Model) -> None:
    """Warnings are errors here: policy never, the uncached sampler, plans and plug-ins keep silent."""
    digest = tiny.manifest.source.digest
    once = Plan(source_digest=digest, steps=20, solver="ancestral", refreshes=(12,))
    always = Plan(source_digest=digest, steps=20, solver="ancestral", refreshes=tuple(range(20)))
    for cache in (E2CRF(policy="never"), None, once, always, Scripted(anything), E2CRF(R=5)):
        assert len(tiny.sample(2, steps=20, cache=cache).series) == 2
