"""Pictures of a bench, each one a PNG that explains itself on a phone and on a dark page.

    draw_pictures(compare(options), Path("bundles/ecg/reports"))

    series.png      real series beside generated ones, in the same axes
    spectrum.png    energy by frequency: real, uncached, cached
    recomputed.png  what the cache recomputed, by frequency and step
    cost.png        distance to the real series against cost, one point per rival

Colours are Okabe and Ito's, told apart by every kind of colour vision; nothing is told by colour alone. The
functions draw with a figure of their own and change no global state of matplotlib. A picture is written beside its
place and renamed into it, so that it is whole or as it was.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from bench.compare import Comparison
from bench.curves import shrunk
from bench.records import Record
from bench.reference import Series
from bench.rows import FLOOR
from bench.spectra import spectral_density
from runtime.cache.stats import Stats

BLACK, ORANGE, BLUE, GREEN = "#000000", "#E69F00", "#0072B2", "#009E73"
LOOKS = ((ORANGE, "s"), (BLUE, "o"), (GREEN, "^"), ("#CC79A7", "D"), ("#D55E00", "v"), ("#56B4E9", "P"), (BLACK, "X"))

STYLE = {
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "legend.frameon": False,
}


def draw_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw all pictures of a comparison into `folder`; the files made."""
    folder.mkdir(parents=True, exist_ok=True)
    real, stats = comparison.reference.series, comparison.cached.stats
    uncached, cached = comparison.uncached, comparison.cached.series
    draw_series(real, cached, folder / "series.png")
    draw_spectrum({"real": real, "uncached": uncached, "cached": cached}, folder / "spectrum.png")
    draw_recomputed(stats, folder / "recomputed.png")
    draw_cost(comparison.record, folder / "cost.png")
    return [folder / f"{name}.png" for name in ("series", "spectrum", "recomputed", "cost")]


@contextmanager
def _figure(path: Path, size: tuple[float, float] = (8.0, 5.0)) -> Iterator[Figure]:
    """A figure that becomes a PNG of 1200 pixels across at the end of the block."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        stage = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            figure.savefig(stage, format="png", dpi=1200 / size[0])
            os.replace(stage, path)
        finally:
            stage.unlink(missing_ok=True)


def draw_series(real: Series, generated: Series, path: Path, *, num: int = 5, seed: int = 0) -> None:
    """Real series on the left, generated ones on the right: `num` of each drawn at random, same axes."""
    generator = np.random.default_rng(seed)
    with _figure(path, (8.0, 7.0)) as figure:
        panels = figure.subplots(num, 2, sharex=True, sharey=True, squeeze=False)
        for column, (name, series, colour) in enumerate(
            (("Real", real, BLACK), ("Generated with E2-CRF", generated, BLUE))
        ):
            finite = series[np.isfinite(series).all(axis=(1, 2))]
            chosen = generator.choice(len(finite), size=min(num, len(finite)), replace=False)
            for panel, index in zip(panels[:, column], chosen, strict=False):
                panel.plot(finite[index, :, 0], color=colour, linewidth=1.8)
            panels[0, column].set_title(name)
            panels[-1, column].set_xlabel("time step")
        channels = real.shape[2]
        figure.supylabel("value" if channels == 1 else f"value of channel 1 of {channels}")


def draw_spectrum(sets: dict[str, Series], path: Path) -> None:
    """Energy by frequency of each set of series, real ones first: median, and 10th to 90th percentile."""
    looks = zip((BLACK, ORANGE, BLUE), ("-", "--", ":"), (2.2, 2.8, 3.4), strict=True)
    with _figure(path) as figure:
        axes = figure.subplots()
        for (name, series), (colour, dash, width) in zip(sets.items(), looks, strict=False):
            density = spectral_density(series[np.isfinite(series).all(axis=(1, 2))])
            low, middle, high = np.quantile(density, [0.1, 0.5, 0.9], axis=0)
            axes.plot(middle, dash, color=colour, linewidth=width, label=name)
            if colour is BLACK:  # the real series come first: a band to lie in
                axes.fill_between(np.arange(len(middle)), low, high, color=colour, alpha=0.15, linewidth=0)
            else:
                axes.plot(np.transpose([low, high]), dash, color=colour, linewidth=0.5 * width, alpha=0.8)
        axes.set_yscale("log")
        axes.set_xlabel("frequency")
        axes.set_ylabel("energy (data units²)")
        axes.set_title("Energy by frequency: median, and 10 to 90 % (band, thin)")
        axes.legend()


def draw_recomputed(stats: Stats, path: Path) -> None:
    """What was recomputed, frequency by step: dark where the network was asked, light where not."""
    heatmap = stats.heatmap()  # [F, T]
    asked = np.flatnonzero(heatmap.any(axis=0))
    with _figure(path) as figure:
        axes = figure.subplots()
        num_frequencies, num_steps = heatmap.shape
        image = axes.imshow(
            shrunk(heatmap, 250),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="Blues",
            vmin=0.0,
            vmax=1.0,
            extent=(0, num_steps, -0.5, num_frequencies - 0.5),
        )
        if len(asked) and asked[0] > 0.1 * num_steps:
            axes.text(asked[0] / 2, num_frequencies / 2, "prior phase:\nno network", ha="center", va="center")
        axes.set_xlabel("step (noise on the left, data on the right)")
        axes.set_ylabel("frequency")
        axes.set_title(f"Recomputed: {stats.passes:.3g} of {num_steps} network passes")
        figure.colorbar(image, ax=axes, label="share recomputed", ticks=[0, 0.5, 1])


def draw_cost(record: Record, path: Path) -> None:
    """Sliced Wasserstein distance in the time domain against passes, one point per judged rival."""
    judged = [row for row in record.rows if row.passes is not None and row.sw_time is not None and row.same_as is None]
    with _figure(path, (8.0, 6.0 + 0.3 * len(judged))) as figure:  # their names stand below
        axes = figure.subplots()
        for row, (colour, shape) in zip(judged, cycle(LOOKS), strict=False):
            figures = [row.passes, row.sw_time, row.sw_time_low, row.sw_time_high]
            passes, distance, low, high = np.array(figures, np.float64)
            error = [[distance - low], [high - distance]]
            look: dict[str, Any] = {"fmt": shape, "color": colour, "markersize": 12, "capsize": 5}
            axes.errorbar(passes, distance, error, label=row.rival, **look)
        for row in record.rows:
            if row.rival == FLOOR and row.sw_time is not None:
                axes.axhline(row.sw_time, color=BLACK, linestyle="--", linewidth=1.5, label=row.rival)
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_locator(NullLocator())
        axes.margins(0.12)
        axes.set_xlabel("cost of a sample in network passes")
        axes.set_ylabel("SW distance (data units)")
        axes.set_title("Distance to real series against cost: lower left is better")
        figure.legend(loc="outside lower left")
