"""Products with kernels of 8-bit integers, for inference: weight-only, or with activations of 8 bits as well (W8A8).

A quantised kernel is a dict in the place of the array: `values` int8 [*O, *I], outputs first, and `scale` float32 [*O],
of which the kernel that it stands for is `scale * values`. The name of `values` says how it is multiplied:

- "int8": float activations, so that weights alone are rounded (Dettmers et al. 2022, weight-only).
- "w8a8": activations are rounded too, each row by its own largest value, and sums are int32.

On CPUs XLA converts an int8 kernel to floats before a float product, which takes longer than the product of the floats
it stands for; and a product of one row leaves the fast path for any 8-bit type (jaxlib 0.10.2, 50,257 x 768 outputs of
one row: 58 ms, where float32 takes 5). So there weight-only activations are cut in two halves of 8 bits, which make
two rows of one integer product: 15 bits of the row's largest value, at the speed of W8A8 for a single row. Outputs
first, because a product of few rows reads whole rows of the kernel (15 ms against 1.5 for that shape).
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

_LARGEST = 127
_HALF = 128
"""The upper half of an activation counts this many of its lower half."""


def form_of(kernel: Mapping[str, jax.Array]) -> str:
    """How a quantised kernel is multiplied, "int8" or "w8a8"; ValueError for another dict."""
    found = [form for form in ("int8", "w8a8") if form in kernel]
    if not found or "scale" not in kernel:
        raise ValueError(f"a kernel of {sorted(kernel)} is none that zoo multiplies: int8 or w8a8, with scale")
    return found[0]


def multiply(x: jax.Array, kernel: Mapping[str, jax.Array], num_contracted: int) -> jax.Array:
    """Contract the last `num_contracted` axes of `x` [..., *I] with those of a quantised kernel: float32 [..., *O].

    The gradient for `x` is that of the kernel that it stands for; the kernel has none.
    """
    if x.ndim == num_contracted:
        return multiply(x[None], kernel, num_contracted)[0]
    form = form_of(kernel)
    return _multiply(x, kernel[form], kernel["scale"], form, num_contracted)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _multiply(x, values, scale, form, num_contracted):
    inputs = tuple(range(x.ndim - num_contracted, x.ndim))
    if form == "w8a8":
        integers, unit = _to_integers(x, inputs, _LARGEST)
        sums = _integer_sums(integers.astype(jnp.int8), values, num_contracted).astype(jnp.float32)
    elif jax.default_backend() == "cpu":
        integers, unit = _to_integers(x, inputs, _LARGEST * _HALF)
        upper = jnp.round(integers / _HALF)
        halves = jnp.stack([upper, integers - _HALF * upper]).astype(jnp.int8)
        upper, lower = _integer_sums(halves, values, num_contracted).astype(jnp.float32)
        sums = _HALF * upper + lower
    else:
        sums = _dot(x, values.astype(x.dtype), num_contracted, jnp.float32)
        return sums * lax.broadcast_to_rank(scale, sums.ndim)
    unit = unit.reshape(*x.shape[: x.ndim - num_contracted], *(1,) * scale.ndim)
    return sums * unit * lax.broadcast_to_rank(scale, sums.ndim)


def _multiply_fwd(x, values, scale, form, num_contracted):
    return _multiply(x, values, scale, form, num_contracted), (values, scale, jnp.zeros((), x.dtype))


def _multiply_bwd(form, num_contracted, residuals, cotangent):
    del form, num_contracted
    values, scale, like = residuals
    outputs = tuple(range(scale.ndim))
    ours = tuple(range(cotangent.ndim - scale.ndim, cotangent.ndim))
    rows = (cotangent * lax.broadcast_to_rank(scale, cotangent.ndim)).astype(like.dtype)
    dims = ((ours, outputs), ((), ()))
    dx = lax.dot_general(rows, values.astype(like.dtype), dims, preferred_element_type=jnp.float32)
    return dx.astype(like.dtype), None, None


_multiply.defvjp(_multiply_fwd, _multiply_bwd)


def _to_integers(x, inputs, largest):
    """Rows of `x` as integers up to `largest`, still float32, and what one of them stands for."""
    x = x.astype(jnp.float32)
    most = jnp.abs(x).max(inputs, keepdims=True)
    # A row of zeros stays zeros, a row with NaN or infinity becomes NaN by its unit.
    return jnp.round(x * jnp.where(most == 0, 0, largest / most)), most / largest


def _integer_sums(rows, values, num_contracted):
    leading = rows.shape[: rows.ndim - num_contracted]
    if jax.default_backend() == "cpu" and math.prod(leading) == 1:
        padded = jnp.pad(rows, ((0, 1), *((0, 0),) * (rows.ndim - 1)))
        return _dot(padded, values, num_contracted, jnp.int32)[:1]
    return _dot(rows, values, num_contracted, jnp.int32)


def _dot(x, values, num_contracted, accumulator):
    # Over one axis: before a product over two, or to two, XLA transposes the kernel, each time.
    leading, outputs = x.shape[: x.ndim - num_contracted], values.shape[: values.ndim - num_contracted]
    x, values = x.reshape(*leading, -1), values.reshape(math.prod(outputs), -1)
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, values, dims, preferred_element_type=accumulator).reshape(*leading, *outputs)


def multiply_groups(x: jax.Array, kernel: Mapping[str, jax.Array], sizes: jax.Array) -> jax.Array:
    """Rows `x` [M, I], grouped by expert in `sizes` [E], times values [E, O, I] and scale [E, O]: float32 [M, O].

    Weight-only kernels become floats first: which experts' are needed is not known before.
    """
    form = form_of(kernel)
    values, scale = kernel[form].swapaxes(1, 2), kernel["scale"]
    if form == "int8":
        whole = (values.astype(scale.dtype) * scale[:, None]).astype(x.dtype)
        return lax.ragged_dot(x, whole, sizes, preferred_element_type=jnp.float32)
    integers, unit = _to_integers(x, (1,), _LARGEST)
    sums = lax.ragged_dot(integers.astype(jnp.int8), values, sizes, preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * unit * jnp.repeat(scale, sizes, axis=0, total_repeat_length=x.shape[0])


def read_rows(table: Mapping[str, jax.Array], ids: jax.Array) -> jax.Array:
    """Rows of a quantised table, values [V, D] and scale [V]: float32 [..., D], NaN for an id outside it."""
    values = table[form_of(table)].at[ids].get(mode="fill", fill_value=0)
    scale = table["scale"].at[ids].get(mode="fill", fill_value=jnp.nan)[..., None]
    return values.astype(scale.dtype) * scale
