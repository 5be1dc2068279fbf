"""The trained PyTorch network behind the runtime's `Backend`: the oracle of `verify`, the baselines of bench.

One sampler and one noise then drive every rival; only the network differs. `TorchBackend` is the network as it was
trained, eager or compiled: one graph, `step`, with z [B, N, C] and t [B] in and score [B, N, C] out, which knows no
K/V. `TorchKVBackend` is a transformer with its keys and values outside, and so runs whatever a bundle runs.
"""

import copy
import warnings
from typing import Any

import torch
from numpy.typing import NDArray

from export.manifest import Graph
from export.manifest import Tensor as Port
from export.split import parts_of
from runtime.backends.base import Arrays, BackendBase
from runtime.backends.fake import whole_graph
from train.networks import NetworkOptions, ScoreNet, TransformerScore


class TorchBackend(BackendBase):
    """The network in PyTorch on the CPU, in inference mode; arrays are float32 whatever it computes in.

    Compiled, the first run of a batch size and number of threads takes a compilation, and a C++ compiler; what goes
    wrong with that are errors of PyTorch's own.
    """

    name = "pytorch"

    def __init__(self, network: ScoreNet, dtype: torch.dtype = torch.float32, *, compiled: bool = False) -> None:
        options = network.options
        super().__init__({"step": whole_graph(options.num_tokens, options.num_channels)})
        module = network.eval() if dtype is torch.float32 else copy.deepcopy(network).eval().to(dtype)
        self._dtype, self._is_compiled = dtype, compiled
        self._network = torch.compile(module, dynamic=False, fullgraph=True) if compiled else module
        self._compiled: set[tuple[int, int]] = set()  # batch sizes and numbers of threads
        if compiled:
            self.name = "torch.compile"

    @torch.inference_mode()
    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the network once."""
        self.signature(graph)
        z, t = (torch.from_numpy(feeds[name]).to(self._dtype) for name in ("z", "t"))
        if self._is_compiled and (kind := (len(z), torch.get_num_threads())) not in self._compiled:
            with warnings.catch_warnings(action="ignore"):  # the compiler's own, of its imports
                self._network(z, t)
            self._compiled.add(kind)
        return {"score": self._network(z, t).float().numpy()}


class TorchKVBackend(BackendBase):
    """The parts of a transformer in PyTorch eager: some tokens against the cached keys and values of all others."""

    name = "pytorch"

    def __init__(self, network: TransformerScore) -> None:
        super().__init__({"step": _step_graph(network.options)})
        self._embed, *self._layers, self._head = parts_of(network.eval()).values()

    @torch.inference_mode()
    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run all parts once."""
        self.signature(graph)
        given = {name: torch.from_numpy(array) for name, array in feeds.items()}
        results: dict[str, torch.Tensor] = {}
        (hidden,) = self._embed(given["z"], given["t"], given["token"])
        for index, layer in enumerate(self._layers):
            past = (given[f"past_{kind}_{index:02d}"] for kind in ("key", "value"))
            hidden, *present = layer(hidden, given["token"], *past)
            results |= {f"present_{kind}_{index:02d}": one for kind, one in zip(("key", "value"), present, strict=True)}
        results |= {"score": self._head(hidden)[0], "hidden": hidden}
        return {name: one.numpy() for name, one in results.items()}


def _step_graph(options: NetworkOptions) -> Graph:
    """The signature of a bundle's step graph in float32."""
    d_model, heads = options.d_model, options.num_heads
    rows: list[int | str] = ["B", "S"]
    cache: list[int | str] = ["B", heads, options.num_tokens, d_model // heads]
    names = [f"{kind}_{index:02d}" for index in range(options.num_layers) for kind in ("key", "value")]
    z, score = (Port(name, "float32", [*rows, options.num_channels]) for name in ("z", "score"))
    inputs = [z, Port("t", "float32", ["B"]), Port("token", "int64", rows)]
    outputs = [score, Port("hidden", "float32", [*rows, d_model])]
    return Graph(
        "",
        "",
        inputs + [Port(f"past_{name}", "float32", cache) for name in names],
        outputs + [Port(f"present_{name}", "float32", cache) for name in names],
    )
