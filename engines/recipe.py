"""What to build: which parts, for which batches and numbers of tokens, with which library.

Every engine takes any batch from 1 to `batch` and a few fixed numbers of tokens S, each an optimization profile
of its own. Fixed S is what lets the backend capture each one as a CUDA graph; a set of other size is padded up
to the next one. The usual ones are few and far apart, since a GPU takes 8 tokens as fast as one.
"""

from dataclasses import dataclass
from enum import StrEnum

from engines.errors import RecipeError
from engines.flavor import Flavor
from export.manifest import Graph, Manifest

BUCKETS = (8, 32, 128)  # and N

_MOST = 65_536  # samples; far more than any GPU holds, and far from 2^31, where the library takes no shape

Shape = tuple[int, ...]


class Parts(StrEnum):
    """Which graphs become engines."""

    STEP = "step"  # the whole network as one engine
    SPLIT = "split"  # embed, every layer and head
    ALL = "all"


@dataclass(frozen=True)
class Recipe:
    """One `e2crf build`; what is left out is filled in for the bundle."""

    flavor: Flavor = Flavor.RTX
    parts: Parts = Parts.STEP
    batch: int = 64  # the largest
    best_batch: int | None = None  # the one the kernels are chosen for; default the largest
    buckets: tuple[int, ...] = BUCKETS  # numbers of tokens; those of N and more become N, which always is one
    tf32: bool = False  # let float32 products round to 10 bits on tensor cores
    targets: tuple[str, ...] = ()  # compute capabilities, rtx only

    def __post_init__(self) -> None:
        best = self.batch if self.best_batch is None else self.best_batch
        if not 1 <= best <= self.batch:
            raise RecipeError(
                f"the largest batch must be at least 1 and the best batch between, found {self.batch} and {best}; "
                "64 is the default"
            )
        if self.batch > _MOST:
            raise RecipeError(f"the largest batch must be at most {_MOST:,}, found {self.batch:,}; 64 is the default")
        if any(size < 1 for size in self.buckets):
            raise RecipeError(f"numbers of tokens must be at least 1, found {min(self.buckets)}; leave it out")


@dataclass(frozen=True)
class Profile:
    """One optimization profile: S fixed, B between bounds."""

    tokens: int  # S
    batch: list[int]  # least, best, largest

    def shapes(self, graph: Graph) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Least, best and largest shape of every input of a graph."""
        return {
            tensor.name: (
                self._shape(tensor.shape, self.batch[0]),
                self._shape(tensor.shape, self.batch[1]),
                self._shape(tensor.shape, self.batch[2]),
            )
            for tensor in graph.inputs
        }

    def _shape(self, dims: list[int | str], batch: int) -> Shape:
        return tuple(size if isinstance(size, int) else {"B": batch, "S": self.tokens}[size] for size in dims)


def graphs_to_build(manifest: Manifest, parts: Parts) -> dict[str, Graph]:
    """The graphs that a recipe names."""
    wanted = {Parts.STEP: lambda name: name == "step", Parts.SPLIT: lambda name: name != "step"}
    return {name: graph for name, graph in manifest.graphs.items() if parts is Parts.ALL or wanted[parts](name)}


def profiles_of(graph: Graph, recipe: Recipe, num_tokens: int) -> list[Profile]:
    """The profiles of one graph; a single one where S is not dynamic."""
    dims = {size for tensor in graph.inputs for size in tensor.shape if isinstance(size, str)}
    if unknown := sorted(dims - {"B", "S"}):
        raise RecipeError(
            f"{graph.file} has the dynamic dimension {unknown[0]!r}, known are B and S; export the bundle again"
        )
    sizes = sorted({min(size, num_tokens) for size in recipe.buckets} | {num_tokens}) if "S" in dims else [num_tokens]
    return [Profile(size, [1, recipe.best_batch or recipe.batch, recipe.batch]) for size in sizes]
