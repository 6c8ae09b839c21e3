"""The matrix product under every projection: operands in the compute dtype, float32 accumulation, fast gradients.

XLA's own gradient of a bfloat16 product multiplies a float32 cotangent by a bfloat16 operand, which leaves the
matrix units of every platform (measured on a CPU with AMX: 4 to 6 times slower). Here the cotangent is rounded to
the operands' dtype first, as mixed-precision training does everywhere, and accumulation stays in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

# Rows per tile of the explicit transpose on CPU; the AMX tile height is 16, and 32 was measured fastest.
_TILE = 32


def product(x: jax.Array, kernel: jax.Array, *, num_contracted: int = 1) -> jax.Array:
    """Contract the last `num_contracted` axes of `x` with the first of `kernel`.

    Args:
        x: [..., *I] in the compute dtype.
        kernel: [*I, *O], usually the float32 master weights; rounded to the dtype of `x` for the product.
        num_contracted: how many axes I has.

    Returns:
        [..., *O] in the dtype of `x`; sums are accumulated in float32.
    """
    return accumulate(x, kernel, num_contracted=num_contracted).astype(x.dtype)


def accumulate(x: jax.Array, kernel: jax.Array, *, num_contracted: int = 1) -> jax.Array:
    """Like `product`, but the result stays in float32: for logits and other sums that are not fed to a product."""
    if x.shape[x.ndim - num_contracted :] != kernel.shape[:num_contracted]:
        raise ValueError(
            f"product of {x.shape} and {kernel.shape} over {num_contracted} axes: the last axes of the first "
            "must equal the first axes of the second"
        )
    if x.dtype == jnp.float32:
        return _contract(x, kernel.astype(x.dtype), num_contracted)
    return _low_precision(x, kernel, num_contracted)


def _contract(x, kernel, num_contracted):
    return _dot(x, kernel, tuple(range(x.ndim - num_contracted, x.ndim)), tuple(range(num_contracted)))


def _dot(lhs, rhs, lhs_axes, rhs_axes):
    return lax.dot_general(lhs, rhs, ((lhs_axes, rhs_axes), ((), ())), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _low_precision(x, kernel, num_contracted):
    return _contract(x, kernel.astype(x.dtype), num_contracted)


def _low_precision_fwd(x, kernel, num_contracted):
    return _low_precision(x, kernel, num_contracted), (x, kernel)


def _low_precision_bwd(num_contracted, residuals, cotangent):
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    num_rows = x.ndim - num_contracted
    outputs = tuple(range(num_rows, cotangent.ndim))
    dx = _dot(cotangent, kernel.astype(x.dtype), outputs, tuple(range(num_contracted, kernel.ndim)))
    rows = math.prod(x.shape[:num_rows])
    if jax.default_backend() == "cpu" and rows % _TILE == 0:
        dk = _kernel_gradient_cpu(x, cotangent, rows).reshape(kernel.shape)
    else:
        dk = _dot(x, cotangent, tuple(range(num_rows)), tuple(range(num_rows)))
    # The sum over rows goes to the float32 master weights unrounded.
    return dx.astype(x.dtype), dk.astype(kernel.dtype)


_low_precision.defvjp(_low_precision_fwd, _low_precision_bwd)


def _kernel_gradient_cpu(x, cotangent, rows):
    """xᵀ · cotangent, with a real transpose in tiles: folded into the product, it leaves AMX (3 to 5 times slower).

    The barriers keep XLA from folding; without the one on the result, a transpose that follows (a tied output layer's)
    makes XLA swap the operands and fail on their dtypes (jaxlib 0.10.2).
    """
    x = x.reshape(rows // _TILE, _TILE, -1)
    transposed = lax.optimization_barrier(x.transpose(2, 0, 1)).reshape(-1, rows)
    return lax.optimization_barrier(_dot(transposed, cotangent.reshape(rows, -1), (1,), (0,)))
