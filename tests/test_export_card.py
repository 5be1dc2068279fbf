"""The model card: what it says is what the run and the manifest say, the Hub can read it, and edits survive."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from export.bundle import ExportOptions, export_bundle
from export.card import CARD_FILE, card_of, read_card, write_card
from export.checkpoint import read_checkpoint
from export.manifest import MANIFEST_FILE, Manifest, read_manifest
from export.runs import Run, read_run
from runtime.errors import OptionError
from runtime.sampler import load
from tests.tiny import write_checkpoint
from tests.verbs import run

METRICS = """epoch,lr,step,train/loss,val/loss
0,,31,,0.5
0,0.001,31,0.75,
1,,63,,0.25
1,0.002,63,0.125,
2,,95,,nan
2,0.0,95,0.0625,
"""
CONFIG = """random_seed: 42
ema: 0.995
datamodule: {kind: ucr, name: GunPoint, batch_size: 16}
score_model: {kind: transformer, lr_max: 0.001, dropout: 0.0, likelihood_weighting: false}
trainer: {max_epochs: 3, precision: bf16-mixed}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that left metrics and a config, and its bundle; never written to."""
    folder = tmp_path_factory.mktemp("exported")
    trained = folder / "lightning_logs/tiny"
    checkpoint = write_checkpoint(trained / "checkpoints/last.ckpt")
    (trained / "metrics.csv").write_text(METRICS)
    (trained / "train_config.yaml").write_text(CONFIG)
    export_bundle(read_checkpoint(checkpoint), ExportOptions(folder / "bundles/tiny"))
    return folder


@pytest.fixture
def workplace(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def manifest(exported: Path) -> Manifest:
    return read_manifest(exported / "bundles/tiny")


def test_the_facts_of_a_run_are_those_of_its_files(workplace: Path) -> None:
    found = read_run(Path("lightning_logs/tiny"))
    assert replace(found, config={}, written=None) == Run(
        "tiny", "ucr/GunPoint", "transformer", epochs=3, steps=96, best_val_loss=0.25, best_epoch=1, train_loss=0.0625
    )
    assert found.config["trainer"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "metrics.csv").write_text("epoch,val/loss\n0,half a num"),
        lambda folder: (folder / "metrics.csv").write_bytes(b"\xff\x00,\n\xfe"),
        lambda folder: (folder / "train_config.yaml").write_text("a: [unclosed"),
        lambda folder: (folder / "train_config.yaml").write_text("- a list"),
        lambda folder: (folder / "train_config.yaml").write_text("datamodule: ecg\nscore_model:"),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_a_run_that_is_damaged_says_less_and_breaks_nothing(workplace: Path, spoil: object) -> None:
    folder = Path("lightning_logs/tiny")
    spoil(folder)  # type: ignore[operator]
    found = read_run(folder)
    assert found.best_val_loss in (None, 0.25)
    assert found.data in (None, "ucr/GunPoint")
    assert None in (found.best_val_loss, found.data)


def test_a_run_of_the_published_code_is_told_too(tmp_path: Path) -> None:
    config = "datamodule:\n  _target_: fdiff.dataloaders.datamodules.ECGDatamodule\nscore_model:\n  _target_: a.LSTM\n"
    (tmp_path / "train_config.yaml").write_text(config)
    assert (read_run(tmp_path).data, read_run(tmp_path).backbone) == ("ECGDatamodule", "LSTM")


def test_the_hub_can_read_the_card_and_it_says_what_is_known(workplace: Path, manifest: Manifest) -> None:
    """Oracle: the Hub's own reader, and the run and manifest it was made from."""
    text = Path("bundles/tiny", CARD_FILE).read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.library_name) == ("unknown", "e2crf")
    assert {"time-series", "onnx"} <= set(card.data.tags or [])
    assert "e2crf export <model> --license" in text  # how to set it
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ") and line != "| | |"
    )
    assert rows["data set"] == "random"
    assert rows["series"] == "15 time steps, channels: 2"
    assert rows["epochs"] == "3"
    assert rows["steps"] == "96"
    assert rows["best validation loss"] == "2.500e-01 (epoch 1)"
    assert rows["training loss at the end"] == "6.250e-02"
    assert (rows["batch size"], rows["seed"], rows["arithmetic"]) == ("16", "42", "bf16-mixed")
    assert (rows["num layers"], rows["d model"]) == ("2", "12")
    assert (rows["process"], rows["domain"]) == ("vp", "frequency")
    assert {name: rows[name] for name in manifest.parity} == {n: f"{e:.1e}" for n, e in manifest.parity.items()}
    assert manifest.source.digest[:12] in rows["checkpoint"]


def test_the_card_is_no_part_of_what_digests_hold(workplace: Path, manifest: Manifest) -> None:
    Path("bundles/tiny", CARD_FILE).write_text("# Mine\n")
    assert read_manifest(Path("bundles/tiny")) == manifest
    Path("bundles/tiny", CARD_FILE).unlink()
    with load("bundles/tiny") as model:
        assert model.sample(2, steps=5, cache=None).series.shape == (2, 15, 2)


def test_without_a_run_the_card_says_what_the_manifest_knows(manifest: Manifest) -> None:
    text = card_of(manifest, Run("gone"), "mit", "ecg")
    assert "| run | tiny |" in text
    assert "None" not in text
    assert "epochs" not in text
    assert ModelCard(text).data.license == "mit"
    for backbone in ("lstm", "mlp"):  # networks without heads say nothing of heads
        other = replace(manifest, network=replace(manifest.network, backbone=backbone, num_heads=0, d_ff=0))
        assert "heads" not in card_of(other, Run("gone"), "mit", "ecg")


