"""What every test shares: one torch thread, so that the suite keeps its pace on a busy machine, and no downloads."""

import sys

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_kaggle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches Kaggle, not even where its package and a token are installed."""
    monkeypatch.setitem(sys.modules, "kaggle", None)
