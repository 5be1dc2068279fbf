"""A bundle is the network, is finished only when verified, and says so when it is damaged."""

import copy
import errno
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import export.bundle
from export.bundle import ExportOptions, export_bundle
from export.card import CARD_FILE, read_card
from export.checkpoint import CheckpointError, read_checkpoint
from export.graphs import graphs_of
from export.manifest import MANIFEST_FILE, NETWORKS, ManifestError, read_manifest
from export.split import parts_of, run_part
from export.verify import Tolerances, VerifyError, relative_error, verify_bundle
from runtime.cache.plan import PLAN_FILE
from runtime.errors import OptionError
from runtime.sde import process_from_facts
from tests.tiny import checkpoint_content, make_bundle, write_checkpoint
from train.networks import Backbone, NetworkOptions, network_from_options


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is never written to."""
    return make_bundle(tmp_path_factory.mktemp("exported"))[0]


def test_the_bundle_has_the_graphs_of_the_contract(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path, num_tokens=15, num_channels=2)
    manifest = read_manifest(folder)
    assert list(manifest.graphs) == ["embed", "layer_00", "layer_01", "head", "step"]
    ports = {
        name: ([t.name for t in graph.inputs], [t.name for t in graph.outputs])
        for name, graph in manifest.graphs.items()
    }
    assert ports["embed"] == (["z", "t", "token"], ["hidden"])
    assert ports["layer_00"] == (
        ["hidden", "token", "past_key", "past_value"],
        ["hidden_out", "present_key", "present_value"],
    )
    assert ports["head"] == (["hidden"], ["score"])
    caches = [f"{kind}_{index:02d}" for index in range(2) for kind in ("key", "value")]
    assert ports["step"][0] == ["z", "t", "token", *(f"past_{name}" for name in caches)]
    assert ports["step"][1] == ["score", "hidden", *(f"present_{name}" for name in caches)]
    shapes = {t.name: t.shape for t in manifest.graphs["layer_00"].inputs}
    assert shapes == {
        "hidden": ["B", "S", 12],
        "token": ["B", "S"],
        "past_key": ["B", 3, 15, 4],
        "past_value": ["B", 3, 15, 4],
    }
    assert set(manifest.parity) == {*manifest.graphs, "chain", "trajectory"}
    assert max(manifest.parity.values()) < 1e-5


def test_the_manifest_says_what_the_tokens_mean(tmp_path: Path) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    manifest = read_manifest(folder)
    assert manifest.tokens.frequency[8:] == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(manifest.tokens.spectral_weight, (checkpoint.std.astype(float) ** 2).sum(axis=1))
    np.testing.assert_allclose(manifest.standardisation.std, checkpoint.std)


@pytest.mark.parametrize("d_model", [9, 12])  # odd: the last cosine of the time features is dropped
def test_the_parts_in_torch_are_the_network(tmp_path: Path, d_model: int) -> None:
    """Oracle: the untouched module; 1e-6 of the scale, since only the attention kernel differs."""
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.ckpt", d_model=d_model))
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(3, 15, 2, generator=generator), torch.tensor([0.9, 0.5, 0.01])
    token = torch.arange(15).expand(3, 15)
    cache = torch.zeros(3, 3, 15, d_model // 3)
    parts = parts_of(checkpoint.network)
    (hidden,) = run_part(parts["embed"], z, t, token)
    for index in range(2):
        hidden, _, _ = run_part(parts[f"layer_{index:02d}"], hidden, token, cache, cache)
    (score,) = run_part(parts["head"], hidden)
    expected = checkpoint.network(z, t)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_graphs_with_an_odd_width_export_too(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path, d_model=9, num_heads=3)
    assert read_manifest(folder).parity["step"] < 1e-5


def test_row_renormalisation_is_baked_in(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.ckpt")
    raw = torch.load(path, weights_only=True)["state_dict"]["pos_encoder.embedding.weight"]
    baked = read_checkpoint(path).network.pos_encoder.embedding.weight
    assert raw.norm(dim=1).max() > 12**0.5  # some rows are too long in the file
    assert baked.norm(dim=1).max() <= 12**0.5 * (1 + 1e-5)


def test_verify_names_the_part_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight off by a percent in one layer must not pass, and leaves no bundle."""

    def spoiled(network: Any) -> dict[str, onnx.ModelProto]:
        graphs = graphs_of(network)
        weight = next(w for w in graphs["layer_01"].graph.initializer if w.name == "linear2_weight")
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return graphs

    monkeypatch.setattr(export.bundle, "graphs_of", spoiled)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.ckpt"))
    with pytest.raises(VerifyError, match="layer_01 differs from PyTorch"):
        export_bundle(checkpoint, ExportOptions(tmp_path / "out" / "bundle"))
    assert list((tmp_path / "out").iterdir()) == []


