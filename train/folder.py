"""The folder of a run: what lies where, and who may write it.

    lightning_logs/<run_id>/train_config.yaml    the resolved config
                            reference.npz        train and test series [n, N, C], time domain, data units
                            metrics.csv          losses and learning rate by epoch
                            checkpoints/         the best checkpoint by validation loss, and last.ckpt

A folder belongs to one run: made when training starts, continued by `resume=true`, and overwritten only where the run
ended before its first checkpoint.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from train.datasets import Series
from train.errors import RunError

CONFIG_FILE = "train_config.yaml"
REFERENCE_FILE = "reference.npz"
_LOCK_FILE = ".lock"


def new_run_id(data: str) -> str:
    """A name for a run on this data that no other run has, e.g. ucr-GunPoint-1f3a9c02."""
    return f"{data.replace('/', '-')}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps its files."""

    path: Path

    @property
    def run_id(self) -> str:
        """The name of the run."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from, written after every epoch."""
        return self.checkpoints / "last.ckpt"

    @property
    def metrics(self) -> Path:
        """The losses by epoch."""
        return self.path / "metrics.csv"

    @property
    def how_to_resume(self) -> str:
        """The overrides that continue the run."""
        return f"log_dir={self.path.parent} run_id={self.run_id} resume=true"

    def require_new(self) -> None:
        """Raise if the folder holds a checkpoint, or anything that is not of a run."""
        if self.path.exists() and not self._is_without_checkpoint():
            raise RunError(
                f"a run must have its own folder, found {self.path} in use; "
                f"choose another run_id, or continue that run with {self.how_to_resume}"
            )

    def _is_without_checkpoint(self) -> bool:
        """Whether this is all that a run leaves which ended before its first checkpoint."""
        files = (CONFIG_FILE, REFERENCE_FILE)
        known = {*files, *map(_staged, files), self.metrics.name, self.checkpoints.name, "wandb", _LOCK_FILE}
        is_run = self.path.is_dir() and {path.name for path in self.path.iterdir()} <= known
        return is_run and not any(self.checkpoints.glob("*"))

    def stored_config(self) -> DictConfig:
        """The config a run was started with; raise if there is no such run."""
        file = self.path / CONFIG_FILE
        if not file.is_file():
            raise RunError(
                f"resume=true continues a run, found none at {self.path} ({CONFIG_FILE} is missing); "
                "check run_id and log_dir, or leave resume out to start it"
            )
        try:
            config = OmegaConf.load(file)
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
            problem = str(error).splitlines()[0]
            raise RunError(f"{file} must be the config of a run, found {problem:.80}; restore it") from error
        if not (isinstance(config, DictConfig) and {"datamodule", "score_model", "trainer"} <= config.keys()):
            raise RunError(f"{file} must be the config of a run, found parts of it missing; restore it")
        return config

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made where there is none, for this process alone; raise if another one trains there."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK_FILE)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"a run is trained by one process at a time, found another one at work in {self.path}; "
                "wait for it, or choose another run_id"
            ) from error
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody else's can be removed
            lock.release()

    def write(self, config: DictConfig, series: Series) -> None:
        """Store what the run was made from, each file in one stroke."""
        staged = self.path / _staged(CONFIG_FILE)
        OmegaConf.save(config, staged)
        os.replace(staged, self.path / CONFIG_FILE)
        staged = self.path / _staged(REFERENCE_FILE)
        np.savez(staged, train=series.train, test=series.test)
        os.replace(staged, self.path / REFERENCE_FILE)


def _staged(name: str) -> str:
    """What a file is called until it is whole."""
    return f".{name}"
