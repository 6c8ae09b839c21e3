"""Gradients whose bits do not depend on how many devices make them.

A sum's last bits depend on its order, and devices that each reduce their own rows, and then one another's sums, make an
order of their own for each number of them. Here the batch is cut into a fixed number of parts P, each part's gradients
are made by the same program of the same shapes, and a binary tree over the parts adds them up: first on each device the
part of the tree that lies there, then between devices, level by level, each with the one that holds the other branch.
Both add the same two numbers, so all hold the same bits.

It costs: nothing is fused across parts; gradients pass log2(D) times between D devices, where a ring passes twice its
share; a device keeps log2(P / D) + 2 gradients; and the update is made on every device, whole, so parameters that `fsdp`
splits are gathered for the step. The same bits also need the same kind of devices and versions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

ROWS = ("data", "fsdp")
"""The mesh axes that split a batch's rows, the slower one first."""


def check_parts(parts: int, mesh: Mesh, batch_size: int) -> None:
    """Raise ValueError unless so many parts can be dealt to a mesh."""
    others = {axis: size for axis, size in mesh.shape.items() if axis not in ROWS and size > 1}
    if others:
        axis, size = next(iter(others.items()))
        raise ValueError(
            f"training.deterministic_parts is {parts} and mesh.{axis} is {size}: a tensor that several devices share is "
            f"summed in their order; set mesh.{axis} to 1"
        )
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if parts % devices:
        raise ValueError(
            f"training.deterministic_parts is {parts} and the mesh has {devices} devices: give a power of two of them, "
            "up to as many as parts"
        )
    if batch_size % parts:
        raise ValueError(
            f"a batch of {batch_size} rows does not divide into training.deterministic_parts = {parts}; make it a "
            "multiple of that"
        )


def sum_parts(value_of: Callable[[Any, jax.Array], Any], batch: Any, parts: int, mesh: Any) -> Any:
    """Return the sum over all parts of `value_of(rows, part)`, inside a `shard_map` over the whole mesh.

    `batch` has this device's rows, and `part` counts the parts of the whole batch from 0.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    here = parts // devices
    first = lax.axis_index(ROWS) * here
    rows = jax.tree.map(lambda x: x.reshape(here, x.shape[0] // here, *x.shape[1:]), batch)
    total = _sum_here(lambda index, part: value_of(part, first + index), rows, here)
    for axis in reversed(ROWS):  # neighbours along the faster axis are neighbours in the tree
        size, distance = mesh.shape[axis], 1
        while distance < size:
            pairs = [(device, device ^ distance) for device in range(size)]
            total = _add(total, lax.ppermute(total, axis, pairs))
            distance *= 2
    return total


def _sum_here(value_of: Callable[[jax.Array, Any], Any], rows: Any, count: int) -> Any:
    """The tree's part on this device: a counter in binary, each of whose digits holds the sum that it stands for."""
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    shapes = jax.eval_shape(value_of, jax.ShapeDtypeStruct((), jnp.int32), first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    digits = [zeros] * count.bit_length()

    def take(digits, xs):
        index, part = xs
        carried = lax.optimization_barrier(value_of(index, part))
        moving = jnp.bool_(True)
        written = []
        for level, held in enumerate(digits):
            is_set = (index >> level) & 1 == 1
            stays = moving & ~is_set
            written.append(jax.tree.map(lambda old, new, stays=stays: jnp.where(stays, new, old), held, carried))
            moving &= is_set
            carried = jax.tree.map(lambda x, s, moving=moving: jnp.where(moving, s, x), carried, _add(held, carried))
        return written, None

    digits, _ = lax.scan(take, digits, (jnp.arange(count), rows))
    return digits[-1]


def _add(left: Any, right: Any) -> Any:
    """Sums of rounded numbers: a product that was not rounded before it was added would depend on what is fused."""
    left, right = lax.optimization_barrier((left, right))
    return lax.optimization_barrier(jax.tree.map(jnp.add, left, right))
