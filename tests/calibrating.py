"""Small calibrations of models known in closed form; a test file names the fixtures (`exact = calibrating.exact`)."""

from pathlib import Path
from typing import Any

import pytest
from gaussian_bundle import write_gaussian_bundle

from bench.calibrate import CalibrateOptions
from bench.calibration import Calibration, Sizes
from runtime.sampler import Model, load
from runtime.sde import VP
from runtime.solvers import Solver
from tests.tiny import gaussian

STEPS = 60
SHORTEST = 1e-5  # minutes in which every stage draws as few samples as it may
FEWEST = Sizes(uncached=8, teacher=48, search=16, final=64, check=32)


def calibration(
    model: Model, told: list[tuple[str, float]] | None = None, *, solver: str = Solver.DDIM, **options: Any
) -> Calibration:
    """A calibration of a model that is open already; it tells `told` how far it is."""
    chosen = CalibrateOptions(**({"bundle": Path("none"), "steps": (STEPS,), "minutes": SHORTEST} | options))
    tell = (lambda doing, share: None) if told is None else lambda doing, share: told.append((doing, share))
    return Calibration(model, chosen, solver, chosen.steps[0], tell, 1e-3)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Independent tokens: the residual is zero up to rounding."""
    return load(write_gaussian_bundle(tmp_path_factory.mktemp("exact") / "bundle"), "fake")


@pytest.fixture(scope="module")
def correlated() -> Model:
    """Correlated tokens: the residual moves, smoothly."""
    return gaussian(16, VP(), "frequency").model
