"""What was recomputed, when, and what it saved."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cache.policy import Decision, Decisions, Event
from runtime.cache.state import Trajectory, Work


@dataclass(frozen=True)
class Stats:
    """The record of one `sample` call, over all its samples."""

    num_samples: int
    num_steps: int
    num_tokens: int
    recomputed: NDArray[np.int64]  # [T, F]: tokens recomputed, by step and frequency, summed over samples
    tokens_per_frequency: NDArray[np.int64]  # [F]
    events: NDArray[np.int64]  # [T, E]: samples by step and event, in the order of `Event`
    age: NDArray[np.float64]  # [T, 2]: mean and largest age of the tokens, of the worst batch; NaN: none yet
    intensity: NDArray[np.float64]  # [T]: mean event intensity of the partial steps; NaN where there was none
    sample_tokens: NDArray[np.int64]  # [n]: tokens recomputed, by sample
    sample_events: NDArray[np.int64]  # [n, E]: steps by sample and event
    work: Work  # what the network really ran
    cache_bytes: int  # K/V caches of one batch
    state_bytes: int  # the other arrays of one trajectory, O(B N C)
    num_diverged: int  # samples that are not finite or far outside the data
    seconds: float

    @property
    def passes(self) -> float:
        """Network cost of one sample in full passes: tokens computed, padding included, / N."""
        return self.work.tokens / (self.num_samples * self.num_tokens)

    @property
    def hit_rate(self) -> float:
        """Share of (step, token) pairs that needed no network, in [0, 1]."""
        return 1.0 - float(self.recomputed.sum()) / (self.num_samples * self.num_tokens * self.num_steps)

    @property
    def ideal_speedup(self) -> float:
        """Speed over the uncached sampler if time were in proportion to tokens: T / passes."""
        return self.num_steps / self.passes if self.passes else float("inf")

    @property
    def achieved_speedup(self) -> float:
        """The same by the clock: T full passes as long as those of this run, over the time it took."""
        if not self.work.full_calls:
            return float("nan")
        full_pass = self.work.full_seconds / self.work.full_tokens * self.num_tokens * self.num_samples
        return self.num_steps * full_pass / self.seconds

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user of a cache would want to be told: it never reused anything, or never refreshed."""
        counts = self.event_counts
        network = self.num_steps * self.num_samples - counts.get(Event.PRIOR, 0)
        reused = sum(counts.get(event, 0) for event in (Event.REUSE, Event.LOW, Event.CHOSEN))
        full = sum(counts.get(event, 0) for event in Event if event.is_full)
        told = []
        if network and not reused:
            told.append("the cache never reused anything: every step after the prior phase was a full one; raise R")
        if network > self.num_samples and full <= self.num_samples:
            told.append("the cache was never refreshed after the first network step; lower R")
        return tuple(told)

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
            "ideal_speedup": round(self.ideal_speedup, 2),
            "achieved_speedup": round(self.achieved_speedup, 2),
            "network_calls": self.work.calls,
            "largest_age": None if np.isnan(self.age).all() else int(np.nanmax(self.age)),
            "events_per_sample": {event: count / self.num_samples for event, count in self.event_counts.items()},
            "cache_bytes": self.cache_bytes,
            "state_bytes": self.state_bytes,
            "num_diverged": self.num_diverged,
            "seconds": round(self.seconds, 4),
        }


_COLUMN = {event: column for column, event in enumerate(Event)}


