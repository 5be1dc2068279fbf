"""Bundles and runs in words: what `e2crf inspect` prints, before the card of a bundle what no card holds."""

from pathlib import Path
from typing import Any

from export.card import read_card
from export.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest
from export.places import BUNDLES, LATEST, RUNS, bundles_in, find_bundle, runs_in
from export.runs import Run, read_run
from runtime.cache.plan import PLAN_FILE, Plan, read_plan


def describe(what: str | None) -> tuple[dict[str, Any], str]:
    """What a name stands for: a bundle, a run, a folder of runs; None: all runs and bundles here."""
    if what is None:
        return list_here()
    if what == LATEST and not bundles_in() and (runs := runs_in()):
        return describe_run(runs[0])
    folder = find_bundle(what)
    run = next((run for run in (Path(what), RUNS / what) if any(run.glob("checkpoints/*.ckpt"))), None)
    if run is not None and not (folder / MANIFEST_FILE).is_file():
        return describe_run(run)
    return list_here(Path(what)) if runs_in(Path(what)) else describe_bundle(folder)


def list_here(runs: Path = RUNS, bundles: Path = BUNDLES) -> tuple[dict[str, Any], str]:
    """The training runs and bundles of two folders, newest first."""
    found_runs, found_bundles = [read_run(run) for run in runs_in(runs)], bundles_in(bundles)
    rows = [["run_id", "data", "network", "epochs", "best val loss", "written (UTC)"]]
    rows += [[_told(fact) for fact in _facts(run).values()] for run in found_runs]
    made = {bundle.name: _made_from(bundle) for bundle in found_bundles}
    lines = [f"runs in {runs}: {'' if found_runs else 'none; train one with `e2crf train`'}".rstrip()]
    lines += _columns(rows) if found_runs else []
    lines += [f"bundles in {bundles}: {'' if made else 'none; make one with `e2crf export latest`'}".rstrip()]
    rows = [["bundle", "data", "network", "precision", "run", "plan"]]
    rows += [[name, *(_told(fact) for fact in facts.values())] for name, facts in made.items()]
    lines += _columns(rows) if made else []
    result = {
        "runs": [run.run_id for run in found_runs],
        "bundles": list(made),
        "run_facts": [_facts(run) for run in found_runs],
        "bundle_facts": made,
    }
    return result, "\n".join(lines)


def describe_run(folder: Path) -> tuple[dict[str, Any], str]:
    """Facts of a training run."""
    run = read_run(folder)
    facts = _facts(run) | {"steps": run.steps, "best_epoch": run.best_epoch, "train_loss": run.train_loss}
    checkpoints = sorted(file.name for file in folder.glob("checkpoints/*.ckpt"))
    shown = facts | {"checkpoints": ", ".join(checkpoints)}
    lines = _columns([[name.replace("_", " "), _told(fact)] for name, fact in shown.items()])
    lines.append(f"export it with `e2crf export {run.run_id}`")
    return {"run": str(folder), **facts, "checkpoints": checkpoints, "config": run.config}, "\n".join(lines)


def _facts(run: Run) -> dict[str, Any]:
    return {"run_id": run.run_id, "data": run.data, "backbone": run.backbone, "epochs": run.epochs,
            "best_val_loss": run.best_val_loss, "written": run.written}  # fmt: skip


def _made_from(bundle: Path) -> dict[str, Any]:
    """What a line of the list says of a bundle; a damaged one is named too."""
    try:
        manifest = read_manifest(bundle, verify_digests=False)
    except ManifestError:
        return {"data": "(damaged)", "backbone": None, "precision": None, "run_id": None, "plan": None}
    source, has_plan = manifest.source, (bundle / PLAN_FILE).is_file()
    return {"data": source.data, "backbone": manifest.network.backbone, "precision": manifest.precision,
            "run_id": source.run_id, "plan": has_plan}  # fmt: skip


def _told(fact: Any) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, float):
        return f"{fact:.3e}"
    return "-" if fact is None else str(fact)


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def describe_bundle(bundle: Path) -> tuple[dict[str, Any], str]:
    """Facts of a bundle; damaged graphs are reported in the text, not raised."""
    manifest = read_manifest(bundle, verify_digests=False)
    try:
        read_manifest(bundle)
        state = "complete"
    except ManifestError as error:
        state = str(error)
    network, diffusion, source = manifest.network, manifest.diffusion, manifest.source
    rows = _graph_rows(bundle, manifest)
    plan = read_plan(bundle / PLAN_FILE) if (bundle / PLAN_FILE).exists() else None
    card, license = read_card(bundle) or (None, None)
    result = {
        "bundle": str(bundle),
        "state": state,
        "source": vars(source),
        "network": vars(network),
        "diffusion": vars(diffusion),
        "graphs": rows,
        "parity": manifest.parity,
        "plan": None if plan is None else plan.to_dict(),
        "license": license,
        "card": card,
    }
    facts = [
        f"made from   {source.checkpoint}, run {source.run_id}, data {source.data}, by {source.producer}",
        f"network     {network.backbone}: N {network.num_tokens}, C {network.num_channels}, d {network.d_model}, "
        f"{network.num_heads} heads, {network.num_layers} layers, d_ff {network.d_ff}",
        f"process     {diffusion.process} {diffusion.parameters}, {diffusion.domain} domain",
    ]
    lines = [
        f"bundle      {bundle} ({state})",
        *(facts if card is None else []),
        f"plan        {_plan_in_words(plan)}",
        "graph       inputs -> outputs                                     KiB   parity",
    ]
    lines += [f"{r['name']:<11} {r['ports']:<52} {r['kib']:>5}   {r['parity']}" for r in rows]
    return result, "\n".join(lines)


def _plan_in_words(plan: Plan | None) -> str:
    if plan is None:
        return "none; make one with `e2crf calibrate`"
    lows = f", the {plan.K} lowest frequencies at {len(plan.low_steps)} more" if plan.low_steps else ""
    return f"{plan.steps} {plan.solver} steps, {plan.reuse}: all tokens at steps {plan.refreshes}{lows}"


def _graph_rows(bundle: Path, manifest: Manifest) -> list[dict[str, Any]]:
    rows = []
    for name, graph in manifest.graphs.items():
        path = bundle / graph.file
        ports = " -> ".join(_ports([tensor.name for tensor in side]) for side in (graph.inputs, graph.outputs))
        size = round(path.stat().st_size / 1024) if path.is_file() else 0
        rows.append({"name": name, "ports": ports, "kib": size, "parity": manifest.parity_in_words(name)})
    return rows


def _ports(names: list[str]) -> str:
    shown = [name for name in names if not name.startswith(("past_", "present_"))]
    return ", ".join([*shown, f"{len(names) - len(shown)} K/V"] if len(shown) < len(names) else shown)
