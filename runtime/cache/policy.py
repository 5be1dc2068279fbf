"""When to ask the network, and for which tokens: policies as pure functions of (step, signals).

A policy is called with a `Step` and the `Signals` of a batch and returns what to do: one `Decision` for all
samples, or one per sample. It remembers nothing. State lives in `cache.state`, records in `cache.stats`, the
knobs in `cache.options`, a calibrated schedule in `cache.plan`.

To add a policy, write a record with the members of `Cache` and hand it to `Model.sample(cache=...)`: nothing
else has to know of it.

A decision that needs no network may say until which step it is certain to stand. The sampler then takes all
these steps at once, in closed form.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Flag, StrEnum, auto
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.cache.hold import Hold
from runtime.errors import OptionError, require
from runtime.sde import Process, signal_to_noise
from runtime.solvers import Times

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Reuse(StrEnum):
    """What a token contributes between two recomputations (see `schedule`)."""

    FEATURE = "feature"
    FEATURE_LINEAR = "feature-linear"
    NOISE_LINEAR = "noise-linear"
    DATA = "data"
    DATA_LINEAR = "data-linear"
    RESIDUAL = "residual"
    RESIDUAL_LINEAR = "residual-linear"
    RESIDUAL_FITTED = "residual-fitted"  # by a plan alone (see `hold`)

    @property
    def is_linear(self) -> bool:
        """Whether the last two values are extrapolated in t."""
        return self.endswith("-linear")

    @property
    def is_fitted(self) -> bool:
        """Whether it takes what a calibration found."""
        return self is Reuse.RESIDUAL_FITTED


UNFITTED = tuple(mode for mode in Reuse if not mode.is_fitted)


class Event(StrEnum):
    """What a step did, and why."""

    PRIOR = "prior"  # closed form only: too little signal for the network to know anything
    FIRST = "first"  # the first network step: all tokens
    REFRESH = "refresh"  # all tokens: it was time, or nothing is ever reused
    TRIGGER = "trigger"  # all tokens: a signal asked for it
    LOW = "low"  # the K lowest frequencies, against cached keys and values
    CHOSEN = "chosen"  # low frequencies, tokens that changed much, old ones and probes
    REUSE = "reuse"  # no network call

    @property
    def is_full(self) -> bool:
        """Whether the step recomputed every token."""
        return self in _FULL

    @property
    def is_partial(self) -> bool:
        """Whether the step recomputed some tokens."""
        return self in _PARTIAL


_FULL, _PARTIAL = frozenset((Event.FIRST, Event.REFRESH, Event.TRIGGER)), frozenset((Event.LOW, Event.CHOSEN))


class Reason(StrEnum):
    """Why a partial step recomputed a token, the first that held."""

    LOW = "low"  # one of the lowest frequencies
    CHANGE = "change"  # it changed by more than the threshold
    AGE = "age"  # it was too old
    PROBE = "probe"  # by lot


_EVENTS = f"they are {', '.join(Event)}"


@dataclass(frozen=True)
class Step:
    """Where the trajectory stands: step `index` of `num_steps`, its time and its signal-to-noise in [0, 1]."""

    index: int
    num_steps: int
    t: float
    signal: float


class Signals(Protocol):
    """What a policy may look at, for a batch of B samples; each is computed when it is asked for."""

    @property
    def since_refresh(self) -> int | None:
        """Steps since all tokens of all samples were recomputed, the longest in the batch; None: never yet."""

    @property
    def refresh_age(self) -> Ints:
        """The same by sample, [B]."""

    @property
    def token_age(self) -> Ints:
        """Steps since each token was recomputed, [B, N]."""

    @property
    def change(self) -> Floats:
        """delta (eq. 15): squared change of z since the token was recomputed, summed over channels, [B, N]."""

    @property
    def energy(self) -> Floats:
        """Energy of each token: its squared z weighted by its spectral weight over the mean one, [B, N]."""

    @property
    def intensity(self) -> Floats:
        """r (eq. 14): relative squared change of the features at the last partial step, [B]; 0 after a refresh."""

    @property
    def impact(self) -> Floats:
        """Estimated effect of reuse since the last refresh on the finished series, in data std, [B].

        It is made of the errors that recomputed tokens show. What stale keys and values do to these it cannot see:
        late in a trajectory the true effect was measured to be two to six times as large.
        """

    @property
    def surprise(self) -> Floats:
        """How far the prediction was off at the last full refresh, in data std of z0, [B]; 0 before the second."""

    @property
    def lots(self) -> Floats:
        """A uniform draw in [0, 1) per frequency, from (seed, sample, step) alone, [B, F]."""


@dataclass(frozen=True)
class Decision:
    """What to do at a step; `tokens` [S] are the active tokens of a partial step, each of them once.

    Without a network call, `until` is the first step at which something else may be decided. After a full refresh
    `hold` says what is held instead of the values it made. `reasons` [S] are for the record: why each token was chosen,
    in the order of `Reason`. An `OptionError` for an event without its tokens, or the other way about, and for tokens
    or reasons that are not such numbers. A trajectory makes some of a set for each of several samples, [b, S]; no
    policy may.
    """

    event: Event
    tokens: Ints | None = None
    until: int = 0
    hold: Hold | None = None
    reasons: NDArray[np.int8] | None = None
    reach: int = field(default=0, init=False, repr=False, compare=False)  # the least N that a policy may decide it for

    def __post_init__(self) -> None:
        tokens = self.tokens
        require(isinstance(self.event, Event), "what is decided must be a member of Event", self.event, _EVENTS)
        if (tokens is not None) != self.event.is_partial or (isinstance(tokens, np.ndarray) and tokens.size == 0):
            raise OptionError(
                f"{Event.LOW} and {Event.CHOSEN}, and only these, must name the tokens they recompute, found "
                f"{self.event} with tokens {tokens}; without any it is {Event.REUSE}"
            )
        if tokens is not None:
            object.__setattr__(self, "reach", _reach(tokens))
        if self.reasons is not None:
            _require_reasons(self.reasons, tokens)

    @property
    def asks_network(self) -> bool:
        """Whether any token is recomputed."""
        return self.event.is_full or self.tokens is not None


def _reach(tokens: Ints) -> int:
    """One more than the highest token, checked; beyond all models for the sets of several samples."""
    is_array = isinstance(tokens, np.ndarray)
    if not is_array or tokens.dtype.kind not in "iu" or tokens.ndim == 0:
        found = f"{tokens.dtype} in {tokens.ndim} dimensions" if is_array else type(tokens).__name__
        raise OptionError(f"tokens must be a row of whole numbers, found {found}; give np.array([...], np.int64)")
    if tokens.ndim > 1:
        return sys.maxsize
    if not (tokens[1:] > tokens[:-1]).all():  # those of our own policies rise, which is quick to see
        tokens = np.sort(tokens)
        again = tokens[1:][tokens[1:] == tokens[:-1]].tolist()
        require(not again, "tokens must be named once each", again, "leave these out")
    require(bool(tokens[0] >= 0), "tokens must not be negative", int(tokens[0]), "count them from 0")
    return int(tokens[-1]) + 1


def _require_reasons(reasons: NDArray[np.int8], tokens: Ints | None) -> None:
    is_row = tokens is not None and isinstance(reasons, np.ndarray) and reasons.shape == tokens.shape
    if not is_row or reasons.dtype.kind not in "iu" or reasons.min() < 0 or reasons.max() >= len(Reason):
        raise OptionError(f"reasons must be a number from 0 to {len(Reason) - 1} for each token, found {reasons} for "
                          f"tokens {tokens}; leave them out, or give the places of members of Reason")  # fmt: skip


Decisions = Decision | Sequence[Decision]  # for all samples alike, or one for each
Policy = Callable[[Step, Signals], Decisions]

FIRST, REFRESH, TRIGGER, REUSE = (Decision(event) for event in (Event.FIRST, Event.REFRESH, Event.TRIGGER, Event.REUSE))


@dataclass(frozen=True)
class TokenFacts:
    """What a policy must know of a model: the frequency of each token, and whether some can be computed alone."""

    frequency: Ints  # [N]
    obstacle: str | None = None  # why only whole steps can be reused, None if they need not

    @cached_property
    def num_frequencies(self) -> int:
        """F."""
        return int(self.frequency.max()) + 1


class Needs(Flag):
    """Signals that cost something to keep; the others are always there."""

    NOTHING = 0
    CHANGE = auto()
    INTENSITY = auto()
    IMPACT = auto()
    SURPRISE = auto()


class Cache(Protocol):
    """Options that become a policy for a model and a time grid."""

    @property
    def reuse(self) -> str:
        """What is reused, a word of `Reuse`."""

    @property
    def needs(self) -> Needs:
        """The signals its policy looks at; Needs.NOTHING for a schedule."""

    @property
    def feedback(self) -> float:
        """Error feedback (eq. 17-18): most of a probe's error that its neighbours take over; 0 for none."""

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        """The policy of one `sample` call; an `OptionError` if these options cannot serve the model."""


