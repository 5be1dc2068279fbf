"""Real engines of real bundles by TensorRT-RTX, which needs no GPU to build: made once, found again, never half."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from filelock import FileLock
from onnx import TensorProto, helper

import engines.build
from engines.build import Outcome, build_engines
from engines.compiler import engine_bytes
from engines.errors import EngineError, RecipeError
from engines.flavor import ALL_TARGETS, Flavor, Toolkit, installed_version, open_toolkit, rtx_targets
from engines.key import Ingredients
from engines.recipe import Parts, Profile, Recipe
from engines.store import ENGINE_FILE, RECORD_FILE, Store
from export.bundle import ExportOptions, export_bundle
from export.checkpoint import Checkpoint, read_checkpoint
from export.manifest import Graph, ManifestError, Tensor, read_manifest
from export.precision import Precision
from runtime.cli import main
from tests.tiny import checkpoint_content, make_bundle, write_checkpoint

ROOT = Path(__file__).parent.parent
SMALL = {"num_tokens": 6, "num_channels": 1, "d_model": 8, "num_heads": 2, "num_layers": 1, "d_ff": 8}
SPLIT = Recipe(parts=Parts.SPLIT, batch=2, buckets=())
# In CI they must run: there, a missing package is a failure.
pytestmark = pytest.mark.skipif(
    installed_version(Flavor.RTX) is None and not os.environ.get("CI"),
    reason="TensorRT-RTX is not installed; pip install 'e2crf[rtx]'",
)


@pytest.fixture(scope="module")
def toolkit() -> Toolkit:
    return open_toolkit(Flavor.RTX)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of embed, one layer, head and step, with engines of the three parts; never written to."""
    bundle, _ = make_bundle(tmp_path_factory.mktemp("built"), **SMALL)
    assert [outcome.built for outcome in build_engines(bundle, SPLIT)] == [True] * 3
    return bundle


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def names(outcomes: list[Outcome], *, built: bool) -> list[str]:
    return [outcome.record.ingredients.graph for outcome in outcomes if outcome.built is built]


def stamps(bundle: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in bundle.rglob("engines/*/*")}


def run(*arguments: object) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


# --- engines of every part ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", Precision)
def test_engines_of_every_part_and_of_step_are_built_once(tmp_path: Path, precision: Precision) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.ckpt"))
    export_bundle(checkpoint, ExportOptions(tmp_path / "bundle", precision=precision))
    recipe, heard = Recipe(parts=Parts.ALL, buckets=(4,)), list[str]()
    made = build_engines(tmp_path / "bundle", recipe, heard.append)
    assert names(made, built=True) == ["embed", "layer_00", "layer_01", "head", "step"]
    assert [line for line in heard if ":" not in line][:2] == ["embed, engine 1 of 5", "layer_00, engine 2 of 5"]
    assert any(line.startswith("step, engine 5 of 5: Building engine, ") for line in heard)
    store, before = Store(tmp_path / "bundle"), stamps(tmp_path / "bundle")
    for outcome in made:
        record = outcome.record
        assert [profile.tokens for profile in record.ingredients.profiles] == [4, 15]
        assert len(store.read(record.ingredients.key)) == record.size > 100_000  # a whole engine, not a stub
    again = build_engines(tmp_path / "bundle", recipe)
    assert names(again, built=False) == ["embed", "layer_00", "layer_01", "head", "step"]
    assert [outcome.record for outcome in again] == [outcome.record for outcome in made]
    assert stamps(tmp_path / "bundle") == before


