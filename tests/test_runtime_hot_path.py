"""What a step may take of memory: never a copy of whole caches, and hardly anything where the network is not asked.

Oracle: Python's own account of allocations, NumPy's among them, step by step. Those of ONNX Runtime are not in it; that
it scatters into the caches in place is held in `test_runtime_sampler`.
"""

import tracemalloc
from collections.abc import Iterator

import pytest

from runtime.cache.options import E2CRF
from runtime.sampler import Model, StepInfo, load
from tests.tiny import make_bundle

BATCH, TOKENS = 32, 150
STATE_BYTES = BATCH * TOKENS * 1 * 4  # one array [B, N, C]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder, _ = make_bundle(tmp_path_factory.mktemp("hot"), num_tokens=TOKENS, num_channels=1, d_model=24)
    with load(folder, threads=1) as model:
        yield model


def taken_by_step(model: Model, cache: E2CRF) -> dict[str, int]:
    """The most bytes that a step of an event had beyond those before it, once all is prepared."""
    taken, before = dict[str, int](), 0

    def note(info: StepInfo) -> None:
        nonlocal before
        _, peak = tracemalloc.get_traced_memory()
        taken[info.event] = max(taken.get(info.event, 0), peak - before)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]

    options = {"steps": 40, "solver": "ddim", "batch_size": BATCH, "cache": cache}
    model.sample(BATCH, on_step=lambda info: None, **options)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        model.sample(BATCH, on_step=note, **options)  # type: ignore[arg-type]
    finally:
        tracemalloc.stop()
    return taken


@pytest.mark.parametrize("reuse", ["residual", "data", "residual-linear"])
def test_no_step_copies_a_cache_and_an_empty_one_hardly_takes_anything(model: Model, reuse: str) -> None:
    taken = taken_by_step(model, E2CRF(R=10, K=3, low_every=3, reuse=reuse))
    one_cache = BATCH * TOKENS * 24 * 4  # keys or values of a layer
    assert set(taken) == {"prior", "first", "refresh", "low", "reuse"}
    assert max(taken["refresh"], taken["low"]) < one_cache / 2
    assert taken["low"] < 6 * STATE_BYTES
    assert taken["reuse"] < (6 if reuse.endswith("linear") else 1.5) * STATE_BYTES
