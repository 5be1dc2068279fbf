"""The network cut into embed, layers and head, with the token subset and the cached K/V as plain inputs.

These modules share the weights of the trained network and spell out, in torch, what the ONNX graphs of
`graphs` compute: they are the reference that `verify` holds every graph against. For all N tokens their chain
is the network itself; for fewer tokens the given ones attend to everything in the caches.

LSTM and MLP have no K/V: their parts take all N tokens, and no token index.

Shapes: B batch, S active tokens, N tokens, D d_model, H heads, Dh = D / H, C channels.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.manifest import layer_name
from train.networks import LSTMScore, MLPScore, ScoreNet, TransformerScore


class EmbedPart(nn.Module):
    """z [B, S, C], t [B], token [B, S] -> hidden [B, S, D]."""

    def __init__(self, network: TransformerScore) -> None:
        super().__init__()
        self.embedder, self.time_encoder = network.embedder, network.time_encoder
        self.position = network.pos_encoder.embedding.weight  # [N, D], rows already renormalised

    def forward(self, z: Tensor, t: Tensor, token: Tensor) -> tuple[Tensor]:
        """Embed the active tokens."""
        return (self.embedder(z) + self.position[token] + self.time_encoder(t)[:, None, :],)


class LayerPart(nn.Module):
    """hidden, token, past_key, past_value [B, H, N, Dh] -> hidden_out [B, S, D], present_key, present_value."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, token: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, ...]:
        """Write the new keys and values at `token`, then let the S queries attend to all N."""
        layer, (batch, num_heads, _, head_dim) = self.layer, past_key.shape
        attention = layer.self_attn
        qkv = F.linear(hidden, cast(Tensor, attention.in_proj_weight), attention.in_proj_bias)
        heads = (batch, -1, num_heads, head_dim)
        query, new_key, new_value = (part.reshape(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        index = token[:, None, :, None].expand(new_key.shape)
        key, value = past_key.scatter(2, index, new_key), past_value.scatter(2, index, new_value)
        context = F.scaled_dot_product_attention(query, key, value)
        context = attention.out_proj(context.transpose(1, 2).reshape(hidden.shape))
        hidden = layer.norm1(hidden + context)
        return layer.norm2(hidden + layer.linear2(F.relu(layer.linear1(hidden)))), key, value


class HeadPart(nn.Module):
    """hidden [B, S, D] -> score [B, S, C]."""

    def __init__(self, network: TransformerScore | LSTMScore) -> None:
        super().__init__()
        self.unembedder = network.unembedder

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        """Read the score off the last features."""
        return (self.unembedder(hidden),)


class WholeEmbedPart(nn.Module):
    """z [B, N, C], t [B] -> hidden [B, N, D], or [B, D] of an MLP, which takes a series as one row."""

    def __init__(self, network: LSTMScore | MLPScore) -> None:
        super().__init__()
        self.embedder, self.time_encoder = network.embedder, network.time_encoder
        self.is_flat = isinstance(network, MLPScore)

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor]:
        """Embed all tokens."""
        time = self.time_encoder(t)
        return (self.embedder(z.flatten(1)) + time if self.is_flat else self.embedder(z) + time[:, None, :],)


class ResidualPart(nn.Module):
    """hidden -> hidden_out, the same shape: one LSTM or one block of an MLP, added to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        """One layer."""
        update = self.layer(hidden)
        return (hidden + (update[0] if isinstance(self.layer, nn.LSTM) else update),)


class FlatHeadPart(nn.Module):
    """hidden [B, D] -> score [B, N, C]."""

    def __init__(self, network: MLPScore) -> None:
        super().__init__()
        self.unembedder, self.shape = network.unembedder, (network.options.num_tokens, network.options.num_channels)

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        """Read the score off the last features."""
        return (self.unembedder(hidden).reshape(-1, *self.shape),)


def parts_of(network: ScoreNet) -> dict[str, nn.Module]:
    """The parts by graph name, in the order they run: embed, layer_00, ..., head."""
    embed: nn.Module
    head: nn.Module
    layers: list[nn.Module]
    if isinstance(network, TransformerScore):
        embed, head = EmbedPart(network), HeadPart(network)
        layers = [LayerPart(cast(nn.TransformerEncoderLayer, layer)) for layer in network.backbone.layers]
    else:
        embed = WholeEmbedPart(network)
        layers = [ResidualPart(layer) for layer in network.backbone]
        head = FlatHeadPart(network) if isinstance(network, MLPScore) else HeadPart(network)
    return {"embed": embed, **{layer_name(index): layer for index, layer in enumerate(layers)}, "head": head}


@torch.inference_mode()
def run_part(part: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run one part without gradients."""
    return cast("tuple[Tensor, ...]", part(*inputs))
