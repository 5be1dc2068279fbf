"""Small models for the tests: random transformers as checkpoints and bundles, and Gaussians known in closed form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle import ExportOptions, export_bundle
from export.checkpoint import Checkpoint, read_checkpoint
from export.manifest import SCHEMA, Diffusion, Manifest, Network, Source, Standardisation, Tokens
from runtime.backends.fake import FakeBackend, whole_graph
from runtime.fourier import dft, frequencies, noise_shape
from runtime.sampler import Model
from runtime.sde import Process, facts_from_process
from train.networks import NetworkOptions, TransformerScore

VP_FACTS = {"kind": "vp", "parameters": {"beta_0": 0.1, "beta_1": 20.0}}


def checkpoint_content(num_tokens: int = 15, num_channels: int = 2, *, seed: int = 0, **network: Any) -> dict[str, Any]:
    """What the train room writes, for a network with random weights."""
    small = {"d_model": 12, "num_heads": 3, "num_layers": 2, "d_ff": 16} | network
    options = NetworkOptions(num_tokens, num_channels, **small)
    torch.manual_seed(seed)
    module = TransformerScore(options)
    with torch.no_grad():  # outgrow max_norm in some rows, so that the renormalisation shows
        module.pos_encoder.embedding.weight[::2] *= 3.0
    statistics = torch.linspace(0.5, 2.0, num_tokens * num_channels).reshape(num_tokens, num_channels)
    return {
        "state_dict": module.state_dict(),
        "e2crf": {
            "schema": 1,
            "backbone": "transformer",
            "network": options.to_dict(),
            "process": VP_FACTS,
            "eps": 1e-5,
            "domain": "frequency",
            "feature_mean": statistics - 1.0,
            "feature_std": statistics,
            "data": "random",
            "run_id": "tiny",
        },
    }


def write_checkpoint(path: Path, content: dict[str, Any] | None = None, **options: Any) -> Path:
    """A checkpoint file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint_content(**options) if content is None else content, path)
    return path


def make_bundle(folder: Path, **options: Any) -> tuple[Path, Checkpoint]:
    """A verified bundle of a random network, and its checkpoint."""
    checkpoint = read_checkpoint(write_checkpoint(folder / "tiny.ckpt", **options))
    export_bundle(checkpoint, ExportOptions(folder / "bundle"))
    return folder / "bundle", checkpoint


@dataclass(frozen=True)
class Gaussian:
    """Gaussian series [N, C=1] with a mean and a covariance, and the exact model of them."""

    model: Model
    mean: NDArray[np.float64]  # [N]
    covariance: NDArray[np.float64]  # [N, N]
    backend: FakeBackend


def gaussian(num_tokens: int, process: Process, domain: str) -> Gaussian:
    """A smooth random process on N points, and a model whose score is that of its noisy marginals.

    With standardised tokens of correlation S the marginal at t is N(0, alpha^2 S + sigma^2 diag(G^2)).
    """
    steps = np.arange(num_tokens)
    covariance = 0.3 * np.eye(num_tokens) + np.exp(-0.5 * ((steps[:, None] - steps) / 3.0) ** 2)
    covariance *= np.outer(1.0 + steps / num_tokens, 1.0 + steps / num_tokens)
    mean = np.sin(steps)
    is_frequency = domain == "frequency"
    basis = dft(np.eye(num_tokens)[:, :, None])[:, :, 0].T if is_frequency else np.eye(num_tokens)
    token_covariance = basis @ covariance @ basis.T
    std = np.sqrt(np.diag(token_covariance))
    correlation = token_covariance / np.outer(std, std)
    shape = noise_shape(num_tokens) if is_frequency else np.ones(num_tokens)
    kind, parameters = facts_from_process(process)
    graph = whole_graph(num_tokens, 1)
    manifest = Manifest(
        schema=SCHEMA,
        source=Source("none", "none"),
        network=Network("gaussian", num_tokens, 1, 1, 0, 0, 0),
        diffusion=Diffusion(kind, parameters, 1e-5, domain),
        tokens=Tokens((frequencies(num_tokens) if is_frequency else steps).tolist(), shape.tolist(), (std**2).tolist()),
        standardisation=Standardisation((basis @ mean)[:, None].tolist(), std[:, None].tolist()),
        graphs={"step": graph},
    )

    def score(feeds: Any) -> dict[str, NDArray[Any]]:
        t = float(feeds["t"][0])
        marginal = process.alpha(t) ** 2 * correlation + np.diag((process.sigma(t) * shape) ** 2)
        return {"score": -np.linalg.solve(marginal, feeds["z"][:, :, 0].T).T[:, :, None].astype(np.float32)}

    backend = FakeBackend({"step": graph}, {"step": score})
    return Gaussian(Model(manifest, backend), mean, covariance, backend)
