"""The state of one trajectory: latents, data predictions, what is cached per token, and how old it is.

A new trajectory is a new object; every array has the batch in front and nothing is shared between samples.
All steps work in place on buffers made at the start. On a CPU these are NumPy arrays and an empty step is a
few vector operations; a backend with its own memory supplies a class of the same methods.

Between recomputations the data prediction of a token is `z0 = from_latent z + from_value v` (see `schedule`),
with the cached value v held constant or, in the linear modes, extrapolated in t from its last two values.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cache.policy import Decision, Event, Signals
from runtime.schedule import Schedule
from runtime.score import Call, ScoreNetwork

Floats = NDArray[np.float32]


class Trajectory:
    """One batch of samples on its way from noise to data; `prior` [B, N, C] is standard normal."""

    def __init__(self, network: ScoreNetwork, schedule: Schedule, prior: Floats, *, linear: bool) -> None:
        batch, num_tokens, _ = prior.shape
        self._network, self._schedule = network, schedule
        self.z: Floats = schedule.prior_scale * prior  # [B, N, C]
        self.data = np.zeros_like(self.z)  # the data prediction z0
        self._value = np.zeros_like(self.z)  # what the reuse mode caches
        self._slope = np.zeros_like(self.z) if linear else None  # its change per unit of t
        self.made = np.full((batch, num_tokens), -1)  # the step each token was last recomputed at
        self._refreshed: int | None = None  # the step all tokens were last recomputed at
        self._scratch = np.empty_like(self.z)
        self._rows = np.arange(batch)[:, None]
        self._all = np.tile(np.arange(num_tokens), (batch, 1))

    @property
    def state_bytes(self) -> int:
        """Bytes of this object's arrays, O(B N C); the K/V caches are the network's."""
        arrays = (self.z, self.data, self._value, self._slope, self.made, self._scratch, self._all)
        return sum(array.nbytes for array in arrays if array is not None)

    def signals(self, i: int) -> Signals:
        """What the policy may look at before step i."""
        return Signals(since_refresh=None if self._refreshed is None else i - self._refreshed)

    def carry_out(self, i: int, decision: Decision) -> None:
        """Make the data prediction of step i as decided."""
        if decision.event is Event.PRIOR:
            np.multiply(self._schedule.gaussian[i], self.z, out=self.data)
        elif decision.event.is_full:
            self._recompute(i, self._all)
            self._refreshed = i
        else:
            self._predict(i)
            if decision.tokens is not None:
                self._recompute(i, np.broadcast_to(decision.tokens, (len(self.z), decision.tokens.shape[-1])))

    def advance(self, i: int, noise: Floats) -> None:
        """Take solver step i with standard normal noise [B, N, C]."""
        schedule, scratch = self._schedule, self._scratch
        self.z *= schedule.step_latent[i]
        np.multiply(self.data, schedule.step_data[i], out=scratch)
        self.z += scratch
        np.multiply(noise, schedule.step_noise[i], out=scratch)
        self.z += scratch

    def _predict(self, i: int) -> None:
        """The data prediction of every token from what is cached."""
        schedule, scratch = self._schedule, self._scratch
        np.multiply(schedule.from_latent[i], self.z, out=self.data)
        if self._slope is None:
            np.multiply(schedule.from_value[i], self._value, out=scratch)
        else:
            elapsed = (schedule.times[i] - schedule.times[self.made]).astype(np.float32)[..., None]
            np.multiply(self._slope, elapsed, out=scratch)
            np.add(scratch, self._value, out=scratch)
            np.multiply(schedule.from_value[i], scratch, out=scratch)
        self.data += scratch

    def _recompute(self, i: int, tokens: NDArray[np.int64]) -> None:
        """Ask the network for `tokens` [B, S]; renew their data prediction and their cached value."""
        schedule, at = self._schedule, (self._rows, tokens)
        call = self._network.call(tokens.shape[1])
        z = _run(call, self.z[at], schedule.times[i], tokens)
        data = schedule.latent_to_data[i] * z + schedule.score_to_data[i][tokens] * call.score
        value = (data - schedule.from_latent[i][tokens] * z) / schedule.from_value[i][tokens]
        if self._slope is not None:
            made = self.made[at]
            elapsed = np.where(made < 0, np.inf, schedule.times[i] - schedule.times[made])[..., None]
            self._slope[at] = (value - self._value[at]) / elapsed
        self.data[at], self._value[at], self.made[at] = data, value, i


def _run(call: Call, z: Floats, t: float, tokens: NDArray[Any]) -> Floats:
    call.z[...], call.t[...], call.token[...] = z, t, tokens
    call.run()
    return call.z