def test_verify_sees_a_step_graph_that_differs_from_the_parts(tmp_path: Path) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    other, _ = make_bundle(tmp_path / "other", seed=1)
    (folder / "onnx/step.onnx").write_bytes((other / "onnx/step.onnx").read_bytes())
    manifest = read_manifest(folder, verify_digests=False)
    with pytest.raises(VerifyError, match="step differs from PyTorch"):
        verify_bundle(folder, manifest, checkpoint)


def test_relative_error_is_infinite_where_values_are_not_finite() -> None:
    assert relative_error(np.array([1.0, np.nan]), np.array([1.0, 1.0])) == np.inf


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    folder, _ = make_bundle(tmp_path)
    before = (folder / MANIFEST_FILE).read_bytes()
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    written: list[Path] = []

    def write_bytes(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise failure
        with path.open("wb") as file:
            return file.write(data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(type(failure)):
        export_bundle(other, ExportOptions(folder, overwrite=True))
    monkeypatch.undo()
    assert (folder / MANIFEST_FILE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other.ckpt", "tiny.ckpt"]
    read_manifest(folder)


def test_the_same_checkpoint_again_keeps_the_bundle_and_another_needs_permission(tmp_path: Path) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    stamp = (folder / MANIFEST_FILE).stat().st_mtime_ns
    export_bundle(checkpoint, ExportOptions(folder))
    assert (folder / MANIFEST_FILE).stat().st_mtime_ns == stamp
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    with pytest.raises(CheckpointError, match="--overwrite"):
        export_bundle(other, ExportOptions(folder))
    assert export_bundle(other, ExportOptions(folder, overwrite=True)).source.checkpoint == "other.ckpt"
    assert read_manifest(folder).source.digest == other.digest


def test_graphs_of_another_form_need_permission_though_the_version_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever exports again after the code has changed gets the graphs of now, or is told that those are of before."""
    folder, checkpoint = make_bundle(tmp_path)
    before = read_manifest(folder).graphs

    def of_another_form(network: Any) -> dict[str, onnx.ModelProto]:
        graphs = graphs_of(network)
        graphs["layer_01"].graph.node[0].name = "renamed"
        return graphs

    monkeypatch.setattr("export.bundle.graphs_of", of_another_form)
    with pytest.raises(CheckpointError, match=r"with another form of the graphs; choose another folder, .*--overwrite"):
        export_bundle(checkpoint, ExportOptions(folder))
    after = export_bundle(checkpoint, ExportOptions(folder, overwrite=True)).graphs
    assert {name for name in before if before[name].digest != after[name].digest} == {"layer_01"}


LOCAL = (PLAN_FILE, "engines/key/step.engine", "reports/bench.json", "notes.txt")  # beside a bundle


def add_local(folder: Path) -> None:
    for name in LOCAL:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of here")
    head, _, *lines = (folder / CARD_FILE).read_text().splitlines()
    (folder / CARD_FILE).write_text("\n".join([head, "license: mit", *lines, "Edited.", ""]))


def local_of(folder: Path) -> list[str]:
    """What of it is there."""
    return [name for name in LOCAL if (folder / name).is_file() and (folder / name).read_text() == f"{name} of here"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("failure", [OSError(errno.EBUSY, "Device or resource busy"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_replaced_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, failure: BaseException
) -> None:
    """The old one makes way, the new one takes the name: either may fail, or Ctrl-C may come."""
    folder, _ = make_bundle(tmp_path)
    add_local(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    replace_file, moves = os.replace, []

    def replacing(source: Path, target: Path) -> None:
        moves.append((source, target))
        if folder in (source, target) and sum(folder in move for move in moves) == failing:
            raise failure
        replace_file(source, target)

    monkeypatch.setattr("os.replace", replacing)
    with pytest.raises(type(failure)):
        export_bundle(other, ExportOptions(folder, overwrite=True))
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert names_in(tmp_path) == ["bundle", "other.ckpt", "tiny.ckpt"]


def test_ctrl_c_after_the_new_folder_has_its_name_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_bundle(tmp_path)
    add_local(folder)
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    replace_file = os.replace

    def replacing(source: Path, target: Path) -> None:
        replace_file(source, target)
        if target == folder:
            raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", replacing)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(other, ExportOptions(folder, overwrite=True))
    assert read_manifest(folder).source.digest == other.digest
    assert local_of(folder) == ["engines/key/step.engine", "notes.txt"]
    assert names_in(tmp_path) == ["bundle", "other.ckpt", "tiny.ckpt"]


def test_another_exporter_keeps_what_belongs_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    add_local(folder)
    card = (folder / CARD_FILE).read_text()
    monkeypatch.setattr(export.bundle, "producer", lambda: "e2crf 99")
    with pytest.raises(CheckpointError, match=r"with another exporter; .*--overwrite"):
        export_bundle(checkpoint, ExportOptions(folder))
    assert export_bundle(checkpoint, ExportOptions(folder, overwrite=True)).source.producer == "e2crf 99"
    assert read_manifest(folder).source.producer == "e2crf 99"
    assert local_of(folder) == list(LOCAL)
    assert (folder / CARD_FILE).read_text() == card
    monkeypatch.setattr(export.bundle, "producer", lambda: "e2crf 100")
    export_bundle(checkpoint, ExportOptions(folder, overwrite=True, license="cc-by-4.0"))
    assert (folder / CARD_FILE).read_text() == card.replace("license: mit", "license: cc-by-4.0")


def test_another_precision_keeps_all_but_the_card_and_of_that_the_licence(tmp_path: Path) -> None:
    folder, checkpoint = make_bundle(tmp_path)
    add_local(folder)
    export_bundle(checkpoint, ExportOptions(folder, overwrite=True, precision="bf16"))
    assert local_of(folder) == list(LOCAL)
    text, license = read_card(folder) or ("", "")
    assert license == "mit"
    assert "| precision of the graphs | bf16 |" in text
    assert "Edited." not in text


def test_another_model_keeps_nothing_that_was_said_of_the_first_one(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    add_local(folder)
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    export_bundle(other, ExportOptions(folder, overwrite=True))
    assert local_of(folder) == ["engines/key/step.engine", "notes.txt"]
    text, license = read_card(folder) or ("", "")
    assert (license, "Edited." in text) == ("unknown", False)


def test_a_link_to_a_bundle_stays_one(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path / "elsewhere")
    add_local(folder)
    (tmp_path / "link").symlink_to(folder)
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    export_bundle(other, ExportOptions(tmp_path / "link", overwrite=True))
    assert (tmp_path / "link").readlink() == folder
    assert read_manifest(folder).source.digest == other.digest
    assert local_of(folder) == ["engines/key/step.engine", "notes.txt"]
    assert names_in(tmp_path) == ["elsewhere", "link", "other.ckpt"]
    assert names_in(folder.parent) == ["bundle", "tiny.ckpt"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m.ckpt"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a usable bundle"):
        export_bundle(checkpoint, ExportOptions(tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine" / "thesis.txt").is_file()


@pytest.mark.parametrize(("place", "below"), [(".", ""), ("..", "deep"), ("{folder}", "")])
def test_a_folder_that_one_is_in_cannot_make_way_and_that_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, below: str
) -> None:
    folder, _ = make_bundle(tmp_path)
    other = read_checkpoint(write_checkpoint(tmp_path / "other.ckpt", seed=5))
    before = read_manifest(folder)
    (folder / below).mkdir(exist_ok=True)
    monkeypatch.chdir(folder / below)
    told: list[str] = []
    with pytest.raises(ManifestError, match="which this is run from; name another one"):
        export_bundle(other, ExportOptions(Path(place.format(folder=folder)), overwrite=True), told.append)
    assert told == []
    assert read_manifest(folder) == before
    assert names_in(tmp_path) == ["bundle", "other.ckpt", "tiny.ckpt"]


def _edit(folder: Path, change: Any) -> None:
    path = folder / MANIFEST_FILE
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "onnx/layer_01.onnx").unlink(), "graph layer_01 of .* is missing"),
        (lambda f: _flip_byte(f / "onnx/head.onnx"), "head.onnx of .* was changed after export"),
        (lambda f: (f / MANIFEST_FILE).unlink(), "manifest.json is missing"),
        (lambda f: (f / MANIFEST_FILE).write_text("{"), "is not valid JSON"),
        (lambda f: _edit(f, lambda m: m.update(schema=2)), "has schema 2, this version reads schema 1"),
        (lambda f: _edit(f, lambda m: m.update(colour="red")), "/bundle/manifest.json has the unknown key 'colour'"),
        (lambda f: _edit(f, lambda m: m["network"].update(depth=3)), "network has the unknown key 'depth'"),
        (lambda f: _edit(f, lambda m: m["network"].pop("d_ff")), "/bundle/manifest.json.network lacks the key 'd_ff'"),
        (lambda f: _edit(f, lambda m: m["network"].update(d_ff="many")), "d_ff must be int, found 'many'"),
        (lambda f: _edit(f, lambda m: m["tokens"]["frequency"].pop()), "has 14 entries, the network 15 tokens"),
        (lambda f: _edit(f, lambda m: m["graphs"]["head"].update(file="../../etc/x")), "points outside the bundle"),
        (
            lambda f: _edit(f, lambda m: m["standardisation"]["mean"].__setitem__(0, [0.5])),
            r"rows of \[1, 2\]",
        ),
        (lambda f: _edit(f, lambda m: m["standardisation"]["mean"][3].__setitem__(0, math.nan)), "mean must be finite"),
        (
            lambda f: _edit(f, lambda m: m["standardisation"]["std"][3].__setitem__(0, -1.0)),
            "std must be positive",
        ),
        (lambda f: _edit(f, lambda m: m["tokens"]["frequency"].__setitem__(2, -5)), "frequency must lie in 0 .. N - 1"),
        (lambda f: _edit(f, lambda m: m["tokens"]["noise_shape"].__setitem__(2, 0.0)), "noise_shape must be positive"),
        (lambda f: _edit(f, lambda m: m["tokens"]["spectral_weight"].__setitem__(2, -1.0)), "must not be negative"),
        (
            lambda f: _edit(f, lambda m: m["diffusion"].update(domain="foo")),
            "must be frequency or time, found 'foo",
        ),
        (lambda f: _edit(f, lambda m: m["diffusion"].update(eps=2.0)), "eps must lie between 0 and 1, found 2.0"),
        (lambda f: (f / MANIFEST_FILE).write_text("[" * 100_000), "lists within lists, too many of them"),
        (lambda f: _edit(f, lambda m: m["diffusion"].update(eps=10**400)), "eps must be a number that float64 holds"),
        (
            lambda f: _edit(f, lambda m: m["standardisation"]["mean"][3].__setitem__(0, 10**400)),
            r"mean\[3\]\[0\] must be a number that float64 holds",
        ),
        (
            lambda f: _edit(
                f, lambda m: m["tokens"].update(frequency=[2 if k == 1 else k for k in m["tokens"]["frequency"]])
            ),
            "frequency must leave no number out below the largest",
        ),
        (lambda f: _edit(f, lambda m: m["parity"].update(step=math.nan)), "parity must be finite"),
        (lambda f: _edit(f, lambda m: m.update(precision="fp8")), "precision must be fp32, fp16 or bf16, found 'fp8'"),
        (lambda f: _edit(f, lambda m: m["network"].update(num_heads=4)), r"not those of a network of .* \[4, 15, 3\]"),
        (lambda f: _edit(f, lambda m: m["network"].update(num_layers=3)), "not those of a network of 3 layers"),
        (lambda f: _edit(f, lambda m: m["network"].update(backbone="foo")), "backbone must be one of .*, found 'foo'"),
        (lambda f: _edit(f, lambda m: m["diffusion"].update(process="foo")), "process must be vp or ve, found 'foo'"),
        *[
            (lambda f, name=name: _edit(f, lambda m: m["graphs"].pop(name)), "has the graphs embed, layer_00 and so on")
            for name in ("embed", "layer_00", "layer_01", "head", "step")
        ],
        (lambda f: _edit(f, lambda m: m.update(graphs={})), "has the graphs embed, .* found none"),
        (
            lambda f: _edit(f, lambda m: m["graphs"].update(layer_02=m["graphs"]["layer_01"])),
            "network of 2 layers has the graphs .* layer_02",
        ),
    ],
)
def test_a_damaged_bundle_is_refused_in_a_sentence(tmp_path: Path, damage: Any, says: str) -> None:
    folder, _ = make_bundle(tmp_path)
    damage(folder)
    with pytest.raises(ManifestError, match=says):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("process", "parameters"),
    [
        ("vp", {"beta_0": 0.1, "beta_1": 20.0}),
        ("vp", {"beta_0": 1.0, "beta_1": 1.0}),
        ("vp", {"beta_0": -0.1, "beta_1": 20.0}),
        ("vp", {"beta_0": 0.0, "beta_1": 20.0}),
        ("vp", {"beta_0": 20.0, "beta_1": 0.1}),
        ("vp", {"beta_0": 0.1, "beta_1": math.inf}),
        ("vp", {"beta_0": math.nan, "beta_1": 20.0}),
        ("vp", {"beta_0": 0.1}),
        ("vp", {"beta_0": 0.1, "beta_1": 20.0, "beta_2": 1.0}),
        ("vp", {}),
        ("ve", {"sigma_min": 0.01, "sigma_max": 50.0}),
        ("ve", {"sigma_min": 1.0, "sigma_max": 1.0}),
        ("ve", {"sigma_min": -1.0, "sigma_max": 1.0}),
        ("ve", {"beta_0": 0.1, "beta_1": 20.0}),
    ],
)
def test_a_manifest_names_a_process_that_there_is(
    tmp_path: Path, bundle: Path, process: str, parameters: dict[str, float]
) -> None:
    """Oracle: what the process itself says to its parameters."""
    shutil.copy(bundle / MANIFEST_FILE, tmp_path)
    _edit(tmp_path, lambda m: m["diffusion"].update(process=process, parameters=parameters))
    try:
        process_from_facts(process, parameters)
    except OptionError:
        with pytest.raises(ManifestError, match="parameters must be beta_0 and beta_1 of vp or sigma_min"):
            read_manifest(tmp_path, verify_digests=False)
    else:
        assert read_manifest(tmp_path, verify_digests=False).diffusion.parameters == parameters


def test_a_manifest_knows_every_backbone_that_can_be_trained() -> None:
    assert set(Backbone) == set(NETWORKS)


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_manifest_survives_the_round_trip(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    manifest = read_manifest(folder)
    assert manifest.to_json() == (folder / MANIFEST_FILE).read_text()


def test_a_trajectory_beyond_its_tolerance_is_judged_by_what_float32_costs_pytorch(tmp_path: Path) -> None:
    """Rounding passes at a tolerance of nothing; a network that is off by a thousandth does not."""
    folder, checkpoint = make_bundle(tmp_path)
    manifest = read_manifest(folder)
    strict = Tolerances(part=1.0, chain=1.0, trajectory=0.0)
    assert verify_bundle(folder, manifest, checkpoint, strict)["trajectory"] > 0
    other = copy.deepcopy(checkpoint.network)
    with torch.no_grad():
        other.embedder.weight *= 1.001
    with pytest.raises(VerifyError, match="trajectory differs from PyTorch"):
        verify_bundle(folder, manifest, replace(checkpoint, network=other), strict)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_overflows_in_pytorch_itself_is_refused(tmp_path: Path, precision: str) -> None:
    """Its parts and its chain are finite and right; 20 steps of it are not."""
    options = NetworkOptions(15, 2, 12, 0, 2, 16, 0.0, "mlp")
    torch.manual_seed(0)
    state = network_from_options(options).state_dict()
    for name in ("embedder.weight", "unembedder.weight"):
        state[name] *= 60.0
    content = checkpoint_content() | {"state_dict": state}
    content["e2crf"] |= {"backbone": "mlp", "network": options.to_dict()}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "wild.ckpt", content))
    with pytest.raises(VerifyError, match=r"20 steps must stay finite, found PyTorch's own .*smaller lr_max"):
        export_bundle(checkpoint, ExportOptions(tmp_path / "out/bundle", precision=precision))
    assert names_in(tmp_path / "out") == []
