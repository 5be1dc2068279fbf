"""The command line: one sentence for every wrong use, nothing lost, and the whole line without ONNX Runtime's help."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from bench.compare import CompareOptions
from bench.machine import describe_machine
from bench.records import Record, Row, write_records
from runtime.cache.plan import Plan, read_plan
from runtime.cache.state import Trajectory
from runtime.cli import app, main
from runtime.command import warnings_in_words
from runtime.errors import CacheWarning, OptionError
from tests.tiny import make_bundle, write_checkpoint

ROOT = Path(__file__).parent.parent
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def run(*arguments: object) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and its checkpoint, never written to."""
    folder, _ = make_bundle(tmp_path_factory.mktemp("exported"))
    return folder.parent


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that bundle in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bundle"


@pytest.fixture
def planned(bundle: Path) -> Plan:
    """The plan of that bundle, written where it is looked for."""
    digest = json.loads((bundle / "manifest.json").read_text())["source"]["digest"]
    plan = Plan(source_digest=digest, steps=20, solver="ddim", refreshes=(8, 14), surprise=(1e6, 1e6))
    plan.write(bundle / "plan.json")
    return plan


def facts_of(path: str = "samples.npz") -> dict[str, Any]:
    """The record of a file of samples."""
    with np.load(path) as file:
        return dict(json.loads(str(file["record"])))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_one_example_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    printed = capsys.readouterr().out
    (example,) = [text.strip() for text in printed.split("\n\n") if "Example:" in text]
    assert example.startswith(f"Example: e2crf {name}")
    assert example.count("e2crf ") == 1
    assert "--json" in printed


def test_help_of_train_beats_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--json", "--help") == 0
    assert "Example: e2crf train" in capsys.readouterr().out


def test_the_command_line_alone_shows_its_commands_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Usage: ")
    assert all(f"  {name} " in printed for name in COMMANDS)
    assert printed.splitlines()[-1].startswith("See `")
    assert "error" not in printed


def test_every_command_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"e2crf {name}" not in readme] == []


def test_export_verify_sample_inspect_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "lightning_logs/tiny/checkpoints/last.ckpt")
    assert run("export", "latest") == 0
    assert (tmp_path / "bundles/tiny/manifest.json").is_file()
    assert run("verify", "bundles/tiny") == 0
    assert run("sample", "bundles/tiny", "-n", 5, "--steps", 9, "--seed", 3) == 0
    assert run("inspect") == 0
    assert "tiny" in capsys.readouterr().out
    with np.load("samples.npz") as file:
        assert file["series"].shape == (5, 15, 2)
        assert file["recomputed"].shape == (9, 8)
        record = json.loads(str(file["record"]))
    assert record["seed"] == 3
    assert record["stats"]["num_samples"] == 5


def test_train_passes_overrides_on_and_names_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["score_model.d_model=12", "score_model.n_head=3", "score_model.num_layers=1", "score_model.d_ff=8"]
    data = ["datamodule=synthetic", "datamodule.num_samples=16", "datamodule.max_len=9", "trainer.max_epochs=1"]
    assert run("train", "--json", *data, *small, "run_id=tiny") == 0
    checkpoint = Path(json.loads(capfd.readouterr().out.splitlines()[-1])["checkpoint"])
    assert checkpoint.is_file()
    assert run("train", *data, *small, "run_id=tiny") == 2  # the run is there
    assert run("train", "--json", "datamodule=nothing") == 2
    assert "Traceback" not in capfd.readouterr().err
    assert run("export", "tiny") == 0


def test_bench_prints_a_table_and_json_last_and_keeps_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "lightning_logs/tiny/checkpoints/last.ckpt")
    series = np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32)
    np.savez(tmp_path / "lightning_logs/tiny/reference.npz", train=series[:20], test=series[20:])
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
        write_records(bundle / "reports/bench.json", [records[0]])
        return SimpleNamespace(record=records.pop(0))

    monkeypatch.setattr("bench.compare.compare", compare)
    monkeypatch.setattr("bench.report.show", lambda record: print(record.to_line()))
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
    assert said.startswith(f"other.json: {plan.measured['passes']:.4g} passes for {plan.steps} {plan.solver} steps")
    assert plan.grid == "quadratic"
    assert run("sample", "bundle", "-n", 2, "--plan", "other.json") == 0
    assert facts_of()["steps"] == plan.steps


