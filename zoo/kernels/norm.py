"""Layer norm and RMS norm, whose backward pass keeps their input alone and makes the rest again.

JAX's own gradient keeps the centred and the normalised input too, both in float32: for a bfloat16 model four times the
memory of the input, and as much again to write and read.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zoo.kernels.order import zero_after


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, centred: bool, epsilon: float
) -> jax.Array:
    """Normalise the last axis, scale and shift it, in float32.

    Args:
      x: [..., D].
      scale: [D], or None for 1.
      bias: [D], or None for 0.
      centred: subtract the mean first (layer norm, Ba et al. 2016), or not (RMS norm, Zhang and Sennrich 2019).
      epsilon: added to the mean square.

    Returns:
      [..., D] in the dtype of `x`.
    """
    return _forward(x, scale, bias, centred, epsilon)[0]


def _forward(x, scale, bias, centred, epsilon):
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True) if centred else None
    y = y if mean is None else y - mean
    inverse = lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon)
    y = y * inverse
    y = y if scale is None else y * _over_rows(scale, y)
    y = y if bias is None else y + _over_rows(bias, y)
    return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(centred, epsilon, residuals, cotangent):
    x, mean, inverse, scale, bias = residuals
    g, x32 = cotangent.astype(jnp.float32), x.astype(jnp.float32)
    # Else XLA makes `normal` in the forward pass, and keeps it.
    inverse = inverse + jnp.asarray(zero_after(cotangent), jnp.float32)
    normal = (x32 if mean is None else x32 - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    d_scale = None if scale is None else (g * normal).sum(rows)
    d_bias = None if bias is None else g.sum(rows)
    g = g if scale is None else g * _over_rows(scale, g)
    d_x = g - normal * (g * normal).mean(-1, keepdims=True)
    d_x = d_x if mean is None else d_x - g.mean(-1, keepdims=True)
    return (d_x * inverse).astype(x.dtype), d_scale, d_bias


def _over_rows(vector, rows):
    """`vector` [D] as a factor or summand of float32 `rows` [..., D]."""
    return lax.broadcast_to_rank(vector.astype(jnp.float32), rows.ndim)


normalise.defvjp(_forward, _backward)
