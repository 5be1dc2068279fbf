"""The rivals that answer steps in their own way: K/V-only caching and Taylor expansion, each held to its definition."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import gaussian, make_bundle

from bench.contenders import Contender, Way
from bench.kv_only import KvOnlyBackend, kv_share
from bench.rows import stored
from bench.taylor import TaylorBackend
from bench.whole_steps import WholeSteps
from export.manifest import Network
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.errors import OptionError
from runtime.output import write_samples
from runtime.sampler import Model, load
from runtime.sde import VP
from runtime.solvers import Solver

EVERY_STEP = E2CRF(policy="never", alpha_prior=0.2)
N, C = 15, 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("rivals"))[0]


@pytest.fixture(scope="module")
def tiny(bundle: Path) -> Iterator[Model]:
    with load(bundle, threads=1) as model:
        yield model


def kv_only(bundle: Path, tiny: Model, R: int = 10, K: int = 5) -> Model:
    return Model(tiny.manifest, KvOnlyBackend(bundle, tiny.manifest, R=R, K=K, threads=1))


def scores(model: Model, z: NDArray[np.float32], times: tuple[float, ...]) -> list[NDArray[np.float32]]:
    """What a trajectory of calls over one set of buffers answers: z [B, N, C] held still."""
    answers = []
    with model.network(len(z)) as network:
        call = network.call(N)
        for t in times:
            call.z[...], call.t[...] = z, t
            call.run()
            answers.append(call.score.copy())
    return answers


def some_z(batch: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((batch, N, C)).astype(np.float32)


@pytest.mark.parametrize(("R", "K"), [(1, 1), (10, 8)], ids=["all renewed at every step", "all frequencies low"])
def test_with_all_keys_and_values_renewed_the_network_is_the_plain_one(
    bundle: Path, tiny: Model, R: int, K: int
) -> None:
    """Oracle: the bundle's own step graph; 1e-6 of the largest value of a trajectory of 12 steps."""
    plain = tiny.sample(5, steps=12, solver="ddim", batch_size=2, cache=EVERY_STEP).z
    with kv_only(bundle, tiny, R, K) as model:
        drawn = model.sample(5, steps=12, solver="ddim", batch_size=2, cache=EVERY_STEP).z
    np.testing.assert_allclose(drawn, plain, atol=1e-6 * np.abs(plain).max())


def test_with_kept_keys_and_values_the_answer_is_near_and_not_exact(bundle: Path, tiny: Model) -> None:
    """Oracle: the plain network at both times. The second answer is off, yet by less than reusing the first one is."""
    z, times = some_z(), (0.5, 0.4)
    exact = scores(tiny, z, times)
    with kv_only(bundle, tiny, K=2) as model:
        first, second = scores(model, z, times)
    np.testing.assert_array_equal(first, exact[0])
    error = np.abs(second - exact[1]).max()
    assert 1e-4 < error < np.abs(exact[0] - exact[1]).max()


def test_a_kept_key_is_the_one_that_its_layer_had(bundle: Path, tiny: Model) -> None:
    """Renewing one frequency alone, at the time of the full step, changes nothing: all others kept the right ones."""
    z = some_z()
    with kv_only(bundle, tiny, K=1) as model:
        first, second = scores(model, z, (0.5, np.nextafter(np.float32(0.5), np.float32(0)).item()))
    np.testing.assert_allclose(second, first, atol=1e-4 * np.abs(first).max())  # a time that differs by one rounding


def test_keys_and_values_of_samples_are_not_mixed_nor_kept_from_batch_to_batch(bundle: Path, tiny: Model) -> None:
    """Oracle: the same samples in other batches, and drawn again; a stale cache or a neighbour's would show."""
    with kv_only(bundle, tiny) as model:
        together = model.sample(4, steps=15, solver="ddim", batch_size=4, cache=EVERY_STEP).z
        apart = model.sample(4, steps=15, solver="ddim", batch_size=1, cache=EVERY_STEP).z
        last = model.sample(1, steps=15, solver="ddim", first_sample=3, cache=EVERY_STEP).z
        again = model.sample(4, steps=15, solver="ddim", batch_size=4, cache=EVERY_STEP).z
    scale = np.abs(together).max()
    np.testing.assert_allclose(apart, together, atol=1e-5 * scale)
    np.testing.assert_array_equal(last[0], apart[3])
    np.testing.assert_array_equal(again, together)
    assert np.abs(together - tiny.sample(4, steps=15, solver="ddim", cache=EVERY_STEP).z).max() > 1e-3 * scale


