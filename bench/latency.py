"""Rivals timed in one run, turn by turn, so that they meet the same machine.

A small shared machine drifts by tens of per cent from minute to minute. Rivals timed one after another would be
compared across that drift; here every round times all of them, each round in the opposite order of the last, and
the first rival, which the others are measured against, again between any two others (where it is not slower than
`between_s`): with each turn of a rival the mean of the first one's right before and right after is kept.

What disturbs a shared machine only ever slows it, for seconds at a time, and not everybody alike: a neighbour who sits
on the second core costs whoever asks two threads to meet after every operator. So a speed-up is the quickest round of
the first rival, of those kept with this one's turns, over this one's quickest: that repeats where a median over all
rounds, or over the quieter of them, tells how often somebody else was there, who may stay for most of them.
Milliseconds are medians over all rounds, of this machine on this day.

For that no turn may be long. A rival samples whole trajectories, end to end from noise to series. One that computes
every step alike (an uncached one) and would take longer than `limit_s` is timed over fewer steps instead and scaled
up; its `Timing` says so. One that takes milliseconds is repeated until its turn is `turn_s` long, and the first
repeats do not count: cold caches and threads that have to wake up are in them. On a simulated machine that drifts as
shared ones do (`test_bench_latency`), of 780 pairs of races of a rival of 38 ms against one of 15 s 1 % are then more
than 10 % apart, at most 13; over whole trajectories, which takes twenty times as long, 20 races are 36 % apart.

No turn begins while threads of the last one still look for work (`until_idle`). Those of ONNX Runtime do for 40 ms
after a call, those of a dozen sessions for 180 ms, and who comes next pays for it: PyTorch, which comes after everybody
else, took up to twice its time in such a turn.

Intervals of milliseconds are order statistics of the rounds, which hold the median with a chance of at least 95 % if
rounds are independent; of fewer than six they are the range (five: 94 %, three: 75 %). Those of speed-ups are what the
three quickest rounds of both allow: in 33 of 40 races on a simulated machine that drifts they hold the true one. p90
and p99 are over single trajectories of all rounds; of a rival timed over fewer steps they are wider than those of whole
trajectories.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from runtime.errors import require

Floats = NDArray[np.float64]
_PROBE_STEPS = 3
_MOST_REPEATS = 1000
_LEVEL = 0.95  # of intervals
_NUM_QUICK = 3  # rounds that the interval of a speed-up is made of
_NAP_S, _LONGEST_WAIT_S = 0.01, 1.0  # until threads rest
_AT_REST = 0.1  # cores that a process at rest may still take


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

    rounds: int = 21
    warmups: int = 1
    limit_s: float = 0.3  # for one trajectory of a uniform rival
    turn_s: float = 0.2  # the least that a turn takes, by repetition
    settle_s: float = 0.02  # the least of a turn that does not count, where it is repeated
    between_s: float = 2.0  # a first rival that takes no longer is timed again between any two others

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds must be at least 1", self.rounds, "21 is the default")
        require(self.warmups >= 0, "warmups must not be negative", self.warmups, "1 is the default")
        require(self.limit_s > 0, "limit_s must be above 0", self.limit_s, "0.3 is the default, inf for whole ones")
        require(self.turn_s >= 0, "turn_s must not be negative", self.turn_s, "0.2 is the default")
        require(self.settle_s >= 0, "settle_s must not be negative", self.settle_s, "0.02 is the default")


@dataclass(frozen=True)
class Timing:
    """What one rival took; times are per sample."""

    name: str
    median_ms: float  # over rounds
    low_ms: float  # interval of that median
    high_ms: float
    p90_ms: float  # of single trajectories
    p99_ms: float
    speedup: float  # how many times faster than the first rival, by the quickest round of both
    speedup_low: float  # its interval
    speedup_high: float
    measured_steps: int  # fewer than asked for if the rival was too slow to be timed whole
    rounds_ms: list[float]  # in the order they ran
    beside_ms: list[float]  # of the first rival, right before and right after


def until_idle() -> None:
    """Sleep until no thread of this process computes, or for a second."""
    for _ in range(round(_LONGEST_WAIT_S / _NAP_S)):
        before = time.process_time()
        time.sleep(_NAP_S)
        if time.process_time() - before < _AT_REST * _NAP_S:
            return


def race(
    rivals: list[Rival],
    options: RaceOptions | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[], object] = until_idle,
    on_turn: Callable[[str], None] | None = None,
) -> list[Timing]:
    """Time the rivals against the first of them; `on_turn` hears the name of each one, once a round.

    `rest` is called before every turn.
    """
    options = options or RaceOptions()
    steps = [_steps_within(rival, options.limit_s, clock) for rival in rivals]
    everyone = range(len(rivals))

    def announce(index: int) -> None:
        if on_turn is not None:
            on_turn(rivals[index].name)

    def timed(index: int) -> float:
        return _timed(rivals[index], steps[index], clock)

    def turn(index: int) -> list[float]:
        rest()
        return _repeated(partial(timed, index), options)

    per_sample = [1e3 * rival.num_steps / some / rival.batch_size for rival, some in zip(rivals, steps, strict=True)]
    warm_s = [math.inf for _ in rivals]
    for _ in range(options.warmups):
        for index in everyone:
            announce(index)
            warm_s[index] = timed(index)
    taken, beside = np.empty((2, options.rounds, len(rivals)))
    single: list[list[float]] = [[] for _ in rivals]
    for number in range(options.rounds):
        order = _order(len(rivals), warm_s[0] <= options.between_s, reverse=number % 2 == 1)
        middles: list[float] = []
        for place, index in enumerate(order):
            if index not in order[:place]:
                announce(index)
            repeats = [per_sample[index] * one for one in turn(index)]
            single[index] += repeats
            middles.append(float(np.median(repeats)))
        for index in everyone:
            taken[number, index] = np.mean([middles[place] for place, one in enumerate(order) if one == index])
            beside[number, index] = np.mean(_beside(index, order, middles)) if index else taken[number, 0]
    return [
        _told(rival.name, taken[:, index], beside[:, index], single[index], steps[index])
        for index, rival in enumerate(rivals)
    ]


def _told(name: str, taken: Floats, beside: Floats, single: list[float], measured_steps: int) -> Timing:
    low, high = median_interval(taken.tolist())
    speedup, speedup_low, speedup_high = speedup_of(beside.tolist(), taken.tolist())
    return Timing(
        name=name,
        median_ms=float(np.median(taken)),
        low_ms=low,
        high_ms=high,
        p90_ms=float(np.quantile(single, 0.9)),
        p99_ms=float(np.quantile(single, 0.99)),
        speedup=speedup,
        speedup_low=speedup_low,
        speedup_high=speedup_high,
        measured_steps=measured_steps,
        rounds_ms=taken.tolist(),
        beside_ms=beside.tolist(),
    )


def speedup_of(beside: Sequence[float], taken: Sequence[float]) -> tuple[float, float, float]:
    """How many times faster than the first rival another one is, by the times of their rounds, and the interval."""
    if list(beside) == list(taken):  # the first rival itself
        return 1.0, 1.0, 1.0
    first, other = sorted(beside)[:_NUM_QUICK], sorted(taken)[:_NUM_QUICK]
    return first[0] / other[0], first[0] / other[-1], first[-1] / other[0]


def _order(num_rivals: int, is_between: bool, *, reverse: bool) -> list[int]:
    """Whose turn it is in one round."""
    order = list(range(num_rivals))[:: -1 if reverse else 1]
    if not is_between or num_rivals == 1:
        return order
    return [0, *(one for other in order if other for one in (other, 0))]


def _beside(index: int, order: list[int], middles: list[float]) -> list[float]:
    """The turns of the first rival that stand next to that of rival `index`; all of the round if none does."""
    place = order.index(index)
    near = [middles[one] for one in (place - 1, place + 1) if 0 <= one < len(order) and order[one] == 0]
    return near or [middle for one, middle in zip(order, middles, strict=True) if one == 0]


def median_interval(values: list[float]) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with 95 %; the range where there are too few."""
    ordered, count, cut = sorted(values), len(values), 1
    while 2 * sum(math.comb(count, one) for one in range(cut + 1)) <= (1 - _LEVEL) * 2**count:
        cut += 1
    return ordered[cut - 1], ordered[-cut]


def _repeated(timed: Callable[[], float], options: RaceOptions) -> list[float]:
    """The seconds of every repeat of a turn that counts."""
    first = timed()
    if first >= options.turn_s:  # long enough for what was before not to matter
        return [first]
    settled = first
    while settled < options.settle_s:
        settled += timed()
    taken = [timed()]
    while sum(taken) < options.turn_s and len(taken) < _MOST_REPEATS:
        taken.append(timed())
    return taken


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
    return min(rival.num_steps, max(probe, round(limit_s / per_step)))
