"""Small calibrations of models known in closed form; a test file names the fixtures (`exact = calibrating.exact`)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gaussian_bundle import write_gaussian_bundle

from bench.calibrate import CalibrateOptions
from bench.calibration import Calibration, Sizes
from runtime.sampler import Model, Samples, load
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


def hear_draws(monkeypatch: pytest.MonkeyPatch, hear: Callable[[str, Samples], Samples]) -> None:
    """What a calibration draws goes through `hear`, with what it is drawn for."""
    draw = Calibration._draw

    def heard(self: Calibration, doing: str, *rest: Any, **options: Any) -> Samples:
        return hear(doing, draw(self, doing, *rest, **options))

    monkeypatch.setattr(Calibration, "_draw", heard)


def diverging(monkeypatch: pytest.MonkeyPatch, *stages: str) -> None:
    """One sample of each draw of these stages has left the data, though it is finite."""

    def hear(doing: str, drawn: Samples) -> Samples:
        return replace(drawn, stats=replace(drawn.stats, num_diverged=1)) if doing.startswith(stages) else drawn

    hear_draws(monkeypatch, hear)


BESIDE_UNCACHED = ("the plan", "the bar on the noise of uncached")


def far_off(monkeypatch: pytest.MonkeyPatch, stages: Sequence[str] = BESIDE_UNCACHED) -> None:
    """What is drawn beside uncached samples, the plan with its guard and the bar, is far from any real series."""

    def hear(doing: str, drawn: Samples) -> Samples:
        return replace(drawn, series=drawn.series + np.float32(9)) if doing in stages else drawn

    hear_draws(monkeypatch, hear)


def slow_clock(monkeypatch: pytest.MonkeyPatch, pass_seconds: float) -> list[str]:
    """A clock by which only network passes take time, each so long; what is drawn for, as it goes on."""
    now, stages = [0.0], list[str]()

    def hear(doing: str, drawn: Samples) -> Samples:
        now[0] += len(drawn.series) * drawn.stats.passes * pass_seconds
        stages.append(doing)
        return drawn

    hear_draws(monkeypatch, hear)
    monkeypatch.setattr("bench.calibration.time", SimpleNamespace(perf_counter=lambda: now[0]))
    return stages


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Independent tokens: the residual is zero up to rounding."""
    return load(write_gaussian_bundle(tmp_path_factory.mktemp("exact") / "bundle"), "fake")


@pytest.fixture(scope="module")
def correlated() -> Model:
    """Correlated tokens: the residual moves, smoothly."""
    return gaussian(16, VP(), "frequency").model
