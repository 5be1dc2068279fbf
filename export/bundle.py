"""checkpoint -> bundle: write every graph, measure it against PyTorch, and only then give it its name.

A bundle is built in a hidden folder beside its place and renamed into it at the end. A full disk, Ctrl-C or a
graph that fails verification leaves nothing behind that looks finished, and an existing bundle as it was.
"""

import dataclasses
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from export.card import write_card
from export.checkpoint import Checkpoint, CheckpointError, run_folder
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
from export.places import BUNDLES, staged
from export.precision import Precision, typed_graphs
from export.runs import read_run
from export.verify import verify_bundle
from runtime.errors import parse_word, require
from runtime.fourier import frequencies
from runtime.sde import facts_from_process

Tell = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """Where the bundle goes, and whether one that is there from another checkpoint may be replaced."""

    bundle: Path
    overwrite: bool = False
    license: str | None = None  # for the card, in the Hub's words; None: as it stands there, "unknown" in a new one
    precision: str = Precision.FP32  # of the layers' products

    def __post_init__(self) -> None:
        require(self.license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license) is not None,
                "a licence is named as on the Hugging Face Hub", self.license,
                "write apache-2.0, mit, cc-by-4.0 or other")  # fmt: skip
        parse_word(Precision, self.precision, "precision")


def export_bundle(checkpoint: Checkpoint, options: ExportOptions, tell: Tell = lambda line: None) -> Manifest:
    """Write, verify and finish a bundle; `tell` hears one line per stage.

    A finished bundle of the same checkpoint and exporter is kept as it is, but for the licence. Raises a
    `CheckpointError` if another one stands in the way, a `VerifyError` naming the part that does not match.
    """
    if (kept := _existing(checkpoint, options)) is not None:
        tell(f"{options.bundle} is up to date")
        _write_card(options.bundle, kept, checkpoint, options)
        return kept
    with staged(options.bundle) as stage:
        tell("writing graphs")
        precision = Precision(options.precision)
        graphs = write_graphs(checkpoint, stage, precision)
        manifest = dataclasses.replace(manifest_of(checkpoint, graphs), precision=precision)
        tell("verifying against PyTorch")
        parity = verify_bundle(stage, manifest, checkpoint)
        manifest = dataclasses.replace(manifest, parity=parity)
        (stage / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        _write_card(stage, manifest, checkpoint, options)
        if (engines := options.bundle / "engines").is_dir():  # named by digest: those of graphs that stay are good
            os.replace(engines, stage / "engines")
    return manifest


def default_folder(checkpoint: Checkpoint, precision: str = Precision.FP32) -> Path:
    """Where a bundle goes if nobody says otherwise: the name of the run, with the precision unless it is fp32."""
    name = checkpoint.run_id or checkpoint.path.stem
    return BUNDLES / (name if precision == Precision.FP32 else f"{name}-{precision}")


def _write_card(folder: Path, manifest: Manifest, checkpoint: Checkpoint, options: ExportOptions) -> None:
    run = read_run(run_folder(checkpoint))
    write_card(folder, manifest, run, options.license, title=options.bundle.name)


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
    same = found.source.digest == checkpoint.digest and found.standardisation == _standardisation(checkpoint)
    same = same and found.precision == options.precision
    if same and found.source.producer == producer():
        return found
    if options.overwrite:
        return None
    raise CheckpointError(
        f"{options.bundle} holds a bundle of {found.source.checkpoint} (run {found.source.run_id}) in "
        f"{found.precision} by {found.source.producer}, this is {checkpoint.path.name} (run {checkpoint.run_id}) in "
        f"{options.precision} by {producer()}; "
        "choose another folder, or allow it to be replaced with --overwrite"
    )


def write_graphs(checkpoint: Checkpoint, folder: Path, precision: Precision = Precision.FP32) -> dict[str, Graph]:
    """Write every graph under `folder/onnx` and describe it."""
    (folder / "onnx").mkdir()
    records = {}
    for name, model in typed_graphs(graphs_of(checkpoint.network), precision).items():
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
            backbone=options.backbone,
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
            noise_shape=checkpoint.noise_shape.tolist(),
            spectral_weight=weight.tolist(),
        ),
        standardisation=_standardisation(checkpoint),
        graphs=graphs,
    )


def _standardisation(checkpoint: Checkpoint) -> Standardisation:
    return Standardisation(mean=checkpoint.mean.tolist(), std=checkpoint.std.tolist())


def producer() -> str:
    """Name and version of this exporter."""
    try:
        return f"e2crf {version('e2crf')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "e2crf (source tree)"
