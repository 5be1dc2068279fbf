"""Where the time of a step goes: selection, embed, layers, head, update, and Python around them.

The sampler runs as it always does, over the split graphs, with a backend that times every prepared call and hands
out a trajectory that times its own two halves. What a cache decides is put aside: its policy is asked, so that its
signals are paid for, and a script says what the steps do: closed form up to the middle, one full step, then a few
of the kind that is measured, and all others at once. A step lasts from one decision to the next.

The split graphs cost more than the one `step` graph that the sampler takes by itself (`steps` has both): the shares
are what is to be read here. Timing adds about half a microsecond to each stage, which shows in empty steps only.
"""

import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import Stages
from bench.steps import LOW_FREQUENCIES
from export.manifest import Manifest
from runtime.backends.base import Arrays, Backend, BackendBase, BackendName
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import (
    FIRST,
    REFRESH,
    Cache,
    Decision,
    Decisions,
    Event,
    Needs,
    Policy,
    Signals,
    Step,
    TokenFacts,
)
from runtime.cache.state import ModelFacts, Trajectory
from runtime.errors import require
from runtime.leaps import Leaps
from runtime.noise import NoiseStream
from runtime.sampler import DEFAULT_GRID, DEFAULT_STEPS, Model, load
from runtime.schedule import Schedule
from runtime.score import Graphs, ScoreNetwork
from runtime.solvers import Solver

_WINDOW = 8  # steps of one trajectory that are measured
_PARTS = ("embed", "layers", "head")


class _Watch:
    """Seconds by stage, of every step that is measured."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.steps: list[dict[str, float]] = []
        self._begun: float | None = None  # of a step that is measured
        self._spent: dict[str, float] = defaultdict(float)

    def begin(self, *, is_measured: bool) -> None:
        """End the last step and begin another."""
        now = self.clock()
        if self._begun is not None:
            self.steps.append(self._spent | {"total": now - self._begun})
        self._begun, self._spent = (now if is_measured else None), defaultdict(float)

    def timed(self, stage: str, work: Callable[[], None]) -> Callable[[], None]:
        """`work`, its time counted under `stage`."""

        def call() -> None:
            begun = self.clock()
            work()
            self._spent[stage] += self.clock() - begun

        return call


@dataclass(frozen=True)
class _Script:
    """A cache that pays for the decisions of another and takes its own."""

    asked: Cache
    then: Decision
    watch: _Watch

    @property
    def reuse(self) -> str:
        """As the other one."""
        return self.asked.reuse

    @property
    def needs(self) -> Needs:
        """As the other one."""
        return self.asked.needs

    @property
    def feedback(self) -> float:
        """As the other one."""
        return self.asked.feedback

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        """The script as a policy."""
        ask, middle = self.asked.concrete(facts, steps), len(steps) // 2
        after = min(middle + 1 + _WINDOW, len(steps) - 1)

        def policy(step: Step, signals: Signals) -> Decisions:
            is_measured = middle < step.index < after
            self.watch.begin(is_measured=is_measured)
            if is_measured:
                self.watch.timed("selection", lambda: _drop(ask(step, signals)))()
                return self.then
            if step.index < middle:
                return Decision(Event.PRIOR, until=middle)
            return FIRST if step.index == middle else Decision(Event.REUSE, until=len(steps))

        return policy


def _drop(_: Decisions) -> None:
    """What the other cache would do does not matter."""


class _TimedTrajectory(Trajectory):
    """A trajectory whose two halves are timed: making the prediction, and stepping with it."""

    watch: _Watch

    def carry_out(self, i: int, decisions: Decision | Sequence[Decision]) -> None:
        """Make the data prediction of step i as decided."""
        self.watch.timed("update", lambda: super(_TimedTrajectory, self).carry_out(i, decisions))()

    def advance(self, i: int) -> None:
        """Take solver step i."""
        self.watch.timed("update", lambda: super(_TimedTrajectory, self).advance(i))()


class _TimedBackend(BackendBase):
    """A backend whose calls are timed, by part of the network, and whose trajectories time themselves."""

    def __init__(self, inner: Backend, manifest: Manifest, watch: _Watch) -> None:
        super().__init__({name: inner.signature(name) for name in manifest.graphs})
        self.name, self._inner, self._manifest, self._watch = inner.name, inner, manifest, watch
        self._network: ScoreNetwork | None = None  # one batch size is enough

    def bind(self, graph: str, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare a call that is timed."""
        stage = graph if graph in _PARTS else "layers"
        return self._watch.timed(stage, self._inner.bind(graph, inputs, outputs))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Any:
        """A cache where the inner backend lives."""
        return self._inner.zeros(shape, dtype)

    def trajectory(
        self, facts: ModelFacts, schedule: Schedule, noise: NoiseStream,
        *, linear: bool, needs: Needs, feedback: float, graphs: str,
    ) -> Trajectory:  # fmt: skip
        """The sampler's own trajectory, timed."""
        if self._network is None:
            self._network = ScoreNetwork(self._manifest, self, len(noise.samples), Graphs(graphs))
        trajectory = _TimedTrajectory(
            facts, self._network, schedule, Leaps(schedule), noise, linear=linear, needs=needs, feedback=feedback
        )
        trajectory.watch = self._watch
        return trajectory


