"""The state of one trajectory: latents, data predictions, what is cached per token, and how old it is.

A new trajectory is a new object; every array has the batch in front and nothing is shared between samples.
All steps work in place on buffers made at the start. On a CPU these are NumPy arrays; a backend with its own
memory supplies a class of the same methods.

Between recomputations the data prediction of a token is `z0 = from_latent z + from_value v` (see `schedule`),
with the cached value v held constant or, in the linear modes, extrapolated in t from its last two values. A decision
may say that something else is held than what a refresh made (`hold`).
Steps that need no network are taken together (`coast`), any other one by one (`carry_out`, `advance`).

Where the samples of a batch are to do different things, each run of neighbours that do the same is one
network call over its own slice of the caches: nothing is gathered or copied.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cache.feedback import Feedback
from runtime.cache.hold import Hold
from runtime.cache.policy import Decision, Event, Needs, TokenFacts
from runtime.errors import OptionError
from runtime.leaps import Leaps
from runtime.noise import NoiseStream, uniform
from runtime.schedule import Schedule
from runtime.score import ScoreNetwork

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
_ETA = 1e-6  # keeps the event intensity finite (eq. 14)
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192)  # numbers of tokens that sets chosen per sample are padded to


@dataclass(frozen=True)
class ModelFacts:
    """What a trajectory must know of its model beside the network."""

    tokens: TokenFacts
    weight: Floats  # [N, C], squared standardisation over its sum over tokens and channels: energy in data units


@dataclass
class Work:
    """What the network ran: calls, tokens and seconds, of all calls and of those with all tokens."""

    calls: int = 0
    tokens: int = 0  # summed over samples, padding included
    seconds: float = 0.0
    full_calls: int = 0
    full_tokens: int = 0
    full_seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.calls + other.calls,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.full_calls + other.full_calls,
            self.full_tokens + other.full_tokens,
            self.full_seconds + other.full_seconds,
        )

    def add(self, tokens: int, seconds: float, *, is_full: bool) -> None:
        """Count one call."""
        self.calls, self.tokens, self.seconds = self.calls + 1, self.tokens + tokens, self.seconds + seconds
        if is_full:
            self.full_calls += 1
            self.full_tokens += tokens
            self.full_seconds += seconds


class Trajectory:
    """One batch of samples on its way from noise to data; also the `Signals` that its policy looks at."""

    def __init__(
        self,
        facts: ModelFacts,
        network: ScoreNetwork,
        schedule: Schedule,
        leaps: Leaps,
        noise: NoiseStream,
        *,
        linear: bool,
        needs: Needs = Needs.NOTHING,
        feedback: float = 0.0,
    ) -> None:
        prior = noise.prior()
        batch, num_tokens, _ = prior.shape
        self._facts, self._network, self._schedule, self._leaps, self._noise = facts, network, schedule, leaps, noise
        self._keep_ages(batch, num_tokens)
        self._is_watched = bool(needs) or feedback > 0  # flags are slow to ask
        self._sums_impact, self._keeps_surprise = Needs.IMPACT in needs, Needs.SURPRISE in needs
        self.work = Work()
        self.z: Floats = schedule.prior_scale * prior  # [B, N, C]
        shape = self.z.shape
        self.data = np.zeros(shape, np.float32)  # the data prediction z0
        self._before = np.zeros(shape, np.float32) if schedule.is_multistep else None  # z0 of the step before
        self._value = np.zeros(shape, np.float32)  # what the reuse mode caches
        self._slope = np.zeros(shape, np.float32) if linear else None  # its change per unit of t
        self._unheld: Floats | None = None  # the values of the last refresh whose decision had a `hold`, before it
        self._scratch = np.empty(shape, np.float32)
        self._fresh: list[tuple[int, int, Floats]] = []  # new scores of all tokens, of samples first .. last - 1
        self._rows = np.arange(batch)[:, None]
        self._all = np.arange(num_tokens)
        self._made_z = np.zeros(shape, np.float32) if needs & Needs.CHANGE else None  # z when a token was recomputed
        width = network.d_model
        self._features = np.zeros((batch, num_tokens, width), np.float32) if needs & Needs.INTENSITY else None  # z_L
        self._intensity, self._impact, self._probe_error, self._surprise = np.zeros((4, batch), np.float32)
        self._feedback = Feedback(facts.tokens.frequency, feedback) if feedback else None

    def _keep_ages(self, batch: int, num_tokens: int) -> None:
        """What follows from the decisions alone, wherever the rest is."""
        self.batch, self._i = batch, 0
        self.made = np.full((batch, num_tokens), -1)  # the step each token was last recomputed at
        self._refreshed = np.full(batch, -1)  # the step all tokens of a sample were last recomputed at
        self._oldest_refresh = -1  # the least of them

    @property
    def state_bytes(self) -> int:
        """Bytes of this object's arrays, O(B N (C + D)); the K/V caches are the network's."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, np.ndarray))

    @property
    def cache_bytes(self) -> int:
        """Bytes of the K/V caches."""
        return self._network.cache_bytes

    def at(self, i: int) -> "Trajectory":
        """The signals of step i."""
        self._i = i
        return self

    @property
    def since_refresh(self) -> int | None:
        """Steps since all tokens of all samples were recomputed, the longest in the batch; None: never yet."""
        return None if self._oldest_refresh < 0 else self._i - self._oldest_refresh

    @property
    def refresh_age(self) -> Ints:
        """The same by sample, [B]."""
        return self._i - self._refreshed

    @property
    def is_begun(self) -> NDArray[np.bool_]:
        """Whether all tokens of a sample were ever recomputed, [B]."""
        return self._refreshed >= 0

    @property
    def token_age(self) -> Ints:
        """Steps since each token was recomputed, [B, N]."""
        return self._i - self.made

    @property
    def change(self) -> Floats:
        """delta (eq. 15): squared change of z since the token was recomputed, summed over channels, [B, N]."""
        if self._made_z is None:
            raise _not_kept(Needs.CHANGE)
        delta: Floats = np.square(self.z - self._made_z).sum(axis=2)
        return delta

    @property
    def energy(self) -> Floats:
        """Energy of each token: its squared z weighted by its spectral weight over the mean one, [B, N]."""
        weight = self._facts.weight
        relative: Floats = np.float32(weight.shape[0]) * weight
        energy: Floats = (relative * np.square(self.z)).sum(axis=2)
        return energy

    @property
    def keeps_intensity(self) -> bool:
        """Whether `intensity` is measured at all."""
        return self._features is not None

    @property
    def intensity(self) -> Floats:
        """r (eq. 14): relative squared change of the features at the last partial step, [B]; 0 after a refresh."""
        if self._features is None:
            raise _not_kept(Needs.INTENSITY)
        return self._intensity

    @property
    def impact(self) -> Floats:
        """Estimated effect of reuse since the last refresh on the finished series, in data std, [B]."""
        if not self._sums_impact:
            raise _not_kept(Needs.IMPACT)
        return self._impact

    @property
    def surprise(self) -> Floats:
        """How far the prediction was off at the last full refresh, in data std of z0, [B]; 0 before the second."""
        if not self._keeps_surprise:
            raise _not_kept(Needs.SURPRISE)
        return self._surprise

    @property
    def lots(self) -> Floats:
        """A uniform draw in [0, 1) per frequency, from (seed, sample, step) alone, [B, F]."""
        return uniform(self._noise.seed, self._noise.samples, self._i, self._facts.tokens.num_frequencies)

    def can_coast(self, decision: Decision) -> bool:
        """Whether the steps up to `decision.until` may be taken at once."""
        return decision.until > self._i + 1 and not decision.asks_network and not self._schedule.is_multistep

    def coast(self, i: int, j: int, event: Event) -> None:
        """Take steps i .. j - 1 without a network call; `data` is left as it was."""
        leap, scratch = self._leaps.get(i, j, prior=event is Event.PRIOR), self._scratch
        self.z *= leap.latent
        if leap.value is not None:
            value = self._value_at(i)
            np.multiply(value, leap.value, out=scratch)
            self.z += scratch
            if self._slope is not None and leap.slope is not None:
                np.multiply(self._slope, leap.slope, out=scratch)
                self.z += scratch
        if leap.noise is not None:
            self._noise.add_weighted(i, j, leap.noise, self.z)
        if self._sums_impact:
            self._impact += self._schedule.impact[i:j].sum() * self._probe_error

    def carry_out(self, i: int, decisions: Decision | Sequence[Decision]) -> None:
        """Make the data prediction of step i as decided."""
        self._i, self._fresh = i, []
        if isinstance(decisions, Decision):
            self._carry_out(i, decisions, 0, self.batch)
            return
        self._predict(i)
        for decision, first, last in runs_of(decisions, self._facts.weight.shape[0]):
            self._carry_out(i, decision, first, last, predicted=True)

    def _carry_out(self, i: int, decision: Decision, first: int, last: int, *, predicted: bool = False) -> None:
        """The same for samples first .. last - 1."""
        event, tokens = decision.event, decision.tokens
        if event is Event.PRIOR:
            np.multiply(self._schedule.gaussian[i], self.z[first:last], out=self.data[first:last])
            return
        is_full = event.is_full
        if not predicted and not (is_full and not self._keeps_surprise):
            self._predict(i)
        if is_full:
            self._fresh.append((first, last, self._recompute(i, None, first, last, decision.hold)))
            self._refreshed[first:last] = i
            self._oldest_refresh = int(self._refreshed.min())
        elif tokens is not None:
            self._recompute(i, tokens, first, last)

    def advance(self, i: int) -> None:
        """Take solver step i: a sample with a new score of all tokens from that, whatever the others do."""
        schedule, scratch = self._schedule, self._scratch
        fresh = self._fresh if self._before is None else []
        num_fresh = sum(last - first for first, last, _ in fresh)
        latent: Any = schedule.step_latent[i]
        if num_fresh == self.batch:
            latent = schedule.fresh_latent[i]
        else:
            np.multiply(self.data, schedule.step_data[i], out=scratch)
            if fresh:
                latent = np.full((self.batch, 1, 1), latent)
        for first, last, score in fresh:
            np.multiply(score, schedule.fresh_score[i], out=scratch[first:last])
            if num_fresh < self.batch:
                latent[first:last] = schedule.fresh_latent[i]
        self.z *= latent
        self.z += scratch
        if self._before is not None:
            np.multiply(self._before, schedule.step_previous[i], out=scratch)
            self.z += scratch
            self._before[...] = self.data
        if schedule.is_stochastic:
            np.multiply(self._noise.step(i), schedule.step_noise[i], out=scratch)
            self.z += scratch
        if self._sums_impact:
            self._impact += schedule.impact[i] * self._probe_error

    def _value_at(self, i: int) -> Floats:
        """The cached value of every token, extrapolated to step i in the linear modes."""
        if self._slope is None:
            return self._value
        times = self._schedule.times
        elapsed = (times[i] - times[self.made]).astype(np.float32)[..., None]
        np.multiply(self._slope, elapsed, out=self._scratch)
        np.add(self._scratch, self._value, out=self._scratch)
        return self._scratch

    def _predict(self, i: int) -> None:
        """The data prediction of every token from what is cached."""
        schedule, scratch = self._schedule, self._scratch
        np.multiply(schedule.from_latent[i], self.z, out=self.data)
        np.multiply(schedule.from_value[i], self._value_at(i), out=scratch)
        self.data += scratch

    def _recompute(self, i: int, tokens: Ints | None, first: int, last: int, hold: Hold | None = None) -> Floats:
        """Ask the network for tokens of samples first .. last - 1, renew all that is cached of them; their score.

        `tokens` is None for all of them, [S] for the same in every sample, [b, S] for each sample's own; `hold` is
        for all of them only.
        """
        schedule, here = self._schedule, slice(first, last)
        at = here if tokens is None else (here, tokens) if tokens.ndim == 1 else (self._rows[here], tokens)
        size = len(self._all) if tokens is None else tokens.shape[-1]
        call = self._network.call(size, first, last, features=self._features is not None)
        call.token[...] = self._all if tokens is None else tokens
        call.t[...] = schedule.times[i]
        if tokens is not None and tokens.ndim == 1:
            call.z[...] = self.z[here].take(tokens, axis=1)  # an index takes three times as long
        else:
            call.z[...] = self.z[at]
        begun = time.perf_counter()
        call.run()
        self.work.add(call.token.size, time.perf_counter() - begun, is_full=tokens is None)
        to_data, from_latent, from_value = schedule.score_to_data[i], schedule.from_latent[i], schedule.from_value[i]
        if tokens is not None:
            to_data, from_latent, from_value = (
                table.take(tokens, axis=0) for table in (to_data, from_latent, from_value)
            )
        data = to_data * call.score
        data += schedule.latent_to_data[i] * call.z
        value = (data - from_latent * call.z) / from_value
        if self._slope is not None:
            made = self.made[at]
            elapsed = np.where(made < 0, np.inf, schedule.times[i] - schedule.times[made])[..., None]
            self._slope[at] = (value - self._value[at]) / elapsed
        if hold is not None:
            value = self._held(hold, here, value, call.z)
        if self._is_watched:
            self._note(at, call.token, data, call.hidden, first, last, is_full=tokens is None)
        self.data[at], self._value[at], self.made[at] = data, value, i
        return call.score

    def _held(self, hold: Hold, here: slice, value: Floats, z: Floats) -> Floats:
        """What is held of the values of a refresh, which are kept for the next one."""
        if self._unheld is None:
            self._unheld = np.zeros_like(self.z)
        held = hold.of(value, self._unheld[here], z)
        self._unheld[here] = value
        return held

    def _note(
        self, at: Any, tokens: Ints, data: Floats, hidden: Floats | None, first: int, last: int,
        *, is_full: bool,
    ) -> None:  # fmt: skip
        """Keep what the policy's signals are made of, before the old predictions are overwritten."""
        here = slice(first, last)
        counts = tokens != tokens[:, :1]  # padding repeats the first token, which counts once
        counts[:, 0] = True
        weight = self._facts.weight[tokens] * counts[..., None]
        error = data - self.data[at]
        if is_full:
            self._impact[here] = self._probe_error[here] = self._intensity[here] = 0.0
            if self._keeps_surprise:
                self._surprise[here] = np.where(self.made[here, 0] < 0, 0.0, _rms(error, weight))
        else:
            self._probe_error[here] = _rms(error, weight)
        if self._features is not None and hidden is not None:
            old = self._features[at]
            if not is_full:
                moved, size = (np.square(x).sum(axis=2, where=counts[..., None]) for x in (hidden - old, old))
                self._intensity[here] = moved.sum(axis=1) / (size.sum(axis=1) + _ETA)
            self._features[at] = hidden
        if self._made_z is not None:
            self._made_z[at] = self.z[at]
        if self._feedback is not None and not is_full:
            limit = 0.5 * self._intensity[here] if self._features is not None else np.full(last - first, np.inf)
            missed = error / self._schedule.from_value[self._i][tokens]
            self._feedback.apply(self._value[here], missed, tokens, counts, limit)


