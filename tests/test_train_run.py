"""Promises of a whole run: it learns, keeps the checkpoint contract, resumes bit for bit, and stops in sentences."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich
import torch
from omegaconf import OmegaConf

from runtime.sde import EPS, VP
from train.data import tokens_from_series, validation_batches
from train.datasets import Synthetic
from train.errors import ConfigError, DataError, DivergedError, InterruptedRun, RunError
from train.folder import RunFolder
from train.losses import draw_times, score_matching_loss
from train.module import ScoreModule, cosine_with_warmup
from train.networks import NetworkOptions, TransformerScore
from train.run import main, train

N, D, FF = 10, 12, 24
TINY = [
    "datamodule=synthetic",
    f"datamodule.max_len={N}",
    "datamodule.num_samples=96",
    "datamodule.batch_size=32",
    f"score_model.d_model={D}",
    "score_model.num_layers=1",
    "score_model.n_head=2",
    f"score_model.d_ff={FF}",
    "score_model.dropout=0.0",
    "trainer.accelerator=cpu",
]
UPSTREAM = {  # every name of an upstream transformer with one layer, and its shape
    "pos_encoder.embedding.weight": (N, D),
    "time_encoder.W": (D // 2,),
    "time_encoder.dense.weight": (D, D),
    "time_encoder.dense.bias": (D,),
    "embedder.weight": (D, 1),
    "embedder.bias": (D,),
    "unembedder.weight": (1, D),
    "unembedder.bias": (1,),
    "backbone.layers.0.self_attn.in_proj_weight": (3 * D, D),
    "backbone.layers.0.self_attn.in_proj_bias": (3 * D,),
    "backbone.layers.0.self_attn.out_proj.weight": (D, D),
    "backbone.layers.0.self_attn.out_proj.bias": (D,),
    "backbone.layers.0.linear1.weight": (FF, D),
    "backbone.layers.0.linear1.bias": (FF,),
    "backbone.layers.0.linear2.weight": (D, FF),
    "backbone.layers.0.linear2.bias": (D,),
    "backbone.layers.0.norm1.weight": (D,),
    "backbone.layers.0.norm1.bias": (D,),
    "backbone.layers.0.norm2.weight": (D,),
    "backbone.layers.0.norm2.bias": (D,),
}


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on more threads, by a hundred times where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run of 20 epochs."""
    folder = tmp_path_factory.mktemp("run")
    lr = "score_model.lr_max=1e-2"
    return train([*TINY, lr, "trainer.max_epochs=20", f"log_dir={folder}", "run_id=first"])


def test_losses_fall(best: Path) -> None:
    # A network that says nothing has the loss 1 / N under the default weighting: E e^2 / (G^2 sum 1 / G^2).
    folder = best.parents[1]
    validation, training = column(folder, "val/loss"), column(folder, "train/loss")
    assert len(validation) == len(training) == 20
    assert validation[0] > 0.9 / N
    assert min(validation) < 0.75 / N
    assert np.mean(training[-3:]) < 0.8 * training[0]
    assert column(folder, "lr")[-1] < 1e-6  # the cosine has come down to 0


def test_checkpoints_keep_the_contract(best: Path) -> None:
    folder = best.parents[1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "metrics.csv",
        "reference.npz",
        "train_config.yaml",
    ]
    assert sorted(path.name for path in best.parent.iterdir()) == [best.name, "last.ckpt"]
    assert best.name.startswith("epoch=0")
    data = Synthetic(kind="synthetic", max_len=N, num_samples=96).read()
    for path in (best, best.with_name("last.ckpt")):
        facts = load(path)["e2crf"]
        mean, std = facts.pop("feature_mean"), facts.pop("feature_std")
        assert mean.shape == std.shape == (N, 1)
        assert mean.dtype == std.dtype == torch.float32
        assert facts == {
            "schema": 1,
            "backbone": "transformer",
            "network": NetworkOptions(N, 1, D, 2, 1, FF, 0.0).to_dict(),
            "process": {"kind": "vp", "parameters": {"beta_0": 0.1, "beta_1": 20.0}},
            "eps": EPS,
            "domain": "frequency",
            "data": "synthetic",
            "run_id": "first",
        }
    with np.load(folder / "reference.npz") as reference:
        assert np.array_equal(reference["train"], data.train)
        assert np.array_equal(reference["test"], data.test)
    config = OmegaConf.load(folder / "train_config.yaml")
    assert (config.run_id, config.datamodule.max_len, config.trainer.max_epochs) == ("first", N, 20)


