"""What moved between two records: nothing within noise, everything beyond it, and never apples against pears."""

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from bench.machine import describe_machine
from bench.moved import (
    HELD,
    Move,
    MovedOptions,
    Quantity,
    Verdict,
    facts_of,
    moved,
    read_old,
    setting_of,
    show_moves,
)
from bench.records import Kind, Record, RecordError, Row, read_records, write_records
from runtime.errors import OptionError

ROOT = Path(__file__).parent.parent
CACHED = "onnxruntime, E2-CRF"


def rival(name: str, ms: float, speedup: float, **more: Any) -> Row:
    """A rival whose milliseconds are sure to 5 % and whose distances are to 3 %."""
    figures: dict[str, Any] = {
        "rival": name, "steps": 1000, "solver": "ddim", "grid": "uniform", "ms_per_sample": ms,
        "low_ms_per_sample": 0.95 * ms, "high_ms_per_sample": 1.05 * ms, "p90_ms_per_sample": 1.05 * ms,
        "speedup": speedup, "passes": 4.0, "num_samples": 200, "num_diverged": 0, "sw_time": 1.0, "sw_time_low": 0.97,
        "sw_time_high": 1.03, "sw_frequency": 2.0, "sw_frequency_low": 1.94, "sw_frequency_high": 2.06,
    }  # fmt: skip
    return Row(**figures | more)


OLD = Record(
    created="2026-01-01T00:00:00+00:00",
    model={"source": {"digest": "a" * 64}},
    options={"solver": "ancestral", "steps": 1000, "batch_size": 1, "threads": None, "part": "test", "quality": {}},
    machine=replace(describe_machine(), cpu="one CPU", libraries={"numpy": "2.0"}),
    baseline=None,
    rows=(
        rival("pytorch, uncached", 4000, 1.0),
        rival("onnxruntime, uncached", 2000, 2.0),
        rival(CACHED, 10, 400, policy="plan of 4 refreshes"),
        rival("onnxruntime, fewer steps", 9, 444, steps=8, solver="dpmpp_2m"),
        Row("real series (floor)", num_samples=200, sw_time=0.5, sw_frequency=0.9),
        Row("mean sample", num_samples=1, sw_time=9.0, sw_frequency=11.0),
    ),
)


def changed(name: str = CACHED, **change: Any) -> Record:
    """The record with another row of this name."""
    return replace(OLD, rows=tuple(replace(row, **change) if row.rival == name else row for row in OLD.rows))


def move(old: Record, new: Record, quantity: Quantity, name: str = CACHED) -> Move:
    """The one move of a quantity."""
    (only,) = [one for one in moved(old, new).moves if (one.rival, one.quantity) == (name, quantity)]
    return only


def test_against_itself_nothing_moved() -> None:
    found = moved(OLD, OLD)
    assert {one.verdict for one in found.moves} == {Verdict.NOISE}
    assert {one.change for one in found.moves} == {0.0, None}  # None: none diverged
    assert {one.rival for one in found.moves} == {row.rival for row in OLD.rows[:4]}  # no yardsticks
    assert found.failures == ()


def test_the_noise_is_that_of_both_records_and_for_ratios_of_both_rivals() -> None:
    """Independent errors add as squares: 5 % twice in a ratio, and again in the other record."""
    slower = changed(ms_per_sample=20, low_ms_per_sample=19, high_ms_per_sample=21, speedup=200)
    assert move(OLD, slower, Quantity.MILLISECONDS).noise == pytest.approx(math.hypot(0.5, 1.0))
    share = math.hypot(0.05, 0.05)
    assert move(OLD, slower, Quantity.FASTER).noise == pytest.approx(share * math.hypot(400, 200))
    assert move(OLD, OLD, Quantity.SW_TIME).noise == pytest.approx(math.hypot(0.03, 0.03))


