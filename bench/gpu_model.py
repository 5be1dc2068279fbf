"""The model of `make gpu-check`: the published size, random weights, and what the CPU computes with it.

    folder = make_model(Path("made"))
    errors_of(model, folder)          # how far a model on the GPU is off the CPU: scores, and latents of trajectories

Random weights cost what trained ones cost. Left alone they let latents grow by hundreds, which no trained network
does and half precision does not bear; `_settle` makes them behave.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.bundle import ExportOptions, export_bundle
from export.checkpoint import read_checkpoint
from export.precision import Precision
from export.verify import noise_ratio, relative_error
from runtime.cache.hold import LinearHold
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import Reuse
from runtime.sampler import Model, load
from runtime.score import has_kv
from runtime.sde import VP
from train.checkpoint import KEY, ModelFacts
from train.networks import NetworkOptions, TransformerScore

STEPS = 50  # of a trajectory that is held against the CPU
REFRESHES = (5, 20, 35, 45)  # of these
SURPRISE = (0.0, 1e-6, 1e6, 1e-6)  # that a guard is made of: it refreshes after every second one
PUBLISHED = NetworkOptions(num_tokens=187, num_channels=1, dropout=0.0)
CHECKPOINT, _REFERENCE = "random.ckpt", "reference.npz"
Errors = dict[str, tuple[float, float]]  # of what: of the largest value, and RMS over RMS


def make_model(folder: Path, options: NetworkOptions = PUBLISHED) -> Path:
    """A bundle of a network with random weights, its checkpoint, and what the CPU computes with it."""
    torch.manual_seed(0)
    network = TransformerScore(options).eval()
    _settle(network, options)
    shape = (options.num_tokens, options.num_channels)
    facts = ModelFacts(options, VP(), "frequency", torch.zeros(shape), torch.ones(shape), "random", "gpu-check")
    checkpoint = folder / CHECKPOINT
    torch.save({"state_dict": network.state_dict(), KEY: facts.to_dict()}, checkpoint)
    for precision in (Precision.FP32, Precision.FP16):
        export_bundle(read_checkpoint(checkpoint), ExportOptions(bundle_of(folder, precision), precision=precision))
    with load(bundle_of(folder)) as model:
        np.savez(folder / _REFERENCE, **computed(model))  # type: ignore[arg-type]
    return folder


def bundle_of(folder: Path, precision: Precision = Precision.FP32) -> Path:
    """Where the bundle of this precision lies."""
    return folder / f"bundle-{precision}"


@torch.inference_mode()
def _settle(network: TransformerScore, options: NetworkOptions) -> None:
    """Make the score nearly -2 z, which pulls latents back."""
    network.embedder.weight *= 2.0
    for layer in network.backbone.layers:  # z is heard through all of them
        layer.self_attn.out_proj.weight *= 0.3
        layer.linear2.weight *= 0.3
    z, seen = 1.5 * torch.randn(16, options.num_tokens, options.num_channels), list[torch.Tensor]()
    hook = network.unembedder.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    network(z, torch.rand(len(z)))
    hook.remove()
    features = torch.nn.functional.pad(seen[0].flatten(0, 1), (0, 1), value=1.0)
    ridge = features.T @ features + torch.eye(features.shape[1])
    found = torch.linalg.solve(ridge, features.T @ (-2.0 * z.flatten(0, 1)))
    network.unembedder.weight.copy_(found[:-1].T)
    network.unembedder.bias.copy_(found[-1])


def computed(model: Model) -> dict[str, NDArray[np.float32]]:
    """Scores at some times, and the latents of trajectories: uncached, of plans (fit and guard made up), of K/V."""
    network, rng = model.manifest.network, np.random.default_rng(0)
    shape = (network.num_tokens, network.num_channels)
    score = model.score(rng.standard_normal((2, *shape)).astype(np.float32), np.array([0.2, 0.8], np.float32))
    usual = np.array([1.0, 0.0, 0.0, 0.0])[:, None, None]  # the new value, as it is
    fit = tuple(LinearHold(*(usual + 0.05 * rng.standard_normal((4, *shape))).astype(np.float32)) for _ in REFRESHES)
    fitted = replace(plan_of(model), reuse=Reuse.RESIDUAL_FITTED, fit=fit)
    uncached = model.sample(2, steps=STEPS, solver="ancestral", cache=None)
    guarded = replace(plan_of(model), surprise=SURPRISE)
    found = {"score": score, "trajectory": uncached.z}
    found |= {"plan": model.sample(2, cache=fitted).z, "guard": model.sample(2, cache=guarded).z}
    if has_kv(model.backend):
        lows = E2CRF(R=10, K=2, low_every=3, alpha_prior=0.1)
        found["cached"] = model.sample(2, steps=STEPS, solver="ddim", cache=lows).z
    return found


def plan_of(model: Model, steps: int = STEPS) -> Plan:
    """The plan that is timed: four refreshes, in as many steps."""
    refreshes = tuple(step * steps // STEPS for step in REFRESHES)
    return Plan(source_digest=model.manifest.source.digest, steps=steps, solver="ddim", refreshes=refreshes)


def errors_of(model: Model, folder: Path) -> Errors:
    """How far a model is off the CPU's reference."""
    with np.load(folder / _REFERENCE) as reference:
        return {
            what: (relative_error(found, reference[what]), noise_ratio(found, reference[what]))
            for what, found in computed(model).items()
        }
