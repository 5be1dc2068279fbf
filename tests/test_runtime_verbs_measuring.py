"""bench, report and calibrate as commands: what they print and keep, what they refuse before anything is measured."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.compare import CompareOptions
from bench.machine import describe_machine
from bench.records import Record, Row, write_records
from runtime.cache.plan import Plan, read_plan
from runtime.errors import OptionError
from runtime.output import keep_previous
from tests import verbs
from tests.commands import write_run
from tests.verbs import ROOT, facts_of, run

exported, bundle, planned = verbs.exported, verbs.bundle, verbs.planned


def test_bench_prints_a_table_and_json_last_and_keeps_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    assert run("export", "tiny") == 0
    capsys.readouterr()
    assert run("bench", "bundles/tiny", "-n", 8, "--steps", 10, "--rounds", 1, "--quick", "--out", "out") == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert "pytorch, uncached" in "".join(table)
    names = [row["rival"] for row in json.loads(last)["rows"]]
    assert names[0] == "pytorch, uncached"
    assert {"onnxruntime, uncached", "onnxruntime, E2-CRF", "onnxruntime, fewer steps"} <= set(names)
    assert {"table.md", "e2crf.npz", "uncached.npz", "series.png", "recomputed.png", "spectrum.png"} <= {
        path.name for path in Path("out").iterdir()
    }
    assert Path("bundles/tiny/reports/bench.json").is_file()


def bench_record(bundle: Path, **cached: Any) -> Record:
    """A record as `bench` with 10 steps makes it of a bundle, with these figures in its cached row."""
    digest = json.loads((bundle / "manifest.json").read_text())["source"]["digest"]
    first = Row("onnxruntime, uncached", steps=10, ms_per_sample=100, speedup=1)
    row = Row("onnxruntime, E2-CRF", steps=10, ms_per_sample=10, num_samples=8, sw_time_low=0.98, sw_time_high=1.02)
    return Record(
        created="2026-01-01T00:00:00+00:00",
        model={"source": {"digest": digest}},
        options={"steps": 10, "solver": "ancestral", "batch_size": 1},
        machine=describe_machine(),
        baseline=None,
        rows=(first, replace(row, **{"speedup": 10, "sw_time": 1} | cached)),
    )


@pytest.fixture
def benched(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Benches of that bundle: each writes the next of these records where a bench does, instead of measuring."""
    records: list[Record] = []

    def compare(options: Any, progress: object) -> SimpleNamespace:
        previous = keep_previous(path := options.bundle / "reports/bench.json")
        write_records(path, [records[0]])
        return SimpleNamespace(record=records.pop(0), previous=previous)

    monkeypatch.setattr("bench.compare.compare", compare)
    return records


BENCH = ["bench", "bundle", "--model", "tiny.ckpt", "--steps", "10"]


