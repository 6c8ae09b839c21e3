"""The matrix product under every projection: operands in the compute dtype, float32 accumulation, fast gradients.

XLA's own gradient of a bfloat16 product multiplies a float32 cotangent by a bfloat16 operand, which leaves the
matrix units of every platform (measured on a CPU with AMX: 4 to 6 times slower). Here the cotangent is rounded to
the operands' dtype first, as mixed-precision training does everywhere, and accumulation stays in float32.

How a product is made is read from its kernel. An array is multiplied in the dtype of `x`; a dict of some stands for a
kernel by the names of what is in it: {"float8": …} is rounded to 8-bit floats, both ways, for training
(`zoo.kernels.float8`); {"int8": …, "scale": …} and {"w8a8": …, "scale": …} hold integers, for inference
(`zoo.kernels.int8`); {"layer": …, "stack": …, "index": …} is one of a stack of kernels (`layer_kernels`). So parameters
stay a nested dict of arrays, and the modules say nothing of it.
"""

import math
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from zoo.kernels import float8, int8
from zoo.kernels.order import zero_after

Kernel: TypeAlias = jax.Array | Mapping[str, jax.Array]

# Rows per tile of the explicit transpose on CPU; the AMX tile height is 16, and 32 was measured fastest.
_TILE = 32


def product(x: jax.Array, kernel: Kernel, *, num_contracted: int = 1) -> jax.Array:
    """Contract the last `num_contracted` axes of `x` with the first of `kernel`.

    Args:
        x: [..., *I] in the compute dtype.
        kernel: [*I, *O], usually the float32 master weights; rounded to the dtype of `x` for the product. Or a dict
            that stands for it.
        num_contracted: how many axes I has.

    Returns:
        [..., *O] in the dtype of `x`; sums are accumulated in float32.
    """
    return accumulate(x, kernel, num_contracted=num_contracted).astype(x.dtype)


def accumulate(x: jax.Array, kernel: Kernel, *, num_contracted: int = 1) -> jax.Array:
    """Like `product`, but the result stays in float32: for logits and other sums that are not fed to a product."""
    inputs = input_sizes(kernel, num_contracted)
    if x.shape[x.ndim - num_contracted :] != inputs:
        raise ValueError(
            f"product of {x.shape} and a kernel of {inputs} inputs: the last axes of the first must be those"
        )
    if isinstance(kernel, Mapping):
        if "float8" in kernel:
            return float8.multiply(x, kernel["float8"], num_contracted)
        if "layer" not in kernel:
            return int8.multiply(x, kernel, num_contracted)
    layer, *origin = (kernel["layer"], kernel["stack"], kernel["index"]) if isinstance(kernel, Mapping) else (kernel,)
    # A product over one axis: before one over two, as the output projection's gradient is, XLA transposes the kernel.
    outputs = layer.shape[num_contracted:]
    sizes = math.prod(inputs), math.prod(outputs)
    x = x.reshape(*x.shape[: x.ndim - num_contracted], sizes[0])
    layer = layer.reshape(sizes)
    sums = _multiply_layer(x, layer, origin[0].reshape(-1, *sizes), origin[1]) if origin else _multiply(x, layer)
    return sums.reshape(*x.shape[:-1], *outputs)


def layer_kernels(stack: jax.Array) -> list[Kernel]:
    """Each layer's kernel of `stack` [L, *I, *O], cut out for the forward pass and once more for the backward pass.

    XLA for CPUs copies what it slices. Kept from one pass to the other, the copies are all weights once more.
    """
    return [{"layer": layer, "stack": stack, "index": jnp.int32(i)} for i, layer in enumerate(jnp.unstack(stack))]


def input_sizes(kernel: Kernel, num_contracted: int = 1) -> tuple[int, ...]:
    """Sizes of the axes of a kernel that a product contracts."""
    if not isinstance(kernel, Mapping):
        return kernel.shape[:num_contracted]
    for form in ("float8", "layer"):
        if form in kernel:
            return kernel[form].shape[:num_contracted]
    values = kernel[int8.form_of(kernel)]
    return values.shape[values.ndim - num_contracted :]


