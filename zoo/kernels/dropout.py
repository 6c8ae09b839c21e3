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
    row_seed, column_seed = seed[..., 0, None, None], seed[..., 1, None, None]
    rows, columns = (jax.lax.broadcast_to_rank(x, row_seed.ndim) for x in (rows[:, None], columns[None, :]))
    return survive(row_seed, column_seed, rows, columns, rate)


def survive(row_seed: jax.Array, column_seed: jax.Array, rows: jax.Array, columns: jax.Array, rate: float) -> jax.Array:
    """Which weights survive, bool: the two words of a seed and array indices, all of shapes that broadcast."""
    hashed_rows = _mix(rows.astype(jnp.uint32) + row_seed)
    hashed_columns = _mix(columns.astype(jnp.uint32) + column_seed)
    return _mix(hashed_rows + hashed_columns) >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


def _mix(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
