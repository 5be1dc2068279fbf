"""Values to places on paper, straight or logarithmic, and the round numbers that stand at an axis.

y = scale_over(values, bottom, top, log=True)
y(0.04), [tick_label(tick) for tick in y.ticks(5)]
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Values to places on the paper, straight or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def shows(self, value: float | None) -> bool:
        """Whether a value is there and has a place."""
        return value is not None and math.isfinite(value) and (not self.log or value > 0)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values between the ends."""
        if not self.log:
            return nice_ticks(self.low, self.high, count)
        ticks = log_ticks(self.low, self.high, count)
        return ticks if len(ticks) > 2 else nice_ticks(self.low, self.high, count + 2)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between `low` and `high`, at most about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) + 0.0 for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten between `low` and `high`: every few of them where they are many, 3 or 2 and 5 of them where few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / count))
    ticks = [10.0**power for power in range(first, last + 1, every)]
    for factors in ((1, 3), (1, 2, 5)):
        if len(ticks) < count - 1:
            ticks = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in factors]
            ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return ticks


def tick_label(value: float) -> str:
    """A short number: 0.05, 1,000, 10⁻⁷."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        digits = f"{value / 10.0**power:.3g}"
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return ("" if digits == "1" else f"{digits}×") + f"10{raised}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def scale_over(values: Iterable[float | None], start: float, end: float, *, log: bool, margin: float = 0.05) -> Scale:
    """The scale that shows all values, with a margin; from 0 where that is near, and 0 to 1 without any values."""
    shown = [value for value in values if Scale(0, 1, 0, 1, log).shows(value)]
    found: list[float] = [value for value in shown if value is not None]
    if not found:
        return Scale(0.1, 1.0, start, end, log) if log else Scale(0.0, 1.0, start, end)
    low, high = min(found), max(found)
    if log:
        factor = max((high / low) ** margin, 1.05)
        return Scale(low / factor, high * factor, start, end, log)
    pad = margin * (high - low) if high > low else 0.5 * abs(high) or 0.5
    from_zero = 0 <= low <= 0.3 * high
    return Scale(0.0 if from_zero else low - pad, high + pad, start, end)
