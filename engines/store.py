"""The engines of a bundle on disk: `<bundle>/engines/<key>/`, each whole or not there.

    engine.trt     the engine, plain bytes that any TensorRT tool opens
    engine.json    what it was made of, its size and its SHA-256

An engine is a cache entry: anyone may delete the folder, and whatever does not hold against its own record is
named, never loaded, and built again. Engines are written into a hidden folder and renamed; a process that is
killed leaves at most such a hidden folder, which the next one that writes removes. One lock file keeps writers
apart; the system releases it when its owner dies.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineError
from engines.key import Ingredients
from export.manifest import ManifestError, record_from_json

ENGINES_FOLDER = "engines"
ENGINE_FILE, RECORD_FILE = "engine.trt", "engine.json"


@dataclass(frozen=True)
class Record:
    """What `engine.json` says."""

    ingredients: Ingredients
    digest: str  # SHA-256 of engine.trt
    size: int  # bytes
    seconds: float  # that building took
    precision: str = "?"  # of the graph's products; older records do not tell


@dataclass(frozen=True)
class Entry:
    """One engine of a store: its record, or what is wrong with it."""

    key: str
    record: Record | None
    fault: str = ""


class Store:
    """The engines of one bundle."""

    def __init__(self, bundle: Path) -> None:
        self.folder = bundle / ENGINES_FOLDER

    def entries(self) -> list[Entry]:
        """Every engine there, whole or not, by key."""
        if not self.folder.is_dir():
            return []
        found = (self.find(path.name) for path in sorted(self.folder.iterdir()) if not path.name.startswith("."))
        return [entry for entry in found if entry is not None]

    def find(self, key: str) -> Entry | None:
        """The engine of a key, held against its record byte by byte; None if there is nothing."""
        folder = self.folder / key
        if not folder.exists() and not folder.is_symlink():
            return None
        try:
            value = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
            record = record_from_json(Record, value, RECORD_FILE)
            with (folder / ENGINE_FILE).open("rb") as file:
                size, digest = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError, RecursionError, ManifestError) as error:
            return Entry(key, None, f"cannot be read ({error})")
        if record.ingredients.key != key:
            return Entry(key, None, f"belongs to {record.ingredients.key}")
        if size != record.size:
            return Entry(key, None, f"is truncated: {size:,} of {record.size:,} bytes")
        if digest != record.digest:
            return Entry(key, None, f"is another engine: its SHA-256 is {digest[:12]}..., not {record.digest[:12]}...")
        return Entry(key, record)

    def read(self, key: str) -> bytes:
        """The bytes of a whole engine."""
        entry = self.find(key)
        if entry is None or entry.record is None:
            fault = "is not there" if entry is None else entry.fault
            raise EngineError(f"engine {key} in {self.folder} {fault}; build it with `e2crf build`")
        return (self.folder / key / ENGINE_FILE).read_bytes()

    def write(self, ingredients: Ingredients, engine: bytes, seconds: float, precision: str = "?") -> Record:
        """Keep an engine under its key, in place of whatever was there; the lock must be held."""
        record = Record(ingredients, hashlib.sha256(engine).hexdigest(), len(engine), round(seconds, 3), precision)
        stage = Path(tempfile.mkdtemp(prefix=".stage-", dir=self.folder))
        try:
            (stage / ENGINE_FILE).write_bytes(engine)
            text = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
            (stage / RECORD_FILE).write_text(text, encoding="utf-8")
            stage.chmod(0o755)  # mkdtemp makes private folders
            self._remove(self.folder / ingredients.key)
            os.replace(stage, self.folder / ingredients.key)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        return record

    @contextmanager
    def lock(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Hold the store for writing; waits for another builder, and sweeps up what a killed one left."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tell("another builder is at work here, waiting for it")
                lock.acquire()
        except OSError as error:
            raise EngineError(
                f"engines are kept in {self.folder}, and it cannot be written ({error.strerror or error}); "
                "make it writable, or copy the bundle to a place that is"
            ) from error
        try:
            for left in self.folder.glob(".stage-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    def _remove(self, folder: Path) -> None:
        """Take a damaged engine away; renamed first, so that nobody finds half of it."""
        if not folder.exists() and not folder.is_symlink():
            return
        left = Path(tempfile.mkdtemp(prefix=".stage-", dir=self.folder))
        os.replace(folder, left / folder.name)
        shutil.rmtree(left, ignore_errors=True)
