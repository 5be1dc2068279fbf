"""What the tests of rivals share: a cached contender over a random transformer, and what is tried beside it."""

from bench.contenders import Contender, Way
from runtime.cache.plan import Plan
from runtime.sampler import Model
from runtime.solvers import Solver

STEPS, PASSES = 60, 4
PRIORS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.85, 0.9, 0.95)  # prior phases that rivals try


def contender_of(model: Model) -> Contender:
    """A plan of four refreshes."""
    plan = Plan(source_digest=model.manifest.source.digest, steps=STEPS, solver=Solver.DDIM,
                refreshes=(24, 36, 46, 54), surprise=(0.001, 0.1, 0.1, 0.1))  # fmt: skip
    return Contender(Way.CACHED, model, plan, STEPS, Solver.DDIM, 0)
