"""The reference backend: all T x S logits at once, in plain JAX, differentiable to any order.

Every other backend must agree with this one; this one must agree with the float64 oracle in tests/kernels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zoo.kernels import dropout, masks
from zoo.kernels.bias import DenseBias, toeplitz
from zoo.kernels.call import LOWEST, Call, is_finite, mesh_axes_of, of_all, varying, without_nonfinite

PLATFORM = None
"""Runs on any."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can. It always can."""
    return None


def attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    batch, num_queries, num_keys, num_heads, num_kv_heads = call.sizes
    # Heads first, the rows of a group together: the products then come out as they are read.
    q, k, v = (jnp.moveaxis(without_nonfinite(x), 2, 1) for x in (call.q, call.k, call.v))
    q = q.reshape(batch, num_kv_heads, -1, q.shape[-1])
    products = jnp.einsum("bkrh,bksh->bkrs", q, k, preferred_element_type=call.accumulator)
    logits = masked_logits(products.reshape(batch, num_heads, num_queries, num_keys), call)
    weights, lse = softmax(logits, call)
    weights = weights.astype(v.dtype).reshape(products.shape)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v, preferred_element_type=call.accumulator)
    out, lse = out.reshape(batch, num_heads, num_queries, -1).swapaxes(1, 2), lse.swapaxes(1, 2)
    sees_nonfinite = _sees_nonfinite(jax.lax.stop_gradient(call))
    out = jnp.where(sees_nonfinite[..., None], jnp.nan, out)
    return out.astype(call.v.dtype), jnp.where(sees_nonfinite, jnp.nan, lse)


def stands_in(fast: Callable[[Call], tuple[jax.Array, jax.Array]]):
    """A backend for few queries from one in which NaN spreads, be it masked or another head's.

    Where any came out, and only then, `attend` sorts out which rows truly see it: a check beforehand would read the
    cache twice. Where the caller vouches for what is hidden, all that came out is seen. Derivatives are its own too, of
    any order: of single steps they are rare, and they keep clear of NaN.
    """

    @jax.custom_jvp
    @functools.wraps(fast)
    def either(call: Call) -> tuple[jax.Array, jax.Array]:
        out, lse = fast(call)
        if call.hidden_is_finite:
            return out, lse
        return jax.lax.cond(of_all(jnp.isfinite(out).all()), lambda call: (out, lse), attend, call)

    either.defjvp(lambda primals, tangents: (either(*primals), jax.jvp(attend, primals, tangents)[1]))
    return either


def softmax(logits: jax.Array, call: Call):
    """Weights [B, N, T, S] after dropout, and float32 log-sum-exp [B, N, T]; 0 and -inf in rows without keys."""
    weights, lse = _normalise(logits, None if call.sinks is None else call.sinks.astype(logits.dtype)[None, :, None])
    if call.dropout_seeds is not None:
        rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in logits.shape[2:])
        kept = dropout.keep(call.dropout_seeds, rows, columns, call.dropout_rate)
        weights = jnp.where(kept, weights / (1 - call.dropout_rate), 0)
    return weights, lse.astype(jnp.float32)


@jax.custom_jvp
def _normalise(logits, sinks):
    """Weights and log-sum-exp; the backward pass keeps the weights alone, where JAX's own keeps exponentials too."""
    largest = logits.max(-1)
    largest = largest if sinks is None else jnp.maximum(largest, sinks)
    # Between this maximum and the exponential stands nothing: a guard there costs a CPU a quarter of the whole.
    weights = jnp.exp(logits - largest[..., None])
    total = weights.sum(-1)
    total = total if sinks is None else total + jnp.exp(sinks - largest)
    empty = largest <= LOWEST
    weights = weights * jnp.where(empty, 0, 1 / total)[..., None]
    return weights, jnp.where(empty, -jnp.inf, largest + jnp.log(total))


@_normalise.defjvp
def _normalise_jvp(primals, tangents):
    (_, sinks), (d_logits, d_sinks) = primals, tangents
    weights, lse = _normalise(*primals)
    d_lse = (weights * d_logits).sum(-1)
    if sinks is not None:
        d_lse += jnp.where(lse == -jnp.inf, 0, jnp.exp(sinks - lse)) * d_sinks
    return (weights, lse), (weights * (d_logits - d_lse[..., None]), d_lse)


def _sees_nonfinite(call: Call) -> jax.Array:
    """Which rows see a vector with NaN or infinity, bool [B, T, N]."""
    batch, num_queries, _, num_heads, num_kv_heads = call.sizes

    def search():
        query = ~is_finite(call.q).swapaxes(1, 2)  # [B, N, T, 1]
        key = ~(is_finite(call.k) & is_finite(call.v)).swapaxes(1, 2).swapaxes(2, 3)  # [B, K, 1, S]
        allowed = evaluate_mask(call)
        seen = query | jnp.repeat(key, num_heads // num_kv_heads, axis=1)
        seen = seen if allowed is None else seen & allowed
        return seen.any(-1).swapaxes(1, 2)

    # Nearly always there is none, and then no pass over T x S is spent on it.
    all_finite = jnp.isfinite(sum(x.sum(dtype=call.accumulator) for x in (call.q, call.k, call.v)))
    none = varying(jnp.zeros((batch, num_queries, num_heads), bool), mesh_axes_of(call.q))
    return jax.lax.cond(of_all(all_finite), lambda: none, search)


def masked_logits(products: jax.Array, call: Call) -> jax.Array:
    """Scale, bias, soft cap and mask of q·k [B, N, T, S]; `LOWEST` where the mask, or a bias of -inf, hides a key."""
    bias = None if call.bias is None else evaluate_bias(call)
    return combine(products, bias, evaluate_mask(call), call.scale, call.softcap)


def combine(products, bias, allowed, scale: float, softcap: float | None) -> jax.Array:
    """The logits of `masked_logits` from their parts; bias and allowed pairs broadcast to [B, N, T, S], or None."""
    logits = products * scale
    if bias is not None:
        logits = jnp.maximum(logits + bias.astype(logits.dtype), LOWEST)
    if softcap is not None:
        if bias is not None:
            # What a bias hides stays hidden: the cap would make -inf a number like others.
            kept = ~(logits <= LOWEST)  # NaN is kept
            allowed = kept if allowed is None else allowed & kept
        # NaN behind the mask would reach the gradient through tanh's derivative.
        logits = logits if allowed is None else jnp.where(allowed, logits, 0)
        logits = softcap * jnp.tanh(logits / softcap)
    return logits if allowed is None else jnp.where(allowed, logits, LOWEST)


def evaluate_mask(call: Call) -> jax.Array | None:
    """Which pairs are allowed, bool [B or 1, N or 1, T, S], or None for all."""
    clauses = tuple(jax.tree.map(_with_head_axis, clause) for clause in call.clauses())
    positions = _with_head_axis(call.frame().key_positions)
    return masks.keep(clauses, positions, jnp.arange(call.sizes[2], dtype=jnp.int32))


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
    relative = masks.indices(num_queries + num_keys - 1)[None] - frame.query[:, -1:]
    return jnp.moveaxis(call.bias.evaluate(relative), 0, 1)