def test_a_card_that_was_edited_is_kept_but_for_the_licence(workplace: Path, manifest: Manifest) -> None:
    bundle = Path("bundles/tiny")
    edited = (bundle / CARD_FILE).read_text().replace("# tiny", "# Heartbeats of one hospital\n\nlicense: see below")
    (bundle / CARD_FILE).write_text(edited)
    assert run("export", "tiny") == 0
    assert (bundle / CARD_FILE).read_text() == edited
    assert run("export", "tiny", "--license", "cc-by-4.0") == 0
    text, license = read_card(bundle) or ("", "")
    assert license == "cc-by-4.0"
    assert text.splitlines()[0:2] == ["---", "license: cc-by-4.0"]
    assert text.splitlines()[2:] == edited.splitlines()[2:]
    write_card(bundle, manifest, Run("tiny"), "unknown", title="tiny")
    assert (bundle / CARD_FILE).read_text() == edited


@pytest.mark.parametrize("text", ["# Mine\n", "---\nlanguage: en\n---\n# Mine\n", "---\nlicense:\n---\n# Mine\n"])
def test_a_card_of_somebody_elses_making_gets_a_licence(tmp_path: Path, manifest: Manifest, text: str) -> None:
    (tmp_path / CARD_FILE).write_text(text)
    assert (read_card(tmp_path) or ("", ""))[1] == "unknown"
    write_card(tmp_path, manifest, Run("x"), "mit", title="x")
    found = (read_card(tmp_path) or ("", ""))[0]
    assert ModelCard(found).data.license == "mit"
    assert "# Mine" in found
    assert ("language: en" in text) == ("language: en" in found)


@pytest.mark.parametrize("license", ["Apache 2.0", "", "mit\ntags: x", "-mit"])
def test_a_licence_is_named_as_on_the_hub(license: str, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="a licence is named as on the Hugging Face Hub"):
        ExportOptions(Path("x"), license=license)
    assert run("export", "tiny", "--license", "Apache 2.0") == 2
    assert "write apache-2.0, mit" in " ".join(capfd.readouterr().err.split())


def test_export_names_the_licence_in_a_new_card(workplace: Path) -> None:
    assert run("export", "tiny", "--license", "apache-2.0", "--bundle", "fresh") == 0
    assert ModelCard(Path("fresh", CARD_FILE).read_text()).data.license == "apache-2.0"
    assert "set it before you share" not in Path("fresh", CARD_FILE).read_text()


def test_inspect_prints_the_card_and_what_it_does_not_hold(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bundles/tiny", "tiny", "latest"):
        assert run("inspect", name) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("bundle      bundles/tiny (complete)")
        assert "best validation loss | 2.500e-01" in printed
        assert "license: unknown" in printed
        assert "made from" not in printed  # the card says it
        assert printed.index("plan  ") < printed.index("engines") < printed.index("license:")
    assert run("inspect", "tiny", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["license"], found["network"]["num_layers"], found["plan"]) == ("unknown", 2, None)
    assert found["card"] == Path("bundles/tiny", CARD_FILE).read_text()
    Path("bundles/tiny", CARD_FILE).unlink()
    assert run("inspect", "tiny") == 0
    assert "made from   last.ckpt, run tiny, data random" in capsys.readouterr().out
    assert run("inspect", "tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out)["card"] is None


def test_inspect_lists_runs_and_bundles(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(Path("lightning_logs/bare/checkpoints/last.ckpt"))
    Path("bundles/broken").mkdir()
    Path("bundles/broken", MANIFEST_FILE).write_text("{")
    assert run("inspect") == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("  tiny") and "GunPoint" in line]
    assert line.split()[:5] == ["tiny", "ucr/GunPoint", "transformer", "3", "2.500e-01"]
    (line,) = [line for line in printed.splitlines() if line.startswith("  bare")]
    assert line.split()[:5] == ["bare", "-", "-", "-", "-"]
    assert "broken  (damaged)" in printed
    assert run("inspect", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["bundles"]) == (["bare", "tiny"], ["broken", "tiny"])
    assert found["run_facts"][1]["best_val_loss"] == 0.25
    assert found["bundle_facts"]["tiny"]["run_id"] == "tiny"
    assert run("inspect", "lightning_logs") == 0
    assert "ucr/GunPoint" in capsys.readouterr().out


def test_inspect_describes_a_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "lightning_logs/tiny") == 0
    assert "export it with `e2crf export tiny`" in capsys.readouterr().out
    shutil.rmtree("bundles")
    for name in ("tiny", "latest"):
        assert run("inspect", name, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["run_id"], found["epochs"], found["checkpoints"]) == ("tiny", 3, ["last.ckpt"])
    shutil.rmtree("lightning_logs")
    assert run("inspect") == 0
    assert "none; train one with" in capsys.readouterr().out
    assert run("inspect", "latest") == 2


def test_latest_and_bare_names_stand_for_bundles_in_every_command(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", "latest") == 0
    assert run("sample", "latest", "-n", 2, "--steps", 5, "--uncached") == 0
    assert run("calibrate", "latest", "--steps", 10, "--minutes", 0.0001, "--budget", 9) == 0
    assert Path("bundles/tiny/plan.json").is_file()
    assert run("sample", "tiny", "-n", 2, "--overwrite") == 0
    shutil.rmtree("bundles")
    assert run("sample", "latest") == 2
    assert "latest is the newest bundle under bundles, found none" in " ".join(capfd.readouterr().err.split())
