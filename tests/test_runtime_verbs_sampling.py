"""sample as a command: plans, presets and knobs, and nothing lost by Ctrl-C, a full disk or a second run."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.cache.plan import Plan
from runtime.cache.state import Trajectory
from runtime.command import warnings_in_words
from runtime.errors import CacheWarning
from tests import verbs
from tests.tiny import make_bundle
from tests.verbs import ROOT, facts_of, run

exported, bundle, planned = verbs.exported, verbs.bundle, verbs.planned


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


def test_samples_are_not_overwritten_without_permission(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("samples.npz").write_text("precious")
    assert run("sample", bundle, "--steps", 3) == 2
    assert "samples.npz exists" in capfd.readouterr().err
    assert Path("samples.npz").read_text() == "precious"
    assert run("sample", bundle, "--steps", 3, "--overwrite") == 0


def test_a_full_disk_is_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "samples.npz")

    monkeypatch.setattr(np, "savez", full)
    assert run("sample", bundle, "--steps", 3) == 1
    assert "cannot write or read samples.npz: No space left on device; nothing was replaced" in capfd.readouterr().err
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["bundle", "tiny.ckpt"]


@pytest.mark.parametrize(("option", "says"), [("--batch-size", "batch_size must be"), ("-n", "the number of samples")])
def test_what_cannot_be_meant_is_a_sentence_on_a_terminal_too(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, says: str
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert run("sample", bundle, option, 0, "--steps", 5) == 2
    assert says in capsys.readouterr().err


def test_the_fake_backend_serves_the_command_and_says_what_it_is(
    bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", bundle, "-n", 3, "--steps", 10, "--backend", "fake") == 0
    assert "backend fake stands in for the network" in " ".join(capfd.readouterr().err.split())
    assert (facts_of()["backend"], facts_of()["precision"]) == ("fake", "fp32")


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
