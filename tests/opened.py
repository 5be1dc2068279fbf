"""The random network of `tiny` as an open model: a test file that names the fixture (`tiny = opened.tiny`) opens it."""

from collections.abc import Iterator

import pytest

from runtime.sampler import Model, load
from tests.tiny import make_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """15 tokens of 8 frequencies, 2 channels, K/V."""
    folder, _ = make_bundle(tmp_path_factory.mktemp("tiny"))
    with load(folder, threads=1) as model:
        yield model
