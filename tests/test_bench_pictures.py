"""A picture is whole or as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from bench.pictures import draw_recomputed, draw_spectrum
from runtime.cache.plan import Plan
from runtime.sampler import Model
from tests import opened

tiny = opened.tiny

REAL = np.random.default_rng(0).standard_normal((6, 8, 1)).astype(np.float32)


def test_a_picture_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "spectrum.png"
    path.write_bytes(b"an old one")
    draw_spectrum({"real": REAL}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"\x89PNG")
        raise OSError("no space left")

    path = tmp_path / "spectrum.png"
    path.write_bytes(b"an old one")
    monkeypatch.setattr(Figure, "savefig", cut_off)
    with pytest.raises(OSError, match="no space left"):
        draw_spectrum({"real": REAL}, path)
    assert path.read_bytes() == b"an old one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_picture_of_what_was_recomputed_is_dark_where_the_network_was_asked(tmp_path: Path, tiny: Model) -> None:
    """Two full steps of fifty: two upright stripes, of all frequencies, where their steps lie."""
    plan = Plan(source_digest=tiny.manifest.source.digest, steps=50, solver="ddim", refreshes=(20, 40))
    stats = tiny.sample(3, steps=50, cache=plan).stats
    assert np.flatnonzero(stats.heatmap().any(axis=0)).tolist() == [20, 40]
    draw_recomputed(stats, tmp_path / "recomputed.png")
    picture = imread(tmp_path / "recomputed.png")[..., :3]
    darkest = np.array([0x08, 0x30, 0x6B]) / 255  # of the colour map
    is_dark = (np.abs(picture - darkest) < 0.02).all(axis=2).sum(axis=0)
    columns = np.flatnonzero(is_dark > 0.9 * is_dark.max())
    first, second = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert (second[0] - first[0]) / len(first) == pytest.approx(20, rel=0.1)  # a stripe is a step wide
    assert is_dark.max() > 0.6 * picture.shape[0]
