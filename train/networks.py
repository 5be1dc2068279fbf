"""The score networks, with the parameter names of FourierDiffusion (`fdiff.models`).

A network maps noisy tokens and a time to the score of the noisy distribution, `(z[B, N, C], t[B]) ->
[B, N, C]`, in the standardised domain it was trained in. Training, export and the PyTorch baseline all use
these modules; a state dict of an upstream model loads into them as it is.

    network = network_from_options(NetworkOptions(187, 1))     # the published transformer
    network(z, t)
"""

import math
from dataclasses import asdict, dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn


class Backbone(StrEnum):
    """What a network is made of."""

    TRANSFORMER = "transformer"
    LSTM = "lstm"
    MLP = "mlp"


_LEAST = {  # what must be at least 1 of each backbone; the rest must be 0
    Backbone.TRANSFORMER: ("num_heads", "d_ff"),
    Backbone.LSTM: (),
    Backbone.MLP: ("d_ff",),
}


@dataclass(frozen=True)
class NetworkOptions:
    """The shape of a score network; the defaults are the published transformer (3.2 M parameters).

    An LSTM has neither heads nor d_ff nor dropout; the d_ff of an MLP is the width of its blocks (upstream's d_mlp).
    """

    num_tokens: int  # N, the length of a series
    num_channels: int  # C
    d_model: int = 72
    num_heads: int = 12
    num_layers: int = 10
    d_ff: int = 2048
    dropout: float = 0.1
    backbone: str = Backbone.TRANSFORMER

    def __post_init__(self) -> None:
        if self.backbone not in list(Backbone):
            raise ValueError(f"backbone must be one of {', '.join(Backbone)}, found {self.backbone!r}; choose one")
        needed = _LEAST[Backbone(self.backbone)]
        for name in ("num_tokens", "num_channels", "d_model", "num_layers", *needed):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}; set it in the config")
        for name in {"num_heads", "d_ff"} - set(needed):
            if getattr(self, name):
                raise ValueError(f"{name} of an {self.backbone} must be 0, found {getattr(self, name)}; leave it out")
        if self.num_heads and self.d_model % self.num_heads:
            raise ValueError(
                f"d_model must be a multiple of num_heads, found {self.d_model} and {self.num_heads}; "
                "change one of them"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), found {self.dropout}; the usual value is 0.1")

    def to_dict(self) -> dict[str, int | float]:
        """The numbers, for a checkpoint; the backbone stands beside them there."""
        return {name: value for name, value in asdict(self).items() if name != "backbone"}


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


class LSTMScore(nn.Module):
    """A stack of one-way LSTMs over the N tokens, each added to its input; no positions are given to it."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        self.time_encoder = GaussianFourierProjection(options.d_model)
        self.embedder = nn.Linear(options.num_channels, options.d_model)
        self.unembedder = nn.Linear(options.d_model, options.num_channels)
        layers = (nn.LSTM(options.d_model, options.d_model, batch_first=True) for _ in range(options.num_layers))
        self.backbone = nn.ModuleList(layers)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Noisy tokens [B, N, C] and times [B] -> score [B, N, C]."""
        hidden = self.embedder(z) + self.time_encoder(t)[:, None, :]
        for layer in self.backbone:
            hidden = hidden + layer(hidden)[0]
        score: Tensor = self.unembedder(hidden)
        return score


class MLPScore(nn.Module):
    """Residual blocks of two linear layers on the whole series at once, flattened to N * C numbers."""

    def __init__(self, options: NetworkOptions) -> None:
        super().__init__()
        self.options = options
        num_values, dropout = options.num_tokens * options.num_channels, options.dropout
        self.time_encoder = GaussianFourierProjection(options.d_model)
        self.embedder = nn.Linear(num_values, options.d_model)
        self.unembedder = nn.Linear(options.d_model, num_values)
        self.backbone = nn.ModuleList(
            nn.Sequential(
                nn.Linear(options.d_model, options.d_ff),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(options.d_ff, options.d_model),
                nn.Dropout(dropout),
            )
            for _ in range(options.num_layers)
        )

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """Noisy tokens [B, N, C] and times [B] -> score [B, N, C]."""
        hidden = self.embedder(z.flatten(1)) + self.time_encoder(t)
        for block in self.backbone:
            hidden = hidden + block(hidden)
        score: Tensor = self.unembedder(hidden)
        return score.reshape(z.shape)


ScoreNet = TransformerScore | LSTMScore | MLPScore
_NETWORKS: dict[Backbone, type[ScoreNet]] = {
    Backbone.TRANSFORMER: TransformerScore,
    Backbone.LSTM: LSTMScore,
    Backbone.MLP: MLPScore,
}


def network_from_options(options: NetworkOptions) -> ScoreNet:
    """An untrained network of this shape."""
    return _NETWORKS[Backbone(options.backbone)](options)
