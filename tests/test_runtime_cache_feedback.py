"""Error feedback: a neighbour takes over part of what the probes missed, in its own kind."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.cache.feedback import Feedback
from runtime.cache.options import E2CRF
from runtime.cache.policy import Decision, Event, Needs, Reuse
from runtime.sampler import Model
from tests import opened
from tests.cache_doubles import FREQUENCY, C, N, Scripted, Watched, close, quiet

tiny = opened.tiny


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
