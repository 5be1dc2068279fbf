"""Each sample on its own: what it gets alone it gets in any batch, whatever its neighbours do."""

import numpy as np
import pytest

from runtime.cache.policy import Decision, Event, Reuse
from runtime.noise import uniform
from runtime.sampler import Model
from tests import opened
from tests.cache_doubles import MIXED, SIGNALS, N, Scripted, Watched, anything, close

tiny = opened.tiny


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
