"""A training checkpoint, found by name and read without executing anything in it.

    checkpoint = read_checkpoint(find_checkpoint("latest", Path("lightning_logs")))
    checkpoint.network      # eval mode, float32, on the CPU, renormalised rows baked in

What a checkpoint must hold is written by the train room under the key "e2crf": network options, process,
domain, standardisation. Checkpoints of FourierDiffusion and FastFourierDiffusion are read as they are, given what
these keep elsewhere (`upstream`). Files are read with `torch.load(weights_only=True)`, which refuses any object
that is not on its list.
"""

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.manifest import Manifest, digest_of
from export.places import LATEST, runs_in
from export.upstream import ALLOWED, Supplement, is_upstream, read_upstream
from runtime.fourier import noise_shape
from runtime.sde import Process, process_from_facts
from train.networks import Backbone, NetworkOptions, ScoreNet, TransformerScore, network_from_options

SCHEMA = 1


class CheckpointError(Exception):
    """A checkpoint is missing, unreadable, of another kind, or holds unusable weights."""

    exit_code = 2


class MissingStatisticsError(CheckpointError):
    """A checkpoint of upstream's came without the statistics that it keeps elsewhere."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained score model and all that is needed to run it."""

    path: Path
    digest: str  # SHA-256 of the file
    network: ScoreNet
    process: Process
    eps: float
    domain: str  # "frequency" or "time"
    noise_shape: NDArray[np.float64]  # G, [N]
    mean: NDArray[np.float32]  # [N, C]
    std: NDArray[np.float32]  # [N, C]; 0 where a token is constant in the data
    data: str | None
    run_id: str | None


_LISTED = 8  # runs that a message names, the newest


def find_checkpoint(model: str, runs: Path) -> Path:
    """The checkpoint file for a path, the folder of a run, a run_id, or `latest` (the newest run under `runs`)."""
    path = Path(model)
    if path.is_file():
        return path
    if any(path.glob("checkpoints/*.ckpt")):
        return best_of(path)
    known = runs_in(runs)
    if model == LATEST and known:
        return best_of(known[0])
    if runs / model in known:
        return best_of(runs / model)
    listed = ", ".join(run.name for run in known[:_LISTED]) or "none yet"
    listed += f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
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


def read_checkpoint(path: Path, supplement: Supplement | None = None) -> Checkpoint:
    """Read and check a checkpoint; one of upstream's needs a `supplement`, any other brings all itself."""
    content = _load(path)
    if supplement is not None and not is_upstream(content):
        raise CheckpointError(
            f"{path} brings its own statistics and domain, found --data, --statistics or --domain beside it; "
            "leave them out, they are for checkpoints of fdiff"
        )
    return _read(path, content, supplement)


def checkpoint_of(path: Path, manifest: Manifest) -> Checkpoint:
    """The checkpoint that a bundle was made from; what a checkpoint of upstream's lacks is in the bundle."""
    scale = manifest.standardisation
    statistics = np.asarray(scale.mean, np.float32), np.asarray(scale.std, np.float32)
    return _read(path, _load(path), Supplement(lambda _: statistics, manifest.diffusion.domain))


def _read(path: Path, content: dict[str, Any], supplement: Supplement | None) -> Checkpoint:
    found = _read_upstream(path, content, supplement) if is_upstream(content) else _read_own(path, content)
    _check_finite(path, found.network, {"feature_mean": found.mean, "feature_std": found.std})
    _check_facts(path, found)
    return found


