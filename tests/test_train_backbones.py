"""Every backbone goes the whole way: upstream's command, a loss that falls, a bundle, samples of the data's shape."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle import ExportOptions, export_bundle
from export.checkpoint import read_checkpoint
from runtime.sampler import load
from train.networks import Backbone, NetworkOptions, network_from_options
from train.run import train

SMALL = {
    "default": ["score_model.d_model=12", "score_model.num_layers=2", "score_model.n_head=2", "score_model.d_ff=24"],
    "lstm": ["score_model.d_model=12", "score_model.num_layers=2"],
    "mlp": ["score_model.d_model=12", "score_model.num_layers=2", "score_model.d_mlp=24", "score_model.lr_max=1e-2"],
}


@pytest.mark.parametrize("score_model", SMALL)
@pytest.mark.parametrize("domain", ["frequency", "time"])
def test_a_backbone_learns_and_samples(score_model: str, domain: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    transform = f"fourier_transform={str(domain == 'frequency').lower()}"
    data = ["datamodule=synthetic", "datamodule.max_len=9", "datamodule.num_samples=128", "datamodule.batch_size=32"]
    words = ["trainer.max_epochs=15", transform, *data, f"score_model={score_model}", *SMALL[score_model]]
    best = train([*words, "score_model.lr_max=1e-2", "trainer.accelerator=cpu", f"log_dir={tmp_path}", "run_id=one"])
    with (tmp_path / "one" / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert min(losses[-3:]) < 0.95 * losses[0]
    manifest = export_bundle(read_checkpoint(best), ExportOptions(tmp_path / "bundle"))
    assert manifest.network.backbone == {"default": "transformer"}.get(score_model, score_model)
    assert (manifest.network.num_heads == 0) == (score_model != "default")
    with load(tmp_path / "bundle") as model:
        drawn = model.sample(5, steps=60)
    assert drawn.series.shape == (5, 9, 1)
    assert np.isfinite(drawn.series).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": "gru"}, "backbone must be one of transformer, lstm, mlp, found 'gru'"),
        ({"backbone": "lstm", "d_ff": 0}, "num_heads of an lstm must be 0, found 12"),
        ({"backbone": "mlp", "num_heads": 0, "d_ff": 0}, "d_ff must be at least 1"),
    ],
)
def test_shapes_that_a_backbone_does_not_have_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NetworkOptions(9, 1, **options)  # type: ignore[arg-type]


def test_the_published_sizes() -> None:
    """Parameters of the published configurations, counted by upstream's own modules at N = 187, C = 1."""
    shapes = {
        Backbone.TRANSFORMER: (NetworkOptions(187, 1), 3_202_413),
        Backbone.LSTM: (NetworkOptions(187, 1, 72, 0, 10, 0, 0.0, Backbone.LSTM), 425_989),
        Backbone.MLP: (NetworkOptions(187, 1, 72, 0, 10, 1024, 0.1, Backbone.MLP), 1_517_999),
    }
    for options, published in shapes.values():
        assert sum(p.numel() for p in network_from_options(options).parameters()) == published
