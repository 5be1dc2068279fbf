"""Data sets made of raw files that others publish: found below the user's folder, else downloaded, else asked for.

A data set says in a `Source` which files it needs; `FileDataset` finds them and keeps what becomes of them in the
cache (`cache.py`), so that a loader is one function: from a folder of raw files to series.
"""

import os
import shutil
import sys
from abc import abstractmethod
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import ClassVar

from train.datasets.base import Dataset, Series
from train.datasets.cache import through_cache
from train.errors import DataError


@dataclass(frozen=True)
class Source:
    """Which files, where they are looked for, and where they come from."""

    title: str
    files: tuple[str, ...]  # patterns below the folder
    folders: tuple[str, ...]  # below the user's, which is looked at last; a download becomes the first
    kaggle: str | None = None  # the data set there
    how_to_get: str = ""  # where Kaggle has none

    def find(self, data_dir: str) -> Path:
        """The folder that holds all files; `DataError` names those that are missing."""
        root = Path(data_dir).expanduser()
        folders = [*(root / name for name in self.folders), root]
        missing = {folder: [pattern for pattern in self.files if not any(folder.glob(pattern))] for folder in folders}
        for folder, patterns in missing.items():
            if not patterns:
                return folder
        how_to_get = self.how_to_get
        if self.kaggle is not None:
            failure = download(self.kaggle, folders[0])
            if failure is None:
                return folders[0]
            how_to_get = f"download https://www.kaggle.com/datasets/{self.kaggle} ({failure})"
        found = ", ".join(
            f"{'none' if len(patterns) == len(self.files) else f'no {patterns[0]}'} in {folder}"
            for folder, patterns in missing.items()
        )
        raise DataError(
            f"the {self.title} data needs {' and '.join(self.files)}, found {found}; {how_to_get} into {folders[0]}, "
            "or set datamodule.data_dir to the folder that holds them"
        )

    def files_in(self, folder: Path) -> list[Path]:
        """All files of the data set, in order."""
        return [path for pattern in self.files for path in sorted(folder.glob(pattern))]


def download(name: str, folder: Path) -> str | None:
    """Download a Kaggle data set into a folder that is empty or not there yet; None, or why that cannot be done."""
    if folder.exists() and any(folder.iterdir()):
        return "not done for you, as there is something in the folder already"
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it prints a page where there is no token
            from kaggle.api.kaggle_api_extended import KaggleApi

            api = KaggleApi()
            api.authenticate()
    except ImportError:
        return "done for you with pip install 'e2crf[kaggle]' and a Kaggle token"
    except (Exception, SystemExit):  # by its version: OSError, ValueError, or exit(1)
        return "done for you with a Kaggle token, see https://www.kaggle.com/docs/api"
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        staged.mkdir(parents=True)
        print(f"downloading the Kaggle data set {name} to {folder}", file=sys.stderr)
        with redirect_stdout(sys.stderr):
            api.dataset_download_files(name, path=str(staged), unzip=True, quiet=False)
        os.replace(staged, folder)
    except (Exception, SystemExit) as error:  # of the network, of Kaggle, of the disk
        return f"tried for you, failed with: {' '.join(str(error).split()):.200}"
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return None


@dataclass(frozen=True, kw_only=True)
class FileDataset(Dataset):
    """A data set whose raw files are below `data_dir`, in a folder of its own or in `data_dir` itself."""

    source: ClassVar[Source]

    data_dir: str = "data"

    def read(self) -> Series:
        """The series, from the cache where these options have been read before."""
        folder = self.source.find(self.data_dir)
        options = {name: value for name, value in asdict(self).items() if name not in ("data_dir", "batch_size")}
        files = self.source.files_in(folder)
        return through_cache(folder, self.kind, options, files, lambda: self.preprocess(folder))

    @abstractmethod
    def preprocess(self, folder: Path) -> Series:
        """Make the series of the raw files in the folder."""
