"""What is held between two refreshes, corrected by what a calibration measured.

The residual of a refresh is not that of the steps after it, but how it goes on from there is much the same for all
samples. So it is predicted by a linear function of what is known at the refresh, token by token:

    held = value v + before v_before + latent z + offset

v is the new residual, v_before that of the refresh before (zero at the first), z the latents. `bench.fit` finds the
coefficients by least squares, refresh after refresh, on trajectories with many refreshes of other noise: the latents
at the *next* refresh are what has to be right. To be exact at one point is not the aim, so one call carries further
than any extrapolation. `latent` mends the closed form, which takes the data for Gaussian with unit variance.

The idea is that of solvers fitted to a model: DPM-Solver-v3 (Zheng et al., arXiv 2310.13268) measures per-dimension
coefficients of its linear part, S4S (Frankel et al., arXiv 2502.17423) learns those of a multistep solver.
"""

from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_MOST = float(np.finfo(np.float32).max)


class Hold(Protocol):
    """What becomes of the values of a full refresh before they are held."""

    def of(self, value: Floats, before: Floats, z: Floats) -> Floats:
        """What is held of some samples, from their values, those of the refresh before, and z, [B, N, C] each."""


@dataclass(frozen=True, eq=False)
class LinearHold:
    """The linear function of one refresh, finite coefficients [N, C] each."""

    value: Floats
    before: Floats
    latent: Floats
    offset: Floats

    def of(self, value: Floats, before: Floats, z: Floats) -> Floats:
        """What is held of some samples, [B, N, C]."""
        held = self.value * value
        held += self.before * before
        held += self.latent * z
        held += self.offset
        return held

    @property
    def tables(self) -> Floats:
        """All coefficients, [4, N, C], in the order of the fields."""
        return np.stack([self.value, self.before, self.latent, self.offset])

    def to_lists(self) -> dict[str, list[list[float]]]:
        """Plain numbers, as short as they can be without becoming others."""
        return {name: table.astype(str).astype(float).tolist() for name, table in asdict(self).items()}

    @classmethod
    def from_lists(cls, lists: dict[str, Any]) -> Self:
        """What `to_lists` wrote; a `TypeError` or `ValueError` for anything else."""
        found = cls(**{name: _table(rows) for name, rows in dict(lists).items()})
        tables = found.tables  # a ValueError where shapes differ
        if tables.ndim != 3 or not np.isfinite(tables).all():
            raise ValueError("a fit must be rows of finite numbers, one row per token")
        return found


def _table(rows: Any) -> Floats:
    """Rows of numbers as an array, text and booleans being none."""
    wrong = [x for row in rows for x in row if isinstance(x, bool) or not isinstance(x, int | float) or abs(x) > _MOST]
    if wrong:
        raise ValueError(f"a fit must be rows of finite numbers, found {str(wrong[0])[:40]!r} among them")
    return np.array(rows, np.float32)
