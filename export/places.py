"""Where runs and bundles lie, what `latest` means, and how a finished folder gets its name; no torch.

    lightning_logs/<run_id>/checkpoints/*.ckpt      runs, written by the train room
    bundles/<name>/manifest.json                    bundles

    find_bundle("bundles/ecg"), find_bundle("ecg"), find_bundle("latest")     # all of them folders

The newest run is the one whose checkpoints were written last, the newest bundle the one whose manifest was.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.manifest import MANIFEST_FILE, ManifestError, read_manifest

RUNS, BUNDLES = Path("lightning_logs"), Path("bundles")
LATEST = "latest"
# What says nothing true of another model.
_OF_THE_MODEL = (MANIFEST_FILE, "onnx", "plan.json", "reports", "previous", "README.md")


def runs_in(folder: Path = RUNS) -> list[Path]:
    """The folders of the runs that have a checkpoint, newest first."""
    return _newest_first(folder, "checkpoints/*.ckpt")


def bundles_in(folder: Path = BUNDLES) -> list[Path]:
    """The folders of the bundles, newest first."""
    return _newest_first(folder, MANIFEST_FILE)


def _newest_first(folder: Path, pattern: str) -> list[Path]:
    written: dict[Path, float] = {}
    for file in folder.glob(f"*/{pattern}"):
        place = folder / file.relative_to(folder).parts[0]
        if not place.name.startswith("."):  # a stage that somebody is writing
            written[place] = max(written.get(place, 0.0), file.stat().st_mtime)
    return sorted(written, key=written.__getitem__, reverse=True)


def find_bundle(name: str | Path) -> Path:
    """The folder of a bundle: itself, one of this name under `bundles`, or `latest`, the newest of those.

    A name that is none of them comes back as it is, for `read_manifest` to say what is missing.
    """
    path = Path(name)
    if (path / MANIFEST_FILE).is_file():
        return path
    if str(path) == LATEST:
        if not (known := bundles_in()):
            raise ManifestError(
                f"latest is the newest bundle under {BUNDLES}, found none; make one with `e2crf export latest`"
            )
        return known[0]
    return BUNDLES / path if (BUNDLES / path / MANIFEST_FILE).is_file() else path


def real_series(run_id: str | None) -> Path | None:
    """The file of the real series that a run was trained and tested on, None where it is not here."""
    path = RUNS / str(run_id) / "reference.npz"
    return path if path.is_file() else None


@contextmanager
def staged(bundle: Path) -> Iterator[Path]:
    """A hidden folder beside `bundle` that takes its name when the block ends well; otherwise nothing is left.

    A folder that had the name makes way. What it holds and the new one does not bring is moved over, but for the
    plan, reports and card of another model; the rest is removed. Until the new folder has the name, nothing of the
    old one is touched, and if it does not get it, the old one has it again. A block that removes the stage leaves
    it all. A `ManifestError` for the folder that this process is in, or one around it: it cannot make way.
    """
    here = Path.cwd()
    if bundle.resolve() in (here, *here.parents):
        raise ManifestError(
            f"a bundle must lie in a folder of its own, found {bundle}, which this is run from; "
            "name another one, or run it from elsewhere"
        )
    bundle = bundle.resolve() if bundle.is_symlink() else bundle  # the folder makes way, not what points at it
    bundle.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", dir=bundle.parent))
    try:
        yield stage
        if not stage.exists():
            return
        stage.chmod(0o755)  # mkdtemp makes private folders
        _replace(bundle, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(bundle: Path, stage: Path) -> None:
    """Give the stage the name of the bundle; a failure or Ctrl-C before that gives it back to the old folder."""
    old = stage.with_name(stage.name + ".old")
    try:
        if bundle.exists():
            os.replace(bundle, old)
        os.replace(stage, bundle)
    finally:
        if old.exists() and not bundle.exists():
            os.replace(old, bundle)
        elif old.exists():
            _move_rest(old, bundle)
            shutil.rmtree(old, ignore_errors=True)


def _move_rest(old: Path, bundle: Path) -> None:
    """Move over what only the old folder has; engines too, which are named by the digest of their graph."""
    try:
        is_same = read_manifest(old, verify_digests=False).shares_origin(read_manifest(bundle, verify_digests=False))
    except ManifestError:  # what stood there was damaged
        is_same = False
    for path in sorted(old.iterdir()):
        if not (bundle / path.name).exists() and (is_same or path.name not in _OF_THE_MODEL):
            os.replace(path, bundle / path.name)
