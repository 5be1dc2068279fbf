"""Lightning's part of a run: the trainer, its callbacks and logger, and its many words turned off.

Two checkpoints are kept at the end of every epoch: the best by validation loss, and `last.ckpt` to resume from
(a `save_last` of one `ModelCheckpoint` would only follow the best). An interrupted epoch is repeated on resume.
"""

import csv
import logging
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from train.averaging import WarmedUpEMA
from train.config import TrainOptions
from train.data import Tokens, test_batches, train_batches
from train.folder import RunFolder
from train.module import ScoreModule

CHATTER = (  # hints that do not apply: the data is in memory, the folder is ours, the interval is the epoch
    "The '.*_dataloader' does not have many workers",
    "Experiment logs directory .* exists",
    "Checkpoint directory .* exists",
    "The number of training batches .* is smaller than the logging interval",
    ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning 2.6 against torch 2.13
)


def fit(
    module: ScoreModule, tokens: Tokens, options: TrainOptions, folder: RunFolder, *, epochs_done: int
) -> Path:
    """Train to the end and return the best checkpoint; with `epochs_done`, from `last.ckpt` on."""
    best = ModelCheckpoint(
        folder.checkpoints,
        filename="epoch={epoch:03d}-val_loss={val/loss:.3e}",
        monitor="val/loss",
        auto_insert_metric_name=False,
        save_on_train_epoch_end=True,
    )
    with quiet_lightning():
        trainer = _trainer(options, folder, best, epochs_done)
        _run(
            trainer,
            module,
            tokens,
            options,
            folder.last if epochs_done else None,
        )
    return folder.checkpoints / Path(best.best_model_path).name


def _trainer(options: TrainOptions, folder: RunFolder, best: ModelCheckpoint, epochs_done: int) -> Trainer:
    last = ModelCheckpoint(
        folder.checkpoints,
        filename=folder.last.stem,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )
    callbacks: list[Callback] = [LearningRateMonitor(logging_interval="epoch"), best, last]
    if options.run.ema is not None:
        callbacks.append(WarmedUpEMA(options.run.ema))
    if on_terminal := sys.stdout.isatty():
        callbacks.append(RichProgressBar())
    return Trainer(
        accelerator=options.trainer.accelerator,
        devices=1,
        max_epochs=options.trainer.max_epochs,
        gradient_clip_val=options.trainer.gradient_clip_val,
        logger=_metrics_log(folder, epochs_done),
        callbacks=callbacks,
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _metrics_log(folder: RunFolder, epochs_done: int) -> CSVLogger:
    """A log of one row per epoch, which keeps the rows of the epochs that are done."""
    rows: list[dict[str, str]] = []
    if folder.metrics.is_file():
        with folder.metrics.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if float(row.get("epoch") or 0) < epochs_done]
    logger = CSVLogger(folder.path.parent, name="", version=folder.run_id, flush_logs_every_n_steps=1)
    logger.experiment.metrics.extend(rows)
    return logger


def _run(
    trainer: Trainer, module: ScoreModule, tokens: Tokens, options: TrainOptions, checkpoint: Path | None
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    batch_size = options.dataset.batch_size
    try:
        trainer.fit(
            module,
            train_batches(tokens, batch_size, options.run.random_seed),
            test_batches(tokens, batch_size),
            ckpt_path=checkpoint,
            weights_only=True,
        )
    except SystemExit as stop:  # Lightning's answer to Ctrl-C, after it has turned the signal off
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from stop


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
