"""Bundles and runs in words: what `e2crf inspect` prints."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest
from runtime.cache.plan import PLAN_FILE, Plan, read_plan


def list_here(runs_folder: Path, bundles: Path) -> tuple[dict[str, Any], str]:
    """The training runs and bundles under the current folder, newest first."""
    runs = _by_age(runs_folder, "*/checkpoints/*.ckpt", up=2)
    found = _by_age(bundles, f"*/{MANIFEST_FILE}", up=1)
    lines = [f"runs in {runs_folder}: {', '.join(runs) or 'none; train one with `e2crf train`'}"]
    lines.append(f"bundles in {bundles}: {', '.join(found) or 'none; make one with `e2crf export latest`'}")
    return {"runs": runs, "bundles": found}, "\n".join(lines)


def _by_age(folder: Path, pattern: str, *, up: int) -> list[str]:
    newest: dict[str, float] = {}
    for path in folder.glob(pattern):
        name = path.parents[up - 1].name
        newest[name] = max(newest.get(name, 0.0), path.stat().st_mtime)
    return sorted(newest, key=lambda name: -newest[name])


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
    result = {
        "bundle": str(bundle),
        "state": state,
        "source": vars(source),
        "network": vars(network),
        "diffusion": vars(diffusion),
        "graphs": rows,
        "parity": manifest.parity,
        "plan": None if plan is None else asdict(plan),
    }
    lines = [
        f"bundle      {bundle} ({state})",
        f"made from   {source.checkpoint}, run {source.run_id}, data {source.data}, by {source.producer}",
        f"network     {network.backbone}: N {network.num_tokens}, C {network.num_channels}, d {network.d_model}, "
        f"{network.num_heads} heads, {network.num_layers} layers, d_ff {network.d_ff}",
        f"process     {diffusion.process} {diffusion.parameters}, {diffusion.domain} domain",
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
        error = manifest.parity.get(name)
        rows.append({"name": name, "ports": ports, "kib": size, "parity": "-" if error is None else f"{error:.1e}"})
    return rows


def _ports(names: list[str]) -> str:
    shown = [name for name in names if not name.startswith(("past_", "present_"))]
    return ", ".join([*shown, f"{len(names) - len(shown)} K/V"] if len(shown) < len(names) else shown)