def stages_apart(
    bundle: Path, backend: str, threads: int | None, batch_size: int, cache: Cache | None = None
) -> tuple[Stages, ...]:
    """`stages` in a process that has nothing else to do."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_opened, bundle, backend, threads, batch_size, cache).result()


def _opened(
    bundle: Path, backend: str, threads: int | None, batch_size: int, cache: Cache | None
) -> tuple[Stages, ...]:
    with load(bundle, backend, threads=threads) as model:
        return stages(model, batch_size, cache)


def stages(
    model: Model,
    batch_size: int,
    cache: Cache | None = None,
    *,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Stages, ...]:
    """The stages of a full step, one of five tokens where there is K/V, and an empty one; medians over steps.

    `cache` is the one whose policy and signals are paid for, left out: `E2CRF()`. None of a model whose parts are not
    called one by one: on TensorRT a step is a single launch, and the fake backend has no parts.
    """
    on_device = (BackendName.TENSORRT, BackendName.TENSORRT_RTX)
    if model.backend.name in on_device or "embed" not in model.manifest.graphs:
        return ()
    measured = measured_steps(model, batch_size, E2CRF() if cache is None else cache, rounds, clock)
    return tuple(row_of(name, steps) for name, steps in measured.items())


def measured_steps(
    model: Model, batch_size: int, asked: Cache, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[dict[str, float]]]:
    """Seconds by stage, and in `total`, of single steps of each kind; those of the network are in `update`, too."""
    num_steps, grid = (asked.steps, asked.grid) if isinstance(asked, Plan) else (DEFAULT_STEPS, DEFAULT_GRID)
    require(num_steps >= 6, "stages need a trajectory of at least 6 steps", num_steps, "calibrate for more")
    watch = _Watch(clock)
    timed = Model(model.manifest, _TimedBackend(model.backend, model.manifest, watch), graphs=Graphs.SPLIT)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(rounds + 1):  # the first round allocates and compiles
        for name, decision in _kinds(model.facts.tokens).items():
            watch.steps.clear()
            script = _Script(asked, decision, watch)
            timed.sample(
                batch_size, steps=num_steps, solver=Solver.DDIM, grid=grid, batch_size=batch_size, cache=script
            )
            if number:
                found[name] += watch.steps
    return found


def _kinds(tokens: TokenFacts) -> dict[str, Decision]:
    """What a step may do, by name."""
    kinds = {"full": REFRESH, "empty": Decision(Event.REUSE)}
    if tokens.obstacle is not None:
        return kinds
    low = np.flatnonzero(tokens.frequency < LOW_FREQUENCIES).astype(np.int64)
    return {"full": REFRESH, f"{len(low)} tokens": Decision(Event.LOW, low), "empty": kinds["empty"]}


def row_of(name: str, steps: list[dict[str, float]]) -> Stages:
    """Medians over single steps, in milliseconds."""

    def median(of: Callable[[dict[str, float]], float]) -> float:
        return 1e3 * statistics.median(of(step) for step in steps)

    def network(step: dict[str, float]) -> float:
        return sum(step.get(part, 0.0) for part in _PARTS)

    return Stages(
        step=name,
        selection_ms=median(lambda step: step["selection"]),
        embed_ms=median(lambda step: step.get("embed", 0.0)),
        layers_ms=median(lambda step: step.get("layers", 0.0)),
        head_ms=median(lambda step: step.get("head", 0.0)),
        update_ms=median(lambda step: step["update"] - network(step)),
        python_ms=median(lambda step: step["total"] - step["selection"] - step["update"]),
    )