def steps_of(process: Process, times: Times) -> list[Step]:
    """The steps of a time grid, as policies see them."""
    signal = signal_to_noise(process, times)
    return [Step(i, len(times), float(times[i]), float(signal[i])) for i in range(len(times))]


def first_network_step(steps: Sequence[Step], alpha_prior: float) -> int:
    """The first step with a signal-to-noise of at least `alpha_prior`; T if there is none."""
    return next((step.index for step in steps if step.signal >= alpha_prior), len(steps))


@dataclass(frozen=True)
class Never:
    """A prior phase, then everything at every step."""

    first: int  # the first network step

    def __call__(self, step: Step, signals: Signals) -> Decision:
        """Decide a step."""
        if step.index < self.first:
            return Decision(Event.PRIOR, until=self.first)
        return FIRST if signals.since_refresh is None else REFRESH


@dataclass(frozen=True)
class Interval:
    """A prior phase, then a full refresh every R steps, and the lowest frequencies every so often in between."""

    R: int
    first: int  # the first network step
    low_every: int
    low_tokens: Ints

    def __call__(self, step: Step, signals: Signals) -> Decision:
        """Decide a step."""
        i, age = step.index, signals.since_refresh
        if i < self.first:
            return Decision(Event.PRIOR, until=self.first)
        if age is None:
            return FIRST
        if age >= self.R:
            return REFRESH
        to_refresh = self.R - age
        if not self.low_tokens.size:
            return Decision(Event.REUSE, until=min(i + to_refresh, step.num_steps))
        if age % self.low_every == 0:
            return Decision(Event.LOW, self.low_tokens)
        to_low = self.low_every - age % self.low_every
        return Decision(Event.REUSE, until=min(i + min(to_refresh, to_low), step.num_steps))


