"""Is the bundle the network? Every part, then the chain, then a whole trajectory, against PyTorch.

ONNX Runtime and PyTorch see the same inputs, in float32; the error is the largest absolute difference over
the largest absolute value of the reference. A miss names the part. The inputs are random but reproducible:
tokens in arbitrary order and number, caches filled with values, so that a wrong index cannot hide.

Some networks make much of little: what float32 rounds in one step of an untrained or poorly trained one may grow to
per cents over a trajectory, in PyTorch as well. Where a trajectory is beyond its tolerance, PyTorch's own float32 is
therefore held against its float64, and three times that is allowed. A trajectory that leaves float32 in PyTorch
itself is nothing to be held against, and no model to be served.

Graphs in fp16 and bf16 are held against the same float32 reference, by SQNR: 10 log10 of the reference's power
over that of the difference. They are emulated, since ONNX Runtime on a CPU has no bf16 products and leaves out
roundings of fp16 that a GPU makes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from export.checkpoint import Checkpoint
from export.graphs import tensors_of
from export.manifest import Graph, Manifest
from export.precision import Precision, emulated
from export.reference import TorchBackend
from export.split import parts_of, run_part
from runtime.backends.base import Backend
from runtime.backends.ort import OrtBackend
from runtime.sampler import Model
from runtime.score import has_kv
from runtime.solvers import Solver

Arrays = dict[str, NDArray[Any]]
Measure = Callable[[NDArray[Any], NDArray[Any]], float]  # found, expected -> the larger the worse
_LEAST_RATIO = 1e-10  # 200 dB: what is exactly equal


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
    """Measured by name (every part, `chain`, `step`, `trajectory`); raises at the first miss.

    Relative errors, held against `tolerances`; for an fp16 or bf16 bundle SQNR in dB, held against what the
    precision is known to give.
    """
    limits, precision = tolerances or Tolerances(), Precision(manifest.precision)
    is_exact = precision is Precision.FP32
    measure = relative_error if is_exact else noise_ratio
    measured: dict[str, float] = {}

    def judge(name: str, error: float, kind: str) -> None:
        if is_exact:
            measured[name], limit = error, float(getattr(limits, kind))
            if kind == "trajectory" and not error <= limit:
                limit = max(limit, 3.0 * _rounding_error(manifest, checkpoint, limits))
            if not error <= limit:
                raise VerifyError(
                    f"{name} differs from PyTorch by {error:.2e} (relative), allowed is {limit:.0e}; "
                    "do not use these graphs: export again, and report this with the network's options if it stays"
                )
            return
        measured[name], least = sqnr_db(error), precision.min_sqnr_db[kind]
        if not measured[name] >= least:
            raise VerifyError(
                f"{name} in {precision} is {measured[name]:.1f} dB (SQNR) from PyTorch, needed are {least:.0f} dB; "
                "this network does not bear that precision: export it in another one"
            )

    with _opened(bundle, manifest) as backend, torch.inference_mode():
        for name, error in _part_errors(backend, checkpoint, precision, measure).items():
            judge(name, error, "part")
        for graphs, name in (("split", "chain"), ("step", "step")):
            judge(name, _chain_error(Model(manifest, backend, graphs=graphs), checkpoint, measure), "chain")
        judge("trajectory", _trajectory_error(manifest, backend, checkpoint, limits, measure), "trajectory")
    return measured


@contextmanager
def _opened(bundle: Path, manifest: Manifest) -> Iterator[OrtBackend]:
    """The graphs in ONNX Runtime, those in half precision emulated."""
    if manifest.precision == Precision.FP32:
        with OrtBackend(bundle, manifest.graphs) as backend:
            yield backend
        return
    with TemporaryDirectory() as folder:
        graphs = {}
        for name, graph in manifest.graphs.items():
            model, file = emulated(onnx.load(bundle / graph.file)), Path(folder) / f"{name}.onnx"
            file.write_bytes(model.SerializeToString())
            graphs[name] = Graph(file.name, "", tensors_of(model.graph.input), tensors_of(model.graph.output))
        with OrtBackend(Path(folder), graphs) as backend:
            yield backend


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest absolute difference over the largest absolute value expected; infinite where not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def noise_ratio(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """RMS of the difference over the RMS expected; infinite where not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    noise, signal = found.astype(np.float64) - expected, expected.astype(np.float64)
    return float(np.linalg.norm(noise)) / (float(np.linalg.norm(signal)) or 1.0)


