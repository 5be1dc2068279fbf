"""Error feedback (eq. 17-18): what a probe finds wrong, its neighbours in frequency take over in part.

A recomputed token has its true value already, so there is nothing to correct in it. What may help is the part
of its error that tokens near it share: each cached value moves by `a` times the mean error of the recomputed
tokens around it, weighted by exp(-distance in frequency), Re from Re and Im from Im. `a` is min(feedback, r / 2)
with the event intensity r where it is known (the paper's a = min(0.1, r / 2)), else `feedback`.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Feedback:
    """Corrects cached values; `most` is the largest share of an error that is taken over."""

    def __init__(self, frequency: NDArray[np.int64], most: float) -> None:
        self._most = most
        _, first_of_frequency = np.unique(frequency, return_index=True)
        is_second = ~np.isin(np.arange(len(frequency)), first_of_frequency)  # Im: its Re came before it
        distance = np.abs(frequency[:, None] - frequency)
        self._near = (np.exp(-distance) * (is_second[:, None] == is_second)).astype(np.float32)  # [N, N]

    def apply(
        self, value: Floats, error: Floats, tokens: NDArray[np.int64], counts: NDArray[np.bool_], limit: Floats
    ) -> None:
        """Move the cached values [b, N, C] in place by the errors [b, S, C] of those `tokens` [b, S] that count."""
        near = self._near[tokens] * counts[..., None]  # [b, S, N]
        shared = np.einsum("bsn,bsc->bnc", near, error) / (near.sum(axis=1)[..., None] + 1.0)
        value += np.minimum(self._most, limit)[:, None, None].astype(np.float32) * shared