def test_calibrate_is_judged_by_the_series_of_the_run_where_they_are(bundle: Path) -> None:
    real = Path("lightning_logs/tiny/reference.npz")
    real.parent.mkdir(parents=True)
    series = np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32)
    np.savez(real, train=series[:20], test=series[20:])
    quick = ["--steps", 20, "--minutes", 0.0001, "--budget", 9]
    assert run("calibrate", "bundle", *quick) == 0
    assert read_plan(bundle / "plan.json").measured["judges"] == "20 real series"
    real.unlink()
    assert run("calibrate", "bundle", *quick) == 0
    assert read_plan(bundle / "plan.json").measured["judges"] == "the model's own series"


def test_a_budget_that_no_plan_meets_writes_nothing_and_says_what_to_do(
    bundle: Path, planned: Plan, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    closest = replace(planned, measured={"met": False, "passes": 2.0})
    asked: list[Any] = []
    monkeypatch.setattr("bench.calibrate.calibrate", lambda options, progress: asked.append(options) or closest)
    before = (bundle / "plan.json").read_text()
    assert run("calibrate", "bundle", "--budget", 0) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    said = " ".join(printed.err.split())
    assert "no plan of those tried keeps sliced Wasserstein within 0.0%" in said
    assert "nothing was written: allow a larger --budget, or train longer" in said
    assert run("calibrate", "bundle", "--out", "other.json", "--json", "--quick", "--minutes", 10) == 1
    assert [options.minutes for options in asked] == [12.0, 2.0]
    assert json.loads(capfd.readouterr().out) == {"plan": None, "measured": closest.measured}
    assert (bundle / "plan.json").read_text() == before
    assert not Path("other.json").exists()


def test_sample_without_options_is_the_plan_of_the_bundle(bundle: Path, planned: Plan) -> None:
    assert run("sample", "bundle", "-n", 3) == 0
    facts = facts_of()
    assert (facts["steps"], facts["solver"]) == (20, "ddim")
    assert facts["cache"]["refreshes"] == [8, 14]
    assert facts["stats"]["passes"] == 2


def test_uncached_and_plainer_caches_work_beside_a_plan(bundle: Path, planned: Plan) -> None:
    assert run("sample", "bundle", "-n", 2, "--steps", 9, "--uncached") == 0
    facts = facts_of()
    assert (facts["steps"], facts["solver"], facts["cache"]) == (9, "ancestral", None)
    assert facts["stats"]["passes"] == 9
    assert run("sample", "bundle", "-n", 2, "--steps", 60, "--overwrite", "--R", 7, "--K", 2) == 0
    facts = facts_of()
    assert (facts["cache"]["policy"], facts["cache"]["R"], facts["cache"]["K"]) == ("interval", 7, 2)
    Path("bundle/plan.json").write_text("{}")  # not even looked at
    assert run("sample", "bundle", "-n", 2, "--steps", 9, "--overwrite", "--uncached") == 0


def test_a_preset_takes_knobs(bundle: Path, planned: Plan) -> None:
    assert run("sample", "bundle", "-n", 2, "--steps", 30, "--preset", "readme", "--K", 3) == 0
    facts = facts_of()
    found = {name: facts["cache"][name] for name in ("policy", "reuse", "K", "R", "tau_0")}
    assert found == {"policy": "e2crf", "reuse": "feature", "K": 3, "R": 10, "tau_0": 0.1}
    assert facts["stats"]["events_per_sample"]["first"] == 1
    assert facts["stats"]["tokens_by_reason_per_sample"]["low"] == 5 * facts["stats"]["events_per_sample"]["chosen"]


def test_a_plan_file_can_be_named(bundle: Path, planned: Plan) -> None:
    replace(planned, refreshes=(10,), surprise=()).write(Path("other.json"))
    assert run("sample", "bundle", "-n", 2, "--plan", "other.json") == 0
    assert facts_of()["cache"]["refreshes"] == [10]


def test_warnings_of_the_cache_are_sentences_each_said_once(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("sample", "bundle", "-n", 4, "--batch-size", 2, "--steps", 30, "--R", 1) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert printed.count("warning: the cache never reused anything") == 1
    assert "raise R" in printed
    assert "CacheWarning" not in printed
    assert run("sample", "bundle", "-n", 4, "--steps", 30, "--R", 8, "--overwrite") == 0
    assert "warning" not in capfd.readouterr().err
    with warnings_in_words():
        for message in ("twice", "once", "twice"):
            warnings.warn(message, CacheWarning, stacklevel=1)
    assert capfd.readouterr().err.splitlines() == ["warning: twice", "warning: once"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "bundle", "--steps", "30"], "the plan is for steps 20, found steps 30; calibrate for these"),
        (["sample", "bundle", "--solver", "ancestral"], "the plan is for solver ddim, found solver ancestral"),
        (["sample", "bundle", "--grid", "logsnr"], "the plan is for time grid uniform, found time grid logsnr"),
        (["sample", "bundle", "--plan", "gone.json"], "no plan at gone.json; make one with `e2crf calibrate`"),
        (["sample", "bundle", "--plan", "foreign.json"], "the plan is for checkpoint ffffffffffff"),
        (["sample", "bundle", "--plan", "broken.json"], "broken.json is not a plan"),
        (["sample", "bundle", "--plan", "foreign.json", "--uncached"], "found '--uncached and --plan'"),
        (["sample", "bundle", "--plan", "foreign.json", "--K", "2"], "found '--plan and --preset or its knobs'"),
        (["sample", "bundle", "--uncached", "--preset", "paper"], "found '--uncached and --preset or its knobs'"),
        (["sample", "bundle", "--preset", "nonsense"], "known ones are readme, paper, paper-best"),
        (["sample", "bundle", "--preset", "paper", "--low-every", "2"], "low_every belongs to policy interval"),
        (["sample", "bundle", "--policy", "interval", "--tau-0", "0.1"], "tau_0 belongs to policy e2crf"),
        (["calibrate", "bundle", "--steps", "abc"], "--steps must be whole numbers with commas between, found 'abc'"),
        (["calibrate", "bundle", "--steps", "20,,30"], "--steps must be whole numbers"),
        (["calibrate", "bundle", "--steps", "5"], "steps must be at least 10"),
        (["calibrate", "bundle", "--solver", "rk4"], "known ones are euler_maruyama, ancestral"),
        (["calibrate", "bundle", "--solver", ""], "unknown solver ''"),
        (["calibrate", "bundle", "--grid", "cubic"], "unknown time grid 'cubic'"),
        (["calibrate", "bundle", "--budget", "-1"], "the budget must lie in [0, 10), found -1"),
        (["calibrate", "bundle", "--budget", "nan"], "found nan"),
        (["calibrate", "bundle", "--minutes", "0", "--quick"], "minutes must be positive"),
        (["calibrate", "bundle", "--reference", "gone.npz", "--minutes", "0.0001", "--steps", "10"], "no file gone"),
        (["calibrate", "gone"], "no bundle at gone"),
    ],
)
def test_wrong_use_of_plans_is_a_sentence_and_exit_code_2(
    bundle: Path, planned: Plan, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    replace(planned, source_digest="f" * 64).write(Path("foreign.json"))
    Path("broken.json").write_text("{")
    before = sorted(path.name for path in bundle.parent.iterdir())
    assert run(*arguments) == 2
    printed = capfd.readouterr()
    assert says in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(path.name for path in bundle.parent.iterdir()) == before
    assert read_plan(bundle / "plan.json") == planned


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"schema": 2', '"schema": 99'),
        lambda text: text.replace('"refreshes"', '"refresh"'),
        lambda text: text.replace('"steps": 20', '"steps": 3'),
        lambda text: text.replace('"solver": "ddim"', '"solver": "rk4"'),
        lambda text: text.replace("1000000.0", '"much"'),
        lambda text: text.replace("1000000.0", "NaN"),
        lambda text: text.replace('"guard": 4.0', '"guard": null'),
        lambda text: text.replace('"steps": 20', '"steps": 20.5'),
        lambda text: text.replace(" 8,", ' "8",'),
        lambda text: text.replace(" 8,", " null,"),
        lambda text: text.replace('"K": 0', '"K": "x"'),
        lambda text: text.replace('"solver": "ddim"', '"solver": 7'),
        lambda text: text.replace('"solver": "ddim"', '"solver": []'),
    ],
)
def test_a_broken_plan_of_the_bundle_is_one_sentence(
    bundle: Path, planned: Plan, capfd: pytest.CaptureFixture[str], spoil: Any
) -> None:
    text = (bundle / "plan.json").read_text()
    assert spoil(text) != text
    (bundle / "plan.json").write_text(spoil(text))
    assert run("sample", "bundle", "-n", 2) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("error: ") == 1
    assert "plan.json" in said
    assert "run `e2crf calibrate` again, or remove the file" in said
    assert not Path("samples.npz").exists()


