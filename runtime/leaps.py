"""Runs of steps without a network call, taken at once.

Such a step is affine in the latent, in what is cached and in the noise, so a run of them is too:

    z_j = latent z_i + value v + slope s + sum over steps m of noise_m e_m          (v + s (t_m - t_i) is reused)

A `Leap` holds these coefficients, multiplied out once in float64. A trajectory of a thousand steps and four
network calls is then four calls and five multiply-adds, plus the noise where the solver makes any. Up to
rounding it is what the single steps would have computed; a test compares them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.schedule import Schedule

Table = NDArray[np.float32]
_KEPT_BYTES = 2**26  # of leaps that are remembered: a plan takes a few, with a value for each step where noise is added


@dataclass(frozen=True)
class Leap:
    """Coefficients of the steps from i up to j, [N, C] or [N, 1] each."""

    latent: Table
    value: Table | None  # None in the prior phase, where nothing is reused
    slope: Table | None
    noise: Table | None  # [j - i, N, C] or [j - i, N, 1]; None if the solver makes none

    @property
    def nbytes(self) -> int:
        """Bytes of its tables."""
        return sum(table.nbytes for table in (self.latent, self.value, self.slope, self.noise) if table is not None)


class Leaps:
    """The leaps of a schedule, made when first asked for."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._made: dict[tuple[int, int, bool], Leap] = {}
        self._bytes = 0

    def get(self, i: int, j: int, *, prior: bool) -> Leap:
        """The leap over steps i .. j - 1, all of them in the prior phase or all of them reusing."""
        key = (i, j, prior)
        if (leap := self._made.get(key)) is None:
            leap = self._make(i, j, prior)
            self._bytes += leap.nbytes
            if self._bytes > _KEPT_BYTES:
                self._made.clear()
                self._bytes = leap.nbytes
            self._made[key] = leap
        return leap

    def _make(self, i: int, j: int, prior: bool) -> Leap:
        schedule = self._schedule
        from_latent = (schedule.gaussian if prior else schedule.from_latent)[i:j]  # [j - i, N, C]
        step_data = schedule.step_data[i:j, None, None].astype(np.float64)
        factors = schedule.step_latent[i:j, None, None] + step_data * from_latent
        later = later_products(factors)
        latent = factors[0] * later[0]
        noise = schedule.step_noise[i:j] * later if schedule.is_stochastic else None
        if prior:
            return Leap(_narrow(latent), None, None, None if noise is None else _narrow(noise))
        enters = step_data * schedule.from_value[i:j] * later
        elapsed = (schedule.times[i:j] - schedule.times[i])[:, None, None]
        return Leap(
            _narrow(latent),
            _narrow(enters.sum(axis=0)),
            _narrow((enters * elapsed).sum(axis=0)),
            None if noise is None else _narrow(noise),
        )


def later_products(factors: NDArray[np.float64]) -> NDArray[np.float64]:
    """What becomes of a unit that enters after each step: the product of the later factors, [T, ...]."""
    later = np.ones_like(factors)
    later[:-1] = np.cumprod(factors[:0:-1], axis=0)[::-1]
    return later


def _narrow(values: NDArray[np.floating]) -> Table:
    """In float32, with one channel where all are alike."""
    if values.shape[-1] > 1 and (values == values[..., :1]).all():
        values = values[..., :1]
    return np.ascontiguousarray(values, np.float32)
