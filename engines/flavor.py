"""TensorRT or TensorRT-RTX: the one place that decides, and the one that imports either.

Both have the same Python API under two module names, and Polygraphy drives both. Which one is read from an
environment variable when `polygraphy` is first imported, so a process has one flavour for life; `open_toolkit`
sets the variable, and refuses a second flavour.

    rtx        builds on any machine, GPU or not, for Ampere and later consumer and workstation GPUs and the A100;
               finishes the kernels on the machine that runs them. Not for Hopper (H100, H200).
    tensorrt   builds on the GPU that will run the engine, and for that model of GPU; any data-centre GPU.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from engines.errors import EngineError, RecipeError
from engines.gpu import visible_gpu

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
ALL_TARGETS = "default targets"  # those that TensorRT-RTX builds for when none is named


class Flavor(StrEnum):
    """Which library builds and runs the engines; also the name of the extra that installs it."""

    RTX = "rtx"
    TENSORRT = "tensorrt"

    @property
    def module(self) -> str:
        """The Python module."""
        return "tensorrt_rtx" if self is Flavor.RTX else "tensorrt"

    @property
    def product(self) -> str:
        """The name of the product."""
        return "TensorRT-RTX" if self is Flavor.RTX else "TensorRT"


@dataclass(frozen=True)
class Toolkit:
    """A library, opened for building: its module, and Polygraphy's loaders for it."""

    flavor: Flavor
    version: str
    trt: Any  # tensorrt or tensorrt_rtx; neither is typed, nor is Polygraphy
    loaders: Any  # polygraphy.backend.trt
    create_config: Any
    logger: Any  # Polygraphy's
    failure: type[Exception]  # Polygraphy's


def installed_version(flavor: Flavor) -> str | None:
    """The version that is installed, without importing it; None if it, or Polygraphy, is not."""
    if importlib.util.find_spec(flavor.module) is None or importlib.util.find_spec("polygraphy") is None:
        return None
    for package in (f"{flavor.module}-cu13", f"{flavor.module}-cu12", flavor.module):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "of unknown version"


def open_toolkit(flavor: Flavor) -> Toolkit:
    """Import a flavour; an `EngineError` if it is not installed, or this process already has the other one."""
    if installed_version(flavor) is None:
        raise EngineError(
            f"building engines with {flavor.product} needs the packages {flavor.module} and polygraphy, and they are "
            f"not installed; pip install 'e2crf[{flavor}]'"
        )
    config = sys.modules.get("polygraphy.config")
    if config is not None and bool(config.USE_TENSORRT_RTX) != (flavor is Flavor.RTX):
        raise EngineError(
            f"this process already uses the other flavour of TensorRT and was asked for {flavor.product}; "
            "use one process for each"
        )
    os.environ[_SWITCH] = "1" if flavor is Flavor.RTX else "0"
    trt, loaders = importlib.import_module(flavor.module), importlib.import_module("polygraphy.backend.trt")
    if flavor is Flavor.RTX:
        create_config = importlib.import_module("polygraphy.backend.tensorrt_rtx").create_config_rtx
    else:
        create_config = loaders.create_config
    return Toolkit(
        flavor=flavor,
        version=str(trt.__version__),
        trt=trt,
        loaders=loaders,
        create_config=create_config,
        logger=importlib.import_module("polygraphy.logger").G_LOGGER,
        failure=importlib.import_module("polygraphy.exception").PolygraphyException,
    )


def target_of(toolkit: Toolkit, capabilities: Sequence[str]) -> str:
    """What engines built here would run on, in words that belong to their key.

    `capabilities` ("8.9") are for TensorRT-RTX, which takes its own choice without; TensorRT builds for the GPU of
    this machine and no other.
    """
    if toolkit.flavor is Flavor.RTX:
        known = rtx_targets(toolkit)
        for capability in capabilities:
            if capability not in known:
                raise RecipeError(
                    f"{toolkit.flavor.product} {toolkit.version} has no target {capability!r}, it has "
                    f"{', '.join(known)}; name one of these, or build with --flavor tensorrt on that GPU"
                )
        return ", ".join(sorted(set(capabilities), key=known.index)) or ALL_TARGETS
    if capabilities:
        raise RecipeError(
            f"TensorRT builds for the GPU it runs on, found the targets {', '.join(capabilities)}; leave --target out"
        )
    if (gpu := visible_gpu()) is None:
        raise EngineError(
            "TensorRT builds on the GPU that will run the engine, and no NVIDIA GPU was found here; "
            "run this on the machine with the GPU, or build with --flavor rtx, which needs none"
        )
    return gpu.target


def rtx_targets(toolkit: Toolkit) -> list[str]:
    """The compute capabilities that this TensorRT-RTX can name, as "8.9"."""
    names = [name.removeprefix("SM") for name in toolkit.trt.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[:-1]}.{name[-1]}" for name in names]