def test_a_speed_up_is_as_sure_as_its_own_interval_where_both_records_hold_one() -> None:
    """Half widths of 20 and 15 make a noise of 25; by the milliseconds, sure to 5 % each, it is 35."""
    old = changed(low_speedup=380, high_speedup=420)
    slower = changed(speedup=300, low_speedup=285, high_speedup=315)
    by_milliseconds = math.hypot(0.05, 0.05) * math.hypot(400, 300)
    assert move(old, slower, Quantity.FASTER).noise == pytest.approx(25.0)
    for low, high in ((None, None), (300, 300)):  # one round has no interval
        unsure = changed(speedup=300, low_speedup=low, high_speedup=high)
        for before, now in ((old, unsure), (OLD, slower)):
            assert move(before, now, Quantity.FASTER).noise == pytest.approx(by_milliseconds)
    just = changed(speedup=370, low_speedup=355, high_speedup=385)
    assert move(old, just, Quantity.FASTER).verdict is Verdict.WORSE
    assert move(OLD, just, Quantity.FASTER).verdict is Verdict.NOISE


@pytest.mark.parametrize(
    ("p90", "noise"),
    [(None, 1.0), (10.2, 1.0), (15.0, 5.0)],  # ms around a median of 10
)
def test_without_an_interval_times_are_taken_for_less_sure(p90: float | None, noise: float) -> None:
    old = changed(low_ms_per_sample=None, high_ms_per_sample=None, p90_ms_per_sample=p90)
    one_round = changed(low_ms_per_sample=10, high_ms_per_sample=10, p90_ms_per_sample=p90)
    for record in (old, one_round):
        assert move(record, record, Quantity.MILLISECONDS).noise == pytest.approx(noise * math.sqrt(2))


@pytest.mark.parametrize(
    ("change", "quantity", "verdict", "fails"),
    [
        ({"speedup": 380}, Quantity.FASTER, Verdict.NOISE, False),
        ({"speedup": 500}, Quantity.FASTER, Verdict.BETTER, False),
        ({"speedup": 300}, Quantity.FASTER, Verdict.WORSE, True),
        ({"ms_per_sample": 30, "low_ms_per_sample": 29, "high_ms_per_sample": 31}, Quantity.MILLISECONDS,
         Verdict.WORSE, False),
        ({"passes": 4.02}, Quantity.PASSES, Verdict.NOISE, False),
        ({"passes": 3.0}, Quantity.PASSES, Verdict.BETTER, False),
        ({"sw_time": 1.04}, Quantity.SW_TIME, Verdict.NOISE, False),
        ({"sw_time": 1.06}, Quantity.SW_TIME, Verdict.WORSE, False),  # beyond noise, within the 10 % that are allowed
        ({"sw_time": 1.2}, Quantity.SW_TIME, Verdict.WORSE, True),
        ({"sw_frequency": 2.3}, Quantity.SW_FREQUENCY, Verdict.WORSE, True),
        ({"sw_frequency": 1.5}, Quantity.SW_FREQUENCY, Verdict.BETTER, False),
        ({"num_diverged": 4}, Quantity.DIVERGED, Verdict.NOISE, False),
        ({"num_diverged": 5}, Quantity.DIVERGED, Verdict.WORSE, True),
    ],
)  # fmt: skip
def test_what_is_worse_beyond_noise_and_tolerance_fails(
    change: dict[str, Any], quantity: Quantity, verdict: Verdict, fails: bool
) -> None:
    assert move(OLD, changed(**change), quantity).verdict is verdict
    assert bool(moved(OLD, changed(**change)).failures) == fails


def test_a_wide_interval_excuses_what_a_narrow_one_does_not() -> None:
    worse = {"sw_time": 1.3, "sw_time_low": 1.27, "sw_time_high": 1.33}
    assert moved(OLD, changed(**worse)).failures
    unsure = changed(**worse | {"sw_time_low": 0.9, "sw_time_high": 1.7})
    assert move(OLD, unsure, Quantity.SW_TIME).verdict is Verdict.NOISE
    assert moved(OLD, unsure).failures == ()


