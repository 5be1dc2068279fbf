"""Counter-based noise: the draw for (seed, sample, step) is the same wherever and whenever it is made.

Nothing here has a state to lose. The bits come from Philox-4x64-10 (Salmon et al. 2011) as NumPy ships it,
keyed by the seed and counted by (sample, step), and become normals by the Box-Muller transform, one pair
from each 64-bit word. No rejection is involved, so a GPU kernel can make the very same numbers from the
same counters, and a batch, a worker or a resumed run sees what one long run would have seen.

Counter layout (256 bits, low word first): word 0 = step * ceil(values / 8) + block, word 1 = sample,
words 2 and 3 zero; key = (seed, purpose). Step 0 is the prior; the noise of solver step i is step i + 1.
Purpose 0 is the noise, purpose 1 the choice of probes.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from runtime.errors import require

_WORDS_PER_BLOCK = 4  # Philox-4x64 makes four 64-bit words per counter
_MASK = 2**64 - 1
_UNIT = np.float32(2.0**-32)
_TURN = np.float32(2.0 * np.pi * 2.0**-32)


def _normals(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Box-Muller in float32: words [..., W] -> normals [..., 2 W], the W cosines before the W sines."""
    halves = np.ascontiguousarray(words, "<u8").view("<u4").astype(np.float32)
    angle = halves[..., 0::2] * _TURN  # from the low 32 bits
    radius = halves[..., 1::2] + np.float32(0.5)  # from the high 32 bits
    radius *= _UNIT  # in (0, 1]
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    normals, width = np.empty_like(halves), angle.shape[-1]
    for function, part in ((np.cos, normals[..., :width]), (np.sin, normals[..., width:])):
        function(angle, out=part)
        part *= radius
    return normals


