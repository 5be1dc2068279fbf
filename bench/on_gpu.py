"""What runs a bundle on an NVIDIA GPU, by name: ONNX Runtime's CUDA provider, and engines of either TensorRT.

    OnGpu.TENSORRT.build(bundle, batch=64)          # once; nothing to do for ONNX Runtime
    with OnGpu.TENSORRT.open(bundle) as model:
        model.sample(64)

The bench races whatever opens, and leaves the bundle as it is; `startup` and `gpu_check` build engines in folders of
their own. Building takes one flavour a process (`engines.flavor`), running takes both.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.sampler import Model


class OnGpu(StrEnum):
    """Whole steps on a GPU, by what computes them."""

    ORT = "onnxruntime cuda"
    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"

    def build(
        self,
        bundle: Path,
        batch: int,
        best_batch: int | None = None,
        buckets: tuple[int, ...] = (),
        graphs: str = "step",
    ) -> None:
        """Build the engines of whole steps or of split graphs, for batches up to `batch`.

        They take all tokens, and as many as the buckets say. An `EngineError` where that cannot be.
        """
        if self is OnGpu.ORT:
            return
        from engines.build import build_engines
        from engines.flavor import Flavor
        from engines.recipe import Parts, Recipe

        flavor = Flavor.TENSORRT if self is OnGpu.TENSORRT else Flavor.RTX
        build_engines(bundle, Recipe(flavor, Parts(graphs), batch, best_batch, buckets))

    def open(self, bundle: Path, graphs: str = "step") -> "Model":
        """The bundle on this backend, which then has this name; a `BackendError` in one sentence where it cannot be."""
        from runtime.sampler import load

        is_ort = self is OnGpu.ORT
        model = load(bundle, device="cuda", graphs=graphs) if is_ort else load(bundle, self, graphs=graphs)
        model.backend.name = self.value  # ONNX Runtime has one name for all its devices
        return model


def openers(bundle: Path, checkpoint: Path | None) -> "dict[str, Callable[[], Model]]":
    """All that may run on the GPU by name, PyTorch first where there is a checkpoint; each raises where it cannot."""
    found: dict[str, Callable[[], Model]] = {one.value: partial(one.open, bundle) for one in OnGpu}
    if checkpoint is None:
        return found

    def pytorch(is_compiled: bool) -> "Model":
        from bench.baseline import TorchGpu, source_of
        from export.manifest import read_manifest
        from runtime.sampler import Model

        manifest = read_manifest(bundle)
        return Model(manifest, TorchGpu(source_of(checkpoint, manifest).network, is_compiled=is_compiled))

    return {"pytorch cuda": partial(pytorch, False), "torch.compile cuda": partial(pytorch, True)} | found
