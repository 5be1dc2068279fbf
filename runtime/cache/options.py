"""The knobs of E2-CRF: one frozen record, checked when it is made, and the published sets by name.

    E2CRF()                                   # interval refreshes; a calibrated plan does better
    E2CRF(tau_0=0.05)                         # the published policy, eq. 14-18, named by a knob of its own
    E2CRF.preset("paper", R=100)              # a published set, with one knob changed

The directions, each of them tested: larger K and random_probe_ratio, smaller R, low_every, max_age, tau_0,
tau_warn, tau_safe, tolerance and alpha_prior all recompute MORE. (The published README says the opposite of
K and tau_0.) Larger eps makes thresholds smaller, so it recomputes more too. One knob moves while the others stay:
a low_every that is left out follows R in whole steps, and may add a low-frequency step where R grows by one.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, fields
from enum import StrEnum
from typing import Any, Self

import numpy as np

from runtime.cache.policy import (
    UNFITTED,
    EventDriven,
    Interval,
    Needs,
    Never,
    Policy,
    Reuse,
    Step,
    TokenFacts,
    Trigger,
    first_network_step,
)
from runtime.errors import CacheWarning, OptionError, parse_word, require

NETWORK_REFRESHES = 25  # the default R refreshes this many times over t = 1 .. 0, prior phase included


class PolicyName(StrEnum):
    """The policies by name."""

    NEVER = "never"  # never reuse: the uncached sampler
    INTERVAL = "interval"
    E2CRF = "e2crf"


class Preset(StrEnum):
    """The published parameter sets."""

    README = "readme"
    PAPER = "paper"
    PAPER_BEST = "paper-best"


@dataclass(frozen=True)
class E2CRF:
    """Options of the cache; None is the policy's own default. Errors: `OptionError` in one sentence.

    A policy that is left out is `e2crf` where a knob is given that is of it alone, else `interval`; once made, a record
    names its policy, so that `dataclasses.replace` keeps it.
    """

    policy: str = None  # type: ignore[assignment]  # left out: by the knobs; a made record always has one
    R: int | None = None  # full refresh every R steps; None: a 25th of the steps (policy e2crf: 10)
    K: float | None = None  # the K lowest frequencies are recomputed; below 1: K N of them. None: 3 (5), 0 without K/V
    reuse: str = Reuse.RESIDUAL
    alpha_prior: float = 0.2  # no network call below this signal-to-noise; 0: no prior phase
    max_age: int | None = None  # no token is older than this many steps; None: R
    low_every: int | None = None  # interval: recompute the lowest frequencies every so many steps; None: R / 4
    tau_0: float | None = None  # e2crf: base threshold of the squared change (0.1); inf: no token by threshold
    eps: float | None = None  # e2crf: added to the energy that divides tau_0 (1e-6)
    energy_weighting: bool | None = None  # e2crf: divide tau_0 by the energy (True), or use it as it is
    tau_warn: float | None = None  # e2crf: event intensity that asks for a full refresh (0.5)
    tau_safe: float | None = None  # e2crf: event intensity up to which no threshold is looked at (0)
    random_probe_ratio: float | None = None  # e2crf: share of the frequencies probed at every step (0.05)
    trigger: str | None = None  # e2crf: none, feature (default) or impact
    tolerance: float | None = None  # e2crf, trigger impact: effect allowed between refreshes, in data std (0.05)
    error_feedback: float | None = None  # e2crf: most of a probe's error that its neighbours take over (0: off)
    a: InitVar[float | None] = None  # the published name of error_feedback, to make a record with; it keeps the other

    def __post_init__(self, a: float | None) -> None:
        if a is not None:
            require(self.error_feedback is None, "a and error_feedback are one knob", "both", "drop one of them")
            object.__setattr__(self, "error_feedback", a)
        name = self._implied if self.policy is None else parse_word(PolicyName, self.policy, "policy")
        object.__setattr__(self, "policy", name)
        reuse = parse_word(Reuse, self.reuse, "reuse mode")
        require(not reuse.is_fitted, f"without a plan, reuse must be one of {', '.join(UNFITTED)}", reuse.value,
                "`e2crf calibrate` makes a plan that is fitted to the model")  # fmt: skip
        for knob, policies in _BELONGS.items():
            if getattr(self, knob) is not None and name not in policies:
                raise OptionError(
                    f"{knob} belongs to policy {' and '.join(policies)}, found it with policy {name}; "
                    f"leave it out, or choose that policy"
                )
        if self.trigger is not None:
            parse_word(Trigger, self.trigger, "trigger")
        for knob in ("K", "alpha_prior", *_AMOUNTS):
            value = getattr(self, knob)
            is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
            is_left_out = value is None and knob != "alpha_prior"
            require(is_left_out or is_number, f"{knob} must be a number", value, "leave it out for the default")
        for knob in ("K", "alpha_prior", *_COUNTS, *_AMOUNTS):
            value = getattr(self, knob)
            is_huge = isinstance(value, int) and abs(value) > sys.float_info.max  # it has no float, nor need it print
            require(not is_huge, f"{knob} must be a number that a float can hold", "a larger one", "take a smaller one")
        weighting = self.energy_weighting
        if weighting is not None:
            require(isinstance(weighting, bool | np.bool_), "energy_weighting must be True or False", weighting,
                    "leave it out for True")  # fmt: skip
            object.__setattr__(self, "energy_weighting", bool(weighting))
        for knob, (least, usual) in _COUNTS.items():
            value = getattr(self, knob)
            is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            fits = value is None or bool(is_whole and value >= least)
            require(fits, f"{knob} must be a whole number of at least {least}", value, usual)
        for knob, (top, usual) in _AMOUNTS.items():
            value = getattr(self, knob)
            fits = value is None or 0 <= value <= top  # False for NaN
            require(fits, f"{knob} must lie between 0 and {top}", value, usual)
        share_or_count = self.K is None or bool(0 <= self.K < 1 or (self.K >= 1 and self.K % 1 == 0))
        require(share_or_count, "K must be a number of frequencies, or a share of the tokens below 1", self.K,
                "3 is the default, 0 recomputes none in between")  # fmt: skip
        require(0 <= self.alpha_prior < 1, "alpha_prior must lie in [0, 1)", self.alpha_prior,
                "0 turns the prior phase off, the default is 0.2")  # fmt: skip
        if self.tolerance is not None and self._trigger is not Trigger.IMPACT:
            raise OptionError(f"tolerance is of trigger impact, found trigger {self._trigger}; set trigger to impact")
        if self.tau_warn is not None and self._trigger is not Trigger.FEATURE:
            raise OptionError(f"tau_warn is of trigger feature, found trigger {self._trigger}; set trigger to feature")
        if self.tau_safe is not None and self._trigger is Trigger.FEATURE:  # above tau_warn all tokens are recomputed
            require(self.tau_safe <= self._tau_warn, f"tau_safe must not exceed tau_warn = {self._tau_warn}",
                    self.tau_safe, "lower it, or raise tau_warn")  # fmt: skip

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A published parameter set, with some knobs changed."""
        knobs = dict(_PRESETS[parse_word(Preset, name, "preset")])
        if unknown := sorted(set(changes) - set(cls.names())):
            raise OptionError(f"unknown knob {', '.join(unknown)}; the known ones are {', '.join(sorted(cls.names()))}")
        if changes.get("a") is not None:
            knobs.pop("error_feedback", None)
        return cls(**(knobs | changes))

    @classmethod
    def names(cls) -> list[str]:
        """The names of all knobs."""
        return [*(field.name for field in fields(cls)), "a"]

    @property
    def _implied(self) -> PolicyName:
        """The policy that the knobs come to where none is named."""
        is_driven = any(getattr(self, knob) is not None for knob, of in _BELONGS.items() if of == _DRIVEN)
        return PolicyName.E2CRF if is_driven else PolicyName.INTERVAL

    @property
    def _trigger(self) -> Trigger:
        return Trigger(self.trigger) if self.trigger is not None else Trigger.FEATURE

    @property
    def _tau_warn(self) -> float:
        return 0.5 if self.tau_warn is None else self.tau_warn

    @property
    def needs(self) -> Needs:
        """The signals its policy looks at."""
        if self.policy != PolicyName.E2CRF:
            return Needs.NOTHING
        needs, has_threshold = Needs.NOTHING, self.tau_0 != _INF
        if has_threshold:
            needs |= Needs.CHANGE
        if self._trigger is Trigger.FEATURE or (has_threshold and self.tau_safe):
            needs |= Needs.INTENSITY
        if self._trigger is Trigger.IMPACT:
            needs |= Needs.IMPACT
        return needs

    @property
    def feedback(self) -> float:
        """Error feedback, 0 for none."""
        return self.error_feedback or 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        """The policy for a model whose tokens are these, and a trajectory of these steps."""
        first = first_network_step(steps, self.alpha_prior)
        if self.policy == PolicyName.NEVER:
            return Never(first)
        low = self._low(facts)
        if self.policy == PolicyName.INTERVAL:
            R = self.R or max(1, round(len(steps) / NETWORK_REFRESHES))
            R = min(R, self.max_age or R)
            return Interval(
                R, first, self.low_every or max(1, round(R / 4)), np.flatnonzero(facts.frequency < low).astype(np.int64)
            )
        if facts.obstacle is not None:
            raise OptionError(f"policy e2crf recomputes some tokens alone, but {facts.obstacle}; use policy interval")
        R = self.R or 10

        def value(given: float | None, default: float) -> float:
            return default if given is None else given

        if not low and value(self.random_probe_ratio, 0.05) == 0 and (self.tau_safe or self.tau_0 == _INF):
            warnings.warn("K = 0 without probes: no token is recomputed between refreshes, so that no threshold has "
                          "anything to look at; raise K or random_probe_ratio", CacheWarning, stacklevel=4)  # fmt: skip
        return EventDriven(
            frequency=facts.frequency,
            R=R,
            first=first,
            low=low,
            tau_0=value(self.tau_0, 0.1),
            eps=value(self.eps, 1e-6),
            energy_weighting=self.energy_weighting is not False,
            tau_safe=value(self.tau_safe, 0.0),
            random_probe_ratio=value(self.random_probe_ratio, 0.05),
            max_age=self.max_age or R,
            trigger=self._trigger,
            tau_warn=self._tau_warn,
            tolerance=value(self.tolerance, 0.05),
        )

    def _low(self, facts: TokenFacts) -> int:
        """K as a number of frequencies."""
        if self.K is None:
            usual = 5 if self.policy == PolicyName.E2CRF else 3
            return min(usual, facts.num_frequencies) if facts.obstacle is None else 0
        low = int(self.K) if self.K >= 1 else round(self.K * len(facts.frequency))
        if low and facts.obstacle is not None:
            raise OptionError(f"K = {self.K} asks for the lowest frequencies alone, but {facts.obstacle}; set K to 0")
        num_tokens = len(facts.frequency)
        require(low <= facts.num_frequencies,
                f"K must not exceed the {facts.num_frequencies} frequencies of this model ({num_tokens} tokens)",
                self.K, "3 is the default")  # fmt: skip
        return low


