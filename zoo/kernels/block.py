"""What is the same in every blockwise kernel: a block's logits, whichever way it lies, and what its rows bring back."""

import jax
import jax.numpy as jnp

from zoo.kernels.call import LOWEST, accumulator_of, narrow


def logits(
    products: jax.Array, scale: float, bias: jax.Array | None, softcap: float | None, allowed: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Scale, bias, soft cap and mask of a block of q·k, and the soft cap's derivative (None without one).

    Args:
      products: q·k of the block's pairs, in the dtype of sums.
      scale: what is left of the scale beside that of the queries.
      bias, allowed: broadcastable to the pairs; None for no bias, and for all pairs.
      softcap: c in c * tanh(logits / c), or None.
    """
    logits = products if scale == 1.0 else products * scale
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    slope = None
    if softcap is not None:
        if bias is not None:
            # What a bias hides stays hidden: the cap would make -inf a number like others.
            kept = ~(logits <= LOWEST)  # NaN is kept
            allowed = kept if allowed is None else allowed & kept
        capped = jnp.tanh(logits / softcap)
        logits, slope = capped * softcap, 1 - capped * capped
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
        slope = slope if slope is None else jnp.where(allowed, slope, 0)
    return logits, slope


def log_sum_exp(largest: jax.Array, total: jax.Array, log=jnp.log) -> tuple[jax.Array, jax.Array]:
    """The log-sum-exp of rows from their largest logit and the sum of exp(logits - largest), and what it is short of.

    One float32 cannot hold a large maximum and the logarithm of a sum beside it: beyond 1e6 it rounds the sum away.

    Args:
      largest, total: of the same shape.
      log: the logarithm; another base for logits in units of it.

    Returns:
      lse, -inf where total is 0; and short, small numbers such that lse + short is the log-sum-exp.
    """
    rest = log(jnp.where(total == 0, 1.0, total))
    lse = largest + rest
    return jnp.where(total == 0, -jnp.inf, lse), rest - (lse - largest)


def recompute_weights(logits: jax.Array, lse: jax.Array) -> jax.Array:
    """exp(logits - lse), at most 1 as it was in the forward pass.

    Logits of 1e8 have steps of 8: one that is rounded otherwise than in the forward pass would weigh exp(8).
    """
    excess = logits - lse
    return jnp.exp(excess - jax.lax.stop_gradient(jnp.maximum(excess, 0)))


def rows_backward(
    out: jax.Array, lse: jax.Array, short: jax.Array | None, grad_out: jax.Array, grad_lse: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the backward pass needs of each row (Dao 2023): its cotangent, its log-sum-exp, and its delta.

    Args:
      out, grad_out: [B, T, N, Hv].
      lse, short, grad_lse: [B, T, N]; the first two as of `log_sum_exp`, None where a library does not tell.

    Returns:
      grad_out, zero in rows without a gradient; lse without infinities, such that exp(logits - lse) is 0 there; and
      delta = grad_out·out - grad_lse, [B, T, N] in the dtype of sums. As weights are exp(logits - lse - short), and all
      gradients have them as factors beside one of the cotangents, these have the factor exp(-short).
    """
    # Rows that saw nothing, or saw NaN, have no gradient, whatever reaches them from above.
    alive = jnp.isfinite(lse)
    grad_out = jnp.where(alive[..., None], grad_out, jnp.zeros_like(grad_out))
    # As a sum of products this very reduction takes 20 times as long in float32 on CPUs.
    accumulator = accumulator_of(out.dtype)
    delta = jnp.einsum("btnh,btnh->btn", grad_out, out, preferred_element_type=accumulator) - grad_lse
    if short is not None:
        factor = jnp.exp(-jnp.where(alive, short, 0))
        grad_out = narrow(grad_out.astype(accumulator) * factor[..., None], grad_out.dtype)
        delta = delta * factor
    return grad_out, jnp.where(alive, lse, -LOWEST), jnp.where(alive, delta, 0)


def sinks_gradient(sinks: jax.Array | None, lse: jax.Array, delta: jax.Array) -> jax.Array | None:
    """The gradient of the sinks [N], from what `rows_backward` gives; None without sinks."""
    if sinks is None:
        return None
    return -(jnp.exp(sinks.astype(lse.dtype)[None, None] - lse) * delta).sum((0, 1)).astype(sinks.dtype)
