"""Products of 8-bit floats, for training: e4m3 operands forward, e5m2 gradients backward, float32 sums.

Micikevicius et al. 2022, "FP8 formats for deep learning". Each tensor is scaled by its own largest value just before
it is rounded, so nothing is carried from step to step; delayed scaling, which saves that pass over a tensor, would
make the scales a part of the training state. What the backward pass keeps are the rounded operands.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply(x: jax.Array, kernel: jax.Array, num_contracted: int) -> jax.Array:
    """Contract the last `num_contracted` axes of `x` [..., *I] with the first of `kernel` [*I, *O] to float32."""
    return _multiply_fwd(x, kernel, num_contracted)[0]


def _multiply_fwd(x, kernel, num_contracted):
    rows, weights = _round(x, FORWARD), _round(kernel, FORWARD)
    out = _dot(rows, weights, tuple(range(x.ndim - num_contracted, x.ndim)), tuple(range(num_contracted)))
    return out, (rows, weights, jnp.zeros((), x.dtype), jnp.zeros((), kernel.dtype))


def _multiply_bwd(num_contracted, residuals, cotangent):
    rows, weights, *like = residuals
    num_rows = rows[0].ndim - num_contracted
    cotangent, leading = _round(cotangent, BACKWARD), tuple(range(num_rows))
    outputs = tuple(range(num_rows, cotangent[0].ndim))
    dx = _dot(cotangent, weights, outputs, tuple(range(num_contracted, weights[0].ndim)))
    dk = _dot(rows, cotangent, leading, leading)
    return dx.astype(like[0].dtype), dk.astype(like[1].dtype)


multiply.defvjp(_multiply_fwd, _multiply_bwd)


def _round(x, dtype):
    """`x` in 8 bits, its largest value at the end of their range, and what one of them stands for."""
    x = x.astype(jnp.float32)
    most = jnp.abs(x).max()
    unit = jnp.where(most == 0, 1, most / float(jnp.finfo(dtype).max))
    return (x / unit).astype(dtype), unit


def _dot(lhs, rhs, lhs_axes, rhs_axes):
    dims = ((lhs_axes, rhs_axes), ((), ()))
    return lax.dot_general(lhs[0], rhs[0], dims, preferred_element_type=jnp.float32) * (lhs[1] * rhs[1])