@pytest.mark.parametrize("field", ["speedup", "sw_time", "sw_frequency", "num_diverged", "spectral"])
def test_a_figure_of_the_cached_row_that_is_gone_fails(field: str) -> None:
    """Nobody can say that it did not get worse; a rival may lose what it likes."""
    old = changed(spectral=1.0)
    (failure,) = moved(old, replace(old, rows=changed(**{"spectral": 1.0, field: None}).rows)).failures
    quantity = {"speedup": "faster", "sw_time": "SW time", "sw_frequency": "SW frequency", "num_diverged": "diverged",
                "spectral": "spectral distance"}[field]  # fmt: skip
    assert failure.startswith(f"{CACHED}: without {quantity}, which the record of before has")
    assert moved(OLD, changed("onnxruntime, fewer steps", **{field: None})).failures == ()


def test_a_cached_row_that_is_gone_fails() -> None:
    gone = replace(OLD, rows=tuple(row for row in OLD.rows if row.rival != CACHED))
    (failure,) = moved(OLD, gone).failures
    assert failure.startswith(f"{CACHED}: without faster, SW time, SW frequency, diverged, which")


@pytest.mark.parametrize(("field", "slack"), [("spectral", 1.0), ("autocorrelation", 0.03)])
def test_series_that_got_smoother_fail_beyond_the_slack_of_the_gate(field: str, slack: float) -> None:
    old = changed(**{field: 2.0})
    assert moved(old, changed(**{field: 2.0 + 0.99 * slack})).failures == ()
    assert len(moved(old, changed(**{field: 2.0 + 1.01 * slack})).failures) == 1


def test_the_published_policy_is_not_the_cached_row() -> None:
    """Its name ends alike, but its knobs are its own: another policy under that name is not compared."""
    name = "onnxruntime, published E2-CRF"
    old, new = (replace(OLD, rows=(*OLD.rows, rival(name, 99, 40, policy=policy))) for policy in ("R 10", "R 20"))
    assert move(old, new, Quantity.SW_TIME, name).verdict is Verdict.NOT_COMPARABLE


def test_a_failure_says_what_by_how_much_and_what_to_do() -> None:
    (failure,) = moved(OLD, changed(speedup=200)).failures
    assert failure == (
        "onnxruntime, E2-CRF: faster went from 400x to 200x (-50.0%), beyond a noise of ± 7.9% and the 10.0% that are "
        "allowed; run the bench again on a quiet machine, or find what changed between the two"
    )
    (failure,) = moved(OLD, changed(num_diverged=9)).failures
    assert failure.startswith("onnxruntime, E2-CRF: diverged went from 0 to 9, beyond a noise of ± 6; run")
    assert moved(OLD, changed(speedup=200), MovedOptions(0.6)).failures == ()


@pytest.mark.parametrize("limit", [-0.1, math.nan])
def test_a_tolerance_that_cannot_be_meant_is_an_error(limit: float) -> None:
    with pytest.raises(OptionError, match="max_regression must not be negative"):
        MovedOptions(limit)


def other(**options: Any) -> Record:
    """The record under other options, and worse in everything that is held."""
    return replace(changed(speedup=1, sw_time=9, num_diverged=99), options=OLD.options | options)


