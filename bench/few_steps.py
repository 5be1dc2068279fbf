"""Few steps of a good solver, the honest rival of a cache: no reuse, a closed-form prior phase, a coarse time grid.

    priors = priors_of(cached)
    ways = each_way(cached, passes, priors, miss)       # at as many passes, the best first
    bar = Bar((Look(miss, unsure=0.15), Look(whole)))
    as_good(ways, priors, bar)                          # with as few more as it needs, or None

Every solver is tried in every time grid and prior phase, since the phase of the cached one was calibrated for its cache
and a rival may begin elsewhere. Which is best is judged by `contenders.miss_from`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from bench.contenders import Contender, Miss, Way, least_missing, prior_of, signals_of, without_reuse
from runtime.cache.policy import Reuse, first_network_step
from runtime.solvers import Solver, TimeGrid

FEW_STEP_SOLVERS = tuple(product(Solver, TimeGrid))
_GO_ON = 6  # of the ways at as many passes: so many are followed to more
_SCATTER = 1.7  # over the root of the samples: by how much more a rival may miss on these and be as good on all
_LARGER = 4  # so many times as many samples are not drawn before some in between have been looked at
_LEAST_SEARCH = 8  # passes up to which a rival of equal quality is looked for, however few the cache takes

Ways = list[tuple[float, Contender]]  # by how much each misses; the best is first


@dataclass(frozen=True)
class Look:
    """By how much a rival misses on some of the samples."""

    miss: Miss
    unsure: float = 0.0  # it may miss by so much more and still be worth a look at more samples


@dataclass(frozen=True)
class Bar:
    """When few steps are as good as what is cached."""

    looks: tuple[Look, ...]  # at ever more samples; the last, at all of them, decides
    within: float = 0.02  # they may miss by this share
    most_passes: int = 32  # they are looked for no further, nor beyond four times the cache's passes, or eight

    def is_met(self, found: float, one: Contender) -> bool:
        """Whether a rival that misses by `found` at the first look is as good at every other."""
        first, *others = self.looks
        most = 1 + self.within
        return found <= most + first.unsure and all(look.miss(one) <= most + look.unsure for look in others)


def fewer_steps(
    cached: Contender, solver: Solver, grid: TimeGrid, passes: int, alpha_prior: float | None = None
) -> Contender:
    """A contender whose time grid is so coarse that it costs `passes` without reusing anything.

    The closed-form prior phase stays (that of the cached one, or another), since it is no reuse and costs nothing; of
    the remaining steps each is one full pass. Of the numbers of steps that cost as much, the largest.
    """
    cache = without_reuse(cached, alpha_prior)

    def cost(steps: int) -> int:
        return sum(signal >= cache.alpha_prior for signal in signals_of(cached.model, steps, grid))

    steps = 2
    while cost(steps + 1) <= passes:
        steps += 1
    return replace(cached, way=Way.FEWER, cache=cache, steps=steps, solver=solver, grid=grid)


def each_way(cached: Contender, passes: int, priors: Sequence[float], miss: Miss) -> Ways:
    """Every solver in every grid at as many passes, in the prior phase that misses least."""
    return _ranked(
        least_missing([fewer_steps(cached, solver, grid, passes, alpha) for alpha in priors], miss)
        for solver, grid in FEW_STEP_SOLVERS
    )


def best_of_each(ways: Ways) -> list[Contender]:
    """Of ways in their order the first of each solver."""
    first = {one.solver: one for _, one in reversed(ways)}
    return [replace(one, way=Way.FEWER_EACH) for _, one in ways if first[one.solver] is one]


def as_good(ways: Ways, priors: Sequence[float], bar: Bar) -> Contender | None:
    """The cheapest that is as good on all samples, from ways at equal passes on; None: none is.

    With more passes than these the best few ways are followed, each in its prior phase and those beside it.
    """
    least = round(_passes_of(ways[0][1]))
    for passes in _counts_from(least, most_tried(least, bar.most_passes)):
        if passes > least:
            ways = _ranked(_with_passes(one, passes, priors, bar.looks[0].miss) for _, one in ways[:_GO_ON])
        for found, one in ways:
            if bar.is_met(found, one):
                return replace(one, way=Way.FEWER_AS_GOOD)
    return None


def looked_at(num_samples: int, num_search: int) -> list[tuple[int, float]]:
    """How many samples a rival is looked at on, one look after another, and what each look may be wrong by."""
    first = min(num_search, num_samples)
    between = [math.isqrt(first * num_samples)] if num_samples >= _LARGER * first else []
    return [*((n, _SCATTER / math.sqrt(n)) for n in (first, *between)), (num_samples, 0.0)]


def most_tried(least: int, most: int) -> int:
    """Up to how many passes a rival is looked for that is as good as a cache of `least`, if `most` are allowed."""
    return min(most, max(4 * least, _LEAST_SEARCH))


def _with_passes(few: Contender, passes: int, priors: Sequence[float], miss: Miss) -> tuple[float, Contender]:
    own = priors.index(prior_of(few))
    near = priors[max(0, own - 1) : own + 2]
    return least_missing(
        [fewer_steps(few, Solver(few.solver), TimeGrid(few.grid), passes, alpha) for alpha in near], miss
    )


def _ranked(ways: Iterable[tuple[float, Contender]]) -> Ways:
    return sorted(ways, key=lambda pair: pair[0])


def _passes_of(few: Contender) -> float:
    """What a way without reuse asks of the network."""
    assert few.cache is not None
    steps = few.model.schedule(Solver(few.solver), few.steps, TimeGrid(few.grid), Reuse.RESIDUAL)[2]
    return few.steps - first_network_step(steps, prior_of(few))


def _counts_from(least: int, most: int) -> list[int]:
    """Numbers of passes from the cache's own upwards, in growing steps."""
    counts = [least]
    while counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, counts[-1] // 5)))
    return counts
