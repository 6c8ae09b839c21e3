"""Softmax over keys that arrive in blocks, for few queries: all heads and sequences at once.

A block's keys are cut into chunks whose sums are products of their own, so that few rows still occupy a whole
accelerator; the chunks' results are added, as they share the block's maximum.
"""

import dataclasses

import jax
import jax.numpy as jnp

from zoo.kernels.call import LOWEST, accumulator_of, mesh_axes_of, varying

CHUNK = 256
"""Keys of one product."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What is known of the keys so far: largest logit and sum [B, N, T], weighted values [B, N, T, V]."""

    largest: jax.Array
    total: jax.Array
    acc: jax.Array

    @classmethod
    def empty(cls, q: jax.Array, value_size: int) -> "State":
        """No key yet, for queries [B, T, N, H]."""
        batch, num_queries, num_heads, _ = q.shape
        rows = jnp.zeros((batch, num_heads, num_queries), accumulator_of(q.dtype))
        state = cls(rows + LOWEST, rows, jnp.zeros((*rows.shape, value_size), rows.dtype))
        return varying(state, mesh_axes_of(q))

    def add(self, logits: jax.Array, v: jax.Array, drop=lambda weights: weights) -> "State":
        """Add keys: logits [B, N, T, S], `LOWEST` where a key is hidden; values [B, S, K, V]."""
        largest = jnp.maximum(self.largest, logits.max(-1))
        decay, weights = jnp.exp(self.largest - largest), jnp.exp(logits - largest[..., None])
        total = self.total * decay + weights.sum(-1)
        acc = self.acc * decay[..., None] + _weighted_sum(drop(weights), v)
        return State(largest, total, acc)

    def finish(self, sinks: jax.Array | None, dtype) -> tuple[jax.Array, jax.Array]:
        """Output [B, T, N, V] in `dtype`, and float32 log-sum-exp [B, T, N]; rows without keys give 0 and -inf."""
        largest, total, acc = self.largest, self.total, self.acc
        if sinks is not None:
            sinks = sinks.astype(total.dtype)[None, :, None]
            largest = jnp.maximum(self.largest, sinks)
            decay = jnp.exp(self.largest - largest)
            total, acc = total * decay + jnp.exp(sinks - largest), acc * decay[..., None]
        # A maximum may lose NaN, the sum keeps it.
        empty = (largest <= LOWEST) & ~jnp.isnan(total)
        out = jnp.where(empty[..., None], 0, acc / total[..., None])
        lse = jnp.where(empty, -jnp.inf, largest + jnp.log(total))
        return out.swapaxes(1, 2).astype(dtype), lse.swapaxes(1, 2).astype(jnp.float32)


def products(q: jax.Array, k: jax.Array, accumulator) -> jax.Array:
    """q·k of queries [B, T, N, H] and keys [B, S, K, H]: [B, N, T, S]."""
    (batch, num_queries, num_heads, _), num_keys = q.shape, k.shape[1]
    q = jnp.moveaxis(q, 2, 1).reshape(batch, k.shape[2], -1, q.shape[-1])
    result = jnp.einsum("bkrh,bskh->bkrs", q, k, preferred_element_type=accumulator)
    return result.reshape(batch, num_heads, num_queries, num_keys)


def _weighted_sum(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Weights [B, N, T, S] by values [B, S, K, V]: [B, N, T, V] in the weights' dtype."""
    (batch, num_heads, num_queries, num_keys), (_, _, num_kv_heads, _) = weights.shape, v.shape
    chunk = CHUNK if num_keys % CHUNK == 0 else num_keys
    weights = weights.astype(v.dtype).reshape(batch, num_kv_heads, -1, num_keys // chunk, chunk)
    v = v.reshape(batch, num_keys // chunk, chunk, num_kv_heads, -1)
    parts = jnp.einsum("bkrcs,bcskv->bckrv", weights, v, preferred_element_type=accumulator_of(v.dtype))
    return parts.sum(1).reshape(batch, num_heads, num_queries, -1)
