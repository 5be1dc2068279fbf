"""The published policy with one part taken away at a time, and what its paper says of it, measured.

    python -m bench.ablation bundles/ecg                                      # all of them
    python -m bench.ablation bundles/ecg --reference reference.npz --only "no event trigger"
    python -m bench.ablation model_id=latest num_samples=20 num_diffusion_steps=100      # in upstream's words

    baseline             everything at every step
    full                 a published parameter set (`--preset`)
    no event trigger     refreshes by age alone
    no error feedback    cached values are never corrected
    no energy weighting  one threshold for all tokens
    naive                the K lowest frequencies alone; never refreshed
    fixed schedule       full refreshes every R steps and nothing in between

All draw from the same noise. The published form reuses features and has no prior phase; `--reuse residual
--alpha-prior 0.2` asks the same questions of the form that works. The paper claims that the event intensity falls
with time, that the hit rate rises (from 40 % to 75 %), that error feedback reduces degradation and that energy
weighting helps: `claims` holds each of them against what was measured.

The record goes to `<bundle>/reports/ablation.json`: rows of cost and quality, and hit rate and event intensity over
the steps as curves. The claims are among its options, as `claims`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from bench import sweep
from bench.contenders import Progress
from bench.records import Chart, Curve, Kind, Record, Row, plain
from bench.reference import Reference
from bench.report import markdown_grid, milliseconds, number
from bench.words import Named, words_for
from runtime.cache.options import E2CRF, Preset
from runtime.cache.policy import Trigger
from runtime.errors import OptionError
from runtime.sampler import DEFAULT_SOLVER, DEFAULT_STEPS, Model, Samples
from runtime.verbs.shared import Json

RECORD_FILE = "ablation.json"
BASELINE, FULL = "baseline", "full"
_NEVER = 10**9  # steps
_MOST_POINTS = 200  # of a curve
_SAME = 1e-3  # relative, of errors that say nothing of what was taken away
_THIRDS = 3


@dataclass(frozen=True, kw_only=True)
class AblationOptions(sweep.SweepOptions):
    """What is taken apart, and on how much."""

    preset: str = Preset.PAPER
    reuse: str | None = None  # None: features, as published
    alpha_prior: float | None = None  # None: no prior phase, as published
    only: str | None = None  # one ablation beside the baseline

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ablations(self.full)
        if self.only is not None and self.only not in known:
            raise OptionError(f"unknown ablation {self.only!r}; the known ones are {', '.join(known)}")

    @property
    def full(self) -> E2CRF:
        """The policy that is taken apart."""
        changes = {"reuse": self.reuse, "alpha_prior": self.alpha_prior}
        return E2CRF.preset(self.preset, **{name: value for name, value in changes.items() if value is not None})


def ablations(full: E2CRF) -> dict[str, E2CRF | None]:
    """The caches by name; None is the uncached sampler."""
    return {
        BASELINE: None,
        FULL: full,
        "no event trigger": replace(full, trigger=Trigger.NONE, tau_warn=None, tolerance=None),
        "no error feedback": replace(full, error_feedback=0.0),
        "no energy weighting": replace(full, energy_weighting=False),
        "naive": replace(
            full, trigger=Trigger.NONE, tau_warn=None, tolerance=None, R=_NEVER, max_age=_NEVER, tau_0=float("inf"),
            random_probe_ratio=0.0, tau_safe=None, error_feedback=0.0,
        ),
        "fixed schedule": E2CRF(R=full.R, K=0, reuse=full.reuse, alpha_prior=full.alpha_prior),
    }  # fmt: skip


def ablate(
    model: Model,
    reference: Reference,
    options: AblationOptions,
    progress: Progress = lambda doing, share: None,
) -> Record:
    """Run the ablations, the baseline always first; an `OptionError` for a policy that the model cannot do."""
    caches = {
        name: cache
        for name, cache in ablations(options.full).items()
        if options.only in (None, name) or name == BASELINE
    }
    record = sweep.over(Kind.ABLATION, model, reference, caches, options, progress, curves_of)
    facts = {"full": asdict(options.full), "claims": claims(record.rows, record.curves)}
    return replace(record, options=record.options | plain(facts))


def curves_of(name: str, drawn: Samples) -> list[Curve]:
    """Hit rate and event intensity by step; the latter only where any step was partial."""
    stats = drawn.stats
    hits = 1.0 - stats.recomputed.sum(axis=1) / (stats.num_samples * stats.num_tokens)  # [T]
    found = [_curve(Chart.HIT_RATE, name, hits)]
    return [*found, _curve(Chart.INTENSITY, name, stats.intensity)] if np.isfinite(stats.intensity).any() else found


def _curve(chart: Chart, name: str, values: NDArray[np.float64]) -> Curve:
    """Values [T] as means over stretches of steps; None where a stretch has none."""
    stretches = np.array_split(np.arange(len(values)), min(len(values), _MOST_POINTS))
    means = (_mean(values[stretch]) for stretch in stretches)
    return Curve(chart, name, tuple(float(stretch.mean()) for stretch in stretches), tuple(means))


def _mean(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def by_third(curves: Sequence[Curve], chart: Chart, name: str) -> list[float | None]:
    """A curve as its means over thirds of the trajectory; empty if there is none."""
    found = [curve.y for curve in curves if (curve.chart, curve.name) == (chart, name)]
    return [_mean(part) for y in found for part in np.array_split(np.array(y, np.float64), _THIRDS)]


def claims(rows: Sequence[Row], curves: Sequence[Curve]) -> dict[str, bool | None]:
    """The paper's claims and whether these rows and curves bear them out; None where they cannot say."""
    errors = {row.rival: row.paired_error for row in rows}

    def better(with_it: str, without: str) -> bool | None:
        one, other = errors.get(with_it), errors.get(without)
        if one is None or other is None or math.isclose(one, other, rel_tol=_SAME):
            return None
        return one < other

    seen = [value for value in by_third(curves, Chart.INTENSITY, FULL) if value is not None]
    hits = [value for value in by_third(curves, Chart.HIT_RATE, FULL) if value is not None]
    return {
        "event intensity falls with time": seen[-1] < seen[0] if len(seen) > 1 else None,
        "hit rate rises from 40 % to 75 %": hits[0] < 0.5 and hits[-1] > 0.65 if hits else None,
        "error feedback reduces degradation": better(FULL, "no error feedback"),
        "energy weighting helps": better(FULL, "no energy weighting"),
    }


