"""Half precision is where it is said to be and nowhere else, and is as close to float32 as it should be."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import export.bundle
import runtime
from export.bundle import ExportOptions, default_folder, export_bundle
from export.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from export.graphs import graphs_of, tensors_of
from export.manifest import Graph, Manifest, read_manifest
from export.precision import Precision, PrecisionError, emulated, typed, typed_graphs
from export.verify import VerifyError, noise_ratio, sqnr_db, verify_bundle
from runtime.backends.ort import OrtBackend
from runtime.cli import main
from runtime.errors import OptionError
from tests.tiny import checkpoint_content, write_checkpoint
from train.networks import NetworkOptions, network_from_options

HALVES = (Precision.FP16, Precision.BF16)
TYPE_NAMES = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model") / "m.ckpt"))


@pytest.fixture(scope="module")
def bundles(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The same network in each precision; never written to."""
    folder = tmp_path_factory.mktemp("bundles")
    for precision in Precision:
        export_bundle(checkpoint, ExportOptions(folder / precision, precision=precision))
    return {precision: folder / precision for precision in Precision}


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return values | {weight.name: weight.data_type for weight in graph.initializer}


def run(*arguments: object) -> int:
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


# --- what is in which type --------------------------------------------------------------------------


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", ["layer_00", "layer_01", "step"])
def test_products_are_half_and_what_half_breaks_is_float32(
    bundles: dict[Precision, Path], precision: Precision, name: str
) -> None:
    """Every node of the file that was written, by the types of its inputs."""
    model = onnx.load(bundles[precision] / f"onnx/{name}.onnx")
    types, kinds = types_of(model), dict[str, set[int]]()
    for node in model.graph.node:
        is_layer = name != "step" or node.name.startswith("layer_")
        if node.op_type in ("Gemm", "MatMul"):
            expected = precision.onnx_type if is_layer else onnx.TensorProto.FLOAT
            assert {types[value] for value in node.input} == {expected}, node.name
        kinds.setdefault(node.op_type, set()).update(types[value] for value in node.input if value)
    for kind in ("Softmax", "LayerNormalization", "Add", "Sin", "Cos", "Mul"):
        assert kinds.get(kind, set()) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}, kind  # indices are integers
    assert {"Softmax", "LayerNormalization"} <= set(kinds)
    assert kinds["ScatterND"] == {precision.onnx_type, onnx.TensorProto.INT64}


@pytest.mark.parametrize("precision", HALVES)
def test_embed_and_head_are_those_of_fp32_byte_for_byte(bundles: dict[Precision, Path], precision: Precision) -> None:
    exact, half = (read_manifest(bundles[kind]).graphs for kind in (Precision.FP32, precision))
    for name in ("embed", "head"):
        assert half[name].digest == exact[name].digest
    assert half["layer_00"].digest != exact["layer_00"].digest


@pytest.mark.parametrize("precision", HALVES)
def test_caches_are_half_and_all_other_ports_float32(bundles: dict[Precision, Path], precision: Precision) -> None:
    manifest = read_manifest(bundles[precision])
    assert manifest.precision == precision
    for graph in manifest.graphs.values():
        for tensor in (*graph.inputs, *graph.outputs):
            is_cache = tensor.name.startswith(("past_", "present_"))
            expected = TYPE_NAMES[precision] if is_cache else "int64" if tensor.name == "token" else "float32"
            assert tensor.dtype == expected, tensor.name


def test_no_cast_is_made_twice(bundles: dict[Precision, Path]) -> None:
    nodes = onnx.load(bundles[Precision.FP16] / "onnx/step.onnx").graph.node
    casts = [(node.input[0], node.attribute[0].i) for node in nodes if node.op_type == "Cast"]
    assert len(casts) == len(set(casts)) > 0


def test_fp32_graphs_are_left_as_they_are(checkpoint: Checkpoint, bundles: dict[Precision, Path]) -> None:
    graphs = graphs_of(checkpoint.network)
    assert typed_graphs(graphs, Precision.FP32) == graphs
    assert (bundles[Precision.FP32] / "onnx/step.onnx").read_bytes() == graphs["step"].SerializeToString()
    assert read_manifest(bundles[Precision.FP32]).parity["step"] < 1e-5


