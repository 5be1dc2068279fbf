"""The training of one score network, as Lightning sees it: losses, optimiser, and what a checkpoint says.

Every epoch draws from its own seed (random_seed, epoch), so a run that was stopped and resumed is bit for bit
the run that was not. Validation uses one fixed set of times and noises: `val/loss` differs between epochs
because the weights do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from train.checkpoint import KEY, ModelFacts
from train.errors import DivergedError
from train.losses import Weighting, draw_times, energy_weights, score_matching_loss
from train.networks import network_from_options

PREFIX = "network."  # what Lightning puts before the names in a state dict, and a checkpoint does not hold


@dataclass(frozen=True)
class Optimisation:
    """How the weights are fitted; the defaults are the published ones."""

    num_steps: int  # of the whole run
    lr_max: float = 1e-3
    warmup: float = 0.1  # share of the steps
    weighting: Weighting = Weighting.INVERSE_TRACE
    energy_weighting: float = 0.0  # power of the tokens' std by which their errors count


def cosine_with_warmup(num_steps: int, warmup: float) -> Callable[[int], float]:
    """Learning rate by step, as a share of its maximum: linear from 0, then half a cosine back to 0."""
    num_warmup = int(warmup * num_steps)

    def share(step: int) -> float:
        if step < num_warmup:
            return step / num_warmup
        progress = (step - num_warmup) / max(1, num_steps - num_warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return share


class ScoreModule(LightningModule):  # type: ignore[misc]  # mypy takes Lightning's classes for Any
    """Fits a network to the score of noisy tokens."""

    noise_shape: Tensor
    token_weight: Tensor | None

    def __init__(self, facts: ModelFacts, optimisation: Optimisation, noise_shape: Tensor, seed: int) -> None:
        super().__init__()
        self.facts = facts
        self.optimisation = optimisation
        self.seed = seed
        self.network = network_from_options(facts.network)
        self.register_buffer("noise_shape", noise_shape, persistent=False)  # G [N]: known from the domain
        power = optimisation.energy_weighting
        weight = energy_weights(facts.feature_std, power) if power else None
        self.register_buffer("token_weight", weight, persistent=False)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's own random stream, for times, noise and dropout."""
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.current_epoch]).generate_state(1)[0]))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """The loss of one batch [B, N, C] under fresh times and noise."""
        clean = batch[0]
        loss = self._loss(clean, draw_times(len(clean)), torch.randn(clean.shape))
        self._require_finite(loss)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(clean))
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """The loss of one batch under the times and noise that belong to it."""
        clean = batch[0]
        generator = torch.Generator().manual_seed(batch_idx)
        loss = self._loss(clean, draw_times(len(clean), generator), torch.randn(clean.shape, generator=generator))
        self._require_finite(loss)
        self.log("val/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(clean))

    def on_train_epoch_end(self) -> None:
        """Log the learning rate beside the loss."""
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def _loss(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return score_matching_loss(
            self.network,
            clean,
            t=t.to(clean.device),
            noise=noise.to(clean.device),
            process=self.facts.process,
            noise_shape=self.noise_shape,
            weighting=self.optimisation.weighting,
            token_weight=self.token_weight,
        )

    def _require_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise DivergedError(
                f"the loss must be a finite number, found {loss.item()} in epoch {self.current_epoch} after "
                f"{self.global_step} steps; lower score_model.lr_max, found {self.optimisation.lr_max}"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW under a cosine with warm-up, stepped once per batch."""
        optimizer = torch.optim.AdamW(
            (p for p in self.network.parameters() if p.requires_grad), lr=self.optimisation.lr_max
        )
        schedule = LambdaLR(optimizer, cosine_with_warmup(self.optimisation.num_steps, self.optimisation.warmup))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the contract with export: upstream's names, and the facts."""
        for key in _WEIGHTS & checkpoint.keys():
            checkpoint[key] = {name.removeprefix(PREFIX): value for name, value in checkpoint[key].items()}
        checkpoint[KEY] = self.facts.to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the names back the prefix that Lightning expects."""
        for key in _WEIGHTS & checkpoint.keys():
            checkpoint[key] = {PREFIX + name: value for name, value in checkpoint[key].items()}


_WEIGHTS = {"state_dict", "current_model_state"}  # the averaged weights, and the raw ones to resume from
