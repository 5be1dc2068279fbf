"""One training run, from overrides to the best checkpoint.

`train` is for programs, `main` for the command line; the rest of the room is called from here, in the order
in which a run happens: config, folder, data, network, fit.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from omegaconf import DictConfig

from train.checkpoint import KEY, ModelFacts, agree
from train.config import TrainOptions, compose_config, help_text, options_from_config, resumed_config
from train.data import Tokens, tokens_from_series
from train.errors import ConfigError, DataError, InterruptedRun, RunError, TrainError
from train.fit import fit, trainer_from_options
from train.folder import RunFolder, new_run_id
from train.module import Optimisation, ScoreModule

USAGE = """Train a score network on a set of time series.

Example: e2crf train datamodule=ucr datamodule.name=GunPoint trainer.max_epochs=10
The same: python -m train datamodule=ucr datamodule.name=GunPoint trainer.max_epochs=10

Every key of the config below can be overridden by its name. The path of the best checkpoint is printed last;
`e2crf train --json ...` prints one line of JSON and nothing else, the path as `checkpoint`.
Ctrl-C stops a run; `run_id=<run> resume=true` continues it.
Overrides beside --help show their config: e2crf train --help datamodule=csv
"""


def train(overrides: Sequence[str] = ()) -> Path:
    """Train by Hydra overrides such as `["datamodule=ucr", "trainer.max_epochs=10"]`; the best checkpoint.

    Says on stderr what was read. Raises a `TrainError` whose text is meant for the user. Sets the global random state
    of torch.
    """
    config, options, folder = _open_run(overrides)
    series = options.dataset.read()
    tokens = tokens_from_series(
        series, fourier_transform=options.run.fourier_transform, standardize=options.run.standardize
    )
    facts = _facts(options, tokens, folder.run_id)
    epochs_done = _epochs_done(folder, facts)
    if epochs_done > options.trainer.max_epochs:
        raise ConfigError(
            f"trainer.max_epochs counts from the start of a run, found {options.trainer.max_epochs} for {folder.path}, "
            f"which has {epochs_done} epochs; give more than {epochs_done}"
        )
    module = _module(options, tokens, facts)
    trainer = trainer_from_options(options, folder)
    print(f"read {_described(tokens)}", file=sys.stderr)
    try:
        with folder.held():
            folder.write(config, series)
            return fit(trainer, module, tokens, options.dataset.batch_size, folder, epochs_done)
    except KeyboardInterrupt as stop:
        kept = f"{folder.last} holds the last finished epoch" if folder.last.is_file() else "no epoch was finished"
        raise InterruptedRun(f"training was interrupted, {kept}; continue with {folder.how_to_resume}") from stop


def _open_run(overrides: Sequence[str]) -> tuple[DictConfig, TrainOptions, RunFolder]:
    """The config of a new run, or of the one to resume, and its folder; nothing is written yet."""
    config = compose_config(overrides)
    options = options_from_config(config)
    run = options.run
    if run.resume and run.run_id is None:
        raise RunError("resume=true must know which run, found no run_id; add run_id=<name of its folder>")
    folder = RunFolder(Path(run.log_dir) / (run.run_id or new_run_id(options.dataset.label)))
    if run.resume:
        config = resumed_config(overrides, folder.stored_config())
        options = options_from_config(config)
    else:
        folder.require_new()
    config.run_id, config.resume = folder.run_id, False
    return config, options, folder


def _described(tokens: Tokens) -> str:
    """How many series there are, and how large."""
    counts = f"{len(tokens.train)} + {len(tokens.test)} series (train + held out)"
    steps, channels = (
        f"{number} {word}{'' if number == 1 else 's'}"
        for number, word in ((tokens.num_tokens, "step"), (tokens.num_channels, "channel"))
    )
    return f"{counts} of {steps}, {channels}"


def _facts(options: TrainOptions, tokens: Tokens, run_id: str) -> ModelFacts:
    return ModelFacts(
        network=options.score_model.network(tokens.num_tokens, tokens.num_channels),
        process=options.noise_scheduler.process(),
        domain="frequency" if options.run.fourier_transform else "time",
        feature_mean=torch.from_numpy(tokens.mean),
        feature_std=torch.from_numpy(tokens.std),
        data=options.dataset.label,
        run_id=run_id,
    )


def _epochs_done(folder: RunFolder, facts: ModelFacts) -> int:
    """How many epochs `last.ckpt` holds, 0 if there is none; raise if it was trained on other data."""
    if not folder.last.is_file():
        return 0
    found, epoch = _read_last(folder.last)
    if not agree(found, facts.to_dict()):
        raise DataError(
            f"{folder.last} must be resumed on its own data, found data of another mean, std or shape; "
            "set datamodule.data_dir to what the run was started with, or start a new run"
        )
    return epoch + 1


def _read_last(path: Path) -> tuple[Any, int]:
    """The facts and the epoch in a checkpoint of ours."""
    try:
        if not is_zipfile(path):  # on other bytes torch.load may raise anything
            raise RuntimeError("not a zip archive")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint[KEY], int(checkpoint["epoch"])
    except Exception as error:  # of a damaged archive, too
        raise RunError(
            f"{path} must be a whole checkpoint of this tool, found one that cannot be read; "
            "put a copy of the run's best checkpoint there, or start a new run"
        ) from error


def _module(options: TrainOptions, tokens: Tokens, facts: ModelFacts) -> ScoreModule:
    steps_per_epoch = -(-len(tokens.train) // options.dataset.batch_size)
    optimisation = Optimisation(
        num_steps=steps_per_epoch * options.trainer.max_epochs,
        lr_max=options.score_model.lr_max,
        weighting=options.score_model.weighting,
        energy_weighting=options.score_model.energy_weighting,
    )
    torch.manual_seed(options.run.random_seed)  # the initial weights
    return ScoreModule(facts, optimisation, torch.from_numpy(tokens.noise_shape), options.run.random_seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code: 0 done, 1 the run failed, 2 wrong use or bad data, 130 Ctrl-C."""
    overrides = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if (helps := {"-h", "--help"}) & set(overrides):
            print(USAGE, help_text([word for word in overrides if word not in helps]), sep="\n", end="")
            return 0
        print(os.path.relpath(train(overrides)))
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted before training began; nothing was written", file=sys.stderr)
        return 130
    return 0
