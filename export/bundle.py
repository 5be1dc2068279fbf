"""checkpoint -> bundle: write every graph, measure it against PyTorch, and only then give it its name.

A bundle is built in a hidden folder beside its place and renamed into it at the end. A full disk, Ctrl-C or a
graph that fails verification leaves nothing behind that looks finished, and an existing bundle as it was.
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from export.checkpoint import Checkpoint, CheckpointError
from export.graphs import graphs_of, tensors_of
from export.manifest import (
    MANIFEST_FILE,
    SCHEMA,
    Diffusion,
    Graph,
    Manifest,
    ManifestError,
    Network,
    Source,
    Standardisation,
    Tokens,
    digest_of,
    read_manifest,
)
from export.verify import verify_bundle
from runtime.fourier import frequencies, noise_shape
from runtime.sde import facts_from_process

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """Where the bundle goes, and whether one that is there from another checkpoint may be replaced."""

    bundle: Path
    overwrite: bool = False


def export_bundle(checkpoint: Checkpoint, options: ExportOptions, tell: Tell = lambda line: None) -> Manifest:
    """Write, verify and finish a bundle; `tell` hears one line per stage.

    A finished bundle of the same checkpoint and exporter is kept as it is. Raises a `CheckpointError` if
    another one stands in the way, a `VerifyError` naming the part that does not match.
    """
    if (kept := _existing(checkpoint, options)) is not None:
        tell(f"{options.bundle} is up to date")
        return kept
    options.bundle.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{options.bundle.name}.", dir=options.bundle.parent))
    try:
        tell("writing graphs")
        manifest = manifest_of(checkpoint, write_graphs(checkpoint, stage))
        tell("verifying against PyTorch")
        parity = verify_bundle(stage, manifest, checkpoint)
        manifest = dataclasses.replace(manifest, parity=parity)
        (stage / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        _move_into_place(stage, options.bundle)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return manifest


def _existing(checkpoint: Checkpoint, options: ExportOptions) -> Manifest | None:
    """The bundle already there, if it is this checkpoint's; None if the place is free or may be overwritten."""
    if not options.bundle.exists() or (options.bundle.is_dir() and not any(options.bundle.iterdir())):
        return None
    try:
        found = read_manifest(options.bundle)
    except ManifestError as error:
        if options.overwrite and (options.bundle / MANIFEST_FILE).is_file():
            return None
        raise CheckpointError(
            f"{options.bundle} exists and is not a usable bundle ({error}); choose another folder, or remove it"
        ) from error
    if found.source.digest == checkpoint.digest and found.source.producer == producer():
        return found
    if options.overwrite:
        return None
    raise CheckpointError(
        f"{options.bundle} holds a bundle of {found.source.checkpoint} (run {found.source.run_id}) by "
        f"{found.source.producer}, this is {checkpoint.path.name} (run {checkpoint.run_id}) by {producer()}; "
        "choose another folder, or allow it to be replaced with --overwrite"
    )


def _move_into_place(stage: Path, bundle: Path) -> None:
    """Give the finished stage its name; an old bundle makes way and is removed after that."""
    stage.chmod(0o755)  # mkdtemp makes private folders
    old = stage.with_name(stage.name + ".old")
    if bundle.exists():
        os.replace(bundle, old)
    os.replace(stage, bundle)
    shutil.rmtree(old, ignore_errors=True)


def write_graphs(checkpoint: Checkpoint, folder: Path) -> dict[str, Graph]:
    """Write every graph under `folder/onnx` and describe it."""
    (folder / "onnx").mkdir()
    records = {}
    for name, model in graphs_of(checkpoint.network).items():
        file = f"onnx/{name}.onnx"
        (folder / file).write_bytes(model.SerializeToString())
        inputs, outputs = tensors_of(model.graph.input), tensors_of(model.graph.output)
        records[name] = Graph(file, digest_of(folder / file), inputs, outputs)
    return records


def manifest_of(checkpoint: Checkpoint, graphs: dict[str, Graph]) -> Manifest:
    """The manifest of a checkpoint and its graphs; parity is still to be measured."""
    options = checkpoint.network.options
    num_tokens, is_frequency = options.num_tokens, checkpoint.domain == "frequency"
    kind, parameters = facts_from_process(checkpoint.process)
    weight = (checkpoint.std.astype(np.float64) ** 2).sum(axis=1) if is_frequency else np.ones(num_tokens)
    return Manifest(
        schema=SCHEMA,
        source=Source(
            checkpoint=checkpoint.path.name,
            digest=checkpoint.digest,
            run_id=checkpoint.run_id,
            data=checkpoint.data,
            producer=producer(),
        ),
        network=Network(
            backbone="transformer",
            num_tokens=num_tokens,
            num_channels=options.num_channels,
            d_model=options.d_model,
            num_heads=options.num_heads,
            num_layers=options.num_layers,
            d_ff=options.d_ff,
        ),
        diffusion=Diffusion(kind, parameters, checkpoint.eps, checkpoint.domain),
        tokens=Tokens(
            frequency=(frequencies(num_tokens) if is_frequency else np.arange(num_tokens)).tolist(),
            noise_shape=(noise_shape(num_tokens) if is_frequency else np.ones(num_tokens)).tolist(),
            spectral_weight=weight.tolist(),
        ),
        standardisation=Standardisation(mean=checkpoint.mean.tolist(), std=checkpoint.std.tolist()),
        graphs=graphs,
    )


def producer() -> str:
    """Name and version of this exporter."""
    try:
        return f"e2crf {version('e2crf')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "e2crf (source tree)"
