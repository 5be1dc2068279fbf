"""The rivals of a cached contender: what each of them is, that it costs as much, and that the best form is chosen."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import gaussian, make_bundle

from bench.contenders import (
    FEW_STEP_SOLVERS,
    TAYLOR_STEPS,
    Contender,
    Way,
    each_solver,
    fewer_steps,
    fixed_interval,
    miss_from,
    prior_of,
    rivals_of,
    taylor,
    whole_passes,
)
from bench.reference import Reference
from runtime.cache.options import E2CRF
from runtime.cache.plan import Plan
from runtime.sampler import Model, load
from runtime.sde import VP
from runtime.solvers import Solver, TimeGrid

STEPS, PASSES = 60, 4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(make_bundle(tmp_path_factory.mktemp("contenders"))[0], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def cached(tiny: Model) -> Contender:
    plan = Plan(source_digest=tiny.manifest.source.digest, steps=STEPS, solver=Solver.DDIM,
                refreshes=(24, 36, 46, 54), surprise=(0.001, 0.1, 0.1, 0.1))  # fmt: skip
    return Contender(Way.CACHED, tiny, plan, STEPS, Solver.DDIM, 0)


def reference(model: Model) -> Reference:
    network = model.manifest.network
    real = np.random.default_rng(0).standard_normal((40, network.num_tokens, network.num_channels)).astype(np.float32)
    return Reference(real[:20], real[20:])


def drawn_rivals(cached: Contender, passes: float = PASSES) -> dict[Way, tuple[Contender, float]]:
    """Every rival by its way, and the passes it took; the first variant of each is called the best."""
    plain = replace(cached, way=Way.UNCACHED, cache=None, solver=Solver.ANCESTRAL)
    few = fewer_steps(cached, Solver.DPMPP_2M, TimeGrid.UNIFORM, whole_passes(passes))
    with rivals_of(cached, passes, plain, few, lambda rival: 0.0, threads=1) as rivals:
        found = {rival.way: (rival, rival.draw(3, 2).stats.passes) for rival in rivals}
    assert len(found) == len(rivals)  # each names a row of its own
    return found


@pytest.fixture(scope="module")
def found(cached: Contender) -> dict[Way, tuple[Contender, float]]:
    return drawn_rivals(cached)


def test_every_rival_costs_what_the_cache_costs_or_says_that_it_cannot(
    found: dict[Way, tuple[Contender, float]],
) -> None:
    assert set(found) == {
        Way.INTERVAL, Way.STALE, Way.TAYLOR, Way.TAYLOR_SECOND, Way.TAYLOR_PLANNED, Way.KV_FEWER, Way.KV_ONLY,
        Way.PUBLISHED,
    }  # fmt: skip
    for way, (_, passes) in found.items():
        if way.has_own_cost:
            assert passes > 2 * PASSES, way
        elif way is Way.KV_FEWER:  # spares what it can
            assert PASSES - 1 < passes < PASSES
        else:
            assert passes == PASSES, way


def test_the_published_form_is_the_readme_preset_as_it_stands(found: dict[Way, tuple[Contender, float]]) -> None:
    published, _ = found[Way.PUBLISHED]
    assert published.cache == E2CRF.preset("readme")
    assert isinstance(published.cache, E2CRF)
    assert (published.cache.reuse, published.cache.alpha_prior) == ("feature", 0.0)
    assert (published.steps, published.solver) == (STEPS, Solver.ANCESTRAL)  # of the uncached contender


def test_taylor_rivals_reuse_what_they_are_named_for_and_drop_the_guard(
    cached: Contender, found: dict[Way, tuple[Contender, float]]
) -> None:
    at_plan, even = (found[way][0].cache for way in (Way.TAYLOR_PLANNED, Way.TAYLOR))
    assert isinstance(at_plan, Plan)
    assert isinstance(even, Plan)
    assert isinstance(cached.cache, Plan)
    assert at_plan == replace(cached.cache, reuse="feature-linear", surprise=())
    assert even.reuse == "feature-linear"
    intervals = np.diff([*even.refreshes, even.steps])
    assert intervals.max() - intervals.min() <= 1


@pytest.mark.parametrize("steps", [TAYLOR_STEPS, 1000])
@pytest.mark.parametrize("passes", [1, 2, 3, 5, 7])
def test_taylor_takes_as_many_passes_as_it_may_and_begins_where_the_prior_phase_ends(
    cached: Contender, steps: int, passes: int
) -> None:
    """Oracle: alpha of VP on the even time grid."""
    rival = taylor(cached, passes, steps, 1, of_noise=True)
    assert isinstance(rival.cache, Plan)
    first = rival.cache.refreshes[0]
    at_plan = VP().alpha(np.linspace(1.0, 1e-5, STEPS)[24])
    signal = VP().alpha(np.linspace(1.0, 1e-5, steps)[[first - 1, first]])
    assert signal[0] < at_plan <= signal[1] * (1 + 1e-9)
    assert len(rival.cache.refreshes) == passes


def test_second_order_is_left_out_where_it_would_be_the_first(cached: Contender) -> None:
    assert Way.TAYLOR_SECOND in drawn_rivals(cached, 3.0)
    assert Way.TAYLOR_SECOND not in drawn_rivals(cached, 2.0)


def test_without_keys_and_values_only_rivals_of_whole_steps_are_left() -> None:
    made = gaussian(12, VP(), "frequency").model
    cached = Contender(Way.CACHED, made, E2CRF(R=10, K=0), STEPS, Solver.DDIM, 0)
    ways = set(drawn_rivals(cached))
    assert ways == {Way.INTERVAL, Way.STALE, Way.TAYLOR, Way.TAYLOR_SECOND, Way.TAYLOR_PLANNED}


def test_every_solver_has_one_row_in_its_best_grid_at_equal_passes(cached: Contender) -> None:
    """Oracle: a measure made up for the test, which likes another grid for every solver."""
    ranks = {pair: float((7 * index) % 15) for index, pair in enumerate(FEW_STEP_SOLVERS)}

    def miss(rival: Contender) -> float:
        return ranks[Solver(rival.solver), TimeGrid(rival.grid)]

    found = each_solver(cached, PASSES, miss)
    assert [one.solver for _, one in found] == list(Solver)
    for missed, one in found:
        own = {grid: rank for (solver, grid), rank in ranks.items() if solver == one.solver}
        assert missed == own[TimeGrid(one.grid)] == min(own.values())
        assert one.draw(2, 2).stats.passes == PASSES
    names = [one.name for _, one in found]
    assert names == [f"onnxruntime, fewer steps of {solver}" for solver in Solver]


def test_the_best_two_of_few_steps_choose_their_prior_phase(cached: Contender) -> None:
    """A measure that likes two solvers and short prior phases: these have half the cache's, at as many passes."""
    liked = (Solver.DDIM, Solver.DPMPP_2M)

    def miss(rival: Contender) -> float:
        return prior_of(rival) + 10 * (rival.solver not in liked)

    for _, one in each_solver(cached, PASSES, miss):
        factor = 0.5 if one.solver in liked else 1.0
        assert prior_of(one) == pytest.approx(factor * prior_of(cached))
        assert one.draw(2, 2).stats.passes == PASSES


