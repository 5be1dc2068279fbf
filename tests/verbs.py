"""The verbs of `e2crf` as tests run them: in this process, in a folder with a bundle (a file names its fixtures)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.cache.plan import Plan
from runtime.cli import main
from tests.tiny import make_bundle

ROOT = Path(__file__).parent.parent


def run(*arguments: object) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and its checkpoint, never written to."""
    folder, _ = make_bundle(tmp_path_factory.mktemp("exported"))
    return folder.parent


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that bundle in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bundle"


@pytest.fixture
def planned(bundle: Path) -> Plan:
    """The plan of that bundle, written where it is looked for."""
    digest = json.loads((bundle / "manifest.json").read_text())["source"]["digest"]
    plan = Plan(source_digest=digest, steps=20, solver="ddim", refreshes=(8, 14), surprise=(1e6, 1e6))
    plan.write(bundle / "plan.json")
    return plan


def facts_of(path: str = "samples.npz") -> dict[str, Any]:
    """The record of a file of samples."""
    with np.load(path) as file:
        return dict(json.loads(str(file["record"])))
