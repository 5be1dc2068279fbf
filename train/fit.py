"""Lightning's part of a run: the trainer, its callbacks and logger, and its many words turned off.

Two checkpoints are kept at the end of every epoch: the best by validation loss, and `last.ckpt` to resume
from (`save_last` of a single `ModelCheckpoint` would only follow the best). Resuming repeats an epoch that
was interrupted, from its start, and keeps the best that there was: a bundle may have been made from it.
"""

import csv
import logging
import math
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from train.averaging import WarmedUpEMA
from train.config import TrainOptions
from train.data import Tokens, training_batches, validation_batches
from train.errors import ConfigError
from train.folder import RunFolder
from train.module import ScoreModule

CHATTER = (  # hints that do not apply: the data is in memory, the folder is ours, the interval is the epoch
    "The '.*_dataloader' does not have many workers",
    "Experiment logs directory .* exists",
    "Checkpoint directory .* exists",
    "The number of training batches .* is smaller than the logging interval",
    ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning 2.6 against torch 2.13
)


class Progress(RichProgressBar):  # type: ignore[misc]  # mypy takes Lightning's classes for Any
    """A bar per epoch on stderr, with the losses in a format that shows them."""

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".2e"), console_kwargs={"stderr": True})

    def get_metrics(self, *args: Any) -> dict[str, Any]:
        """Lightning's metrics without the version number of its logger."""
        return {name: value for name, value in super().get_metrics(*args).items() if name != "v_num"}


class BestCheckpoint(ModelCheckpoint):  # type: ignore[misc]  # mypy takes Lightning's classes for Any
    """The best checkpoint by validation loss; those that were there before are never deleted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            filename="epoch={epoch:03d}-val_loss={val/loss:.3e}",
            monitor="val/loss",
            auto_insert_metric_name=False,
            save_on_train_epoch_end=True,
        )
        self.earlier = {path.name for path in folder.glob("*.ckpt")}

    @property
    def state_key(self) -> str:
        """Lightning's own, under which checkpoints of older versions have it."""
        return str(super().state_key).replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the validation loss of an epoch that has one."""
        if (trainer.current_epoch + 1) % trainer.check_val_every_n_epoch == 0:
            super().on_train_epoch_end(trainer, pl_module)

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        if Path(filepath).name not in self.earlier:
            super()._remove_checkpoint(trainer, filepath)


def trainer_from_options(options: TrainOptions, folder: RunFolder) -> Trainer:
    """The trainer of a run; an impossible device or logger is refused, and only the logger may write yet."""
    best = BestCheckpoint(folder.checkpoints)
    last = ModelCheckpoint(
        folder.checkpoints,
        filename=folder.last.stem,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    callbacks: list[Callback] = [best, last]  # in this order: last.ckpt remembers which one is the best
    if options.run.ema is not None:
        callbacks.append(WarmedUpEMA(options.run.ema))
    if on_terminal := sys.stderr.isatty():
        callbacks.append(Progress())
    try:
        with quiet_lightning():
            trainer = Trainer(
                accelerator=options.trainer.accelerator,
                devices=1,
                max_epochs=options.trainer.max_epochs,
                check_val_every_n_epoch=options.trainer.check_val_every_n_epoch,
                gradient_clip_val=options.trainer.gradient_clip_val,
                precision=options.trainer.precision,
                logger=_loggers(options.run.logger, folder),
                callbacks=callbacks,
                enable_progress_bar=on_terminal,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
    except (MisconfigurationException, ValueError) as error:  # no such device, or no such word
        raise ConfigError(
            f"trainer.accelerator={options.trainer.accelerator} cannot be used, Lightning says: "
            f"{str(error).rstrip('.')}; leave it at auto"
        ) from error
    _open(trainer.loggers)
    return trainer


def _open(loggers: list[Logger]) -> None:
    """Let Weights & Biases begin its run: without a login or a network it cannot."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            try:
                _ = logger.experiment
            except Exception as error:  # of its own kinds, which are not known where it is not installed
                told = " ".join(str(error).split()).rstrip(".")
                raise ConfigError(
                    f"logger=wandb must reach Weights & Biases, found: {told:.200}; "
                    "run `wandb login`, set WANDB_MODE=offline, or leave logger at csv"
                ) from error


def _loggers(word: str, folder: RunFolder) -> list[Logger]:
    """The CSV file that every run keeps, first, and what was asked for beside it."""
    loggers: list[Logger] = [CSVLogger(folder.path.parent, "", folder.run_id, flush_logs_every_n_steps=1)]
    if word == "wandb":
        try:
            loggers.append(WandbLogger(folder.run_id, folder.path, project="e2crf", id=folder.run_id))
        except ModuleNotFoundError as error:
            raise ConfigError(
                "logger=wandb needs the package wandb, found none installed; install it with `pip install wandb`, or "
                "leave logger at csv"
            ) from error
    return loggers


def fit(
    trainer: Trainer, module: ScoreModule, tokens: Tokens, batch_size: int, folder: RunFolder, epochs_done: int
) -> Path:
    """Train to the end and return the best checkpoint; with `epochs_done`, from `last.ckpt` on.

    Ctrl-C raises KeyboardInterrupt, after Lightning has closed its files.
    """
    with quiet_lightning(), ctrl_c():
        _keep_metrics(trainer.logger, folder, epochs_done)
        trainer.fit(
            module,
            training_batches(tokens, batch_size, module.seed),
            validation_batches(tokens, batch_size),
            ckpt_path=folder.last if epochs_done else None,
            weights_only=True,
        )
    best = Path(trainer.checkpoint_callback.best_model_path)
    return folder.checkpoints / (best.name or folder.last.name)  # a finished run that was moved forgets its best


def _keep_metrics(logger: CSVLogger, folder: RunFolder, epochs_done: int) -> None:
    """Hand the rows of the epochs that are done to the logger, which starts by deleting the file."""
    rows: list[dict[str, str]] = []
    if folder.metrics.is_file():
        with folder.metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if _epoch(row) < epochs_done]
    logger.experiment.metrics.extend(rows)
    logger.save()


def _epoch(row: dict[str, str]) -> float:
    """The epoch of a row; infinite for one that was cut off in writing."""
    epoch = row.get("epoch") or ""
    return int(epoch) if epoch.isdigit() else math.inf


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning without banners, tips and hints; its warnings about real trouble stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in CHATTER:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def ctrl_c() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt again: Lightning answers it by SystemExit and turns the signal off."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
