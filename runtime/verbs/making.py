"""Making a bundle: train, export, verify, build."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from export.manifest import Manifest, read_manifest
from export.places import RUNS
from runtime.errors import OptionError, parse_word, require
from runtime.progress import stages
from runtime.verbs.shared import BundleArgument, Json, ModelArgument, checkpoint_of_bundle, finish, numbers


def train(context: typer.Context, as_json: Json = False) -> None:
    """Train a model; takes Hydra overrides, and --help lists them.

    Example: e2crf train datamodule=ucr datamodule.name=GunPoint trainer.max_epochs=100
    """
    import lightning  # noqa: F401  # first, since a torch that is missing would name an extra without the rest

    from train.run import main as train_main
    from train.run import train as train_model

    if not as_json or {"-h", "--help"} & set(context.args):
        raise typer.Exit(train_main(context.args))
    finish({"checkpoint": str(train_model(context.args))}, as_json, "")


def export(
    model: ModelArgument,
    bundle: Annotated[Path | None, typer.Option(help="Where to write; default bundles/<run_id>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another bundle that stands there.")] = False,
    dtype: Annotated[str, typer.Option(help="Precision of the layers, for engines: fp32, fp16, bf16.")] = "fp32",
    license: Annotated[str | None, typer.Option(help="For the model card: apache-2.0, cc-by-4.0 ...")] = None,
    data: Annotated[str | None, typer.Option(help="Training data of an fdiff checkpoint: Hydra overrides.")] = None,
    statistics: Annotated[str | None, typer.Option(help="Or its mean and std (.npz), or `none`.")] = None,
    domain: Annotated[str | None, typer.Option(help="Its domain, frequency or time, if the noise misleads.")] = None,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a verified bundle of split ONNX graphs.

    Example: e2crf export latest --bundle bundles/ecg

    A checkpoint of FourierDiffusion: e2crf export fdiff.ckpt --data "datamodule=ecg datamodule.data_dir=data/ecg"
    """
    from export.bundle import ExportOptions, default_folder, export_bundle
    from export.checkpoint import find_checkpoint, read_checkpoint

    checkpoint = read_checkpoint(find_checkpoint(model, RUNS), _supplement(data, statistics, domain))
    folder = bundle or default_folder(checkpoint, dtype)
    with stages() as tell:
        manifest = export_bundle(checkpoint, ExportOptions(folder, overwrite, license, dtype), tell)
    result = {"bundle": str(folder), "graphs": len(manifest.graphs), "precision": manifest.precision,
              "parity": manifest.parity}  # fmt: skip
    finish(result, as_json, f"{folder}: {len(manifest.graphs)} graphs, {_parity(manifest)}")


def _supplement(data: str | None, statistics: str | None, domain: str | None) -> Any:
    """What the options tell of a checkpoint of upstream's, None if they are all left out."""
    from export.upstream import Supplement, statistics_from_file

    require(domain in (None, "frequency", "time"), "--domain must be frequency or time", domain, "leave it out")
    require(data is None or statistics is None, "give either --data or --statistics", "both", "leave one out")
    if data is not None:
        from train.statistics import statistics_of_data

        try:
            overrides = shlex.split(data)
        except ValueError as error:
            raise OptionError(
                f"--data must be overrides as of a shell, found {data!r} ({error}); close what is open"
            ) from error
        return Supplement(lambda found: statistics_of_data(overrides, found), domain)
    if statistics is not None:
        known = None if statistics == "none" else statistics_from_file(Path(statistics))
        return Supplement(lambda _: known, domain)
    require(domain is None, "--domain needs --data or --statistics beside it", domain, "name the training data")
    return None


def verify(
    bundle: BundleArgument,
    model: Annotated[str | None, typer.Option(help="Checkpoint; default: the run the bundle names.")] = None,
    as_json: Json = False,
) -> None:
    """Measure every graph of a bundle, the chain and a trajectory against PyTorch.

    Example: e2crf verify bundles/ecg
    """
    from export.verify import verify_bundle

    manifest, checkpoint = read_manifest(bundle), checkpoint_of_bundle(bundle, model)
    with stages() as tell:
        tell("verifying against PyTorch")
        errors = verify_bundle(bundle, manifest, checkpoint)
    found = replace(manifest, parity=errors)
    finish({"bundle": str(bundle), "parity": errors}, as_json, f"{bundle}: {_parity(found)}")


def build(
    bundle: BundleArgument,
    flavor: Annotated[str, typer.Option(help="rtx (TensorRT-RTX, needs no GPU), tensorrt.")] = "rtx",
    parts: Annotated[str, typer.Option(help="step (the network as one engine), split, all.")] = "step",
    batch: Annotated[int, typer.Option(help="Largest batch.")] = 64,
    best_batch: Annotated[int | None, typer.Option(help="Batch to be fastest at; default the largest.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Numbers of tokens, as 5,64; default 8,32,128. N always.")] = None,
    tf32: Annotated[bool, typer.Option("--tf32/--no-tf32", help="Let float32 products round to 10 bits.")] = False,
    target: Annotated[str | None, typer.Option(help="rtx: compute capabilities, as 8.6,8.9; default all.")] = None,
    as_json: Json = False,
) -> None:
    """Build the engines of a bundle; those that are there and whole are kept.

    Example: e2crf build bundles/ecg --parts all
    """
    from engines.build import build_engines
    from engines.describe import outcomes_in_words
    from engines.flavor import Flavor
    from engines.recipe import BUCKETS, Parts, Recipe

    recipe = Recipe(
        flavor=parse_word(Flavor, flavor, "flavour"),
        parts=parse_word(Parts, parts, "set of parts"),
        batch=batch,
        best_batch=best_batch,
        buckets=BUCKETS if tokens is None else numbers(tokens, "--tokens", "5,64"),
        tf32=tf32,
        targets=() if target is None else tuple(word.strip() for word in target.split(",")),
    )
    with stages() as tell:
        outcomes = build_engines(bundle, recipe, tell)
    result, text = outcomes_in_words(outcomes)
    finish({"bundle": str(bundle)} | result, as_json, text)


def _parity(manifest: Manifest) -> str:
    is_exact, parity = manifest.precision == "fp32", manifest.parity
    worst = (max if is_exact else min)(parity, key=lambda name: parity[name])
    what = "largest relative error" if is_exact else "least SQNR"
    return f"{what} against PyTorch {manifest.parity_in_words(worst)} ({worst})"
