"""Promises of the configuration: upstream's names work, and every wrong word or value is a sentence that names it."""

from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runtime.sde import VE, VP
from train.config import compose_config, options_from_config, resumed_config
from train.errors import ConfigError
from train.losses import Weighting
from train.networks import NetworkOptions
from train.run import main


def test_defaults_are_the_published_model_in_the_frequency_domain() -> None:
    options = options_from_config(compose_config([]))
    assert options.run.fourier_transform
    assert options.run.standardize
    assert options.score_model.network(187, 1) == NetworkOptions(187, 1)  # the published shape
    assert options.noise_scheduler.process() == VP(0.1, 20.0)
    assert (options.trainer.max_epochs, options.trainer.gradient_clip_val) == (200, 1.0)
    assert (options.score_model.lr_max, options.score_model.weighting) == (1e-3, Weighting.INVERSE_TRACE)
    assert (options.score_model.energy_weighting, options.trainer.check_val_every_n_epoch) == (0.0, 1)


def test_names_of_fourier_diffusion_work() -> None:
    overrides = [
        "random_seed=7",
        "fourier_transform=false",
        "standardize=false",
        "score_model=default",
        "score_model.d_model=24",
        "score_model.n_head=2",
        "score_model.num_layers=3",
        "score_model.lr_max=5e-4",
        "score_model.likelihood_weighting=true",
        "score_model.energy_weighting=0.5",
        "score_model/noise_scheduler=vesde",
        "score_model.noise_scheduler.sigma_max=2",
        "datamodule=synthetic",
        "datamodule.batch_size=16",
        "datamodule.max_len=30",
        "trainer.max_epochs=5",
        "trainer.gradient_clip_val=0.5",
        "trainer.precision=bf16-mixed",
        "trainer.check_val_every_n_epoch=5",
    ]
    options = options_from_config(compose_config(overrides))
    network = options.score_model.network(30, 1)
    assert (network.d_model, network.num_heads, network.num_layers, network.d_ff) == (24, 2, 3, 2048)
    assert (options.score_model.lr_max, options.score_model.weighting) == (5e-4, Weighting.MAHALANOBIS)
    assert options.noise_scheduler.process() == VE(0.01, 2.0)
    assert asdict(options.dataset) == {
        "kind": "synthetic",
        "batch_size": 16,
        "max_len": 30,
        "num_samples": 1000,
        "random_seed": 7,  # the run's own, unless it is given
    }
    assert (options.run.random_seed, options.run.fourier_transform, options.run.standardize) == (7, False, False)
    assert (options.trainer.max_epochs, options.trainer.gradient_clip_val) == (5, 0.5)
    assert (options.trainer.precision, options.trainer.check_val_every_n_epoch) == ("bf16-mixed", 5)
    assert options.score_model.energy_weighting == 0.5


def test_ucr_sets_are_chosen_by_name_and_averaging_can_be_turned_off() -> None:
    options = options_from_config(compose_config(["datamodule=ucr", "datamodule.name=BasicMotions", "ema=null"]))
    assert options.dataset.label == "ucr/BasicMotions"
    assert options.run.ema is None


