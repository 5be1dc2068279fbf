"""What the sampler promises about batches, caching and counting, on real bundles in ONNX Runtime."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.checkpoint import Checkpoint
from export.manifest import read_manifest
from export.reference import TorchBackend
from runtime.backends.ort import OrtBackend
from runtime.cache.options import E2CRF
from runtime.cache.policy import UNFITTED, Decision, Event, TokenFacts, steps_of
from runtime.errors import BackendError, OptionError
from runtime.sampler import Interrupted, Model, StepInfo, load
from runtime.sde import VP
from tests.tiny import gaussian, make_bundle

EVERY_STEP = E2CRF(R=1, alpha_prior=0.0)
pytestmark = pytest.mark.filterwarnings("ignore::runtime.errors.CacheWarning")  # small caches; held elsewhere


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Checkpoint]]:
    folder, checkpoint = make_bundle(tmp_path_factory.mktemp("tiny"))
    with load(folder) as model:
        yield model, checkpoint


@pytest.mark.parametrize("graphs", ["step", "split"])
@pytest.mark.parametrize(("num_tokens", "num_channels"), [(15, 1), (16, 3), (15, 2)])
def test_score_is_that_of_the_pytorch_network(tmp_path: Path, num_tokens: int, num_channels: int, graphs: str) -> None:
    """Oracle: the torch module, N even and odd, one and several channels; relative tolerance 1e-4 of float32."""
    folder, checkpoint = make_bundle(tmp_path, num_tokens=num_tokens, num_channels=num_channels)
    rng = np.random.default_rng(0)
    with load(folder, graphs=graphs) as model:
        for batch in (1, 7, 64):
            z = rng.standard_normal((batch, num_tokens, num_channels)).astype(np.float32)
            t = rng.uniform(1e-5, 1, batch).astype(np.float32)
            expected = TorchBackend(checkpoint.network).run("step", {"z": z, "t": t})["score"]
            np.testing.assert_allclose(model.score(z, t), expected, atol=1e-4 * np.abs(expected).max())


def test_refreshing_every_step_is_the_uncached_sampler_bit_for_bit(tiny: tuple[Model, Checkpoint]) -> None:
    model, _ = tiny
    for solver in ("ancestral", "euler_maruyama"):
        uncached = model.sample(3, steps=12, solver=solver, cache=None).series
        assert np.array_equal(uncached, model.sample(3, steps=12, solver=solver, cache=EVERY_STEP).series)


@pytest.mark.parametrize("cache", [None, E2CRF(R=6, K=2, low_every=2)])
def test_exactly_n_samples_and_each_the_same_in_any_batch(tiny: tuple[Model, Checkpoint], cache: E2CRF | None) -> None:
    """Oracle: the same samples drawn one by one; 1e-4 of the data's scale, what float32 matmuls leave."""
    model, _ = tiny
    many = model.sample(250, steps=20, cache=cache, batch_size=100).series
    assert many.shape == (250, 15, 2)
    for n in (1, 7):
        assert len(model.sample(n, steps=20, cache=cache, batch_size=100).series) == n
    for k in (0, 99, 100, 249):
        alone = model.sample(1, steps=20, cache=cache, first_sample=k).series[0]
        np.testing.assert_allclose(many[k], alone, atol=1e-4 * np.abs(many).max())


def test_nothing_leaks_from_one_trajectory_into_the_next(tiny: tuple[Model, Checkpoint]) -> None:
    """Bitwise: the same call again, after other calls with other seeds and caches."""
    model, _ = tiny
    first = model.sample(4, steps=15, seed=1, cache=E2CRF(R=5)).series
    model.sample(9, steps=8, seed=2, cache=E2CRF(R=3, K=0))
    assert np.array_equal(first, model.sample(4, steps=15, seed=1, cache=E2CRF(R=5)).series)


def test_a_second_call_binds_nothing_anew_and_other_threads_do_not_meet(
    tiny: tuple[Model, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bound = tiny[0], list[str]()
    bind = model.backend.bind
    cache = E2CRF(R=5, K=2, low_every=2)
    alone = [model.sample(2, steps=20, seed=seed, cache=cache).series for seed in range(6)]
    monkeypatch.setattr(model.backend, "bind", lambda graph, *buffers: bound.append(graph) or bind(graph, *buffers))
    for _ in range(3):
        model.sample(2, steps=20, cache=cache)
    assert bound == []
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: model.sample(2, steps=20, seed=seed, cache=cache).series, range(6)))
    np.testing.assert_array_equal(together, alone)


