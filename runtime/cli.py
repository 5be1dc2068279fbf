"""The command line: a thin skin over the rooms, and the one place that looks at all of them.

Each command builds one options record and makes one call; rooms are imported when their command runs, so
`e2crf sample` on a small machine never loads torch. How errors are said, and the exit codes, are in `command`.
"""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from export.manifest import Manifest, read_manifest
from export.places import BUNDLES, RUNS, find_bundle, real_series
from runtime.backends.base import BackendName
from runtime.cache.options import E2CRF, PolicyName, Preset
from runtime.cache.plan import PLAN_FILE, read_plan
from runtime.cache.policy import Cache, Reuse, Trigger
from runtime.command import exit_with, say
from runtime.errors import OptionError, parse_word, require
from runtime.progress import stages, steps_progress
from runtime.sampler import Auto, Interrupted, Samples, load
from runtime.score import Graphs
from runtime.solvers import Solver, TimeGrid

app = typer.Typer(
    name="e2crf",
    help="Export time-series diffusion models and sample them with E2-CRF caching.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else.")]
BundleArgument = Annotated[
    Path, typer.Argument(help="Bundle: folder, name under bundles/, or `latest`.", callback=find_bundle)
]
ModelArgument = Annotated[str, typer.Argument(help="Checkpoint file, run_id, or `latest`.")]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def train(context: typer.Context, as_json: Json = False) -> None:
    """Train a model; takes Hydra overrides, and --help lists them.

    Example: e2crf train datamodule=ucr datamodule.name=GunPoint trainer.max_epochs=100
    """
    from train.run import main as train_main
    from train.run import train as train_model

    if not as_json:
        raise typer.Exit(train_main(context.args))
    _finish({"checkpoint": str(train_model(context.args))}, as_json, "")


