"""Scales keep order and ratios, and the ticks of an axis are round, few and inside."""

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench.scales import Scale, log_ticks, nice_ticks, scale_over, tick_label


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_straight_ticks_are_round_even_and_inside(low: float, span: float, count: int) -> None:
    """Steps are 1, 2 or 5 times a power of ten."""
    assume(span > 1e-6 * abs(low))
    ticks = nice_ticks(low, low + span, count)
    assert len(ticks) <= count + 1
    steps = {f"{b - a:.6g}" for a, b in pairwise(ticks)}
    if abs(low) < 1e3 * span and len(ticks) > 1:  # else a step is lost in the rounding of the values
        assert {f"{float(step):e}"[0] for step in steps} <= {"1", "2", "5", "9", "4"}
        assert max(map(float, steps)) == pytest.approx(min(map(float, steps)), rel=1e-3)
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.03, 0.9, [0.05, 0.1, 0.2, 0.5]),
        (0.5, 2000.0, [1, 10, 100, 1000]),
        (1e-8, 1.0, [1e-8, 1e-6, 1e-4, 1e-2, 1.0]),
        (2.7e-4, 38.0, [1e-3, 1e-2, 0.1, 1, 10]),
        (0.02, 0.9, [0.02, 0.05, 0.1, 0.2, 0.5]),
        (0.05, 4.0, [0.1, 0.3, 1, 3]),
    ],
)
def test_log_ticks_are_powers_of_ten_with_more_between_where_there_are_few(
    low: float, high: float, expected: list[float]
) -> None:
    assert log_ticks(low, high, 5) == pytest.approx(expected)


def test_a_narrow_log_axis_has_ticks_all_the_same() -> None:
    assert len(scale_over([1.7, 2.8], 0, 100, log=True).ticks(5)) >= 3


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (0.05, "0.05"), (1000, "1,000"), (1e-7, "10⁻⁷"), (2e-5, "2×10⁻⁵"), (5e6, "5×10⁶"), (-0.5, "-0.5")],
)
def test_ticks_are_labelled_shortly(value: float, label: str) -> None:
    assert tick_label(value) == label


def test_a_scale_keeps_order_and_ratios() -> None:
    log = Scale(1.0, 100.0, 0.0, 200.0, log=True)
    assert [log(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])
    down = Scale(0.0, 4.0, 100.0, 0.0)
    assert [down(value) for value in (0, 1, 4)] == [100, 75, 0]
