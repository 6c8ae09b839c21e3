"""The reference backend: all T x S logits at once, in plain JAX, differentiable to any order.

Every other backend must agree with this one; this one must agree with the float64 oracle in tests/kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import dropout, masks
from zoo.kernels.bias import DenseBias, toeplitz
from zoo.kernels.call import Call, is_finite, without_nonfinite


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can. It always can."""
    return None


def attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    batch, num_queries, num_keys, num_heads, _ = call.sizes
    q, k, v = (without_nonfinite(x) for x in (call.q, call.k, call.v))
    q = jnp.moveaxis(_by_group(jnp.moveaxis(q, 1, 2), call), 3, 1)
    products = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=call.accumulator)
    logits = masked_logits(products.reshape(batch, num_heads, num_queries, num_keys), call)
    weights, total, lse = softmax(logits, call, finite=_finite_pairs(call))
    weights = _by_group(weights.astype(v.dtype), call)
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v, preferred_element_type=call.accumulator)
    out = out.reshape(batch, num_queries, num_heads, -1) / total.swapaxes(1, 2)[..., None]
    lse = lse.swapaxes(1, 2)
    out = jnp.where(jnp.isnan(lse)[..., None], jnp.nan, out)
    return out.astype(call.v.dtype), lse


def softmax(logits: jax.Array, call: Call, finite: jax.Array | bool = True):
    """Weights [B, N, T, S] after dropout, what to divide by [B, N, T], and float32 log-sum-exp [B, N, T].

    Rows without keys have weights 0 and log-sum-exp -inf. Rows that see a pair where `finite` is false have
    log-sum-exp NaN.
    """
    largest = jnp.where(finite | jnp.isneginf(logits), logits, jnp.inf).max(-1)
    sees_nonfinite = jnp.isposinf(largest)
    sinks = None if call.sinks is None else call.sinks.astype(logits.dtype)[:, None]
    largest = largest if sinks is None else jnp.maximum(largest, sinks)
    largest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(largest), largest, 0))
    weights = jnp.exp(logits - largest[..., None])
    total = weights.sum(-1)
    total = total if sinks is None else total + jnp.exp(sinks - largest)
    safe_total = jnp.where(total > 0, total, 1)
    lse = jnp.where(total > 0, largest + jnp.log(safe_total), -jnp.inf)
    lse = jnp.where(sees_nonfinite, jnp.nan, lse).astype(jnp.float32)
    if call.dropout_seeds is not None:
        rows, columns = jnp.arange(logits.shape[2]), jnp.arange(logits.shape[3])
        kept = dropout.keep(call.dropout_seeds, rows, columns, call.dropout_rate)
        weights = jnp.where(kept, weights / (1 - call.dropout_rate), 0)
    return weights, safe_total, lse


def _by_group(x: jax.Array, call: Call) -> jax.Array:
    """[B, N, …] -> [B, K, N / K, …]."""
    num_heads, num_kv_heads = call.sizes[3:]
    return x.reshape(x.shape[0], num_kv_heads, num_heads // num_kv_heads, *x.shape[2:])


def _finite_pairs(call: Call) -> jax.Array:
    """Pairs of which neither vector holds NaN or infinity, bool [B, N, T, S]."""
    query = is_finite(call.q)[..., 0].swapaxes(1, 2)
    key = (is_finite(call.k) & is_finite(call.v))[..., 0].swapaxes(1, 2)
    return query[..., :, None] & jnp.repeat(key, call.q.shape[2] // call.k.shape[2], axis=1)[..., None, :]


def masked_logits(products: jax.Array, call: Call) -> jax.Array:
    """Scale, bias, soft cap and mask of q·k [B, N, T, S]."""
    logits = products * call.scale
    if call.bias is not None:
        logits = logits + evaluate_bias(call).astype(logits.dtype)
    allowed = evaluate_mask(call)
    if call.softcap is not None:
        # NaN behind the mask would reach the gradient through tanh's derivative.
        logits = logits if allowed is None else jnp.where(allowed, logits, 0)
        logits = call.softcap * jnp.tanh(logits / call.softcap)
    return logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)


def evaluate_mask(call: Call) -> jax.Array | None:
    """Which pairs are allowed, bool [B or 1, N or 1, T, S], or None for all."""
    clauses = tuple(jax.tree.map(_with_head_axis, clause) for clause in call.clauses())
    positions = _with_head_axis(call.frame().key_positions)
    return masks.keep(clauses, positions, jnp.arange(call.sizes[2]))


def _with_head_axis(x) -> jax.Array:
    """[B or 1, T or S] -> [B or 1, 1, T or S]; dense arrays have the axis already.

    What is known at trace time becomes an array here, lest the whole T x S mask become a constant of the program.
    """
    return jnp.asarray(x) if x.ndim == 4 else jnp.asarray(x)[:, None]


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