def test_the_variant_that_misses_least_is_the_rival(cached: Contender) -> None:
    """A measure that likes many steps, and noise or the residual to be extrapolated."""

    def miss(rival: Contender) -> float:
        return -rival.steps - (getattr(rival.cache, "reuse", "") in ("noise-linear", "residual-linear"))

    with rivals_of(cached, PASSES, cached, fixed_interval(cached, PASSES), miss, threads=1) as rivals:
        chosen = {rival.way: rival for rival in rivals}
    assert getattr(chosen[Way.INTERVAL].cache, "reuse", "") == "residual-linear"
    for way in (Way.TAYLOR, Way.TAYLOR_PLANNED):
        assert isinstance(plan := chosen[way].cache, Plan)
        assert plan.reuse == "noise-linear"
    assert chosen[Way.TAYLOR].steps == chosen[Way.TAYLOR_SECOND].steps == max(TAYLOR_STEPS, STEPS)


def test_a_contender_misses_by_its_distance_over_that_of_the_target(cached: Contender) -> None:
    target = cached.draw(6, 3).series
    miss = miss_from(target, reference(cached.model), batch_size=3)
    assert miss(cached) == 1.0
    assert miss(fewer_steps(cached, Solver.DDIM, TimeGrid.UNIFORM, 1)) != 1.0


def test_a_contender_that_diverges_altogether_misses_by_infinity(
    cached: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    miss = miss_from(cached.draw(4, 4).series, reference(cached.model), batch_size=4)
    drawn = cached.draw(4, 4)
    lost = replace(drawn, series=np.full_like(drawn.series, np.nan))
    monkeypatch.setattr(Contender, "draw", lambda *_: lost)
    assert miss(cached) == math.inf


def test_the_graph_of_a_k_v_rival_is_gone_with_its_session(
    cached: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with rivals_of(cached, PASSES, cached, cached, lambda rival: 0.0, threads=1):
        assert list(tmp_path.glob("*/*.onnx"))
    assert not list(tmp_path.iterdir())
