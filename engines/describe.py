"""Engines in words: what `inspect` says of those in a bundle, and `doctor` of what this machine can build and run."""

import importlib.util
from pathlib import Path
from typing import Any

from engines.build import Outcome
from engines.flavor import Flavor, installed_version
from engines.gpu import Gpu
from engines.store import Entry, Store
from export.manifest import Manifest

_AMPERE = (8, 0)  # the first that TensorRT-RTX runs on
_DATA_CENTRE = ((9, 0), (10, 0), (10, 3))  # Hopper and Blackwell, which TensorRT-RTX leaves to TensorRT


def describe_engines(bundle: Path, manifest: Manifest) -> tuple[list[dict[str, Any]], str]:
    """Facts and lines of every engine in a bundle, the damaged and the unused too."""
    rows = [_row(entry, manifest) for entry in Store(bundle).entries()]
    if not rows:
        return [], "engines     none; build them with `e2crf build`"
    lines = ["engine                        MiB  precision  tokens x batch           made by, for"]
    lines += [_line(row) for row in rows]
    return rows, "\n".join(lines)


def _row(entry: Entry, manifest: Manifest) -> dict[str, Any]:
    if entry.record is None:
        return {"key": entry.key, "state": f"{entry.fault}; `e2crf build` makes it again"}
    made = entry.record.ingredients
    graph = manifest.graphs.get(made.graph)
    is_ours = graph is not None and graph.digest == made.graph_digest
    return {
        "key": entry.key,
        "state": "ready" if is_ours else "of a graph that this bundle no longer has; delete its folder",
        "graph": made.graph,
        "precision": entry.record.precision + (" tf32" if made.tf32 else ""),
        "profiles": [{"tokens": profile.tokens, "batch": profile.batch} for profile in made.profiles],
        "size": entry.record.size,
        "seconds": entry.record.seconds,
        "flavor": made.flavor,
        "library": made.library,
        "target": made.target,
    }


def _line(row: dict[str, Any]) -> str:
    if "graph" not in row:
        return f"{row['key']:<26} {row['state']}"
    tokens = ",".join(str(profile["tokens"]) for profile in row["profiles"])
    sizes = f"{tokens} x 1..{max(profile['batch'][-1] for profile in row['profiles'])}"
    made = f"{row['flavor']} {row['library']}, {row['target']}"
    unused = "" if row["state"] == "ready" else f": {row['state']}"
    return f"{row['key']:<26} {row['size'] / 2**20:>6.1f}  {row['precision']:<9}  {sizes:<23}  {made}{unused}"


def outcomes_in_words(outcomes: list[Outcome]) -> tuple[dict[str, Any], str]:
    """What one build did: facts, and a line for every engine."""
    rows, lines = [], []
    for outcome in outcomes:
        record, key = outcome.record, outcome.record.ingredients.key
        state = "kept" if not outcome.built else "built" if outcome.reason == "new" else "rebuilt"
        why = f" (the one there {outcome.reason})" if state == "rebuilt" else ""
        rows.append({"key": key, "state": state, "reason": outcome.reason, "size": record.size,
                     "seconds": record.seconds})  # fmt: skip
        lines.append(f"{state:<8} {key:<26} {record.size / 2**20:>6.1f} MiB  {record.seconds:>6.1f} s{why}")
    made = outcomes[0].record.ingredients
    built = sum(outcome.built for outcome in outcomes)
    lines.append(f"{built} built, {len(outcomes) - built} kept; {made.flavor} {made.library}, for {made.target}")
    facts = {"flavor": made.flavor, "library": made.library, "target": made.target, "num_built": built, "engines": rows}
    return facts, "\n".join(lines)


def examine_engines(gpu: Gpu | None) -> tuple[dict[str, Any], str]:
    """What can be built and run here, by flavour, and what to install for the rest; imports neither library."""
    facts: dict[str, Any] = {"gpu": None if gpu is None else gpu.target}
    lines = ["engines"]
    for flavor in Flavor:
        version, fits = installed_version(flavor), gpu is not None and _fits(flavor, gpu)
        lacks_core = fits and not _has_cuda_core()
        builds = version is not None and (flavor is Flavor.RTX or gpu is not None)
        facts[flavor] = {"version": version, "builds": builds, "runs": version is not None and fits and not lacks_core}
        if version is None:
            words = f"lacks {flavor.product}; pip install 'e2crf[{flavor}]'"
        elif not builds:
            words = f"{flavor.product} {version} builds on the GPU that runs the engine, and there is none here"
        else:
            other = "there is no GPU here" if gpu is None else f"the GPU here, {gpu.target}, takes those of tensorrt"
            where = "and runs them here" if fits else f"for other machines: {other}"
            where = "and lacks cuda.core to run them; pip install 'e2crf[gpu]'" if lacks_core else where
            words = f"{flavor.product} {version} builds engines {where}"
        lines.append(f"  {flavor:<8} {words}")
    return facts, "\n".join(lines)


def _fits(flavor: Flavor, gpu: Gpu) -> bool:
    """Whether a GPU runs engines of a flavour."""
    return flavor is Flavor.TENSORRT or (gpu.capability >= _AMPERE and gpu.capability not in _DATA_CENTRE)


def _has_cuda_core() -> bool:
    try:
        return importlib.util.find_spec("cuda.core") is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False
