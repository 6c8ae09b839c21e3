"""Every backend against the float64 oracle, forward and gradient, over the shared list of cases."""

import jax.numpy as jnp
import pytest
from comparison import ALL, VARIED, compare
from tiers import tiered

from zoo.kernels.cases import TEST_SIZES, fits


@pytest.mark.parametrize("case", tiered(ALL, [*VARIED, "scale", "softcap", "lengths", "dropout", "dense_mask"]))
def test_float32(case):
    """Grouped heads, ragged lengths, T != S and V != H, where the case allows it."""
    sizes = TEST_SIZES["grouped" if fits(case, TEST_SIZES["grouped"]) else "square"]
    compare(case, sizes, jnp.float32, ["small_blocks"], 1e-6)


@pytest.mark.parametrize("case", ["padding", "relative", "sinks", "offset_array", "positions"])
def test_one_query(case):
    compare(case, TEST_SIZES["decode"], jnp.float32, ["decode"], 1e-6)


@pytest.mark.parametrize("case", ["packed", "relative", "sinks_dropout"])
def test_bfloat16(case):
    compare(case, TEST_SIZES["square"], jnp.bfloat16, ["small_blocks"], 1e-2)


@pytest.mark.parametrize("case", ["packed", "padding", "sinks", "softcap", "dropout", "positions", "offset_array"])
def test_default_blocks(case):
    """A head is one block here: all heads are taken in one batch, save where there is a bias."""
    compare(
        case, TEST_SIZES["grouped" if fits(case, TEST_SIZES["grouped"]) else "square"], jnp.float32, ["blockwise"], 1e-6
    )