def bucket(size: int, num_tokens: int) -> int:
    """The number of tokens that a set of `size` is padded to."""
    return next((bound for bound in BUCKETS if size <= bound < num_tokens), num_tokens)


def padded(tokens: Ints, size: int) -> Ints:
    """The set with its first token repeated up to `size`: what is computed twice is written twice alike."""
    return np.concatenate([tokens, np.full(size - len(tokens), tokens[0])])


def runs_of(decisions: Sequence[Decision], num_tokens: int) -> Iterator[tuple[Decision, int, int]]:
    """Decisions by runs of neighbours, samples first .. last - 1, that are one call: their tokens [b, S] padded."""
    kinds = [
        (decision.event, 0 if decision.tokens is None else bucket(len(decision.tokens), num_tokens), id(decision.hold))
        for decision in decisions
    ]
    first = 0
    for (event, size, _), run in groupby(kinds):
        last = first + len(list(run))
        sets = [padded(d.tokens, size) for d in decisions[first:last] if d.tokens is not None]
        yield Decision(event, np.stack(sets) if sets else None, hold=decisions[first].hold), first, last
        first = last


def _not_kept(need: Needs) -> OptionError:
    return OptionError(f"what a policy looks at must be among the `needs` of its cache, found that {need.name} is not; "
                       f"add Needs.{need.name}")  # fmt: skip


def _rms(error: Floats, weight: Floats) -> Floats:
    """Root mean square of errors [b, S, C] under weights, relative to a series' own deviation, [b]."""
    total = np.maximum(weight.sum(axis=(1, 2)), np.finfo(np.float32).tiny)
    rms: Floats = np.sqrt((weight * np.square(error)).sum(axis=(1, 2)) / total)
    return rms