WRONG = {
    "foo=1": "^error: Could not override 'foo'; `e2crf train --help` lists every key\n$",
    "+foo=1": "foo: Key 'foo' not in",
    "+trainer.foo=1": r"trainer\.foo: Key 'foo' not in",
    "datamodule=nothing": "in 'datamodule': csv droughts ecg mimiciii nasa nasdaq npz parquet .* usdroughts; `e2crf",
    "score_model/noise_scheduler=nothing": "vesde vpsde; `e2crf",
    "trainer=null": "Config group override must be a string",
    "~datamodule": "datamodule must be a group of keys, found None",
    "~score_model.noise_scheduler": "noise_scheduler must be a group of keys, found None",
    "~datamodule.kind": r"datamodule\.kind must be one of",
    "score_model.kind=gru": "kind must be one of transformer, lstm, mlp, found 'gru'",
    "datamodule.batch_size=many": r"datamodule\.batch_size: Value 'many'",
    "datamodule.batch_size=0": "batch_size must be at least 1, found 0",
    "datamodule.batch_size=1,2": "Ambiguous value for argument 'datamodule.batch_size=1,2'; `e2crf",
    "trainer.max_epochs=0": "max_epochs must be at least 1, found 0",
    "trainer.max_epochs=null": r"trainer\.max_epochs: Incompatible value 'None'",
    "trainer.gradient_clip_val=-1": "gradient_clip_val must be positive",
    "trainer.check_val_every_n_epoch=201": r"must lie in 1 .. max_epochs \(200\), found 201",
    "trainer.check_val_every_n_epoch=0": "found 0; else no checkpoint would be the best",
    "score_model.energy_weighting=-0.5": r"energy_weighting must lie in \[0, 2\], found -0.5",
    "score_model.energy_weighting=nan": r"energy_weighting must lie in \[0, 2\], found nan",
    "trainer.precision=8": "precision must be one of 32-true, bf16-mixed, found '8'",
    "score_model.lr_max=-1": "lr_max must be a positive number, found -1",
    "score_model.n_head=5": "d_model must be a multiple of num_heads, found 72 and 5",
    "score_model.noise_scheduler.beta_min=-1": "a VP process needs 0 < beta_0 <= beta_1",
    "ema=1": "ema must lie between 0 and 1, or be null, found 1",
    "random_seed=-1": "random_seed must lie in",
    "run_id=a/b": "run_id names a folder",
    "resume=true": "must know which run",
    "--multirun": "an override must be key=value by Hydra's grammar, found '--multirun'",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_override_is_a_message_without_traceback(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([override]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    with pytest.raises(AssertionError, match=WRONG[override]):  # pytest's own matcher of regular expressions
        raise AssertionError(output.err)
    assert not list(tmp_path.iterdir())  # nothing is left behind, Hydra's folders included


def test_help_shows_an_example_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "python -m train datamodule=" in text
    assert all(f"{key}:" in text for key in ("fourier_transform", "beta_max", "max_epochs", "batch_size", "ema"))


def test_help_shows_the_config_of_the_overrides_beside_it_its_comments_and_every_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["datamodule=csv", "--help", "score_model=mlp", "score_model.d_mlp=77"]) == 0
    text = capsys.readouterr().out
    assert "  time_column: null # long: the column that orders the steps of a series; null: as they come\n" in text
    assert "  d_mlp: 77\n" in text
    assert "data_dir" not in text  # of ecg
    assert "n_head" not in text  # of the transformer
    assert "  datamodule=csv  one of csv, droughts, ecg, mimiciii, nasa, nasdaq, npz, parquet, synthetic, ucr" in text
    assert "  score_model=mlp  one of default, lstm, mlp\n" in text
    assert "  score_model/noise_scheduler=vpsde  one of vesde, vpsde\n" in text
    assert main(["--help", "datamodule=nothing"]) == 2
    assert "Could not find 'datamodule/nothing'" in capsys.readouterr().err


def test_a_resumed_config_is_the_stored_one_with_the_trainer_given() -> None:
    stored = compose_config(["datamodule=synthetic", "datamodule.max_len=30", "trainer.max_epochs=5"])
    same = ["datamodule=synthetic", "datamodule.max_len=30", "run_id=x", "resume=true"]
    resumed = resumed_config([*same, "trainer.max_epochs=9"], stored)
    assert resumed.trainer.max_epochs == 9
    del resumed.trainer, stored.trainer
    assert OmegaConf.to_container(resumed) == OmegaConf.to_container(stored)


@pytest.mark.parametrize("override", ["datamodule=ucr", "score_model.d_model=24", "random_seed=1", "ema=null"])
def test_a_resumed_run_cannot_change_what_it_is(override: str) -> None:
    stored = compose_config(["datamodule=synthetic"])
    with pytest.raises(ConfigError, match=f"{override.partition('=')[0]} of a resumed run must stay"):
        resumed_config([override], stored)
