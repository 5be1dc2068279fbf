"""Few steps of good solvers: what they cost, which of them is the rival, and when one is as good as the cache."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from contending import PASSES, PRIORS, contender_of
from tiny import make_bundle

from bench.contenders import Contender, Miss, Way, prior_of, priors_of
from bench.few_steps import FEW_STEP_SOLVERS, Bar, Look, as_good, best_of_each, each_way, fewer_steps, looked_at
from runtime.cache.options import E2CRF
from runtime.sampler import Model, load
from runtime.solvers import Solver, TimeGrid


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with load(make_bundle(tmp_path_factory.mktemp("few_steps"))[0], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def cached(tiny: Model) -> Contender:
    return contender_of(tiny)


@pytest.mark.parametrize(("solver", "grid"), FEW_STEP_SOLVERS)
def test_fewer_steps_keep_the_prior_phase_and_reuse_nothing(cached: Contender, solver: Solver, grid: TimeGrid) -> None:
    a_thousand = replace(cached, cache=E2CRF(K=0, alpha_prior=0.2), steps=1000)
    stats = fewer_steps(a_thousand, solver, grid, passes=12).draw(2, 2).stats
    assert stats.passes == 12
    assert stats.event_counts.get("reuse", 0) == 0
    assert stats.event_counts["prior"] > 0


def test_every_solver_has_one_row_in_its_best_grid_at_equal_passes(cached: Contender) -> None:
    """Oracle: a measure made up for the test, which likes another grid for every solver."""
    ranks = {pair: float((7 * index) % 15) for index, pair in enumerate(FEW_STEP_SOLVERS)}

    def miss(rival: Contender) -> float:
        return ranks[Solver(rival.solver), TimeGrid(rival.grid)]

    ways = each_way(cached, PASSES, priors_of(cached), miss)
    assert [missed for missed, _ in ways] == sorted(ranks.values())
    assert {(one.solver, one.grid) for _, one in ways} == set(FEW_STEP_SOLVERS)
    best = best_of_each(ways)
    assert {one.solver for one in best} == set(Solver)
    assert [miss(one) for one in best] == sorted(map(miss, best))
    for one in best:
        own = {grid: rank for (solver, grid), rank in ranks.items() if solver == one.solver}
        assert miss(one) == own[TimeGrid(one.grid)] == min(own.values())
        assert one.draw(2, 2).stats.passes == PASSES
        assert one.name == f"onnxruntime, fewer steps of {one.solver}"


@pytest.mark.parametrize("liked", [0.0, 0.5, 1.0])
def test_few_steps_of_every_solver_choose_their_prior_phase(cached: Contender, liked: float) -> None:
    """A measure that likes short prior phases, middle ones or long ones: at as many passes these have any there is."""

    def miss(rival: Contender) -> float:
        return abs(prior_of(rival) - liked)

    for missed, one in each_way(cached, PASSES, priors_of(cached), miss):
        assert missed == min(abs(alpha - liked) for alpha in PRIORS)
        assert one.draw(2, 2).stats.passes == PASSES


def alike(miss: Miss, whole: Miss | None = None) -> Bar:
    """A measure made up for the test, of all samples as of those of the search."""
    return Bar((Look(miss, 0.15), Look(whole or miss)))


def passes_of(few: Contender) -> float:
    return few.draw(2, 2).stats.passes


@pytest.mark.parametrize(
    ("own", "near"), [(0.37, (0.3, 0.37, 0.45)), (0.1, (0.1, 0.2)), (0.75, (0.6, 0.75, 0.85)), (0.95, (0.9, 0.95))]
)
def test_few_steps_of_more_passes_try_their_prior_phase_and_those_beside_it(
    cached: Contender, own: float, near: tuple[float, ...]
) -> None:
    few, tried = fewer_steps(cached, Solver.ANCESTRAL, TimeGrid.LOGSNR, PASSES, own), list[Contender]()

    def miss(rival: Contender) -> float:
        tried.append(rival)
        return 1.0 + (passes_of(rival) == PASSES) + abs(prior_of(rival) - near[0])

    found = as_good([(2.0, few)], sorted({*PRIORS, own}), alike(miss))
    assert found is not None
    assert (found.way, prior_of(found), passes_of(found)) == (Way.FEWER_AS_GOOD, near[0], PASSES + 1)
    of_more = [one for one in tried if passes_of(one) == PASSES + 1]
    assert tuple(prior_of(one) for one in of_more[: len(near)]) == near
    assert {(one.solver, one.grid) for one in tried} == {(Solver.ANCESTRAL, TimeGrid.LOGSNR)}


@pytest.mark.parametrize("needed", [PASSES, PASSES + 1, 8, 16])
def test_the_cheapest_of_equal_quality_is_the_rival(cached: Contender, needed: int) -> None:
    def miss(rival: Contender) -> float:
        if rival.solver != Solver.DDIM:
            return 1.5
        return 1.0 if passes_of(rival) >= needed else 1.4

    ways = each_way(cached, PASSES, own := [prior_of(cached)], miss)
    found = as_good(ways, own, alike(miss))
    assert found is not None
    assert (found.solver, prior_of(found)) == (Solver.DDIM, prior_of(cached))  # the one prior phase that it was given
    counts = [PASSES, 5, 6, 7, 8, 9, 10, 12, 14, 16]  # in steps that grow from one
    assert passes_of(found) == min(count for count in counts if count >= needed)


def test_none_is_as_good_where_none_is_within_four_times_the_passes(cached: Contender) -> None:
    def miss(rival: Contender) -> float:
        return 1.0 if passes_of(rival) > needed else 1.5

    needed = 4 * PASSES
    ways = each_way(cached, PASSES, own := [prior_of(cached)], miss)
    assert as_good(ways, own, alike(miss)) is None
    needed = 8
    assert as_good(ways, own, replace(alike(miss), most_passes=8)) is None
    assert as_good(ways, own, replace(alike(miss), most_passes=9)) is not None


def test_all_samples_decide_whether_a_rival_is_as_good(cached: Contender) -> None:
    """On the samples of the search all miss by 16 %, on all samples those of six passes by none. By 18 %: none."""
    asked = list[Contender]()

    def whole(rival: Contender) -> float:
        asked.append(rival)
        return 1.0 if passes_of(rival) >= 6 else 2.0

    ways = each_way(cached, PASSES, own := [prior_of(cached)], lambda rival: 1.16)
    found = as_good(ways, own, alike(lambda rival: 1.16, whole))
    assert found is not None
    assert passes_of(found) == 6
    asked.clear()
    ways = each_way(cached, PASSES, own, lambda rival: 1.18)
    assert as_good(ways, own, alike(lambda rival: 1.18, whole)) is None
    assert not asked


def test_who_misses_by_too_much_at_one_look_is_not_looked_at_on_more_samples(cached: Contender) -> None:
    """The second of three looks lets pass what misses by 12 %: it finds 11.5 % at four passes, 12.5 % at five."""
    asked = list[float]()

    def between(rival: Contender) -> float:
        return 1.115 if passes_of(rival) == PASSES else 1.125

    def whole(rival: Contender) -> float:
        asked.append(passes_of(rival))
        return 1.03

    ways = each_way(cached, PASSES, own := [prior_of(cached)], lambda rival: 1.0)
    looks = (Look(lambda rival: 1.0, 0.15), Look(between, 0.1), Look(whole))
    assert as_good(ways, own, Bar(looks, most_passes=PASSES + 1)) is None
    assert asked == [PASSES] * len(ways)


@pytest.mark.parametrize(
    ("num_samples", "counts"), [(64, [64, 64]), (500, [128, 500]), (1000, [128, 357, 1000]), (8192, [128, 1024, 8192])]
)
def test_looks_are_at_ever_more_samples_and_ever_surer(num_samples: int, counts: list[int]) -> None:
    looks = looked_at(num_samples, num_search=128)
    assert [n for n, _ in looks] == counts
    assert [unsure for _, unsure in looks[:-1]] == pytest.approx([1.7 / n**0.5 for n in counts[:-1]])
    assert looks[-1][1] == 0.0


def test_a_rival_within_the_slack_of_the_search_needs_no_more(cached: Contender) -> None:
    ways = each_way(cached, PASSES, own := [prior_of(cached)], lambda rival: 1.0)
    found = as_good(ways, own, alike(lambda rival: 1.0))
    assert found == replace(ways[0][1], way=Way.FEWER_AS_GOOD)
