"""Backends for TPUs: interpreted on a CPU against the float64 oracle, and lowered for a TPU without one."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, compare

from zoo.kernels import Causal, Full, Lengths, Segments, Window, attention, mosaic_tpu, splash
from zoo.kernels.attention import BACKENDS
from zoo.kernels.cases import CASES, TEST_SIZES, Sizes, fits

# Positions are static from 128 queries on, and splash's blocks are 128 wide: two by three of them, the last ones partial.
RAGGED = Sizes(B=2, T=136, S=264, N=4, K=2, H=8, V=12)
SQUARE = dataclasses.replace(RAGGED, T=264)

SPLASH_CASES = {
    "full": None,
    "causal": None,
    "window": None,
    "symmetric_window": None,
    "chunked": None,
    "prefix": "conjunctions",
    "padding": None,
    "packed": None,
    "packed_full": None,
    "alibi": "bias",
    "relative": "bias",
    "relative_causal": "bias",
    "softcap": None,
    "sinks": None,
    "dropout": "dropout",
    "prefix_or_window": "conjunctions",
    "lengths": None,
    "dense_mask": "conjunctions",
    "key_mask": "conjunctions",
    "dense_bias": "bias",
    "key_bias": "bias",
    "offset": None,
    "offset_array": "bias",
    "positions": "bias",
    "scale": None,
    "sinks_dropout": "bias",
}
"""Every case, and the word that names why splash refuses it."""


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Backends for TPUs, interpreted."""
    for name, module, block_sizes in (("splash", splash, (128, 128)), ("mosaic_tpu", mosaic_tpu, (16, 16))):
        attend = functools.partial(module.attend, block_sizes=block_sizes, interpret=True)
        BACKENDS[f"{name}_interpreted"] = types.SimpleNamespace(attend=attend, supports=module.supports, PLATFORM=None)
    yield
    for name in ("splash", "mosaic_tpu"):
        del BACKENDS[f"{name}_interpreted"]


@pytest.mark.parametrize("case", [case for case, reason in SPLASH_CASES.items() if reason is None])
def test_splash(case):
    compare(case, RAGGED if fits(case, RAGGED) else SQUARE, jnp.float32, ["splash_interpreted"], 1e-6)


@pytest.mark.parametrize("case", ALL)
def test_mosaic_tpu(case):
    sizes = TEST_SIZES["grouped" if fits(case, TEST_SIZES["grouped"]) else "square"]
    compare(case, sizes, jnp.float32, ["mosaic_tpu_interpreted"], 1e-6)
