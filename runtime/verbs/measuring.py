"""Measuring a bundle: calibrate, bench, report."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from export.manifest import read_manifest
from export.places import BUNDLES, real_series
from runtime.cache.plan import PLAN_FILE
from runtime.command import say
from runtime.errors import require
from runtime.output import keep_previous, require_writable
from runtime.solvers import Solver, TimeGrid
from runtime.verbs.shared import BundleArgument, Json, checkpoint_of_bundle, finish, numbers


def calibrate(
    bundle: BundleArgument,
    steps: Annotated[str, typer.Option(help="Solver steps; several, as 1000,200, to choose among.")] = "1000",
    solver: Annotated[str, typer.Option(help=f"One or several of {', '.join(Solver)}.")] = Solver.DDIM,
    grid: Annotated[str, typer.Option(help=f"Times: {', '.join(TimeGrid)}.")] = TimeGrid.UNIFORM,
    budget: Annotated[float, typer.Option(help="Share by which sliced Wasserstein may grow.")] = 0.02,
    reference: Annotated[
        Path | None,
        typer.Option(help="Real series (.npz); default: those of the run, else the model's own samples judge."),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time it may take, about.")] = 12.0,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the time, fewer samples.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    search: Annotated[bool, typer.Option("--search", help="Solver, steps and grid from `bench.pareto`.")] = False,
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

    real = reference or real_series(read_manifest(bundle, verify_digests=False).source.run_id)
    options = CalibrateOptions(
        bundle=bundle,
        steps=numbers(steps),
        solvers=tuple(word.strip() for word in solver.split(",")),
        grid=grid,
        budget=budget,
        reference=real,
        minutes=minutes / 5 if quick else minutes,
        seed=seed,
        threads=threads,
        search=search,
    )
    path = out or bundle / PLAN_FILE
    require_writable(path)  # before minutes are spent
    if real is None:
        say("warning: no real series of the run were found here, so the model's own samples judge; "
            "name real ones with --reference")  # fmt: skip
    with progress_on_terminal() as progress:
        plan = find_plan(options, progress)
    found = plan.measured
    passes = "1 pass" if found["passes"] == 1 else f"{found['passes']:.4g} passes"
    verdict = f"{passes} for {plan.steps} {plan.solver} steps, refreshes at {plan.refreshes}"
    last = found["time_was_up_after_refreshes"]
    tried = "1 refresh" if last == 1 else f"{last} refreshes"
    if not found["met"]:
        remedy = "allow a larger --budget, or train longer"
        if real is None:
            remedy = f"name real series with --reference, {remedy}"
        if last is not None:
            remedy = f"the time was up after {tried}, a larger --minutes may try more; else {remedy}"
        say(f"no plan of those tried keeps sliced Wasserstein within {budget:.1%}; the closest is off by "
            f"{found['over_bar_held_out']:.1%}: {verdict}; nothing was written: {remedy}")  # fmt: skip
        if as_json:
            print(json.dumps({"plan": None, "measured": found}))
        raise typer.Exit(1)
    if last is not None:
        say(f"the time was up after {tried}: a larger --minutes may find a better plan")
    previous = keep_previous(path)
    plan.write(path)
    _say_kept(path, previous)
    finish({"plan": str(path), "measured": found}, as_json, f"{path}: {verdict}")


def bench(
    bundle: BundleArgument,
    model: Annotated[str | None, typer.Option(help="Checkpoint; default: the run the bundle names.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Real series (.npz); default: those of the run.")] = None,
    part: Annotated[str, typer.Option(help="Part of the real series that judges: test, train.")] = "test",
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Series to judge quality on.")] = 64,
    uncached: Annotated[
        list[Path] | None, typer.Option(help="Uncached samples drawn before (sample --uncached); may be repeated.")
    ] = None,
    num_uncached: Annotated[
        int | None, typer.Option(help="Fewer of what asks the network at most steps; default: as many.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Batch that is timed.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds of timing, rivals in turn.")] = 21,
    limit_s: Annotated[float, typer.Option(help="Uncached rivals run for so many seconds a turn.")] = 0.3,
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 1000,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(Solver)}.")] = Solver.ANCESTRAL,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    num_search: Annotated[int, typer.Option(help="Series that rivals choose their best form by, at most.")] = 128,
    most_passes: Annotated[
        int, typer.Option(help="Few steps as good are looked for up to here, at most 4 times the cache's, or 8.")
    ] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Without what takes longest.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads within one operator; default all.")] = None,
    max_sw_loss: Annotated[float | None, typer.Option(help="Fail if caching costs more than this share.")] = None,
    old: Annotated[Path | None, typer.Option("--compare", help="Record of before: say what moved since.")] = None,
    max_regression: Annotated[
        float, typer.Option(help="With --compare, fail if speed-up or SW got worse by more, beyond noise.")
    ] = 0.1,
    out: Annotated[Path | None, typer.Option(help="Folder for samples (.npz), table and pictures.")] = None,
    as_json: Json = False,
) -> None:
    """Compare PyTorch, ONNX Runtime and caching: speed and quality in one table.

    Where stdout is no terminal its last line is the record, as JSON. With --compare also what moved since an older
    record; --json then gives `record`, `moves`, `notes`, `failures`.

    Example: e2crf bench bundles/ecg --max-sw-loss 0.02
    """
    from bench.compare import RECORD_FILE, CompareOptions, compare
    from bench.latency import RaceOptions
    from bench.moved import MovedOptions, Setting, facts_of, moved, read_old, show_moves
    from bench.records import Kind, plain
    from bench.report import TABLE_FILE, progress_on_terminal, show, write_results
    from bench.rows import REPORTS
    from export.checkpoint import run_folder

    tolerance, before = MovedOptions(max_regression), None
    if old is not None:  # before anything runs; it may be the file that the bench writes
        digest = read_manifest(bundle, verify_digests=False).source.digest
        before = read_old(old, Setting(Kind.BENCH, digest, solver, steps, batch_size))
    checkpoint = checkpoint_of_bundle(bundle, model)
    places = {"record": bundle / REPORTS / RECORD_FILE}
    require_writable(places["record"])
    if out is not None:
        require_writable(out / TABLE_FILE)
        places["table, samples and pictures"] = out
    options = CompareOptions(
        bundle=bundle,
        reference=reference or run_folder(checkpoint) / "reference.npz",
        checkpoint=checkpoint.path,
        part=part,
        num_samples=num_samples,
        uncached=tuple(uncached or ()),
        num_uncached=num_uncached,
        num_search=num_search,
        most_passes=most_passes,
        quick=quick,
        threads=threads,
        batch_size=batch_size,
        steps=steps,
        solver=solver,
        seed=seed,
        race=RaceOptions(rounds=rounds, limit_s=limit_s),
        max_sw_loss=max_sw_loss,
    )
    with progress_on_terminal() as progress:
        found = compare(options, progress)
    _say_kept(places["record"], found.previous)
    if out is not None:
        write_results(found, out)
    since = None if before is None else moved(before, found.record, tolerance)
    if as_json and since is not None:
        print(json.dumps({"record": plain(asdict(found.record)), **facts_of(since)}))
    elif as_json:
        print(found.record.to_line())
    else:
        if since is not None:
            show_moves(since)
        show(found.record, places=places)
    failures = (*found.record.failures, *(() if since is None else since.failures))
    for failure in failures:
        say(failure)
    if failures:
        raise typer.Exit(1)


def _say_kept(path: Path, previous: Path | None) -> None:
    if previous is not None:
        say(f"{path} was replaced; what it held before is kept as {previous}")


def report(
    records: Annotated[
        list[Path] | None, typer.Argument(help="Records, bundles, or folders of either; default: all here.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("report"),
    as_json: Json = False,
) -> None:
    """Put records on one page with their charts.

    Example: e2crf report bench/results --out report
    """
    from bench.page import write_report

    here = [place for place in (Path("bench/results"), BUNDLES) if place.is_dir()]
    paths = records or here
    require(bool(paths), "records must be named, or lie in bench/results or bundles", "neither", "run `e2crf bench`")
    written = [str(path) for path in write_report(paths, out)]
    finish({"records": list(map(str, paths)), "written": written}, as_json, "\n".join(written))
