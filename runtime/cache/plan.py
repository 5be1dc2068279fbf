"""A calibrated plan: which steps ask the network, for one bundle, number of steps, solver and time grid.

`calibrate` writes it as `<bundle>/plan.json`; `Model.sample` takes it by itself. Few refreshes at the right
steps beat many at a constant interval, because what the network knows drifts slowly in the noisy half of the
trajectory and fast near its end.

With `residual-fitted` it also says what is held after each refresh (see `hold`), so that one of them may do.

The guard: the plan knows how far the prediction was off at each refresh when it was calibrated. A sample for
which it is off by more than `guard` times that is refreshed once more, half-way to the next refresh.
"""

import json
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from export.manifest import Manifest
from runtime.cache.hold import Hold, LinearHold
from runtime.cache.policy import (
    REUSE,
    TRIGGER,
    Decision,
    Decisions,
    Event,
    Ints,
    Needs,
    Policy,
    Reuse,
    Signals,
    Step,
    TokenFacts,
)
from runtime.errors import OptionError, parse_word, require
from runtime.solvers import Solver, TimeGrid

PLAN_FILE = "plan.json"
SCHEMA = 2
_WITHOUT_FIT = 1  # the schema before it
_REMEDY = "run `e2crf calibrate` again, or remove the file"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shortened(one: str, other: str) -> tuple[str, str]:
    """The beginnings of two digests, unless it is only behind these that they differ."""
    return (one[:12], other[:12]) if one[:12] != other[:12] else (one, other)


class PlanError(OptionError):
    """A plan file is broken, or belongs to something else."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan.json` holds."""

    source_digest: str  # SHA-256 of the checkpoint that the bundle was made from
    steps: int
    solver: str
    grid: str = TimeGrid.UNIFORM
    reuse: str = Reuse.RESIDUAL_LINEAR
    refreshes: tuple[int, ...]  # steps that recompute all tokens; before the first of them is the prior phase
    K: int = 0  # the K lowest frequencies are recomputed ...
    low_steps: tuple[int, ...] = ()  # ... at these steps
    fit: tuple[LinearHold, ...] = ()  # what is held after each refresh, of `residual-fitted`
    surprise: tuple[float, ...] = ()  # calibrated error of the prediction at each refresh, in data std; () no guard
    guard: float = 4.0  # a sample that is off by more than so many times that is refreshed once more
    measured: dict[str, Any] = field(default_factory=dict)  # what the calibration found

    def __post_init__(self) -> None:
        parse_word(Reuse, self.reuse, "reuse mode")
        parse_word(Solver, self.solver, "solver")
        parse_word(TimeGrid, self.grid, "time grid")
        require(isinstance(self.source_digest, str), "source_digest must be a text", self.source_digest,
                "calibrate again")  # fmt: skip
        require(_is_count(self.steps) and self.steps >= 1, "steps must be a whole number of at least 1",
                self.steps, "calibrate again")  # fmt: skip
        for name in ("refreshes", "low_steps"):
            indices = getattr(self, name)
            inside = all(_is_count(i) and 0 <= i < self.steps for i in indices)
            is_rising = inside and all(a < b for a, b in pairwise(indices))
            require(is_rising, f"{name} must be rising steps from 0 to {self.steps - 1}", indices, "calibrate again")
        require(len(self.refreshes) > 0, "refreshes must not be empty", self.refreshes, "calibrate again")
        require(_is_count(self.K) and self.K >= 0, "K must be a whole number that is not negative", self.K,
                "0 recomputes none between refreshes")  # fmt: skip
        require(len(self.surprise) in (0, len(self.refreshes)),
                "surprise must have one number per refresh", len(self.surprise), "calibrate again")  # fmt: skip
        expected = len(self.refreshes) if Reuse(self.reuse).is_fitted else 0
        require(len(self.fit) == expected, f"fit must have {expected} entries, one per refresh of "
                f"{Reuse.RESIDUAL_FITTED}", len(self.fit), "calibrate again")  # fmt: skip
        numbers = (*self.surprise, self.guard)
        require(all(_is_number(x) and 0 <= x <= sys.float_info.max for x in numbers),
                "surprise and guard must be numbers that are not negative", numbers, "calibrate again")  # fmt: skip
        require(isinstance(self.measured, dict), "measured must be a record", self.measured, "calibrate again")

    @property
    def needs(self) -> Needs:
        """The guard looks at the surprise, which the first refresh cannot be: there is no prediction before it."""
        return Needs.SURPRISE if len(self.surprise) > 1 else Needs.NOTHING

    @property
    def feedback(self) -> float:
        """No error feedback."""
        return 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        """The policy of one `sample` call."""
        if self.K and self.low_steps and facts.obstacle is not None:
            raise OptionError(f"this plan recomputes low frequencies alone, but {facts.obstacle}; calibrate again")
        require(len(steps) == self.steps, f"this plan is for {self.steps} steps", len(steps), "calibrate for these")
        most = facts.num_frequencies
        require(most >= self.K, f"K must not exceed the {most} frequencies", self.K, "calibrate again")
        return Planned(
            refreshes=self.refreshes,
            lows=frozenset(self.low_steps) - frozenset(self.refreshes),
            events=tuple(sorted({*self.refreshes, *self.low_steps, self.steps})),
            low_tokens=np.flatnonzero(facts.frequency < self.K),
            holds=self.fit,
            limits=tuple(self.guard * off for off in self.surprise) if self.needs else (),
            num_steps=self.steps,
        )

    def check(self, manifest: Manifest, steps: int, solver: str, grid: str) -> None:
        """Raise a `PlanError` unless the plan is for this bundle and these settings."""
        pairs = {
            "checkpoint": _shortened(self.source_digest, manifest.source.digest),
            "steps": (self.steps, steps),
            "solver": (self.solver, solver),
            "time grid": (self.grid, grid),
        }
        for what, (planned, found) in pairs.items():
            if planned != found:
                raise PlanError(
                    f"the plan is for {what} {planned}, found {what} {found}; calibrate for these settings, "
                    "leave them out, or choose a cache by its own options"
                )

        shape = (manifest.network.num_tokens, manifest.network.num_channels)
        if wrong := [one.value.shape for one in self.fit if one.value.shape != shape]:
            raise PlanError(f"the fit of the plan must be for [N, C] = {shape}, found {wrong[0]}; calibrate again")

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        value = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return value | {"fit": [one.to_lists() for one in self.fit]}

    def to_json(self) -> str:
        """The file's text, what is fitted in one line."""
        value = {"schema": SCHEMA} | self.to_dict()
        fit = json.dumps(value.pop("fit"))
        return json.dumps(value, indent=1).removesuffix("\n}") + f',\n "fit": {fit}\n}}\n'

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        stage = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            stage.write_text(self.to_json(), encoding="utf-8")
            os.replace(stage, path)
        finally:
            stage.unlink(missing_ok=True)


