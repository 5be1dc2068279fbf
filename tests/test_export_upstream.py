"""Checkpoints of FourierDiffusion and FastFourierDiffusion, exported without either.

`tests/upstream/` holds checkpoints that the real code of both repositories trained and saved (torch 2.13, Lightning
2.6 and, where the name says so, 2.0, the oldest that code runs with), each with what that code computed: scores by
its own forward in eval mode, and two samples by its own sampler (caching off) over 50 steps, with the noise it drew.
To make them again, with a repository's `src` on the path:

    scheduler = VPScheduler(fourier_noise_scaling=True)                # or VEScheduler(sigma_max=2.0, ...)
    torch.manual_seed(N)
    model = ScoreModule(n_channels=2, max_len=N, noise_scheduler=scheduler, fourier_noise_scaling=True, num_layers=2,
                        num_training_steps=800, lr_max=1e-2, d_model=4, n_head=2)
                                       # LSTMScoreModule: d_model=5, no heads; MLPScoreModule: d_model=6, d_mlp=8
    model.pos_encoder.embedding.weight.data[::2] *= 3.0                # transformer: rows beyond max_norm
    data = DiffusionDataset(torch.randn(64, N, 2).cumsum(1), fourier_transform=True, standardize=True)
    trainer = pl.Trainer(max_epochs=100, accelerator="cpu", gradient_clip_val=1.0); trainer.fit(model, loaders of 8)
    trainer.save_checkpoint(path, weights_only=<transformer>)          # without optimiser: 2048 wide by default
    z, t = torch.randn(3, N, 2), torch.tensor([1.0, 0.37, 1e-3])
    score = model.eval()(DiffusableBatch(X=z, timesteps=t))
    torch.manual_seed(1); samples = DiffusionSampler(score_model=model, sample_batch_size=2).sample(2, 50)
    torch.manual_seed(1); noise = torch.stack([torch.randn(2, N, 2) for _ in range(51)])

Tolerances are relative to the largest value: 1e-5 for scores, 1e-4 for 50 steps that each feed on the last.
"""

import os
import sys
import types
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.bundle import ExportOptions, export_bundle
from export.checkpoint import CheckpointError, checkpoint_of, read_checkpoint
from export.manifest import read_manifest
from export.upstream import ALLOWED, Supplement, UpstreamError, statistics_from_file
from runtime.cache.options import E2CRF
from runtime.cli import main
from runtime.compat import DiffusionSampler
from runtime.errors import CacheWarning
from runtime.fourier import dft
from runtime.sampler import load

FIXTURES = Path(__file__).parent / "upstream"
CHECKPOINTS = sorted(FIXTURES.glob("*.ckpt"))
UNSTANDARDISED = Supplement(lambda domain: None)


def recorded(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path.with_suffix(".npz")) as arrays:
        return dict(arrays)


class RecordedNoise:
    """The draws of upstream's sampler in the place of the sampler's own noise."""

    def __init__(self, draws: NDArray[np.float32]) -> None:
        self.draws, self.seed, self.samples = draws, 0, np.arange(draws.shape[1])

    def prior(self) -> NDArray[np.float32]:
        return self.draws[0]

    def step(self, i: int) -> NDArray[np.float32]:
        step: NDArray[np.float32] = self.draws[i + 1]
        return step