def test_half_engines_are_other_engines_than_full_ones(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.ckpt", **SMALL))
    keys: list[set[str]] = []
    for precision in (Precision.FP32, Precision.FP16):
        export_bundle(checkpoint, ExportOptions(tmp_path / precision, precision=precision))
        keys.append({outcome.record.ingredients.key for outcome in build_engines(tmp_path / precision, SPLIT)})
    kept = {key.partition("-")[0] for key in keys[0] & keys[1]}
    assert kept == {"embed", "head"}  # these are in float32 either way


# --- what is built again ----------------------------------------------------------------------------


def other_layer(tmp_path: Path) -> Checkpoint:
    """The same network but for one weight of its layer, as a retrained model would be."""
    content = checkpoint_content(**SMALL)
    content["state_dict"]["backbone.layers.0.linear1.weight"] += torch.tensor(0.01)
    return read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", content))


def test_a_changed_graph_rebuilds_its_engine_only(bundle: Path, tmp_path: Path) -> None:
    """The bundle is exported over; engines of graphs that came out the same byte for byte are still there."""
    export_bundle(other_layer(tmp_path), ExportOptions(bundle, overwrite=True))
    outcomes = build_engines(bundle, SPLIT)
    assert names(outcomes, built=True) == ["layer_00"]
    assert names(outcomes, built=False) == ["embed", "head"]


def test_a_changed_recipe_rebuilds_what_follows_from_it(bundle: Path) -> None:
    assert names(build_engines(bundle, dataclasses.replace(SPLIT, tf32=True)), built=False) == []
    assert names(build_engines(bundle, dataclasses.replace(SPLIT, buckets=(6, 7))), built=True) == []  # both are N


def test_another_version_of_the_library_rebuilds_all(bundle: Path, toolkit: Toolkit, monkeypatch: Any) -> None:
    newer = dataclasses.replace(toolkit, version="99.0")
    monkeypatch.setattr(engines.build, "open_toolkit", lambda flavor: newer)
    assert names(build_engines(bundle, SPLIT), built=False) == []
    monkeypatch.undo()
    assert names(build_engines(bundle, SPLIT), built=True) == []  # those of the old one are still there


def test_targets_are_named_and_checked(bundle: Path, toolkit: Toolkit) -> None:
    head = build_engines(bundle, dataclasses.replace(SPLIT, targets=("8.9", "8.6")))[-1]
    assert head.record.ingredients.target == "8.6, 8.9"
    assert {"8.6", "8.9", "12.0"} <= set(rtx_targets(toolkit))
    with pytest.raises(RecipeError, match=r"has no target '9.0', it has 7.5, .*--flavor tensorrt"):
        build_engines(bundle, dataclasses.replace(SPLIT, targets=("9.0",)))


# --- damage -----------------------------------------------------------------------------------------


def truncate(engine: Path, other: Path) -> None:
    (engine / ENGINE_FILE).write_bytes((engine / ENGINE_FILE).read_bytes()[:-1000])


def swap(engine: Path, other: Path) -> None:
    """The bytes of another engine, as long as these."""
    size = (engine / ENGINE_FILE).stat().st_size
    (engine / ENGINE_FILE).write_bytes((other / ENGINE_FILE).read_bytes()[:size].ljust(size))


def take_over(engine: Path, other: Path) -> None:
    shutil.rmtree(engine)
    shutil.copytree(other, engine)


def lose_record(engine: Path, other: Path) -> None:
    (engine / RECORD_FILE).unlink()


def garble_record(engine: Path, other: Path) -> None:
    (engine / RECORD_FILE).write_text((engine / RECORD_FILE).read_text()[:100])


def become_a_file(engine: Path, other: Path) -> None:
    shutil.rmtree(engine)
    engine.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "is truncated: "),
        (swap, "is another engine: its SHA-256 is"),
        (take_over, "belongs to embed-"),
        (lose_record, "cannot be read"),
        (garble_record, "cannot be read"),
        (become_a_file, "cannot be read"),
    ],
)
def test_a_damaged_or_foreign_engine_is_named_and_built_again(bundle: Path, damage: Any, words: str) -> None:
    keys = {
        outcome.record.ingredients.graph: outcome.record.ingredients.key for outcome in build_engines(bundle, SPLIT)
    }
    store = Store(bundle)
    damage(store.folder / keys["head"], store.folder / keys["embed"])
    with pytest.raises(EngineError, match=f"engine {keys['head']} .*{words}.*build it with `e2crf build`"):
        store.read(keys["head"])
    outcomes = build_engines(bundle, SPLIT)
    assert names(outcomes, built=True) == ["head"]
    assert words in outcomes[-1].reason
    assert len(store.read(keys["head"])) == outcomes[-1].record.size


