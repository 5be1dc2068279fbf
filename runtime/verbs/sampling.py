"""Drawing from a bundle: sample. Needs NumPy and ONNX Runtime, and loads nothing else."""

from pathlib import Path
from typing import Annotated, Any

import typer

from runtime.backends.base import BackendName
from runtime.cache.options import E2CRF, PolicyName, Preset
from runtime.cache.plan import read_plan
from runtime.cache.policy import UNFITTED, Cache, Trigger
from runtime.command import say
from runtime.errors import require
from runtime.progress import steps_progress
from runtime.sampler import Auto, Interrupted, Samples, load
from runtime.score import Graphs
from runtime.solvers import Solver, TimeGrid
from runtime.verbs.shared import BundleArgument, Json, finish


def sample(
    bundle: BundleArgument,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="How many series.")] = 64,
    out: Annotated[Path, typer.Option(help="File to write (.npz).")] = Path("samples.npz"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
    steps: Annotated[int | None, typer.Option(help="Solver steps; default: the plan's, or 1000.")] = None,
    solver: Annotated[str | None, typer.Option(help=f"{', '.join(Solver)}; default: the plan's, or ancestral.")] = None,
    grid: Annotated[str | None, typer.Option(help=f"Times: {', '.join(TimeGrid)}.")] = None,
    seed: Annotated[int, typer.Option(help="Seed; sample k depends on the seed and k alone.")] = 0,
    first_sample: Annotated[int, typer.Option(help="Index of the first sample.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Samples drawn together.")] = 64,
    uncached: Annotated[bool, typer.Option("--uncached", help="Recompute everything at every step.")] = False,
    plan: Annotated[Path | None, typer.Option(help="Plan file; default: that of the bundle, where it has one.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"A published set: {', '.join(Preset)}.")] = None,
    policy: Annotated[str | None, typer.Option(help=f"One of {', '.join(PolicyName)}.")] = None,
    refresh: Annotated[int | None, typer.Option("--R", help="Full refresh every R steps.")] = None,
    low: Annotated[float | None, typer.Option("--K", help="Lowest frequencies recomputed in between.")] = None,
    low_every: Annotated[int | None, typer.Option(help="How often these are, in steps.")] = None,
    reuse: Annotated[str | None, typer.Option(help=f"What is reused: {', '.join(UNFITTED)}.")] = None,
    alpha_prior: Annotated[float | None, typer.Option(help="No network below this signal; 0: off.")] = None,
    max_age: Annotated[int | None, typer.Option(help="No token older than this, in steps.")] = None,
    tau_0: Annotated[float | None, typer.Option("--tau-0", help="e2crf: base threshold of the change.")] = None,
    eps: Annotated[float | None, typer.Option(help="e2crf: added to the energy under tau_0.")] = None,
    tau_warn: Annotated[float | None, typer.Option(help="e2crf: event intensity that refreshes all.")] = None,
    tau_safe: Annotated[float | None, typer.Option(help="e2crf: event intensity with nothing to look at.")] = None,
    random_probe_ratio: Annotated[float | None, typer.Option(help="e2crf: share of frequencies probed.")] = None,
    trigger: Annotated[str | None, typer.Option(help=f"e2crf: {', '.join(Trigger)}.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="e2crf: effect allowed by trigger impact.")] = None,
    error_feedback: Annotated[float | None, typer.Option(help="e2crf: share of an error passed on.")] = None,
    energy_weighting: Annotated[bool | None, typer.Option(help="e2crf: threshold by energy, or plain.")] = None,
    backend: Annotated[str, typer.Option(help=f"One of {', '.join(BackendName)}.")] = BackendName.ONNXRUNTIME,
    device: Annotated[str | None, typer.Option(help="cpu, cuda; default: the backend's own.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads within one operator; default all.")] = None,
    graphs: Annotated[str, typer.Option(help=f"One of {', '.join(Graphs)}.")] = Graphs.STEP,
    as_json: Json = False,
) -> None:
    """Draw series from a bundle and write them with the record of the run.

    Example: e2crf sample bundles/ecg -n 1000 --out samples.npz
    """
    from runtime.output import prepare_output, write_samples

    knobs = {"policy": policy, "R": refresh, "K": low, "low_every": low_every, "reuse": reuse,
             "alpha_prior": alpha_prior, "max_age": max_age, "tau_0": tau_0, "eps": eps, "tau_warn": tau_warn,
             "tau_safe": tau_safe, "random_probe_ratio": random_probe_ratio, "trigger": trigger,
             "tolerance": tolerance, "error_feedback": error_feedback,
             "energy_weighting": energy_weighting}  # fmt: skip
    cache = _cache(uncached, plan, preset, {name: value for name, value in knobs.items() if value is not None})
    with load(bundle, backend, device=device, threads=threads, graphs=graphs) as model:
        settings = model.settings(steps, solver, grid, cache)
        prepare_output(out, overwrite=overwrite)
        if model.backend.name == BackendName.FAKE:
            say("warning: backend fake stands in for the network with a formula; its series are not the model's")
        facts = {"bundle": bundle.resolve().name, "source_digest": model.manifest.source.digest, "seed": seed,
                 "backend": model.backend.name, "precision": model.manifest.precision,
                 "first_sample": first_sample, "steps": settings.steps, "solver": settings.solver,
                 "grid": settings.grid, "cache": None if cache is None else settings.facts}  # fmt: skip
        try:
            with steps_progress(num_samples, batch_size, settings.steps) as on_progress:
                drawn = model.sample(
                    num_samples, steps=settings.steps, solver=settings.solver, grid=settings.grid, seed=seed,
                    batch_size=batch_size, cache=settings.cache, on_progress=on_progress, first_sample=first_sample,
                )  # fmt: skip
        except Interrupted as stop:
            _keep(stop.samples, out, facts)
            raise
    write_samples(out, drawn, facts)
    result = facts | {"out": str(out)} | drawn.stats.summary()
    finish(result, as_json, f"{out}: {num_samples} series in {drawn.stats.seconds:.1f} s, {_saving(drawn)}")


def _cache(uncached: bool, plan: Path | None, preset: str | None, knobs: dict[str, Any]) -> Cache | Auto | None:
    """The cache that the options of a command name; at most one way of naming it."""
    ways = {"--uncached": uncached, "--plan": plan is not None, "--preset or its knobs": bool(preset or knobs)}
    named = [way for way, is_given in ways.items() if is_given]
    require(len(named) <= 1, "a cache can be named in one way only", " and ".join(named), "drop one or the other")
    if uncached:
        return None
    if plan is not None:
        return read_plan(plan)
    if preset is not None:
        return E2CRF.preset(preset, **knobs)
    return E2CRF(**knobs) if knobs else Auto.AUTO


def _keep(finished: Samples | None, out: Path, facts: dict[str, Any]) -> None:
    from runtime.output import free_name, write_samples

    if finished is None:
        say("interrupted before a batch was finished; nothing was written")
        return
    partial = free_name(out.with_name(f"{out.stem}.partial-{facts['first_sample']}.npz"))
    write_samples(partial, finished, facts)
    count = len(finished.series)
    say(
        f"interrupted: the {count} finished series are in {partial}; "
        f"go on with --first-sample {facts['first_sample'] + count}"
    )


def _saving(drawn: Samples) -> str:
    stats = drawn.stats
    text = f"{stats.passes:.1f} network passes for {stats.num_steps} steps"
    return text + (f", {stats.num_diverged} diverged" if stats.num_diverged else "")
