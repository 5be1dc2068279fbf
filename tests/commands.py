"""What the tests of commands that judge a model share: a run with real series, and the command in this process."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.quality import QualityOptions
from runtime.command import run_as_command
from tests.tiny import write_checkpoint

QUICK = QualityOptions(num_directions=40, num_resamples=4, interval_directions=4)
REAL = np.random.default_rng(0).standard_normal((40, 15, 2)).astype(np.float32)


def write_run(folder: Path) -> None:
    """The run `tiny` in a working folder, with the real series it was trained on."""
    write_checkpoint(folder / "lightning_logs/tiny/checkpoints/last.ckpt")
    np.savez(folder / "lightning_logs/tiny/reference.npz", train=REAL[:20], test=REAL[20:])


def run(main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of a module's command."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as stop:
        run_as_command(main)
    return int(stop.value.code or 0)
