"""The exponential moving average of the weights, which is what a finished checkpoint holds.

Lightning's `WeightAveraging` swaps the average in for validation and for `state_dict` in checkpoints, and
keeps the raw weights beside it for resuming. Two things differ from Lightning's `EMAWeightAveraging`. The
decay warms up, min(decay, (1 + n) / (10 + n)) after n updates (as TensorFlow's `ExponentialMovingAverage`
does): with a plain 0.999 a run of a thousand steps would still be a third random initialisation. And the
update is a `lerp`, which leaves a frozen parameter bitwise alone, where `decay * a + (1 - decay) * a`
drifts by rounding.
"""

from collections.abc import Sequence

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_after(num_updates: int, decay: float) -> float:
    """The decay of update number `num_updates`, counted from 1."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WarmedUpEMA(WeightAveraging):  # type: ignore[misc]  # mypy takes Lightning's classes for Any
    """An average over the last 1 / (1 - decay) steps, and over fewer while there are fewer."""

    def __init__(self, decay: float) -> None:
        def update(average: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor) -> None:
            ema_update = get_ema_multi_avg_fn(decay_after(int(num_averaged), decay))  # type: ignore[no-untyped-call]
            ema_update(average, current, num_averaged)

        super().__init__(multi_avg_fn=update)