# --- how close it is --------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "part", "chain"), [(Precision.FP16, 65, 65), (Precision.BF16, 45, 45)])
def test_sqnr_of_every_part_the_chain_and_a_trajectory_is_in_the_manifest(
    bundles: dict[Precision, Path], precision: Precision, part: float, chain: float
) -> None:
    """Oracle: rounding to 11 (8) bits, 20 log10(2^12 sqrt(3)) = 77 (59) dB, less what some ten in a row cost."""
    manifest = read_manifest(bundles[precision])
    assert set(manifest.parity) == {*manifest.graphs, "chain", "trajectory"}
    for name in ("layer_00", "layer_01"):
        assert part < manifest.parity[name] < part + 20
    for name in ("chain", "step", "trajectory"):
        assert chain < manifest.parity[name] < chain + 30
    for name in ("embed", "head"):
        assert manifest.parity[name] > 120  # float32
    assert manifest.parity["chain"] == pytest.approx(manifest.parity["step"], abs=0.5)
    assert manifest.parity_in_words("layer_00").endswith(" dB")


def layer_in_torch(layer: Any, kind: torch.dtype, feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    """A layer of two heads-first caches as `export.precision` describes it, written once more, in torch's own types."""
    hidden, token, past_key, past_value = (torch.from_numpy(array.copy()) for array in feeds.values())
    attention, (batch, heads, _, width) = layer.self_attn, past_key.shape

    def half(x: torch.Tensor) -> torch.Tensor:
        return x.to(kind)

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.linear(half(x), half(weight), half(bias))

    scale = torch.ones(3 * hidden.shape[-1])
    scale[: hidden.shape[-1]] = width**-0.5
    qkv = product(hidden, attention.in_proj_weight * scale[:, None], attention.in_proj_bias * scale)
    query, key, value = (x.reshape(batch, -1, heads, width).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
    index = token[:, None, :, None].expand(key.shape)
    key, value = half(past_key).scatter(2, index, key), half(past_value).scatter(2, index, value)
    weights = torch.softmax((query @ key.transpose(2, 3)).float(), dim=-1)
    context = (half(weights) @ value).transpose(1, 2).reshape(hidden.shape)
    out = product(context, attention.out_proj.weight, attention.out_proj.bias)
    hidden = layer.norm1(hidden + out.float())
    inner = F.relu(product(hidden, layer.linear1.weight, layer.linear1.bias))
    hidden = layer.norm2(hidden + product(inner, layer.linear2.weight, layer.linear2.bias).float())
    return [x.float().numpy() for x in (hidden, key, value)]


@pytest.mark.parametrize("precision", HALVES)
def test_the_emulated_layer_is_one_in_torch_that_rounds_at_the_same_places(
    checkpoint: Checkpoint, bundles: dict[Precision, Path], tmp_path: Path, precision: Precision
) -> None:
    """Some sums come out on the other side of a rounding, hence 20 dB below the noise of rounding, and not nothing."""
    model = emulated(onnx.load(bundles[precision] / "onnx/layer_00.onnx"))
    (tmp_path / "layer_00.onnx").write_bytes(model.SerializeToString())
    graph = Graph("layer_00.onnx", "", tensors_of(model.graph.input), tensors_of(model.graph.output))
    assert {tensor.dtype for tensor in graph.inputs} == {"float32", "int64"}
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[Any]] = {
        "hidden": rng.standard_normal((2, 5, 12), np.float32),
        "token": np.array([[3, 0, 14, 7, 9], [1, 2, 3, 4, 5]]),
        "past_key": precision.rounded(rng.standard_normal((2, 3, 15, 4), np.float32)),
        "past_value": precision.rounded(rng.standard_normal((2, 3, 15, 4), np.float32)),
    }
    kind = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}[precision]
    with torch.inference_mode():
        expected = layer_in_torch(checkpoint.network.backbone.layers[0], kind, feeds)  # type: ignore[union-attr]
    with OrtBackend(tmp_path, {"layer_00": graph}) as backend:
        found = backend.run("layer_00", feeds)
    noise = read_manifest(bundles[precision]).parity["layer_00"]
    for name, reference in zip(("hidden_out", "present_key", "present_value"), expected, strict=True):
        assert sqnr_db(noise_ratio(found[name], reference)) > noise + 20, name