@pytest.mark.parametrize(
    ("new", "quantities", "why"),
    [
        (replace(OLD, machine=replace(OLD.machine, cpu="another")), [Quantity.MILLISECONDS], "other machine"),
        (other(threads=1), [Quantity.FASTER, Quantity.MILLISECONDS], "other number of threads"),
        (replace(OLD, rows=OLD.rows[1:]), [Quantity.FASTER], "faster than pytorch, uncached before"),
        (changed(num_samples=1000, sw_time=5), [Quantity.SW_TIME, Quantity.SW_FREQUENCY, Quantity.DIVERGED],
         "of 200 samples before, of 1000 now"),
        (other(part="train"), [Quantity.SW_TIME, Quantity.DIVERGED], "other real series, or judged otherwise"),
        (other(quality={"seed": 1}), [Quantity.SW_FREQUENCY], "other real series, or judged otherwise"),
        (changed("mean sample", sw_time=9.1), [Quantity.SW_TIME], "other real series, or judged otherwise"),
        (changed("real series (floor)", sw_frequency=1.0), [Quantity.SW_TIME], "other real series"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_says_why_and_fails_nothing(new: Record, quantities: list[Quantity], why: str) -> None:
    for quantity in quantities:
        found = move(OLD, new, quantity)
        assert found.verdict is Verdict.NOT_COMPARABLE
        assert why in found.why
        assert found.noise is None
        assert not any(quantity in failure for failure in moved(OLD, new).failures)


def test_a_yardstick_that_differs_by_rounding_is_the_same_judge() -> None:
    assert move(OLD, changed("mean sample", sw_time=9.0 * (1 + 1e-8)), Quantity.SW_TIME).verdict is Verdict.NOISE


def test_the_cached_row_is_followed_through_a_new_plan() -> None:
    found = moved(OLD, changed(steps=500, policy="plan of 3 refreshes", speedup=200))
    assert len(found.failures) == 1
    assert "onnxruntime, E2-CRF was ddim 1000 plan of 4 refreshes, and is ddim 500 plan of 3 refreshes." in found.notes


def test_another_rival_under_the_same_name_is_not_compared() -> None:
    name = "onnxruntime, fewer steps"
    found = moved(OLD, changed(name, steps=9, speedup=1, sw_time=9))
    assert found.failures == ()
    assert {one.why for one in found.moves if one.rival == name} == {"dpmpp_2m 8 before"}


def test_what_an_older_record_does_not_tell_does_not_stand_in_the_way() -> None:
    old = changed("pytorch, uncached", grid=None)
    assert move(old, changed("pytorch, uncached", policy="none", precision="fp32"), Quantity.MILLISECONDS,
                "pytorch, uncached").verdict is Verdict.NOISE  # fmt: skip


def test_rows_of_one_name_are_told_apart_by_how_they_sampled() -> None:
    rows = [rival(CACHED, 10, 400, policy=f"R {R}") for R in (10, 20)]
    old = replace(OLD, kind=Kind.GRID, rows=(OLD.rows[0], *rows))
    new = replace(old, rows=(OLD.rows[0], replace(rows[0], speedup=100), replace(rows[1], policy="R 30")))
    found = moved(old, new)
    (failure,) = found.failures
    assert failure.startswith("onnxruntime, E2-CRF, ddim 1000 R 10: faster went from 400x to 100x")
    assert "Only before: onnxruntime, E2-CRF, ddim 1000 R 20." in found.notes
    assert "Only now: onnxruntime, E2-CRF, ddim 1000 R 30." in found.notes


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (replace(OLD, kind=Kind.PARETO), "both records must be of one kind, found 'bench before and pareto now'"),
        (replace(OLD, model={"source": {"digest": "b" * 64}}), f"one model, found '{'a' * 14} before and {'b' * 14}"),
        (other(steps=200), "both records must be of one steps, found '1000 before and 200 now'"),
        (other(batch_size=64), "both records must be of one batch"),
        (other(solver="ddim"), "both records must be of one solver"),
    ],
)
def test_records_of_something_else_are_refused(new: Record, says: str, tmp_path: Path) -> None:
    write_records(tmp_path / "old.json", [OLD])
    for compare in (lambda: moved(OLD, new), lambda: read_old(tmp_path / "old.json", setting_of(new))):
        with pytest.raises(OptionError) as refused:
            compare()
        assert says in str(refused.value)


def test_of_a_history_the_last_record_counts(tmp_path: Path) -> None:
    write_records(tmp_path / "old.json", [replace(OLD, model={"source": {"digest": "b"}}), OLD])
    assert read_old(tmp_path / "old.json", setting_of(OLD)) == OLD
    (tmp_path / "empty.json").touch()
    with pytest.raises(OptionError, match=r"empty.json must hold a record, found 'none'; make one"):
        read_old(tmp_path / "empty.json", setting_of(OLD))


@pytest.mark.parametrize("model", [{}, {"source": None}, {"source": {"data": "ecg"}}])
def test_a_record_that_does_not_name_its_model_is_a_sentence(model: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match="does not name its model; run the bench again"):
        setting_of(replace(OLD, model=model))


def test_the_notes_name_other_machines_and_versions() -> None:
    new = replace(OLD, machine=replace(OLD.machine, cpu="another", libraries={"numpy": "2.1", "torch": "3"}))
    notes = moved(OLD, new).notes
    assert "Milliseconds are of one machine; what is faster is a ratio within each run." in notes
    assert "Other versions: numpy 2.0, now 2.1; torch absent, now 3." in notes


def test_the_table_is_markdown_away_from_a_terminal_with_failures_below() -> None:
    out = StringIO()
    found = moved(OLD, changed(speedup=200, sw_time=14644.0))
    show_moves(found, out)
    lines = out.getvalue().splitlines()
    assert "| onnxruntime, E2-CRF | faster | 400x | 200x | -50.0% | ± 7.9% | worse |" in lines
    assert "| onnxruntime, E2-CRF | diverged | 0 | 0 |  | ± 0 | within noise |" in lines
    assert any(line.startswith("| onnxruntime, E2-CRF | SW time | 1 | 14,600 | +14") for line in lines)
    assert lines[-3:] == [f"FAILED: {found.failures[0]}.", "", f"FAILED: {found.failures[1]}."]


def test_a_terminal_gets_a_drawn_table_with_each_rival_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    out = StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    show_moves(moved(OLD, OLD), out)
    table = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).partition("Before: ")[0]
    assert table.count("E2-CRF") == 1
    assert max(map(len, table.splitlines())) <= 100


