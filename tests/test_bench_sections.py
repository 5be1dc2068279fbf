"""What is shown of a record is what it says: headline, matrix, frontier, claims, the command that repeats it."""

import re
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from bench.contenders import Way
from bench.records import Kind, Record, Row
from bench.report import COLUMNS, cells_of, details_of, markdown_of, times
from bench.tables import matrices, place_of
from tests.made_up_records import ABLATION, ALL, BENCH, GRID, PARETO, ROWS, report


def test_several_benches_are_set_side_by_side_and_one_is_not(tmp_path: Path) -> None:
    other = replace(BENCH, model={"source": {"data": "prices"}})
    page, summary = report(tmp_path, BENCH, other)
    assert '<h2 id="data-sets-h">The data sets side by side' in page
    distances = "0.05 | 0.0401 | 0.047 | 0.02 |  |"
    line = f"| prices | 1 | 1,230x | 901x | none found |  | 4 | {distances} {distances} 0 of 64 |"
    assert line in summary
    assert "side by side" not in report(tmp_path / "one", BENCH)[1]
    few = replace(BENCH, rows=(ROWS[0], replace(ROWS[1], num_samples=8), *ROWS[2:]))
    assert "waves: uncached on 8 samples, E2-CRF on 64; " in report(tmp_path / "few", few, other)[1]
    assert "; a distance is smaller for more samples" not in summary


def test_the_first_sentence_names_the_honest_rival_beside_the_gain(tmp_path: Path) -> None:
    page, _ = report(tmp_path, BENCH)
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', page)
    assert "in 1.23 ms, 1,230 times faster than pytorch, uncached, with 4 passes of the network instead of 100" in lead
    assert "distance to real series is 0.0401 (uncached 0.05; real series to each other 0.02)" in lead
    assert "fewer steps without a cache at as many passes, is 901 times faster, at distance 0.047" in lead


def test_what_few_steps_take_to_be_as_good_is_said_where_it_was_found(tmp_path: Path) -> None:
    rival = replace(ROWS[3], rival="onnxruntime, fewer steps, as good", speedup=333.3, passes=9.0)
    alike = replace(rival, rival=f"{rival.rival}, same prior phase", speedup=111.1, passes=1.0)
    page, summary = report(
        tmp_path, replace(BENCH, rows=(*ROWS, rival)), BENCH, replace(BENCH, rows=(*ROWS, rival, alike))
    )
    assert "To be as good it takes 9 passes and is 333 times faster." in page
    assert "In the prior phase of the cache to be as good it takes 1 pass and is 111 times faster." in page
    assert "| 901x | 333x, 9 passes |  | 4 |" in summary
    assert "| 901x | none found |  | 4 |" in summary
    assert "| 901x | 333x, 9 passes | 111x, 1 pass | 4 |" in summary
    whole = replace(BENCH, options=BENCH.options | {"quick": False})
    _, summary = report(tmp_path / "whole", whole, BENCH)
    assert "| 901x | none found | none found | 4 |" in summary  # a quick one does not look for the second


@pytest.mark.parametrize(
    ("passes", "most", "told"), [(4.0, 32, "16 passes"), (1.0, 32, "8 passes"), (10.0, 32, "32 "), (2.0, 2, "2 ")]
)
def test_how_far_few_steps_of_equal_quality_were_looked_for_is_said(
    tmp_path: Path, passes: float, most: int, told: str
) -> None:
    """Four times the passes of the cache or eight, and no more than were allowed."""
    rows = (*ROWS[:2], replace(ROWS[2], passes=passes), *ROWS[3:])
    _, summary = report(tmp_path, replace(BENCH, rows=rows, options=BENCH.options | {"most_passes": most}))
    assert f"The best ways of taking few steps were not as good at up to {told}" in summary


