"""The cache on step and on split graphs: the same decisions from the same features."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.manifest import Graph
from runtime.cache.options import E2CRF
from runtime.errors import OptionError
from runtime.sampler import Model, load
from tests import opened
from tests.cache_doubles import MIXED, Listening, close
from tests.tiny import make_bundle

tiny = opened.tiny


@pytest.mark.parametrize("num_layers", [2, 3])
@pytest.mark.parametrize("knobs", [{}, {"trigger": "impact", "tau_warn": None}], ids=["feature", "impact"])
def test_step_and_split_graphs_agree_on_every_event(tmp_path: Path, knobs: dict[str, Any], num_layers: int) -> None:
    """The features come out of both: the same decisions, and the same samples to 1e-5 of the scale."""
    folder, _ = make_bundle(tmp_path, num_layers=num_layers)
    cache = replace(MIXED, **knobs)
    models = [load(folder, threads=1, graphs=graphs) for graphs in ("step", "split")]
    one, other = (model.sample(4, steps=40, cache=cache) for model in models)
    assert one.stats.event_counts["chosen"] > 20
    assert np.array_equal(one.stats.recomputed, other.stats.recomputed)
    np.testing.assert_allclose(one.stats.intensity, other.stats.intensity, rtol=1e-3)
    close(other.series, one.series, 1e-5)


def test_a_step_graph_that_gives_no_features_is_refused_where_they_are_needed(tiny: Model) -> None:
    """An older bundle: the other triggers and the split graphs serve it still."""
    step = tiny.manifest.graphs["step"]
    without = replace(step, outputs=[tensor for tensor in step.outputs if tensor.name != "hidden"])
    assert len(without.outputs) == len(step.outputs) - 1

    @dataclass
    class Older(Listening):
        def signature(self, graph: str) -> Graph:
            return without if graph == "step" else self.inner.signature(graph)

    older = Older(tiny.backend)
    with pytest.raises(OptionError, match=r"needs the features of the last layer, found a step graph .* export the "):
        Model(tiny.manifest, older).sample(2, steps=20, cache=E2CRF(policy="e2crf", K=1))
    for model, cache in (
        (Model(tiny.manifest, older), E2CRF(policy="e2crf", K=1, trigger="impact")),
        (Model(tiny.manifest, older, graphs="split"), E2CRF(policy="e2crf", K=1)),
    ):
        expected = tiny.sample(2, steps=20, cache=cache).series
        close(model.sample(2, steps=20, cache=cache).series, expected, 1e-5)