OWN_WAYS = E2CRF(policy="e2crf", K=2, R=20, tau_0=0.3, random_probe_ratio=0.2, tau_safe=0.0, tau_warn=100.0,
                 alpha_prior=0.0)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"n": 20, "batch_size": 8, "cache": E2CRF(R=5, K=2, low_every=2)},  # batches of 8, 8 and 4
        {"n": 16, "batch_size": 16, "cache": OWN_WAYS},  # sets of every sample's own
    ],
    ids=["a batch that is not full", "samples on their own ways"],
)
def test_a_second_call_of_several_batches_binds_nothing_anew(
    tiny: tuple[Model, Checkpoint], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    model, bound = tiny[0], list[str]()
    bind, n = model.backend.bind, options.pop("n")
    monkeypatch.setattr(model.backend, "bind", lambda graph, *buffers: bound.append(graph) or bind(graph, *buffers))
    model.sample(n, steps=60, **options)
    assert len(bound) > 1
    bound.clear()
    model.sample(n, steps=60, **options)
    assert bound == []


@pytest.mark.parametrize("graphs", ["step", "split"])
@pytest.mark.parametrize("compiled", [True, False])
def test_nothing_is_read_of_what_an_earlier_batch_left_in_the_caches(
    tmp_path: Path, graphs: str, *, compiled: bool
) -> None:
    """Bit for bit, with caches full of NaN before the first step."""
    folder, _ = make_bundle(tmp_path)
    manifest = read_manifest(folder)
    options: dict[str, Any] = {"steps": 20, "batch_size": 2, "cache": E2CRF(policy="e2crf", K=2, R=6)}
    with Model(manifest, OrtBackend(folder, manifest.graphs, compiled=compiled), graphs=graphs) as model:
        expected = model.sample(2, **options).z
        with model.network(2) as network:
            for array in (*network.keys, *network.values):
                assert np.any(array)
                array.fill(np.nan)
        assert np.array_equal(model.sample(2, **options).z, expected)


def test_prepared_calls_do_not_pile_up(tiny: tuple[Model, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the buffers of three calls there is room; what was asked for longest ago goes first."""
    num_tokens = tiny[0].manifest.network.num_tokens
    with tiny[0].network(8) as network:
        calls = [network.call(num_tokens, 0, last) for last in (6, 7)]
        monkeypatch.setattr("runtime.score._KEPT_BYTES", sum(call.nbytes for call in calls) + calls[1].nbytes)
        assert network.call(num_tokens, 0, 5) is network.call(num_tokens, 0, 5)
        assert network.call(num_tokens, 0, 6) is calls[0]
        network.call(num_tokens, 0, 8)
        assert network.call(num_tokens, 0, 6) is calls[0]
        assert network.call(num_tokens, 0, 7) is not calls[1]
        for last in range(1, 9):
            network.call(num_tokens, 0, last)
        held = sum(call.nbytes for call in network._calls.values())
        assert held == network._call_bytes <= sum(call.nbytes for call in calls) + calls[1].nbytes


def test_step_and_split_graphs_draw_the_same_samples(tmp_path: Path) -> None:
    """1e-5 of the scale: the same kernels in another grouping."""
    folder, _ = make_bundle(tmp_path)
    cache = E2CRF(R=6, K=2, low_every=2)
    one, other = (load(folder, graphs=graphs).sample(3, steps=20, cache=cache).series for graphs in ("step", "split"))
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_one_thread_draws_the_same_samples(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    one, other = (load(folder, threads=threads).sample(3, steps=10).series for threads in (1, 2))
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_cache_memory_is_its_formula_and_the_rest_small(tiny: tuple[Model, Checkpoint]) -> None:
    model, _ = tiny
    network, batch = model.manifest.network, 5
    stats = model.sample(12, steps=10, batch_size=batch).stats
    assert stats.cache_bytes == network.num_layers * 2 * batch * network.num_tokens * network.d_model * 4
    assert stats.state_bytes < 20 * 4 * batch * network.num_tokens * (network.num_channels + 2)


def test_statistics_count_what_the_backend_ran() -> None:
    """Oracle: the calls of a fake backend; an empty step makes none."""
    made = gaussian(10, VP(), "frequency")
    stats = made.model.sample(3, steps=100, cache=E2CRF(R=7, K=0), batch_size=2).stats
    counts = stats.event_counts
    assert sum(counts.values()) == 300
    assert counts["prior"] == 3 * sum(VP().alpha(t) < 0.2 for t in np.linspace(1, 1e-5, 100))
    assert counts["first"] == 3
    assert made.backend.calls["step"] == (counts["first"] + counts["refresh"]) / 3 * 2  # two batches
    assert stats.passes == pytest.approx((counts["first"] + counts["refresh"]) / 3)
    assert stats.hit_rate == pytest.approx(1 - stats.passes / 100)
    assert stats.heatmap().shape == (6, 100)
    assert stats.heatmap().max() == 1.0


def test_low_steps_count_and_renew_only_the_low_frequencies(tiny: tuple[Model, Checkpoint]) -> None:
    stats = tiny[0].sample(2, steps=40, cache=E2CRF(R=10**6, K=2, low_every=3, alpha_prior=0.0)).stats
    heat = stats.heatmap()
    assert heat[:, 0].min() == 1.0  # the first network step computes all
    assert np.array_equal(np.flatnonzero(heat[0, 1:]) + 1, np.arange(3, 40, 3))
    assert heat[2:, 1:].max() == 0.0
    assert np.array_equal(heat[0], heat[1])  # both tokens of a frequency go together


def test_a_partial_step_computes_what_the_full_step_would(tiny: tuple[Model, Checkpoint]) -> None:
    """When all tokens are 'low', partial steps are full steps: 1e-5 of the scale, another order of tokens."""
    model, _ = tiny
    low = model.sample(3, steps=20, cache=E2CRF(R=10**6, K=8, low_every=1, alpha_prior=0.0)).series
    full = model.sample(3, steps=20, cache=None).series
    np.testing.assert_allclose(low, full, atol=1e-5 * np.abs(full).max())


@pytest.mark.parametrize("reuse", UNFITTED)
def test_every_reuse_mode_approaches_the_uncached_samples_as_R_shrinks(reuse: str) -> None:
    """A Gaussian under the same noise; the error falls with R, and vanishes at R = 1."""
    made = gaussian(12, VP(), "frequency")
    exact = made.model.sample(64, steps=200, cache=None).series
    errors = [
        np.sqrt(np.mean((made.model.sample(64, steps=200, cache=E2CRF(R=R, K=0, reuse=reuse)).series - exact) ** 2))
        for R in (1, 4, 16)
    ]
    assert errors[0] < 0.05 if reuse != "feature" else errors[0] < 0.3  # the prior phase remains
    assert errors[1] <= errors[2] + 1e-3


def test_residual_reuse_keeps_the_covariance_of_a_gaussian_and_stale_data_does_not() -> None:
    """At a twentieth of the passes. Oracle: the covariance; 15 % of the largest variance is five standard errors."""
    made = gaussian(12, VP(), "frequency")
    scale = made.covariance.max()

    def miss(reuse: str) -> float:
        cache = E2CRF(R=12, K=0, reuse=reuse)
        series = made.model.sample(4000, steps=200, cache=cache, batch_size=4000).series[:, :, 0]
        return float(np.abs(np.cov(series.T) - made.covariance).max() / scale)

    assert miss("residual") < 0.15 < miss("data")


@pytest.mark.parametrize(("solver", "grid"), [("ddim", "uniform"), ("dpmpp_2m", "logsnr"), ("dpmpp_2m_sde", "logsnr")])
def test_samples_of_every_quick_solver_have_the_mean_and_covariance_of_their_gaussian(solver: str, grid: str) -> None:
    """Oracle: the mean and covariance the model was made from; N odd, uncached and with a cache.

    Tolerances: five standard errors of 4,000 samples, plus 3 % of the largest variance for 60 steps.
    """
    made, count = gaussian(11, VP(), "frequency"), 4000
    scale = made.covariance.max()
    for cache in (None, E2CRF(R=2, K=0, alpha_prior=0.05)):
        drawn = made.model.sample(count, steps=60, solver=solver, grid=grid, cache=cache, batch_size=count)
        series = drawn.series[:, :, 0]
        np.testing.assert_allclose(series.mean(axis=0), made.mean, atol=5 * np.sqrt(scale / count))
        allowed = 5 * scale * np.sqrt(2 / count) + 0.03 * scale
        np.testing.assert_allclose(np.cov(series.T), made.covariance, atol=allowed)
        assert drawn.stats.num_diverged == 0


def test_the_fake_backend_samples_a_bundle(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    with load(folder, backend="fake") as model:
        series = model.sample(2000, steps=100, cache=E2CRF(K=0)).series
    std = np.asarray(model.manifest.standardisation.std)
    frequency_std = np.std(np.fft.rfft(series, axis=1, norm="ortho").real[:, 1], axis=0)
    np.testing.assert_allclose(frequency_std, std[1], rtol=0.1)  # six standard errors


def test_writing_the_cache_in_place_equals_writing_beside_it(tmp_path: Path) -> None:
    """No document promises that ONNX Runtime allows it, so it is held here: bitwise."""
    folder, _ = make_bundle(tmp_path)
    backend = OrtBackend(folder, load(folder).manifest.graphs)
    rng, cache = np.random.default_rng(0), (2, 3, 15, 4)
    given_ = {
        "hidden": rng.standard_normal((2, 4, 12), np.float32),
        "token": np.array([[3, 1, 14, 0], [7, 8, 2, 5]]),
        "past_key": rng.standard_normal(cache, np.float32),
        "past_value": rng.standard_normal(cache, np.float32),
    }
    expected = backend.run("layer_00", given_)
    buffers = {name: array.copy() for name, array in given_.items()}
    out = np.zeros_like(expected["hidden_out"])
    outputs = {"hidden_out": out, "present_key": buffers["past_key"], "present_value": buffers["past_value"]}
    backend.bind("layer_00", buffers, outputs)()
    assert np.array_equal(out, expected["hidden_out"])
    assert np.array_equal(buffers["past_key"], expected["present_key"])
    assert np.array_equal(buffers["past_value"], expected["present_value"])


def test_diverged_samples_are_counted(tiny: tuple[Model, Checkpoint]) -> None:
    made = gaussian(8, VP(), "frequency")
    original = made.backend._functions["step"]
    for spoilt in (np.nan, 1e38):  # the second one overflows; warnings are errors here
        made.backend._functions["step"] = lambda feeds, by=spoilt: {"score": original(feeds)["score"] * np.float32(by)}
        assert made.model.sample(5, steps=5, cache=None).stats.num_diverged == 5
    assert tiny[0].sample(5, steps=50).stats.num_diverged == 0


def test_on_step_hears_every_step(tiny: tuple[Model, Checkpoint]) -> None:
    heard: list[StepInfo] = []
    tiny[0].sample(3, steps=7, batch_size=2, on_step=heard.append)
    assert [(info.first_sample, info.batch, info.index) for info in heard] == [
        *((0, 2, i) for i in range(7)),
        *((2, 1, i) for i in range(7)),
    ]


def test_ctrl_c_keeps_the_finished_batches(tiny: tuple[Model, Checkpoint]) -> None:
    model, _ = tiny

    def stop(info: StepInfo) -> None:
        if info.first_sample == 4 and info.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        model.sample(6, steps=7, batch_size=2, on_step=stop)
    assert caught.value.samples is not None
    assert np.array_equal(
        caught.value.samples.series, model.sample(4, steps=7, batch_size=2, on_step=lambda info: None).series
    )
    assert caught.value.samples.stats.num_samples == 4
    assert sum(caught.value.samples.stats.event_counts.values()) == 4 * 7


class Since:
    """The one signal that schedules look at."""

    def __init__(self, since_refresh: int | None) -> None:
        self.since_refresh = since_refresh


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 8), st.integers(1, 5), st.sampled_from([0.0, 0.2, 0.5]))
def test_interval_never_lets_a_token_grow_older_than_R(T: int, R: int, K: int, low_every: int, alpha: float) -> None:
    """Also: the first network step computes all, and once the network has begun there is no prior step."""
    frequency = np.array([*range(8), *range(1, 8)])
    steps = steps_of(VP(), np.linspace(1, 1e-5, T))
    policy = E2CRF(R=R, K=K, low_every=low_every, alpha_prior=alpha).concrete(TokenFacts(frequency), steps)
    refreshed: int | None = None
    for i in range(T):
        decision = policy(steps[i], Since(None if refreshed is None else i - refreshed))  # type: ignore[arg-type]
        assert isinstance(decision, Decision)
        if decision.event.is_full:
            assert (decision.event is Event.FIRST) == (refreshed is None)
            refreshed = i
        elif decision.event is Event.PRIOR:
            assert refreshed is None
        else:
            assert refreshed is not None
            assert i - refreshed < R
            if decision.tokens is not None:
                assert set(frequency[decision.tokens]) == set(range(K))


@pytest.mark.parametrize(
    "more",
    [{"R": 5}, {"alpha_prior": 0.1}, {"K": 5}, {"low_every": 1}, {"max_age": 5}],
    ids=lambda knob: next(iter(knob)),
)
def test_each_knob_recomputes_more_in_its_stated_direction(
    tiny: tuple[Model, Checkpoint], more: dict[str, Any]
) -> None:
    """Of policy interval; the docstring of `cache.options` names the directions."""
    base = E2CRF(R=10, K=2, low_every=4, alpha_prior=0.3)
    passes, more_passes = (
        tiny[0].sample(1, steps=100, cache=cache).stats.passes for cache in (base, replace(base, **more))
    )
    assert more_passes > passes


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"policy": "sometimes"}, "known ones are never, interval, e2crf"),
        ({"reuse": "latents"}, "known ones are feature, feature-linear, noise-linear, data"),
        ({"R": 0}, "R must be a whole number of at least 1"),
        ({"K": -1}, "K must be a number of frequencies"),
        ({"K": "5"}, "K must be a number, found '5'"),
        ({"policy": "e2crf", "tau_0": "low"}, "tau_0 must be a number, found 'low'"),
        ({"alpha_prior": None}, "alpha_prior must be a number, found None"),
        ({"R": "10"}, "R must be a whole number of at least 1"),
        ({"low_every": 0}, "low_every must be a whole number of at least 1"),
        ({"alpha_prior": float("nan")}, "alpha_prior must lie in"),
        ({"alpha_prior": 1.0}, "alpha_prior must lie in"),
    ],
)
def test_impossible_cache_options_are_refused(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        E2CRF(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"n": 0}, "number of samples must be at least 1"),
        ({"n": -2}, "number of samples must be at least 1"),
        ({"n": 1, "steps": 0}, "steps must be at least 1"),
        ({"n": 1, "steps": 10**9}, "steps must be at most 100000, found 1000000000; the reference uses 1000"),
        ({"n": 1, "solver": "rk4"}, "known ones are euler_maruyama, ancestral, ddim"),
        ({"n": 1, "batch_size": 0}, "batch_size must be at least 1"),
        ({"n": 1, "seed": -1}, "seed must be an integer"),
        ({"n": 1, "cache": E2CRF(K=16)}, "K must not exceed the 8 frequencies"),
        ({"n": 1, "cache": "e2crf"}, r"cache must be E2CRF\(\.\.\.\).*found 'e2crf'"),
        ({"n": 1, "seed": 1.5}, "the seed must be a whole number, found 1.5; leave out what follows the point"),
        ({"n": 1, "seed": None}, "the seed must be a whole number, found None; give an integer"),
        ({"n": 2.5}, "the number of samples must be a whole number, found 2.5"),
        ({"n": 1, "steps": "20"}, "steps must be a whole number, found '20'; give an integer"),
        ({"n": 1, "batch_size": 2.5}, "batch_size must be a whole number"),
        ({"n": 2, "first_sample": 2**63 - 1}, r"nor the last one above 2\^63"),
    ],
)
def test_impossible_calls_are_refused(tiny: tuple[Model, Checkpoint], call: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        tiny[0].sample(**call)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64])
def test_numbers_of_numpy_are_numbers(tiny: tuple[Model, Checkpoint], kind: type[np.integer[Any]]) -> None:
    options = {"steps": 12, "cache": E2CRF(policy="e2crf", K=1, R=4)}
    expected = tiny[0].sample(2, seed=3, batch_size=2, **options).z  # type: ignore[arg-type]
    found = tiny[0].sample(kind(2), seed=kind(3), batch_size=kind(2), **options).z  # type: ignore[arg-type]
    assert np.array_equal(found, expected)


def test_the_last_samples_that_can_be_numbered_differ(tiny: tuple[Model, Checkpoint]) -> None:
    z = tiny[0].sample(2, steps=8, cache=None, first_sample=2**63 - 3).z
    assert not np.array_equal(z[0], z[1])


@pytest.mark.parametrize("t", [0.0, -1.0, 1.5, float("nan")])
def test_the_score_at_no_time_of_the_process_is_refused(tiny: tuple[Model, Checkpoint], t: float) -> None:
    with pytest.raises(OptionError, match=r"times must lie in \(0, 1\]"):
        tiny[0].score(np.zeros((1, 15, 2), np.float32), np.array([t]))


def test_scores_take_lists_and_refuse_what_is_not_real(tiny: tuple[Model, Checkpoint]) -> None:
    z = np.ones((1, 15, 2), np.float32)
    np.testing.assert_array_equal(tiny[0].score(z.tolist(), [0.5]), tiny[0].score(z, np.array([0.5])))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="z and t must be real numbers, found 'complex64 and float64'"):
        tiny[0].score(z.astype(np.complex64), np.array([0.5]))  # type: ignore[arg-type]


def test_a_call_that_finds_no_memory_is_told_in_a_sentence(
    tiny: tuple[Model, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def run_with_iobinding(self, *_: object) -> None:
            raise RuntimeError("bad allocation")

        def io_binding(self) -> Any:
            return self

        def bind_input(self, *_: object) -> None: ...
        def bind_output(self, *_: object) -> None: ...

    monkeypatch.setattr(OrtBackend, "_session", lambda *_: Full())
    with pytest.raises(BackendError, match=r"failed in graph step: bad allocation; .* take --batch-size \d+"):
        tiny[0].sample(19, steps=8, batch_size=19)


def test_wrong_shapes_for_score_are_refused(tiny: tuple[Model, Checkpoint]) -> None:
    z, t = np.zeros((2, 15, 2), np.float32), np.ones(2, np.float32)
    with pytest.raises(OptionError, match="z must have the shape"):
        tiny[0].score(z[:, :-1], t)
    with pytest.raises(OptionError, match="t must have the shape"):
        tiny[0].score(z, t[:1])


def test_unknown_backends_and_devices_are_refused(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    with pytest.raises(OptionError, match="known ones are onnxruntime, tensorrt"):
        load(folder, backend="torchscript")
    with pytest.raises(OptionError, match="runs on the cpu only"):
        load(folder, backend="fake", device="cuda")
    with pytest.raises(OptionError, match="known ones are cpu, cuda"):
        load(folder, device="tpu")
    with pytest.raises(OptionError, match="threads must be at least 1"):
        load(folder, threads=0)
    with pytest.raises(OptionError, match=r"^threads must be a whole number, found 1.5; leave out what follows"):
        load(folder, threads=1.5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"^threads must be a whole number, found '2'; give an integer$"):
        load(folder, threads="2")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="known ones are step, split"):
        load(folder, graphs="whole")
    with pytest.raises(BackendError, match="no graph 'layer_99'"):
        load(folder).backend.run("layer_99", {})


def test_low_frequencies_of_a_time_domain_model_are_refused() -> None:
    made = gaussian(10, VP(), "time")
    assert made.model.sample(2, steps=10).series.shape == (2, 10, 1)  # the default K is 0 there
    with pytest.raises(OptionError, match="tokens of this model are time steps"):
        made.model.sample(2, steps=10, cache=E2CRF(K=2))


def test_partial_steps_without_a_kv_cache_are_refused() -> None:
    made = gaussian(10, VP(), "frequency")
    with pytest.raises(OptionError, match="has no K/V cache"):
        made.model.sample(2, steps=100, cache=E2CRF(K=2, R=20))
