"""Which attention weights are dropped: a hash of (seed, row, column), so any block can be made alone, twice.

A counter-based generator would do, but threefry costs ten times the softmax; two rounds of a 32-bit integer
mixer (the constants are "lowbias32", Wellons 2018) are ample for dropout. The pattern depends on neither the
backend nor its blocks.
"""

import jax
import jax.numpy as jnp
import numpy as np


def seeds(key: jax.Array, batch: int, num_heads: int) -> jax.Array:
    """Two words for each sequence and head, uint32 [B, N, 2], from a key of jax.random."""
    return jax.random.bits(key, (batch, num_heads, 2), jnp.uint32)


def keep(seed: jax.Array, rows: jax.Array, columns: jax.Array, rate: float) -> jax.Array:
    """Which weights survive, bool [..., R, C], from seed [..., 2] and array indices: rows [R], columns [C]."""
    row_seed, column_seed = (seed[..., i, None, None] for i in range(2))
    return keep_pairs((row_seed, column_seed), rows[:, None], columns[None, :], rate)


def keep_pairs(seed: tuple[jax.Array, jax.Array], rows: jax.Array, columns: jax.Array, rate: float) -> jax.Array:
    """The same where the two words of the seed, rows and columns already broadcast to the pairs."""
    hashed_rows, hashed_columns = (
        _mix(indices.astype(jnp.uint32) + word) for indices, word in zip((rows, columns), seed, strict=True)
    )
    return _mix(hashed_rows + hashed_columns) >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