def test_weights_have_the_names_of_fourier_diffusion_and_load_strictly(best: Path) -> None:
    state = load(best)["state_dict"]
    assert {name: tuple(value.shape) for name, value in state.items()} == UPSTREAM
    TransformerScore(NetworkOptions(N, 1, D, 2, 1, FF)).load_state_dict(state, strict=True)


def test_weights_are_the_averaged_ones_and_the_raw_ones_stand_beside(best: Path) -> None:
    last = load(best.with_name("last.ckpt"))
    averaged, raw = last["state_dict"], last["current_model_state"]
    assert averaged.keys() == raw.keys()
    assert not torch.equal(averaged["embedder.weight"], raw["embedder.weight"])
    assert torch.equal(averaged["time_encoder.W"], raw["time_encoder.W"])  # frozen: bitwise


@pytest.mark.parametrize("process", ["vpsde", "vesde"])
@pytest.mark.parametrize("fourier_transform", ["true", "false"])
def test_both_processes_train_in_both_domains(tmp_path: Path, process: str, fourier_transform: str) -> None:
    options = [f"score_model/noise_scheduler={process}", f"fourier_transform={fourier_transform}", "ema=null"]
    path = train([*TINY, *options, "trainer.max_epochs=1", f"log_dir={tmp_path}"])
    assert path.parents[1].name.startswith("synthetic-")
    checkpoint = load(path)
    assert checkpoint["e2crf"]["process"]["kind"] == process[:2]
    assert checkpoint["e2crf"]["domain"] == ("frequency" if fourier_transform == "true" else "time")
    assert "current_model_state" not in checkpoint  # ema=null: the raw weights are the weights


def test_a_run_of_the_same_name_is_refused_and_left_alone(best: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in best.parents[1].rglob("*")}
    with pytest.raises(RunError, match=r"first in use; .*run_id=first resume=true"):
        train([*TINY, f"log_dir={best.parents[2]}", "run_id=first"])
    assert {path: path.stat().st_mtime_ns for path in best.parents[1].rglob("*")} == before


def interrupt_in_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """Ctrl-C in the middle of an epoch."""
    step = ScoreModule.training_step

    def interrupted(module: ScoreModule, batch: list[torch.Tensor]) -> torch.Tensor:
        if module.current_epoch == epoch and module.global_step % 3 == 1:
            raise KeyboardInterrupt
        return step(module, batch)

    monkeypatch.setattr(ScoreModule, "training_step", interrupted)


def test_a_resumed_run_is_bitwise_the_run_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY, "score_model.dropout=0.1", "trainer.max_epochs=4", f"log_dir={tmp_path}"]
    straight = train([*options, "run_id=straight"])
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 2)
        with pytest.raises(InterruptedRun, match=r"last\.ckpt holds the last finished epoch; .* resume=true"):
            train([*options, "run_id=stopped"])
    assert signal.getsignal(signal.SIGINT) is handler
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert load(last)["epoch"] == 1
    resumed = train([f"log_dir={tmp_path}", "run_id=stopped", "resume=true"])  # nothing has to be repeated
    assert resumed.name == straight.name
    for name in ("state_dict", "current_model_state"):
        one, other = load(straight.with_name("last.ckpt"))[name], load(last)[name]
        assert all(torch.equal(one[key], other[key]) for key in one)
    for name in ("val/loss", "train/loss", "lr"):
        assert column(tmp_path / "stopped", name) == column(tmp_path / "straight", name)


def test_a_run_interrupted_in_its_first_epoch_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = [*TINY, "trainer.max_epochs=1", f"log_dir={tmp_path}", "run_id=early"]
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 0)
        with pytest.raises(InterruptedRun, match="no epoch was finished"):
            train(options)
    assert train([*options, "resume=true"]).is_file()


def test_resuming_a_finished_run_changes_nothing_and_names_its_best(best: Path) -> None:
    before = {path: path.read_bytes() for path in best.parent.iterdir()}
    assert train([f"log_dir={best.parents[2]}", "run_id=first", "resume=true"]).samefile(best)
    assert {path: path.read_bytes() for path in best.parent.iterdir()} == before
    assert len(column(best.parents[1], "val/loss")) == 20


def test_a_finished_run_cannot_be_resumed_for_fewer_epochs(best: Path) -> None:
    with pytest.raises(ConfigError, match=r"found 1 for .*first, which has 20 epochs; give more than 20"):
        train([f"log_dir={best.parents[2]}", "run_id=first", "resume=true", "trainer.max_epochs=1"])


