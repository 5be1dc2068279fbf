"""Preprocessed series beside the raw files, so that the second run of a data set starts at once.

`.e2crf-cache/<kind>-<digest of the options>.npz` holds both splits and a key: a digest of the raw files' names, sizes
and times, and of the code in this folder, so that no one has to think of the cache when a loader changes. Where the
key differs or the file cannot be read, the series are made again and replace it. Arrays of numbers are all that it
holds, and all that is ever read from it (`allow_pickle=False`). A folder without permission to write has no cache.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from train.datasets.base import Series

FOLDER = ".e2crf-cache"


def through_cache(
    folder: Path, kind: str, options: Mapping[str, object], files: Sequence[Path], make: Callable[[], Series]
) -> Series:
    """The series that `make` makes of these files by these options, or made before; the cache lies in the folder."""
    path = folder / FOLDER / f"{kind}-{_digest(options)[:16]}.npz"
    key = _digest([_code(), [_state(file) for file in files]])
    series = _load(path, key)
    if series is None:
        series = make()
        _store(path, key, series)
    return series


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _code() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _state(file: Path) -> list[object]:
    try:
        stat = file.stat()
    except OSError:  # the loader will say it better
        return [str(file)]
    return [str(file), stat.st_size, stat.st_mtime_ns]


def _load(path: Path, key: str) -> Series | None:
    """The series of this key; None if there are none, or none that can be read."""
    try:
        with path.open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            if str(stored["key"]) != key:
                return None
            arrays = stored["train"], stored["test"]
    except Exception:  # a damaged archive raises many kinds, and each means: make it again
        return None
    if any(array.dtype != np.float32 or array.ndim != 3 for array in arrays):
        return None
    return Series(*arrays)


def _store(path: Path, key: str, series: Series) -> None:
    """In one stroke; without a word where it cannot be done, since the series are there all the same."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        if not path.parent.parent.stat().st_mode & 0o222:  # which would not stop root
            return
        try:
            path.parent.mkdir(exist_ok=True)
            with staged.open("wb") as file:
                np.savez(file, key=np.array(key), train=series.train, test=series.test)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