class Trigger(StrEnum):
    """What may ask for a full refresh before it is time."""

    NONE = "none"
    FEATURE = "feature"  # eq. 14: the features of the recomputed tokens moved
    IMPACT = "impact"  # the probe errors add up to an effect on the finished series


@dataclass(frozen=True)
class EventDriven:
    """The published policy: active tokens by threshold, probes, and refreshes by event (eq. 14-16).

    At every network step the tokens of a sample are: the K lowest frequencies, those that changed by more than
    tau_k = tau_0 / (eps + energy), probes, and those that are too old. Both tokens of a frequency go together.
    While the event intensity is at most tau_safe, the threshold is not looked at.
    """

    frequency: Ints  # [N]
    R: int
    first: int
    low: int  # K
    tau_0: float
    eps: float
    energy_weighting: bool
    tau_safe: float
    random_probe_ratio: float
    max_age: int
    trigger: Trigger
    tau_warn: float
    tolerance: float

    def __call__(self, step: Step, signals: Signals) -> Decisions:
        """Decide a step."""
        if step.index < self.first:
            return Decision(Event.PRIOR, until=self.first)
        if signals.since_refresh is None:
            return FIRST
        due = signals.refresh_age >= self.R  # [B]
        triggered = self._triggered(signals)
        if due.all():
            return REFRESH
        reasons = self._reasons(signals)[:, self.frequency]  # [B, N]
        return [
            REFRESH if late else TRIGGER if loud else self._decision(own)
            for late, loud, own in zip(due, triggered, reasons, strict=True)
        ]

    def _triggered(self, signals: Signals) -> NDArray[np.bool_]:
        if self.trigger is Trigger.FEATURE:
            return signals.intensity > self.tau_warn
        if self.trigger is Trigger.IMPACT:
            return signals.impact >= self.tolerance  # 0 allows no reuse at all
        return np.zeros(len(signals.refresh_age), np.bool_)

    def _reasons(self, signals: Signals) -> NDArray[np.int8]:
        """Why each frequency of each sample is active, in the order of `Reason`; -1: it is not."""
        reasons = np.where(signals.lots < self.random_probe_ratio, _PROBE, _NONE)
        self._mark(reasons, signals.token_age >= self.max_age, _AGE)
        if np.isfinite(self.tau_0):
            changed = (
                signals.change * (self.eps + signals.energy) > self.tau_0
                if self.energy_weighting
                else (signals.change > self.tau_0)
            )
            if self.tau_safe > 0:
                changed &= (signals.intensity > self.tau_safe)[:, None]
            self._mark(reasons, changed, _CHANGE)
        reasons[:, : self.low] = _LOW
        return reasons

    def _mark(self, reasons: NDArray[np.int8], tokens: NDArray[np.bool_], reason: np.int8) -> None:
        """Give the frequencies of these tokens [B, N] a reason."""
        rows, columns = np.nonzero(tokens)
        reasons[rows, self.frequency[columns]] = reason

    def _decision(self, reasons: NDArray[np.int8]) -> Decision:
        tokens = np.flatnonzero(reasons != _NONE)
        return Decision(Event.CHOSEN, tokens, reasons=reasons[tokens]) if tokens.size else REUSE


_LOW, _CHANGE, _AGE, _PROBE = (np.int8(number) for number in range(len(Reason)))
_NONE = np.int8(-1)
