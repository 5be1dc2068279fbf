"""What several commands take, and how they end."""

from pathlib import Path
from typing import Annotated, Any

import typer

from export.manifest import read_manifest
from export.places import RUNS, find_bundle
from runtime.errors import OptionError
from runtime.output import json_of

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else.")]
BundleArgument = Annotated[
    Path, typer.Argument(help="Bundle: folder, name under bundles/, or `latest`.", callback=find_bundle)
]
ModelArgument = Annotated[str, typer.Argument(help="Checkpoint file, run_id, or `latest`.")]


def checkpoint_of_bundle(bundle: Path, model: str | None) -> Any:
    """The checkpoint a bundle was made from, named or found by its run_id; another one is refused."""
    from export.checkpoint import CheckpointError, checkpoint_of, find_checkpoint

    manifest = read_manifest(bundle, verify_digests=False)
    source = manifest.source
    checkpoint = checkpoint_of(find_checkpoint(model or source.run_id or source.checkpoint, RUNS), manifest)
    if checkpoint.digest != source.digest:
        raise CheckpointError(
            f"{checkpoint.path} is not what {bundle} was made from: its SHA-256 is {checkpoint.digest[:12]}..., "
            f"the bundle names {source.checkpoint} with {source.digest[:12]}...; give that file with --model"
        )
    return checkpoint


def numbers(text: str, option: str = "--steps", example: str = "1000") -> tuple[int, ...]:
    """The numbers of an option that takes several."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise OptionError(
            f"{option} must be whole numbers with commas between, found {text!r}; write {example}"
        ) from None


def finish(result: dict[str, Any], as_json: bool, text: str) -> None:
    """Print what a command found: one line of JSON, or a text."""
    print(json_of(result) if as_json else text)
