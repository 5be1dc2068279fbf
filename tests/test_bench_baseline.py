"""The PyTorch rival: the trained network itself, under the fastest settings, which do not outlive it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bench.baseline import Settings, apply, baseline, candidates, fastest
from bench.compare import CompareOptions, compare
from bench.latency import RaceOptions
from bench.quality import QualityOptions
from export.bundle import ExportOptions, export_bundle
from export.checkpoint import Checkpoint, read_checkpoint
from export.manifest import Manifest, read_manifest
from runtime.cache.options import E2CRF
from runtime.sde import EPS
from train.networks import NetworkOptions, TransformerScore

NUM_TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(0)
    options = NetworkOptions(NUM_TOKENS, 1, d_model=8, num_heads=2, num_layers=1, d_ff=16)
    facts = {
        "schema": 1,
        "backbone": "transformer",
        "network": options.to_dict(),
        "process": {"kind": "vp", "parameters": {"beta_0": 0.1, "beta_1": 20.0}},
        "eps": EPS,
        "domain": "frequency",
        "feature_mean": torch.zeros(NUM_TOKENS, 1),
        "feature_std": torch.ones(NUM_TOKENS, 1),
        "data": "noise",
        "run_id": "tiny",
    }
    path = tmp_path_factory.mktemp("tiny") / "tiny.ckpt"
    torch.save({"state_dict": TransformerScore(options).state_dict(), "e2crf": facts}, path)
    return read_checkpoint(path)


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint) -> Path:
    folder = checkpoint.path.parent / "bundle"
    export_bundle(checkpoint, ExportOptions(folder))
    return folder


@pytest.fixture
def manifest(bundle: Path) -> Manifest:
    return read_manifest(bundle)


def test_every_core_count_is_tried_with_and_without_the_fast_path() -> None:
    tried = candidates(6)
    assert {choice.threads for choice in tried} == {1, 2, 4, 6}
    assert len(tried) == len(set(tried)) == 8
    assert {choice.threads for choice in candidates(1)} == {1}


def test_the_fastest_settings_win_and_hold_while_they_are_tried() -> None:
    quick = Settings(fast_path=True, threads=1)
    before = Settings(torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads())
    now = 0.0

    def one_pass() -> None:
        nonlocal now
        now += 0.001 if torch.backends.mha.get_fastpath_enabled() else 0.004

    try:
        found, pass_ms = fastest(one_pass, [Settings(fast_path=False, threads=1), quick], clock=lambda: now)
    finally:
        apply(before)
    assert found == quick
    assert pass_ms == pytest.approx(1.0)


def test_the_settings_of_before_come_back(checkpoint: Checkpoint, manifest: Manifest) -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()

    def interrupted() -> None:
        with baseline(checkpoint, manifest, 2) as plain:
            assert torch.get_num_threads() == plain.settings.threads
            assert "ms a pass" in plain.choice
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()) == before


def test_the_baseline_is_the_network_as_trained(checkpoint: Checkpoint, manifest: Manifest) -> None:
    z = np.random.default_rng(0).standard_normal((3, NUM_TOKENS, 1)).astype(np.float32)
    t = np.array([0.1, 0.5, 0.9], np.float32)
    with torch.inference_mode():
        expected = checkpoint.network(torch.from_numpy(z), torch.from_numpy(t)).numpy()
    with baseline(checkpoint, manifest, 3) as plain:
        assert_allclose(plain.model.score(z, t), expected, rtol=1e-4, atol=1e-5)  # the fast path reorders sums


def test_another_checkpoint_than_the_bundles_is_an_error(checkpoint: Checkpoint, manifest: Manifest) -> None:
    other = replace(checkpoint, digest="f" * 64)
    with pytest.raises(ValueError, match=r"exported from, found .*; give tiny.ckpt of run tiny"):
        baseline(other, manifest, 1).__enter__()


def test_pytorch_leads_the_table_and_agrees_with_onnx_runtime(
    checkpoint: Checkpoint, bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "real.npy", np.random.default_rng(0).standard_normal((80, NUM_TOKENS)).astype(np.float32))
    options = CompareOptions(
        bundle=bundle,
        reference=tmp_path / "real.npy",
        checkpoint=checkpoint.path,
        num_samples=20,
        steps=30,
        cache=E2CRF(R=5),
        race=RaceOptions(rounds=2),
        quality=QualityOptions(num_directions=20, num_resamples=20, interval_directions=10),
    )
    record = compare(options).record
    first, second, *_ = record.rows
    assert [row.rival for row in record.rows[:4]] == [
        "pytorch, uncached",
        "onnxruntime, uncached",
        "onnxruntime, E2-CRF",
        "onnxruntime, fewer steps",
    ]
    assert first.speedup == 1.0
    assert first.sw_time is None  # judged by the row below it, drawn from the same noise
    assert second.paired_error is not None
    assert second.paired_error < 1e-3
    assert record.baseline is not None