@app.command()
def export(
    model: ModelArgument,
    bundle: Annotated[Path | None, typer.Option(help="Where to write; default bundles/<run_id>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle of another model.")] = False,
    dtype: Annotated[str, typer.Option(help="Precision of the layers, for engines: fp32, fp16, bf16.")] = "fp32",
    license: Annotated[str | None, typer.Option(help="For the model card: apache-2.0, cc-by-4.0 ...")] = None,
    data: Annotated[str | None, typer.Option(help="Training data of an fdiff checkpoint: Hydra overrides.")] = None,
    statistics: Annotated[str | None, typer.Option(help="Or its mean and std (.npz), or `none`.")] = None,
    domain: Annotated[str | None, typer.Option(help="Its domain, frequency or time, if the noise misleads.")] = None,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into a verified bundle of split ONNX graphs.

    Example: e2crf export latest --bundle bundles/ecg
    A checkpoint of FourierDiffusion: e2crf export fdiff.ckpt --data "datamodule=ecg datamodule.data_dir=data/ecg"
    """
    from export.bundle import ExportOptions, default_folder, export_bundle
    from export.checkpoint import find_checkpoint, read_checkpoint

    checkpoint = read_checkpoint(find_checkpoint(model, RUNS), _supplement(data, statistics, domain))
    folder = bundle or default_folder(checkpoint, dtype)
    with stages() as tell:
        manifest = export_bundle(checkpoint, ExportOptions(folder, overwrite, license, dtype), tell)
    result = {"bundle": str(folder), "graphs": len(manifest.graphs), "precision": manifest.precision,
              "parity": manifest.parity}  # fmt: skip
    _finish(result, as_json, f"{folder}: {len(manifest.graphs)} graphs, {_parity(manifest)}")


def _supplement(data: str | None, statistics: str | None, domain: str | None) -> Any:
    """What the options tell of a checkpoint of upstream's, None if they are all left out."""
    from export.upstream import Supplement, statistics_from_file

    require(domain in (None, "frequency", "time"), "--domain must be frequency or time", domain, "leave it out")
    require(data is None or statistics is None, "give either --data or --statistics", "both", "leave one out")
    if data is not None:
        from train.statistics import statistics_of_data

        overrides = shlex.split(data)
        return Supplement(lambda found: statistics_of_data(overrides, found), domain)
    if statistics is not None:
        known = None if statistics == "none" else statistics_from_file(Path(statistics))
        return Supplement(lambda _: known, domain)
    require(domain is None, "--domain needs --data or --statistics beside it", domain, "name the training data")
    return None


@app.command()
def verify(
    bundle: BundleArgument,
    model: Annotated[str | None, typer.Option(help="Checkpoint; default: the run the bundle names.")] = None,
    as_json: Json = False,
) -> None:
    """Measure every graph of a bundle, the chain and a trajectory against PyTorch.

    Example: e2crf verify bundles/ecg
    """
    from export.verify import verify_bundle

    manifest, checkpoint = read_manifest(bundle), _checkpoint_of(bundle, model)
    with stages() as tell:
        tell("verifying against PyTorch")
        errors = verify_bundle(bundle, manifest, checkpoint)
    found = replace(manifest, parity=errors)
    _finish({"bundle": str(bundle), "parity": errors}, as_json, f"{bundle}: {_parity(found)}")


def _checkpoint_of(bundle: Path, model: str | None) -> Any:
    """The checkpoint a bundle was made from, named or found by its run_id; another one is refused."""
    from export.checkpoint import CheckpointError, checkpoint_of, find_checkpoint

    manifest = read_manifest(bundle, verify_digests=False)
    source = manifest.source
    checkpoint = checkpoint_of(find_checkpoint(model or source.run_id or source.checkpoint, RUNS), manifest)
    if checkpoint.digest != source.digest:
        raise CheckpointError(
            f"{checkpoint.path} is not what {bundle} was made from: its SHA-256 is {checkpoint.digest[:12]}..., "
            f"the bundle names {source.checkpoint} with {source.digest[:12]}...; give that file with --model"
        )
    return checkpoint


@app.command()
def build(
    bundle: BundleArgument,
    flavor: Annotated[str, typer.Option(help="rtx (TensorRT-RTX, needs no GPU), tensorrt.")] = "rtx",
    parts: Annotated[str, typer.Option(help="step (the network as one engine), split, all.")] = "step",
    batch: Annotated[int, typer.Option(help="Largest batch.")] = 64,
    best_batch: Annotated[int | None, typer.Option(help="Batch to be fastest at; default the largest.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Numbers of tokens, as 5,64; default 8,32,128. N always.")] = None,
    tf32: Annotated[bool, typer.Option("--tf32/--no-tf32", help="Let float32 products round to 10 bits.")] = False,
    target: Annotated[str | None, typer.Option(help="rtx: compute capabilities, as 8.6,8.9; default all.")] = None,
    as_json: Json = False,
) -> None:
    """Build the engines of a bundle; those that are there and whole are kept.

    Example: e2crf build bundles/ecg --parts all
    """
    from engines.build import build_engines
    from engines.describe import outcomes_in_words
    from engines.flavor import Flavor
    from engines.recipe import BUCKETS, Parts, Recipe

    recipe = Recipe(
        flavor=parse_word(Flavor, flavor, "flavour"),
        parts=parse_word(Parts, parts, "set of parts"),
        batch=batch,
        best_batch=best_batch,
        buckets=BUCKETS if tokens is None else _numbers(tokens, "--tokens", "5,64"),
        tf32=tf32,
        targets=() if target is None else tuple(word.strip() for word in target.split(",")),
    )
    with stages() as tell:
        outcomes = build_engines(bundle, recipe, tell)
    result, text = outcomes_in_words(outcomes)
    _finish({"bundle": str(bundle)} | result, as_json, text)


@app.command()
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
    reuse: Annotated[str | None, typer.Option(help=f"What is reused: {', '.join(Reuse)}.")] = None,
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

    prepare_output(out, overwrite=overwrite)
    knobs = {"policy": policy, "R": refresh, "K": low, "low_every": low_every, "reuse": reuse,
             "alpha_prior": alpha_prior, "max_age": max_age, "tau_0": tau_0, "eps": eps, "tau_warn": tau_warn,
             "tau_safe": tau_safe, "random_probe_ratio": random_probe_ratio, "trigger": trigger,
             "tolerance": tolerance, "error_feedback": error_feedback,
             "energy_weighting": energy_weighting}  # fmt: skip
    cache = _cache(uncached, plan, preset, {name: value for name, value in knobs.items() if value is not None})
    with load(bundle, backend, device=device, threads=threads, graphs=graphs) as model:
        settings = model.settings(steps, solver, grid, cache)
        facts = {"bundle": bundle.name, "source_digest": model.manifest.source.digest, "seed": seed,
                 "first_sample": first_sample, "steps": settings.steps, "solver": settings.solver,
                 "grid": settings.grid, "cache": None if cache is None else settings.facts}  # fmt: skip
        try:
            with steps_progress(num_samples, batch_size, settings.steps) as on_step:
                drawn = model.sample(
                    num_samples, steps=settings.steps, solver=settings.solver, grid=settings.grid, seed=seed,
                    batch_size=batch_size, cache=settings.cache, on_step=on_step, first_sample=first_sample,
                )  # fmt: skip
        except Interrupted as stop:
            _keep(stop.samples, out, facts)
            raise
    write_samples(out, drawn, facts)
    result = facts | {"out": str(out)} | drawn.stats.summary()
    _finish(result, as_json, f"{out}: {num_samples} series in {drawn.stats.seconds:.1f} s, {_saving(drawn)}")


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
    from runtime.output import write_samples

    if finished is None:
        say("interrupted before a batch was finished; nothing was written")
        return
    partial = out.with_name(f"{out.stem}.partial-{facts['first_sample']}.npz")  # never over an earlier one
    write_samples(partial, finished, facts)
    count = len(finished.series)
    say(
        f"interrupted: the {count} finished series are in {partial}; "
        f"go on with --first-sample {facts['first_sample'] + count}"
    )


@app.command()
def calibrate(
    bundle: BundleArgument,
    steps: Annotated[str, typer.Option(help="Solver steps; several, as 1000,200, to choose among.")] = "1000",
    solver: Annotated[str, typer.Option(help=f"One or several of {', '.join(Solver)}.")] = Solver.DDIM,
    grid: Annotated[str, typer.Option(help=f"Times: {', '.join(TimeGrid)}.")] = TimeGrid.UNIFORM,
    budget: Annotated[float, typer.Option(help="Share by which sliced Wasserstein may grow.")] = 0.02,
    reference: Annotated[Path | None, typer.Option(help="Real series (.npz); default: those of the run.")] = None,
    minutes: Annotated[float, typer.Option(help="Time it may take, about.")] = 12.0,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the time, fewer samples.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads within one operator; default all.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default plan.json in the bundle.")] = None,
    as_json: Json = False,
) -> None:
    """Find the plan with the fewest network passes whose samples are as good as uncached, and keep it.

    Example: e2crf calibrate bundles/ecg --budget 0.02
    """
    from bench.calibrate import CalibrateOptions
    from bench.calibrate import calibrate as find_plan
    from bench.report import progress_on_terminal

    run = read_manifest(bundle, verify_digests=False).source.run_id
    options = CalibrateOptions(
        bundle=bundle,
        steps=_numbers(steps),
        solvers=tuple(word.strip() for word in solver.split(",")),
        grid=grid,
        budget=budget,
        reference=reference or real_series(run),
        minutes=minutes / 5 if quick else minutes,
        seed=seed,
        threads=threads,
    )
    path = out or bundle / PLAN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    with progress_on_terminal() as progress:
        plan = find_plan(options, progress)
    found = plan.measured
    verdict = f"{found['passes']:.4g} passes for {plan.steps} {plan.solver} steps, refreshes at {plan.refreshes}"
    if not found["met"]:
        say(f"no plan of those tried keeps sliced Wasserstein within {budget:.1%}; the closest: {verdict}; "
             "nothing was written: allow a larger --budget, or train longer")  # fmt: skip
        if as_json:
            print(json.dumps({"plan": None, "measured": found}))
        raise typer.Exit(1)
    plan.write(path)
    _finish({"plan": str(path), "measured": found}, as_json, f"{path}: {verdict}")


def _numbers(text: str, option: str = "--steps", example: str = "1000") -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise OptionError(
            f"{option} must be whole numbers with commas between, found {text!r}; write {example}"
        ) from None


@app.command()
def bench(
    bundle: BundleArgument,
    model: Annotated[str | None, typer.Option(help="Checkpoint; default: the run the bundle names.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Real series (.npz); default: those of the run.")] = None,
    part: Annotated[str, typer.Option(help="Part of the real series that judges: test, train.")] = "test",
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Series to judge quality on.")] = 64,
    uncached: Annotated[Path | None, typer.Option(help="Uncached samples drawn before (sample --uncached).")] = None,
    num_uncached: Annotated[int | None, typer.Option(help="Fewer of them uncached; default: as many.")] = None,
    batch_size: Annotated[int, typer.Option(help="Batch that is timed.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of timing, rivals in turn.")] = 5,
    limit_s: Annotated[float, typer.Option(help="Time an uncached rival over fewer steps beyond this.")] = math.inf,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 1000,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(Solver)}.")] = Solver.ANCESTRAL,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    max_sw_loss: Annotated[float | None, typer.Option(help="Fail if caching costs more than this share.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for samples (.npz), table and pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Compare PyTorch, ONNX Runtime and caching: speed and quality in one table.

    Example: e2crf bench bundles/ecg --max-sw-loss 0.02
    """
    from bench.compare import CompareOptions, compare
    from bench.latency import RaceOptions
    from bench.report import progress_on_terminal, show, write_results
    from export.checkpoint import run_folder

    checkpoint = _checkpoint_of(bundle, model)
    options = CompareOptions(
        bundle=bundle,
        reference=reference or run_folder(checkpoint) / "reference.npz",
        checkpoint=checkpoint.path,
        part=part,
        num_samples=num_samples,
        uncached=uncached,
        num_uncached=num_uncached,
        batch_size=batch_size,
        steps=steps,
        solver=solver,
        seed=seed,
        race=RaceOptions(rounds=rounds, limit_s=limit_s),
        max_sw_loss=max_sw_loss,
    )
    with progress_on_terminal() as progress:
        found = compare(options, progress)
    if out is not None:
        write_results(found, out)
    if as_json:
        print(found.record.to_line())
    else:
        show(found.record)
    if found.record.failures:
        for failure in found.record.failures:
            say(failure)
        raise typer.Exit(1)


@app.command()
def inspect(
    what: Annotated[str | None, typer.Argument(help="Bundle or run, by folder or name, or `latest`.")] = None,
    as_json: Json = False,
) -> None:
    """Describe a bundle and print its model card, or a run; without a name list the runs and bundles here.

    Example: e2crf inspect bundles/ecg
    """
    from runtime.describe import describe

    result, text = describe(what)
    if "bundle" in result:
        from engines.describe import describe_engines

        folder = Path(result["bundle"])
        engines, lines = describe_engines(folder, read_manifest(folder, verify_digests=False))
        result, text = result | {"engines": engines}, "\n".join([text, lines, *_card_lines(result["card"])])
    _finish(result, as_json, text)


def _card_lines(card: str | None) -> list[str]:
    return [] if card is None else ["", card.rstrip()]


Place = Annotated[str, typer.Argument(help="user/name on the Hugging Face Hub, or file:FOLDER.")]


@app.command()
def push(
    bundle: BundleArgument,
    target: Place,
    private: Annotated[bool, typer.Option("--private/--public", help="A repository that is made for it.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another model in a folder.")] = False,
    as_json: Json = False,
) -> None:
    """Share a bundle: graphs, manifest, plan and model card go to the Hub or a folder; engines and reports stay.

    Example: e2crf push bundles/ecg user/ecg
    """
    from export.card import UNKNOWN_LICENSE, read_card
    from runtime.hub import PushOptions
    from runtime.hub import push as push_bundle

    card = read_card(bundle)
    if card is None or card[1] == UNKNOWN_LICENSE:
        say("warning: the model card names no licence; set one with `e2crf export <model> --license apache-2.0`")
    with stages() as tell:
        tell(f"pushing {bundle}")
        address = push_bundle(PushOptions(bundle, target, private, overwrite))
    _finish({"bundle": str(bundle), "address": address}, as_json, f"{bundle} is at {address}")


@app.command()
def pull(
    source: Place,
    bundle: Annotated[Path | None, typer.Option(help="Where to write; default bundles/<name>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a bundle from the Hub or a folder, and check every digest before it gets its name.

    Example: e2crf pull user/ecg
    """
    from runtime.hub import PullOptions
    from runtime.hub import pull as pull_bundle

    folder = bundle or BUNDLES / source.rstrip("/").rpartition("/")[2].removeprefix("file:")
    with stages() as tell:
        tell(f"pulling {source}")
        is_new = pull_bundle(PullOptions(source, folder, overwrite))
    text = f"{folder} is {source}" if is_new else f"{folder} holds this model already and was kept as it is"
    _finish({"bundle": str(folder), "source": source, "is_new": is_new}, as_json, text)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to install for the rest.

    Example: e2crf doctor
    """
    from engines.describe import examine_engines
    from runtime.doctor import examine

    (result, text), (engines, lines) = examine(), examine_engines()
    _finish(result | {"engines": engines}, as_json, f"{text}\n{lines}")
    if not result["sample"]["ready"]:
        raise typer.Exit(1)


def _finish(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)


def _parity(manifest: Manifest) -> str:
    is_exact, parity = manifest.precision == "fp32", manifest.parity
    worst = (max if is_exact else min)(parity, key=lambda name: parity[name])
    what = "largest relative error" if is_exact else "least SQNR"
    return f"{what} against PyTorch {manifest.parity_in_words(worst)} ({worst})"


def _saving(drawn: Samples) -> str:
    stats = drawn.stats
    text = f"{stats.passes:.1f} network passes for {stats.num_steps} steps"
    return text + (f", {stats.num_diverged} diverged" if stats.num_diverged else "")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `e2crf`."""
    exit_with(lambda: app(arguments, standalone_mode=False))


if __name__ == "__main__":
    main()
