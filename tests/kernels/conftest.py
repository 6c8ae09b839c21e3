"""A backend for the tests: blockwise with blocks so small that every case has dead, partial and whole ones."""

import functools
import types

import pytest

from zoo.kernels import blockwise
from zoo.kernels.attention import BACKENDS

SMALL_BLOCKS = (8, 16)


def _register(name, block_sizes):
    attend = functools.partial(blockwise.attend, block_sizes=block_sizes)
    BACKENDS[name] = types.SimpleNamespace(attend=attend, supports=blockwise.supports, PLATFORM=None)


@pytest.fixture(autouse=True, scope="session")
def small_blocks():
    """Make backend="small_blocks" known to the op for the session."""
    _register("small_blocks", SMALL_BLOCKS)
    yield
    del BACKENDS["small_blocks"]
