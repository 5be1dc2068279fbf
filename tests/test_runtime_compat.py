"""The published face: a script that used FastFourierDiffusion's sampler changes one import."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import ExportOptions, export_bundle
from export.checkpoint import CheckpointError, read_checkpoint
from export.manifest import ManifestError
from export.places import find_bundle
from runtime.cache.options import E2CRF, Preset
from runtime.cache.plan import Plan
from runtime.compat import DiffusionSampler, bundle_of, cache_for, published_cache
from runtime.errors import OptionError
from runtime.fourier import idft
from runtime.sampler import Model, load
from tests.tiny import make_bundle, write_checkpoint

README_KNOBS = {"K": 5, "tau_0": 0.1, "R": 10, "tau_warn": 0.5, "random_probe_ratio": 0.05}
PAPER_KNOBS = {"K": 0.1, "tau_0": 0.01, "eps": 1e-6, "R": 50, "tau_safe": 0.1, "tau_warn": 0.5, "error_feedback": 0.1}
SIZE = (15, 2)  # N, C


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = make_bundle(tmp_path_factory.mktemp("exported"))
    return folder


@pytest.fixture
def model(exported: Path) -> Iterator[Model]:
    with load(exported) as opened:
        yield opened


@pytest.fixture
def workplace(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one run, `tiny`, and no bundle."""
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "lightning_logs/tiny/checkpoints/last.ckpt")
    return tmp_path


def test_the_script_of_the_published_readme_runs(workplace: Path) -> None:
    """The call of its README, and what `cmd/sample.py` does with the result."""
    sampler = DiffusionSampler(score_model="latest", sample_batch_size=1, use_cache=True, cache_kwargs=README_KNOBS)
    X = sampler.sample(num_samples=3, num_diffusion_steps=30)
    assert isinstance(X, torch.Tensor)
    assert (X.dtype, tuple(X.shape), X.device.type) == (torch.float32, (3, *SIZE), "cpu")
    content = torch.load("lightning_logs/tiny/checkpoints/last.ckpt", weights_only=True)["e2crf"]
    X = X * content["feature_std"] + content["feature_mean"]
    with load("bundles/tiny") as model:
        expected = model.sample(3, steps=30, solver="euler_maruyama", batch_size=1, cache=published_cache(README_KNOBS))
    np.testing.assert_array_equal(idft(X.numpy()), expected.series)
    assert 0 < sampler.get_cache_stats()["cache_hit_ratio"] < 1


def test_tokens_come_back_standardised_in_the_models_domain(model: Model) -> None:
    """Oracle: the runtime's own series, from Euler-Maruyama on the uniform grid without a cache."""
    X = DiffusionSampler(model, 2).sample(5, 12).numpy()
    drawn = model.sample(5, steps=12, solver="euler_maruyama", grid="uniform", cache=None, batch_size=2)
    np.testing.assert_array_equal(X, drawn.z)
    scale = model.manifest.standardisation
    np.testing.assert_array_equal(idft(X * np.float32(scale.std) + np.float32(scale.mean)), drawn.series)


def test_exactly_as_many_samples_come_back_and_calls_go_on(model: Model) -> None:
    """The published code gives 4 for 5 in batches of 2. Tolerance: rounding, since batches are cut elsewhere."""
    sampler = DiffusionSampler(model, sample_batch_size=2)
    first, second = sampler.sample(5, 10).numpy(), sampler.sample(2, 10).numpy()
    assert (first.shape, second.shape) == ((5, *SIZE), (2, *SIZE))
    whole = DiffusionSampler(model, sample_batch_size=7).sample(7, 10).numpy()
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-3 * np.abs(whole).max())
    other = DiffusionSampler(model, sample_batch_size=7, seed=1).sample(7, 10).numpy()
    assert np.abs(other - whole).max() > 0.1


def test_steps_left_out_are_the_steps_of_training(model: Model) -> None:
    sampler = DiffusionSampler(model, 4, use_cache=True)
    assert sampler.stats is None
    assert sampler.get_cache_stats() == {}
    sampler.sample(2)
    assert sampler.stats is not None
    assert sampler.stats.num_steps == 1000


def test_statistics_have_the_published_names(model: Model) -> None:
    sampler = DiffusionSampler(model, 4, use_cache=True, cache_kwargs={"R": 5, "K": 2})
    sampler.sample(3, 20)
    found = sampler.get_cache_stats()
    assert set(found) == {"cache_hit_ratio", "recompute_count", "cache_hit_count", "current_step"}
    assert found["recompute_count"] + found["cache_hit_count"] == 3 * 20 * SIZE[0]
    assert found["cache_hit_count"] / (3 * 20 * SIZE[0]) == pytest.approx(found["cache_hit_ratio"])
    assert found["current_step"] == 19
    uncached = DiffusionSampler(model, 4)
    uncached.sample(2, 5)
    assert uncached.stats is not None
    assert uncached.stats.passes == 5
    assert uncached.get_cache_stats() == {}
    assert (sampler.max_len, sampler.n_channels, sampler.score_model) == (*SIZE, model)


