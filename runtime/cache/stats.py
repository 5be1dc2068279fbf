"""What was recomputed, when, and what it saved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.cache.policy import Decision, Decisions, Event, Reason
from runtime.cache.state import Trajectory, Work


class Notes(Protocol):
    """What the tables of a record are drawn up from; `Stats` says what each of them is."""

    @property
    def per_frequency(self) -> NDArray[np.int64]:
        """Tokens of each frequency, [F]."""

    @property
    def reasons(self) -> NDArray[np.int64]:
        """[T, 4]."""

    @property
    def network_steps(self) -> list[int]:
        """The steps at which any sample asked the network, in order."""

    def recomputed(self) -> NDArray[np.int64]:
        """[T, F]."""

    def events(self) -> NDArray[np.int64]:
        """[T, E]."""

    def age(self) -> NDArray[np.float64]:
        """[T, 2]."""

    def intensity(self) -> NDArray[np.float64]:
        """[T]."""

    def by_sample(self) -> NDArray[np.int64]:
        """Tokens recomputed and steps by event, of each sample, [n, 1 + E]."""


@dataclass(frozen=True)
class Stats:
    """The record of one `sample` call, over all its samples; its tables are drawn up when they are first looked at."""

    num_samples: int
    num_steps: int
    num_tokens: int
    work: Work  # what the network really ran
    cache_bytes: int  # K/V caches of one batch
    state_bytes: int  # the other arrays of one trajectory, O(B N C)
    num_diverged: int  # samples that are not finite or far outside the data
    seconds: float
    notes: Notes = field(repr=False)

    @cached_property
    def recomputed(self) -> NDArray[np.int64]:
        """[T, F]: tokens recomputed, by step and frequency, summed over samples."""
        return self.notes.recomputed()

    @property
    def tokens_per_frequency(self) -> NDArray[np.int64]:
        """[F]."""
        return self.notes.per_frequency

    @cached_property
    def events(self) -> NDArray[np.int64]:
        """[T, E]: samples by step and event, in the order of `Event`."""
        return self.notes.events()

    @property
    def reasons(self) -> NDArray[np.int64]:
        """[T, 4]: tokens of partial steps, by step and `Reason`, where the policy gives it."""
        return self.notes.reasons

    @cached_property
    def age(self) -> NDArray[np.float64]:
        """[T, 2]: mean and largest age of the tokens, of the worst batch; NaN: none yet."""
        return self.notes.age()

    @cached_property
    def intensity(self) -> NDArray[np.float64]:
        """[T]: mean event intensity of the partial steps, where finite; NaN: there was none."""
        return self.notes.intensity()

    @cached_property
    def _by_sample(self) -> NDArray[np.int64]:
        return self.notes.by_sample()

    @property
    def sample_tokens(self) -> NDArray[np.int64]:
        """[n]: tokens recomputed, by sample."""
        return self._by_sample[:, 0]

    @property
    def sample_events(self) -> NDArray[np.int64]:
        """[n, E]: steps by sample and event."""
        return self._by_sample[:, 1:]

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
        if not self.work.calls:
            return ("the network was never asked: all steps lay in the prior phase, and the series are Gaussian noise "
                    "of the data's spectrum; take more steps, or lower alpha_prior",)  # fmt: skip
        network = self.num_steps - self.sample_events[:, _COLUMN[Event.PRIOR]]  # [n], steps after the prior phase
        if self.recomputed.sum() == network.sum() * self.num_tokens:
            return ("the cache never reused anything: every step after the prior phase recomputed every token; raise "
                    "R, max_age or a threshold, or lower K or the share of probes",)  # fmt: skip
        full = self.sample_events[:, [_COLUMN[event] for event in Event if event.is_full]].sum(axis=1)
        stale = int(np.count_nonzero((network > 1) & (full <= 1)))
        if not stale:
            return ()
        which = "" if stale == self.num_samples else f" in {stale} of {self.num_samples} samples"
        return (f"the cache was never refreshed after the first network step{which}; lower R",)

    def heatmap(self) -> NDArray[np.float64]:
        """Share of samples and tokens recomputed, by frequency and step: [F, T] in [0, 1]."""
        return (self.recomputed / (self.tokens_per_frequency * self.num_samples)).T

    @property
    def event_counts(self) -> dict[str, int]:
        """How many (sample, step) pairs each event took."""
        totals = zip(Event, self.events.sum(axis=0).tolist(), strict=True)
        return {str(event): count for event, count in totals if count}

    @property
    def reason_counts(self) -> dict[str, int]:
        """How many tokens partial steps recomputed for which reason, over all samples."""
        totals = zip(Reason, self.reasons.sum(axis=0).tolist(), strict=True)
        return {str(reason): count for reason, count in totals if count}

    def summary(self) -> dict[str, Any]:
        """The record in plain numbers, for JSON."""
        return {
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "passes": round(self.passes, 4),
            "hit_rate": round(self.hit_rate, 6),
            "ideal_speedup": round(self.ideal_speedup, 2) if self.work.calls else None,
            "achieved_speedup": round(self.achieved_speedup, 2) if self.work.full_calls else None,
            "network_calls": self.work.calls,
            "largest_age": None if np.isnan(self.age).all() else int(np.nanmax(self.age)),
            "events_per_sample": {event: count / self.num_samples for event, count in self.event_counts.items()},
            "tokens_by_reason_per_sample": {why: count / self.num_samples for why, count in self.reason_counts.items()},
            "cache_bytes": self.cache_bytes,
            "state_bytes": self.state_bytes,
            "num_diverged": self.num_diverged,
            "seconds": round(self.seconds, 4),
        }


_COLUMN = {event: column for column, event in enumerate(Event)}
_LOW = list(Reason).index(Reason.LOW)


class Recorder:
    """Collects what the batches of one `sample` call did: a few notes for each stretch of steps, drawn up at the end.

    Most steps of most plans do nothing, so what is noted is by stretch and not by step.
    """

    def __init__(self, frequency: NDArray[np.int64], num_steps: int, batch: int = 0) -> None:
        self._frequency, self._num_steps, self._batch = frequency, num_steps, batch
        self.per_frequency = np.bincount(frequency)
        self._recomputed: dict[int, NDArray[np.int64]] = {}  # by step: tokens of each frequency, over samples
        self._events: dict[tuple[int, int, int], int] = {}  # by first step, step after the last and event: samples
        self._mixed_ages: list[tuple[int, int, NDArray[np.float64]]] = []  # of the steps from `_mixed_from` on
        self._mixed_from = num_steps  # the step from which on samples, or Re and Im, may have different ages
        self._last_set: tuple[object, NDArray[np.int64], bool] = None, self.per_frequency, True
        self._alike = [0] * (1 + len(Event))  # tokens and events of each sample, where all did the same
        self._own: NDArray[np.int64] | None = None  # [B, 1 + E] the same by sample, where they differ
        self._batches: list[tuple[int, list[int], NDArray[np.int64] | None]] = []  # B and these two, when finished
        self._whole: dict[tuple[int, ...], None] = {}  # steps of network calls, of batches that recomputed all or none
        self._has_partial = False  # of one batch: whether a step recomputed some tokens alone
        self.work = Work()
        self.cache_bytes = self.state_bytes = 0

    @cached_property
    def reasons(self) -> NDArray[np.int64]:
        """[T, 4]: tokens of partial steps by step and `Reason`."""
        return np.zeros((self._num_steps, len(Reason)), np.int64)

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """[T, 2]: sums of intensities, and how many there were."""
        return np.zeros((self._num_steps, 2))

    @cached_property
    def _age(self) -> NDArray[np.float64]:
        """[T, 2]: ages after each step, of the worst of the finished batches that are not `_whole`."""
        return np.full((self._num_steps, 2), np.nan)

    def record(self, i: int, j: int, decisions: Decisions, trajectory: Trajectory) -> None:
        """Note what was decided for steps i .. j - 1 of a batch and carried out."""
        if isinstance(decisions, Decision):
            listed: Sequence[Decision] = (decisions,)
            self._note(i, j, decisions, trajectory.batch)
            self._add_to(self._alike, j - i, decisions)
        else:
            listed = decisions
            self._mixed_from = min(i, self._mixed_from)
            if self._own is None:
                self._own = np.zeros((self._batch, 1 + len(Event)), np.int64)
            for own, decision in zip(self._own, decisions, strict=True):
                self._note(i, j, decision, 1)
                self._add_to(own, j - i, decision)
        if self._mixed_from <= i and trajectory.made.min() >= 0:
            made = trajectory.made
            self._mixed_ages.append((i, j, np.arange(i, j)[:, None] - np.array([made.mean(), made.min()])))
        if trajectory.keeps_intensity:
            is_partial = np.array([decision.tokens is not None for decision in listed])
            measured = trajectory.intensity[np.broadcast_to(is_partial, trajectory.batch)]
            measured = measured[np.isfinite(measured)]  # a sample that diverged says nothing of the others
            self._sums[i] += measured.sum(), measured.size

    def _add_to(self, counts: list[int] | NDArray[np.int64], steps: int, decision: Decision) -> None:
        """Tokens, and steps by event."""
        if decision.event.is_full:
            counts[0] += len(self._frequency)
        elif decision.tokens is not None:
            counts[0] += len(decision.tokens)
        counts[1 + _COLUMN[decision.event]] += steps

    def _note(self, i: int, j: int, decision: Decision, samples: int) -> None:
        stretch = (i, j, _COLUMN[decision.event])
        self._events[stretch] = self._events.get(stretch, 0) + samples
        if decision.event.is_full:
            counts = self.per_frequency
        elif decision.tokens is not None:
            self._has_partial = True
            if decision.event is Event.LOW:
                self.reasons[i, _LOW] += samples * len(decision.tokens)
            elif decision.reasons is not None:
                self.reasons[i] += samples * np.bincount(decision.reasons, minlength=len(Reason))
            counts, is_whole = self._counted(decision.tokens)
            if not is_whole:
                self._mixed_from = min(i, self._mixed_from)
        else:
            return
        self._count(i, counts if samples == 1 else samples * counts)

    def _counted(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], bool]:
        """How many of a set are of each frequency, and whether it has all of theirs; once where it comes again."""
        content = tokens.dtype, tokens.tobytes()  # a policy of the caller's may write its array anew
        if content != self._last_set[0]:
            counts = np.bincount(self._frequency[tokens], minlength=len(self.per_frequency))
            self._last_set = content, counts, not (counts % self.per_frequency).any()
        return self._last_set[1:]

    def _count(self, i: int, counts: NDArray[np.int64]) -> None:
        self._recomputed[i] = self._recomputed[i] + counts if i in self._recomputed else counts

    def _ages(self) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Mean and largest age of the tokens of a batch after each step, by stretches; none before all have one."""
        network = [i for i in sorted(self._recomputed) if i < self._mixed_from]
        if network:
            asked = np.stack([self._recomputed[i] for i in network]) > 0
            made = np.maximum.accumulate(np.where(asked, np.array(network)[:, None], -1))  # [calls, F]
            since = np.stack([made @ self.per_frequency / len(self._frequency), made.min(axis=1)], axis=1)
            since[since[:, 1] < 0] = np.nan  # some have none yet
            lengths = [after - i for i, after in zip(network, [*network[1:], self._mixed_from], strict=True)]
            since = np.repeat(since, lengths, axis=0)
            yield network[0], self._mixed_from, np.arange(network[0], self._mixed_from)[:, None] - since
        yield from self._mixed_ages

    def add(self, batch: "Recorder") -> None:
        """Take over what a finished batch noted."""
        self._batches.append((batch._batch, batch._alike, batch._own))
        for i, counts in batch._recomputed.items():
            self._count(i, counts)
        for stretch, samples in batch._events.items():
            self._events[stretch] = self._events.get(stretch, 0) + samples
        if batch._has_partial:
            self._sums += batch._sums
            self.reasons += batch.reasons
        if batch._has_partial or batch._mixed_from < self._num_steps:
            for i, j, ages in batch._ages():
                self._age[i:j] = np.fmax(self._age[i:j], ages)
        else:
            self._whole[tuple(batch._recomputed)] = None
        self.work = self.work + batch.work
        self.cache_bytes = max(self.cache_bytes, batch.cache_bytes)
        self.state_bytes = max(self.state_bytes, batch.state_bytes)

    @property
    def network_steps(self) -> list[int]:
        """The steps at which any sample asked the network, in order."""
        return sorted(self._recomputed)

    def recomputed(self) -> NDArray[np.int64]:
        """[T, F]: tokens by step and frequency, over samples."""
        table = np.zeros((self._num_steps, len(self.per_frequency)), np.int64)
        if self._recomputed:
            table[list(self._recomputed)] = list(self._recomputed.values())
        return table

    def events(self) -> NDArray[np.int64]:
        """[T, E]: samples by step and event."""
        table = np.zeros((self._num_steps, len(Event)), np.int64)
        for (i, j, column), samples in self._events.items():
            table[i:j, column] += samples
        return table

    def age(self) -> NDArray[np.float64]:
        """[T, 2]: mean and largest age, of the worst batch."""
        table = self._age.copy()
        for network in self._whole:
            for i, j in pairwise((*network, self._num_steps)):
                table[i:j] = np.fmax(table[i:j], np.arange(j - i)[:, None])
        return table

    def intensity(self) -> NDArray[np.float64]:
        """[T]: mean of the finite ones."""
        sums, measured = self._sums.T
        mean = np.full(self._num_steps, np.nan)
        np.divide(sums, measured, out=mean, where=measured > 0)
        return mean

    def by_sample(self) -> NDArray[np.int64]:
        """Tokens recomputed and steps by event, of each sample, [n, 1 + E]."""
        sizes, alike, own = zip(*self._batches, strict=True)
        table = np.repeat(np.array(alike, np.int64), sizes, axis=0)
        first = 0
        for size, differing in zip(sizes, own, strict=True):
            if differing is not None:
                table[first : first + size] += differing
            first += size
        return table

    def finish(self, num_samples: int, num_diverged: int, seconds: float) -> Stats:
        """The finished record."""
        return Stats(
            num_samples=num_samples,
            num_steps=self._num_steps,
            num_tokens=len(self._frequency),
            work=self.work,
            cache_bytes=self.cache_bytes,
            state_bytes=self.state_bytes,
            num_diverged=num_diverged,
            seconds=seconds,
            notes=self,
        )
