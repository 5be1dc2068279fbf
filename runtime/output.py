"""Samples on disk: one `.npz` with the series and the record of the run, written whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError
from runtime.sampler import Samples

PREVIOUS = "previous"  # folder of what was replaced


def json_of(value: Any) -> str:
    """A value in one line of strict JSON: a number that is infinite or none at all stands as its word."""
    return json.dumps(_in_words(value), allow_nan=False)


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _in_words(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_in_words(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def prepare_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is in the way or cannot be written, before anything is computed."""
    if path.suffix != ".npz":
        raise OptionError(f"the output must be an .npz file, found {path.name!r}; give a name such as samples.npz")
    if path.is_file() and not overwrite:
        raise OptionError(f"{path} exists; choose another name, or allow it to be replaced with --overwrite")
    require_writable(path)


def require_writable(path: Path) -> None:
    """Make the folder of a file that is to be written later; an `OSError` where it cannot be written there."""
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, stage = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    Path(stage).unlink()


def free_name(path: Path) -> Path:
    """The path, or with a number where a file has it already: a.npz, a-2.npz, a-3.npz."""
    names = chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))
    return next(name for name in names if not name.exists())


def keep_previous(path: Path) -> Path | None:
    """Copy a file that is about to be replaced into `previous/` beside it, under a free name; None if there is none.

    A copy, so that the file is there until the new one has its name. Who reads all records of a folder does not
    meet it, since it lies in a folder of its own.
    """
    if not path.is_file():
        return None
    folder = path.parent / PREVIOUS
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy2(path, free_name(folder / path.name)))


def read_samples(path: Path) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The series [n, N, C] and the facts that `write_samples` wrote; an `OptionError` for anything else."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            facts: dict[str, Any] = dict(json.loads(str(stored["record"])))
            return stored["series"], facts
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}; name a file of `e2crf sample`") from error
    except Exception as error:  # on other bytes NumPy may raise anything
        raise OptionError(f"{path} is not a whole file of samples; write one with `e2crf sample`") from error


def write_samples(path: Path, samples: Samples, facts: dict[str, Any]) -> None:
    """Write `series` [n, N, C], `recomputed` [T, F] and `record` (JSON text) by staging and renaming."""
    record = json_of(facts | {"stats": samples.stats.summary()})
    handle, stage = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, series=samples.series, recomputed=samples.stats.recomputed, record=np.array(record))
        os.chmod(stage, 0o644)
        os.replace(stage, path)
    finally:
        Path(stage).unlink(missing_ok=True)
