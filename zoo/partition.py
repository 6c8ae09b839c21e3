"""How activations lie on the ambient mesh, where the compiler would not find it out by itself.

Rows of the batch are split over the mesh axes of the batch, positions over that of the sequence; widths are whole.
From the parameters' shardings alone the partitioner sometimes concludes otherwise: what it reads from a table that
`fsdp` splits by columns it splits by columns too. So the first activations are told, and the rest follows.

Without a mesh, and on axes that are manual or part of types, everything here is the identity. Attention lays out its
own arguments: `zoo.kernels.sharding`.
"""

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from zoo.kernels.axes import current_axes

_FREE = PartitionSpec.UNCONSTRAINED


def free_axes() -> dict[str, int]:
    """The axes of the ambient mesh that have several devices and that the compiler lays out, with their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto and mesh.shape[name] > 1}


def axes_of_rows(size: int) -> tuple[str, ...]:
    """The mesh axes that split a batch of this size."""
    axes, parts, free = [], 1, free_axes()
    for name in current_axes(free).batch:
        if name in free and size % (parts * free[name]) == 0:
            axes.append(name)
            parts *= free[name]
    return tuple(axes)


def axis_of_positions(size: int) -> str | None:
    """The mesh axis that splits a sequence of this length; None: it is whole."""
    free = free_axes()
    axis = current_axes(free).sequence
    return axis if axis in free and size % free[axis] == 0 else None


def split_rows(x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The same array, its rows and positions split and its width whole; fewer dimensions are left as they are."""
    if x.ndim < 3 or not free_axes():
        return x
    return lax.with_sharding_constraint(x, PartitionSpec(axes_of_rows(x.shape[0]), axis_of_positions(x.shape[1])))


def whole_columns(table: Float[Array, "V ..."]) -> Float[Array, "V ..."]:
    """The same table, its columns whole: a row is read on one device, or on the few that share the rows."""
    if not free_axes():
        return table
    return lax.with_sharding_constraint(table, PartitionSpec(_FREE, *(None,) * (table.ndim - 1)))
