"""A training checkpoint, found by name and read without executing anything in it.

    checkpoint = read_checkpoint(find_checkpoint("latest", Path("lightning_logs")))
    checkpoint.network      # eval mode, float32, on the CPU, renormalised rows baked in

What a checkpoint must hold is written by the train room under the key "e2crf": network options, process,
domain, standardisation. Files are read with `torch.load(weights_only=True)`, which refuses any other object.
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.manifest import digest_of
from runtime.sde import Process, process_from_facts
from train.networks import NetworkOptions, TransformerScore

SCHEMA = 1


class CheckpointError(Exception):
    """A checkpoint is missing, unreadable, of another kind, or holds unusable weights."""

    exit_code = 2


@dataclass(frozen=True)
class Checkpoint:
    """A trained score model and all that is needed to run it."""

    path: Path
    digest: str  # SHA-256 of the file
    network: TransformerScore
    process: Process
    eps: float
    domain: str  # "frequency" or "time"
    mean: NDArray[np.float32]  # [N, C]
    std: NDArray[np.float32]  # [N, C]; 0 where a token is constant in the data
    data: str | None
    run_id: str | None


def find_checkpoint(model: str, runs: Path) -> Path:
    """The checkpoint file for a path, a run_id, or `latest` (the most recently written run under `runs`)."""
    path = Path(model)
    if path.is_file():
        return path
    known = [run for run in runs.glob("*") if any(run.glob("checkpoints/*.ckpt"))] if runs.is_dir() else []
    known.sort(key=lambda run: max(file.stat().st_mtime for file in run.glob("checkpoints/*.ckpt")))
    if model == "latest" and known:
        return best_of(known[-1])
    if runs / model in known:
        return best_of(runs / model)
    listed = ", ".join(run.name for run in reversed(known)) or "none yet"
    raise CheckpointError(
        f"no checkpoint {model!r}: neither a file nor a run under {runs} (runs: {listed}); "
        "give a path, a run_id or `latest`, or train a model with `e2crf train`"
    )


def best_of(run: Path) -> Path:
    """The checkpoint of a run with the lowest validation loss in its name, else `last.ckpt`."""
    files = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
    scored = [(loss, file) for file in files if (loss := _loss_in(file.stem)) is not None]
    return min(scored, key=lambda pair: pair[0])[1] if scored else files[-1]


def run_folder(checkpoint: Checkpoint) -> Path:
    """The folder of the run a checkpoint lies in: `<run>/checkpoints/<file>.ckpt`."""
    return checkpoint.path.parent.parent


def _loss_in(stem: str) -> float | None:
    _, found, number = stem.partition("val_loss=")
    try:
        return float(number.partition("-v")[0]) if found else None
    except ValueError:
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint written by the train room."""
    content = _load(path)
    facts = content.get("e2crf")
    if not isinstance(facts, dict) or "state_dict" not in content:
        raise CheckpointError(
            f"{path} is not a checkpoint of e2crf: it lacks the keys 'e2crf' and 'state_dict'; "
            "train the model with `e2crf train`"
        )
    if facts.get("schema") != SCHEMA or facts.get("backbone") != "transformer":
        raise CheckpointError(
            f"{path} has schema {facts.get('schema')!r} and backbone {facts.get('backbone')!r}, this version reads "
            f"schema {SCHEMA} and backbone 'transformer'; use the version of e2crf that wrote it"
        )
    try:
        process = process_from_facts(facts["process"]["kind"], facts["process"]["parameters"])
        network = _network(NetworkOptions(**facts["network"]), content["state_dict"])
        mean, std = (facts[name].numpy().astype(np.float32) for name in ("feature_mean", "feature_std"))
        eps, domain = float(facts["eps"]), str(facts["domain"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}; train the model again") from error
    _check_finite(path, network, {"feature_mean": mean, "feature_std": std})
    return Checkpoint(
        path=path, digest=digest_of(path), network=network, process=process, eps=eps, domain=domain,
        mean=mean, std=std, data=facts.get("data"), run_id=facts.get("run_id"),
    )  # fmt: skip


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .ckpt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is cut off, and was not loaded ({reason}); "
            "use a checkpoint written by `e2crf train`"
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0] if str(error) else error!r}; "
            "it may be cut off: copy it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint; give a .ckpt file")
    return content


def _network(options: NetworkOptions, state: dict[str, torch.Tensor]) -> TransformerScore:
    """The module in eval mode; the row renormalisation that the embedding does in forward is baked in."""
    network = TransformerScore(options)
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
    embedding = network.pos_encoder.embedding
    with torch.no_grad():
        embedding(torch.arange(options.num_tokens))  # renormalises its rows in place
    embedding.max_norm = None
    return network


def _check_finite(path: Path, network: TransformerScore, statistics: dict[str, NDArray[np.float32]]) -> None:
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()} | statistics
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise CheckpointError(
                f"{path}: {bad} of {values.size} values of {name} are NaN or infinite; "
                "training diverged, take an earlier checkpoint or train again with a smaller lr_max"
            )
