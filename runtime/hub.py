"""Bundles travel: to and from a repository of the Hugging Face Hub, or a folder that stands for one.

    push(PushOptions(Path("bundles/ecg"), "user/ecg"))
    pull(PullOptions("user/ecg", Path("bundles/ecg")))
    pull(PullOptions("file:/media/stick/ecg", Path("bundles/ecg")))

What travels is what makes the model: manifest, graphs, plan and card. Engines belong to the machine that built
them and reports to the one that measured. A bundle is checked against its digests before it is sent, and again
before what arrived gets its name. `huggingface_hub` is imported when the Hub itself is asked for.

Where a folder is replaced, what is sent wins: its plan and card take the place of those that are there. What it does
not bring stays: engines, and of the same model reports, plan and card too (`places`). A repository of the Hub becomes
what is sent, and its history keeps the rest.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from export.card import CARD_FILE
from export.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest
from export.places import staged
from runtime.cache.plan import PLAN_FILE
from runtime.errors import HubError, OptionError, require

FOLDER = "file:"
_GRAPHS = "*.onnx"  # the Hub's patterns cross folders


@dataclass(frozen=True)
class PushOptions:
    """Which bundle goes where."""

    bundle: Path
    target: str  # user/name on the Hub, or a folder: file:FOLDER, or a path that begins with / . or ~
    private: bool = True  # a repository that is made for it; one that is there stays as it is
    overwrite: bool = False  # a folder may lose another bundle; the Hub keeps its history anyway


@dataclass(frozen=True)
class PullOptions:
    """What is fetched from where."""

    source: str  # as `PushOptions.target`
    bundle: Path
    overwrite: bool = False  # another bundle may be replaced


def push(options: PushOptions) -> str:
    """Send a bundle; its address there. Raises a `ManifestError`, an `OptionError` or a `HubError`."""
    manifest = read_manifest(options.bundle)
    files = _files(options.bundle, manifest)
    if (folder := folder_of(options.target)) is None:
        return _upload(options, files)
    require(folder.resolve() != options.bundle.resolve(), "a bundle is pushed to another place", str(folder),
            "name another folder")  # fmt: skip
    if (found := _standing(folder)) is not None and not _same(found, manifest):
        _refuse(folder, found, options.overwrite)
    with staged(folder) as stage:
        _copy(options.bundle, stage, files)
    return str(folder)


def pull(options: PullOptions) -> bool:
    """Fetch a bundle and check it; False if the same model is there already, which keeps its own plan and card.

    Raises a `ManifestError` for what is no whole bundle, an `OptionError`, or a `HubError`.
    """
    found, folder = _standing(options.bundle), folder_of(options.source)
    with staged(options.bundle) as stage:
        if folder is None:
            _download(options.source, stage)
        else:
            _copy(folder, stage, _files(folder, read_manifest(folder)))
        arrived = _checked(stage, options.source)
        is_here = found is not None and _same(found, arrived)
        if found is not None and not is_here:
            _refuse(options.bundle, found, options.overwrite)
        if is_here and not options.overwrite:
            _bring_what_is_missing(stage, options.bundle)
            shutil.rmtree(stage)
            return False
    return True


def _bring_what_is_missing(stage: Path, bundle: Path) -> None:
    """Give a bundle the plan and card that it lacks; its own stay."""
    for name in (PLAN_FILE, CARD_FILE):
        if (stage / name).is_file() and not (bundle / name).exists():
            os.replace(stage / name, bundle / name)


def folder_of(place: str) -> Path | None:
    """The folder that a target or source names, None for a repository; an `OptionError` for neither."""
    if place.startswith((FOLDER, "/", "./", "../", "~")) and place != FOLDER:
        return Path(place.removeprefix(FOLDER)).expanduser()
    require(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", place) is not None, "a repository is named user/name", place,
            "for a folder write file:FOLDER")  # fmt: skip
    return None


def _files(bundle: Path, manifest: Manifest) -> list[str]:
    """What of a bundle travels, relative to it."""
    extra = [name for name in (PLAN_FILE, CARD_FILE) if (bundle / name).is_file()]
    return [MANIFEST_FILE, *(graph.file for graph in manifest.graphs.values()), *extra]


def _copy(source: Path, stage: Path, files: Iterable[str]) -> None:
    for file in files:
        (stage / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, stage / file)


def _standing(bundle: Path) -> Manifest | None:
    """The manifest of what has the name already, None where it is free; an `OptionError` for what is no bundle."""
    if not bundle.exists() or (bundle.is_dir() and not any(bundle.iterdir())):
        return None
    try:
        return read_manifest(bundle, verify_digests=False)
    except ManifestError as error:
        raise OptionError(f"{bundle} exists and is no bundle ({error}); choose another folder") from error


def _same(one: Manifest, other: Manifest) -> bool:
    """Whether two bundles hold the same model: checkpoint and graphs byte for byte."""
    graphs = [{name: graph.digest for name, graph in manifest.graphs.items()} for manifest in (one, other)]
    return one.source.digest == other.source.digest and graphs[0] == graphs[1]


def _refuse(bundle: Path, found: Manifest, overwrite: bool) -> None:
    require(overwrite, f"{bundle} must be free or hold the same model", f"one of {found.source.checkpoint}, run "
            f"{found.source.run_id}", "choose another folder, or allow it to be replaced with --overwrite")  # fmt: skip


def _checked(stage: Path, source: str) -> Manifest:
    """The manifest of what arrived, its digests checked."""
    try:
        return read_manifest(stage)
    except ManifestError as error:
        what = str(error).replace(str(stage), source)
        raise ManifestError(f"what came from {source} is not a whole bundle and was dropped: {what}") from error


def _upload(options: PushOptions, files: list[str]) -> str:
    with _hub(f"push {options.bundle} to {options.target}"):
        from huggingface_hub import HfApi

        api = HfApi(library_name="e2crf")
        address = api.create_repo(options.target, private=options.private, exist_ok=True)
        api.upload_folder(
            repo_id=options.target, folder_path=options.bundle, commit_message="e2crf push",
            allow_patterns=files, delete_patterns=[_GRAPHS, PLAN_FILE],  # those of an earlier push
        )  # fmt: skip
    return str(address)


def _download(repository: str, stage: Path) -> None:
    with _hub(f"pull {repository}"):
        from huggingface_hub import snapshot_download

        wanted = [MANIFEST_FILE, _GRAPHS, PLAN_FILE, CARD_FILE]
        snapshot_download(repository, local_dir=stage, allow_patterns=wanted, library_name="e2crf")
    shutil.rmtree(stage / ".cache", ignore_errors=True)  # the Hub's own notes


@contextmanager
def _hub(doing: str) -> Iterator[None]:
    """Turn what the Hub and the way to it refuse into one sentence, and its bars off where nobody watches."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        remedy = (
            "check the name, and log in with `hf auth login` and a token that may do this"
            if code in (401, 403, 404)
            else "try again later"
        )
        raise HubError(f"cannot {doing}: the Hub answers {code} ({_first_line(error)}); {remedy}") from error
    except ValueError as error:  # the client's own checks, and the Hub's of the head of the card
        reason = " ".join(str(error).split())
        raise HubError(f"cannot {doing}: {reason}; correct the name or the model card") from error
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"cannot {doing}: the Hub cannot be reached ({_first_line(error)}); check the connection, or use a folder "
            f"with {FOLDER}FOLDER"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
