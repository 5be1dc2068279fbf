"""A picture is whole or as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from bench.pictures import draw_spectrum

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