def grouped_product(x: jax.Array, kernel: Kernel, sizes: jax.Array) -> jax.Array:
    """Rows `x` [M, I], sorted by expert, `sizes` [E] of them each, times `kernel` [E, I, O]: [M, O], dtype of `x`."""
    if isinstance(kernel, Mapping):
        return int8.multiply_groups(x, kernel, sizes).astype(x.dtype)
    return lax.ragged_dot(x, kernel.astype(x.dtype), sizes, preferred_element_type=jnp.float32).astype(x.dtype)


def table_rows(table: Kernel, ids: jax.Array) -> jax.Array:
    """Rows of `table` [V, D], or of what stands for it; NaN for an id outside: a bad one cannot pass for good."""
    if isinstance(table, Mapping):
        return int8.read_rows(table, ids)
    return table.at[ids].get(mode="fill", fill_value=jnp.nan)


def output_kernel(table: Kernel) -> Kernel:
    """The kernel [D, V] of an output layer that is tied to `table` [V, D]; a quantised one has outputs first anyway."""
    return table if isinstance(table, Mapping) else table.T


def _contract(x, kernel):
    return _dot(x, kernel, (x.ndim - 1,), (0,))


def _multiply(x, kernel):
    return _contract(x, kernel.astype(x.dtype)) if x.dtype == jnp.float32 else _low_precision(x, kernel)


@jax.custom_vjp
def _multiply_layer(x, layer, stack, index):
    return _multiply(x, _cut(stack, index, x))


def _cut(stack, index, x):
    """The matrix at an index of `stack` [L, I, O], copied out of it no sooner than `x` is there."""
    return lax.dynamic_index_in_dim(stack, index + zero_after(x), keepdims=False)


def _multiply_layer_fwd(x, layer, stack, index):
    return _multiply_layer(x, layer, stack, index), (x, stack, index)


def _multiply_layer_bwd(residuals, cotangent):
    x, stack, index = residuals
    _, pull = jax.vjp(_multiply, x, _cut(stack, index, cotangent))
    return *pull(cotangent), None, None  # the gradient goes to the layer, not to what it was cut out of


_multiply_layer.defvjp(_multiply_layer_fwd, _multiply_layer_bwd)


def _dot(lhs, rhs, lhs_axes, rhs_axes):
    return lax.dot_general(lhs, rhs, ((lhs_axes, rhs_axes), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _low_precision(x, kernel):
    return _contract(x, kernel.astype(x.dtype))


def _low_precision_fwd(x, kernel):
    return _low_precision(x, kernel), (x, kernel)


def _low_precision_bwd(residuals, cotangent):
    x, kernel = residuals
    cotangent = cotangent.astype(x.dtype)
    dx = _dot(cotangent, kernel.astype(x.dtype), (x.ndim - 1,), (1,))
    if jax.default_backend() == "cpu":
        dk = _kernel_gradient_cpu(x.reshape(-1, x.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1]))
    else:
        rows = tuple(range(x.ndim - 1))
        dk = _dot(x, cotangent, rows, rows)
    # The sum over rows goes to the float32 master weights unrounded.
    return dx.astype(x.dtype), dk.astype(kernel.dtype)


_low_precision.defvjp(_low_precision_fwd, _low_precision_bwd)


def _kernel_gradient_cpu(x, cotangent):
    """xᵀ · cotangent, with a real transpose in tiles: folded into the product, it leaves AMX (3 to 5 times slower).

    The barriers keep XLA from folding; without the one on the result, a transpose that follows (a tied output layer's)
    makes XLA swap the operands and fail on their dtypes (jaxlib 0.10.2).
    """
    whole_tiles = ((0, -len(x) % _TILE), (0, 0))
    x, cotangent = jnp.pad(x, whole_tiles), jnp.pad(cotangent, whole_tiles)
    transposed = lax.optimization_barrier(x.reshape(-1, _TILE, x.shape[1]).transpose(2, 0, 1)).reshape(x.shape[::-1])
    return lax.optimization_barrier(_dot(transposed, cotangent, (1,), (0,)))
