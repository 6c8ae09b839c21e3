"""Disentangled attention (He et al. 2021): scores between content and distance, added to those between contents.

Each distance from a key to its query has a vector. Queries meet the keys' projection of it (content to position),
keys the queries' projection (position to content). Both are one product with the vectors of all T + S - 1 distances
and a shift that lines them up, so nothing is gathered by pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.config import DisentangledConfig


def distance_rows(config: DisentangledConfig, num_queries: int, num_keys: int) -> Int[np.ndarray, " C"]:
    """Rows of the table for the distances query - key from T - 1 down to 1 - S."""
    distance = np.arange(num_queries - 1, -num_keys, -1)
    if config.max_distance is not None:
        # Half of the span holds one distance a row, the other half grows by a constant ratio up to max_distance.
        exact = config.span // 2
        growth = np.log(np.maximum(np.abs(distance), exact) / exact) / np.log((config.max_distance - 1) / exact)
        rows = exact + np.ceil(growth * (exact - 1)).astype(np.int64)
        distance = np.where(np.abs(distance) <= exact, distance, np.sign(distance) * rows)
    return np.clip(distance + config.span, 0, 2 * config.span - 1)


def disentangled_bias(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    position_query: Float[Array, "R N H"] | None,
    position_key: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " C"],
) -> Float[Array, "B N T S"]:
    """The scores that distances take part in, float32, not yet scaled.

    Args:
        query: projected queries.
        key: projected keys.
        position_query: the table in the queries' projection; None leaves position to content out.
        position_key: the table in the keys' projection; None leaves content to position out.
        rows: of `distance_rows`.
    """
    score = jnp.float32(0)
    if position_key is not None:
        score = score + _line_up(_products(query, position_key[rows]))
    if position_query is not None:
        score = score + _line_up(_products(key, position_query[rows[::-1]])).swapaxes(-1, -2)
    return score


def _products(content: Float[Array, "B T N H"], positions: Float[Array, "C N H"]) -> Float[Array, "B N T C"]:
    return jnp.einsum("btnh,cnh->bntc", content, positions, preferred_element_type=jnp.float32)


def _line_up(x: Float[Array, "B N T C"]) -> Float[Array, "B N T S"]:
    """Entry (t, s) is x[t, s - t + T - 1]; C is T + S - 1."""
    num_rows, num_columns = x.shape[-2:]
    # Rows read one entry longer than they are stored lie one entry further left each: a reshape, where a gather would
    # cost as much as a product.
    flat = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))).reshape(*x.shape[:-2], -1)
    flat = jax.lax.slice_in_dim(flat, num_rows - 1, num_rows - 1 + num_rows * num_columns, axis=-1)
    return flat.reshape(x.shape)[..., : num_columns - num_rows + 1]