def test_a_grid_is_a_matrix_and_the_smaller_distance_is_shaded_more(tmp_path: Path) -> None:
    sw = matrices(GRID)["SW time"]
    assert [title for title, _ in sw.titles] == ["K", "R 5", "R 50"]
    assert [[cell.text for cell in found] for found in sw.rows] == [["0", "0.045", "0.09"], ["3", "0.0453", "0.0903"]]
    assert sw.rows[0][1].shade == 1.0
    assert sw.rows[1][2].shade == 0.0
    page, _ = report(tmp_path, GRID)
    assert 'class="shaded" style="--share:1.00" title="sw_time 0.045"' in page


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Row("K 3, R 50"), (3, 50)),
        (Row("a", policy="R 5, K 0.1"), (0.1, 5)),
        (Row("a", policy="R=5, K=2"), (2, 5)),
        (Row("uncached"), None),
        (Row("a", policy="plan of 4 refreshes"), None),
    ],
)
def test_k_and_r_are_read_from_the_words_of_a_policy(found: Row, expected: tuple[float, float] | None) -> None:
    assert place_of(found) == expected


def test_the_frontier_is_the_record_s_and_is_numbered_as_drawn(tmp_path: Path) -> None:
    page, summary = report(tmp_path, PARETO)
    assert "The fastest way within 2% of the best quality is a." in summary
    (table,) = re.findall(r"<caption>Nothing as fast is better than these</caption>.*?</table>", page)
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["1. b", "2. a"]
    (chart,) = re.findall(r"<svg.*?</svg>", page)
    assert re.findall(r'<text class="ink"[^>]*>(\d)</text>', chart) == ["1", "2"]  # of rows a and b: the first on top


def test_claims_are_told_as_the_record_answers_them(tmp_path: Path) -> None:
    _, summary = report(tmp_path, ABLATION)
    assert "- Claim: weighting helps: not borne out." in summary
    assert "- Claim: intensity falls: cannot be said from these rows." in summary


def test_a_gate_that_failed_is_said_before_the_table(tmp_path: Path) -> None:
    page, summary = report(tmp_path, replace(BENCH, failures=("it got worse; refresh more",)))
    assert page.index("it got worse; refresh more.") < page.index("<table>", page.index('id="part-1"'))
    assert "**Failed:** it got worse; refresh more." in summary


@pytest.mark.parametrize(
    ("record", "command"),
    [
        (BENCH, "e2crf bench waves -n 64 --steps 100 --solver ddim --seed 0 --batch-size 1 --part test --rounds 3"),
        (
            replace(
                BENCH, options={"bundle": "waves", "uncached": ["a.npz", "b.npz"], "most_passes": 7, "quick": True}
            ),
            "e2crf bench waves --uncached a.npz --uncached b.npz --most-passes 7 --quick",
        ),
        (GRID, "python -m bench.grid waves-1 -K 0,3 -R 5,50"),
        (ABLATION, "python -m bench.ablation waves-1"),
        (
            replace(PARETO, options={"bundle": "my bundle", "also": ["half"], "race": {"rounds": 9, "limit_s": 0.3}}),
            "python -m bench.pareto 'my bundle' --also half --rounds 9",
        ),
        (replace(BENCH, options={"command": "make bench"}), "make bench"),
    ],
)
def test_the_command_that_repeats_a_record_is_told(tmp_path: Path, record: Record, command: str) -> None:
    page, summary = report(tmp_path, record)
    assert f'<pre class="command"><code>{escape(command)}</code></pre>' in page
    assert f"```sh\n{command}\n```" in summary


def test_records_of_any_kind_have_a_table_and_details(tmp_path: Path) -> None:
    for record in (*ALL, replace(BENCH, loss_time=None, loss_frequency=None)):
        told = markdown_of(record)
        assert told.startswith("| " + " | ".join(COLUMNS) + " |")
        assert ("Caching changes SW" in told) == (record.loss_time is not None)
        assert ("steps were not as good" in told) == (record.kind == Kind.BENCH)
    assert [column.title for column in details_of((Row("a", p99_ms_per_sample=1.0),))] == ["rival", "p99 ms"]
    assert details_of((Row("a"),)) == ()
    assert cells_of(Row("a", steps=100))[2] == ""  # not timed, so not scaled either


@pytest.mark.parametrize(
    ("value", "told"), [(1.0, "1x"), (394.6, "395x"), (999.7, "1,000x"), (1231.8, "1,230x"), (None, "")]
)
def test_speed_ups_have_three_digits(value: float | None, told: str) -> None:
    assert times(value) == told


def test_ways_are_named_as_the_bench_names_them() -> None:
    """The headline finds its rows by these words."""
    assert (Way.UNCACHED, Way.CACHED, Way.FEWER) == ("uncached", "E2-CRF", "fewer steps")
