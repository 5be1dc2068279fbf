"""Steps of few tokens in compiled code: the graph's numbers, caches and refusals; never where it does not fit."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.manifest import read_manifest
from runtime.backends import few_tokens
from runtime.backends.few_tokens import MOST, FewTokens, open_few_tokens, widths_here
from runtime.backends.initializers import read_initializers
from runtime.backends.ort import OrtBackend
from runtime.cache.options import E2CRF
from runtime.doctor import examine
from runtime.errors import BackendError, BackendWarning
from runtime.sampler import Model
from tests.tiny import make_bundle

NETWORKS = {
    "tiny": {},
    "as published, two layers": {"num_tokens": 187, "num_channels": 1, "d_model": 72, "num_heads": 12, "d_ff": 2048},
    "the demo's heads": {"num_tokens": 150, "num_channels": 1, "d_model": 72, "num_heads": 4, "d_ff": 288},
    "odd everywhere": {"num_tokens": 23, "num_channels": 17, "d_model": 35, "num_heads": 5, "d_ff": 301},
    "one wide head": {"num_tokens": 9, "num_channels": 3, "d_model": 40, "num_heads": 1, "d_ff": 7},
}
compiled = pytest.mark.skipif(not widths_here(), reason="no C compiler was there at install")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_bundle(tmp_path_factory.mktemp("few"), **network)[0] for name, network in NETWORKS.items()}


def feeds_of(bundle: Path, active: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """One sample's latents and caches of noise, and tokens in no order."""
    network, noise = read_manifest(bundle).network, np.random.default_rng(seed)
    feeds: dict[str, NDArray[Any]] = {
        "z": noise.normal(size=(1, active, network.num_channels)).astype(np.float32),
        "t": noise.uniform(size=1).astype(np.float32),
        "token": noise.permutation(network.num_tokens)[None, :active],
    }
    shape = (1, network.num_heads, network.num_tokens, network.head_dim)
    for layer in range(network.num_layers):
        for kind in ("key", "value"):
            feeds[f"past_{kind}_{layer:02d}"] = noise.normal(size=shape).astype(np.float32)
    return feeds