def _read_own(path: Path, content: dict[str, Any]) -> Checkpoint:
    facts = content.get("e2crf")
    if not isinstance(facts, dict) or "state_dict" not in content:
        raise CheckpointError(
            f"{path} is a checkpoint neither of e2crf nor of fdiff: it lacks the keys 'e2crf' and 'state_dict', and "
            "a noise scheduler under 'hyper_parameters'; train the model with `e2crf train`"
        )
    if facts.get("schema") != SCHEMA or facts.get("backbone") not in list(Backbone):
        raise CheckpointError(
            f"{path} has schema {facts.get('schema')!r} and backbone {facts.get('backbone')!r}, this version reads "
            f"schema {SCHEMA} and the backbones {', '.join(Backbone)}; use the version of e2crf that wrote it"
        )
    try:
        process = process_from_facts(facts["process"]["kind"], facts["process"]["parameters"])
        network = _network(NetworkOptions(**facts["network"], backbone=facts["backbone"]), content["state_dict"])
        mean, std = (facts[name].numpy().astype(np.float32) for name in ("feature_mean", "feature_std"))
        eps, domain = float(facts["eps"]), str(facts["domain"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete: {error}; train the model again") from error
    num_tokens = network.options.num_tokens
    return Checkpoint(
        path=path, digest=digest_of(path), network=network, process=process, eps=eps, domain=domain,
        noise_shape=noise_shape(num_tokens) if domain == "frequency" else np.ones(num_tokens),
        mean=mean, std=std, data=facts.get("data"), run_id=facts.get("run_id"),
    )  # fmt: skip


def _read_upstream(path: Path, content: dict[str, Any], supplement: Supplement | None) -> Checkpoint:
    try:
        found = read_upstream(content)
        network = _network(found.network, found.state)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint that fdiff wrote whole: {error}; copy it again") from error
    if supplement is None:
        raise MissingStatisticsError(
            f"{path} is a checkpoint of fdiff, which keeps the mean and std of the training data elsewhere; name the "
            'data with --data "datamodule=ecg datamodule.data_dir=<folder>", or give --statistics FILE.npz with the '
            f"arrays mean and std [{found.network.num_tokens}, {found.network.num_channels}], or `--statistics none` "
            "for a model of data that was not standardised"
        )
    domain = supplement.domain or ("frequency" if found.is_noise_shaped else "time")
    options = found.network
    shape = (options.num_tokens, options.num_channels)
    mean, std = supplement.statistics(domain) or (np.zeros(shape, np.float32), np.ones(shape, np.float32))
    is_in_run = path.parent.name == "checkpoints"
    return Checkpoint(
        path=path, digest=digest_of(path), network=network, process=found.process, eps=found.eps, domain=domain,
        noise_shape=noise_shape(options.num_tokens) if found.is_noise_shaped else np.ones(options.num_tokens),
        mean=mean, std=std, data=None, run_id=path.parent.parent.name if is_in_run else path.stem,
    )  # fmt: skip


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give the path of a .ckpt file")
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL [\w.]+", str(error))  # the rest is advice to run what is in it
        reason = f" ({named[0]})" if named else ""
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, or is cut off, and was not loaded{reason}; "
            "use a checkpoint written by `e2crf train` or by fdiff"
        ) from error
    except Exception as error:  # on other bytes torch.load may raise anything
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0] if str(error) else error!r}; "
            "it may be cut off: copy it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint; give a .ckpt file")
    return content


def _network(options: NetworkOptions, state: dict[str, torch.Tensor]) -> ScoreNet:
    """The module in eval mode; the row renormalisation that the embedding does in forward is baked in."""
    network = network_from_options(options)
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
    if not isinstance(network, TransformerScore):
        return network
    embedding = network.pos_encoder.embedding
    with torch.no_grad():
        embedding(torch.arange(options.num_tokens))  # renormalises its rows in place
    embedding.max_norm = None
    return network


def _check_facts(path: Path, found: Checkpoint) -> None:
    """Raise unless the facts beside the weights are some that a sampler can work with."""
    shape = (found.network.options.num_tokens, found.network.options.num_channels)
    if found.mean.shape != shape or found.std.shape != shape:
        raise CheckpointError(
            f"the mean and std for {path} must have the shape {shape}, found {found.mean.shape} and "
            f"{found.std.shape}; take the data that the model was trained on"
        )
    facts: dict[str, tuple[bool, object]] = {
        "the std of its data must be positive somewhere and negative nowhere": (
            bool((found.std >= 0).all() and found.std.any()), f"{found.std.min()} to {found.std.max()}"
        ),
        "eps must lie between 0 and 1": (0 < found.eps < 1, found.eps),
        "its domain must be frequency or time": (found.domain in ("frequency", "time"), found.domain),
        "run_id must be the name of a folder": (_names_a_folder(found.run_id), found.run_id),
    }  # fmt: skip
    for what, (holds, value) in facts.items():
        if not holds:
            raise CheckpointError(f"{path}: {what}, found {value!r}; it may be damaged: copy it again")


def _names_a_folder(run_id: object) -> bool:
    """Whether this is None or one name, which leads nowhere else."""
    return run_id is None or (isinstance(run_id, str) and run_id == Path(run_id).name != "..")


def _check_finite(path: Path, network: ScoreNet, statistics: dict[str, NDArray[np.float32]]) -> None:
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()} | statistics
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise CheckpointError(
                f"{path}: {bad} of {values.size} values of {name} are NaN or infinite; "
                "training diverged, take an earlier checkpoint or train again with a smaller lr_max"
            )