def test_emulation_rounds(bundles: dict[Precision, Path], tmp_path: Path) -> None:
    """Every value of the emulated caches is one that bfloat16 has."""
    model = emulated(onnx.load(bundles[Precision.BF16] / "onnx/layer_00.onnx"))
    (tmp_path / "layer_00.onnx").write_bytes(model.SerializeToString())
    graph = Graph("layer_00.onnx", "", tensors_of(model.graph.input), tensors_of(model.graph.output))
    shapes = {"hidden": (1, 15, 12), "past_key": (1, 3, 15, 4), "past_value": (1, 3, 15, 4)}
    feeds: dict[str, Any] = {n: np.random.default_rng(1).standard_normal(s, np.float32) for n, s in shapes.items()}
    with OrtBackend(tmp_path, {"layer_00": graph}) as backend:
        found = backend.run("layer_00", feeds | {"token": np.arange(15)[None]})
    assert (found["present_key"] == Precision.BF16.rounded(found["present_key"])).all()
    assert not (found["hidden_out"] == Precision.BF16.rounded(found["hidden_out"])).all()


@pytest.mark.parametrize("precision", HALVES)
def test_verify_names_a_part_that_is_not_good_enough(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """A bias off by a quarter, which is far below 32 dB; and no bundle is left."""

    def spoiled(network: Any) -> dict[str, onnx.ModelProto]:
        graphs = graphs_of(network)
        for name in ("layer_01", "step"):
            weight = next(w for w in graphs[name].graph.initializer if w.name.endswith("linear2_bias"))
            values = onnx.numpy_helper.to_array(weight) + np.float32(0.25 * (np.arange(12) % 2))
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return graphs

    monkeypatch.setattr(export.bundle, "graphs_of", spoiled)
    with pytest.raises(VerifyError, match=rf"layer_01 in {precision} is .* dB \(SQNR\) from PyTorch, needed are"):
        export_bundle(checkpoint, ExportOptions(tmp_path / "bundle", precision=precision))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_verifies_again(checkpoint: Checkpoint, bundles: dict[Precision, Path]) -> None:
    for folder in bundles.values():
        manifest = read_manifest(folder)
        assert verify_bundle(folder, manifest, checkpoint) == pytest.approx(manifest.parity, rel=1e-6)


def test_sqnr_of_equal_and_of_broken_values() -> None:
    one = np.ones(3, np.float32)
    assert sqnr_db(noise_ratio(one, one)) == 200.0
    assert sqnr_db(noise_ratio(one * np.float32(1.01), one)) == pytest.approx(40.0, abs=1e-3)
    assert sqnr_db(noise_ratio(one * np.float32(np.nan), one)) == -np.inf


# --- what cannot be -----------------------------------------------------------------------------------


def test_a_weight_beyond_the_range_is_named(tmp_path: Path) -> None:
    content = checkpoint_content()
    content["state_dict"]["backbone.layers.1.linear1.weight"][0, 0] = 1e5  # float16 ends at 65504
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.ckpt", content))
    graphs = graphs_of(checkpoint.network)
    with pytest.raises(PrecisionError, match=r"linear1_weight of layer_01 does not fit into fp16: .* 1e\+05; export"):
        typed(graphs["layer_01"], Precision.FP16)
    typed(graphs["layer_01"], Precision.BF16)


def without_cache(folder: Path, backbone: str) -> Checkpoint:
    """A network without K/V."""
    options = NetworkOptions(15, 2, 12, 0, 2, 16 if backbone == "mlp" else 0, 0.0, backbone)
    torch.manual_seed(0)
    content = checkpoint_content()
    content["state_dict"] = network_from_options(options).state_dict()
    content["e2crf"] |= {"backbone": backbone, "network": options.to_dict()}
    return read_checkpoint(write_checkpoint(folder / f"{backbone}.ckpt", content))


def test_an_mlp_has_half_products_too(tmp_path: Path) -> None:
    manifest = export_bundle(without_cache(tmp_path, "mlp"), ExportOptions(tmp_path / "bundle", precision="fp16"))
    assert 65 < manifest.parity["layer_00"] < 90
    with runtime.load(tmp_path / "bundle") as model:
        assert np.isfinite(model.sample(2, steps=3, cache=None).series).all()


def test_recurrent_layers_stay_in_float32_and_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="no part of this network would be computed in fp16: its layers are recu"):
        export_bundle(without_cache(tmp_path, "lstm"), ExportOptions(tmp_path / "bundle", precision="fp16"))
    assert not (tmp_path / "bundle").exists()


