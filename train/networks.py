"""The score networks, with the parameter names of FourierDiffusion (`fdiff.models`).

A network maps noisy tokens and a time to the score of the noisy distribution, `(z[B, N, C], t[B]) ->
[B, N, C]`, in the standardised domain it was trained in. Training, export and the PyTorch baseline all use
these modules; a state dict of an upstream transformer loads into `TransformerScore` as it is.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkOptions:
    """The shape of a transformer score network; the defaults are the published ones (3.2 M parameters)."""

    num_tokens: int  # N, the length of a series
    num_channels: int  # C
    d_model: int = 72
    num_heads: int = 12
    num_layers: int = 10
    d_ff: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("num_tokens", "num_channels", "d_model", "num_heads", "num_layers", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}; set it in the config")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model must be a multiple of num_heads, found {self.d_model} and {self.num_heads}; "
                "change one of them"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), found {self.dropout}; the usual value is 0.1")

    def to_dict(self) -> dict[str, int | float]:
        """Plain numbers, for a checkpoint."""
        return asdict(self)


class PositionalEncoding(nn.Module):
    """A learned embedding per token, its rows held to at most sqrt(d_model) in norm."""

    def __init__(self, d_model: int, num_tokens: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, d_model, max_norm=math.sqrt(d_model))

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden [B, N, D] plus the embedding of each position."""
        position = torch.arange(hidden.shape[1], device=hidden.device)
        encoded: Tensor = hidden + self.embedding(position)
        return encoded


class GaussianFourierProjection(nn.Module):
    """Random Fourier features of the time, then one linear layer (Song et al. 2021, score_sde)."""

    def __init__(self, d_model: int, scale: float = 30.0) -> None:
        super().__init__()
        self.d_model = d_model
        self.W = nn.Parameter(torch.randn((d_model + 1) // 2) * scale, requires_grad=False)
        self.dense = nn.Linear(d_model, d_model)

    def forward(self, t: Tensor) -> Tensor:
        """Times [B] -> features [B, D]."""
        angle = t[:, None] * self.W[None, :] * 2 * torch.pi  # the order of products fixes the rounding
        features = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)[:, : self.d_model]
        projected: Tensor = self.dense(features)
        return projected


class TransformerScore(nn.Module):
    """The default backbone: a post-norm transformer encoder over the N tokens."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        self.pos_encoder = PositionalEncoding(options.d_model, options.num_tokens)
        self.time_encoder = GaussianFourierProjection(options.d_model)
        self.embedder = nn.Linear(options.num_channels, options.d_model)
        self.unembedder = nn.Linear(options.d_model, options.num_channels)
        layer = nn.TransformerEncoderLayer(
            options.d_model, options.num_heads, options.d_ff, options.dropout, batch_first=True
        )
        self.backbone = nn.TransformerEncoder(layer, options.num_layers, enable_nested_tensor=False)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Noisy tokens [B, N, C] and times [B] -> score [B, N, C]."""
        hidden = self.pos_encoder(self.embedder(z)) + self.time_encoder(t)[:, None, :]
        score: Tensor = self.unembedder(self.backbone(hidden))
        return score
