"""Files of samples and of plans: refused before anything is computed, written whole, never over kept ones."""

import json
from pathlib import Path

import pytest

from runtime.errors import OptionError
from runtime.output import free_name, json_of, prepare_output, require_writable


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OptionError, match=r"folder\.npz is a folder; name a file in it"):
        prepare_output(tmp_path / "folder.npz", overwrite=True)
    for place in (tmp_path / "file/plan.json", Path("/proc/plan.json")):
        with pytest.raises(OSError, match=r"Not a directory|File exists|No such file|Permission denied|Not permitted"):
            require_writable(place)


def test_a_place_that_can_is_left_as_it_was(tmp_path: Path) -> None:
    kept = tmp_path / "new/plan.json"
    require_writable(kept)
    assert list(kept.parent.iterdir()) == []
    kept.write_text("kept")
    require_writable(kept)
    assert kept.read_text() == "kept"
    with pytest.raises(OptionError, match="exists; choose another name"):
        prepare_output(_touched(tmp_path / "a.npz"), overwrite=False)


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    names = [free_name(tmp_path / "a.partial-0.npz").name for _ in range(3) if _touched(tmp_path / "x")]
    assert names == ["a.partial-0.npz"] * 3
    for expected in ("a.partial-0.npz", "a.partial-0-2.npz", "a.partial-0-3.npz"):
        assert _touched(free_name(tmp_path / "a.partial-0.npz")).name == expected


def test_numbers_that_json_has_no_name_for_are_words() -> None:
    value = {"tau_0": float("inf"), "K": 3, "steps": [1.5, float("nan")], "reuse": None}
    assert json.loads(json_of(value)) == {"tau_0": "inf", "K": 3, "steps": [1.5, "nan"], "reuse": None}