def markdown_of(record: Record) -> str:
    """The rows as a table, and the claims below it."""
    titles = ("", "ms per sample", "passes", "hit rate, by thirds", "intensity, by thirds", "SW time", "SW frequency",
              "paired", "diverged")  # fmt: skip

    def thirds(chart: Chart, row: Row, form: str) -> str:
        values = by_third(record.curves, chart, row.rival)
        return " / ".join("-" if value is None else format(value, form) for value in values)

    cells = [
        (
            row.rival, milliseconds(row.ms_per_sample), number(row.passes, ".4g"),
            f"{number(row.hit_rate, '.0%')} ({thirds(Chart.HIT_RATE, row, '.0%')})",
            thirds(Chart.INTENSITY, row, ".2g"), number(row.sw_time, ".4f"), number(row.sw_frequency, ".4f"),
            number(row.paired_error, ".3f"), f"{row.num_diverged} of {row.num_samples}",
        )
        for row in record.rows
    ]  # fmt: skip
    told = {True: "yes", False: "no", None: "cannot be said"}
    said = [f"- {claim}: {told[holds]}" for claim, holds in record.options["claims"].items()]
    return "\n".join([markdown_grid(titles, cells), "", *said])


def main(
    context: typer.Context,
    model: Named,
    only: Annotated[str | None, typer.Option(help="One ablation by its name.")] = None,
    preset: Annotated[str, typer.Option(help=f"Published set: {', '.join(Preset)}.")] = Preset.PAPER,
    reuse: Annotated[str | None, typer.Option(help="What is reused; default: features, as published.")] = None,
    alpha_prior: Annotated[float | None, typer.Option(help="Prior phase; default: none, as published.")] = None,
    reference: sweep.RealSeries = None,
    num_samples: sweep.NumSamples = AblationOptions.num_samples,
    steps: sweep.Steps = DEFAULT_STEPS,
    solver: sweep.SolverName = DEFAULT_SOLVER,
    seed: sweep.Seed = 0,
    rounds: sweep.Rounds = AblationOptions.rounds,
    threads: sweep.Threads = None,
    out: sweep.RecordFile = None,
    as_json: Json = False,
) -> None:
    """Take the published policy apart and measure each part.

    Example: python -m bench.ablation model_id=latest num_samples=20 num_diffusion_steps=100
    """
    words = words_for(context, model, num_samples, steps, seed, solver)
    options = AblationOptions(
        preset=preset, reuse=reuse, alpha_prior=alpha_prior, only=only, num_samples=words.num_samples,
        steps=words.num_diffusion_steps, solver=words.solver, seed=words.random_seed, rounds=rounds,
    )  # fmt: skip
    record = sweep.run(ablate, options, words.model_id, reference, threads, out, RECORD_FILE)
    print(record.to_line() if as_json else markdown_of(record))


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
