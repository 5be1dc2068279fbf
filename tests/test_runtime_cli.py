"""The command line: every command told, one sentence for every wrong use, and the whole line in a row."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

from runtime.cache.plan import Plan, read_plan
from runtime.cli import app, main
from tests import verbs
from tests.tiny import write_checkpoint
from tests.verbs import ROOT, run

exported, bundle, planned = verbs.exported, verbs.bundle, verbs.planned
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


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
        (["export", "tiny.ckpt", "--data", "datamodule='ecg"], "must be overrides as of a shell, found"),
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