def test_bench_is_compared_with_the_very_file_that_it_writes(
    bundle: Path, benched: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    old = bundle / "reports/bench.json"
    benched += [bench_record(bundle), bench_record(bundle), bench_record(bundle, speedup=5)]
    assert run(*BENCH, "--compare", old) == 2  # there is none yet
    assert run(*BENCH) == 0
    assert run(*BENCH, "--compare", old) == 0
    capsys.readouterr()
    assert run(*BENCH, "--compare", old) == 1
    printed = capsys.readouterr()
    assert "| onnxruntime, E2-CRF | faster | 10x | 5x | -50.0% |" in printed.out
    assert json.loads(printed.out.splitlines()[-1])["rows"][1]["speedup"] == 5  # the record comes last
    assert "faster went from 10x to 5x" in " ".join(printed.err.split())


def test_bench_says_where_it_kept_the_record_that_it_replaced(
    bundle: Path, benched: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    benched += [bench_record(bundle), bench_record(bundle, speedup=5)]
    assert run(*BENCH) == 0
    assert capsys.readouterr().err == ""
    assert run(*BENCH, "--json") == 0
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    assert json.loads(line)["rows"][1]["speedup"] == 5
    kept = "bundle/reports/previous/bench.json"
    assert printed.err == f"bundle/reports/bench.json was replaced; what it held before is kept as {kept}\n"
    benched += [bench_record(bundle)] * 2
    assert run(*BENCH, "--compare", kept) == 0  # 10x as then, not the 5x of the last one
    assert run(*BENCH, "--compare", "bundle/reports/previous/bench-2.json") == 0
    assert "| 5x | 10x | +100.0% |" in capsys.readouterr().out


def test_a_terminal_is_told_where_the_record_is_instead_of_its_json(
    bundle: Path, benched: list[Record], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benched += [bench_record(bundle)] * 3
    monkeypatch.setattr("bench.report.write_results", lambda found, out: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(*BENCH, "--out", "out") == 0
    *table, record, kept = capsys.readouterr().out.splitlines()
    assert any("onnxruntime, E2-CRF" in line for line in table)
    assert (record, kept) == ("record: bundle/reports/bench.json", "table, samples and pictures: out")
    assert run(*BENCH) == 0
    assert capsys.readouterr().out.splitlines()[-1] == record
    assert run(*BENCH, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["kind"] == "bench"


def test_what_may_get_worse_is_an_option_and_json_is_one_line(
    bundle: Path, benched: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(Path("old.json"), [bench_record(bundle)])
    benched += [bench_record(bundle, sw_time=1.5)] * 2
    assert run(*BENCH, "--compare", "old.json", "--max-regression", "0.6") == 0
    capsys.readouterr()
    assert run(*BENCH, "--compare", "old.json", "--max-regression", "0.4", "--json") == 1
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["record"]["rows"][1]["sw_time"] == 1.5
    assert [move["change"] for move in found["moves"] if move["verdict"] == "worse"] == [0.5]
    assert "SW time went from 1 to 1.5" in found["failures"][0]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda line: "", "old.json must hold a record"),
        (lambda line: line[:40], "line 1 of old.json is not a record"),
        (lambda line: line.replace('"schema": 2', '"schema": 1'), "has schema 1, this version reads schema 2"),
        (lambda line: line.replace('"kind": "bench"', '"kind": "pareto"'), "both records must be of one kind"),
        (lambda line: line.replace('"digest": "', '"digest": "f'), "both records must be of one model"),
        (lambda line: line.replace('"steps": 10, "solver"', '"steps": 20, "solver"'), "must be of one steps"),
        (lambda line: line.replace('"batch_size": 1', '"batch_size": 64'), "must be of one batch"),
    ],
)
def test_an_old_record_that_cannot_be_compared_costs_no_bench(
    bundle: Path, benched: list[Record], capsys: pytest.CaptureFixture[str], spoil: Any, says: str
) -> None:
    line = bench_record(bundle).to_line()
    assert spoil(line) != line
    Path("old.json").write_text(spoil(line))
    assert run(*BENCH, "--compare", "old.json") == 2  # `benched` has no record to give
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (bundle / "reports").exists()


def test_uncached_samples_may_stand_in_several_files(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[tuple[Path, ...]]()

    def compare(options: CompareOptions, progress: object) -> None:
        given.append(options.uncached)
        raise OptionError("enough was heard")

    monkeypatch.setattr("bench.compare.compare", compare)
    assert run(*BENCH, "--uncached", "a.npz", "--uncached", "b.npz") == run(*BENCH) == 2
    assert given == [(Path("a.npz"), Path("b.npz")), ()]


def test_a_tolerance_below_0_costs_no_bench(bundle: Path, benched: list[Record]) -> None:
    assert run(*BENCH, "--max-regression", "-1") == 2


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """What `report` was asked to write, which it does not."""
    asked: list[tuple[list[str], Path]] = []

    def write_report(paths: Sequence[Path], out: Path) -> list[Path]:
        asked.append((list(map(str, paths)), out))
        return [out / "index.html"]

    monkeypatch.setitem(sys.modules, "bench.page", SimpleNamespace(write_report=write_report))
    return asked


def test_report_takes_what_is_named_or_all_records_that_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reported: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("report") == 2
    assert "records must be named, or lie in bench/results or bundles" in " ".join(capsys.readouterr().err.split())
    Path("bundles").mkdir()
    assert run("report", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"records": ["bundles"], "written": ["report/index.html"]}
    Path("bench/results").mkdir(parents=True)
    assert run("report") == 0
    assert run("report", "one.json", "bundles/x", "--out", "page") == 0
    assert reported == [
        (["bundles"], Path("report")),
        (["bench/results", "bundles"], Path("report")),
        (["one.json", "bundles/x"], Path("page")),
    ]


def test_report_writes_a_page_of_real_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", ROOT / "bench/results", "--out", tmp_path / "page") == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written
    assert all(path.is_file() and path.parent == tmp_path / "page" for path in written)


def test_calibrate_writes_a_plan_and_sample_takes_it(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quick = ["--quick", "--minutes", 0.0001, "--budget", 5, "--threads", 1]
    before = {path.name for path in bundle.iterdir()}
    assert run("calibrate", "bundle", "--steps", 40, *quick, "--json") == 0
    (line,) = capfd.readouterr().out.splitlines()
    result = json.loads(line)
    plan = read_plan(bundle / "plan.json")
    assert result["plan"] == "bundle/plan.json"
    assert result["measured"] == plan.measured
    assert (plan.measured["met"], plan.steps, plan.solver) == (True, 40, "ddim")
    assert {path.name for path in bundle.iterdir()} == before | {"plan.json"}
    assert run("sample", "bundle", "-n", 3) == 0
    facts = facts_of()
    assert (facts["steps"], facts["solver"], facts["grid"]) == (40, "ddim", "uniform")
    assert facts["cache"]["refreshes"] == list(plan.refreshes)
    assert "measured" not in facts["cache"]
    assert facts["stats"]["num_steps"] == 40
    assert facts["stats"]["passes"] >= len(plan.refreshes)


def test_calibrate_takes_several_solvers_and_steps_and_another_file(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    several = ["--steps", "20, 40", "--solver", "ddim, ancestral", "--grid", "quadratic"]
    assert run("calibrate", "bundle", *several, "--minutes", 0.0001, "--budget", 5, "--out", "other.json") == 0
    said = capfd.readouterr().out
    plan = read_plan(Path("other.json"))
    assert not (bundle / "plan.json").exists()
    assert plan.measured["passes"] == 1
    assert said.startswith(f"other.json: 1 pass for {plan.steps} {plan.solver} steps, refreshes at {plan.refreshes}")
    assert plan.grid == "quadratic"
    assert run("sample", "bundle", "-n", 2, "--plan", "other.json") == 0
    assert facts_of()["steps"] == plan.steps


def test_calibrate_is_judged_by_the_series_of_the_run_where_they_are_and_says_where_not(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    real = Path("lightning_logs/tiny/reference.npz")
    real.parent.mkdir(parents=True)
    series = np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32)
    np.savez(real, train=series[:20], test=series[20:])
    quick = ["--steps", 20, "--minutes", 0.0001, "--budget", 9]
    assert run("calibrate", "bundle", *quick) == 0
    by_real = read_plan(bundle / "plan.json")
    assert by_real.measured["judges"] == "20 real series"
    assert capfd.readouterr().err == ""
    real.unlink()
    assert run("calibrate", "bundle", *quick, "--json") == 0
    assert read_plan(bundle / "plan.json").measured["judges"] == "the model's own series"
    printed = capfd.readouterr()
    assert json.loads(printed.out)["plan"] == "bundle/plan.json"
    assert printed.err.splitlines() == [
        "warning: no real series of the run were found here, so the model's own samples judge; name real ones with "
        "--reference",
        "bundle/plan.json was replaced; what it held before is kept as bundle/previous/plan.json",
    ]
    assert read_plan(bundle / "previous/plan.json") == by_real


def test_a_budget_that_no_plan_meets_writes_nothing_and_says_what_to_do(
    bundle: Path, planned: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    measured = {"met": False, "passes": 2.0, "over_bar_held_out": 0.031, "time_was_up_after_refreshes": None}
    closest = replace(planned, measured=measured)
    asked: list[Any] = []
    monkeypatch.setattr("bench.calibrate.calibrate", lambda options, progress: asked.append(options) or closest)
    before = (bundle / "plan.json").read_text()
    assert run("calibrate", "bundle", "--budget", 0) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    said = " ".join(printed.err.split())
    assert "no plan of those tried keeps sliced Wasserstein within 0.0%" in said
    assert "the closest is off by 3.1%: 2 passes for 20 ddim steps, refreshes at (8, 14); nothing was written" in said
    assert "nothing was written: name real series with --reference, allow a larger --budget, or train longer" in said
    assert run("calibrate", "bundle", "--out", "other.json", "--json", "--quick", "--minutes", 10) == 1
    assert [options.minutes for options in asked] == [12.0, 2.0]
    assert json.loads(capfd.readouterr().out) == {"plan": None, "measured": closest.measured}
    assert (bundle / "plan.json").read_text() == before
    assert not Path("other.json").exists()
    assert not (bundle / "previous").exists()
    Path("real.npz").touch()  # not even looked at
    assert run("calibrate", "bundle", "--budget", 0, "--reference", "real.npz") == 1
    printed = capfd.readouterr()
    assert "nothing was written: allow a larger --budget, or train longer" in " ".join(printed.err.split())
    assert "warning" not in printed.err
