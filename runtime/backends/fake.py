"""Plain NumPy functions as graphs, so that sampler, cache and command line run without ONNX Runtime.

A graph is a function from named arrays to named arrays. `gaussian_backend` serves a manifest with the score
of standardised Gaussian data, known in closed form: the oracle of the tests, and a quick way to try the API.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.manifest import Graph, Manifest, Tensor
from runtime.backends.base import Arrays, BackendBase
from runtime.sde import process_from_facts

GraphFunction = Callable[[Arrays], dict[str, NDArray[Any]]]


class FakeBackend(BackendBase):
    """Graphs given as functions; `calls` counts how often each one ran."""

    name = "fake"

    def __init__(self, graphs: Mapping[str, Graph], functions: Mapping[str, GraphFunction]) -> None:
        super().__init__(graphs)
        self._functions = dict(functions)
        self.calls: dict[str, int] = dict.fromkeys(functions, 0)

    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph once: named arrays in, named arrays out."""
        self.signature(graph)
        self.calls[graph] += 1
        return self._functions[graph](feeds)


def whole_graph(num_tokens: int, num_channels: int) -> Graph:
    """The signature of a network without K/V: z[B, N, C], t[B] -> score[B, N, C]."""
    z = Tensor("z", "float32", ["B", num_tokens, num_channels])
    score = Tensor("score", "float32", ["B", num_tokens, num_channels])
    return Graph("", "", [z, Tensor("t", "float32", ["B"])], [score])


def gaussian_backend(manifest: Manifest) -> FakeBackend:
    """A backend whose `step` graph is the exact score of data that is standard normal per token and channel."""
    diffusion, network = manifest.diffusion, manifest.network
    process = process_from_facts(diffusion.process, diffusion.parameters)
    shape = np.asarray(manifest.tokens.noise_shape)[None, :, None]

    def step(feeds: Arrays) -> dict[str, NDArray[Any]]:
        t = feeds["t"].astype(np.float64)[:, None, None]
        variance = process.alpha(t) ** 2 + (process.sigma(t) * shape) ** 2
        return {"score": (-feeds["z"] / variance).astype(np.float32)}

    return FakeBackend({"step": whole_graph(network.num_tokens, network.num_channels)}, {"step": step})
