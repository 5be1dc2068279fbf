"""Is the bundle the network? Every part, then the chain, then a whole trajectory, against PyTorch.

ONNX Runtime and PyTorch see the same inputs, in float32; the error is the largest absolute difference over
the largest absolute value of the reference. A miss names the part. The inputs are random but reproducible:
tokens in arbitrary order and number, caches filled with values, so that a wrong index cannot hide.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.manifest import Manifest
from export.reference import TorchBackend
from export.split import parts_of, run_part
from runtime.backends.ort import OrtBackend
from runtime.sampler import Model
from runtime.solvers import Solver

Arrays = dict[str, NDArray[Any]]


class VerifyError(Exception):
    """A graph does not compute what the network computes."""

    exit_code = 1


@dataclass(frozen=True)
class Tolerances:
    """Largest relative errors allowed, float32."""

    part: float = 1e-5  # one part: a few roundings of its own
    chain: float = 1e-4  # all layers in a row
    trajectory: float = 1e-3  # 20 solver steps, each feeding on the last
    trajectory_steps: int = 20


def verify_bundle(
    bundle: Path, manifest: Manifest, checkpoint: Checkpoint, tolerances: Tolerances | None = None
) -> dict[str, float]:
    """Measured relative errors by name (every part, `chain`, `step`, `trajectory`); raises at the first miss."""
    limits = tolerances or Tolerances()
    errors: dict[str, float] = {}

    def judge(name: str, error: float, limit: float) -> None:
        if not error <= limit:
            raise VerifyError(
                f"{name} differs from PyTorch by {error:.2e} (relative), allowed is {limit:.0e}; "
                "do not use these graphs: export again, and report this with the network's options if it stays"
            )
        errors[name] = error

    with OrtBackend(bundle, manifest.graphs) as backend, torch.inference_mode():
        for name, error in _part_errors(backend, checkpoint).items():
            judge(name, error, limits.part)
        for graphs, name in (("split", "chain"), ("step", "step")):
            judge(name, _chain_error(Model(manifest, backend, graphs=graphs), checkpoint), limits.chain)
        judge("trajectory", _trajectory_error(manifest, backend, checkpoint, limits), limits.trajectory)
    return errors


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the largest absolute value expected; infinite where not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def _part_errors(backend: OrtBackend, checkpoint: Checkpoint) -> dict[str, float]:
    """The worst error of each part over all, five and one active tokens, with a batch of two."""
    num_tokens = checkpoint.network.options.num_tokens
    errors: dict[str, float] = {}
    for num_active in sorted({num_tokens, min(5, num_tokens), 1}):
        feeds = _feeds(checkpoint, num_active)
        for name, part in parts_of(checkpoint.network).items():
            signature = backend.signature(name)
            given = {tensor.name: feeds[tensor.name] for tensor in signature.inputs}
            expected = run_part(part, *(torch.from_numpy(array.copy()) for array in given.values()))
            found = backend.run(name, given)
            worst = max(
                relative_error(found[tensor.name], reference.numpy())
                for tensor, reference in zip(signature.outputs, expected, strict=True)
            )
            errors[name] = max(worst, errors.get(name, 0.0))
            if "hidden" in found or "hidden_out" in found:  # realistic features for the next part
                feeds["hidden"] = found.get("hidden_out", found.get("hidden"))  # type: ignore[assignment]
    return errors


def _feeds(checkpoint: Checkpoint, num_active: int) -> Arrays:
    """Inputs for any part: a batch of two with different active tokens in no order, and filled caches."""
    options, rng = checkpoint.network.options, np.random.default_rng(num_active)
    cache = (2, options.num_heads, options.num_tokens, options.d_model // options.num_heads)
    return {
        "z": rng.standard_normal((2, num_active, options.num_channels), np.float32),
        "t": np.array([0.9, 0.05], np.float32),
        "token": np.stack([rng.permutation(options.num_tokens)[:num_active] for _ in range(2)]),
        "past_key": rng.standard_normal(cache, np.float32),
        "past_value": rng.standard_normal(cache, np.float32),
    }


def _chain_error(model: Model, checkpoint: Checkpoint) -> float:
    options, rng = checkpoint.network.options, np.random.default_rng(0)
    z = rng.standard_normal((3, options.num_tokens, options.num_channels)).astype(np.float32)
    t = np.array([1.0, 0.3, 0.01], np.float32)
    expected = checkpoint.network(torch.from_numpy(z), torch.from_numpy(t)).numpy()
    return relative_error(model.score(z, t), expected)


def _trajectory_error(manifest: Manifest, backend: OrtBackend, checkpoint: Checkpoint, limits: Tolerances) -> float:
    """Three samples under the same noise, uncached, with ONNX Runtime and with PyTorch."""
    found, expected = (
        Model(manifest, rival).sample(3, steps=limits.trajectory_steps, solver=Solver.ANCESTRAL, cache=None).series
        for rival in (backend, TorchBackend(checkpoint.network))
    )
    return relative_error(found, expected)
