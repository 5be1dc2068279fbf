"""What a record keeps of things that run over steps, frequencies, lags or time: its curves, and its heatmap.

Numbers are cut to four significant digits: a curve is to be looked at. Of real series only what was measured on
them may be given here, which is why `series_curves` is for generated ones alone.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bench.records import Chart, Curve, Recomputed
from bench.reference import Series
from bench.spectra import autocorrelation, spectral_density
from runtime.cache.policy import Cache
from runtime.cache.stats import Stats
from runtime.errors import require
from runtime.sampler import Auto, Model, StepInfo

_STRETCHES = 125  # of the steps in a heatmap
_MOST_PAIRED = 16


def spectrum_curves(sets: Mapping[str, Series]) -> tuple[Curve, ...]:
    """Energy by frequency of each named set of series: the median, and 10 to 90 % as its band."""
    curves = []
    for name, series in sets.items():
        low, middle, high = np.quantile(spectral_density(_finite(name, series)), [0.1, 0.5, 0.9], axis=0)
        curves.append(_curve(Chart.SPECTRUM, name, middle, low=low, high=high))
    return tuple(curves)


def autocorrelation_curves(sets: Mapping[str, Series]) -> tuple[Curve, ...]:
    """Autocorrelation by lag of each named set of series, mean over series and channels."""
    return tuple(
        _curve(Chart.AUTOCORRELATION, name, autocorrelation(_finite(name, series)).mean(axis=1))
        for name, series in sets.items()
    )


def series_curves(sets: Mapping[str, Series], num: int = 5) -> tuple[Curve, ...]:
    """Channel 1 of the first `num` series of each named set of GENERATED series; sets of one noise pair up."""
    return tuple(
        _curve(Chart.SERIES, f"{name} {number}", one[:, 0])
        for name, series in sets.items()
        for number, one in enumerate(series[:num], 1)
    )


def cache_curves(stats: Stats, name: str) -> tuple[Curve, ...]:
    """Hit rate by step, and the event intensity of the steps that have one, if there are any."""
    tokens = stats.num_samples * stats.num_tokens
    curves = [_curve(Chart.HIT_RATE, name, 1.0 - stats.recomputed.sum(axis=1) / tokens)]
    steps = np.flatnonzero(np.isfinite(stats.intensity))
    if len(steps):
        curves.append(_curve(Chart.INTENSITY, name, stats.intensity[steps], x=steps))
    return tuple(curves)


def recomputed_of(stats: Stats) -> Recomputed:
    """What was recomputed when, in at most 125 stretches of steps, shares to two decimals."""
    heatmap = shrunk(stats.heatmap(), _STRETCHES)
    return Recomputed(stats.num_steps, tuple(tuple(row) for row in np.round(heatmap, 2).tolist()))


def shrunk(heatmap: NDArray[np.float64], columns: int) -> NDArray[np.float64]:
    """A heatmap [F, T] at most `columns` steps across, each the largest of its steps: a single one stays visible."""
    num_steps = heatmap.shape[1]
    if num_steps <= columns:
        return heatmap
    starts = np.linspace(0, num_steps, columns, endpoint=False).astype(np.int64)
    return np.asarray(np.maximum.reduceat(heatmap, starts, axis=1))


def paired_error_by_step(
    model: Model,
    cache: Cache | Auto = Auto.AUTO,
    *,
    baseline: Cache | None = None,
    n: int = 8,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    seed: int = 0,
    name: str = "E2-CRF",
) -> Curve:
    """How far cached latents are from those of `baseline` (uncached), after each step, on the same noise.

    The median over n samples of the RMS of the difference, in units of the standardised latents; null where half of
    them are not finite. Steps, solver and time grid are those of the cache, so that both take the same steps. Keeps
    the baseline's latents of every step: 4 T n N C bytes, 12 MB for 16 samples of 187 values at 1000 steps. Raises an
    `OptionError` for n outside 1 .. 16, and what `Model.sample` raises.
    """
    require(1 <= n <= _MOST_PAIRED, f"n must lie in 1 .. {_MOST_PAIRED}, since all their steps are kept", n,
            "8 is the default")  # fmt: skip
    chosen = model.settings(steps, solver, grid, cache)
    network = model.manifest.network
    kept = np.empty((chosen.steps, n, network.num_tokens, network.num_channels), np.float32)
    error = np.empty(chosen.steps)

    def keep(step: StepInfo) -> None:
        kept[step.index] = step.z

    def compare(step: StepInfo) -> None:
        rms = np.sqrt(np.mean(np.square(step.z - kept[step.index], dtype=np.float64), axis=(1, 2)))
        error[step.index] = np.median(np.where(np.isfinite(rms), rms, np.inf))

    for one, on_step in ((baseline, keep), (chosen.cache, compare)):
        model.sample(
            n, steps=chosen.steps, solver=chosen.solver, grid=chosen.grid, seed=seed, batch_size=n, cache=one,
            on_step=on_step,
        )  # fmt: skip
    return _curve(Chart.PAIRED_ERROR, name, error)


def _curve(
    chart: Chart, name: str, y: NDArray[np.floating], *,
    x: NDArray[np.integer] | None = None, low: NDArray[np.floating] | None = None,
    high: NDArray[np.floating] | None = None,
) -> Curve:  # fmt: skip
    places = np.arange(len(y)) if x is None else x
    return Curve(str(chart), name, tuple(places.astype(float).tolist()), _numbers(y),
                 None if low is None else _numbers(low), None if high is None else _numbers(high))  # fmt: skip


def _numbers(values: NDArray[np.floating]) -> tuple[float | None, ...]:
    """Four significant digits of each value, None for one that is not finite."""
    return tuple(float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist())


def _finite(name: str, series: Series) -> Series:
    finite = series[np.isfinite(series).all(axis=(1, 2))]
    require(len(finite) > 0, f"a curve of {name} needs a series that is finite", f"none of {len(series)}", "draw more")
    return finite