def read_plan(path: Path) -> Plan:
    """Read a plan file; a `PlanError` in one sentence for anything else."""
    try:
        return _read(path)
    except RecursionError:
        raise PlanError(f"{path} is not a plan (lists within lists, too many of them); {_REMEDY}") from None


def _read(path: Path) -> Plan:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlanError(f"no plan at {path}; make one with `e2crf calibrate`") from None
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} is not a plan ({error}); {_REMEDY}") from error
    schema = value.pop("schema", None) if isinstance(value, dict) else None
    if not _is_count(schema) or schema not in (_WITHOUT_FIT, SCHEMA):
        raise PlanError(f"{path} has schema {schema!r}, this version reads schema {SCHEMA}; {_REMEDY}")
    if schema == _WITHOUT_FIT:
        value.setdefault("fit", [])
    known = {entry.name for entry in fields(Plan)}
    if wrong := sorted(set(value) ^ known):
        keys = ", ".join(sorted(known))
        raise PlanError(f"{path} must have the keys {keys}, found a difference in {', '.join(wrong)}; {_REMEDY}")
    for name in ("refreshes", "low_steps", "surprise", "fit"):
        if not isinstance(value[name], list):
            raise PlanError(f"{path}: {name} must be a list, found {value[name]!r}; {_REMEDY}")
        value[name] = tuple(value[name])
    try:
        plan = Plan(**value | {"fit": tuple(LinearHold.from_lists(one) for one in value["fit"])})
        _require_one_meaning(plan)
    except (OptionError, TypeError, ValueError) as error:
        raise PlanError(f"{path} is not a plan: {error}; {_REMEDY}") from error
    return plan


def _require_one_meaning(plan: Plan) -> None:
    """Refuse low steps that come to nothing: `calibrate` writes none, and a plan made in Python may have them."""
    require(not plan.K or bool(plan.low_steps), "a K needs low_steps at which it is recomputed", plan.K,
            "name them, or set K to 0")  # fmt: skip
    require(bool(plan.K) or not plan.low_steps, "low_steps need a K to recompute", plan.low_steps,
            "set K, or leave them out")  # fmt: skip
    first = plan.refreshes[0]
    early = tuple(i for i in plan.low_steps if i < first)
    require(not early, f"low_steps must come after the first refresh, step {first}", early, "leave these out")


# Made once, as every sample of a plan decides alike.
_decided: Callable[..., Decision] = lru_cache(maxsize=256)(Decision)


@dataclass(frozen=True)
class Planned:
    """The policy of a plan."""

    refreshes: tuple[int, ...]
    lows: frozenset[int]
    events: tuple[int, ...]  # all steps with a network call, and T
    low_tokens: Ints
    holds: tuple[Hold, ...]  # after each refresh; () for what it made
    limits: tuple[float, ...]  # of the surprise at each refresh
    num_steps: int

    def __call__(self, step: Step, signals: Signals) -> Decisions:
        """Decide a step."""
        i = step.index
        if i < self.refreshes[0]:
            return _decided(Event.PRIOR, None, self.refreshes[0])
        is_first = signals.since_refresh is None
        if is_first or i in self.refreshes:
            hold = self.holds[self.refreshes.index(i)] if self.holds else None
            return _decided(Event.FIRST if is_first else Event.REFRESH, None, 0, hold)
        middle = self._middle(i)
        if i == middle and (signals.surprise > self.limits[self._last(i)]).any():
            return self._guarded(i, signals)
        if i in self.lows and self.low_tokens.size:
            return Decision(Event.LOW, self.low_tokens)
        until = self.events[bisect_right(self.events, i)]
        return _decided(Event.REUSE, None, min(until, middle) if i < middle else until)

    def _last(self, i: int) -> int:
        """Which refresh was the last one."""
        return bisect_right(self.refreshes, i) - 1

    def _middle(self, i: int) -> int:
        """Where samples with a surprise are refreshed once more before the next refresh; -1 without a guard.

        Nothing is asked of the signals before: a GPU has had time to send them.
        """
        if not self.limits:
            return -1
        refresh, following = (*self.refreshes, self.num_steps)[(last := self._last(i)) : last + 2]
        return (refresh + following) // 2

    def _guarded(self, i: int, signals: Signals) -> Decisions:
        is_low = i in self.lows and self.low_tokens.size
        other = Decision(Event.LOW, self.low_tokens) if is_low else REUSE
        loud = signals.surprise > self.limits[self._last(i)]
        return [TRIGGER if far else other for far in loud.tolist()]
