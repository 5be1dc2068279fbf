"""The trained PyTorch network behind the runtime's `Backend`: the oracle of `verify`, the baseline of bench.

One sampler and one noise then drive every rival; only the network differs. The network is one graph, `step`,
with z [B, N, C] and t [B] in and score [B, N, C] out, and knows no K/V.
"""

import copy
from typing import Any

import torch
from numpy.typing import NDArray

from runtime.backends.base import Arrays, BackendBase
from runtime.backends.fake import whole_graph
from train.networks import ScoreNet


class TorchBackend(BackendBase):
    """The network in PyTorch eager, on the CPU, in inference mode; arrays are float32 whatever it computes in."""

    name = "pytorch"

    def __init__(self, network: ScoreNet, dtype: torch.dtype = torch.float32) -> None:
        options = network.options
        super().__init__({"step": whole_graph(options.num_tokens, options.num_channels)})
        self._network = network.eval() if dtype is torch.float32 else copy.deepcopy(network).eval().to(dtype)
        self._dtype = dtype

    @torch.inference_mode()
    def run(self, graph: str, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the network once."""
        self.signature(graph)
        z, t = (torch.from_numpy(feeds[name]).to(self._dtype) for name in ("z", "t"))
        return {"score": self._network(z, t).float().numpy()}