def test_what_was_asked_before_a_trajectory_leaves_nothing_behind(bundle: Path, tiny: Model) -> None:
    """Asked at a higher time than the trajectory begins at, over the same buffers: only the sampler's word tells."""
    with kv_only(bundle, tiny) as model:
        fresh = model.sample(2, steps=15, solver="ddim", cache=EVERY_STEP).z
        model.score(some_z(2), np.array([0.9, 0.9]))
        np.testing.assert_array_equal(model.sample(2, steps=15, solver="ddim", cache=EVERY_STEP).z, fresh)


def test_k_v_only_caching_spares_three_per_cent_at_the_published_size(bundle: Path, tiny: Model) -> None:
    """Oracle: multiply-adds per token and layer: q, k, v, out 72^2 each, attention 2 x 187 x 72, MLP 2 x 72 x 2048."""
    published = Network("transformer", 187, 1, d_model=72, num_heads=12, num_layers=10, d_ff=2048)
    assert kv_share(published) == pytest.approx(2 * 72**2 / (4 * 72**2 + 2 * 187 * 72 + 2 * 72 * 2048))
    assert 0.03 < kv_share(published) < 0.031
    with kv_only(bundle, tiny, R=4, K=2) as model:
        backend = model.backend
        assert isinstance(backend, WholeSteps)
        stats = backend.true(model.sample(2, steps=9, cache=E2CRF(policy="never", alpha_prior=0.0)).stats, 64)
    share = 2 * 12 / (4 * 12 + 2 * N + 2 * 16)
    spared = 1 - 3 / N  # frequencies 0 and 1 are three tokens
    assert stats.passes == pytest.approx(9 - 6 * share * spared, abs=0.5 / (2 * N))
    assert stats.hit_rate == 0.0
    assert stats.cache_bytes == tiny.sample(2, steps=2, cache=None).stats.cache_bytes


def test_k_v_only_caching_refuses_what_it_cannot_serve(bundle: Path, tiny: Model) -> None:
    with pytest.raises(OptionError, match="R must be at least 1"):
        KvOnlyBackend(bundle, tiny.manifest, R=0)
    with pytest.raises(OptionError, match="needs a transformer"):
        KvOnlyBackend(bundle, gaussian(8, VP(), "frequency").model.manifest)


def published_expansion(values: dict[int, NDArray[np.float64]], k: int, order: int) -> NDArray[np.float64]:
    """Step k by TaylorSeer's own recursion over step numbers, from what was computed at steps before k, in float64."""
    factors: list[NDArray[np.float64]] = []
    last = 0
    for step in sorted(step for step in values if step < k):
        updated = [values[step]]
        for i in range(order):
            if i >= len(factors):
                break
            updated.append((updated[i] - factors[i]) / (step - last))
        factors, last = updated, step
    return np.asarray(sum(f * (k - last) ** i / math.factorial(i) for i, f in enumerate(factors)))