def test_facts_are_json_and_hold_the_change() -> None:
    facts = json.loads(json.dumps(facts_of(moved(OLD, changed(speedup=200)))))
    (worse,) = [one for one in facts["moves"] if one["verdict"] == "worse"]
    assert worse | {"noise": None} == asdict(Move(CACHED, Quantity.FASTER, 400, 200, None, Verdict.WORSE)) | {
        "change": -0.5
    }
    assert len(facts["failures"]) == 1


def test_every_committed_record_stands_beside_itself() -> None:
    """The real thing: all their rivals are matched, and what may not get worse is there."""
    records = [one for path in (ROOT / "bench/results").glob("*.json") for one in read_records(path)]
    benches = [record for record in records if record.kind == Kind.BENCH]
    assert benches
    for record in benches:
        found = moved(record, record)
        assert found.failures == ()
        assert {one.verdict for one in found.moves} == {Verdict.NOISE}
        assert {one.rival for one in found.moves} == {row.rival for row in record.rows if row.steps is not None}
        assert set(HELD) <= {one.quantity for one in found.moves}


def test_the_command_compares_two_files_and_exits_with_the_verdict(tmp_path: Path) -> None:
    write_records(tmp_path / "old.json", [OLD])
    write_records(tmp_path / "new.json", [changed(speedup=200)])

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        call = [sys.executable, "-m", "bench.moved", *arguments]
        return subprocess.run(call, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)

    worse = command("old.json", "new.json")
    assert worse.returncode == 1
    assert "faster went from 400x to 200x" in worse.stderr
    assert "| onnxruntime, E2-CRF | faster |" in worse.stdout
    allowed = command("old.json", "new.json", "--max-regression", "inf", "--json")
    assert (allowed.returncode, allowed.stderr) == (0, "")
    assert json.loads(allowed.stdout)["failures"] == []
