"""What runs a bundle on an NVIDIA GPU, by name: ONNX Runtime's CUDA provider, and engines of either TensorRT.

    OnGpu.TENSORRT.build(bundle, batch=64)          # once; nothing to do for ONNX Runtime
    with OnGpu.TENSORRT.open(bundle) as model:
        model.sample(64)

The bench races whatever opens, and leaves the bundle as it is; `startup` and `gpu_check` build engines in folders of
their own. Building takes one flavour a process (`engines.flavor`), running takes both.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.sampler import Model


class OnGpu(StrEnum):
    """Whole steps on a GPU, by what computes them."""

    ORT = "onnxruntime cuda"
    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"

    def build(self, bundle: Path, batch: int, best_batch: int | None = None) -> None:
        """Build the engine of whole steps for batches up to `batch`; an `EngineError` where that cannot be."""
        if self is OnGpu.ORT:
            return
        from engines.build import build_engines
        from engines.flavor import Flavor
        from engines.recipe import Recipe

        flavor = Flavor.TENSORRT if self is OnGpu.TENSORRT else Flavor.RTX
        build_engines(bundle, Recipe(flavor=flavor, batch=batch, best_batch=best_batch, buckets=()))

    def open(self, bundle: Path) -> "Model":
        """The bundle on this backend, which then has this name; a `BackendError` in one sentence where it cannot be."""
        from runtime.sampler import load

        model = load(bundle, device="cuda") if self is OnGpu.ORT else load(bundle, self)
        model.backend.name = self.value  # ONNX Runtime has one name for all its devices
        return model
