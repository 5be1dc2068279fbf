"""The figures of a record: all that was measured is drawn, and a way of sampling looks the same in every chart."""

import re
from pathlib import Path

from bench import charts
from bench.figures import looks_of
from tests.made_up_records import FULL, report


def test_all_that_was_measured_is_drawn(tmp_path: Path) -> None:
    page, _ = report(tmp_path, FULL)
    drawn = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert drawn == [
        "Distance to real series", "Distance against time", "Energy by frequency", "Autocorrelation",
        "Paired error by step", "Hit rate by step", "Event intensity by step", "Generated series",
        "What was recomputed when", "Where the time of a step goes",
    ]  # fmt: skip
    for folded in ("More figures of each row", "What each kind of step costs", "From nothing to the first sample"):
        assert f"<summary>{folded}</summary>" in page


def test_a_way_of_sampling_looks_the_same_in_every_chart() -> None:
    assert (
        looks_of(["uncached", "E2-CRF", "fewer steps"]) == looks_of(["real", "uncached", "E2-CRF", "fewer steps"])[1:]
    )
    many = looks_of([f"way {index}" for index in range(7)])
    assert sorted(many) == list(range(1, 8))
    more = looks_of([f"way {index}" for index in range(30)])
    assert len({(look % charts.NUM_LOOKS, charts._shape_of(look)) for look in more}) == 30
    assert looks_of(["real", "something"])[0] == 0
