"""Policies of others: what would make a run or its record wrong is refused in a sentence, the rest is carried out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.cache.hold import Floats
from runtime.cache.policy import REUSE, Decision, Event, Needs
from runtime.errors import OptionError
from runtime.sampler import Model
from tests import opened
from tests.cache_doubles import N, Scripted

tiny = opened.tiny
Script = Callable[[int, int], Decision]


@dataclass(frozen=True)
class Halved:
    """An ordinary record as a `Hold`: it compares by its arrays."""

    factor: NDArray[np.float32]

    def of(self, value: Floats, before: Floats, z: Floats) -> Floats:
        return self.factor * value


@pytest.mark.parametrize("alike", [True, False])
def test_tokens_alone_before_all_were_computed_are_refused(tiny: Model, alike: bool) -> None:
    cache = Scripted(lambda sample, step: Decision(Event.LOW, np.arange(3)), alike=alike)
    with pytest.raises(OptionError, match="first network step of a sample must recompute all tokens, found 'low'"):
        tiny.sample(2, steps=8, cache=cache)


def test_a_sample_that_has_begun_does_not_begin_for_the_others(tiny: Model) -> None:
    """Sample 0 begins at step 0, sample 1 at step 2: only a partial step of sample 1 before that is refused."""

    def script(tokens_at: int) -> Script:
        def decided(sample: int, step: int) -> Decision:
            if step == 2 * sample:
                return Decision(Event.FIRST)
            if step < 2 * sample:
                return Decision(Event.LOW, np.arange(3)) if step == tokens_at else Decision(Event.PRIOR)
            return Decision(Event.LOW, np.arange(3))

        return decided

    assert tiny.sample(2, steps=8, cache=Scripted(script(-1))).stats.event_counts["low"] == 7 + 5
    with pytest.raises(OptionError, match="must recompute all tokens"):
        tiny.sample(2, steps=8, cache=Scripted(script(1)))


@pytest.mark.parametrize(
    ("event", "tokens"),
    [
        (Event.LOW, None),
        (Event.CHOSEN, np.array([], np.int64)),
        (Event.REUSE, np.arange(2)),
        (Event.REUSE, np.array([], np.int64)),
        (Event.FIRST, np.arange(N)),
    ],
)
def test_an_event_has_its_tokens_and_no_other_has_any(event: Event, tokens: NDArray[np.int64] | None) -> None:
    with pytest.raises(OptionError, match=f"must name the tokens they recompute, found {event} with tokens"):
        Decision(event, tokens)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([0, 1], "must be a row of whole numbers, found list; give"),
        (np.linspace(0, 1, 200), "must be a row of whole numbers, found float64 in 1 dim"),
        (np.array([True, False]), "must be a row of whole numbers, found bool in 1 dim"),
        (np.array(3), "must be a row of whole numbers, found int64 in 0 dim"),
        ([[0], [0, 1]], "must be a row of whole numbers"),
        ([], "must be a row of whole numbers"),
        (np.array([-1]), "must not be negative, found -1"),
        (np.array([2, -1]), "must not be negative, found -1"),
        (np.array([2, 0, 2]), r"must be named once each, found \[2\]; leave these out"),
        (np.zeros(200, np.int64), "must be named once each"),
    ],
)
def test_tokens_are_whole_numbers_each_of_them_once(tokens: NDArray[np.int64], says: str) -> None:
    with pytest.raises(OptionError, match=f"tokens {says}"):
        Decision(Event.LOW, tokens)


@pytest.mark.parametrize(
    ("event", "reasons"),
    [
        (Event.LOW, np.array([0])),
        (Event.LOW, np.array([0, 4])),
        (Event.CHOSEN, np.array([0, -1])),
        (Event.CHOSEN, np.array([0.0, 1.0])),
        (Event.CHOSEN, ["low", "probe"]),
        (Event.REUSE, np.array([0, 1])),
    ],
)
def test_reasons_are_one_for_each_token(event: Event, reasons: NDArray[np.int8]) -> None:
    with pytest.raises(OptionError, match="reasons must be a number from 0 to 3 for each token, found"):
        Decision(event, np.arange(2) if event.is_partial else None, reasons=reasons)


def test_what_is_decided_is_an_event() -> None:
    with pytest.raises(OptionError, match="must be a member of Event, found 'reuse'; they are prior, first"):
        Decision("reuse")  # type: ignore[arg-type]


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(
    ("tokens", "found"), [(np.array([0, N]), f"{N};"), (np.array([[0, 1], [2, 3]]), r"an array of shape \(2, 2\);")]
)
def test_tokens_that_the_model_has_not_are_refused(
    tiny: Model, tokens: NDArray[np.int64], found: str, alike: bool
) -> None:
    cache = Scripted(lambda sample, step: Decision(Event.LOW, tokens) if step else Decision(Event.FIRST), alike=alike)
    with pytest.raises(OptionError, match=f"tokens must be one row of numbers from 0 to {N - 1}, found {found}"):
        tiny.sample(2, steps=4, cache=cache)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (None, "a policy must return a Decision, or one for each sample, found None; Decision"),
        (7, "a policy must return a Decision, or one for each sample, found 7"),
        ([], "a policy must return one Decision for all, or 2, one for each sample, found 0; look at"),
        ([REUSE], "one Decision for all, or 2, one for each sample, found 1"),
        ([REUSE] * 3, "one Decision for all, or 2, one for each sample, found 3"),
        ([REUSE, None], "a policy must return a Decision for each sample, found None"),
        (["reuse", "reuse"], "a policy must return a Decision for each sample, found 'reuse'"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_what_is_no_decision_for_each_sample_is_refused(tiny: Model, at: int, returned: object, says: str) -> None:
    class Wrong(Scripted):
        def concrete(self, facts, steps):  # type: ignore[no-untyped-def]
            policy = super().concrete(facts, steps)
            return lambda step, signals: returned if step.index == at else policy(step, signals)

    with pytest.raises(OptionError, match=says) as caught:
        tiny.sample(2, steps=4, cache=Wrong(lambda sample, step: REUSE if step else Decision(Event.FIRST)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("need", [Needs.CHANGE, Needs.INTENSITY, Needs.IMPACT, Needs.SURPRISE])
def test_a_look_at_a_signal_that_is_not_kept_is_refused(tiny: Model, need: Needs) -> None:
    assert need.name is not None
    name = need.name.lower()

    class Looking(Scripted):
        def concrete(self, facts, steps):  # type: ignore[no-untyped-def]
            policy = super().concrete(facts, steps)
            return lambda step, signals: (getattr(signals, name), policy(step, signals))[1]

    def script(sample: int, step: int) -> Decision:
        return Decision(Event.REUSE if step else Event.FIRST)

    with pytest.raises(OptionError, match=f"found that {need.name} is not; add Needs.{need.name}"):
        tiny.sample(1, steps=4, cache=Looking(script))
    tiny.sample(1, steps=4, cache=Looking(script, needs=need))


def test_until_is_of_steps_without_the_network_and_ends_with_the_run(tiny: Model) -> None:
    """A refresh that says it stands for longer is one step all the same; a leap beyond the end ends with it."""

    def script(sample: int, step: int) -> Decision:
        if step < 6:
            return Decision(Event.FIRST if step == 0 else Event.REFRESH, until=6)
        return Decision(Event.LOW, np.arange(3), until=9) if step == 6 else Decision(Event.REUSE, until=99)

    stats = tiny.sample(2, steps=12, solver="ddim", cache=Scripted(script, alike=True)).stats
    assert stats.event_counts == {"first": 2, "refresh": 10, "low": 2, "reuse": 10}
    assert stats.recomputed.sum() == 2 * (6 * N + 3)
    assert stats.work.full_tokens == 2 * 6 * N


def test_a_hold_is_told_by_its_object_and_not_by_what_it_equals(tiny: Model) -> None:
    """One object per sample, in an ordinary record whose arrays cannot be compared."""
    holds = [Halved(np.full((N, 1), 0.5, np.float32)) for _ in range(2)]

    def script(sample: int, step: int) -> Decision:
        return Decision(Event.REUSE) if step else Decision(Event.FIRST, hold=holds[sample])

    both = tiny.sample(2, steps=4, cache=Scripted(script))
    alone = tiny.sample(1, steps=4, cache=Scripted(script))
    assert np.allclose(both.z[0], alone.z[0], rtol=1e-5)


def test_a_sample_that_diverged_leaves_the_intensity_of_the_others(tiny: Model) -> None:
    def script(sample: int, step: int) -> Decision:
        return Decision(Event.CHOSEN, np.arange(4)) if step else Decision(Event.FIRST)

    def poison(info) -> None:  # type: ignore[no-untyped-def]
        if info.index == 3:
            info.z[1] = np.nan

    cache = Scripted(script, needs=Needs.INTENSITY)
    whole = tiny.sample(3, steps=10, cache=cache)
    poisoned = tiny.sample(3, steps=10, cache=cache, on_step=poison)
    assert np.isnan(poisoned.z[1]).all()
    assert np.isfinite(whole.stats.intensity[1:]).all()
    assert np.isfinite(poisoned.stats.intensity[1:]).all()
    assert np.array_equal(poisoned.stats.intensity[:4], whole.stats.intensity[:4], equal_nan=True)
