"""What the folder of a training run tells a reader: data, network, how long, how well; no torch.

    run = read_run(Path("lightning_logs/ecg-1f3a9c02"))
    run.epochs, run.best_val_loss

`metrics.csv` and `train_config.yaml` are written by the train room. What is missing, cut off or of another
tool is left out: these facts are for people, and nothing depends on them. PyYAML reads the config and comes
with the train extra; without it the facts of the config are left out too.
"""

import csv
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.csv"
CONFIG_FILE = "train_config.yaml"


@dataclass(frozen=True)
class Run:
    """The facts of a run; None where they are not known."""

    run_id: str
    data: str | None = None  # e.g. "ucr/GunPoint"
    backbone: str | None = None
    epochs: int | None = None  # that were finished
    steps: int | None = None  # of the optimiser
    best_val_loss: float | None = None
    best_epoch: int | None = None  # counted from 0, as in the names of checkpoints
    train_loss: float | None = None  # of the last epoch
    written: str | None = None  # UTC, of its newest checkpoint
    config: dict[str, Any] = field(default_factory=dict)  # as it was resolved


def read_run(folder: Path) -> Run:
    """The facts of the run in a folder; a folder that is none gives a record that knows nothing."""
    config = _config(folder / CONFIG_FILE)
    rows = _rows(folder / METRICS_FILE)
    validated = [(row["val/loss"], row["epoch"]) for row in rows if {"val/loss", "epoch"} <= row.keys()]
    best_loss, best_epoch = min(validated, default=(None, None))
    trained = [row["train/loss"] for row in rows if "train/loss" in row]
    return Run(
        run_id=folder.name,
        data=_data(_group(config, "datamodule")),
        backbone=_kind(_group(config, "score_model")),
        epochs=_count(rows, "epoch"),
        steps=_count(rows, "step"),
        best_val_loss=best_loss,
        best_epoch=None if best_epoch is None else int(best_epoch),
        train_loss=trained[-1] if trained else None,
        written=_written(folder),
        config=config,
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        from yaml import YAMLError, safe_load  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return {}
    try:
        value = safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _group(config: dict[str, Any], name: str) -> dict[str, Any]:
    group = config.get(name)
    return group if isinstance(group, dict) else {}


def _kind(group: dict[str, Any]) -> str | None:
    """What a group of the config is; the last word of `_target_` in a run of FourierDiffusion."""
    kind = group.get("kind") or str(group.get("_target_", "")).rpartition(".")[2]
    return str(kind) if kind else None


def _data(group: dict[str, Any]) -> str | None:
    parts = [_kind(group), group.get("name") or group.get("subdataset")]
    return "/".join(str(part) for part in parts if part) or None


def _rows(path: Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`, each with the cells that hold a finite number."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_numbers(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error):
        return []


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, cell in row.items():
        try:
            number = float(cell)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found[name] = number
    return found


def _count(rows: list[dict[str, float]], name: str) -> int | None:
    """How many there were of what is counted from 0."""
    values = [row[name] for row in rows if name in row]
    return int(max(values)) + 1 if values else None


def _written(folder: Path) -> str | None:
    times = [file.stat().st_mtime for file in folder.glob("checkpoints/*.ckpt")]
    return datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M") if times else None
