"""A bundle whose network is known in closed form: Gaussian data, served by the fake backend.

Every test that needs a perfect model uses it: its samples are Gaussian series with the statistics of
`real_series`, so that they must score as real ones do.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.manifest import (
    MANIFEST_FILE,
    SCHEMA,
    Diffusion,
    Manifest,
    Network,
    Source,
    Standardisation,
    Tokens,
)
from runtime.fourier import frequencies, idft, noise_shape
from runtime.sde import EPS

NUM_TOKENS = 16


def token_std() -> NDArray[np.float64]:
    """Standard deviation of each token, [N, 1]: a spectrum that falls with frequency."""
    return (1.0 / (1.0 + frequencies(NUM_TOKENS)))[:, None]


def real_series(n: int, seed: int) -> NDArray[np.float32]:
    """Series [n, N, 1] of the Gaussian data, mean 1."""
    tokens = np.random.default_rng(seed).standard_normal((n, NUM_TOKENS, 1)) * token_std()
    return (1.0 + idft(tokens)).astype(np.float32)


def write_gaussian_bundle(folder: Path) -> Path:
    """Write the bundle; open it with backend `fake`."""
    mean = np.zeros((NUM_TOKENS, 1))
    mean[0] = np.sqrt(NUM_TOKENS)  # a series of ones
    manifest = Manifest(
        schema=SCHEMA,
        source=Source("gaussian.ckpt", "0" * 64, data="gaussian"),
        network=Network("none", NUM_TOKENS, 1, d_model=0, num_heads=0, num_layers=0, d_ff=0),
        diffusion=Diffusion("vp", {"beta_0": 0.1, "beta_1": 20.0}, EPS, "frequency"),
        tokens=Tokens(
            frequencies(NUM_TOKENS).tolist(),
            noise_shape(NUM_TOKENS).tolist(),
            (token_std()[:, 0] ** 2).tolist(),
        ),
        standardisation=Standardisation(mean.tolist(), token_std().tolist()),
        graphs={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return folder
