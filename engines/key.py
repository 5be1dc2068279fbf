"""The name of an engine: all it follows from, and nothing else.

Two builds with the same ingredients give engines that can stand in for each other, so the second one is not made;
a change in any ingredient gives another name, so an engine is never taken for what it is not. Ingredients are as
the builder sees them: a recipe that changes what one graph's engine is made of leaves the others as they are.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from engines.recipe import Profile

SCHEMA = 1  # bump when the same ingredients begin to give another engine


@dataclass(frozen=True)
class Ingredients:
    """All that an engine follows from."""

    graph: str  # step, layer_00, ...
    graph_digest: str  # SHA-256 of the ONNX file
    flavor: str
    library: str  # its version; engines are not portable between versions
    target: str  # what it runs on
    tf32: bool
    profiles: list[Profile]
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """A folder name: the graph, and 16 hex digits of the ingredients' SHA-256."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return f"{self.graph}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
