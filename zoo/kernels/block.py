"""What is the same in every blockwise kernel: a block's logits, whichever way it lies, and what its rows bring back."""

import jax
import jax.numpy as jnp

from zoo.kernels.call import LOWEST, accumulator_of


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
        capped = jnp.tanh(logits / softcap)
        logits, slope = capped * softcap, 1 - capped * capped
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
        slope = slope if slope is None else jnp.where(allowed, slope, 0)
    return logits, slope


def rows_backward(
    out: jax.Array, lse: jax.Array, grad_out: jax.Array, grad_lse: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the backward pass needs of each row (Dao 2023): its cotangent, its log-sum-exp, and its delta.

    Args:
      out, grad_out: [B, T, N, Hv].
      lse, grad_lse: [B, T, N].

    Returns:
      grad_out, zero in rows without a gradient; lse without infinities, such that exp(logits - lse) is 0 there; and
      delta = grad_out·out - grad_lse, [B, T, N] in the dtype of sums.
    """
    # Rows that saw nothing, or saw NaN, have no gradient, whatever reaches them from above.
    alive = jnp.isfinite(lse)
    grad_out = jnp.where(alive[..., None], grad_out, jnp.zeros_like(grad_out))
    # As a sum of products this very reduction takes 20 times as long in float32 on CPUs.
    accumulator = accumulator_of(out.dtype)
    delta = jnp.einsum("btnh,btnh->btn", grad_out, out, preferred_element_type=accumulator)
    return grad_out, jnp.where(alive, lse, -LOWEST), jnp.where(alive, delta - grad_lse, 0)


def sinks_gradient(sinks: jax.Array | None, lse: jax.Array, delta: jax.Array) -> jax.Array | None:
    """The gradient of the sinks [N], from what `rows_backward` gives; None without sinks."""
    if sinks is None:
        return None
    return -(jnp.exp(sinks.astype(lse.dtype)[None, None] - lse) * delta).sum((0, 1)).astype(sinks.dtype)
