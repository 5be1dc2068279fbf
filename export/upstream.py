"""Checkpoints of FourierDiffusion and FastFourierDiffusion (package `fdiff`), read without either installed.

Lightning wrote them: weights under `state_dict`, the arguments of the module under `hyper_parameters`, among these
the noise scheduler as a pickled object. Two names of classes are therefore allowed in such a file, and both stand
for an empty record: nothing of upstream's, and nothing from the file, is ever run.

What upstream keeps elsewhere must be supplied: the standardisation, which its datamodule computes from the
training data, and the domain where the noise does not tell (noise that is shaped by the DFT belongs to the
frequency domain; other noise is taken for the time domain).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.sde import VE, VP, Process
from train.networks import Backbone, NetworkOptions

Statistics = tuple[NDArray[np.float32], NDArray[np.float32]]  # mean and std, [N, C] each


@dataclass(frozen=True)
class Supplement:
    """What is known of a model beside its checkpoint."""

    statistics: Callable[[str], Statistics | None]  # by domain: of the training tokens; None: not standardised
    domain: str | None = None  # "frequency" or "time"; None: by the noise


class UpstreamError(ValueError):
    """A checkpoint lacks something that upstream always writes, or a file of statistics is not one."""

    exit_code = 2


@dataclass(frozen=True)
class UpstreamModel:
    """What such a checkpoint says."""

    network: NetworkOptions
    state: dict[str, torch.Tensor]
    process: Process
    eps: float
    is_noise_shaped: bool  # white noise seen through the DFT


class _Scheduler:
    """A stand-in that takes the attributes of a pickled noise scheduler, and does nothing."""


_NAMES = ("VPScheduler", "VEScheduler")
ALLOWED: list[Any] = [type(name, (_Scheduler,), {"__module__": "fdiff.schedulers.sde"}) for name in _NAMES]


def statistics_from_file(path: Path) -> Statistics:
    """The arrays `mean` and `std` [N, C] of an npz file, float32."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("mean", "std") if name in arrays.files}
    except Exception as error:  # on other bytes NumPy may raise anything, and its text may advise to unpickle them
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise _no_statistics(path, f"none that can be read{reason}") from error
    if len(found) < 2 or any(values.dtype.kind not in "fiu" for values in found.values()):
        raise _no_statistics(
            path, ", ".join(f"{name} of {values.dtype}" for name, values in found.items()) or "neither"
        )
    mean, std = (values.astype(np.float32) for values in found.values())
    if not (std >= 0).all():
        raise UpstreamError(f"the std in {path} must not be negative, found {std.min()}; write the file again")
    return mean, std


def _no_statistics(path: Path, found: str) -> UpstreamError:
    return UpstreamError(
        f"{path} must be an npz file with numbers mean and std [N, C], found {found}; "
        "write it with numpy.savez(path, mean=feature_mean, std=feature_std)"
    )


def is_upstream(content: dict[str, Any]) -> bool:
    """Whether this is a checkpoint of upstream's."""
    parameters = content.get("hyper_parameters")
    has_scheduler = isinstance(parameters, dict) and isinstance(parameters.get("noise_scheduler"), _Scheduler)
    return has_scheduler and "state_dict" in content


def read_upstream(content: dict[str, Any]) -> UpstreamModel:
    """The facts and weights of a loaded checkpoint; `UpstreamError` says what is missing or of another kind."""
    parameters: dict[str, Any] = content["hyper_parameters"]
    state = {name: value for name, value in content["state_dict"].items() if not name.startswith("cached_backbone.")}
    scheduler: dict[str, Any] = vars(parameters["noise_scheduler"])
    return UpstreamModel(
        network=_network(parameters, state),
        state=state,
        process=_process(type(parameters["noise_scheduler"]).__name__, scheduler),
        eps=float(_of(scheduler, "eps")),
        is_noise_shaped=bool(_of(scheduler, "noise_scaling")),
    )


def _network(parameters: dict[str, Any], state: dict[str, torch.Tensor]) -> NetworkOptions:
    shape = {name: int(_of(parameters, name)) for name in ("max_len", "n_channels", "d_model", "num_layers")}
    common = (shape["max_len"], shape["n_channels"], shape["d_model"])
    if (inner := state.get("backbone.layers.0.linear1.weight")) is not None:
        return NetworkOptions(*common, int(_of(parameters, "n_head")), shape["num_layers"], len(inner))
    if "backbone.0.weight_ih_l0" in state:
        return NetworkOptions(*common, 0, shape["num_layers"], 0, 0.0, Backbone.LSTM)
    if (inner := state.get("backbone.0.0.weight")) is not None:
        return NetworkOptions(*common, 0, shape["num_layers"], len(inner), backbone=Backbone.MLP)
    raise UpstreamError("its backbone is neither a transformer nor an LSTM nor an MLP")


def _process(name: str, scheduler: dict[str, Any]) -> Process:
    if name == "VPScheduler":
        return VP(float(_of(scheduler, "beta_0")), float(_of(scheduler, "beta_1")))
    return VE(float(_of(scheduler, "sigma_min")), float(_of(scheduler, "sigma_max")))


def _of(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise UpstreamError(f"it does not tell {name}")
    return record[name]