class Recorder:
    """Collects what the batches of one `sample` call did."""

    def __init__(self, frequency: NDArray[np.int64], num_steps: int, batch: int = 0) -> None:
        self._frequency = frequency
        self._per_frequency = np.bincount(frequency)
        self._recomputed = np.zeros((num_steps, len(self._per_frequency)), np.int64)
        self._events = np.zeros((num_steps, len(Event)), np.int64)
        self._age = np.full((num_steps, 2), np.nan)
        self._sums = np.zeros((num_steps, 2))  # of intensities, and how many there were
        self._mixed_from = num_steps  # the step from which on samples, or Re and Im, may have different ages
        self._own = np.zeros((batch, 1 + len(Event)), np.int64)  # tokens and events by sample, where they differ
        self.work = Work()
        self.cache_bytes = self.state_bytes = 0

    def record(self, i: int, j: int, decisions: Decisions, trajectory: Trajectory) -> None:
        """Note what was decided for steps i .. j - 1 of a batch and carried out."""
        listed = [decisions] if isinstance(decisions, Decision) else decisions
        for decision in listed:
            self._note(i, j, decision, trajectory.batch // len(listed))
        if not isinstance(decisions, Decision):
            self._mixed_from = min(i, self._mixed_from)
            for own, decision in zip(self._own, decisions, strict=True):
                partial = 0 if decision.tokens is None else len(decision.tokens)
                own[0] += len(self._frequency) if decision.event.is_full else partial
                own[1 + _COLUMN[decision.event]] += 1
        if self._mixed_from <= i and trajectory.made.min() >= 0:
            made = trajectory.made
            self._age[i:j] = np.arange(i, j)[:, None] - np.array([made.mean(), made.min()])
        if trajectory.keeps_intensity:
            is_partial = np.array([decision.tokens is not None for decision in listed])
            measured = trajectory.intensity[np.broadcast_to(is_partial, trajectory.batch)]
            self._sums[i] += measured.sum(), measured.size

    def _note(self, i: int, j: int, decision: Decision, batch: int) -> None:
        self._events[i:j, _COLUMN[decision.event]] += batch
        if decision.event.is_full:
            self._recomputed[i] += batch * self._per_frequency
        elif decision.tokens is not None:
            counts = np.bincount(self._frequency[decision.tokens], minlength=len(self._per_frequency))
            self._recomputed[i] += batch * counts
            if (counts % self._per_frequency).any():
                self._mixed_from = min(i, self._mixed_from)

    def age(self) -> NDArray[np.float64]:
        """Mean and largest age of the tokens of a batch after each step, [T, 2]; NaN before all of them have one."""
        network = np.flatnonzero(self._recomputed.any(axis=1))  # [S]
        made = np.where(self._recomputed[network] > 0, network[:, None], np.nan)
        made = np.fmax.accumulate(made, axis=0)  # [S, F]
        known = np.full((len(network) + 1, 2), np.nan)  # after so many network steps: mean and least step made at
        known[1:] = np.stack([made @ self._per_frequency / len(self._frequency), made.min(axis=1)], axis=1)
        steps = np.arange(self._mixed_from)
        age = self._age.copy()
        age[: self._mixed_from] = steps[:, None] - known[np.searchsorted(network, steps, side="right")]
        return age

    def by_sample(self) -> NDArray[np.int64]:
        """Tokens recomputed and steps by event, of each sample of a batch, [B, 1 + E]."""
        total = np.concatenate([[self._recomputed.sum()], self._events.sum(axis=0)])
        alike = (total - self._own.sum(axis=0)) // len(self._own)  # what was decided for all of them at once
        by_sample: NDArray[np.int64] = self._own + alike
        return by_sample

    def add(self, batch: "Recorder") -> None:
        """Take over what a finished batch noted."""
        self._own = np.concatenate([self._own, batch.by_sample()])
        self._recomputed += batch._recomputed
        self._events += batch._events
        self._sums += batch._sums
        self._age = np.fmax(self._age, batch.age())
        self.work = self.work + batch.work
        self.cache_bytes = max(self.cache_bytes, batch.cache_bytes)
        self.state_bytes = max(self.state_bytes, batch.state_bytes)

    def finish(self, num_samples: int, num_diverged: int, seconds: float) -> Stats:
        """The finished record."""
        sums, counts = self._sums.T
        return Stats(
            num_samples=num_samples,
            num_steps=len(self._recomputed),
            num_tokens=len(self._frequency),
            recomputed=self._recomputed,
            tokens_per_frequency=self._per_frequency,
            events=self._events,
            age=self._age,
            intensity=np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0),
            sample_tokens=self._own[:, 0],
            sample_events=self._own[:, 1:],
            work=self.work,
            cache_bytes=self.cache_bytes,
            state_bytes=self.state_bytes,
            num_diverged=num_diverged,
            seconds=seconds,
        )
