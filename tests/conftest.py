"""Fixtures of the whole suite."""

from collections.abc import Iterator

import pytest
import torch

from tests.gloo import GlooPool

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    """The session's pool of four gloo processes; they start at the first ``gloo.run``."""
    pool = GlooPool()
    yield pool
    pool.close()
