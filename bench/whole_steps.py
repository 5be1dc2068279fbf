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
_REUSE, _REFRESH = (list(Event).index(event) for event in (Event.REUSE, Event.REFRESH))


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
        costs = np.array([self.cost(k) for k in range(len(stats.notes.network_steps))])
        computed = _Computed(stats, costs > 0)
        calls = stats.work.calls * computed.calls // max(1, len(costs))
        tokens = round(costs.sum() * stats.num_samples * stats.num_tokens)
        return replace(
            stats,
            work=replace(stats.work, calls=calls, tokens=tokens, full_calls=calls, full_tokens=tokens),
            cache_bytes=self.kept_bytes(min(batch, stats.num_samples)),
            notes=computed,
        )


class _Computed:
    """Notes in which answers that were not computed are reuse."""

    def __init__(self, stats: Stats, is_computed: NDArray[np.bool_]) -> None:
        asked = np.array(stats.notes.network_steps, np.int64)
        self._told, self._at, self._guessed = stats, asked[is_computed], asked[~is_computed]
        self.calls = len(self._at)
        self.per_frequency, self.reasons = stats.tokens_per_frequency, stats.reasons
        self.network_steps: list[int] = self._at.tolist()

    def recomputed(self) -> NDArray[np.int64]:
        """[T, F]."""
        table = self._told.recomputed.copy()
        table[self._guessed] = 0
        return table

    def events(self) -> NDArray[np.int64]:
        """[T, E]."""
        table = self._told.events.copy()
        table[self._guessed, _REUSE], table[self._guessed, _REFRESH] = table[self._guessed, _REFRESH], 0
        return table

    def age(self) -> NDArray[np.float64]:
        """[T, 2]."""
        made = np.full(self._told.num_steps, -1)
        made[self._at] = self._at
        age = np.arange(len(made)) - np.maximum.accumulate(made)
        return np.where(np.isnan(self._told.age), np.nan, age[:, None])

    def intensity(self) -> NDArray[np.float64]:
        """[T]."""
        return self._told.intensity

    def by_sample(self) -> NDArray[np.int64]:
        """[n, 1 + E]."""
        events = self._told.sample_events.copy()
        events[:, _REUSE] += len(self._guessed)
        events[:, _REFRESH] -= len(self._guessed)
        tokens = np.full((len(events), 1), self.calls * self._told.num_tokens)
        return np.concatenate([tokens, events], axis=1)
