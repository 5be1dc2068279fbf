"""Knowing and sharing what is here: inspect, push, pull, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from export.manifest import read_manifest
from export.places import BUNDLES
from runtime.command import say
from runtime.progress import stages
from runtime.verbs.shared import BundleArgument, Json, finish

Place = Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub, or file:FOLDER.")]


def inspect(
    what: Annotated[str | None, typer.Argument(help="Bundle or run, by folder or name, or `latest`.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a bundle and print its model card, or a run; without a name list the runs and bundles here.

    Example: e2crf inspect bundles/ecg
    """
    from runtime.describe import describe

    result, text = describe(what)
    if "bundle" in result:
        from engines.describe import describe_engines

        folder = Path(result["bundle"])
        engines, lines = describe_engines(folder, read_manifest(folder, verify_digests=False))
        result, text = result | {"engines": engines}, "\n".join([text, lines, *_card_lines(result["card"])])
    finish(result, as_json, text)


def _card_lines(card: str | None) -> list[str]:
    return [] if card is None else ["", card.rstrip()]


def push(
    bundle: BundleArgument,
    target: Place,
    private: Annotated[bool, typer.Option("--private/--public", help="A repository that is made for it.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model in a folder.")] = False,
    as_json: Json = False,
) -> None:
    """Share a bundle: graphs, manifest, plan and model card go to the Hub or a folder; engines and reports stay.

    Example: e2crf push bundles/ecg user/ecg
    """
    from export.card import UNKNOWN_LICENSE, read_card
    from runtime.hub import PushOptions
    from runtime.hub import push as push_bundle

    read_manifest(bundle, verify_digests=False)  # whether there is a bundle comes before its licence
    card = read_card(bundle)
    if card is None or card[1] == UNKNOWN_LICENSE:
        say("warning: the model card names no licence; set one with `e2crf export <model> --license apache-2.0`")
    with stages() as tell:
        tell(f"pushing {bundle}")
        address = push_bundle(PushOptions(bundle, target, private, overwrite))
    finish({"bundle": str(bundle), "address": address}, as_json, f"{bundle} is at {address}")


def pull(
    source: Place,
    bundle: Annotated[Path | None, typer.Option(help="Where to write; default bundles/<name>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a bundle from the Hub or a folder, and check every digest before it gets its name.

    Example: e2crf pull user/ecg
    """
    from runtime.hub import PullOptions
    from runtime.hub import pull as pull_bundle

    folder = bundle or BUNDLES / source.rstrip("/").rpartition("/")[2].removeprefix("file:")
    with stages() as tell:
        tell(f"pulling {source}")
        is_new = pull_bundle(PullOptions(source, folder, overwrite))
    kept = f"{folder} holds this model already and keeps its own plan and card; --overwrite takes those of {source}"
    text = f"{folder} is {source}" if is_new else kept
    finish({"bundle": str(folder), "source": source, "is_new": is_new}, as_json, text)


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to install for the rest.

    Example: e2crf doctor
    """
    from engines.describe import examine_engines
    from engines.gpu import visible_gpu
    from runtime.doctor import examine

    gpu = visible_gpu()
    (result, text), (engines, lines) = examine(None if gpu is None else gpu.target), examine_engines(gpu)
    finish(result | {"engines": engines}, as_json, f"{text}\n{lines}")
    if not result["sample"]["ready"]:
        raise typer.Exit(1)
