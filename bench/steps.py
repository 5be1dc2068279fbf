"""What each kind of step costs, through the real sampler: full, a few tokens, none, and many none at once.

The sampler runs a script instead of a policy, so that its whole loop is in the figures: decision, bookkeeping,
solver update and, where there is one, the network call. Kinds take turns, and ratios are taken within a round.

Idle threads of ONNX Runtime and PyTorch keep looking for work for a while, and on a small machine that shows in calls
of half a millisecond. So the bench measures in a process of its own (`step_costs_apart`), the graphs of the parts come
after the whole step, and PyTorch is timed in the race of whole trajectories only.
"""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.backends.base import Backend
from runtime.backends.ort import OrtBackend
from runtime.cache.policy import FIRST, REFRESH, Decision, Event, Needs, Policy, Reuse, Signals, Step, TokenFacts
from runtime.sampler import Model, load
from runtime.score import Graphs

COMPILED = "compiled code"
LOW_FREQUENCIES = 3  # five tokens: one of frequency 0, two each of 1 and 2


@dataclass(frozen=True)
class StepCosts:
    """Milliseconds of one step of a batch, medians over rounds, and ratios to the full step within a round."""

    batch_size: int
    num_low_tokens: int
    full_ms: float
    low_ms: float | None  # None: the network has no K/V
    empty_ms: float
    coasting_ms: float  # a step among many that are taken at once
    full_over_low: float | None
    full_over_empty: float
    python_of_full_ms: float  # what is not the network call
    python_of_low_ms: float | None
    split_full_ms: float | None  # the same by the split graphs, one call per part
    split_low_ms: float | None
    low_by: str | None = None  # "compiled code" of `runtime.backends.few_tokens`; None: the backend's graph


@dataclass(frozen=True)
class _Script:
    """A cache that does one thing after the first step."""

    then: Decision
    reuse: str = Reuse.RESIDUAL
    needs: Needs = Needs.NOTHING
    feedback: float = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        """The script as a policy."""

        def policy(step: Step, signals: Signals) -> Decision:
            return self.then if step.index else FIRST

        return policy


def step_costs_apart(bundle: Path, backend: str, threads: int | None, batch_size: int) -> StepCosts:
    """`step_costs` in a process that has nothing else to do."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_opened, bundle, backend, threads, batch_size).result()


def _opened(bundle: Path, backend: str, threads: int | None, batch_size: int) -> StepCosts:
    with load(bundle, backend, threads=threads) as model:
        return step_costs(model, batch_size)


def step_costs(model: Model, batch_size: int, *, rounds: int = 5) -> StepCosts:
    """Measure the steps of a model at a batch size."""
    few = 40 if batch_size == 1 else 4  # full steps of one turn
    several = 10 * few  # of those with few tokens: what a trajectory begins and ends with is in each turn, too
    many = 400 if batch_size == 1 else 100  # steps without a network call
    low = np.flatnonzero(model.facts.tokens.frequency < LOW_FREQUENCIES).astype(np.int64)
    kinds = {"full": (REFRESH, few), "empty": (Decision(Event.REUSE), many), "coasting": (_coast(many), many)}
    if has_kv := model.facts.tokens.obstacle is None:
        kinds["low"] = (Decision(Event.LOW, low), several)
    split = Model(model.manifest, model.backend, graphs=Graphs.SPLIT) if has_kv else None
    whole = {name: (model, *kind) for name, kind in kinds.items()}
    parts = {} if split is None else {f"split {name}": (split, *kinds[name]) for name in ("full", "low")}
    taken: dict[str, list[float]] = {name: [] for name in (*whole, *parts)}
    python: dict[str, list[float]] = {name: [] for name in (*whole, *parts)}
    for turns in (whole, parts):
        for number in range(rounds + 1):  # the first round allocates and compiles
            for name, (one, decision, steps) in turns.items():
                step, beside = _turn(one, decision, steps, batch_size)
                if number:
                    taken[name].append(step)
                    python[name].append(beside)
    median = {name: float(np.median(values)) for name, values in taken.items()}
    full = np.array(taken["full"])
    over = {name: float(np.median(full / np.array(values))) for name, values in taken.items()}
    return StepCosts(
        batch_size=batch_size,
        num_low_tokens=len(low),
        full_ms=median["full"],
        low_ms=median.get("low"),
        empty_ms=median["empty"],
        coasting_ms=median["coasting"],
        full_over_low=over.get("low"),
        full_over_empty=over["empty"],
        python_of_full_ms=float(np.median(python["full"])),
        python_of_low_ms=float(np.median(python["low"])) if "low" in python else None,
        split_full_ms=median.get("split full"),
        split_low_ms=median.get("split low"),
        low_by=COMPILED if has_kv and batch_size == 1 and _has_compiled(model.backend) else None,
    )


def _has_compiled(backend: Backend) -> bool:
    return isinstance(backend, OrtBackend) and backend.few_tokens is not None


def _coast(steps: int) -> Decision:
    return Decision(Event.REUSE, until=steps)


def _turn(model: Model, decision: Decision, steps: int, batch_size: int) -> tuple[float, float]:
    """Milliseconds of a step on average over a trajectory, and of these what is not the network.

    The first step is a full one: where the others are not, its own network call is taken off.
    """
    begun = time.perf_counter()
    stats = model.sample(batch_size, steps=steps, solver="ddim", cache=_Script(decision), batch_size=batch_size).stats
    seconds = time.perf_counter() - begun
    work, others = stats.work, 0 if decision.event.is_full else 1
    step = (seconds - others * work.full_seconds) / (steps - others)
    return 1e3 * step, 1e3 * (seconds - work.seconds) / steps


def told(costs: StepCosts) -> str:
    """The figures as a sentence."""

    def ms(value: float) -> str:
        return f"{value:.3g} ms" if value >= 0.1 else f"{1e3 * value:.3g} µs"

    parts = [f"full {ms(costs.full_ms)}"]
    if costs.low_ms is not None and costs.full_over_low is not None and costs.python_of_low_ms is not None:
        parts.append(
            f"{costs.num_low_tokens} tokens {ms(costs.low_ms)} (1/{costs.full_over_low:.3g}"
            f"{f', {costs.low_by}' if costs.low_by else ''}), "
            f"of which outside the network {ms(costs.python_of_low_ms)}"
        )
    parts.append(f"empty {ms(costs.empty_ms)} (1/{costs.full_over_empty:.3g})")
    parts.append(f"empty among many {ms(costs.coasting_ms)}")
    if costs.split_full_ms is not None and costs.split_low_ms is not None:
        parts.append(f"by split graphs full {ms(costs.split_full_ms)}, few tokens {ms(costs.split_low_ms)}")
    return f"Steps of a batch of {costs.batch_size}: " + "; ".join(parts) + "."
