"""checkpoint -> bundle: write every graph, measure it against PyTorch, and only then give it its name.

A bundle is built in a hidden folder beside its place and renamed into it at the end. A full disk, Ctrl-C or a
graph that fails verification leaves nothing behind that looks finished, and an existing bundle as it was.

Where one is replaced, its engines stay, and of the same model its plan, its reports and its card too (`places`).
"""

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from export.card import CARD_FILE, read_card, write_card
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
    license: str | None = None  # for the card, in the Hub's words; None: as it stands there, "unknown" for a new model
    precision: str = Precision.FP32  # of the layers' products

    def __post_init__(self) -> None:
        require(self.license is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license) is not None,
                "a licence is named as on the Hugging Face Hub", self.license,
                "write apache-2.0, mit, cc-by-4.0 or other")  # fmt: skip
        parse_word(Precision, self.precision, "precision")


def export_bundle(checkpoint: Checkpoint, options: ExportOptions, tell: Tell = lambda line: None) -> Manifest:
    """Write, verify and finish a bundle; `tell` hears one line per stage.

    A finished bundle that would come out the same is kept as it is, but for the licence. Raises a
    `CheckpointError` if another one stands in the way, a `VerifyError` naming the part that does not match.
    """
    if (kept := _existing(checkpoint, options)) is not None:
        tell(f"{options.bundle} is up to date")
        _write_card(options.bundle, kept, checkpoint, options.license, title=options.bundle.name)
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
        license = _bring_card(options.bundle, stage, manifest)
        _write_card(stage, manifest, checkpoint, options.license or license, title=options.bundle.name)
    return manifest


def default_folder(checkpoint: Checkpoint, precision: str = Precision.FP32) -> Path:
    """Where a bundle goes if nobody says otherwise: the name of the run, with the precision unless it is fp32."""
    name = checkpoint.run_id or checkpoint.path.stem
    return BUNDLES / (name if precision == Precision.FP32 else f"{name}-{precision}")


def _write_card(folder: Path, manifest: Manifest, checkpoint: Checkpoint, license: str | None, *, title: str) -> None:
    write_card(folder, manifest, read_run(run_folder(checkpoint)), license, title=title)


def _bring_card(bundle: Path, stage: Path, manifest: Manifest) -> str | None:
    """Copy the card that stands there if all it says still holds; the licence it names if it is of this checkpoint."""
    try:
        found = read_manifest(bundle, verify_digests=False)
    except ManifestError:  # none, or damaged
        return None
    if (card := read_card(bundle)) is None or found.source.digest != manifest.source.digest:
        return None
    if found.shares_origin(manifest) and found.precision == manifest.precision:
        shutil.copyfile(bundle / CARD_FILE, stage / CARD_FILE)
        return None  # it stands in the card
    return card[1]


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
    there = _facts(found)
    wanted = _facts(dataclasses.replace(manifest_of(checkpoint, found.graphs), precision=options.precision))
    differing = [name for name in wanted if there[name] != wanted[name]]
    if not differing and _digests(found.graphs) == _digests_now(checkpoint, options.precision):
        return found
    if options.overwrite:
        return None
    raise CheckpointError(
        f"{options.bundle} holds a bundle of {found.source.checkpoint} (run {found.source.run_id}, "
        f"{found.diffusion.domain} domain) in {found.precision} by {found.source.producer}, this is "
        f"{checkpoint.path.name} (run {checkpoint.run_id}, {checkpoint.domain} domain) in {options.precision} by "
        f"{producer()}, with another {', '.join(differing) or 'form of the graphs'}; "
        "choose another folder, or allow it to be replaced with --overwrite"
    )


def _facts(manifest: Manifest) -> dict[str, object]:
    """By name, what must be the same for a bundle to come out the same."""
    return {
        "checkpoint": manifest.source.digest,
        "process or domain": manifest.diffusion,
        "meaning of the tokens": (manifest.tokens.frequency, manifest.tokens.noise_shape),
        "mean or std": manifest.standardisation,
        "precision": manifest.precision,
        "exporter": manifest.source.producer,
    }


def _digests(graphs: dict[str, Graph]) -> dict[str, str]:
    return {name: graph.digest for name, graph in graphs.items()}


def _digests_now(checkpoint: Checkpoint, precision: str) -> dict[str, str]:
    """Of the graphs as they would be written now: their form may be another, though the version is the same."""
    with tempfile.TemporaryDirectory() as folder:
        return _digests(write_graphs(checkpoint, Path(folder), Precision(precision)))


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