def test_without_knobs_the_plan_is_taken_where_it_fits(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    with load(tmp_path / "bundle") as model:
        plan = Plan(source_digest=model.manifest.source.digest, steps=20, solver="euler_maruyama", refreshes=(8, 14))
        assert cache_for(model, {}, 20, "euler_maruyama") == E2CRF()
        plan.write(tmp_path / "bundle/plan.json")
        assert cache_for(model, {}, 20, "euler_maruyama") == plan
        assert cache_for(model, {}, 30, "euler_maruyama") == E2CRF()
        assert cache_for(model, {}, 20, "ddim") == E2CRF()
        assert cache_for(model, {"K": 2}, 20, "euler_maruyama") == E2CRF(policy="e2crf", K=2)
        sampler = DiffusionSampler(model, 4, use_cache=True)
        sampler.sample(2, 20)
        assert sampler.stats is not None
        assert sampler.stats.passes == 2
        (tmp_path / "bundle/plan.json").write_text("{")
        with pytest.raises(OptionError, match="is not a plan"):
            sampler.sample(2, 20)


@pytest.mark.parametrize(("preset", "knobs"), [(Preset.README, README_KNOBS), (Preset.PAPER, PAPER_KNOBS)])
def test_the_names_of_both_published_sets_mean_the_published_policy(preset: Preset, knobs: dict[str, Any]) -> None:
    """Oracle: the preset; only what the published form reuses has to be named besides."""
    whole = {"random_probe_ratio": 0.0} | knobs if preset is Preset.PAPER else knobs
    assert published_cache(whole | {"reuse": "feature", "alpha_prior": 0.0}) == E2CRF.preset(preset)
    assert published_cache(knobs) == E2CRF(policy="e2crf", **knobs)
    others = {name: value for name, value in knobs.items() if name != "error_feedback"}
    assert published_cache(others | {"a": 0.02}) == E2CRF(policy="e2crf", **others, error_feedback=0.02)
    assert published_cache({}) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cache_kwargs": {"K": 5, "tau": 1}}, r"unknown name tau in cache_kwargs; the known ones are .*tau_0"),
        ({"cache_kwargs": {"use_freqca": True}}, r"unknown name use_freqca"),
        ({"cache_kwargs": {"R": 0}}, r"R must be a whole number of at least 1, found 0"),
        ({"use_fresca": True}, r"use_fresca must be False, found True; .*leave it out"),
        ({"score_model": torch.nn.Linear(1, 1)}, r"score_model must name .*found 'Linear'; give the path"),
        ({"score_model": "nonsense"}, r"no model 'nonsense': .*runs: tiny; under bundles: none"),
        ({"score_model": "gone.ckpt"}, r"no model 'gone.ckpt'"),
    ],
)
def test_wrong_use_is_one_sentence(workplace: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises((OptionError, ManifestError), match=says):
        DiffusionSampler(**{"score_model": "latest", "sample_batch_size": 1, "use_cache": True} | options)
    assert not Path("bundles").exists()  # nothing was exported for it


def test_every_way_of_naming_a_model_leads_to_its_bundle(workplace: Path) -> None:
    checkpoint = Path("lightning_logs/tiny/checkpoints/last.ckpt")
    for name in ("latest", "tiny", checkpoint, str(checkpoint)):
        assert bundle_of(name) == Path("bundles/tiny")
    made = (Path("bundles/tiny/manifest.json")).stat().st_mtime_ns
    assert bundle_of("bundles/tiny") == Path("bundles/tiny")
    assert Path("bundles/tiny/manifest.json").stat().st_mtime_ns == made  # once
    os.replace("bundles/tiny", "bundles/my-name")
    assert bundle_of("latest") == Path("bundles/my-name")  # the bundle of that checkpoint, whatever it is called
    shutil.rmtree("lightning_logs")
    assert bundle_of("latest") == Path("bundles/my-name")  # the newest bundle, where there are no runs
    assert bundle_of("my-name") == Path("bundles/my-name")
    shutil.rmtree("bundles")
    with pytest.raises(ManifestError, match="latest is the newest bundle under bundles, found none"):
        bundle_of("latest")


def test_latest_is_the_newest_run_and_a_trained_on_one_is_not_taken_for_its_old_bundle(workplace: Path) -> None:
    bundle_of("tiny")
    newer = write_checkpoint(Path("lightning_logs/newer/checkpoints/last.ckpt"), seed=1)
    os.utime(newer, (2e9, 2e9))
    with pytest.raises(CheckpointError, match=r"bundles/tiny holds a bundle of last.ckpt .*--overwrite"):
        bundle_of("latest")  # the file says that it is of run tiny, too
    export_bundle(read_checkpoint(newer), ExportOptions(Path("bundles/newer")))
    assert bundle_of("latest") == Path("bundles/newer")
    assert bundle_of("tiny") == Path("bundles/tiny")
    os.utime("bundles/tiny/manifest.json", (2e9, 2e9))
    assert find_bundle("latest") == Path("bundles/tiny")
    assert bundle_of("latest") == Path("bundles/newer")  # runs come first where a model is named


def test_a_damaged_bundle_beside_it_and_a_stage_are_not_in_the_way(workplace: Path) -> None:
    for name in ("broken", ".tiny.stage"):
        Path("bundles", name).mkdir(parents=True)
        Path("bundles", name, "manifest.json").write_text("{")
    assert bundle_of("latest") == Path("bundles/tiny")
    shutil.rmtree("bundles/broken")
    assert find_bundle("latest") == Path("bundles/tiny")


def test_without_torch_an_array_comes_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = DiffusionSampler(model, 4)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert isinstance(sampler.sample(2, 5), np.ndarray)
