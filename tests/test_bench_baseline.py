"""The PyTorch rivals: the trained network itself, under the fastest settings, which do not outlive it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bench.baseline import Settings, Tuned, apply, baseline, candidates, current, fastest, source_of
from bench.compare import CompareOptions, compare
from bench.forms import Form
from bench.latency import RaceOptions
from bench.quality import QualityOptions
from export.bundle import ExportOptions, export_bundle
from export.checkpoint import Checkpoint, read_checkpoint
from export.manifest import Manifest, read_manifest
from runtime.cache.options import E2CRF, PolicyName
from runtime.errors import BackendError
from runtime.sampler import load
from runtime.sde import EPS
from train.networks import NetworkOptions, TransformerScore, network_from_options

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


def test_the_fast_path_is_tried_where_pytorch_runs_its_own_layers() -> None:
    for form in (Form.COMPILED, Form.KV):
        assert candidates(2, form) == [Settings(False, 1), Settings(False, 2)]


def test_the_fastest_settings_win_and_hold_while_they_are_tried() -> None:
    quick = Settings(fast_path=True, threads=1)
    now, used = 0.0, quick

    def use(settings: Settings) -> None:
        nonlocal used
        used = settings

    def one_pass() -> None:
        nonlocal now
        now += 0.001 if used.fast_path else 0.004

    found, pass_ms = fastest(one_pass, [Settings(fast_path=False, threads=1), quick], use=use, clock=lambda: now)
    assert found == quick
    assert pass_ms == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_fastest_settings_win_beside_a_neighbour(seed: int) -> None:
    """Who is there half of the time, for 0.1 s on average, and makes a pass 60 % slower; the better ones save 8 %."""
    quick, slow = Settings(fast_path=True, threads=1), Settings(fast_path=False, threads=1)
    rng, now, used = np.random.default_rng(seed), 0.0, quick
    changes = np.cumsum(rng.exponential(0.1, 1000))

    def use(settings: Settings) -> None:
        nonlocal used
        used = settings

    def one_pass() -> None:
        nonlocal now
        is_there = np.searchsorted(changes, now) % 2 == 1
        now += (0.0100 if used.fast_path else 0.0108) * (1.6 if is_there else 1.0)

    assert fastest(one_pass, [slow, quick], use=use, clock=lambda: now)[0] == quick


@pytest.mark.parametrize(
    ("scale", "leaves", "threads", "num_pauses"),
    [(1.0, 0.0, 2, 0), (1.0, 12.0, 2, 3), (1.0, np.inf, 1, 5), (0.1, 12.0, 1, 0)],
    ids=["nobody is there", "he leaves", "he stays", "a short pass"],
)
def test_fewer_threads_are_believed_where_they_lead_for_half_a_minute(
    scale: float, leaves: float, threads: int, num_pauses: int
) -> None:
    """Measured so: two threads take 1.07 ms, one 1.49; beside a neighbour on the second core two take 1.9."""
    now, used, pauses = 0.0, Settings(fast_path=False, threads=1), list[float]()

    def use(settings: Settings) -> None:
        nonlocal used
        used = settings

    def one_pass() -> None:
        nonlocal now
        now += scale * (0.00149 if used.threads == 1 else 0.0019 if now < leaves else 0.00107)

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)

    found, _ = fastest(one_pass, candidates(2, Form.COMPILED), use=use, clock=lambda: now, pause=pause)
    assert (found.threads, len(pauses)) == (threads, num_pauses)


def test_the_settings_of_before_come_back(checkpoint: Checkpoint, manifest: Manifest) -> None:
    before = current()

    def interrupted() -> None:
        with baseline(checkpoint, manifest, 2) as plain:
            plain.model.sample(2, steps=2, cache=None)
            assert current() == plain.settings
            assert "ms a pass" in plain.choice
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert current() == before


def test_rivals_that_take_turns_each_run_under_their_own_settings(checkpoint: Checkpoint) -> None:
    before = current()
    one, other = (Tuned(checkpoint.network, Form.EAGER, Settings(fast, 1)) for fast in (True, False))
    feeds = {"z": np.zeros((1, NUM_TOKENS, 1), np.float32), "t": np.full(1, 0.5, np.float32)}
    try:
        for backend in (one, other, one):
            backend.run("step", feeds)
            assert current() == backend.settings
    finally:
        apply(before)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++, and there is none here")
def test_the_compiled_network_computes_what_the_trained_one_does(checkpoint: Checkpoint, manifest: Manifest) -> None:
    """Compiled for real, at one thread; kernels fused by the compiler round otherwise: 1e-5 of the largest value."""
    before = current()
    z = np.random.default_rng(0).standard_normal((2, NUM_TOKENS, 1)).astype(np.float32)
    feeds = {"z": z, "t": np.array([0.1, 0.9], np.float32)}
    try:
        eager, compiled = (Tuned(checkpoint.network, form, Settings(False, 1)) for form in (Form.EAGER, Form.COMPILED))
        expected, found = (one.run("step", feeds)["score"] for one in (eager, compiled))
    finally:
        apply(before)
    assert (eager.name, compiled.name) == ("pytorch", "torch.compile")
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_a_network_that_cannot_be_compiled_is_told_in_one_sentence() -> None:
    """PyTorch's compiler refuses an LSTM; where there is no C++ compiler its error takes the same way."""
    options = NetworkOptions(NUM_TOKENS, 1, d_model=8, num_heads=0, num_layers=1, d_ff=0, dropout=0, backbone="lstm")
    backend = Tuned(network_from_options(options), Form.COMPILED, current())
    feeds = {"z": np.zeros((1, NUM_TOKENS, 1), np.float32), "t": np.full(1, 0.5, np.float32)}
    with pytest.raises(
        BackendError, match=r"torch\.compile needs a C\+\+ compiler and .*LSTM.*; install g\+\+"
    ) as told:
        backend.run("step", feeds)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("cache", [E2CRF(R=5, K=3), E2CRF(policy=PolicyName.E2CRF)], ids=["K 3", "published"])