def test_resuming_keeps_the_best_that_there_was(tmp_path: Path) -> None:
    # A bundle may have been made from it. Within a session there is only one.
    options = [*TINY, "score_model.lr_max=1e-2", f"log_dir={tmp_path}", "run_id=on"]
    earlier = train([*options, "trainer.max_epochs=2"])
    content = earlier.read_bytes()
    later = train([*options, "trainer.max_epochs=8", "resume=true"])
    assert later.name > earlier.name  # by the epoch
    assert earlier.read_bytes() == content
    assert {path.name for path in later.parent.iterdir()} == {earlier.name, later.name, "last.ckpt"}


def test_validation_may_be_rare_and_the_best_is_of_an_epoch_that_had_one(tmp_path: Path) -> None:
    options = [*TINY, "score_model.lr_max=1e-2", f"log_dir={tmp_path}", "run_id=rare"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Lightning's, of a loss that it misses
        first = train([*options, "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=4"])
    assert first.name.startswith("epoch=003-")
    assert load(first.with_name("last.ckpt"))["epoch"] == 5
    assert len(column(tmp_path / "rare", "train/loss")) == 6
    validation = column(tmp_path / "rare", "val/loss")
    assert len(validation) == 1
    assert first.name == f"epoch=003-val_loss={validation[0]:.3e}.ckpt"
    every = train([*options, "trainer.max_epochs=9", "trainer.check_val_every_n_epoch=1", "resume=true"])
    assert len(column(tmp_path / "rare", "val/loss")) == 4
    assert {path.name for path in every.parent.iterdir()} == {first.name, every.name, "last.ckpt"}


def test_energy_weighting_is_what_is_learned_and_validated_by(tmp_path: Path) -> None:
    # Oracle: the validation loss of the finished network, taken by hand.
    options = ["score_model.energy_weighting=2.0", "ema=null", "trainer.max_epochs=1", f"log_dir={tmp_path}"]
    checkpoint = load(train([*TINY, *options, "run_id=weighted"]))
    network = TransformerScore(NetworkOptions(N, 1, D, 2, 1, FF, 0.0))
    network.load_state_dict(checkpoint["state_dict"])
    series = Synthetic(kind="synthetic", max_len=N, num_samples=96).read()
    tokens = tokens_from_series(series, fourier_transform=True, standardize=True)
    weight = torch.from_numpy(tokens.std**2 / (tokens.std**2).mean())
    losses = dict.fromkeys((True, False), 0.0)
    for index, (clean,) in enumerate(validation_batches(tokens, 32)):
        generator = torch.Generator().manual_seed(index)
        t, noise = draw_times(len(clean), generator), torch.randn(clean.shape, generator=generator)
        for is_weighted in losses:
            loss = score_matching_loss(
                network, clean, t=t, noise=noise, process=VP(), noise_shape=torch.from_numpy(tokens.noise_shape),
                token_weight=weight if is_weighted else None,
            )  # fmt: skip
            losses[is_weighted] += loss.item() * len(clean) / len(tokens.test)
    found = column(tmp_path / "weighted", "val/loss")[0]
    assert found == pytest.approx(losses[True], rel=1e-5)
    assert abs(found / losses[False] - 1) > 1e-3
    assert OmegaConf.load(tmp_path / "weighted" / "train_config.yaml").score_model.energy_weighting == 2.0
    assert train(["run_id=weighted", f"log_dir={tmp_path}", "resume=true", "trainer.max_epochs=2"]).is_file()


def test_the_best_has_lightnings_name_in_a_checkpoint(best: Path) -> None:
    # Runs of before are resumed with the best they had.
    names = [name.partition("{")[0] for name in load(best)["callbacks"]]
    assert names.count("ModelCheckpoint") == 2


def test_resuming_needs_a_run_and_its_own_data(best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="found none at"):
        train([f"log_dir={tmp_path}", "run_id=absent", "resume=true"])
    read = Synthetic.read
    monkeypatch.setattr(Synthetic, "read", lambda self: read(Synthetic(kind="synthetic", max_len=N, random_seed=1)))
    with pytest.raises(DataError, match="must be resumed on its own data"):
        train([f"log_dir={best.parents[2]}", "run_id=first", "resume=true"])


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("checkpoints/last.ckpt", "must be a whole checkpoint"), ("train_config.yaml", "must be the config of a run")],
)
@pytest.mark.parametrize("content", [b"", b"a: [", b"\x80\x04damaged"])
def test_resuming_a_damaged_run_is_a_sentence(
    best: Path, tmp_path: Path, file: str, sentence: str, content: bytes
) -> None:
    shutil.copytree(best.parents[1], tmp_path / "first")
    (tmp_path / "first" / file).write_bytes(content)
    with pytest.raises(RunError, match=sentence):
        train([f"log_dir={tmp_path}", "run_id=first", "resume=true"])


