"""Adam whose moments are kept in 8 bits: a quarter of the memory, and updates that stay close to Adam's.

Dettmers et al. 2022, "8-bit optimizers via block-wise quantization" (https://arxiv.org/abs/2110.02861): a block of
`BLOCK` neighbours along the last axis shares one float32 scale, its largest value, so that one large moment costs its
own block alone some precision. The integers keep the parameter's shape and the scales all axes but the last, so both
lie on a mesh where the parameter lies. As there, small parameters stay in float32, here with all norms and biases.

Two things are simpler than in the paper, which rounds to a table of values:

- A code stands for its own fourth power: small values are stored nearly as finely as large ones, and decoding is
  arithmetic.
- From which fraction on a value is rounded up changes from step to step, alike for all (the golden ratio's multiples,
  which fill [0, 1) evenly). To nearest, a moment that changes by less than half a code a step would never move, as the
  second does at a decay rate of 0.999. No random bits are drawn, and a resumed or resharded run does the same.

Of the second moment the root is kept, which an update is divided by; it is never 0 in a block that has any.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.training.sharding import path_name

BLOCK = 256
"""Neighbours along the last axis that share a scale."""
SMALLEST = 4096
"""Parameters with fewer numbers keep float32 moments."""
_GOLDEN = 2654435769
"""2**32 divided by the golden ratio."""


class Blocks(NamedTuple):
    """A tree of moments: integers in the parameters' shapes, and the scales of their blocks [..., blocks]."""

    codes: Any
    scales: Any


class Int8AdamState(NamedTuple):
    """As optax's state of Adam."""

    count: jax.Array
    mu: Blocks
    """int8, signed."""
    nu: Blocks
    """uint8, of its root."""


def keeps_int8(path: tuple, parameter: Any) -> bool:
    """Whether the moments of a parameter are kept in 8 bits: those of kernels and tables that are not small."""
    return path_name(path).endswith(("kernel", "embedding")) and parameter.size >= SMALLEST


def scale_by_int8_adam(first: float, second: float, epsilon: float) -> optax.GradientTransformation:
    """Return `optax.scale_by_adam` with moments in 8 bits between steps, and in float32 within one."""

    def init(params):
        def zeros(dtype):
            codes = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), params)
            return Blocks(codes, jax.tree.map(lambda x: jnp.zeros(_scale_shape(x.shape), jnp.float32), params))

        return Int8AdamState(jnp.zeros((), jnp.int32), zeros(jnp.int8), zeros(jnp.uint8))

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        # In 2**-32 parts of one, the product drops whole ones by itself.
        threshold = (count.astype(jnp.uint32) * jnp.uint32(_GOLDEN)).astype(jnp.float32) / 2.0**32

        known_mu, known_nu = (1 - jax.lax.pow(jnp.float32(decay), count) for decay in (first, second))

        def leaf(gradient, mu, mu_scale, nu, nu_scale):
            gradient = gradient.astype(jnp.float32)
            mu = first * decode(mu, mu_scale) + (1 - first) * gradient
            nu = second * jnp.square(decode(nu, nu_scale)) + (1 - second) * jnp.square(gradient)
            direction = mu / known_mu / (jnp.sqrt(nu / known_nu) + epsilon)
            return direction, encode(mu, threshold, jnp.int8), encode(jnp.sqrt(nu), threshold, jnp.uint8)

        moments = state.mu.codes, state.mu.scales, state.nu.codes, state.nu.scales
        found = jax.tree.map(leaf, updates, *moments)
        outer, inner = jax.tree.structure(updates), jax.tree.structure((0, (0, 0), (0, 0)))
        direction, mu, nu = jax.tree.transpose(outer, inner, found)
        return direction, Int8AdamState(count, Blocks(*mu), Blocks(*nu))

    return optax.GradientTransformation(init, update)


def encode(values: jax.Array, threshold: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return values [..., n] as codes of the same shape and the scales of their blocks [..., blocks].

    A value between two codes' is rounded up where it lies more than `threshold` of the way to the upper one.
    """
    blocks, last = _in_blocks(values), jnp.iinfo(dtype).max
    scale = jnp.abs(blocks).max(-1)
    share = jnp.abs(blocks) / jnp.where(scale == 0, 1, scale)[..., None]
    below = jnp.floor(last * jnp.sqrt(jnp.sqrt(share)))
    low, high = (below / last) ** 4, ((below + 1) / last) ** 4
    above = share - low > threshold * (high - low)
    code = jnp.minimum(below + above.astype(jnp.float32), last)
    code = jnp.maximum(code, 1) if dtype == jnp.uint8 else code * jnp.sign(blocks)
    return _out_of_blocks(code, values.shape[-1]).astype(dtype), scale


def decode(codes: jax.Array, scales: jax.Array) -> jax.Array:
    """Return the float32 values [..., n] that `encode` made codes and scales of."""
    share = _in_blocks(codes).astype(jnp.float32) / jnp.iinfo(codes.dtype).max
    return _out_of_blocks(jnp.sign(share) * share**4 * scales[..., None], codes.shape[-1])


def _in_blocks(x: jax.Array) -> jax.Array:
    """[..., n] to [..., blocks, size], with zeros after the last."""
    size = min(BLOCK, x.shape[-1])
    blocks = math.ceil(x.shape[-1] / size)
    missing = blocks * size - x.shape[-1]
    if missing:
        x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, missing),))
    return x.reshape(*x.shape[:-1], blocks, size)


def _out_of_blocks(blocks: jax.Array, length: int) -> jax.Array:
    """[..., blocks, size] to [..., length]."""
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]


def _scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], math.ceil(shape[-1] / min(BLOCK, shape[-1])))