@pytest.mark.parametrize(
    "command", [["doctor"], ["inspect"], ["inspect", "bundle"], ["verify", "bundle", "--model", "tiny.ckpt"]]
)
def test_json_is_one_line(bundle: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run(*command, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sample", "gone"], "no bundle at gone"),
        (["sample", "gone", "--out", "new/samples.npz"], "no bundle at gone"),
        (["bench", "gone"], "no bundle at gone"),
        (["calibrate", "gone", "--out", "new/plan.json"], "no bundle at gone"),
        (["build", "gone"], "no bundle at gone"),
        (["push", "gone", "file:new/gone"], "error: no bundle at gone"),
        (["sample", "bundle", "--solver", "rk4"], "known ones are euler_maruyama, ancestral"),
        (["sample", "bundle", "--policy", "sometimes"], "known ones are never, interval"),
        (["sample", "bundle", "--backend", "onnx"], "known ones are onnxruntime, tensorrt"),
        (["sample", "bundle", "--backend", "fake", "--device", "cuda"], "runs on the cpu only"),
        (["sample", "bundle", "--steps", "0"], "steps must be at least 1"),
        (["sample", "bundle", "-n", "-1"], "number of samples must be at least 1"),
        (["sample", "bundle", "--K", "99"], "K must not exceed"),
        (["sample", "bundle", "--uncached", "--R", "3"], "a cache can be named in one way only"),
        (["sample", "bundle", "--out", "samples.csv"], "must be an .npz file"),
        (["sample", "bundle", "--stepz", "3"], "No such option"),
        (["sample"], "Missing argument"),
        (["export", "nothing"], "no checkpoint 'nothing'"),
        (["verify", "bundle"], "no checkpoint 'tiny'"),
        (["inspect", "gone"], "no bundle at gone"),
        (["dance"], "No such command"),
    ],
)
def test_wrong_use_is_a_sentence_and_exit_code_2(
    bundle: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    before = sorted(path.name for path in bundle.parent.iterdir())
    assert run(*arguments) == 2
    printed = capfd.readouterr()
    assert says in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(path.name for path in bundle.parent.iterdir()) == before


def test_samples_are_not_overwritten_without_permission(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("samples.npz").write_text("precious")
    assert run("sample", bundle, "--steps", 3) == 2
    assert "samples.npz exists" in capfd.readouterr().err
    assert Path("samples.npz").read_text() == "precious"
    assert run("sample", bundle, "--steps", 3, "--overwrite") == 0


def test_verify_refuses_another_checkpoint(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(bundle.parent / "other.ckpt", seed=3)
    assert run("verify", bundle, "--model", "other.ckpt") == 2
    assert "is not what bundle was made from" in capfd.readouterr().err.replace(f"{bundle.parent}/", "")


def test_a_failed_check_exits_1(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import export.verify

    strict = export.verify.Tolerances(part=1e-12)
    monkeypatch.setattr(export.verify, "Tolerances", lambda: strict)
    assert run("verify", bundle, "--model", "tiny.ckpt") == 1
    assert "differs from PyTorch" in capfd.readouterr().err


def test_a_full_disk_is_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "samples.npz")

    monkeypatch.setattr(np, "savez", full)
    assert run("sample", bundle, "--steps", 3) == 1
    assert "cannot write or read samples.npz: No space left on device; nothing was replaced" in capfd.readouterr().err
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "tiny.ckpt"]


def test_ctrl_c_during_export_leaves_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.bundle.verify_bundle", interrupted)
    assert run("export", "tiny.ckpt", "--bundle", "second") == 130
    assert "stopped" in capfd.readouterr().err
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "tiny.ckpt"]


def test_a_missing_package_names_its_extra(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "export.verify", None)
    monkeypatch.setattr("runtime.command._EXTRAS", {"export": "export"})
    assert run("verify", bundle) == 2
    assert "pip install 'e2crf[export]'" in capfd.readouterr().err


def test_without_torch_train_names_the_extra_that_has_all_it_needs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("train", "lightning")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run("train", "datamodule=synthetic") == 2
    assert "pip install 'e2crf[train]'" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.verbs.sampling.load", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["sample", str(bundle)])


def test_the_fake_backend_serves_the_command(bundle: Path) -> None:
    assert run("sample", bundle, "-n", 3, "--steps", 10, "--backend", "fake") == 0


def test_ctrl_c_while_sampling_keeps_finished_batches_and_says_how_to_go_on(bundle: Path) -> None:
    """A real signal to a real process; the rest drawn with --first-sample completes the run."""
    command = [sys.executable, "-m", "runtime.cli", "sample", str(bundle), "-n", "100000", "--batch-size", "5"]
    process = subprocess.Popen(
        [*command, "--steps", "30"], stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    time.sleep(8)  # until some batches are finished, on a busy machine too
    process.send_signal(signal.SIGINT)
    try:
        _, printed = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert "samples.partial-0.npz" in printed
    with np.load("samples.partial-0.npz") as file:
        count = len(file["series"])
        last = file["series"][-1]
    assert f"--first-sample {count}" in printed
    assert not Path("samples.npz").exists()
    assert run("sample", bundle, "-n", 1, "--first-sample", count - 1, "--steps", 30) == 0
    with np.load("samples.npz") as file:
        np.testing.assert_allclose(file["series"][0], last, atol=1e-4 * np.abs(last).max())


def test_what_was_kept_of_one_run_is_not_replaced_by_the_next(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same Ctrl-C twice, in the second of four batches."""
    real, batches = Trajectory.__init__, []

    def begin(*arguments: Any, **options: Any) -> None:
        batches.append(1)
        if len(batches) % 2 == 0:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(Trajectory, "__init__", begin)
    for seed in (0, 9):
        assert run("sample", bundle, "-n", 20, "--batch-size", 5, "--steps", 10, "--R", 2, "--seed", seed) == 130
    kept = []
    for name in ("samples.partial-0.npz", "samples.partial-0-2.npz"):
        with np.load(name) as file:
            kept.append(json.loads(str(file["record"]))["seed"])
    assert kept == [0, 9]


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "-n", "2", "--steps", "10", "--out", "folder.npz", "--overwrite"),
        ("calibrate", "--out", "folder.npz"),
        ("bench", "--model", "tiny.ckpt", "--out", "taken"),
        ("calibrate", "--seed", "-1"),
    ],
)
def test_what_cannot_be_written_or_meant_is_said_before_anything_runs(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    def too_late(*_: object, **__: object) -> None:
        pytest.fail("something ran")

    Path("folder.npz").mkdir()
    Path("taken").write_text("")
    monkeypatch.setattr("runtime.sampler.Model.sample", too_late)
    assert run(words[0], bundle, *words[1:]) in (1, 2)
    assert capsys.readouterr().err.startswith("error: ")


def test_too_little_memory_is_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 9.8 TiB")

    monkeypatch.setattr("runtime.sampler.Model.sample", full)
    assert run("sample", bundle, "-n", 2) == 1
    assert capsys.readouterr().err.startswith("error: not enough memory: Unable to allocate 9.8 TiB; take a smaller")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from Linux's /proc")
def test_sampling_at_the_published_size_stays_under_600_mb(tmp_path: Path) -> None:
    """Peak resident memory of a process that loads and samples 3.2 M parameters, N 187, batch 1."""
    folder, _ = make_bundle(
        tmp_path, num_tokens=187, num_channels=1, d_model=72, num_heads=12, num_layers=10, d_ff=2048
    )
    code = f"""
import runtime
with runtime.load({str(folder)!r}) as model:
    stats = model.sample(1, steps=100).stats
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0], stats.cache_bytes)
"""
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    peak_kib, cache_bytes = map(int, printed.split())
    assert peak_kib < 600 * 1024
    assert cache_bytes == 10 * 2 * 187 * 72 * 4
