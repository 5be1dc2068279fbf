"""Samples on disk: one `.npz` with the series and the record of the run, written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError
from runtime.sampler import Samples


def prepare_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is in the way or cannot be written, before anything is computed."""
    if path.suffix != ".npz":
        raise OptionError(f"the output must be an .npz file, found {path.name!r}; give a name such as samples.npz")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists; choose another name, or allow it to be replaced with --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)


def read_samples(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The series [n, N, C] and the facts that `write_samples` wrote; an `OptionError` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            facts: dict[str, Any] = dict(json.loads(str(stored["record"])))
            return stored["series"], facts
    except (OSError, TypeError, ValueError, KeyError, EOFError, BadZipFile) as error:  # TypeError: of .npy, no archive
        raise OptionError(f"{path} is not a file of samples ({error}); write one with `e2crf sample`") from error


def write_samples(path: Path, samples: Samples, facts: dict[str, Any]) -> None:
    """Write `series` [n, N, C], `recomputed` [T, F] and `record` (JSON text) by staging and renaming."""
    record = json.dumps(facts | {"stats": samples.stats.summary()})
    handle, stage = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, series=samples.series, recomputed=samples.stats.recomputed, record=np.array(record))
        os.chmod(stage, 0o644)
        os.replace(stage, path)
    finally:
        Path(stage).unlink(missing_ok=True)
