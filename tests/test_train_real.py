"""Real subsets, where they are at hand: a few epochs, a loss that falls, a bundle, samples of the data's shape.

The counts and filters of each loader are tested in its own file; this is the way from raw files to samples.
"""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.bundle import ExportOptions, export_bundle
from export.checkpoint import read_checkpoint
from runtime.sampler import load
from train.run import train

REAL = Path("../shared/data").resolve()
SMALL = ["score_model.d_model=12", "score_model.num_layers=1", "score_model.n_head=2", "score_model.d_ff=24",
         "score_model.dropout=0.0", "score_model.lr_max=1e-2", "trainer.max_epochs=4",
         "trainer.accelerator=cpu"]  # fmt: skip
DATA = {
    "ecg": (["datamodule=ecg"], (187, 1)),
    "nasa/charge": (["datamodule=nasa", "datamodule.subdataset=charge"], (251, 4)),
    "nasa/discharge": (["datamodule=nasa", "datamodule.subdataset=discharge"], (134, 5)),
    "nasdaq": (["datamodule=nasdaq"], (252, 5)),
    "usdroughts": (
        ["datamodule=usdroughts", "datamodule.start_date=2017-01-01", "datamodule.end_date=2018-01-01"],
        (365, 13),
    ),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real subsets are not here")
@pytest.mark.parametrize("name", DATA)
def test_a_real_subset_trains_exports_and_samples(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    words, shape = DATA[name]
    data_dir, folder = tmp_path / "data", name.partition("/")[0]
    shutil.copytree(REAL / folder, data_dir / folder)  # the loaders keep a cache beside the raw files
    words = [*words, f"datamodule.data_dir={data_dir}", "datamodule.batch_size=8", *SMALL]
    best = train([*words, f"log_dir={tmp_path}", "run_id=real"])
    with (tmp_path / "real" / "metrics.csv").open(newline="") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < losses[0]
    export_bundle(read_checkpoint(best), ExportOptions(tmp_path / "bundle"))
    with load(tmp_path / "bundle") as model:
        series = model.sample(3, steps=60).series
    assert series.shape == (3, *shape)
    assert np.isfinite(series).all()