def test_a_changed_graph_file_is_refused(bundle: Path) -> None:
    with (bundle / "onnx/head.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match=r"head.onnx .* was changed after export"):
        build_engines(bundle, SPLIT)


# --- builders that die, meet, or may not write -------------------------------------------------------


def start_build(bundle: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "runtime.cli", "build", str(bundle), "--parts", "all", "--batch", "2", "--json"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_whole_engines_only_and_the_next_goes_on(tmp_path: Path) -> None:
    bundle, _ = make_bundle(tmp_path, num_layers=3)
    store, builder = Store(bundle), start_build(bundle)
    deadline = time.monotonic() + 60
    while not store.entries() and time.monotonic() < deadline:
        time.sleep(0.005)
    builder.send_signal(signal.SIGKILL)
    builder.communicate()
    left = store.entries()
    assert 1 <= len(left) < 6, "killed too early or too late to see anything"
    assert all(entry.record is not None for entry in left)
    (store.folder / ".stage-left").mkdir()  # what a kill between two writes leaves
    (store.folder / ".stage-left" / ENGINE_FILE).write_bytes(b"half an engine")
    finisher = start_build(bundle)
    result = json.loads(finisher.communicate(timeout=60)[0])
    assert result["num_built"] == 6 - len(left)
    assert [path.name for path in store.folder.iterdir() if path.name.startswith(".")] == [".lock"]


def test_builders_at_the_same_time_share_the_work(bundle: Path) -> None:
    """Two processes on one empty store: every engine is built once, by one of them."""
    shutil.rmtree(bundle / "engines")
    results = [json.loads(builder.communicate(timeout=60)[0]) for builder in [start_build(bundle) for _ in range(2)]]
    assert sum(result["num_built"] for result in results) == 4
    assert [len(result["engines"]) for result in results] == [4, 4]
    assert all(entry.record is not None for entry in Store(bundle).entries())


def test_a_builder_that_waits_says_so(bundle: Path) -> None:
    shutil.rmtree(bundle / "engines" / next(path.name for path in bundle.glob("engines/head-*")))
    other, heard = FileLock(bundle / "engines/.lock"), list[str]()
    other.acquire()

    def tell(line: str) -> None:
        heard.append(line)
        if "waiting" in line:
            other.release()

    assert names(build_engines(bundle, SPLIT, tell), built=True) == ["head"]
    assert "head, engine 3 of 3: another builder is at work here, waiting for it" in heard


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write anywhere; nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_store_that_cannot_be_written_is_read_and_says_so(built: Path) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        Path(place).chmod(0o755)
        bundle = Path(shutil.copytree(built, Path(place) / "bundle"))
        for path in (bundle, bundle / "engines"):
            path.chmod(0o555)
        with as_ordinary_user():
            assert names(build_engines(bundle, SPLIT), built=True) == []
            with pytest.raises(EngineError, match=r"it cannot be written \(.*\); make it writable, or copy the bundle"):
                build_engines(bundle, dataclasses.replace(SPLIT, tf32=True))
        for path in (bundle, bundle / "engines"):
            path.chmod(0o755)
        shutil.rmtree(bundle / "engines")
        bundle.chmod(0o555)
        with as_ordinary_user(), pytest.raises(EngineError, match="Permission denied"):
            build_engines(bundle, SPLIT)
        bundle.chmod(0o755)


def test_damage_of_any_kind_is_a_fault_and_mended(built: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built, tmp_path / "bundle"))
    store = Store(bundle)
    one, other = (entry.key for entry in store.entries()[:2])
    (store.folder / one / "engine.json").write_text("[" * 100_000, encoding="utf-8")
    shutil.rmtree(store.folder / other)
    (store.folder / other).symlink_to(tmp_path / "gone")
    assert {entry.key for entry in store.entries() if entry.record is None} == {one, other}
    assert len(names(build_engines(bundle, SPLIT), built=True)) == 2
    assert all(entry.record is not None for entry in store.entries())


@pytest.mark.parametrize("batch", [65_537, 2**31, 3_000_000_000])
def test_a_batch_beyond_any_gpu_is_refused(batch: int) -> None:
    with pytest.raises(RecipeError, match=f"the largest batch must be at most 65,536, found {batch:,}"):
        Recipe(batch=batch)


# --- what the library says ---------------------------------------------------------------------------


def compile_nodes(
    toolkit: Toolkit, folder: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[str, list[Any]]], opset: int
) -> bytes:
    """An engine of a few nodes that give `y` like the first input."""
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
    ports = [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in inputs.items()]
    kind, shape = next(iter(inputs.values()))
    graph = helper.make_graph(nodes, "odd", ports, [helper.make_tensor_value_info("y", kinds[kind], shape)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    (folder / "odd.onnx").write_bytes(model.SerializeToString())
    tensors = [Tensor(name, *facts) for name, facts in inputs.items()]
    record = Graph("odd.onnx", "", tensors, [Tensor("y", kind, shape)])
    ingredients = Ingredients("odd", "", Flavor.RTX, toolkit.version, ALL_TARGETS, False, [Profile(8, [1, 4, 4])])
    return engine_bytes(toolkit, folder / "odd.onnx", record, ingredients, lambda line: None)


HEADS: list[Any] = ["B", 2, "S", 16]


@pytest.mark.parametrize("attempt", [1, 2])  # Polygraphy says a warning once per process
def test_an_input_that_the_parser_drops_is_an_error(toolkit: Toolkit, tmp_path: Path, attempt: int) -> None:
    """Attention of opset 24 with a length per sequence, which TensorRT-RTX 1.7 ignores with a warning."""
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", "length"], ["y"])
    inputs = dict.fromkeys("qkv", ("float16", HEADS)) | {"length": ("int64", ["B"])}
    with pytest.raises(EngineError, match=r"would leave out an input \(Unused Input: length\)"):
        compile_nodes(toolkit, tmp_path, [node], inputs, 24)


def test_a_failed_build_shows_the_first_cause(toolkit: Toolkit, tmp_path: Path) -> None:
    node, inputs = helper.make_node("Frobnicate", ["x"], ["y"], name="f"), {"x": ("float32", HEADS)}
    with pytest.raises(EngineError, match=r"could not build odd: In node 0 .* operator: Frobnicate .* version of"):
        compile_nodes(toolkit, tmp_path, [node], inputs, 20)
    node = helper.make_node("MatMul", ["x", "x"], ["y"], name="product")
    with pytest.raises(EngineError, match=r"could not build odd: IBuilder.*mismatching dimensions"):
        compile_nodes(toolkit, tmp_path, [node], inputs, 20)


def test_a_port_that_differs_from_the_manifest_is_an_error(toolkit: Toolkit, tmp_path: Path, bundle: Path) -> None:
    graph = read_manifest(bundle).graphs["head"]
    other = dataclasses.replace(graph, inputs=[dataclasses.replace(graph.inputs[0], dtype="float16")])
    ingredients = Ingredients("head", "", Flavor.RTX, toolkit.version, ALL_TARGETS, False, [Profile(6, [1, 2, 2])])
    with pytest.raises(EngineError, match=r"the parser changed input hidden of head: expected .*HALF.*found .*FLOAT"):
        engine_bytes(toolkit, bundle / graph.file, other, ingredients, lambda line: None)


def test_tf32_is_set_both_ways(toolkit: Toolkit, bundle: Path) -> None:
    """Read back from the builder's own configuration, whose default is on."""
    seen = []

    def create(*arguments: Any, **options: Any) -> Any:
        seen.append(toolkit.create_config(*arguments, **options))
        return seen[-1]

    graph, spied = read_manifest(bundle).graphs["head"], dataclasses.replace(toolkit, create_config=create)
    for tf32 in (False, True):
        ingredients = Ingredients("head", "", Flavor.RTX, toolkit.version, ALL_TARGETS, tf32, [Profile(6, [1, 2, 2])])
        engine_bytes(spied, bundle / graph.file, graph, ingredients, lambda line: None)
        assert seen[-1].get_flag(toolkit.trt.BuilderFlag.TF32) is tf32


def test_profiles_and_targets_reach_the_builder(toolkit: Toolkit, bundle: Path) -> None:
    """Targets and how many profiles there are by the builder's own configuration, shapes as Polygraphy gets them."""
    seen = []

    def create(*arguments: Any, **options: Any) -> Any:
        seen.append((toolkit.create_config(*arguments, **options), options["profiles"]))
        return seen[-1][0]

    graph, spied = read_manifest(bundle).graphs["layer_00"], dataclasses.replace(toolkit, create_config=create)
    profiles = [Profile(2, [1, 3, 4]), Profile(6, [1, 3, 4])]
    for target, capabilities in ((ALL_TARGETS, []), ("8.6, 8.9", ["SM86", "SM89"])):
        ingredients = Ingredients("layer_00", "", Flavor.RTX, toolkit.version, target, False, profiles)
        engine_bytes(spied, bundle / graph.file, graph, ingredients, lambda line: None)
        config, given = seen[-1]
        assert config.num_optimization_profiles == 2
        found = [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)]
        assert found == capabilities
        for profile, tokens in zip(given, (2, 6), strict=True):
            assert set(profile) == {tensor.name for tensor in graph.inputs}
            shapes = [profile["hidden"].min, profile["hidden"].opt, profile["hidden"].max]
            assert shapes == [(batch, tokens, SMALL["d_model"]) for batch in (1, 3, 4)]


def test_ctrl_c_ends_a_build(toolkit: Toolkit, bundle: Path) -> None:
    def stop(line: str) -> None:
        if "Building engine" in line:
            raise KeyboardInterrupt

    shutil.rmtree(bundle / "engines")
    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, SPLIT, stop)
    assert Store(bundle).entries() == []


