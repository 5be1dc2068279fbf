"""What was recomputed, when, and what it saved."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cache.policy import Decision, Event


@dataclass(frozen=True)
class Stats:
    """The record of one `sample` call, over all its samples."""

    num_samples: int
    num_steps: int
    num_tokens: int
    recomputed: NDArray[np.int64]  # [T, F]: tokens recomputed, by step and frequency, summed over samples
    tokens_per_frequency: NDArray[np.int64]  # [F]
    events: NDArray[np.int64]  # [T, E]: samples by step and event, in the order of `Event`
    cache_bytes: int  # K/V caches of one batch
    state_bytes: int  # the other arrays of one trajectory, O(B N C)
    num_diverged: int  # samples that are not finite or far outside the data
    seconds: float

    @property
    def passes(self) -> float:
        """Network cost of one sample in full passes: tokens recomputed / N."""
        return float(self.recomputed.sum()) / (self.num_samples * self.num_tokens)

    @property
    def hit_rate(self) -> float:
        """Share of (step, token) pairs that needed no network, in [0, 1]."""
        return 1.0 - self.passes / self.num_steps

    def heatmap(self) -> NDArray[np.float64]:
        """Share of samples and tokens recomputed, by frequency and step: [F, T] in [0, 1]."""
        return (self.recomputed / (self.tokens_per_frequency * self.num_samples)).T

    @property
    def event_counts(self) -> dict[str, int]:
        """How many (sample, step) pairs each event took."""
        totals = zip(Event, self.events.sum(axis=0).tolist(), strict=True)
        return {str(event): count for event, count in totals if count}

    def summary(self) -> dict[str, Any]:
        """The record in plain numbers, for JSON."""
        return {
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "passes": round(self.passes, 4),
            "hit_rate": round(self.hit_rate, 6),
            "events_per_sample": {event: count / self.num_samples for event, count in self.event_counts.items()},
            "cache_bytes": self.cache_bytes,
            "state_bytes": self.state_bytes,
            "num_diverged": self.num_diverged,
            "seconds": round(self.seconds, 4),
        }


_COLUMN = {event: column for column, event in enumerate(Event)}


class Recorder:
    """Collects what the batches of one `sample` call did."""

    def __init__(self, frequency: NDArray[np.int64], num_steps: int) -> None:
        self._frequency = frequency
        self._per_frequency = np.bincount(frequency)
        self._recomputed = np.zeros((num_steps, len(self._per_frequency)), np.int64)
        self._events = np.zeros((num_steps, len(Event)), np.int64)
        self.cache_bytes = self.state_bytes = 0

    def record(self, i: int, decision: Decision, batch: int) -> None:
        """Note the decision of step i for a batch of samples."""
        self._events[i, _COLUMN[decision.event]] += batch
        if decision.event.is_full:
            self._recomputed[i] += batch * self._per_frequency
        elif decision.tokens is not None:
            counts = np.bincount(self._frequency[decision.tokens], minlength=len(self._per_frequency))
            self._recomputed[i] += batch * counts

    def add(self, batch: "Recorder") -> None:
        """Take over what a finished batch noted."""
        self._recomputed += batch._recomputed
        self._events += batch._events
        self.cache_bytes = max(self.cache_bytes, batch.cache_bytes)
        self.state_bytes = max(self.state_bytes, batch.state_bytes)

    def finish(self, num_samples: int, num_diverged: int, seconds: float) -> Stats:
        """The finished record."""
        return Stats(
            num_samples=num_samples,
            num_steps=len(self._recomputed),
            num_tokens=len(self._frequency),
            recomputed=self._recomputed,
            tokens_per_frequency=self._per_frequency,
            events=self._events,
            cache_bytes=self.cache_bytes,
            state_bytes=self.state_bytes,
            num_diverged=num_diverged,
            seconds=seconds,
        )
