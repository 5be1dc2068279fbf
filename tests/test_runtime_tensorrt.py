"""The TensorRT backend's real code over a driver that records, checks and carries out: whole trajectories, no GPU.

Oracle of the samples: the CPU backend, same seed. Tolerance: 1e-5 of the latents' scale, float32 summed in another
order over all steps.
"""

import ctypes
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from engines.flavor import Flavor
from engines.recipe import Parts, Recipe
from engines.store import Store
from export.bundle import ExportOptions, export_bundle
from export.checkpoint import read_checkpoint
from export.manifest import read_manifest
from runtime.backends.cuda import DeviceArray
from runtime.backends.tensorrt import Cache
from runtime.cache.hold import LinearHold
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.cache.policy import UNFITTED, Decision, Decisions, Event, Needs, Policy, Reuse, Signals, Step, TokenFacts
from runtime.errors import BackendError, BackendWarning, OptionError
from runtime.sampler import Interrupted, Model, load
from tests.cache_doubles import Scripted
from tests.recording_driver import RecordingDriver, compiled_kernels, open_recorded, write_engines
from tests.test_export_precision import without_cache
from tests.tiny import make_bundle, write_checkpoint

RECIPE = Recipe(flavor=Flavor.TENSORRT, parts=Parts.ALL, batch=4, buckets=(4, 8))
STEPS = 24


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = make_bundle(tmp_path_factory.mktemp("tiny"))
    write_engines(folder, RECIPE)
    return folder


@pytest.fixture
def opened(bundle: Path, kernels: ctypes.CDLL) -> Iterator[tuple[Model, RecordingDriver]]:
    backend, driver = open_recorded(bundle, kernels)
    with Model(read_manifest(bundle), backend, bundle=bundle) as model:
        yield model, driver


def plan_of(bundle: Path, **options: Any) -> Plan:
    digest = read_manifest(bundle).source.digest
    usual = {"steps": STEPS, "solver": "ddim", "refreshes": (3, 10, 17)}
    return Plan(source_digest=digest, **(usual | options))


def assert_same(model: Model, bundle: Path, n: int = 5, *, tolerance: float = 1e-5, **options: Any) -> runtime.Samples:
    options = {"steps": STEPS, "batch_size": 3, "seed": 2**63 + 11} | options
    with load(bundle, threads=1) as plain:
        expected = plain.sample(n, **options)
    found = model.sample(n, **options)
    scale = np.abs(expected.z).max()
    assert np.abs(found.z - expected.z).max() <= tolerance * scale
    assert np.array_equal(found.stats.events, expected.stats.events)
    assert np.array_equal(found.stats.recomputed, expected.stats.recomputed)
    return found