def sqnr_db(ratio: float) -> float:
    """A noise ratio in dB."""
    return float(-20.0 * np.log10(max(ratio, _LEAST_RATIO)))


def _part_errors(
    backend: OrtBackend, checkpoint: Checkpoint, precision: Precision, measure: Measure
) -> dict[str, float]:
    """The worst error of each part over all and, with K/V, five and one active tokens, with a batch of two."""
    num_tokens = checkpoint.network.options.num_tokens
    errors: dict[str, float] = {}
    for num_active in sorted({num_tokens, min(5, num_tokens), 1} if has_kv(backend) else {num_tokens}):
        feeds = _feeds(checkpoint, num_active, precision)
        for name, part in parts_of(checkpoint.network).items():
            signature = backend.signature(name)
            given = {tensor.name: feeds[tensor.name] for tensor in signature.inputs}
            fed = {tensor.name: given[tensor.name].astype(tensor.dtype, copy=False) for tensor in signature.inputs}
            expected = run_part(part, *(torch.from_numpy(array.copy()) for array in given.values()))
            found = backend.run(name, fed)
            worst = max(
                measure(found[tensor.name], reference.numpy())
                for tensor, reference in zip(signature.outputs, expected, strict=True)
            )
            errors[name] = max(worst, errors.get(name, 0.0))
            if "hidden" in found or "hidden_out" in found:  # realistic features for the next part
                feeds["hidden"] = found.get("hidden_out", found.get("hidden"))  # type: ignore[assignment]
    return errors


def _feeds(checkpoint: Checkpoint, num_active: int, precision: Precision) -> Arrays:
    """Inputs for any part, in float32: a batch of two with different active tokens in no order, and filled caches.

    The caches hold values that the precision has.
    """
    options, rng = checkpoint.network.options, np.random.default_rng(num_active)
    heads = max(1, options.num_heads)  # without K/V nobody asks for a cache
    cache = (2, heads, options.num_tokens, options.d_model // heads)
    return {
        "z": rng.standard_normal((2, num_active, options.num_channels), np.float32),
        "t": np.array([0.9, 0.05], np.float32),
        "token": np.stack([rng.permutation(options.num_tokens)[:num_active] for _ in range(2)]),
        "past_key": precision.rounded(rng.standard_normal(cache, np.float32)),
        "past_value": precision.rounded(rng.standard_normal(cache, np.float32)),
    }


def _chain_error(model: Model, checkpoint: Checkpoint, measure: Measure) -> float:
    options, rng = checkpoint.network.options, np.random.default_rng(0)
    z = rng.standard_normal((3, options.num_tokens, options.num_channels)).astype(np.float32)
    t = np.array([1.0, 0.3, 0.01], np.float32)
    expected = checkpoint.network(torch.from_numpy(z), torch.from_numpy(t)).numpy()
    return measure(model.score(z, t), expected)


def _trajectory_error(
    manifest: Manifest, backend: OrtBackend, checkpoint: Checkpoint, limits: Tolerances, measure: Measure
) -> float:
    """Three samples under the same noise, uncached, with ONNX Runtime and with PyTorch, whose own must be finite."""
    expected = _trajectory(manifest, TorchBackend(checkpoint.network), limits)
    if not np.isfinite(expected).all():
        raise VerifyError(
            f"a trajectory of {limits.trajectory_steps} steps must stay finite, found PyTorch's own overflowing in "
            "float32: the network makes too much of what it is given; take an earlier checkpoint, or train again with "
            "a smaller lr_max"
        )
    return measure(_trajectory(manifest, backend, limits), expected)


def _rounding_error(manifest: Manifest, checkpoint: Checkpoint, limits: Tolerances) -> float:
    """The same between PyTorch in float32 and in float64."""
    backends = (TorchBackend(checkpoint.network), TorchBackend(checkpoint.network, torch.float64))
    return relative_error(*(_trajectory(manifest, backend, limits) for backend in backends))


def _trajectory(manifest: Manifest, backend: Backend, limits: Tolerances) -> NDArray[np.float32]:
    model = Model(manifest, backend)
    return model.sample(3, steps=limits.trajectory_steps, solver=Solver.ANCESTRAL, cache=None).series