def _words(
    seed: int, samples: NDArray[np.int64], first_step: int, num_steps: int, num_values: int, purpose: int = 0
) -> NDArray[np.uint64]:
    """The raw words [num_steps, len(samples), W] that `num_values` normals per sample and step come from."""
    _require_seed(seed)
    blocks_per_step = -(-num_values // (2 * _WORDS_PER_BLOCK))
    words = np.empty((len(samples), num_steps * blocks_per_step * _WORDS_PER_BLOCK), np.uint64)
    for row, sample in enumerate(samples.tolist()):
        # NumPy counts up before it makes a block, so start one below the first counter.
        counter = ((sample << 64) + first_step * blocks_per_step - 1) % 2**256
        words[row] = _BITS.after(counter, (seed, purpose), words.shape[1])
    return words.reshape(len(samples), num_steps, -1).swapaxes(0, 1)


class _Bits(threading.local):
    """One generator for each thread, which is told where to begin: a new one for each sample takes twice as long."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(0)
        self._state = self._philox.state

    def after(self, counter: int, key: tuple[int, int], num_words: int) -> NDArray[np.uint64]:
        """The words of the counters that follow one of 256 bits."""
        self._state["state"] = {
            "counter": np.array([(counter >> shift) & _MASK for shift in (0, 64, 128, 192)], np.uint64),
            "key": np.array(key, np.uint64),
        }
        self._philox.state = self._state
        return self._philox.random_raw(num_words)


_BITS = _Bits()


def _require_seed(seed: int) -> None:
    require(0 <= seed < 2**64, "the seed must be an integer from 0 to 2^64 - 1", seed, "choose one in that range")


def standard_normal(
    seed: int, samples: NDArray[np.int64], first_step: int, num_steps: int, num_values: int
) -> NDArray[np.float32]:
    """Standard normals [num_steps, len(samples), num_values] for steps first_step, first_step + 1, ...

    `seed` is any integer from 0 to 2^64 - 1, `samples` the sample indices (not positions in the batch).
    """
    return _normals(_words(seed, samples, first_step, num_steps, num_values))[..., :num_values]


def uniform(seed: int, samples: NDArray[np.int64], step: int, num_values: int) -> NDArray[np.float32]:
    """Uniform draws in [0, 1) for the choices of a policy at a step, [len(samples), num_values]."""
    words = _words(seed, samples, step, 1, 2 * num_values, purpose=1)[0, :, :num_values]  # a word each
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


class NoiseStream:
    """The noise of one batch, step by step; made in chunks, so that a step costs microseconds.

    `samples` [B] are the sample indices, `shape` = (N, C) the tokens of one sample, `num_steps` the length
    of the trajectory. `prior()` is step 0 and `step(i)` the noise of solver step i; both float32 [B, N, C].
    `priors` are those of the call that the batch belongs to, where there is more than one batch.
    """

    WORD_CHUNK = 1 << 18  # values whose raw words are drawn at once: enough to hide the start of a stream
    NORMAL_CHUNK = 1 << 14  # values made normal at once: they stay in a core's cache

    def __init__(
        self,
        seed: int,
        samples: NDArray[np.int64],
        shape: tuple[int, int],
        num_steps: int,
        priors: "Priors | None" = None,
    ) -> None:
        _require_seed(seed)  # of a batch on a GPU, too
        self.seed, self.samples, self._shape, self._num_steps = seed, samples, shape, num_steps
        self._priors = priors
        values = max(1, len(samples) * shape[0] * shape[1])
        self._words_steps = max(1, self.WORD_CHUNK // values)
        self._normals_steps = max(1, self.NORMAL_CHUNK // values)
        self._words_first = self._normals_first = 0
        self._words = np.empty((0,), np.uint64)
        self._normals = np.empty((0,), np.float32)

    def prior(self) -> NDArray[np.float32]:
        """The standard normals that the prior is scaled from, [B, N, C]."""
        if self._priors is not None:
            return self._priors.of(int(self.samples[0]), len(self.samples))
        num_values = self._shape[0] * self._shape[1]
        return standard_normal(self.seed, self.samples, 0, 1, num_values).reshape(-1, *self._shape)

    def step(self, i: int) -> NDArray[np.float32]:
        """The standard normals of solver step i, [B, N, C]; a view that a later call may replace."""
        if not self._normals_first <= i < self._normals_first + len(self._normals):
            self._make_normals(i)
        normals: NDArray[np.float32] = self._normals[i - self._normals_first]
        return normals

    def add_weighted(self, i: int, j: int, weights: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Add the normals of steps i .. j - 1, each times its `weights` [j - i, N, C or 1], to `out` [B, N, C]."""
        step = i
        while step < j:
            self.step(step)  # makes the chunk that holds it
            first, past = step - self._normals_first, min(j - self._normals_first, len(self._normals))
            part = weights[step - i : step - i + past - first, None]
            out += np.multiply(self._normals[first:past], part).sum(axis=0)
            step = self._normals_first + past

    def _make_normals(self, i: int) -> None:
        num_values = self._shape[0] * self._shape[1]
        if not self._words_first <= i < self._words_first + len(self._words):
            num_steps = min(self._words_steps, self._num_steps - i)
            self._words_first = i
            self._words = _words(self.seed, self.samples, i + 1, num_steps, num_values)
        first = i - self._words_first
        normals = _normals(self._words[first : first + self._normals_steps])[..., :num_values]
        self._normals_first = i
        self._normals = np.ascontiguousarray(normals).reshape(*normals.shape[:2], *self._shape)


class Priors:
    """Step 0 of samples first .. last - 1, asked for batch by batch in turn.

    A draw for one sample costs mostly its start, so those of small batches are made several at once.
    """

    def __init__(self, seed: int, first: int, last: int, shape: tuple[int, int]) -> None:
        self._seed, self._last, self._shape = seed, last, shape
        self._made, self._made_first = np.empty((0, *shape), np.float32), first

    def of(self, first: int, size: int) -> NDArray[np.float32]:
        """The standard normals of samples first .. first + size - 1, [size, N, C]; a view."""
        at = first - self._made_first
        if not 0 <= at <= len(self._made) - size:
            num_values = self._shape[0] * self._shape[1]
            count = max(size, min(NoiseStream.NORMAL_CHUNK // num_values, self._last - first))
            drawn = standard_normal(self._seed, np.arange(first, first + count), 0, 1, num_values)
            self._made, self._made_first, at = drawn.reshape(count, *self._shape), first, 0
        return self._made[at : at + size]