# --- one flavour in a process, and words -------------------------------------------------------------


def test_a_process_has_one_flavour(toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.flavor.installed_version", lambda flavor: "11.4")
    with pytest.raises(EngineError, match=r"already uses the other flavour of TensorRT .* use one process for each"):
        open_toolkit(Flavor.TENSORRT)


@pytest.mark.skipif(installed_version(Flavor.TENSORRT) is not None, reason="TensorRT is installed here")
def test_build_says_what_to_install(bundle: Path, capsys: Any) -> None:
    assert run("build", bundle, "--flavor", "tensorrt") == 1
    assert "not installed; pip install 'e2crf[tensorrt]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--flavor", "cuda"], "unknown flavour 'cuda'; the known ones are rtx, tensorrt"),
        (["--parts", "layers"], "unknown set of parts 'layers'; the known ones are step, split, all"),
        (["--tokens", "5,x"], "--tokens must be whole numbers"),
        (["--batch", "0"], "the largest batch must be at least 1"),
        (["--target", "5.0"], "has no target '5.0'"),
    ],
)
def test_wrong_use_of_build_is_one_sentence(bundle: Path, options: list[str], words: str, capsys: Any) -> None:
    assert run("build", bundle, *options) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.strip().splitlines()) == 1


def test_build_inspect_and_doctor_tell_of_engines(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    """What is there, what it runs on, and what is wrong with one that is damaged or unused."""
    assert run("build", bundle, "--parts", "split", "--batch", "2", "--tokens", "6", "--json") == 0
    built = json.loads(capsys.readouterr().out)
    assert built["num_built"] == 0
    assert [engine["state"] for engine in built["engines"]] == ["kept"] * 3
    head = built["engines"][-1]["key"]
    truncate(bundle / "engines" / head, tmp_path)
    export_bundle(other_layer(tmp_path), ExportOptions(bundle, overwrite=True))
    assert run("inspect", bundle, "--json") == 0
    engines = {engine["key"].partition("-")[0]: engine for engine in json.loads(capsys.readouterr().out)["engines"]}
    assert engines["embed"]["state"] == "ready"
    assert engines["embed"]["profiles"] == [{"tokens": 6, "batch": [1, 2, 2]}]
    assert (engines["embed"]["precision"], engines["embed"]["flavor"]) == ("fp32", "rtx")
    assert engines["embed"]["size"] > 100_000
    assert "no longer has" in engines["layer_00"]["state"]
    assert "is truncated" in engines["head"]["state"]
    assert run("inspect", bundle) == 0
    told = capsys.readouterr().out
    assert f"{head} " in told
    assert "is truncated" in told
    assert run("build", bundle, "--parts", "split", "--batch", "2", "--tokens", "6") == 0
    told = capsys.readouterr().out
    assert f"rebuilt  {head}" in told
    assert "2 built, 1 kept" in told
    assert run("doctor", "--json") == 0
    facts = json.loads(capsys.readouterr().out)["engines"]
    assert facts["rtx"] == {"version": installed_version(Flavor.RTX), "builds": True, "runs": facts["gpu"] is not None}


def test_the_cpu_path_loads_nothing_of_cuda_or_tensorrt(bundle: Path, tmp_path: Path) -> None:
    """Sampling a bundle that has engines, and looking at it, on the CPU."""
    code = f"""
import sys
from runtime.cli import main
for command in (["sample", {str(bundle)!r}, "-n", "2", "--steps", "3", "--out", {str(tmp_path / "s.npz")!r}, "--json"],
                ["inspect", {str(bundle)!r}, "--json"], ["doctor", "--json"]):
    try: main(command)
    except SystemExit as stop: assert not stop.code
print([m for m in ("tensorrt", "tensorrt_rtx", "polygraphy", "cuda", "torch", "onnx", "filelock") if m in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
