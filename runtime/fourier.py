"""The real, orthonormal DFT as a sequence of real tokens, and what each token means.

A series of N time steps becomes N real tokens, in this order:

    Re(0) .. Re(floor(N/2)), Im(1) .. Im(ceil(N/2) - 1)

so mirror symmetry is already used and nothing is stored twice. Frequency 0 (and N/2 for even N) has one
token; every other frequency has two, a Re and an Im token far apart in the sequence. Whoever speaks of
"the low frequencies" therefore means two index ranges: use `frequencies`, never raw indices.
Layout as in FourierDiffusion (Crabbé et al., arXiv 2402.05933).
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def num_real_tokens(num_tokens: int) -> int:
    """How many of the N tokens are real parts: floor(N/2) + 1."""
    return num_tokens // 2 + 1


def dft(x: Array) -> Array:
    """Series [B, N, C] in the time domain -> tokens [B, N, C], same dtype.

    The energy of a series is the sum of `(token / G)^2`, since mirrored frequencies are kept once.
    """
    num_tokens = x.shape[1]
    spectrum = np.fft.rfft(x, axis=1, norm="ortho")
    imaginary = spectrum.imag[:, 1 : num_tokens - num_real_tokens(num_tokens) + 1]
    return np.concatenate([spectrum.real, imaginary], axis=1).astype(x.dtype, copy=False)


def idft(tokens: Array) -> Array:
    """Tokens [B, N, C] -> series [B, N, C] in the time domain, same dtype; the inverse of `dft`."""
    num_tokens = tokens.shape[1]
    num_real = num_real_tokens(num_tokens)
    spectrum = tokens[:, :num_real].astype(np.result_type(tokens.dtype, np.complex64))
    spectrum.imag[:, 1 : num_tokens - num_real + 1] = tokens[:, num_real:]
    return np.fft.irfft(spectrum, n=num_tokens, axis=1, norm="ortho").astype(tokens.dtype, copy=False)


def frequencies(num_tokens: int) -> NDArray[np.int64]:
    """The frequency f(k) of every token k, [N]; both tokens of a frequency carry the same number."""
    num_real = num_real_tokens(num_tokens)
    index = np.arange(num_tokens, dtype=np.int64)
    return np.where(index < num_real, index, index - num_real + 1)


def noise_shape(num_tokens: int) -> NDArray[np.float64]:
    """The standard deviation G of each token's white noise, [N]: 1 for real-only frequencies, else 1/sqrt(2).

    White noise in the time domain, seen through a unitary DFT and with its mirror half dropped
    (arXiv 2402.05933, section 3).
    """
    tokens_per_frequency = np.bincount(frequencies(num_tokens))
    shape: NDArray[np.float64] = np.where(tokens_per_frequency == 1, 1.0, np.sqrt(0.5))
    return shape[frequencies(num_tokens)]
