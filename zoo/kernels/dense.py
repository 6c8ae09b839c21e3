"""The reference backend: all T x S logits at once, in plain JAX, differentiable to any order.

Every other backend must agree with this one; this one must agree with the float64 oracle in tests/kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import dropout, masks
from zoo.kernels.bias import DenseBias, toeplitz
from zoo.kernels.call import Call, split_nonfinite


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can. It always can."""
    return None


def attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    batch, num_queries, num_keys, num_heads, num_kv_heads = call.sizes
    q, bad_query = split_nonfinite(call.q)
    k, bad_key = split_nonfinite(call.k)
    v, bad_value = split_nonfinite(call.v)
    q = q.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, -1)
    logits = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=call.accumulator)
    logits = logits.reshape(batch, num_heads, num_queries, num_keys) * call.scale
    logits, live = _masked_logits(logits, call)

    sinks = None if call.sinks is None else call.sinks.astype(logits.dtype)[:, None]
    largest = jax.lax.stop_gradient(logits.max(-1))
    largest = largest if sinks is None else jnp.maximum(largest, jax.lax.stop_gradient(sinks))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    weights = jnp.exp(logits - largest[..., None])
    total = weights.sum(-1)
    total = total if sinks is None else total + jnp.exp(sinks - largest)
    safe_total = jnp.where(total > 0, total, 1)
    lse = jnp.where(total > 0, largest + jnp.log(safe_total), -jnp.inf)

    bad = (bad_key | bad_value).astype(logits.dtype)
    weights_of_bad = jnp.einsum("bkgts,bsk->bkgt", _by_group(weights, call), bad)
    poison = (weights_of_bad.reshape(total.shape) > 0) | (bad_query.swapaxes(1, 2) & live)
    if call.dropout_seeds is not None:
        rows, columns = jnp.arange(num_queries), jnp.arange(num_keys)
        kept = dropout.keep(call.dropout_seeds, rows, columns, call.dropout_rate)
        weights = jnp.where(kept, weights / (1 - call.dropout_rate), 0)
    weights = _by_group(weights.astype(v.dtype), call)
    out = jnp.einsum("bkgts,bskh->bkgth", weights, v, preferred_element_type=call.accumulator)
    out = out.reshape(*total.shape, -1) / safe_total[..., None]
    out = jnp.where(poison[..., None], jnp.nan, out)
    return out.swapaxes(1, 2).astype(call.v.dtype), lse.swapaxes(1, 2).astype(jnp.float32)


def _by_group(x: jax.Array, call: Call) -> jax.Array:
    """[B, N, …] -> [B, K, N / K, …]."""
    num_heads, num_kv_heads = call.sizes[3:]
    return x.reshape(x.shape[0], num_kv_heads, num_heads // num_kv_heads, *x.shape[2:])


def _masked_logits(logits: jax.Array, call: Call) -> tuple[jax.Array, jax.Array]:
    """Bias, soft cap and mask; and which rows [B or 1, N or 1, T or 1] see any key."""
    if call.bias is not None:
        logits = logits + evaluate_bias(call).astype(logits.dtype)
    allowed = evaluate_mask(call)
    if call.softcap is not None:
        # NaN behind the mask would reach the gradient through tanh's derivative.
        logits = logits if allowed is None else jnp.where(allowed, logits, 0)
        logits = call.softcap * jnp.tanh(logits / call.softcap)
    if allowed is None:
        return logits, jnp.ones((1, 1, 1), bool)
    return jnp.where(allowed, logits, -jnp.inf), allowed.any(-1)


def evaluate_mask(call: Call) -> jax.Array | None:
    """Which pairs are allowed, bool [B or 1, N or 1, T, S], or None for all."""
    with_head_axis = lambda x: None if x is None else x[:, None]  # noqa: E731
    clauses = tuple(
        masks.Clause(
            low=with_head_axis(clause.low),
            high=with_head_axis(clause.high),
            end=with_head_axis(clause.end),
            segments=tuple(
                (with_head_axis(q_ids), with_head_axis(kv_ids)) for q_ids, kv_ids in clause.segments
            ),
            dense=clause.dense,
        )
        for clause in call.clauses()
    )
    num_keys = call.sizes[2]
    allowed = masks.keep(clauses, call.frame().key_positions[:, None], np.arange(num_keys))
    return None if allowed is None else jnp.asarray(allowed)


def evaluate_bias(call: Call) -> jax.Array:
    """What is added to the logits, [B or 1, N or 1, T, S]."""
    if isinstance(call.bias, DenseBias):
        return call.bias.array.reshape((1,) * (4 - call.bias.array.ndim) + call.bias.array.shape)
    frame, (_, num_queries, num_keys, _, _) = call.frame(), call.sizes
    if frame.key is not None:
        relative = frame.key[:, None, :] - frame.query[:, :, None]
        return jnp.moveaxis(call.bias.evaluate(relative), 0, 1)
    return toeplitz(diagonals(call), num_queries, num_keys)


def diagonals(call: Call) -> jax.Array:
    """A structured bias at each key - query distance, ascending, float32 [B or 1, N, T + S - 1]."""
    frame, (_, num_queries, num_keys, _, _) = call.frame(), call.sizes
    relative = np.arange(num_queries + num_keys - 1, dtype=np.int32)[None] - frame.query[:, -1:]
    return jnp.moveaxis(call.bias.evaluate(relative), 0, 1)
