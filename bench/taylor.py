"""Steps between full computations predicted by a Taylor expansion, as TaylorSeer and its descendants do.

    with Model(manifest, TaylorBackend(backend, manifest, computed=(0, 100, 200), order=2)) as model:
        model.sample(64, solver="ddim", cache=E2CRF(policy="never"))

TaylorSeer (Liu et al. 2025, arXiv 2503.06923, github.com/Shenyi-Z/TaylorSeer) computes the first few steps and then
every n-th one, keeps the differences of what modules gave at the last computed steps, each divided by the distance
of the last two, and expands from the last computed step: `sum over i of x^i / i! D_i` with D_0 the last value and
D_(i+1) = (D_i - D_i before) / (t - t before). A difference that does not exist yet is left out, so that the order grows
with the computed steps. Defaults there: DiT interval 4, order 4, the first 2 steps computed; FLUX interval 6, order 1,
the first 3. cache-dit (github.com/vipshop/cache-dit) takes order 1 and recommends 1 or 2.

What is expanded here is the network's output, as OpenVINO GenAI's "TaylorSeer Lite" does: the head is linear and
the same at every step, score = W z_L + b, and the weights of an expansion (1, x, x^2 / 2 over differences of computed
values) give b the weight 1 and its differences 0, so the expansion of the last layer's features z_L put through the
head is the expansion of the score. To expand every module of every layer, as the first form does, costs a sum over
the layers at each predicted step, for an output that the sampler sees through the same head.

The originals' networks predict the noise, this one the score, which grows as 1 / sigma towards the end. `of_noise`
expands sigma times the score, which is the noise but for a constant of each token. Either can be the better one.

Order 1 is `Reuse.FEATURE_LINEAR` and `NOISE_LINEAR` of the runtime, whose runs of steps are taken at once. This
backend is for the other orders and answers step by step, for a batch of one in 10 microseconds, and 100 more pass in
the sampler. On a uniform time grid differences over t are the originals' over step numbers in other units.
"""

from collections.abc import Callable

import numpy as np

from bench.whole_steps import Buffers, WholeSteps
from export.manifest import Manifest
from runtime.backends.base import Backend
from runtime.errors import require
from runtime.score import ScoreNetwork
from runtime.sde import process_from_facts


class TaylorBackend(WholeSteps):
    """Computes the network at steps `computed` of its trajectory (0 is the first that asks) and expands in between.

    It takes a backend over and leaves it open: whoever opened that closes it.
    """

    def __init__(
        self, inner: Backend, manifest: Manifest, computed: tuple[int, ...], order: int, *, of_noise: bool = False
    ) -> None:
        super().__init__(manifest, inner.name)
        require(0 in computed, "the first network step must be computed", computed, "begin with 0")
        require(order >= 0, "the order must not be negative", order, "1 and 2 are usual")
        self._inner, self._manifest, self._computed, self._order = inner, manifest, frozenset(computed), order
        process = process_from_facts(manifest.diffusion.process, manifest.diffusion.parameters)
        self._scale = process.sigma if of_noise else np.ones_like

    def cost(self, k: int) -> float:
        """1 where the network is computed, else 0."""
        return float(k in self._computed)

    def kept_bytes(self, batch: int) -> int:
        """The differences, and those of before."""
        network = self._manifest.network
        return 4 * (2 * self._order + 1) * batch * network.num_tokens * network.num_channels

    def prepare(self, inputs: Buffers, outputs: Buffers) -> Callable[[int], None]:
        """The answer to network step k over these buffers."""
        z, t, score, order = inputs["z"], inputs["t"], outputs["score"], self._order
        network = ScoreNetwork(self._manifest, self._inner, len(z)).call(z.shape[1])
        differences = np.zeros((order + 1, *score.shape), np.float32)
        before = np.zeros_like(differences)
        known, made = 0, 0.0  # differences that exist, and the time of the last computed step

        def scale() -> np.float32:
            return np.float32(self._scale(t[:1].astype(np.float64))[0])

        def compute() -> None:
            nonlocal known, made
            network.z[...], network.t[...] = z, t
            network.run()
            before[...] = differences
            score[...] = network.score
            np.multiply(score, scale(), out=differences[0])
            for i in range(min(known, order)):
                np.subtract(differences[i], before[i], out=differences[i + 1])
                differences[i + 1] /= t[0] - made
            known, made = known + 1, float(t[0])

        def expand() -> None:
            elapsed, highest = t[0] - made, min(known - 1, order)
            score[...] = differences[highest]
            for i in range(highest, 0, -1):  # Horner: D_(i-1) + x / i (D_i + x / (i + 1) (...))
                np.multiply(score, elapsed / i, out=score)
                np.add(score, differences[i - 1], out=score)
            np.divide(score, scale(), out=score)

        def answer(k: int) -> None:
            nonlocal known
            if k == 0:
                known = 0
            (compute if k in self._computed else expand)()

        return answer
