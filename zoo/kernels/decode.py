"""Few queries against many keys: all heads in one product, over the cache as it lies in memory.

A step of decoding reads the whole cache for one row a head. Head by head, that is N products of one row each, and a
transpose of the cache before them. Here the T * N rows are laid out block-diagonally, so that one product over
[S, K * H] does for all heads: K times the arithmetic, which the memory bus hides, and no copy of the cache.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zoo.kernels import dense
from zoo.kernels.call import Call, of_all

# Beyond this many rows (T * N) arithmetic shows, by measurement on CPUs.
MAX_ROWS = 64
MIN_KEYS, MAX_PREFIXES = 256, 3
"""The fewest keys that may be read in the place of twice as many, and how many such programs there may be."""

PLATFORM = None
"""Runs on any."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    _, num_queries, _, num_heads, _ = call.sizes
    rows = num_queries * num_heads
    return None if rows <= MAX_ROWS else f"T * N = {rows} rows, and it is made for at most {MAX_ROWS}"


def prefixes(num_keys: int) -> tuple[int, ...]:
    """How many keys may be read, ascending: all of them, or half as many, and so on as long as it saves much."""
    sizes = [num_keys]
    while sizes[-1] >= 2 * MIN_KEYS and len(sizes) < MAX_PREFIXES:
        sizes.append(-(-sizes[-1] // 2))
    return tuple(reversed(sizes))


def _attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32.

    Past the last key that any row sees, as the room of a cache is that decoding has yet to fill, little is read.
    """
    num_keys, allowed = call.sizes[2], dense.evaluate_mask(call)
    bias = None if call.bias is None else dense.evaluate_bias(call)
    sizes = (num_keys,) if allowed is None else prefixes(num_keys)
    if len(sizes) == 1:
        return _attend_first(num_keys, call, bias, allowed)
    seen = allowed.any((0, 1, 2))
    enough = sum((~of_all(~seen[size:].any())).astype(jnp.int32) for size in sizes[:-1])
    return lax.switch(enough, [partial(_attend_first, size) for size in sizes], call, bias, allowed)


def _attend_first(num_keys: int, call: Call, bias: jax.Array | None, allowed: jax.Array | None):
    """The same, over the first keys alone."""
    batch, num_queries, _, num_heads, num_kv_heads = call.sizes
    own = jnp.repeat(jnp.eye(num_kv_heads, dtype=call.q.dtype), num_heads // num_kv_heads, axis=0)  # [N, K]
    own = own[None, None, :, :, None]
    q = (call.q[:, :, :, None, :] * own).reshape(batch, num_queries * num_heads, -1)
    k, v = (x[:, :num_keys].reshape(batch, num_keys, -1) for x in (call.k, call.v))
    bias, allowed = (None if x is None else x[..., :num_keys] for x in (bias, allowed))
    products = jnp.einsum("brd,bsd->brs", q, k, preferred_element_type=call.accumulator)
    products = products.reshape(batch, num_queries, num_heads, num_keys).swapaxes(1, 2)
    weights, lse = dense.softmax(dense.combine(products, bias, allowed, call.scale, call.softcap), call)
    weights = weights.astype(v.dtype).swapaxes(1, 2).reshape(batch, num_queries * num_heads, num_keys)
    out = jnp.einsum("brs,bsd->brd", weights, v, preferred_element_type=call.accumulator)
    out = out.reshape(batch, num_queries, num_heads, num_kv_heads, -1)
    out = jnp.where(own > 0, out, 0).sum(3)
    return out.astype(call.v.dtype), lse.swapaxes(1, 2)


attend = dense.stands_in(_attend)