_DRIVEN = (PolicyName.E2CRF,)
_BELONGS: dict[str, tuple[PolicyName, ...]] = {
    "low_every": (PolicyName.INTERVAL,),
    **dict.fromkeys(
        ("tau_0", "eps", "energy_weighting", "tau_warn", "tau_safe", "random_probe_ratio", "trigger", "tolerance",
         "error_feedback"), _DRIVEN),
    **dict.fromkeys(("R", "K", "max_age"), (PolicyName.INTERVAL, PolicyName.E2CRF)),
}  # fmt: skip
_COUNTS = {
    "R": (1, "R = 1 refreshes at every step"),
    "max_age": (1, "1 recomputes every token at every step"),
    "low_every": (1, "1 means every step"),
}
_INF = float("inf")
_AMOUNTS = {
    "tau_0": (_INF, "0.1 is the default, inf chooses no token by its change"),
    "eps": (_INF, "1e-6 is the default"),
    "tau_warn": (_INF, "0.5 is the default"),
    "tau_safe": (_INF, "0 is the default"),
    "random_probe_ratio": (1.0, "0.05 is the default"),
    "tolerance": (_INF, "0.05 is the default"),
    "error_feedback": (1.0, "0.1 is the published one, 0 turns it off"),
}
_PRESETS: dict[Preset, dict[str, Any]] = {
    Preset.README: {
        "policy": PolicyName.E2CRF, "reuse": Reuse.FEATURE, "alpha_prior": 0.0, "K": 5, "tau_0": 0.1, "R": 10,
        "tau_warn": 0.5, "random_probe_ratio": 0.05,
    },
    Preset.PAPER: {
        "policy": PolicyName.E2CRF, "reuse": Reuse.FEATURE, "alpha_prior": 0.0, "K": 0.1, "tau_0": 0.01,
        "eps": 1e-6, "R": 50, "tau_safe": 0.1, "tau_warn": 0.5, "error_feedback": 0.1, "random_probe_ratio": 0.0,
    },
    Preset.PAPER_BEST: {
        "policy": PolicyName.E2CRF, "reuse": Reuse.FEATURE, "alpha_prior": 0.0, "K": 1, "tau_0": 0.01,
        "eps": 1e-6, "R": 150, "tau_safe": 0.1, "tau_warn": 0.5, "error_feedback": 0.1, "random_probe_ratio": 0.0,
    },
}  # fmt: skip