def test_another_precision_of_the_same_model_needs_another_folder(
    checkpoint: Checkpoint, bundles: dict[Precision, Path]
) -> None:
    with pytest.raises(CheckpointError, match=r"in fp32 by .* in fp16 by .*--overwrite"):
        export_bundle(checkpoint, ExportOptions(bundles[Precision.FP32], precision="fp16"))
    assert default_folder(checkpoint, "fp16").name == "tiny-fp16"
    assert default_folder(checkpoint, "fp32").name == "tiny"


def test_an_unknown_precision_is_an_error_that_lists_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown precision 'int8'; the known ones are fp32, fp16, bf16"):
        ExportOptions(tmp_path, precision="int8")


# --- on the CPU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", ["step", "split"])
def test_fp16_samples_on_the_cpu_with_half_the_cache(bundles: dict[Precision, Path], graphs: str) -> None:
    """Oracle: the fp32 bundle under the same noise; partial steps read and write the half caches in place."""
    drawn = {}
    for precision in (Precision.FP32, Precision.FP16):
        with runtime.load(bundles[precision], graphs=graphs) as model:
            cache = runtime.E2CRF(R=4, K=3, alpha_prior=0.0)
            drawn[precision] = model.sample(3, steps=24, solver="ancestral", seed=1, cache=cache)
    exact, half = drawn[Precision.FP32], drawn[Precision.FP16]
    assert 40 < sqnr_db(noise_ratio(half.z, exact.z)) < 90
    assert half.stats.passes == exact.stats.passes < 24
    assert half.stats.cache_bytes * 2 == exact.stats.cache_bytes > 0


def test_bf16_is_refused_on_the_cpu_in_one_sentence(
    bundles: dict[Precision, Path], tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(OptionError, match="ONNX Runtime computes no bf16 on a CPU, found a bundle in bf16; export"):
        runtime.load(bundles[Precision.BF16])
    assert run("sample", bundles[Precision.BF16], "--out", tmp_path / "s.npz") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_commands_tell_of_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(Path("lightning_logs/tiny/checkpoints/last.ckpt"))
    assert run("export", "tiny", "--dtype", "fp16", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["bundle"], facts["precision"]) == ("bundles/tiny-fp16", "fp16")
    assert run("verify", "tiny-fp16") == 0
    assert "least SQNR against PyTorch 69." in capsys.readouterr().out
    assert run("inspect", "tiny-fp16") == 0
    assert " dB" in capsys.readouterr().out
    assert run("export", "tiny", "--dtype", "half") == 2
    assert "the known ones are fp32, fp16, bf16" in capsys.readouterr().err


def test_an_older_manifest_is_one_of_fp32(bundles: dict[Precision, Path], tmp_path: Path) -> None:
    """Bundles written before there was a choice do not say it."""
    manifest = read_manifest(bundles[Precision.FP32])
    facts = json.loads(manifest.to_json())
    del facts["precision"]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    assert dataclasses.replace(manifest) == read_manifest(tmp_path, verify_digests=False)
    assert Manifest.__dataclass_fields__["precision"].default == "fp32"
