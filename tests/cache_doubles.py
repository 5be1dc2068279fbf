"""What the tests of the cache share: a backend that listens, a cache that is watched, policies and signals made up.

The networks are random and tiny: what is held is exact bookkeeping, not quality. Where the numbers of two runs are
compared, the tolerance is a share of the largest number in the series (`close`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from export.manifest import Graph
from runtime.backends.base import Arrays, Backend
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import (
    Cache,
    Decision,
    Decisions,
    Event,
    Needs,
    Policy,
    Reuse,
    Signals,
    Step,
    TokenFacts,
    steps_of,
)
from runtime.fourier import frequencies
from runtime.sampler import Model
from runtime.sde import VP

N, C = 15, 2
FREQUENCY = np.asarray(frequencies(N), np.int64)
STEPS = steps_of(VP(), np.linspace(1, 1e-5, 100))
EVERYTHING = Needs.CHANGE | Needs.INTENSITY | Needs.IMPACT | Needs.SURPRISE
SIGNALS = ("refresh_age", "token_age", "change", "energy", "intensity", "impact", "surprise", "lots")
COSTLY = {name: Needs[name.upper()] for name in ("change", "intensity", "impact", "surprise")}
MIXED = E2CRF(policy="e2crf", K=1, R=9, random_probe_ratio=0.2, tau_0=2.0, tau_warn=0.02, error_feedback=0.1)
quiet = pytest.mark.filterwarnings("ignore::runtime.errors.CacheWarning")


@dataclass
class Listening:
    """A backend as it is; it counts network calls and their rows of tokens, and keeps what went through them."""

    inner: Backend
    calls: int = 0
    rows: int = 0
    full_rows: int = 0
    heard: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    name: str = "listening"

    def signature(self, graph: str) -> Graph:
        return self.inner.signature(graph)

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return self.inner.run(graph, feeds)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.inner.zeros(shape, dtype)

    def trajectory(self, *facts: Any, **options: Any) -> None:
        return None

    def bind(self, graph: str, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        call = self.inner.bind(graph, inputs, outputs)

        def counted() -> None:
            call()
            if "score" in outputs:  # step, or head: the last of the parts
                batch, num_tokens, _ = outputs["score"].shape
                self.calls, self.rows = self.calls + 1, self.rows + batch * num_tokens
                self.full_rows += batch * num_tokens if num_tokens == N else 0
                self.heard.append({name: array.copy() for name, array in {**inputs, **outputs}.items()})

        return counted

    def close(self) -> None:
        """The one who opened it closes it."""


@dataclass
class Watched:
    """A cache as it is, and what its policy saw and decided at every step of one batch."""

    inner: Cache
    needs: Needs = EVERYTHING
    seen: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    decided: list[Decisions] = field(default_factory=list)

    @property
    def reuse(self) -> str:
        return self.inner.reuse

    @property
    def feedback(self) -> float:
        return self.inner.feedback

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        policy = self.inner.concrete(facts, steps)

        def watched(step: Step, signals: Signals) -> Decisions:
            kept = (name for name in SIGNALS if COSTLY.get(name, Needs.NOTHING) in self.needs)
            self.seen.append({name: np.array(getattr(signals, name)) for name in kept})
            self.decided.append(policy(step, signals))
            return self.decided[-1]

        return watched


@dataclass
class Scripted:
    """A plug-in: what a sample does at a step is a function of both; `alike` says it once for all samples."""

    script: Callable[[int, int], Decision]
    reuse: str = Reuse.RESIDUAL
    needs: Needs = Needs.NOTHING
    feedback: float = 0.0
    first_sample: int = 0
    alike: bool = False

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        def policy(step: Step, signals: Signals) -> Decisions:
            if self.alike:
                return self.script(self.first_sample, step.index)
            return [self.script(self.first_sample + k, step.index) for k in range(len(signals.refresh_age))]

        return policy


def anything(sample: int, step: int) -> Decision:
    """Different samples do different things: begin at steps 8 to 10, refresh, recompute some tokens, reuse."""
    begin = 8 + sample % 3
    if step < begin:
        return Decision(Event.PRIOR)
    if step == begin:
        return Decision(Event.FIRST if sample % 2 else Event.REFRESH)
    rng = np.random.default_rng([sample, step])
    tokens = np.sort(rng.choice(N, rng.integers(1, N), replace=False))
    known = [Decision(Event.REUSE), Decision(Event.LOW, np.flatnonzero(FREQUENCY < 2)), Decision(Event.CHOSEN, tokens)]
    return [*known, Decision(Event.REFRESH), Decision(Event.TRIGGER)][rng.choice(5, p=[0.3, 0.2, 0.3, 0.1, 0.1])]


def close(found: NDArray[Any], expected: NDArray[Any], share: float) -> None:
    """Equal to a share of the largest expected number."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * np.abs(expected).max() + 1e-12)


@dataclass
class Made:
    """Signals made up for a policy."""

    since_refresh: int | None
    refresh_age: NDArray[np.int64]
    token_age: NDArray[np.int64]
    change: NDArray[np.float32]
    energy: NDArray[np.float32]
    intensity: NDArray[np.float32]
    impact: NDArray[np.float32]
    surprise: NDArray[np.float32]
    lots: NDArray[np.float32]


def made_up(seed: int, batch: int = 3) -> Made:
    """Random signals in the middle of a trajectory."""
    rng = np.random.default_rng(seed)
    refresh_age = rng.integers(1, 12, batch)

    def amounts(*shape: int) -> NDArray[np.float32]:
        amounts: NDArray[np.float32] = np.exp(rng.normal(-1.0, 2.0, shape)).astype(np.float32)
        return amounts

    return Made(
        since_refresh=int(refresh_age.max()),
        refresh_age=refresh_age,
        token_age=np.minimum(refresh_age[:, None], rng.integers(1, 12, (batch, N))),
        change=amounts(batch, N),
        energy=amounts(batch, N),
        intensity=amounts(batch),
        impact=amounts(batch),
        surprise=amounts(batch),
        lots=rng.random((batch, N // 2 + 1), np.float32),
    )


def decided_by(cache: Cache, signals: Made) -> list[Decision]:
    """What a policy decides at step 80 for each sample."""
    decisions = cache.concrete(TokenFacts(FREQUENCY), STEPS)(STEPS[80], signals)
    return [decisions] * len(signals.refresh_age) if isinstance(decisions, Decision) else list(decisions)


def recomputed_by(cache: Cache, signals: Made) -> NDArray[np.bool_]:
    """Which tokens a policy asks the network for, [B, N]."""
    decisions = decided_by(cache, signals)
    chosen = np.zeros((len(decisions), N), np.bool_)
    for row, decision in enumerate(decisions):
        if decision.event.is_full:
            chosen[row] = True
        elif decision.tokens is not None:
            chosen[row, decision.tokens] = True
    return chosen


def plan_for(model: Model, refreshes: tuple[int, ...], steps: int = 40, **more: Any) -> Plan:
    settings_ = {"solver": "ancestral", "source_digest": model.manifest.source.digest} | more
    return Plan(steps=steps, refreshes=refreshes, **settings_)