def test_resuming_from_an_archive_that_is_damaged_inside_is_a_sentence(best: Path, tmp_path: Path) -> None:
    shutil.copytree(best.parents[1], tmp_path / "first")
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes().replace(b"embedder", b"\xffmbedder"))  # no UTF-8
    with pytest.raises(RunError, match=r"found one that cannot be read; put a copy"):
        train([f"log_dir={tmp_path}", "run_id=first", "resume=true"])


def test_a_diverged_loss_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "score_model.lr_max=1e30", f"log_dir={tmp_path}"]
    with pytest.raises(DivergedError, match="the loss must be a finite number, found nan"):
        train(options)
    assert main(options) == 1
    assert "lower score_model.lr_max" in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_checkpoint_leaves_its_name_free(tmp_path: Path) -> None:
    options = [*TINY, "trainer.max_epochs=1", f"log_dir={tmp_path}", "run_id=again"]
    with pytest.raises(DivergedError):
        train([*options, "score_model.lr_max=1e30"])
    assert (tmp_path / "again" / "train_config.yaml").is_file()
    assert train(options).is_file()
    assert OmegaConf.load(tmp_path / "again" / "train_config.yaml").score_model.lr_max == 1e-3
    with pytest.raises(RunError, match="again in use"):
        train(options)


@pytest.mark.parametrize("resume", [[], ["resume=true"]])
def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path, resume: list[str]) -> None:
    options = [*TINY, f"log_dir={tmp_path}", "run_id=shared"]
    if resume:
        train([*options, "trainer.max_epochs=1"])
    folder = RunFolder(tmp_path / "shared")
    with folder.held():
        before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
        with pytest.raises(RunError, match=r"another one at work in .*shared; wait for it, or choose another run_id"):
            train([*options, "trainer.max_epochs=2", *resume])
        assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before
    assert train([*options, "trainer.max_epochs=2", *resume]).is_file()


def test_a_folder_that_is_of_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="mine in use"):
        train([*TINY, f"log_dir={tmp_path}", "run_id=mine"])


def test_constant_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.full((20, 12), 3.5))
    with pytest.raises(DataError, match="18 train series that are all the same; there is nothing to learn"):
        train(["datamodule=npz", f"datamodule.path={tmp_path / 'flat.npy'}", f"log_dir={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


def test_command_line_prints_the_checkpoint_last_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "trainer.max_epochs=1"]) == 0
    output = capsys.readouterr()
    assert Path(output.out.strip()).is_file()
    assert output.out.startswith("lightning_logs/synthetic-")
    assert output.err == f"read 96 + 96 series (train + held out) of {N} steps, 1 channel\n"
    assert [path.name for path in tmp_path.iterdir()] == ["lightning_logs"]  # no Hydra folders


def test_the_bar_is_drawn_on_stderr_and_leaves_stdout_to_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    try:
        assert main([*TINY, "trainer.max_epochs=1", f"log_dir={tmp_path}"]) == 0
    finally:
        rich.reconfigure()  # Lightning draws on the console that all of rich shares
    output = capsys.readouterr()
    assert Path(output.out.removesuffix("\n")).is_file()
    assert "Epoch 0/0" in output.err


def test_bad_data_is_a_sentence_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["datamodule=ecg", "datamodule.data_dir=nowhere"]) == 2
    assert "found none in nowhere/ecg, none in nowhere" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "trainer.accelerator=abacus", f"log_dir={tmp_path}"]) == 2
    assert re.search(
        r"^error: .*=abacus cannot be used, Lightning says: .*; leave it at auto\n$", capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    # A real SIGINT to a real process: the exit code and the sentence a person sees.
    options = [*TINY, "trainer.max_epochs=100000", f"log_dir={tmp_path}", "run_id=long"]
    process = subprocess.Popen(
        # A signal that comes in the middle of a checkpoint leaves Lightning's temporary file to be closed by Python.
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-m", "train", *options],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    last = tmp_path / "long" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 60
    while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()  # whatever it made of the signal, it trains no longer
    assert process.returncode == 130, err
    assert out == ""
    assert err.count("\n") == 2  # what was read, and
    assert f"{last} holds the last finished epoch; continue with log_dir={tmp_path} run_id=long resume=true" in err
    assert load(last)["epoch"] >= 0


def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine() -> None:
    # Oracle: the schedule's formula at its landmarks.
    share = cosine_with_warmup(num_steps=100, warmup=0.1)
    assert [share(step) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
    assert share(55) == pytest.approx(0.5)
    assert share(100) == pytest.approx(0.0, abs=1e-12)
    assert cosine_with_warmup(num_steps=3, warmup=0.1)(0) == 1.0  # no warm-up fits into three steps
