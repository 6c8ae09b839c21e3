"""One table from parameter paths and activations to mesh axes, and the shardings that follow from it.

Reading a row: `("*/query/kernel", "D -> N H")` says that the trailing dimensions of every parameter whose
path ends so are D, N, H; those left of the arrow are contracted, those right of it are produced. `AXES` says
which mesh axes split a dimension, where they divide its size; what they do not divide is whole on each device.
Leading dimensions that a row does not name are stacked layers, never split: a scan slices them. The optimizer
reads the same table to know matrices from the rest.

The mesh axes: `data` splits the batch; `fsdp` splits the batch and the parameters; `expert` the batch and the
experts of a mixture; `tensor` splits heads, hidden units and the vocabulary; `context` splits the sequence. What
follows for activations is in `zoo.partition`, for attention in `zoo.kernels.sharding`.
"""

import math
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.training.config import MESH_AXES, MeshConfig

# First match wins; `*` matches any run of characters, also `/`. "E" are experts of a mixture.
PARAMETERS = (
    ("*/experts/down_kernel", "E F -> D"),
    ("*/experts/*_kernel", "E D -> F"),
    ("*/experts/down_bias", "E D"),
    ("*/experts/*_bias", "E F"),
    ("*/router/kernel", "D ."),
    # Recurrent layers: "G" are the gates, "M" what additive attention reads, "U" the units of a maxout.
    ("*/alignment/query/kernel", "D -> F"),
    ("*/alignment/key/kernel", "M -> F"),
    ("*/alignment/score/kernel", "F ."),
    ("*/layer_*/input/kernel", "D -> G F"),
    ("*/layer_*/recurrent/kernel", "D -> G F"),
    ("*/layer_*/context/kernel", "M -> G F"),
    ("readout/kernel", "F -> D U"),
    ("*/query/kernel", "D -> N H"),
    ("*/key/kernel", "D -> K H"),
    ("*/position_query/kernel", "D -> N H"),
    ("*/position_key/kernel", "D -> N H"),
    ("*/value/kernel", "D -> K H"),
    ("*attention/output/kernel", "N H -> D"),
    ("*/query/bias", "N H"),
    ("*/key/bias", "K H"),
    ("*/value/bias", "K H"),
    ("*/up/kernel", "D -> F"),
    ("*/gate/kernel", "D -> F"),
    ("*/down/kernel", "F -> D"),
    ("*/up/bias", "F"),
    ("*/gate/bias", "F"),
    ("*token/embedding", "V D"),
    ("*position_bias/embedding", "S N"),
    ("*/embedding", "S D"),
    ("head/kernel", "D V"),
    ("head/bias", "V"),
    ("head/logits/*", "."),
    ("*/sinks", "N"),
    ("*norm*", "."),
    ("*/bias", "."),
    ("*scale", "."),
)

# Activations are [B, T, ...]: rows over every axis that feeds batches, positions over `context`.
AXES: dict[str, tuple[str, ...]] = {
    "B": ("data", "fsdp", "expert"),
    "T": ("context",),
    "D": ("fsdp",),
    "N": ("tensor",),
    "K": ("tensor",),
    "F": ("tensor",),
    "V": ("tensor",),
    "E": ("expert",),
}