def run(arguments: list[str]) -> int:
    """The command line; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture
def fdiff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that pickle finds the schedulers in, so that the tests can change a checkpoint."""
    module = types.ModuleType("fdiff.schedulers.sde")
    for kind in ALLOWED:
        setattr(module, kind.__name__, kind)
    for name in ("fdiff", "fdiff.schedulers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_checkpoints_cover_what_upstream_makes() -> None:
    names = {tuple(path.stem.split("-")[1:3]) for path in CHECKPOINTS}
    assert names == {(kind, process) for kind in ("transformer", "lstm", "mlp") for process in ("vp", "ve")}
    assert {path.stem.split("-")[0] for path in CHECKPOINTS} == {"FourierDiffusion", "FastFourierDiffusion"}
    assert {int(path.stem.split("-")[3]) % 2 for path in CHECKPOINTS} == {0, 1}


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_scores_and_samples_of_a_bundle_are_upstreams(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = recorded(path)
    export_bundle(read_checkpoint(path, UNSTANDARDISED), ExportOptions(tmp_path / "bundle"))
    monkeypatch.setattr("runtime.sampler.NoiseStream", lambda *_: RecordedNoise(known["noise"]))
    for graphs in ("step", "split"):
        with load(tmp_path / "bundle", graphs=graphs) as model:
            score = model.score(known["z"], known["t"])
            assert np.abs(score - known["score"]).max() <= 1e-5 * np.abs(known["score"]).max()
            tokens = model.sample(2, steps=50, solver="euler_maruyama", cache=None).z
            assert np.abs(tokens - known["samples"]).max() <= 1e-4 * np.abs(known["samples"]).max()


@pytest.mark.parametrize("name", ["transformer-ve", "lstm-vp"])
def test_the_published_sampler_takes_the_checkpoint_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statistics are asked for: what it gives is standardised, as upstream's own is."""
    monkeypatch.chdir(tmp_path)
    (path,) = FIXTURES.glob(f"FastFourierDiffusion-{name}-*.ckpt")
    known = recorded(path)
    sampler = DiffusionSampler(score_model=path, sample_batch_size=2)
    monkeypatch.setattr("runtime.sampler.NoiseStream", lambda *_: RecordedNoise(known["noise"]))
    tokens = sampler.sample(num_samples=2, num_diffusion_steps=50)
    assert np.abs(tokens.numpy() - known["samples"]).max() <= 1e-4 * np.abs(known["samples"]).max()
    assert [bundle.name for bundle in Path("bundles").iterdir()] == [f"{path.stem}-standardised"]


@pytest.mark.parametrize("name", ["lstm-vp", "mlp-ve"])
def test_networks_without_kv_reuse_whole_steps(name: str, tmp_path: Path) -> None:
    """R = 1 is the uncached sampler bit for bit; R = 2 costs half, and comes nearer than R = 10."""
    (path,) = FIXTURES.glob(f"FourierDiffusion-{name}-?.ckpt")
    export_bundle(read_checkpoint(path, UNSTANDARDISED), ExportOptions(tmp_path / "bundle"))
    with load(tmp_path / "bundle") as model:
        assert model.manifest.network.num_heads == 0
        uncached = model.sample(4, steps=50, cache=None)
        with pytest.warns(CacheWarning, match="never reused"):
            every = model.sample(4, steps=50, cache=E2CRF(R=1, alpha_prior=0.0))
        half, tenth = (model.sample(4, steps=50, cache=E2CRF(R=R, alpha_prior=0.0, reuse="residual")) for R in (2, 10))
        usual = model.sample(4, steps=50)
    np.testing.assert_array_equal(every.series, uncached.series)
    assert (uncached.stats.passes, half.stats.passes, tenth.stats.passes, half.stats.cache_bytes) == (50, 25, 5, 0)
    off = [np.square(other.series - uncached.series).mean() for other in (half, tenth)]
    assert 0 < off[0] < 0.5 * off[1]
    assert np.isfinite(usual.series).all()
    assert usual.stats.passes <= 25


def test_statistics_scale_the_samples_and_another_set_makes_another_bundle(tmp_path: Path) -> None:
    path = CHECKPOINTS[0]
    known = recorded(path)
    statistics = known["mean"], known["std"]
    plain = export_bundle(read_checkpoint(path, UNSTANDARDISED), ExportOptions(tmp_path / "bundle"))
    assert np.asarray(plain.standardisation.std).min() == 1.0
    scaled = read_checkpoint(path, Supplement(lambda domain: statistics))
    with pytest.raises(CheckpointError, match="--overwrite"):
        export_bundle(scaled, ExportOptions(tmp_path / "bundle"))
    manifest = export_bundle(scaled, ExportOptions(tmp_path / "bundle", overwrite=True))
    np.testing.assert_allclose(manifest.standardisation.std, known["std"], rtol=1e-6)
    again = checkpoint_of(path, manifest)  # the bundle supplies what the checkpoint lacks
    np.testing.assert_array_equal(again.mean, scaled.mean)


@pytest.mark.usefixtures("fdiff")
def test_the_domain_follows_the_noise_or_the_option(tmp_path: Path) -> None:
    content = torch.load(CHECKPOINTS[0], weights_only=False)
    content["hyper_parameters"]["noise_scheduler"].noise_scaling = False
    torch.save(content, tmp_path / "white.ckpt")
    assert read_checkpoint(CHECKPOINTS[0], UNSTANDARDISED).domain == "frequency"
    white = read_checkpoint(tmp_path / "white.ckpt", UNSTANDARDISED)
    assert (white.domain, white.noise_shape.tolist()) == ("time", [1.0] * len(white.noise_shape))
    told = read_checkpoint(tmp_path / "white.ckpt", Supplement(lambda domain: None, "frequency"))
    assert (told.domain, told.noise_shape.tolist()) == ("frequency", white.noise_shape.tolist())


def test_another_domain_makes_another_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither passed over in silence nor under a plan of the other domain."""
    path, bundle = str(CHECKPOINTS[0]), str(tmp_path / "bundle")
    options = ["export", path, "--statistics", "none", "--bundle", bundle]
    assert run(options) == 0
    Path(bundle, "plan.json").write_text("{}")
    assert run([*options, "--domain", "frequency"]) == 0
    capsys.readouterr()
    assert run([*options, "--domain", "time"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "frequency domain) in fp32" in told
    assert "with another process or domain, meaning of the tokens; choose another folder" in told
    assert read_manifest(Path(bundle)).diffusion.domain == "frequency"
    assert run([*options, "--domain", "time", "--overwrite"]) == 0
    assert read_manifest(Path(bundle)).diffusion.domain == "time"
    assert not Path(bundle, "plan.json").exists()
    assert "| domain | time |" in Path(bundle, "README.md").read_text()


def test_missing_statistics_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(CHECKPOINTS[0])]) == 2
    told = capsys.readouterr().err
    for word in ("mean and std", "--data", "--statistics", "none"):
        assert word in told


def test_the_command_line_takes_statistics_or_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (path,) = FIXTURES.glob("FourierDiffusion-mlp-vp-8.ckpt")
    known = recorded(path)
    np.savez("statistics.npz", mean=known["mean"], std=known["std"])
    assert run(["export", str(path), "--statistics", "statistics.npz", "--bundle", "one"]) == 0
    assert run(["verify", "one", "--model", str(path)]) == 0
    series = np.random.default_rng(0).standard_normal((40, 8, 2)).cumsum(axis=1)
    np.savez("series.npz", train=series, test=series[:4])
    data = "datamodule=npz datamodule.path=series.npz"
    assert run(["export", str(path), "--data", data, "--bundle", "two"]) == 0
    tokens = dft(series)
    for name, expected in (("mean", tokens.mean(0)), ("std", tokens.std(0, ddof=1))):
        found = np.asarray(getattr(read_manifest(Path("two")).standardisation, name))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    other = "datamodule=synthetic datamodule.max_len=8"  # of one channel, the model has two
    assert run(["export", str(path), "--data", other, "--bundle", "three"]) == 2
    assert run(["export", str(path), "--statistics", "none", "--data", data, "--bundle", "three"]) == 2
    assert run(["export", str(path), "--domain", "frequency", "--bundle", "three"]) == 2
    assert not Path("three").exists()


def test_statistics_of_other_data_are_refused(tmp_path: Path) -> None:
    wrong = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    with pytest.raises(CheckpointError, match=r"shape \(\d, 2\), found \(3, 2\)"):
        read_checkpoint(CHECKPOINTS[0], Supplement(lambda domain: wrong))
    np.savez(tmp_path / "negative.npz", mean=wrong[0], std=-wrong[0])
    with pytest.raises(UpstreamError, match="negative"):
        statistics_from_file(tmp_path / "negative.npz")


def _saved(**arrays: Any) -> bytes:
    """An npz file."""
    file = BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


ONES = np.ones((3, 2))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "none that can be read"),
        (b"no archive", "none that can be read"),
        (_saved(mean=ONES, std=ONES)[:-30], "none that can be read"),
        (_saved(mean=ONES, std=ONES).replace(b"NUMPY", b"DUMPY"), "none that can be read"),
        (_saved(mean=np.array([[None]]), std=ONES), "none that can be read"),
        (_saved(mean=ONES), "mean of float64"),
        (_saved(other=ONES), "neither"),
        (_saved(mean=ONES, std=np.array([["wide"]])), "mean of float64, std of <U4"),
        (_saved(mean=1j * ONES, std=ONES), "mean of complex128, std of float64"),
        (None, r"none that can be read \(No such file or directory\)"),
    ],
)
def test_a_file_that_holds_no_statistics_is_refused_in_our_words(
    content: bytes | None, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UpstreamError, match=rf"s\.npz must be an npz file .*, found {found}; write it with") as said:
        statistics_from_file(path)
    assert "pickle" not in str(said.value)  # no advice to run what is in it


class _Command:
    """An object whose pickle would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.usefixtures("fdiff")
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "noise_scheduler"])
def test_a_checkpoint_that_would_run_a_command_is_refused_and_runs_nothing(place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "was_here", tmp_path / "evil.ckpt"
    content = torch.load(CHECKPOINTS[0], weights_only=False)
    if place == "noise_scheduler":  # inside the one object that is allowed
        content["hyper_parameters"]["noise_scheduler"].eps = _Command(marker)
    else:
        content[place]["more"] = _Command(marker)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="was not loaded"):
        read_checkpoint(path, UNSTANDARDISED)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap is real: plain unpickling springs it
    assert marker.exists()


@pytest.mark.usefixtures("fdiff")
def test_incomplete_checkpoints_are_named(tmp_path: Path) -> None:
    content = torch.load(CHECKPOINTS[0], weights_only=False)
    del content["hyper_parameters"]["max_len"]
    torch.save(content, tmp_path / "short.ckpt")
    with pytest.raises(CheckpointError, match=r"short\.ckpt .* max_len"):
        read_checkpoint(tmp_path / "short.ckpt", UNSTANDARDISED)
    content = torch.load(CHECKPOINTS[0], weights_only=False)
    content["state_dict"] = {name: value for name, value in content["state_dict"].items() if "embedder" in name}
    torch.save(content, tmp_path / "bare.ckpt")
    with pytest.raises(CheckpointError, match="neither a transformer nor an LSTM"):
        read_checkpoint(tmp_path / "bare.ckpt", UNSTANDARDISED)
