"""Checkpoints are found by name, read without executing anything, and refused in a sentence when unusable."""

import os
import pickle
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.checkpoint import CheckpointError, find_checkpoint, read_checkpoint
from tests.tiny import checkpoint_content, write_checkpoint


def test_latest_run_id_and_path_find_the_best_checkpoint(tmp_path: Path) -> None:
    runs = tmp_path / "lightning_logs"
    for age, (run, name) in enumerate(
        [("new", "last.ckpt"), ("new", "epoch=3-val_loss=0.50.ckpt"), ("new", "epoch=9-val_loss=0.40.ckpt"),
         ("old", "last.ckpt")]
    ):  # fmt: skip
        path = write_checkpoint(runs / run / "checkpoints" / name)
        os.utime(path, (time.time() - 100 * age,) * 2)
    best = runs / "new" / "checkpoints" / "epoch=9-val_loss=0.40.ckpt"
    assert find_checkpoint("latest", runs) == find_checkpoint("new", runs) == best
    assert find_checkpoint("old", runs).name == "last.ckpt"
    assert find_checkpoint(str(best), runs) == find_checkpoint(str(runs / "new"), tmp_path / "elsewhere") == best
    with pytest.raises(CheckpointError, match=r"no checkpoint 'other'.*runs: new, old"):
        find_checkpoint("other", runs)


def test_no_runs_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none yet"):
        find_checkpoint("latest", tmp_path / "nothing")


def test_a_missing_or_truncated_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "gone.ckpt")
    path = write_checkpoint(tmp_path / "cut.ckpt")
    data = path.read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 50):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt"):
            read_checkpoint(path)


def test_any_other_bytes_are_refused_in_a_sentence(tmp_path: Path) -> None:
    generator, path = np.random.default_rng(0), tmp_path / "other.ckpt"
    for content in (b"junk", *(generator.bytes(size) for size in range(1, 200))):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"other\.ckpt .*; "):
            read_checkpoint(path)


def test_a_checkpoint_damaged_anywhere_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    """Four bytes are overwritten in each of 60 places; where they belong to a weight, nobody can tell."""
    generator, path = np.random.default_rng(0), write_checkpoint(tmp_path / "m.ckpt")
    whole = path.read_bytes()
    for place in generator.integers(0, len(whole) - 4, 60):
        path.write_bytes(whole[:place] + generator.bytes(4) + whole[place + 4 :])
        with suppress(CheckpointError):
            read_checkpoint(path)


def _foreign(content: dict[str, Any]) -> Any:
    del content["e2crf"]
    return content


def _nan(content: dict[str, Any]) -> Any:
    content["state_dict"]["unembedder.weight"][0, 0] = float("nan")
    return content


def _without_layer(content: dict[str, Any]) -> Any:
    del content["state_dict"]["backbone.layers.1.linear1.weight"]
    return content


def _other_schema(content: dict[str, Any]) -> Any:
    content["e2crf"]["schema"] = 9
    return content


def _fact(**facts: Any) -> Any:
    return lambda content: content | {"e2crf": content["e2crf"] | facts}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_foreign, "is a checkpoint neither of e2crf nor of fdiff"),
        (lambda content: [1, 2], "holds a list, not a checkpoint"),
        (_nan, "1 of 24 values of unembedder.weight are NaN"),
        (_without_layer, "damaged or incomplete.*linear1.weight"),
        (_other_schema, "has schema 9"),
        (_fact(run_id="../../x"), "run_id must be the name of a folder, found '../../x'"),
        (_fact(run_id="/tmp/x"), "run_id must be the name of a folder"),
        (_fact(run_id=".."), "run_id must be the name of a folder"),
        (_fact(run_id=7), "run_id must be the name of a folder"),
        (_fact(domain="wavelet"), "domain must be frequency or time, found 'wavelet'"),
        (_fact(eps=0.0), "eps must lie between 0 and 1, found 0.0"),
        (_fact(eps=float("nan")), "eps must lie between 0 and 1, found nan"),
        (_fact(feature_std=torch.zeros(15, 2)), "std of its data must be positive somewhere"),
        (_fact(feature_std=torch.full((15, 2), -1.0)), "negative nowhere, found '-1.0 to -1.0'"),
        (_fact(feature_mean=torch.zeros(15, 1)), r"must have the shape \(15, 2\), found \(15, 1\)"),
    ],
)
def test_an_unusable_checkpoint_is_refused(tmp_path: Path, spoil: Any, says: str) -> None:
    path = write_checkpoint(tmp_path / "m.ckpt", spoil(checkpoint_content()))
    with pytest.raises(CheckpointError, match=f"(?s){says}"):
        read_checkpoint(path)


class _Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, form: str) -> None:
    """The payload would create a file; it must not."""
    mark, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    content = checkpoint_content() | {"callbacks": _Payload(f"touch {mark}")}
    if form == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(_Payload(f"touch {mark}"), protocol=2))
    with pytest.raises(CheckpointError, match=r"was not loaded|cannot be read") as said:
        read_checkpoint(path)
    assert "weights_only" not in str(said.value)  # no advice to run it
    assert not mark.exists()
