"""Rivals timed in one run, turn by turn, so that they meet the same machine.

A small shared machine drifts by tens of per cent from minute to minute. Rivals timed one after another
would be compared across that drift; here every round times all of them, back to back, each round in the
opposite order of the last, and the speed-up over the first rival is taken within a round before the median
over rounds. The ratio is what repeats; the milliseconds are of this machine on this day.

A rival samples whole trajectories, end to end from noise to series. One that computes every step alike (an
uncached one) and would take longer than `limit_s` is timed over fewer steps instead and scaled up; its
`Timing` says so. One that takes milliseconds is repeated until its turn is `turn_s` long: a single call after
another rival's turn would mostly measure what that left of the caches.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.errors import require

_PROBE_STEPS = 10
_MOST_REPEATS = 1000


@dataclass(frozen=True)
class Rival:
    """Something that samples: `sample(steps)` draws one batch over that many steps."""

    name: str
    sample: Callable[[int], object]
    num_steps: int
    batch_size: int
    is_uniform: bool = False  # every step costs the same, so that fewer of them tell the whole


@dataclass(frozen=True)
class RaceOptions:
    """How often, and how long at most."""

    rounds: int = 5
    warmups: int = 1
    limit_s: float = math.inf  # for one trajectory of a uniform rival
    turn_s: float = 0.2  # the least that a turn takes, by repetition

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds must be at least 1", self.rounds, "5 is the default")
        require(self.warmups >= 0, "warmups must not be negative", self.warmups, "1 is the default")
        require(self.limit_s > 0, "limit_s must be above 0", self.limit_s, "leave it out for whole trajectories")
        require(self.turn_s >= 0, "turn_s must not be negative", self.turn_s, "0.2 is the default")


@dataclass(frozen=True)
class Timing:
    """What one rival took."""

    name: str
    median_ms: float  # per sample
    p90_ms: float  # per sample
    speedup: float  # how many times faster than the first rival; median over rounds
    measured_steps: int  # fewer than asked for if the rival was too slow to be timed whole
    rounds_ms: list[float]  # per sample, in the order they ran


def race(
    rivals: list[Rival],
    options: RaceOptions | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_turn: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Time the rivals against the first of them; `on_turn` hears the name of each one before its turn."""
    options = options or RaceOptions()
    steps = [_steps_within(rival, options.limit_s, clock) for rival in rivals]

    def turn(index: int) -> float:
        rival = rivals[index]
        if on_turn is not None:
            on_turn(rival.name)
        taken = [_timed(rival, steps[index], clock)]
        while sum(taken) < options.turn_s and len(taken) < _MOST_REPEATS:
            taken.append(_timed(rival, steps[index], clock))
        return float(np.median(taken)) * 1e3 * rival.num_steps / steps[index] / rival.batch_size

    for _ in range(options.warmups):
        for index in range(len(rivals)):
            turn(index)
    taken = np.empty((options.rounds, len(rivals)))
    for number in range(options.rounds):
        order = range(len(rivals)) if number % 2 == 0 else reversed(range(len(rivals)))
        for index in order:
            taken[number, index] = turn(index)
    speedups = taken[:, :1] / taken
    return [
        Timing(
            name=rival.name,
            median_ms=float(np.median(taken[:, index])),
            p90_ms=float(np.quantile(taken[:, index], 0.9)),
            speedup=float(np.median(speedups[:, index])),
            measured_steps=steps[index],
            rounds_ms=taken[:, index].tolist(),
        )
        for index, rival in enumerate(rivals)
    ]


def _timed(rival: Rival, steps: int, clock: Callable[[], float]) -> float:
    started = clock()
    rival.sample(steps)
    return clock() - started


def _steps_within(rival: Rival, limit_s: float, clock: Callable[[], float]) -> int:
    """The steps to time `rival` over: all, unless a probe of a few says that they would exceed the limit."""
    probe = min(_PROBE_STEPS, rival.num_steps)
    if not rival.is_uniform or math.isinf(limit_s):
        return rival.num_steps
    rival.sample(probe)  # the first run allocates and compiles
    per_step = _timed(rival, probe, clock) / probe
    if per_step * rival.num_steps <= limit_s:
        return rival.num_steps
    return min(rival.num_steps, max(probe, int(limit_s / per_step)))
