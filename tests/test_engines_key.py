"""An engine's key changes with every ingredient and with nothing else; recipes say what cannot be meant."""

import dataclasses
import json
import logging
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.compiler import _failure
from engines.errors import EngineError, RecipeError
from engines.flavor import Flavor, Toolkit, target_of
from engines.gpu import Gpu, visible_gpu
from engines.key import Ingredients
from engines.recipe import Parts, Profile, Recipe, graphs_to_build, profiles_of
from engines.store import Record
from export.manifest import Graph, Manifest, Tensor, record_from_json

BASE = Ingredients("layer_00", "ab" * 32, "rtx", "1.7.1", "8.9", False, [Profile(8, [1, 64, 64])])
CHANGES = {
    "graph": "layer_01",
    "graph_digest": "cd" * 32,
    "flavor": "tensorrt",
    "library": "1.7.2",
    "target": "8.6",
    "tf32": True,
    "profiles": [Profile(8, [1, 32, 64])],
    "schema": 2,
}
LAYER = Graph(
    "onnx/layer_00.onnx",
    "ab" * 32,
    [Tensor("hidden", "float32", ["B", "S", 12]), Tensor("past_key", "float32", ["B", 3, 15, 4])],
    [Tensor("hidden_out", "float32", ["B", "S", 12])],
)
WHOLE = Graph("onnx/step.onnx", "ab" * 32, [Tensor("z", "float32", ["B", 15, 2])], [])


@pytest.mark.parametrize("name", CHANGES)
def test_every_ingredient_is_in_the_key(name: str) -> None:
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Ingredients)}
    assert dataclasses.replace(BASE, **{name: CHANGES[name]}).key != BASE.key  # type: ignore[arg-type]


def test_a_key_is_the_same_in_any_process_and_after_json() -> None:
    """Oracle: the key as written down when it was made; bump SCHEMA and this together."""
    assert BASE.key == "layer_00-98d371d951e16506"
    record = Record(BASE, "00", 1, 0.1)
    again = record_from_json(Record, json.loads(json.dumps(dataclasses.asdict(record))), "engine.json")
    assert again == record
    assert again.ingredients.key == BASE.key


@given(st.sets(st.integers(1, 300), max_size=6), st.integers(1, 200))
def test_profiles_are_the_buckets_up_to_n_and_n(sizes: set[int], num_tokens: int) -> None:
    layer = dataclasses.replace(LAYER, inputs=[Tensor("hidden", "float32", ["B", "S", 12])])
    profiles = profiles_of(layer, Recipe(buckets=tuple(sizes), batch=16, best_batch=4), num_tokens)
    assert [profile.tokens for profile in profiles] == [*sorted(s for s in sizes if s < num_tokens), num_tokens]
    assert all(profile.batch == [1, 4, 16] for profile in profiles)


def test_a_profile_gives_every_input_its_shapes() -> None:
    assert Profile(5, [1, 4, 16]).shapes(LAYER) == {
        "hidden": ((1, 5, 12), (4, 5, 12), (16, 5, 12)),
        "past_key": ((1, 3, 15, 4), (4, 3, 15, 4), (16, 3, 15, 4)),
    }


def test_a_graph_without_a_token_axis_has_one_profile_whatever_the_buckets() -> None:
    """So that another set of buckets leaves its engine as it is."""
    for buckets in ((), (1, 2, 4)):
        assert profiles_of(WHOLE, Recipe(buckets=buckets), 15) == [Profile(15, [1, 64, 64])]


def test_parts_name_the_graphs() -> None:
    graphs = {"embed": LAYER, "layer_00": LAYER, "head": LAYER, "step": WHOLE}
    manifest = Manifest(**dict.fromkeys(f.name for f in dataclasses.fields(Manifest)) | {"graphs": graphs})  # type: ignore[arg-type]
    assert list(graphs_to_build(manifest, Parts.STEP)) == ["step"]
    assert list(graphs_to_build(manifest, Parts.SPLIT)) == ["embed", "layer_00", "head"]
    assert list(graphs_to_build(manifest, Parts.ALL)) == list(graphs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "found 0 and 0"),
        ({"batch": 8, "best_batch": 9}, "found 8 and 9"),
        ({"best_batch": 0}, "found 64 and 0"),
        ({"buckets": (8, 0)}, "numbers of tokens must be at least 1, found 0"),
    ],
)
def test_a_recipe_that_cannot_be_meant_says_so(options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Recipe(**options)  # type: ignore[arg-type]


def test_an_unknown_dimension_is_named() -> None:
    odd = Graph("onnx/odd.onnx", "", [Tensor("x", "float32", ["B", "Q"])], [])
    with pytest.raises(RecipeError, match="'Q'"):
        profiles_of(odd, Recipe(), 15)


def test_tensorrt_builds_for_the_gpu_here_and_says_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = Toolkit(Flavor.TENSORRT, "11.4", None, None, None, None, Exception)
    monkeypatch.setattr("engines.flavor.visible_gpu", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA GPU was found here; run this on the machine with the GPU"):
        target_of(toolkit, ())
    monkeypatch.setattr("engines.flavor.visible_gpu", lambda: Gpu("NVIDIA H200", (9, 0), 13000))
    assert target_of(toolkit, ()) == "NVIDIA H200 (9.0)"
    with pytest.raises(RecipeError, match="leave --target out"):
        target_of(toolkit, ("9.0",))


def test_out_of_memory_suggests_a_batch() -> None:
    toolkit = Toolkit(Flavor.TENSORRT, "11.4", None, None, None, None, Exception)
    error = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "[E] Requested 9 GiB: CUDA out of memory."})
    assert _failure(toolkit, BASE, [error], "").endswith("CUDA out of memory; build with --batch 32, or on a GPU with "
                                                         "more memory")  # fmt: skip


CUDA = """
#include <string.h>
int cuInit(unsigned f) { return STATUS; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, "NVIDIA H200", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 9 : a == 76 ? 0 : -1; return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="compiles a driver of six functions, and there is no cc")
@pytest.mark.parametrize(("status", "count", "found"), [(0, 1, True), (0, 0, False), (100, 1, False)])
def test_the_gpu_is_asked_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, count: int, found: bool
) -> None:
    """A driver that says what an H200's says (CUresult 100: no device)."""
    (tmp_path / "cuda.c").write_text(CUDA)
    flags = ["-shared", "-fPIC", f"-DSTATUS={status}", f"-DCOUNT={count}"]
    subprocess.run(["cc", *flags, "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"], check=True)
    monkeypatch.setattr("engines.gpu._DRIVER", str(tmp_path / "libcuda.so.1"))
    assert visible_gpu() == (Gpu("NVIDIA H200", (9, 0), 13000) if found else None)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.gpu._DRIVER", "libcuda-that-is-not-there.so.1")
    assert visible_gpu() is None
