"""Where losses go: always to metrics.csv, and to Weights & Biases where somebody asks for it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.errors import ConfigError
from train.run import train

TINY = ["datamodule=synthetic", "datamodule.max_len=9", "datamodule.num_samples=64", "score_model=mlp",
        "score_model.d_model=8", "score_model.d_mlp=8", "score_model.num_layers=1", "trainer.max_epochs=2",
        "trainer.accelerator=cpu"]  # fmt: skip


def test_wandb_offline_keeps_a_run_of_its_own_beside_metrics_csv(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    words = [*TINY, f"log_dir={tmp_path}", "run_id=one", "logger=wandb"]
    done = subprocess.run(  # in a process of its own: wandb leaves threads and services behind
        [sys.executable, "-m", "train", *words],
        env=os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "one" / "wandb").glob("offline-run-*/run-one.wandb"))
    with (tmp_path / "one" / "metrics.csv").open(newline="") as file:
        assert len([row for row in csv.DictReader(file) if row["val/loss"]]) == 2


def test_without_wandb_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(ConfigError, match="pip install wandb"):
        train([*TINY, f"log_dir={tmp_path}", "logger=wandb"])
    assert list(tmp_path.iterdir()) == []


def test_wandb_without_a_login_is_a_sentence_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")

    def init(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(
        ConfigError, match=r"found: No API key configured. Use .*; run `wandb login`, set WANDB_MODE=of"
    ):
        train([*TINY, f"log_dir={tmp_path}", "run_id=one", "logger=wandb"])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="logger must be one of csv, wandb, found 'tensorboard'"):
        train([*TINY, f"log_dir={tmp_path}", "logger=tensorboard"])
