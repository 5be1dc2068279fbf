"""The command line: one sentence for every wrong use, nothing lost, and the whole line without ONNX Runtime's help."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer

from runtime.cli import app, main
from tests.tiny import make_bundle, write_checkpoint

ROOT = Path(__file__).parent.parent
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def run(*arguments: object) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    folder, _ = make_bundle(tmp_path)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_one_example_and_json(name: str) -> None:
    command = COMMANDS[name]
    assert command.help is not None
    assert command.help.count(f"e2crf {name}") >= 1
    assert "Example:" in command.help
    assert any("--json" in option.opts for option in command.params)


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
    assert run("bench", "bundles/tiny", "-n", 8, "--steps", 10, "--rounds", 1, "--out", "out") == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert "pytorch, uncached" in "".join(table)
    names = [row["rival"] for row in json.loads(last)["rows"]]
    assert names[:3] == ["pytorch, uncached", "onnxruntime, uncached", "onnxruntime, E2-CRF"]
    assert {"table.md", "e2crf.npz", "uncached.npz", "series.png", "recomputed.png", "spectrum.png"} <= {
        path.name for path in Path("out").iterdir()
    }
    assert Path("bundles/tiny/reports/bench.json").is_file()


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
        (["sample", "bundle", "--solver", "rk4"], "known ones are euler_maruyama, ancestral"),
        (["sample", "bundle", "--policy", "sometimes"], "known ones are never, interval"),
        (["sample", "bundle", "--backend", "onnx"], "known ones are onnxruntime, fake"),
        (["sample", "bundle", "--device", "cuda"], "runs on the cpu only"),
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
    monkeypatch.setattr("runtime.cli._EXTRAS", {"export": "export"})
    assert run("verify", bundle) == 2
    assert "pip install 'e2crf[export]'" in capfd.readouterr().err


def test_a_bug_keeps_its_traceback(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.cli.load", lambda *args, **options: 1 / 0)
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
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
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
