"""The contract between train and export: what a checkpoint says about the model in it.

A checkpoint is Lightning's, readable with `torch.load(path, weights_only=True)`, with two promises on top.
Its `state_dict` holds the network alone under upstream's names
(`backbone.layers.0.self_attn.in_proj_weight`, no prefix), averaged if the run averages. And its key `e2crf`
holds `ModelFacts.to_dict()`: plain words, numbers and two tensors, everything needed to rebuild the network
and to turn its samples into data.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.sde import EPS, Process, facts_from_process
from train.networks import NetworkOptions

SCHEMA = 1  # bump when an older reader would misread a newer checkpoint
KEY = "e2crf"


@dataclass(frozen=True, eq=False)
class ModelFacts:
    """What a checkpoint holds, beside the weights."""

    network: NetworkOptions
    process: Process
    domain: str  # "frequency" or "time"
    feature_mean: Tensor  # [N, C], float32
    feature_std: Tensor  # [N, C], float32; 0 marks a constant token
    data: str  # e.g. "ecg" or "ucr/GunPoint"
    run_id: str

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a checkpoint."""
        kind, parameters = facts_from_process(self.process)
        return {
            "schema": SCHEMA,
            "backbone": str(self.network.backbone),
            "network": self.network.to_dict(),
            "process": {"kind": kind, "parameters": parameters},
            "eps": EPS,
            "domain": self.domain,
            "feature_mean": self.feature_mean,
            "feature_std": self.feature_std,
            "data": self.data,
            "run_id": self.run_id,
        }


def agree(one: Any, other: Any) -> bool:
    """Whether two records from checkpoints say the same; tensors up to what machines round differently."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    return bool(one == other)
