"""When to ask the network, and for which tokens: E2-CRF as pure functions of (step, signals).

`E2CRF` is the options record a user writes. `E2CRF.concrete` makes it a policy for one model and one time
grid: a frozen record that, called with a step and the signals of the trajectory, returns a `Decision` and
remembers nothing. State lives in `cache.state`, records in `cache.stats`.

The directions of the knobs: larger K, smaller R, smaller low_every and smaller alpha_prior all recompute MORE.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError, parse_word, require
from runtime.sde import Process, signal_to_noise
from runtime.solvers import Times

NETWORK_REFRESHES = 25  # the default R refreshes this many times over t = 1 .. 0, prior phase included


class PolicyName(StrEnum):
    """The policies by name."""

    NEVER = "never"  # never reuse: the uncached sampler
    INTERVAL = "interval"


class Reuse(StrEnum):
    """What a token contributes between two recomputations (see `cache.state`)."""

    FEATURE = "feature"
    DATA = "data"
    DATA_LINEAR = "data-linear"
    RESIDUAL = "residual"
    RESIDUAL_LINEAR = "residual-linear"

    @property
    def is_linear(self) -> bool:
        """Whether the last two values are extrapolated in t."""
        return self in (Reuse.DATA_LINEAR, Reuse.RESIDUAL_LINEAR)


class Event(StrEnum):
    """What a step did, and why."""

    PRIOR = "prior"  # closed form only: too little signal for the network to know anything
    FIRST = "first"  # the first network step: all tokens
    REFRESH = "refresh"  # all tokens: R steps have passed, or nothing is ever reused
    LOW = "low"  # the K lowest frequencies, against cached keys and values
    REUSE = "reuse"  # no network call

    @property
    def is_full(self) -> bool:
        """Whether the step recomputed every token."""
        return self in (Event.FIRST, Event.REFRESH)


@dataclass(frozen=True)
class Step:
    """Where the trajectory stands: step `index` of `num_steps`, its time and its signal-to-noise in [0, 1]."""

    index: int
    num_steps: int
    t: float
    signal: float


class Signals(NamedTuple):  # a tuple, since one is made at every step
    """What a policy may look at."""

    since_refresh: int | None  # steps since all tokens were recomputed; None: never yet


@dataclass(frozen=True)
class Decision:
    """What to do at a step; `tokens` [S] are the active tokens of a partial step."""

    event: Event
    tokens: NDArray[np.int64] | None = None


_PRIOR, _FIRST, _REFRESH, _REUSE = (Decision(event) for event in (Event.PRIOR, Event.FIRST, Event.REFRESH, Event.REUSE))
Policy = Callable[[Step, Signals], Decision]


def never(step: Step, signals: Signals) -> Decision:
    """Recompute everything at every step."""
    return _FIRST if signals.since_refresh is None else _REFRESH


@dataclass(frozen=True)
class Interval:
    """A prior phase without network calls, a full refresh every R steps, low frequencies in between."""

    R: int
    alpha_prior: float
    low_every: int
    low_tokens: NDArray[np.int64]

    def __call__(self, step: Step, signals: Signals) -> Decision:
        """Decide a step."""
        age = signals.since_refresh
        if step.signal < self.alpha_prior:
            return _PRIOR
        if age is None:
            return _FIRST
        if age >= self.R:
            return _REFRESH
        if self.low_tokens.size and age % self.low_every == 0:
            return Decision(Event.LOW, self.low_tokens)
        return _REUSE


@dataclass(frozen=True)
class TokenFacts:
    """What a policy must know of a model: the frequency of each token, and whether some can be computed alone."""

    frequency: NDArray[np.int64]  # [N]
    obstacle: str | None = None  # why only whole steps can be reused, None if they need not


@dataclass(frozen=True)
class E2CRF:
    """Options of the cache; every default is meant to be left alone until a calibration says otherwise."""

    policy: str = PolicyName.INTERVAL
    R: int | None = None  # full refresh every R steps; None: a 25th of the steps
    K: int | None = None  # how many of the lowest frequencies to recompute in between; None: 3, or 0 without K/V
    low_every: int | None = None  # recompute them every so many steps; None: a quarter of R
    reuse: str = Reuse.RESIDUAL
    alpha_prior: float = 0.2  # no network call below this signal-to-noise; 0: no prior phase

    def __post_init__(self) -> None:
        parse_word(PolicyName, self.policy, "policy")
        parse_word(Reuse, self.reuse, "reuse mode")
        require(self.R is None or self.R >= 1, "R must be at least 1", self.R, "R = 1 refreshes at every step")
        require(
            self.K is None or self.K >= 0,
            "K must not be negative",
            self.K,
            "K = 0 recomputes none in between",
        )
        every = self.low_every
        require(every is None or every >= 1, "low_every must be at least 1", every, "1 means every step")
        require(
            0 <= self.alpha_prior < 1,
            "alpha_prior must lie in [0, 1)",
            self.alpha_prior,
            "0 turns the prior phase off, the default is 0.2",
        )

    def concrete(self, tokens: TokenFacts, num_steps: int) -> Policy:
        """The policy for a model whose tokens are these, and a trajectory of `num_steps`."""
        if self.policy == PolicyName.NEVER:
            return never
        num_frequencies = int(tokens.frequency.max()) + 1
        K = self.K if self.K is not None else min(3, num_frequencies) if tokens.obstacle is None else 0
        if K and tokens.obstacle is not None:
            raise OptionError(f"K = {K} asks for the lowest frequencies alone, but {tokens.obstacle}; set K to 0")
        require(
            num_frequencies >= K,
            f"K must not exceed the {num_frequencies} frequencies of this model ({len(tokens.frequency)} tokens)",
            K,
            "3 is the default",
        )
        R = self.R if self.R is not None else max(1, round(num_steps / NETWORK_REFRESHES))
        low_every = self.low_every if self.low_every is not None else max(1, round(R / 4))
        return Interval(R, self.alpha_prior, low_every, np.flatnonzero(tokens.frequency < K).astype(np.int64))


def steps_of(process: Process, times: Times) -> list[Step]:
    """The steps of a time grid, as policies see them."""
    signal = signal_to_noise(process, times)
    return [Step(i, len(times), float(times[i]), float(signal[i])) for i in range(len(times))]
