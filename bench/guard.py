"""The guard of a plan: how far off its prediction usually is at each refresh.

At a refresh the sampler sees what the network says and what the plan had held instead. A sample for which the two
differ by more than usual is refreshed once more; what is usual is measured here, on samples that the plan draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.cache.plan import Plan
from runtime.cache.policy import Cache, Decisions, Needs, Policy, Signals, Step, TokenFacts

Drawn = TypeVar("Drawn")

_LEAST_SURPRISE = 1e-3  # in data std: less is rounding, which no guard should look at


def with_guard(plan: Plan, draw: Callable[[Cache], Drawn]) -> tuple[Plan, Drawn]:
    """The plan with its guard (the error of the prediction that 99 % of the samples stay below), and what was drawn."""
    watch = _Watch(plan)
    drawn = draw(watch)
    surprise = []
    for i in plan.refreshes:
        seen = np.concatenate(watch.seen.get(i, [np.zeros(1, np.float32)]))
        usual = float(np.quantile(np.where(np.isfinite(seen), seen, 0.0), 0.99))
        surprise.append(round(max(usual, _LEAST_SURPRISE), 5))
    return replace(plan, surprise=tuple(surprise), guard=2.0), drawn


@dataclass
class _Watch:
    """A cache that runs a plan and keeps the surprise at each refresh."""

    plan: Plan
    seen: dict[int, list[NDArray[np.float32]]] = field(default_factory=dict)

    @property
    def reuse(self) -> str:
        return self.plan.reuse

    @property
    def needs(self) -> Needs:
        return Needs.SURPRISE

    feedback = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        inner = self.plan.concrete(facts, steps)

        def policy(step: Step, signals: Signals) -> Decisions:
            if step.index - 1 in self.plan.refreshes:
                self.seen.setdefault(step.index - 1, []).append(signals.surprise.copy())
            return inner(step, signals)

        return policy
