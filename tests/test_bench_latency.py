"""The race: rivals take turns, drift falls out of the ratio, and slow ones are timed in part."""

from collections.abc import Callable

import numpy as np
import pytest

from bench.latency import RaceOptions, Rival, race


class Clock:
    """A clock that only rivals move: `busy(seconds)` is a rival whose steps take so long."""

    def __init__(self) -> None:
        self.now = 0.0
        self.speed = 1.0
        self.turns: list[str] = []
        self.steps: list[int] = []

    def __call__(self) -> float:
        return self.now

    def rival(self, name: str, per_step: float, **facts: object) -> Rival:
        def sample(steps: int) -> None:
            self.turns.append(name)
            self.steps.append(steps)
            self.now += per_step * steps * self.speed

        return Rival(name, sample, num_steps=100, batch_size=facts.pop("batch_size", 1), **facts)  # type: ignore


def drifting(clock: Clock, factors: list[float]) -> Callable[[str], None]:
    """Make the machine slower or faster from turn to turn."""
    left = iter(factors)

    def on_turn(_: str) -> None:
        clock.speed = next(left)

    return on_turn


def test_rivals_take_turns_and_every_round_reverses_the_last() -> None:
    clock = Clock()
    race([clock.rival(name, 0.01) for name in "abc"], RaceOptions(rounds=3, warmups=1), clock=clock)
    assert "".join(clock.turns) == "abc" + "abc" + "cba" + "abc"


def test_times_are_per_sample_and_speed_is_against_the_first() -> None:
    clock = Clock()
    slow, fast = race([clock.rival("slow", 0.08, batch_size=4), clock.rival("fast", 0.005)], clock=clock)
    assert (slow.median_ms, slow.speedup) == (pytest.approx(2000), 1.0)
    assert (fast.median_ms, fast.p90_ms) == (pytest.approx(500), pytest.approx(500))
    assert fast.speedup == pytest.approx(4.0)
    assert fast.measured_steps == 100


def test_drift_of_the_machine_falls_out_of_the_speedup() -> None:
    clock = Clock()
    speeds = [1.0] * 2 + list(np.repeat([1.0, 1.7, 0.8, 2.5, 1.2], 2))  # by turn: warm-up, then five rounds
    first, second = race([clock.rival("a", 0.02), clock.rival("b", 0.01)], clock=clock, on_turn=drifting(clock, speeds))
    assert second.speedup == pytest.approx(2.0)
    assert first.p90_ms > 1.5 * first.median_ms


def test_one_disturbed_round_does_not_move_the_median() -> None:
    clock = Clock()
    speeds = [1.0] * 12
    speeds[5] = 50.0
    timings = race([clock.rival("a", 0.02), clock.rival("b", 0.01)], clock=clock, on_turn=drifting(clock, speeds))
    assert [timing.median_ms for timing in timings] == [pytest.approx(2000), pytest.approx(1000)]
    assert timings[1].speedup == pytest.approx(2.0)


def test_a_uniform_rival_beyond_the_limit_is_timed_over_fewer_steps_and_scaled() -> None:
    clock = Clock()
    eager, cached = race(
        [clock.rival("eager", 0.1, is_uniform=True), clock.rival("cached", 0.001)],
        RaceOptions(rounds=2, limit_s=4.0),
        clock=clock,
    )
    assert eager.measured_steps == 40
    assert eager.median_ms == pytest.approx(10_000)  # of all 100 steps
    assert cached.measured_steps == 100
    assert cached.speedup == pytest.approx(100)


def test_a_rival_whose_steps_differ_is_always_timed_whole() -> None:
    clock = Clock()
    (cached,) = race([clock.rival("cached", 0.1)], RaceOptions(limit_s=1.0), clock=clock)
    assert cached.measured_steps == 100


def test_a_uniform_rival_within_the_limit_is_timed_whole() -> None:
    clock = Clock()
    (eager,) = race([clock.rival("eager", 0.1, is_uniform=True)], RaceOptions(limit_s=11.0), clock=clock)
    assert eager.measured_steps == 100


def test_a_quick_rival_is_repeated_until_its_turn_is_long_enough() -> None:
    """The median of a turn: one call out of eleven that takes ten times as long leaves no trace."""
    clock = Clock()
    quick = clock.rival("quick", 0.0002)
    calls = iter(range(10**6))

    def sample(steps: int) -> None:
        clock.speed = 10.0 if next(calls) % 11 == 0 else 1.0
        quick.sample(steps)

    (timing,) = race(
        [Rival("quick", sample, quick.num_steps, 1)], RaceOptions(rounds=3, warmups=0, turn_s=0.3), clock=clock
    )
    assert timing.rounds_ms == [pytest.approx(20)] * 3
    assert len(clock.turns) >= 3 * 6


@pytest.mark.parametrize("change", [{"rounds": 0}, {"warmups": -1}, {"limit_s": 0.0}, {"turn_s": -1.0}])
def test_race_options_that_cannot_be_meant_are_an_error(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        RaceOptions(**change)  # type: ignore[arg-type]
