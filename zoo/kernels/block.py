"""The arithmetic of one block of logits, the same in every blockwise kernel, whichever way the block lies."""

import jax
import jax.numpy as jnp


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