def test_plans_that_recompute_few_tokens_run_on_pytorch_as_on_onnx_runtime(
    checkpoint: Checkpoint, bundle: Path, manifest: Manifest, cache: E2CRF
) -> None:
    """The same samples at the same passes: sums in another order over 40 steps, 1e-5 of the largest value."""
    settings = {"steps": 40, "solver": "ddim", "cache": cache}
    with load(bundle, threads=1) as model, baseline(checkpoint, manifest, 2, Form.KV) as plain:
        expected, found = model.sample(2, **settings), plain.model.sample(2, **settings)  # type: ignore[arg-type]
    assert expected.stats.passes < 30
    assert found.stats.passes == expected.stats.passes
    assert np.abs(found.z - expected.z).max() < 1e-5 * np.abs(expected.z).max()


def test_a_network_without_keys_and_values_has_no_such_form() -> None:
    options = NetworkOptions(NUM_TOKENS, 1, d_model=8, num_heads=0, num_layers=1, d_ff=0, dropout=0, backbone="lstm")
    with pytest.raises(BackendError, match="need a transformer, found a network of the kind lstm"):
        Tuned(network_from_options(options), Form.KV, current())


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
    with pytest.raises(ValueError, match="the checkpoint that the bundle was exported from"):
        source_of(checkpoint.path, replace(manifest, source=replace(manifest.source, digest="f" * 64)))
    assert source_of(checkpoint.path, manifest).digest == checkpoint.digest


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
        quick=True,
    )
    record = compare(options).record
    names = ["pytorch", "onnxruntime split", "onnxruntime"]
    uncached, cached = (
        [row for row in record.rows if row.rival in [f"{name}, {way}" for name in names]]
        for way in ("uncached", "E2-CRF")
    )
    assert [row.rival for row in uncached] == [f"{name}, uncached" for name in names]
    assert record.rows[0].speedup == 1.0
    for rows, judged in ((uncached, uncached[2]), (cached, cached[0])):
        assert judged.same_as is None
        for twin in (row for row in rows if row is not judged):  # drawn from the same noise, judged once
            assert (twin.same_as, twin.sw_time) == (judged.rival, judged.sw_time)
            assert twin.paired_error is not None
            assert twin.paired_error < 1e-3
    assert record.rows[len(uncached)].rival == "onnxruntime, E2-CRF"  # all are in the order of the race
    assert record.baseline is not None
