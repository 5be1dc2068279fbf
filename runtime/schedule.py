"""Everything about a trajectory that depends on the step alone, tabulated once.

With these tables a step without a network call is a handful of multiply-adds over [B, N, C], and a GPU
backend finds all it needs in device memory behind a step counter.

The Gaussian data prediction (standardised data has unit variance per token and channel):
`g(z, t) = alpha z / (alpha^2 + sigma^2 G^2)`, zero for tokens that are constant in the data.
A reuse mode says how the data prediction follows from the moving z and one cached value v per token:
`z0 = from_latent z + from_value v`, with

    feature    v = the score        z0 = (z + sigma^2 G^2 v) / alpha
    noise      v = sigma G score    z0 = (z + sigma G v) / alpha
    data       v = z0               z0 = v
    residual   v = z0 - g(z, t)     z0 = g(z, t) + v

In the mode `residual-fitted` it is a decision that says which v is held after a refresh (`cache.hold`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.manifest import Manifest
from runtime.cache.policy import Reuse
from runtime.sde import process_from_facts
from runtime.solvers import SOLVERS, Solver, TimeGrid, Times, time_grid

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Schedule:
    """Tables of one trajectory: [T] per step, [T, N, 1] per step and token, [T, N, C] per channel too."""

    times: Times  # [T]
    prior_scale: Table  # [N, 1], the prior is prior_scale * e
    gaussian: Table  # [T, N, C or 1], g(z, t) = gaussian z
    score_to_data: Table  # [T, N, 1], z0 = latent_to_data z + score_to_data score
    latent_to_data: Table  # [T]
    from_latent: Table  # [T, N, C or 1] of the reuse mode
    from_value: Table  # [T, N, 1] of the reuse mode
    step_latent: Table  # [T], the solver: z_next = latent z + data z0 + previous z0_before + noise e
    step_data: Table  # [T]
    step_previous: Table  # [T]
    step_noise: Table  # [T, N, 1], G included
    fresh_latent: Table  # [T], the same where the score of all tokens is new: z_next = latent z + score s + noise e.
    fresh_score: Table  # [T, N, 1]; at small t a detour over z0 would cancel: 1e-4 of z in Euler-Maruyama's last step
    impact: Table  # [T], effect of an error of z0 at a step on the finished series, both in data std
    is_stochastic: bool  # whether any step adds noise
    is_multistep: bool  # whether any step looks at the data prediction before

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.times)


def schedule_of(manifest: Manifest, solver: Solver, num_steps: int, grid: TimeGrid, reuse: Reuse) -> Schedule:
    """The tables for a model, a solver, T steps on a time grid, and a reuse mode."""
    process = process_from_facts(manifest.diffusion.process, manifest.diffusion.parameters)
    times = time_grid(grid, process, num_steps, manifest.diffusion.eps)
    shape = np.asarray(manifest.tokens.noise_shape)[None, :, None]  # G, [1, N, 1]
    varies = np.asarray(manifest.standardisation.std)[None] > 0  # [1, N, C]
    alpha, sigma = process.alpha(times)[:, None, None], process.sigma(times)[:, None, None]
    if (varies == varies[..., :1]).all():
        varies = varies[..., :1]  # one channel stands for all
    gaussian = varies * alpha / (alpha**2 + (sigma * shape) ** 2)
    score_to_data = (sigma * shape) ** 2 / alpha
    one, zero = np.ones_like(score_to_data), np.zeros_like(score_to_data)
    from_latent, from_value = {
        Reuse.FEATURE: (one / alpha, score_to_data),
        Reuse.FEATURE_LINEAR: (one / alpha, score_to_data),
        Reuse.NOISE_LINEAR: (one / alpha, sigma * shape / alpha),
        Reuse.DATA: (zero, one),
        Reuse.DATA_LINEAR: (zero, one),
        Reuse.RESIDUAL: (gaussian, one),
        Reuse.RESIDUAL_LINEAR: (gaussian, one),
        Reuse.RESIDUAL_FITTED: (gaussian, one),
    }[reuse]
    table = SOLVERS[solver](process, times)
    tables = {
        "prior_scale": process.prior_scale * shape[0],
        "gaussian": gaussian,
        "score_to_data": score_to_data,
        "latent_to_data": 1.0 / alpha[:, 0, 0],
        "from_latent": from_latent,
        "from_value": from_value,
        "step_latent": table.latent,
        "step_data": table.data,
        "step_previous": table.previous,
        "step_noise": table.noise[:, None, None] * shape,
        "fresh_latent": table.latent + table.data / alpha[:, 0, 0],
        "fresh_score": table.data[:, None, None] * score_to_data,
        "impact": np.append(alpha[1:, 0, 0], 1.0) * table.data,
    }
    narrowed = {id(value): value.astype(np.float32) for value in tables.values()}  # two of them may be one
    return Schedule(
        times,
        **{name: narrowed[id(value)] for name, value in tables.items()},
        is_stochastic=bool(table.noise.any()),
        is_multistep=bool(table.previous.any()),
    )