@pytest.mark.parametrize("of_noise", [False, True], ids=["score", "noise"])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_steps_in_between_are_those_of_the_published_recursion(tiny: Model, order: int, of_noise: bool) -> None:
    """Oracle: TaylorSeer's formulas in step numbers on an even time grid, over the plain network's own answers."""
    times = tuple(0.6 - 0.02 * np.arange(12))
    z, computed = some_z(), (0, 2, 5, 8)
    plain = scores(tiny, z, times)
    scale = VP().sigma(np.asarray(times)) if of_noise else np.ones(len(times))
    values = {k: plain[k].astype(np.float64) * scale[k] for k in computed}
    model = Model(tiny.manifest, TaylorBackend(tiny.backend, tiny.manifest, computed, order, of_noise=of_noise))
    for _ in range(2):  # the second trajectory begins anew
        for k, found in enumerate(scores(model, z, times)):
            exact = plain[k] if k in computed else published_expansion(values, k, order) / scale[k]
            np.testing.assert_allclose(found, exact, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize(("reuse", "of_noise"), [("feature-linear", False), ("noise-linear", True)])
@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
def test_order_one_is_a_reuse_mode_of_the_runtime(tiny: Model, reuse: str, of_noise: bool, solver: str) -> None:
    """The same refreshes in runs of steps taken at once and step by step in the backend; 1e-4 of the largest value."""
    plan = Plan(source_digest=tiny.manifest.source.digest, steps=40, solver=solver, reuse=reuse, refreshes=(16, 22, 30))
    leaping = tiny.sample(3, steps=40, solver=solver, cache=plan)
    backend = TaylorBackend(tiny.backend, tiny.manifest, (0, 6, 14), order=1, of_noise=of_noise)
    signal = VP().alpha(1.0 - 15.5 / 39)
    stepping = Model(tiny.manifest, backend).sample(
        3, steps=40, solver=solver, cache=E2CRF(policy="never", alpha_prior=float(signal))
    )
    np.testing.assert_allclose(stepping.z, leaping.z, atol=1e-4 * np.abs(leaping.z).max())
    told, oracle = backend.true(stepping.stats, 64), leaping.stats
    assert (told.passes, told.hit_rate, told.event_counts) == (oracle.passes, oracle.hit_rate, oracle.event_counts)
    assert (told.work.calls, told.work.full_calls) == (oracle.work.calls, oracle.work.full_calls)
    for name in ("recomputed", "sample_tokens", "sample_events", "age"):
        np.testing.assert_array_equal(getattr(told, name), getattr(oracle, name), err_msg=name)


def test_expanding_the_score_is_expanding_the_features_of_the_last_layer(tiny: Model) -> None:
    """Oracle: the published recursion over z_L, put through the bundle's own head."""
    z, times, computed = some_z(), tuple(0.6 - 0.02 * np.arange(8)), (0, 2, 5)
    features = {}
    for k in computed:
        with tiny.network(len(z)) as network:
            call = network.call(N, features=True)
            call.z[...], call.t[...] = z, times[k]
            call.run()
            assert call.hidden is not None
            features[k] = call.hidden.astype(np.float64)
    expanded = published_expansion(features, 7, order=2).astype(np.float32)
    exact = tiny.backend.run("head", {"hidden": expanded})["score"]
    model = Model(tiny.manifest, TaylorBackend(tiny.backend, tiny.manifest, computed, order=2))
    np.testing.assert_allclose(scores(model, z, times)[7], exact, atol=1e-4 * np.abs(exact).max())


def test_with_every_step_computed_nothing_changes(tiny: Model) -> None:
    every = TaylorBackend(tiny.backend, tiny.manifest, tuple(range(20)), order=2)
    drawn = Model(tiny.manifest, every).sample(2, steps=20, solver=Solver.DPMPP_2M, cache=EVERY_STEP).z
    np.testing.assert_array_equal(drawn, tiny.sample(2, steps=20, solver=Solver.DPMPP_2M, cache=EVERY_STEP).z)


def test_an_expansion_needs_a_first_value_and_an_order(tiny: Model) -> None:
    with pytest.raises(OptionError, match="first network step must be computed"):
        TaylorBackend(tiny.backend, tiny.manifest, (1, 2), order=1)
    with pytest.raises(OptionError, match="order must not be negative"):
        TaylorBackend(tiny.backend, tiny.manifest, (0,), order=-1)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"backend": "fake"}, "must hold samples of the model, found 'some of backend fake'"),
        ({"precision": "fp16"}, "must hold samples of the bundle in fp32, found 'fp16'"),
    ],
)
def test_samples_that_another_network_drew_are_not_the_uncached_ones(
    tiny: Model, tmp_path: Path, facts: dict[str, str], says: str
) -> None:
    uncached = Contender(Way.UNCACHED, tiny, None, 8, Solver.DDIM, 0)
    drawn = uncached.draw(2, 2)
    own = {"source_digest": tiny.manifest.source.digest, "steps": 8, "solver": "ddim", "grid": "uniform", "seed": 0,
           "first_sample": 0, "cache": None, "backend": "onnxruntime", "precision": "fp32"}  # fmt: skip
    for name, made in (("own.npz", own), ("other.npz", own | facts)):
        write_samples(tmp_path / name, drawn, made)
    assert np.array_equal(stored([tmp_path / "own.npz"], uncached)[0], drawn.series)
    with pytest.raises(OptionError, match=says):
        stored([tmp_path / "other.npz"], uncached)