def make_mesh(config: MeshConfig, devices: list | None = None) -> Mesh:
    """Return a mesh with all axes; one device is a mesh of one. Devices beyond it stay unused.

    Raises ValueError for sizes that do not fit the devices, or slices that the devices do not have.
    """
    devices = jax.devices() if devices is None else devices
    # Auto axes: the compiler propagates shardings from the arguments, and the attention op may go manual.
    return Mesh(arrange_devices(config, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def arrange_devices(config: MeshConfig, devices: list) -> np.ndarray:
    """Return the devices in the mesh's shape; `data` goes through all of a slice before it goes to the next."""
    shape = tuple(config.sizes(len(devices)).values())
    inner = (shape[0] // config.slices, *shape[1:])
    groups, size = _slices(devices, config.slices), math.prod(inner)
    smallest = min(map(len, groups))
    if smallest < size:
        raise ValueError(
            f"the mesh needs {size} devices of each of its {config.slices} slices, and one has {smallest}; make an "
            "axis smaller"
        )
    # Within a slice, neighbours on an axis are neighbours on the wires, where the platform tells its topology.
    arranged = [mesh_utils.create_device_mesh(inner, group[:size], allow_split_physical_axes=True) for group in groups]
    return np.concatenate(arranged)


def _slices(devices: list, count: int) -> list[list]:
    """The devices in groups: by the platform's slices, by machines, or in their order."""
    if count == 1:
        return [devices]
    for name in ("slice_index", "process_index"):
        groups: dict[int, list] = {}
        for device in devices:
            groups.setdefault(getattr(device, name, 0), []).append(device)
        if len(groups) == count:
            return [groups[index] for index in sorted(groups)]
        if len(groups) > 1 and name == "slice_index":
            raise ValueError(f"mesh.slices is {count}, and the devices are in {len(groups)} slices; use that number")
    # Machines that share a switch, or fake devices: neighbours in order.
    size = len(devices) // count
    return [devices[start * size : (start + 1) * size] for start in range(count)]


def path_name(path: tuple) -> str:
    """Return a pytree key path as `decoder/attention/query/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def find_layout(path: str) -> str | None:
    """Return the dimensions of the parameter at a path, such as "D -> N H"; None if no row matches.

    What stands for a kernel in 8 bits has the kernel's path before its own (`zoo.kernels.int8`): integers with the
    outputs first, and a scale of each output. They lie where the kernel's outputs lie.
    """
    whole, _, part = path.rpartition("/")
    if part in ("int8", "w8a8", "scale") and whole.endswith(("kernel", "embedding")):
        layout = find_layout(whole)
        return None if layout is None else _outputs_first(layout, part)
    return next((layout for pattern, layout in PARAMETERS if fnmatchcase(path, pattern)), None)


def _outputs_first(layout: str, part: str) -> str:
    """Those of a part of a quantised kernel; tables, such as V D, and heads, D V, are read as their products do."""
    if layout == "D V":
        layout = "D -> V"
    left, arrow, right = layout.partition(" -> ")
    if not arrow:
        outputs, inputs = layout.split()[:1], layout.split()[1:]
    else:
        outputs, inputs = right.split(), left.split()
    batch = [letter for letter in inputs if letter == "E"]
    inputs = [letter for letter in inputs if letter != "E"]
    return " ".join([*batch, *outputs] + ([] if part == "scale" else inputs))


def matrix_axes(path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the (contracted, produced) axes of a parameter that is a matrix per layer; None for others.

    A path that no row knows counts as a matrix over its last two axes if it is called `kernel`.
    """
    layout = find_layout(path)
    if layout is None:
        return ((ndim - 2,), (ndim - 1,)) if ndim >= 2 and path.endswith("kernel") else None
    if "->" not in layout:
        return None
    left, right = (side.replace("E", "").split() for side in layout.split("->"))
    if ndim < len(left) + len(right):
        return None
    start = ndim - len(left) - len(right)
    middle = start + len(left)
    return tuple(range(start, middle)), tuple(range(middle, ndim))


def _fit(axes: tuple[str, ...], size: int, mesh: Mesh) -> tuple[str, ...] | str | None:
    """Keep the axes that the mesh has and that together divide the dimension; the last go first."""
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    while axes and size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else (axes[0] if axes else None)


def spec_of(letters: list[str], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return the partition of an array whose trailing dimensions have these letters."""
    letters = [""] * (len(shape) - len(letters)) + letters[max(0, len(letters) - len(shape)) :]
    return PartitionSpec(*(_fit(AXES.get(x, ()), size, mesh) for x, size in zip(letters, shape, strict=True)))


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return a parameter's partition.

    A path that no row knows keeps its memory small without knowing its meaning: its largest dimension that
    `fsdp` divides is split by `fsdp` (the last of equals; never the first of three or more, which may be
    stacked layers); vectors are replicated.
    """
    layout = find_layout(path)
    if layout is not None:
        return spec_of(layout.replace("->", "").split(), shape, mesh)
    entries: list[Any] = [None] * len(shape)
    fsdp = mesh.shape.get("fsdp", 1)
    first = 1 if len(shape) > 2 else 0
    candidates = [i for i in range(first, len(shape)) if shape[i] % fsdp == 0]
    if fsdp > 1 and len(shape) > 1 and candidates:
        entries[max(candidates, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*entries)


def check_axes(params: Any, mesh: Mesh) -> None:
    """Raise ValueError if an axis that splits parameters splits none of these: its devices would do the same work."""
    leaves = [(path_name(path), x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)]
    specs = [parameter_spec(path, shape, mesh) for path, shape in leaves]
    used = {axis for spec in specs for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,))}
    for axis, things in _SPLIT_THINGS.items():
        size = mesh.shape.get(axis, 1)
        if size > 1 and axis not in used:
            letters = {letter for letter, axes in AXES.items() if axes == (axis,)}
            found = sorted({size for leaf in leaves for letter, size in _dimensions(*leaf) if letter in letters})
            has = f"the sizes that it has are {', '.join(map(str, found))}" if found else "it has none"
            raise ValueError(
                f"mesh.{axis} is {size}, and no parameter of this model can be split so: it takes {things} of which "
                f"{size} is a divisor, and {has}; use another size, or mesh.{axis}=1"
            )


_SPLIT_THINGS = {"fsdp": "a width", "expert": "experts", "tensor": "heads, hidden units or a vocabulary"}


def _dimensions(path: str, shape: tuple[int, ...]) -> list[tuple[str, int]]:
    """The letters of a parameter's trailing dimensions, with their sizes."""
    letters = (find_layout(path) or "").replace("->", "").split()
    return list(zip(reversed(letters), reversed(shape), strict=False))


def shard_parameters(params: Any, mesh: Mesh) -> Any:
    """Return a tree of NamedShardings for a tree of arrays or shapes.

    ValueError for a mesh of several devices without one of `AXES`: each would hold everything.
    """
    known = {axis for axes in AXES.values() for axis in axes}
    names = [name for name, size in mesh.shape.items() if size > 1]
    if names and not known & {*names}:
        raise ValueError(
            f"the mesh has the axes {', '.join(names)}, and none is one of {', '.join(sorted(known))}: every device "
            "would hold all parameters; name its axes so, or lay parameters out yourself and say zoo.kernels.mesh_axes"
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, x: NamedSharding(mesh, parameter_spec(path_name(path), x.shape, mesh)), params
    )


def shard_optimizer_state(opt_state: Any, params: Any, mesh: Mesh) -> Any:
    """Return shardings for an optimizer state: whatever has a parameter's path and shape lies where it lies.

    Moments carry their parameter's path at the end of their own (`0/mu/decoder/…/kernel`). The scales of moments in
    8 bits, which differ in the last axis alone, are split as their parameter as far as that divides. Counters and
    factored statistics, which have another shape, are small and replicated.
    """
    shapes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}

    def sharding(path, x):
        keys = [path_name((key,)) for key in path]
        for start in range(len(keys)):
            name = "/".join(keys[start:])
            if name in shapes and len(shapes[name]) == x.ndim and shapes[name][:-1] == x.shape[:-1]:
                return NamedSharding(mesh, parameter_spec(name, x.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Return shardings for a batch of [B, T, ...] arrays: rows over the axes of the batch, positions over context."""

    def sharding(x):
        letters = ["B", "T"][: len(x.shape)] + [""] * (len(x.shape) - 2)
        return NamedSharding(mesh, spec_of(letters, x.shape, mesh))

    return jax.tree.map(sharding, batch)
