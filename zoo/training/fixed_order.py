"""Gradients whose bits do not depend on how many devices make them.

A sum's last bits depend on its order, and devices that each reduce their own rows, and then one another's sums, make an
order of their own for each number of them. Here the batch is cut into a fixed number of parts P, each part's gradients
are made by the same program of the same shapes, and a binary tree over the parts adds them up: first on each device the
part of the tree that lies there, then between devices, level by level, each with the one that holds the other branch.
Both add the same two numbers, so all hold the same bits.

The same operations are not yet the same bits: what a compiler fuses, it rounds less, and it fuses across whatever it
can see, such as a loop that turns once. So the parts and the update are bodies of loops whose number of turns depends
on an argument, as far as the compiler knows, and each such body is compiled by itself.

It costs: parts are made one after the other on a device; gradients pass log2(D) times between D devices, where a ring
passes twice its share; a device holds log2(P / D) + 3 gradients; and every device makes the whole update, so parameters
that `fsdp` splits are gathered for the step. The same bits also need the same kind of devices and the same versions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh

ROWS = ("data", "fsdp")
"""The mesh axes that split a batch's rows, the slower one first."""


def check_parts(parts: int, mesh: Mesh, batch_size: int) -> None:
    """Raise ValueError unless so many parts can be dealt to a mesh."""
    others = {axis: size for axis, size in mesh.shape.items() if axis not in ROWS and size > 1}
    if others:
        axis, size = next(iter(others.items()))
        raise ValueError(
            f"training.deterministic_parts is {parts} and mesh.{axis} is {size}: what several devices share is "
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


def sum_parts(
    value_of: Callable[[Any, jax.Array], Any], batch: Any, parts: int, mesh: AbstractMesh, once: jax.Array
) -> Any:
    """Return the sum over all parts of `value_of(rows, part)`, inside a `shard_map` over the whole mesh.

    `batch` has this device's rows, `part` counts the parts of the whole batch from 0, and `once` is 1, as `hidden_one`
    makes it.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    here = parts // devices
    first = lax.axis_index(ROWS) * here
    rows = jax.tree.map(lambda x: x.reshape(here, x.shape[0] // here, *x.shape[1:]), batch)
    total = _sum_here(lambda index, part: value_of(part, first + index), rows, here, once)
    for axis in reversed(ROWS):  # neighbours along the faster axis are neighbours in the tree
        size, distance = mesh.shape[axis], 1
        while distance < size:
            pairs = [(device, device ^ distance) for device in range(size)]
            total = jax.tree.map(jnp.add, total, lax.ppermute(total, axis, pairs))
            distance *= 2
    return total


def hidden_one(step: jax.Array) -> jax.Array:
    """Return 1, of which the compiler does not know it; `step` is never below 0, and it does not know that."""
    return 1 + jnp.minimum(step, 0)


def _sum_here(value_of: Callable[[jax.Array, Any], Any], rows: Any, count: int, once: jax.Array) -> Any:
    """The tree's part on this device: a counter in binary, each of whose digits holds the sum that it stands for."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    shapes = jax.eval_shape(value_of, jax.ShapeDtypeStruct((), jnp.int32), one)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def take(index, digits):
        part = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), rows)
        # The rows are replaced, and so part of the body: what a loop leaves as it is, is moved out of it.
        spent = jax.tree.map(jnp.zeros_like, part)
        _, carried = lax.fori_loop(0, once, lambda _, held: (spent, value_of(index, held[0])), (part, zeros))
        moving, written = jnp.bool_(True), []
        for level, held in enumerate(digits):
            is_set = (index >> level) & 1 == 1
            written.append(_choose(moving & ~is_set, carried, held))
            moving &= is_set
            carried = _choose(moving, jax.tree.map(jnp.add, held, carried), carried)
        return written

    return lax.fori_loop(0, count * once, take, [zeros] * count.bit_length())[-1]


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)