def outputs_of(feeds: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Buffers for a call in place."""
    return {name: feeds[name.replace("present", "past")] if "present" in name else np.zeros_like(values)
            for name, values in expected.items()}  # fmt: skip


@compiled
@pytest.mark.parametrize("width", widths_here())
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_graphs_to_rounding(bundles: dict[str, Path], name: str, width: int) -> None:
    """Oracle: ONNX Runtime in float32, within 3e-7 of PyTorch; other orders of sums round to 1e-6 of the largest."""
    bundle = bundles[name]
    manifest = read_manifest(bundle)
    network, path = manifest.network, bundle / manifest.graphs["step"].file
    few = FewTokens(read_initializers(path), network.num_heads, network.num_tokens, width)
    with OrtBackend(bundle, manifest.graphs, threads=1, compiled=False) as backend:
        for active in range(1, min(MOST, network.num_tokens - 1) + 1):
            feeds = feeds_of(bundle, active, seed=active)
            expected = backend.run("step", feeds)
            found = outputs_of(feeds, expected)
            call = few.bind(feeds, found)
            assert call is not None
            call()
            for output, values in expected.items():
                assert np.abs(found[output] - values).max() < 3e-6 * np.abs(values).max(), (active, output)
            others = np.setdiff1d(np.arange(network.num_tokens), feeds["token"])
            assert np.array_equal(found["present_key_00"][:, :, others], expected["present_key_00"][:, :, others])


@compiled
def test_a_row_does_not_depend_on_how_many_are_computed_with_it(bundles: dict[str, Path]) -> None:
    """Of one layer's keys, before tokens attend to each other: bit for bit."""
    bundle = bundles["as published, two layers"]
    keys = []
    for active in (1, 5, 8, 9, 16):
        with OrtBackend(bundle, read_manifest(bundle).graphs) as backend:
            feeds = feeds_of(bundle, 16)
            feeds |= {"z": feeds["z"][:, :active].copy(), "token": feeds["token"][:, :active].copy()}
            backend.bind("step", feeds, outputs_of(feeds, backend.run("step", feeds)))()
            keys.append(feeds["past_key_00"][0, :, feeds["token"][0, 0]])
    assert all(np.array_equal(keys[0], others) for others in keys[1:])


@compiled
def test_it_serves_few_tokens_of_one_sample_in_place_and_nothing_else(bundles: dict[str, Path]) -> None:
    bundle = bundles["one wide head"]
    manifest = read_manifest(bundle)
    few = open_few_tokens(bundle / manifest.graphs["step"].file, manifest.graphs["step"])
    assert few is not None
    feeds = feeds_of(bundle, 8)
    out = outputs_of(
        feeds, {name.replace("past", "present"): values for name, values in feeds.items() if "past" in name}
    )
    out["score"] = np.zeros_like(feeds["z"])
    assert few.bind(feeds, out) is not None  # hidden is not asked for
    copied = out | {"present_key_00": np.zeros_like(out["present_key_00"])}
    assert few.bind(feeds, copied) is None
    all_tokens = feeds | {"z": np.zeros((1, 9, 3), np.float32), "token": np.arange(9)[None]}
    assert few.bind(all_tokens, out | {"score": np.zeros((1, 9, 3), np.float32)}) is None
    two = {name: np.repeat(values, 2, axis=0) for name, values in feeds.items()}
    assert few.bind(two, {name.replace("past", "present"): values for name, values in two.items()}) is None
    none = feeds | {"z": feeds["z"][:, :0], "token": feeds["token"][:, :0]}
    assert few.bind(none, out) is None


@compiled
@pytest.mark.parametrize("token", [-1, 9])
def test_a_token_of_another_network_is_refused_before_anything_is_written(bundles: dict[str, Path], token: int) -> None:
    bundle = bundles["one wide head"]
    with OrtBackend(bundle, read_manifest(bundle).graphs) as backend:
        feeds = feeds_of(bundle, 2)
        out = outputs_of(feeds, backend.run("step", feeds))
        call, before = backend.bind("step", feeds, out), {name: values.copy() for name, values in feeds.items()}
        feeds["token"][0, 1] = token
        with pytest.raises(BackendError, match=rf"tokens must be from 0 to 8, found .*{token}.*; correct the policy"):
            call()
    assert all(np.array_equal(feeds[name], before[name]) for name in feeds if name != "token")


@compiled
def test_what_is_no_number_stays_none(bundles: dict[str, Path]) -> None:
    """A diverged sample must not look like a sound one; keys that are no numbers reach all who attend to them."""
    bundle = bundles["tiny"]
    with OrtBackend(bundle, read_manifest(bundle).graphs) as backend:
        for spoiled in ("z", "past_key_01", "past_value_01"):
            feeds = feeds_of(bundle, 3)
            out = outputs_of(feeds, backend.run("step", feeds))
            feeds[spoiled].reshape(-1)[-1] = np.nan
            feeds["token"][0] = (0, 1, 2)  # the last token's keys are kept
            backend.bind("step", feeds, out)()
            assert np.isnan(out["score"][0, -1]).all(), spoiled


@compiled
@pytest.mark.parametrize("cache", [
    E2CRF(R=7, K=2, low_every=3),
    E2CRF(policy="e2crf", K=2, R=8, tau_0=50.0, error_feedback=0.1, random_probe_ratio=0.02),
], ids=["interval", "published"])  # fmt: skip
def test_trajectories_are_those_of_onnx_runtime(bundles: dict[str, Path], cache: E2CRF) -> None:
    """The same decisions, the same counts, and series to what 24 steps make of rounding."""
    manifest = read_manifest(bundles["the demo's heads"])
    outs = []
    for uses in (True, False):
        with Model(
            manifest, OrtBackend(bundles["the demo's heads"], manifest.graphs, threads=1, compiled=uses)
        ) as model:
            outs.append(model.sample(3, steps=24, batch_size=1, cache=cache))
    assert np.abs(outs[0].z - outs[1].z).max() < 1e-4 * np.abs(outs[1].z).max()
    assert outs[0].stats.passes == outs[1].stats.passes < 24
    assert not np.array_equal(outs[0].z, outs[1].z), "both were computed by the same code"


@compiled
def test_a_graph_that_computes_something_else_is_left_to_onnx_runtime(bundles: dict[str, Path], tmp_path: Path) -> None:
    """The weights have the right names and shapes, and one ReLU is another function."""
    shutil.copytree(bundles["tiny"], folder := tmp_path / "bundle")
    manifest = read_manifest(folder)
    model = onnx.load(folder / manifest.graphs["step"].file)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Abs"
    onnx.save(model, folder / manifest.graphs["step"].file)
    with OrtBackend(folder, manifest.graphs, threads=1) as backend:
        feeds = feeds_of(bundles["tiny"], 5)
        expected = backend.run("step", feeds)
        found = outputs_of(feeds, expected)
        with pytest.warns(BackendWarning, match=r"compiled step of few tokens is .* off onnx/step.onnx.*ONNX Runtime"):
            backend.bind("step", feeds, found)()
    assert np.array_equal(found["score"], expected["score"])


@compiled
@pytest.mark.parametrize("fault", ["lacks one", "another shape", "no protocol buffer", "half precision"])
def test_a_graph_of_another_kind_is_not_opened(bundles: dict[str, Path], tmp_path: Path, fault: str) -> None:
    manifest = read_manifest(bundles["tiny"])
    signature, path = manifest.graphs["step"], tmp_path / "step.onnx"
    model = onnx.load(bundles["tiny"] / signature.file)
    weights = {weight.name: weight for weight in model.graph.initializer}
    if fault == "lacks one":
        model.graph.initializer.remove(weights["layer_01/norm2_bias"])
    elif fault == "another shape":
        weights["layer_01/linear2_weight"].dims.reverse()
    onnx.save(model, path)
    assert (open_few_tokens(path, signature) is None) is (fault in ("lacks one", "another shape"))
    if fault == "no protocol buffer":
        path.write_bytes(b"\x3b" + path.read_bytes())
        assert open_few_tokens(path, signature) is None
    elif fault == "half precision":
        half = make_bundle(tmp_path, num_tokens=9)[0]
        graph = read_manifest(half).graphs["step"]
        inputs = [type(one)(one.name, one.dtype.replace("float32", "float16"), one.shape) for one in graph.inputs]
        assert open_few_tokens(half / graph.file, type(graph)(graph.file, graph.digest, inputs, graph.outputs)) is None


def test_without_compiled_code_onnx_runtime_does_all(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_tokens, "_library", lambda: None)
    with OrtBackend(bundles["tiny"], read_manifest(bundles["tiny"]).graphs, threads=1) as backend:
        feeds = feeds_of(bundles["tiny"], 5)
        expected = backend.run("step", feeds)
        found = outputs_of(feeds, expected)
        backend.bind("step", feeds, found)()
    assert np.array_equal(found["score"], expected["score"])
    assert "install GCC or Clang" in examine(None)[1]


@compiled
def test_a_processor_without_such_vectors_leaves_all_to_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def few_tokens_has(self, width: int) -> int:
            return 0

    monkeypatch.setattr(few_tokens, "_library", Library)
    assert widths_here() == ()
    assert "by ONNX Runtime too, since this processor has none of AVX-512, AVX2, NEON" in examine(None)[1]


@compiled
def test_doctor_says_which_vectors_compute_them() -> None:
    facts, text = examine(None)
    assert facts["sample"]["few_tokens"].startswith("steps of few tokens by compiled code (")
    assert facts["sample"]["few_tokens"] in text


def test_weights_are_those_that_onnx_reads(bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        path = bundle / read_manifest(bundle).graphs["step"].file
        stored = {weight.name: weight for weight in onnx.load(path).graph.initializer}
        found = read_initializers(path)
        assert set(found) == {name for name, weight in stored.items() if weight.data_type == onnx.TensorProto.FLOAT}
        for name, values in found.items():
            assert np.array_equal(values, onnx.numpy_helper.to_array(stored[name])), name
            assert values.shape == tuple(stored[name].dims)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_model_have_no_weights_or_are_refused(content: bytes) -> None:
    class File:
        def read_bytes(self) -> bytes:
            return content

    with suppress(ValueError):
        assert isinstance(read_initializers(File()), dict)  # type: ignore[arg-type]
