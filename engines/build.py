"""graphs -> engines: `e2crf build`.

    build_engines(Path("bundles/ecg"), Recipe(parts=Parts.ALL))      # a second time builds nothing

For every graph: the key of the engine it should have; is that one there and whole? If not, build it, under the
lock of the store, and look again first, since another builder may have been quicker.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.compiler import engine_bytes
from engines.flavor import Toolkit, open_toolkit, target_of
from engines.key import Ingredients
from engines.recipe import Recipe, graphs_to_build, profiles_of
from engines.store import Entry, Record, Store
from export.manifest import FLOAT32_PARTS, Graph, check_graph_file, read_manifest

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one engine."""

    record: Record
    built: bool
    reason: str  # why it was built: "new", or what was wrong with the one that was there


def build_engines(bundle: Path, recipe: Recipe, tell: Tell = lambda line: None) -> list[Outcome]:
    """Make the engines of a recipe, keeping those that are there; `tell` hears what is under way.

    Raises a `ManifestError` for a damaged bundle, a `RecipeError` for a recipe that cannot be meant, and an
    `EngineError` that names the graph and the first cause for one that cannot be built; the engines before it stay.
    """
    manifest = read_manifest(bundle, verify_digests=False)
    toolkit = open_toolkit(recipe.flavor)
    target, store = target_of(toolkit, recipe.targets), Store(bundle)
    graphs = graphs_to_build(manifest, recipe.parts)
    outcomes = []
    for position, (name, graph) in enumerate(graphs.items(), 1):
        check_graph_file(bundle, name, graph)
        ingredients = Ingredients(
            graph=name,
            graph_digest=graph.digest,
            flavor=recipe.flavor,
            library=toolkit.version,
            target=target,
            tf32=recipe.tf32,
            profiles=profiles_of(graph, recipe, manifest.network.num_tokens),
        )
        title = f"{name}, engine {position} of {len(graphs)}"
        tell(title)
        precision = "fp32" if name in FLOAT32_PARTS else manifest.precision
        outcomes.append(_make(toolkit, store, bundle / graph.file, graph, ingredients, precision, _under(title, tell)))
    return outcomes


def _make(
    toolkit: Toolkit, store: Store, path: Path, graph: Graph, ingredients: Ingredients, precision: str, tell: Tell
) -> Outcome:
    if (kept := _whole(store.find(ingredients.key))) is not None:
        return Outcome(kept, built=False, reason="")
    with store.lock(tell):
        found = store.find(ingredients.key)  # another builder may have been quicker
        if (kept := _whole(found)) is not None:
            return Outcome(kept, built=False, reason="")
        begun = time.perf_counter()
        engine = engine_bytes(toolkit, path, graph, ingredients, tell)
        record = store.write(ingredients, engine, time.perf_counter() - begun, precision)
    return Outcome(record, built=True, reason="new" if found is None else found.fault)


def _whole(entry: Entry | None) -> Record | None:
    return None if entry is None else entry.record


def _under(title: str, tell: Tell) -> Tell:
    return lambda line: tell(f"{title}: {line}")