@pytest.mark.parametrize("graphs", ["step", "split"])
@pytest.mark.parametrize("solver", ["euler_maruyama", "ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_uncached_samples_are_those_of_the_cpu(bundle: Path, kernels: ctypes.CDLL, solver: str, graphs: str) -> None:
    backend, _ = open_recorded(bundle, kernels)
    with Model(read_manifest(bundle), backend, graphs=graphs) as model:
        assert_same(model, bundle, solver=solver, cache=None)


@pytest.mark.parametrize("reuse", UNFITTED)
@pytest.mark.parametrize("solver", ["ancestral", "dpmpp_2m"])
def test_cached_samples_are_those_of_the_cpu(
    opened: tuple[Model, RecordingDriver], bundle: Path, reuse: str, solver: str
) -> None:
    """Refreshes, low frequencies padded to a bucket, prior phase, reuse."""
    found = assert_same(opened[0], bundle, solver=solver, cache=E2CRF(R=7, K=2, low_every=3, reuse=reuse))
    assert {"prior", "first", "refresh", "low", "reuse"} <= set(found.stats.event_counts)


@dataclass(frozen=True)
class Watched:
    """A plan whose policy notes the surprise at every step."""

    plan: Plan
    noted: dict[int, Any]
    reuse: str = Reuse.RESIDUAL_LINEAR
    needs: Needs = Needs.SURPRISE
    feedback: float = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        policy = self.plan.concrete(facts, steps)

        def noting(step: Step, signals: Signals) -> Decisions:
            self.noted[step.index] = signals.surprise.copy()
            return policy(step, signals)

        return noting


@pytest.mark.parametrize("solver", ["ancestral", "ddim"])
def test_what_is_held_by_a_fitted_plan_is_that_of_the_cpu(
    opened: tuple[Model, RecordingDriver], bundle: Path, solver: str
) -> None:
    """Random functions at three refreshes, and again, when their tables are on the device already."""
    rng = np.random.default_rng(3)
    fit = tuple(LinearHold(*rng.normal([[[1.0]], [[0.0]], [[0.0]], [[0.0]]], 0.1, (4, 15, 2)).astype(np.float32))
                for _ in range(3))  # fmt: skip
    plan = plan_of(bundle, solver=solver, reuse=Reuse.RESIDUAL_FITTED, fit=fit)
    found = assert_same(opened[0], bundle, solver=None, cache=plan)
    held = assert_same(opened[0], bundle, solver=None, cache=plan_of(bundle, solver=solver, reuse=Reuse.RESIDUAL))
    assert np.abs(found.z - held.z).max() > 0.01
    launches = [entry[1] for entry in opened[1].log if entry[0] == "launch"]
    assert launches.count("hold") == 3 * 2  # refreshes, batches


def test_samples_that_hold_different_things_do_so_on_a_gpu_too(
    opened: tuple[Model, RecordingDriver], bundle: Path
) -> None:
    """At step 10 the middle one of three samples goes by another function than the others."""
    fit = [LinearHold(*np.full((4, 15, 2), share, np.float32)) for share in (0.1, 0.4)]
    assert_same(opened[0], bundle, n=3, solver="ddim", cache=HeldApart(fit))


@dataclass(frozen=True)
class HeldApart:
    """Refreshes at steps 3 and 10 with a function for each sample."""

    fit: list[LinearHold]
    reuse: str = Reuse.RESIDUAL_FITTED
    needs: Needs = Needs.NOTHING
    feedback: float = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        def policy(step: Step, signals: Signals) -> Decisions:
            if step.index == 3:
                return Decision(Event.FIRST)
            if step.index == 10:
                return [Decision(Event.REFRESH, hold=self.fit[which]) for which in (0, 1, 0)]
            return Decision(Event.PRIOR if step.index < 3 else Event.REUSE)

        return policy


@pytest.mark.parametrize("begin", [(8, 8, 8), (6, 9, 6)], ids=["all", "some"])
@pytest.mark.parametrize("reuse", ["feature", "data", "residual"])
def test_samples_that_predict_by_the_prior_do_so_beside_others(
    opened: tuple[Model, RecordingDriver], bundle: Path, reuse: str, begin: tuple[int, ...]
) -> None:
    """Said for each sample, while none of them has begun and while others have."""

    def script(sample: int, step: int) -> Decision:
        if step <= begin[sample]:
            return Decision(Event.PRIOR if step < begin[sample] else Event.FIRST)
        return Decision(Event.REFRESH if step % 5 == 0 else Event.PRIOR if step == 17 else Event.REUSE)

    assert_same(opened[0], bundle, n=3, cache=Scripted(script, reuse))


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_a_new_score_is_used_whatever_the_neighbours_do(
    opened: tuple[Model, RecordingDriver], bundle: Path, where: str
) -> None:
    """Euler-Maruyama's last steps, where a detour over the data costs 1e-4. Oracle: alone, uncached; 1e-6."""

    def script(sample: int, step: int) -> Decision:
        return Decision(Event.REUSE if sample == 1 and step == 15 else Event.REFRESH if step else Event.FIRST)

    with load(bundle, threads=1) as plain:
        alone = plain.sample(1, steps=16, solver="euler_maruyama", cache=None).z
        model = plain if where == "cpu" else opened[0]
        beside = model.sample(3, steps=16, solver="euler_maruyama", cache=Scripted(script)).z
    assert np.abs(beside[0] - alone[0]).max() <= 2e-6 * np.abs(alone).max()


def test_a_signal_that_is_not_asked_for_is_not_made_up(opened: tuple[Model, RecordingDriver]) -> None:
    @dataclass(frozen=True)
    class Looks:
        reuse: str = Reuse.RESIDUAL
        needs: Needs = Needs.NOTHING
        feedback: float = 0.0

        def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
            return lambda step, signals: Decision(Event.TRIGGER if (signals.surprise > 0).any() else Event.FIRST)

    with pytest.raises(OptionError, match=r"found that SURPRISE is not; add Needs\.SURPRISE"):
        opened[0].sample(1, steps=5, cache=Looks())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_counter_holds_is_refused(opened: tuple[Model, RecordingDriver], seed: int) -> None:
    with pytest.raises(OptionError, match="the seed must be an integer from 0 to"):
        opened[0].sample(1, steps=5, cache=None, seed=seed)


@pytest.mark.parametrize(
    ("name", "kind", "found"), [("z", "float64", "float64"), ("token", "int32", "int32"), ("z", "", "not contiguous")]
)
def test_arrays_of_another_kind_are_refused(
    opened: tuple[Model, RecordingDriver], name: str, kind: str, found: str
) -> None:
    backend, feeds = opened[0].backend, {}
    for tensor in backend.signature("step").inputs:
        shape = tuple(size if isinstance(size, int) else {"B": 2, "S": 4}[size] for size in tensor.shape)
        feeds[tensor.name] = np.zeros(shape, tensor.dtype)
    feeds["token"][...] = np.arange(4)
    feeds[name] = feeds[name].astype(kind) if kind else np.zeros((2, 8, 2), np.float32)[:, ::2]
    scores = {"score": np.zeros((2, 4, 2), np.float32)}
    with pytest.raises(BackendError, match=f"{name} must be a contiguous array of .*, found .*{found}"):
        backend.bind("step", feeds, scores)


def test_ctrl_c_while_the_latents_come_leaves_a_record_of_what_is_kept(
    opened: tuple[Model, RecordingDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes while the host is at the end of the batch, so that most Ctrl-C come there."""
    model, driver = opened
    download, count = driver.download, 0

    def stop(array: Any, address: int) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        download(array, address)

    monkeypatch.setattr(driver, "download", stop)
    with pytest.raises(Interrupted) as caught:
        model.sample(12, steps=STEPS, batch_size=4, cache=None)
    samples = caught.value.samples
    assert samples is not None
    assert (len(samples.series), len(samples.stats.sample_tokens), samples.stats.passes) == (8, 8, STEPS)


def test_only_linear_functions_are_held_on_a_gpu(opened: tuple[Model, RecordingDriver]) -> None:
    class Other:
        def of(self, value: Any, before: Any, z: Any) -> Any:
            return value

    with pytest.raises(BackendError, match="a GPU holds linear functions, found Other; sample on the CPU"):
        opened[0].sample(3, steps=STEPS, cache=HeldApart([Other(), Other()]))  # type: ignore[list-item]


def test_a_guard_that_refreshes_some_samples_gives_the_cpus_samples(
    opened: tuple[Model, RecordingDriver], bundle: Path
) -> None:
    """The limits lie between the surprises of the samples, so that at step 13 some are refreshed once more while the
    others recompute their low frequencies, against their own keys and values."""
    usual: dict[str, Any] = {"K": 3, "low_steps": (7, 13), "guard": 1.0}
    noted: dict[int, Any] = {}
    with load(bundle, threads=1) as plain:
        watched = Watched(plan_of(bundle, surprise=(1e9, 1e9, 1e9), **usual), noted)
        plain.sample(3, steps=STEPS, solver="ddim", cache=watched, seed=2**63 + 11, batch_size=3)
    limits = [float(np.sort(noted[step])[-2:].mean()) for step in (11, 18)]
    guarded = plan_of(bundle, surprise=(1e9, *limits), **usual)
    found = assert_same(opened[0], bundle, n=3, solver=None, cache=guarded)
    assert sorted(found.stats.events[13].tolist())[-2:] == [1, 2]  # the sample that is furthest off, and the others


def test_a_guard_is_looked_at_while_the_device_has_work(opened: tuple[Model, RecordingDriver], bundle: Path) -> None:
    """A surprise is fetched behind its refresh, and waited for when the steps up to half way are on the stream."""
    model, driver = opened
    model.sample(3, cache=plan_of(bundle, surprise=(1e9, 1e9, 1e9), guard=1.0), batch_size=3)
    begin = next(i for i, entry in enumerate(driver.log) if entry[:2] == ("launch", "start"))
    steps = [entry for entry in driver.log[begin:] if entry[0] in ("fetch", "wait") or entry[1:2] == ("coast",)]
    told = [entry[0] if entry[0] != "launch" else entry[4:6] for entry in steps]
    prior = (0, 3)
    assert told == [prior, "fetch", (4, 6), "wait", (6, 10), "fetch", (11, 13), "wait", (13, 17),
                    "fetch", (18, 20), "wait", (20, 24)]  # fmt: skip
    assert [entry[0] for entry in driver.log[begin:] if entry[0] == "download"] == ["download"]  # z


@pytest.mark.parametrize("trigger", ["feature", "impact"])
def test_the_published_policy_runs_on_the_host_with_caches_on_the_device(
    opened: tuple[Model, RecordingDriver], bundle: Path, trigger: str
) -> None:
    model, driver = opened
    cache = E2CRF(policy="e2crf", K=2, R=8, trigger=trigger, error_feedback=0.1, random_probe_ratio=0.1)
    found = assert_same(model, bundle, cache=cache)
    assert found.stats.event_counts["chosen"] > 0
    calls = [dict(entry[-1]) for entry in driver.log if entry[0] == "enqueue"]
    kept = {call[name] for call in calls for name in call if name.startswith(("past", "present"))}
    assert not [entry for entry in driver.log if entry[0] in ("upload", "download") and entry[1] in kept]


@pytest.mark.parametrize("backbone", ["lstm", "mlp"])
def test_a_network_without_keys_and_values_runs_whole_steps(
    tmp_path: Path, kernels: ctypes.CDLL, backbone: str
) -> None:
    folder = tmp_path / "bundle"
    export_bundle(without_cache(tmp_path, backbone), ExportOptions(folder))
    write_engines(folder, RECIPE)
    for graphs in ("step", "split"):
        backend, _ = open_recorded(folder, kernels)
        with Model(read_manifest(folder), backend, graphs=graphs) as model:
            assert_same(model, folder, cache=E2CRF(R=5))
            for asked in (model, load(folder, threads=1)):
                with pytest.raises(OptionError, match=r"has no K/V cache, .* found 'low'; decide refresh"):
                    asked.sample(2, steps=5, cache=Scripted(_low_after_the_first, alike=True))
                with pytest.raises(OptionError, match=r"has no K/V cache, .* found 'low'; decide refresh"):
                    asked.sample(2, steps=5, cache=Scripted(_low_after_the_first))


def _low_after_the_first(sample: int, step: int) -> Decision:
    return Decision(Event.LOW, np.arange(2)) if step else Decision(Event.FIRST)


def test_an_mlp_has_no_features_of_tokens(tmp_path: Path) -> None:
    export_bundle(without_cache(tmp_path, "mlp"), ExportOptions(tmp_path / "bundle"))
    cache = Scripted(lambda sample, step: Decision(Event.REFRESH if step else Event.FIRST), needs=Needs.INTENSITY)
    with load(tmp_path / "bundle") as model, pytest.raises(OptionError, match="features of each token, found 'one row"):
        model.sample(1, steps=5, cache=cache)


def test_half_precision_keeps_half_the_bytes(tmp_path: Path, kernels: ctypes.CDLL) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "tiny.ckpt"))
    export_bundle(checkpoint, ExportOptions(tmp_path / "bundle", precision="fp16"))
    write_engines(tmp_path / "bundle", RECIPE)
    backend, _ = open_recorded(tmp_path / "bundle", kernels)
    with Model(read_manifest(tmp_path / "bundle"), backend) as model:
        found = assert_same(model, tmp_path / "bundle", cache=E2CRF(R=7, K=2), tolerance=5e-3)  # halves round apart
    assert found.stats.cache_bytes == 2 * 2 * 3 * 15 * 12 * 2


@dataclass(frozen=True)
class OnlyLow:
    """A cache that never asks for all tokens: what is not asked for is what the caches began with."""

    reuse: str = Reuse.RESIDUAL
    needs: Needs = Needs.NOTHING
    feedback: float = 0.0

    def concrete(self, facts: TokenFacts, steps: Sequence[Step]) -> Policy:
        return lambda step, signals: Decision(Event.LOW, np.arange(3))


def test_a_trajectory_begins_with_empty_caches(
    opened: tuple[Model, RecordingDriver], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, so that the second one would find the keys and values of the first. Users may not ask so."""
    monkeypatch.setattr(runtime.sampler, "_require_begun", lambda decisions, trajectory: None)
    for steps in (7, STEPS):
        assert_same(opened[0], bundle, cache=OnlyLow(), steps=steps)


def test_a_step_is_one_launch_and_nothing_crosses_over(opened: tuple[Model, RecordingDriver]) -> None:
    """Uncached, 24 steps: both directions run plainly once, are captured once, and are replayed from then on."""
    model, driver = opened
    model.sample(3, steps=STEPS, cache=None, batch_size=3)
    begin = next(i for i, entry in enumerate(driver.log) if entry[:2] == ("launch", "start"))
    steps = [entry for entry in driver.log[begin + 1 :] if entry[0] not in ("allocate", "context", "load")]
    replays = [entry[1] for entry in steps if entry[0] == "replay"]
    assert replays == [0, 1] * 11
    plain = [entry[1] for entry in steps if entry[0] in ("launch", "enqueue")]
    assert plain == ["gather", "step", "settle", "advance"] * 2
    captured = [entry[2] for entry in steps if entry[0] == "captured"]
    assert captured == ["gather", "step", "settle", "advance"] * 2
    assert [entry[0] for entry in steps if entry[0] in ("upload", "download")] == ["upload", "download"]  # tokens, z
    again = len(driver.log)
    model.sample(3, steps=STEPS, cache=None, batch_size=3)
    kinds = [entry[0] for entry in driver.log[again:]]
    assert kinds.count("replay") == STEPS
    assert "context" not in kinds
    assert "captured" not in kinds
    assert "allocate" not in kinds


def test_engines_of_parts_are_captured_and_replayed_as_one(bundle: Path, kernels: ctypes.CDLL) -> None:
    backend, driver = open_recorded(bundle, kernels)
    with Model(read_manifest(bundle), backend, graphs="split") as model:
        model.sample(3, steps=STEPS, cache=None, batch_size=3)
    captured = [entry[2] for entry in driver.log if entry[0] == "captured"]
    assert captured == ["gather", "embed", "layer_00", "layer_01", "head", "settle", "advance"] * 2
    assert [entry[1] for entry in driver.log if entry[0] == "replay"] == [0, 1] * 11


@pytest.mark.parametrize("refresh", [5, 8])
def test_engines_of_parts_keep_keys_and_values_of_tokens_in_buckets(
    bundle: Path, kernels: ctypes.CDLL, refresh: int
) -> None:
    backend, driver = open_recorded(bundle, kernels)
    with Model(read_manifest(bundle), backend, graphs="split") as model:
        found = assert_same(model, bundle, cache=E2CRF(R=refresh, K=2, low_every=2, alpha_prior=0.0))
    assert found.stats.event_counts["low"] > 0
    assert {0, 2} <= {entry[entry.index("enqueue") + 2] for entry in driver.log if "enqueue" in entry}


def test_a_bar_costs_no_copy_and_no_launch(opened: tuple[Model, RecordingDriver], bundle: Path) -> None:
    """It hears of all steps, runs of steps without the network at once."""
    model, driver = opened
    plan, done = plan_of(bundle), list[int]()
    logs = []
    for on_progress in (None, None, done.append):
        before = len(driver.log)
        model.sample(4, batch_size=2, cache=plan, on_progress=on_progress)
        logs.append([entry[:2] for entry in driver.log[before:]])
    assert logs[1] == logs[2]
    assert done == [3, 1, 6, 1, 6, 1, 6] * 2
    assert sum(done) == 2 * STEPS


def test_caches_change_places_at_every_call(opened: tuple[Model, RecordingDriver]) -> None:
    model, driver = opened
    model.sample(2, steps=6, cache=None, batch_size=2)
    calls = [dict(entry[-1]) for entry in driver.log if "enqueue" in entry[:2]]
    for name in ("key_00", "value_00", "key_01", "value_01"):
        past, present = ([call[f"{when}_{name}"] for call in calls] for when in ("past", "present"))
        assert past == [past[0], present[0]] * 2
        assert present == [present[0], past[0]] * 2
    assert len({call["z"] for call in calls}) == 1


def test_each_set_runs_in_the_least_bucket_that_holds_it(opened: tuple[Model, RecordingDriver]) -> None:
    """Profiles are for 4, 8 and 15 tokens: 3 low tokens take the first, 5 the second, a refresh the last."""
    model, driver = opened
    for frequencies, profile in ((2, 0), (3, 1)):
        before = len(driver.log)
        model.sample(2, steps=STEPS, batch_size=2, cache=E2CRF(R=8, K=frequencies, low_every=4, alpha_prior=0.0))
        used = {entry[entry.index("enqueue") + 2] for entry in driver.log[before:] if "enqueue" in entry}
        assert profile in used
        assert used <= {profile, 2}
    assert model.backend.bucket(["step"], 2, 9) == 15  # type: ignore[attr-defined]


def test_an_engine_that_cannot_be_captured_runs_all_the_same(bundle: Path, kernels: ctypes.CDLL) -> None:
    backend, driver = open_recorded(bundle, kernels, can_capture=False)
    with (
        Model(read_manifest(bundle), backend) as model,
        pytest.warns(BackendWarning, match="cannot be captured as a CUDA graph.*operation not permitted"),
    ):
        assert_same(model, bundle, cache=None)
    assert "replay" not in {entry[0] for entry in driver.log}


def test_a_trajectory_that_was_broken_off_leaves_nothing_behind(
    opened: tuple[Model, RecordingDriver], bundle: Path
) -> None:
    model, _ = opened

    def stop(info: Any) -> None:
        if info.index == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.sample(3, steps=STEPS, batch_size=3, cache=None, on_step=stop)
    assert_same(model, bundle, cache=None)


def test_every_step_can_be_watched(opened: tuple[Model, RecordingDriver], bundle: Path) -> None:
    told: dict[str, list[Any]] = {"cpu": [], "gpu": []}
    options: dict[str, Any] = {"steps": STEPS, "batch_size": 2, "cache": E2CRF(R=7, K=2)}
    with load(bundle, threads=1) as plain:
        plain.sample(2, **options, on_step=lambda info: told["cpu"].append((info.z.copy(), info.data.copy())))
    opened[0].sample(2, **options, on_step=lambda info: told["gpu"].append((info.z, info.data)))
    for cpu, gpu in zip(told["cpu"], told["gpu"], strict=True):
        for one, other in zip(cpu, gpu, strict=True):
            np.testing.assert_allclose(other, one, atol=2e-5 * np.abs(one).max())


def test_scores_are_those_of_the_cpu(opened: tuple[Model, RecordingDriver], bundle: Path) -> None:
    rng = np.random.default_rng(0)
    z, t = rng.standard_normal((3, 15, 2)).astype(np.float32), np.array([0.1, 0.5, 0.9], np.float32)
    with load(bundle, threads=1) as plain:
        np.testing.assert_allclose(opened[0].score(z, t), plain.score(z, t), rtol=1e-6)


def test_latents_are_an_array_that_pycuda_takes_without_a_copy(opened: tuple[Model, RecordingDriver]) -> None:
    """`pycuda.gpuarray` and its like read address, shape and type from this dictionary."""
    model, _ = opened
    with pytest.raises(BackendError, match="no batch was drawn on the device yet"):
        _ = model.backend.latents  # type: ignore[attr-defined]
    drawn = model.sample(2, steps=5, batch_size=2, cache=None)
    found = model.backend.latents.__cuda_array_interface__  # type: ignore[attr-defined]
    assert (found["shape"], found["typestr"], found["version"]) == ((2, 15, 2), "<f4", 3)
    there = np.ctypeslib.as_array(ctypes.cast(found["data"][0], ctypes.POINTER(ctypes.c_float)), found["shape"])
    assert np.array_equal(there, drawn.z)


def test_arrays_that_are_on_the_device_are_bound_where_they_are(opened: tuple[Model, RecordingDriver]) -> None:
    model, driver = opened
    backend: Any = model.backend
    hidden, score = DeviceArray(driver, (2, 15, 12), "float32"), DeviceArray(driver, (2, 15, 2), "float32")
    driver.upload(hidden.address, np.ones(hidden.shape, np.float32))
    before = len(driver.log)
    backend.bind("head", {"hidden": hidden}, {"score": score})()
    assert not {entry[0] for entry in driver.log[before:]} & {"upload", "download", "copy"}
    assert np.array_equal(score.numpy(), backend.run("head", {"hidden": hidden.numpy()})["score"])


# --- what is refused ------------------------------------------------------------------------------------


def test_without_a_gpu_one_sentence_says_so(bundle: Path) -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(BackendError, match=f"backend {name} needs an NVIDIA GPU and its driver"):
            load(bundle, backend=name)
    with pytest.raises(OptionError, match="backend tensorrt runs on the cuda only, found device 'cpu'"):
        load(bundle, backend="tensorrt", device="cpu")
    with pytest.raises(OptionError, match="a stream is for the TensorRT backends, found 'onnxruntime'"):
        load(bundle, stream=7)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "no engine of step for flavour tensorrt, none was found; build one here with `e2crf build"),
        ({"library": "10.9.0"}, "for TensorRT 11.4.0, those there are of TensorRT 10.9.0; build one here"),
        ({"target": "NVIDIA L4 (8.9)"}, r"for GPU NVIDIA H200 \(9.0\), those there are of GPU NVIDIA L4 \(8.9\)"),
        ({"digest": "f" * 64}, "for graph with SHA-256 .*, those there are of graph with SHA-256 ffff"),
    ],
)
def test_engines_of_something_else_are_refused(
    tmp_path: Path, kernels: ctypes.CDLL, made: dict[str, str] | None, message: str
) -> None:
    folder, _ = make_bundle(tmp_path)
    if made is not None:
        write_engines(folder, Recipe(flavor=Flavor.TENSORRT), **made)
    backend, _ = open_recorded(folder, kernels)
    with Model(read_manifest(folder), backend) as model, pytest.raises(BackendError, match=message):
        model.sample(1, steps=4, cache=None)


def test_a_batch_or_a_bucket_outside_the_profile_is_refused(opened: tuple[Model, RecordingDriver]) -> None:
    model, _ = opened
    with pytest.raises(BackendError, match="takes batches of 1 to 4, found 6; take --batch-size 4, or build with"):
        model.sample(6, steps=4, cache=None, batch_size=6)
    backend: Any = model.backend
    with pytest.raises(BackendError, match="takes 4, 8, 15 tokens, found 5; build with --tokens 5"):
        backend.context("step", 1, 5)
    with pytest.raises(BackendError, match="takes at most 15 tokens, found 16; build with --tokens 16"):
        backend.bucket(["step"], 2, 16)
    with pytest.raises(BackendError, match="takes batches of 1 to 4, found 6"):
        model.score(np.zeros((6, 15, 2), np.float32), np.ones(6, np.float32))


def test_a_batch_that_does_not_fit_names_one_that_does(bundle: Path, kernels: ctypes.CDLL) -> None:
    roomy, _ = open_recorded(bundle, kernels)
    with Model(read_manifest(bundle), roomy) as model:
        one = model.sample(1, steps=4, cache=None, batch_size=1).stats
    needed = 2 * (one.cache_bytes + one.state_bytes)
    for memory, fits in ((needed * 5 // 2, 2), (needed * 4 + 200, 2)):  # too little at once; gone on the way
        backend, _ = open_recorded(bundle, kernels, memory=memory)
        with (
            Model(read_manifest(bundle), backend) as model,
            pytest.raises(BackendError) as caught,
        ):
            model.sample(4, steps=4, cache=None, batch_size=4)
        assert str(caught.value).endswith(f"take --batch-size {fits}")


def test_of_one_sample_that_does_not_fit_no_smaller_batch_is_named(bundle: Path, kernels: ctypes.CDLL) -> None:
    for memory in (0, 9_000, 12_000):
        backend, _ = open_recorded(bundle, kernels, memory=memory)
        with Model(read_manifest(bundle), backend) as model, pytest.raises(BackendError) as caught:
            model.sample(1, steps=STEPS, cache=None)
        assert "a batch of 1 " in str(caught.value)
        assert str(caught.value).endswith("; end what else uses it, or take a larger one")


def test_wherever_memory_ends_a_smaller_batch_is_named(bundle: Path, kernels: ctypes.CDLL) -> None:
    """From none to enough: caches, tables, buffers, contexts; on the device, and on the host over `bind`."""
    roomy, driver = open_recorded(bundle, kernels)
    caches = (plan_of(bundle), E2CRF(policy="e2crf"))
    with Model(read_manifest(bundle), roomy) as model:
        free = driver.free_memory()
        for cache in caches:
            model.sample(4, steps=STEPS, solver="ddim", batch_size=4, cache=cache)
        needed = free - driver.free_memory()
    for cache in caches:
        said = set[str]()
        for memory in range(0, needed, max(1, needed // 60)):
            backend, _ = open_recorded(bundle, kernels, memory=memory)
            with Model(read_manifest(bundle), backend) as model:
                try:
                    model.sample(4, steps=STEPS, solver="ddim", batch_size=4, cache=cache)
                except BackendError as error:
                    said.add(str(error))
        assert said
        named = re.compile(r"a batch of 4 .*; (take --batch-size [1-3]|end what else uses it, or take a larger one)$")
        assert [one for one in said if named.match(one) is None] == []


def test_an_engine_is_chosen_for_the_batch_and_for_its_numbers_of_tokens(tmp_path: Path, kernels: ctypes.CDLL) -> None:
    """One for batches up to 8 that always takes all tokens, one for up to 4 that takes few."""
    folder, _ = make_bundle(tmp_path)
    write_engines(folder, Recipe(flavor=Flavor.TENSORRT, batch=8, buckets=()))
    write_engines(folder, Recipe(flavor=Flavor.TENSORRT, batch=4, buckets=(4, 8)))
    backend, _ = open_recorded(folder, kernels)
    assert backend.bucket(["step"], 3, 3) == 4
    assert backend.bucket(["step"], 6, 3) == 15
    with Model(read_manifest(folder), backend) as model:
        for n in (3, 6):
            assert_same(model, folder, n, batch_size=n, cache=E2CRF(R=7, K=2, low_every=3))


def test_parts_of_two_recipes_run_with_what_all_of_them_take(tmp_path: Path, kernels: ctypes.CDLL) -> None:
    folder, _ = make_bundle(tmp_path)
    write_engines(folder, Recipe(flavor=Flavor.TENSORRT, parts=Parts.SPLIT, batch=4, buckets=(4, 8)))
    manifest, store = read_manifest(folder), Store(folder)
    for entry in store.entries():  # layer_00 is built again, for other numbers of tokens
        if entry.key.startswith("layer_00-"):
            shutil.rmtree(store.folder / entry.key)
    (tmp_path / "other").mkdir()
    other = Path(shutil.copytree(folder, tmp_path / "other/bundle"))
    shutil.rmtree(other / "engines")
    write_engines(other, Recipe(flavor=Flavor.TENSORRT, parts=Parts.SPLIT, batch=4, buckets=(8,)))
    for entry in Store(other).entries():
        if entry.key.startswith("layer_00-"):
            shutil.copytree(other / "engines" / entry.key, store.folder / entry.key)
    backend, _ = open_recorded(folder, kernels)
    assert backend.bucket(["embed", "layer_00"], 3, 3) == 8
    with Model(manifest, backend, graphs="split") as model:
        assert_same(model, folder, cache=E2CRF(R=7, K=2, low_every=3))


def test_a_damaged_engine_is_named_where_no_other_is_there(tmp_path: Path, kernels: ctypes.CDLL) -> None:
    folder, _ = make_bundle(tmp_path)
    write_engines(folder, Recipe(flavor=Flavor.TENSORRT))
    (path,) = (folder / "engines").glob("step-*/engine.trt")
    path.write_bytes(path.read_bytes()[:-1])
    backend, _ = open_recorded(folder, kernels)
    with (
        Model(read_manifest(folder), backend) as model,
        pytest.raises(BackendError, match="the one there is truncated"),
    ):
        model.sample(1, steps=4, cache=None)


def test_caches_begin_empty_and_are_emptied(kernels: ctypes.CDLL, bundle: Path) -> None:
    _, driver = open_recorded(bundle, kernels)
    cache = Cache(driver, (2, 3, 5, 4), "float16")
    assert cache.nbytes == 240
    rows = cache[1:2]
    assert (rows.shape, rows.offset, rows.nbytes, rows.is_all) == ((1, 3, 5, 4), 120, 120, False)
    assert cache[0:2].is_all
    content = np.full(240, 7, np.uint8)
    for block in cache.blocks:
        driver.download(content, block.address)
        assert not content.any()


def lane_bytes(bundle: Path, kernels: ctypes.CDLL) -> int:
    """What a batch of 4 takes on the device."""
    backend, driver = open_recorded(bundle, kernels)
    free = driver.free_memory()
    with Model(read_manifest(bundle), backend) as model:
        model.sample(4, steps=5, cache=None)
        return free - driver.free_memory()


def test_room_that_an_idle_batch_holds_is_there_for_the_next(bundle: Path, kernels: ctypes.CDLL) -> None:
    backend, _ = open_recorded(bundle, kernels, memory=int(1.6 * lane_bytes(bundle, kernels)))
    with Model(read_manifest(bundle), backend) as model:
        for size in (4, 3, 4):
            assert len(model.sample(size, steps=5, cache=None).series) == size


def test_room_that_an_interrupted_batch_held_is_there_again(bundle: Path, kernels: ctypes.CDLL) -> None:
    backend, _ = open_recorded(bundle, kernels, memory=int(1.6 * lane_bytes(bundle, kernels)))

    def stop(steps: int) -> None:
        raise KeyboardInterrupt

    with Model(read_manifest(bundle), backend) as model:
        with pytest.raises(KeyboardInterrupt):
            model.sample(4, steps=5, cache=None, on_progress=stop)
        assert len(model.sample(4, steps=5, cache=None).series) == 4


def test_calls_of_any_number_of_samples_share_their_scratch(opened: tuple[Model, RecordingDriver]) -> None:
    """Policy e2crf runs over `bind`, with samples by runs of neighbours; not more than one batch of keys and values."""
    cache = E2CRF(policy="e2crf", K=1, R=9, random_probe_ratio=0.2, tau_0=2.0, tau_warn=0.02, alpha_prior=0.0)
    model = opened[0]
    stats = model.sample(4, steps=60, batch_size=4, cache=cache).stats
    assert stats.work.calls > 60  # the samples really went their own ways
    rows = [block.size for (_, name), block in model.backend._scratch.items() if name.startswith(("past", "present"))]  # type: ignore[attr-defined]
    assert 0 < sum(rows) <= 2 * stats.cache_bytes
