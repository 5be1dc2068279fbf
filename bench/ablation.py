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
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import typer

from bench.quality import QualityOptions, judge, paired_error
from bench.reference import Reference, reference_of_run
from bench.report import progress_on_terminal
from bench.words import record_from_words
from runtime.cache.options import E2CRF, Preset
from runtime.cache.policy import Trigger
from runtime.compat import bundle_of
from runtime.errors import OptionError
from runtime.sampler import DEFAULT_SOLVER, DEFAULT_STEPS, Model, Samples, load
from runtime.solvers import Solver

BASELINE, FULL = "baseline", "full"
_NEVER = 10**9  # steps
_THIRDS = 3


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
            random_probe_ratio=0.0,
        ),
        "fixed schedule": E2CRF(R=full.R, K=0, reuse=full.reuse, alpha_prior=full.alpha_prior),
    }  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One of them: cost, quality, and how both of the paper's curves run over thirds of the trajectory."""

    name: str
    passes: float
    hit_rate: float
    hit_rate_by_third: list[float]
    intensity_by_third: list[float | None]  # None: no partial step in that third
    events_per_sample: dict[str, float]
    sw_time: float
    sw_frequency: float
    paired_error: float  # median, to the baseline, in data std
    num_diverged: int
    num_samples: int


def ablate(
    model: Model,
    reference: Reference,
    full: E2CRF,
    *,
    num_samples: int = 64,
    steps: int = DEFAULT_STEPS,
    solver: str = DEFAULT_SOLVER,
    seed: int = 0,
    only: str | None = None,
    progress: Any = lambda doing, share: None,
) -> list[Row]:
    """Run the ablations, the baseline always first; an `OptionError` for an unknown name."""
    named = ablations(full)
    if only is not None and only not in named:
        raise OptionError(f"unknown ablation {only!r}; the known ones are {', '.join(named)}")
    wanted = [name for name in named if only in (None, name) or name == BASELINE]
    options = QualityOptions(num_resamples=2, interval_directions=2)
    rows, uncached = list[Row](), None
    for number, name in enumerate(wanted):
        progress(f"sampling: {name}", number / len(wanted))
        drawn = model.sample(num_samples, steps=steps, solver=solver, seed=seed, cache=named[name])
        uncached = drawn if uncached is None else uncached
        rows.append(_row(name, drawn, uncached, reference, options))
    return rows


def _row(name: str, drawn: Samples, uncached: Samples, reference: Reference, options: QualityOptions) -> Row:
    quality, stats = judge(drawn.series, reference, options), drawn.stats
    hits = 1.0 - stats.recomputed.sum(axis=1) / (stats.num_samples * stats.num_tokens)  # [T]
    return Row(
        name=name,
        passes=stats.passes,
        hit_rate=stats.hit_rate,
        hit_rate_by_third=[float(part.mean()) for part in np.array_split(hits, _THIRDS)],
        intensity_by_third=[
            float(np.nanmean(part)) if np.isfinite(part).any() else None
            for part in np.array_split(stats.intensity, _THIRDS)
        ],
        events_per_sample={event: count / stats.num_samples for event, count in stats.event_counts.items()},
        sw_time=quality.time.sliced,
        sw_frequency=quality.frequency.sliced,
        paired_error=paired_error(drawn.series, uncached.series, reference),
        num_diverged=quality.num_diverged,
        num_samples=quality.num_samples,
    )


def claims(rows: list[Row]) -> dict[str, bool | None]:
    """The paper's claims and whether these rows bear them out; None where they cannot say."""
    by_name = {row.name: row for row in rows}

    def better(with_it: str, without: str) -> bool | None:
        if with_it not in by_name or without not in by_name:
            return None
        return by_name[with_it].paired_error < by_name[without].paired_error

    full = by_name.get(FULL)
    seen = [value for value in full.intensity_by_third if value is not None] if full else []
    return {
        "event intensity falls with time": seen[-1] < seen[0] if len(seen) > 1 else None,
        "hit rate rises from 40 % to 75 %": (
            full.hit_rate_by_third[0] < 0.5 and full.hit_rate_by_third[-1] > 0.65 if full else None
        ),
        "error feedback reduces degradation": better(FULL, "no error feedback"),
        "energy weighting helps": better(FULL, "no energy weighting"),
    }


def markdown_of(rows: list[Row]) -> str:
    """The rows as a table, and the claims below it."""
    lines = ["| | passes | hit rate, by thirds | intensity, by thirds | SW time | SW frequency | paired | diverged |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for row in rows:
        hits = " / ".join(f"{value:.0%}" for value in row.hit_rate_by_third)
        intensity = " / ".join("-" if value is None else f"{value:.2g}" for value in row.intensity_by_third)
        lines.append(
            f"| {row.name} | {row.passes:.4g} | {row.hit_rate:.0%} ({hits}) | {intensity} | {row.sw_time:.4f} | "
            f"{row.sw_frequency:.4f} | {row.paired_error:.3f} | {row.num_diverged} of {row.num_samples} |"
        )
    told = {True: "yes", False: "no", None: "cannot be said"}
    return "\n".join([*lines, "", *(f"- {claim}: {told[holds]}" for claim, holds in claims(rows).items())]) + "\n"


@dataclass(frozen=True)
class AblationWords:
    """The words of the command, named as upstream's; they stand for options of other names."""

    model_id: str = "latest"  # a run, a bundle or a checkpoint file
    num_samples: int = 20
    num_diffusion_steps: int = 100
    random_seed: int = 0
    solver: str = Solver.EULER_MARUYAMA


def main(
    model: Annotated[list[str], typer.Argument(help="Bundle or run, or words: " + ", ".join(asdict(AblationWords())))],
    reference: Annotated[str | None, typer.Option(help="Real series (.npz); default: those of the run.")] = None,
    only: Annotated[str | None, typer.Option(help="One ablation by its name.")] = None,
    preset: Annotated[str, typer.Option(help=f"Published set: {', '.join(Preset)}.")] = Preset.PAPER,
    reuse: Annotated[str | None, typer.Option(help="What is reused; default: features, as published.")] = None,
    alpha_prior: Annotated[float | None, typer.Option(help="Prior phase; default: none, as published.")] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n")] = 64,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = DEFAULT_STEPS,
    solver: Annotated[str, typer.Option(help="Solver.")] = DEFAULT_SOLVER,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads within one operator.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else.")] = False,
) -> None:
    """Take the published policy apart and measure each part.

    Example: python -m bench.ablation model_id=latest num_samples=20 num_diffusion_steps=100
    """
    words = AblationWords(model[0], num_samples, steps, seed, solver)
    if len(model) > 1 or "=" in model[0]:
        words = record_from_words(AblationWords, model)
    changes = {name: value for name, value in {"reuse": reuse, "alpha_prior": alpha_prior}.items() if value is not None}
    with load(bundle_of(words.model_id), threads=threads) as opened, progress_on_terminal() as progress:
        if (real := reference_of_run(opened.manifest.source.run_id, reference)) is None:
            raise OptionError("an ablation needs real series, found none of the run here; name them with --reference")
        rows = ablate(
            opened, real, E2CRF.preset(preset, **changes), num_samples=words.num_samples,
            steps=words.num_diffusion_steps, solver=words.solver, seed=words.random_seed, only=only, progress=progress,
        )  # fmt: skip
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "claims": claims(rows)}))
    else:
        print(markdown_of(rows), end="")


if __name__ == "__main__":
    from runtime.command import run_as_command

    run_as_command(main)
