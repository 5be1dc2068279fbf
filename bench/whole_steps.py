"""What the rivals that bring their own way of answering a step have in common.

The sampler sees a network without keys and values and asks it for whole steps, in order: any solver, time grid and
prior phase serve it. What the answer of network step k of a trajectory costs is the backend's to say, and its record
of a draw is corrected by that, since the sampler takes every answer for a full pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest
from runtime.backends.base import BackendBase
from runtime.backends.fake import whole_graph
from runtime.cache.policy import Event
from runtime.cache.stats import Stats

Buffers = Mapping[str, NDArray[Any]]
_EVENTS = list(Event)


class WholeSteps(BackendBase):
    """A backend of `step` alone, z [B, N, C] and t [B] -> score [B, N, C], that knows how far a trajectory has come.

    A trajectory begins where the sampler begins a batch, and wherever times do not fall from call to call.
    """

    def __init__(self, manifest: Manifest, name: str) -> None:
        network = manifest.network
        super().__init__({"step": whole_graph(network.num_tokens, network.num_channels)})
        self.name = name
        self._trajectory = 0

    def prepare(self, inputs: Buffers, outputs: Buffers) -> Callable[[int], None]:
        """The answer to network step k = 0, 1, ... of a trajectory over these buffers, with a state of its own."""
        raise NotImplementedError

    def cost(self, k: int) -> float:
        """What network step k costs, in full passes."""
        raise NotImplementedError

    def kept_bytes(self, batch: int) -> int:
        """Bytes that are kept from step to step for a batch."""
        raise NotImplementedError

    def bind(self, graph: str, inputs: Buffers, outputs: Buffers) -> Callable[[], None]:
        """Prepare a call over these very buffers."""
        self.signature(graph)
        answer, t = self.prepare(inputs, outputs), inputs["t"]
        k, trajectory, last = 0, -1, np.zeros_like(t)

        def call() -> None:
            nonlocal k, trajectory
            k = k + 1 if trajectory == self._trajectory and (t < last).all() else 0
            trajectory, last[...] = self._trajectory, t
            answer(k)

        return call

    def trajectory(self, *args: Any, **options: Any) -> None:
        """A batch begins, in the sampler's own memory."""
        self._trajectory += 1

    def true(self, stats: Stats, batch: int) -> Stats:
        """The record of a draw in batches of at most `batch`, with what was really computed."""
        asked = np.flatnonzero(stats.recomputed.sum(axis=1))
        costs = np.array([self.cost(k) for k in range(len(asked))])
        guessed, num_computed = asked[costs == 0], int(np.count_nonzero(costs))
        recomputed, events, sample_events = stats.recomputed.copy(), stats.events.copy(), stats.sample_events.copy()
        recomputed[guessed] = 0
        reuse, refresh = _EVENTS.index(Event.REUSE), _EVENTS.index(Event.REFRESH)
        events[guessed, reuse], events[guessed, refresh] = events[guessed, refresh], 0
        sample_events[:, reuse] += len(guessed)
        sample_events[:, refresh] -= len(guessed)
        made = np.full(stats.num_steps, -1)
        made[asked[costs > 0]] = asked[costs > 0]
        age = np.arange(stats.num_steps) - np.maximum.accumulate(made)
        calls = stats.work.calls * num_computed // max(1, len(asked))
        tokens = round(costs.sum() * stats.num_samples * stats.num_tokens)
        return replace(
            stats,
            recomputed=recomputed,
            events=events,
            age=np.where(np.isnan(stats.age), np.nan, age[:, None]),
            sample_tokens=np.full_like(stats.sample_tokens, num_computed * stats.num_tokens),
            sample_events=sample_events,
            work=replace(stats.work, calls=calls, tokens=tokens, full_calls=calls, full_tokens=tokens),
            cache_bytes=self.kept_bytes(min(batch, stats.num_samples)),
        )
