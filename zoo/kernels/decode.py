"""Few queries against many keys: all heads in one product, over the cache as it lies in memory.

A step of decoding reads the whole cache for one row a head. Head by head, that is N products of one row each, and a
transpose of the cache before them. Here the T * N rows are laid out block-diagonally, so that one product over
[S, K * H] does for all heads: K times the arithmetic, which the memory bus hides, and no copy of the cache.
"""

import jax
import jax.numpy as jnp

from zoo.kernels import dense
from zoo.kernels.call import Call

# Beyond this many rows (T * N) arithmetic shows, by measurement on CPUs.
MAX_ROWS = 64

PLATFORM = None
"""Runs on any."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    _, num_queries, _, num_heads, _ = call.sizes
    rows = num_queries * num_heads
    return None if rows <= MAX_ROWS else f"T * N = {rows} rows, and it is made for at most {MAX_ROWS}"


def _attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    batch, num_queries, num_keys, num_heads, num_kv_heads = call.sizes
    own = jnp.repeat(jnp.eye(num_kv_heads, dtype=call.q.dtype), num_heads // num_kv_heads, axis=0)  # [N, K]
    q = (call.q[:, :, :, None, :] * own[:, :, None]).reshape(batch, num_queries * num_heads, -1)
    k, v = (x.reshape(batch, num_keys, -1) for x in (call.k, call.v))
    products = jnp.einsum("brd,bsd->brs", q, k, preferred_element_type=call.accumulator)
    products = products.reshape(batch, num_queries, num_heads, num_keys).swapaxes(1, 2)
    weights, lse = dense.softmax(dense.masked_logits(products, call), call)
    weights = weights.astype(v.dtype).swapaxes(1, 2).reshape(batch, num_queries * num_heads, num_keys)
    out = jnp.einsum("brs,bsd->brd", weights, v, preferred_element_type=call.accumulator)
    out = out.reshape(batch, num_queries, num_heads, num_kv_heads, -1)
    out = jnp.where(own[:, :, None] > 0, out, 0).sum(3)
    return out.astype(call.v.dtype), lse.swapaxes(1, 2)


attend = dense.stands_in(_attend)
