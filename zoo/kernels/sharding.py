"""Attention on a mesh: each device runs the backend on its own sequences, heads and rows.

Attention is independent over the batch and over groups of heads, so no device needs another's data. Left to itself the
partitioner does not see that in a loop over heads, and gathers them. The batch is split over the axes `data`, `fsdp`
and `expert`, heads over `tensor`, the sequence over `context`, where sizes divide; `axes.py` has the names of others.
What devices must tell each other about a split sequence is in `context.py`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from zoo.kernels import context
from zoo.kernels.axes import MeshAxes, current_axes
from zoo.kernels.bias import ALiBi, DenseBias, RelativeBias
from zoo.kernels.call import Call
from zoo.kernels.masks import And, Dense, Lengths, Or, PrefixLM, Segments


def run(
    attend: Callable[[Call], tuple[jax.Array, jax.Array]], call: Call, meeting: str, axes: MeshAxes
) -> tuple[jax.Array, jax.Array]:
    """`attend(call)`, on each device of the mesh for its own part if there is one."""
    layout = Layout.of(call, meeting, axes)
    if layout is None:
        return attend(call)
    specs = layout.specs(call)
    if layout.explicit:
        call = jax.tree.map(lambda x, spec: jax.reshard(x, jax.NamedSharding(layout.mesh, spec)), call, specs)
    return jax.shard_map(
        attend if layout.split is None else functools.partial(context.run, attend, layout.split),
        mesh=layout.mesh,
        in_specs=(specs,),
        out_specs=(specs.q, PartitionSpec(*specs.q[:3])),
        axis_names=set(layout.axes),
        # Loops that begin with constants and end with data that varies over devices fail the check of variance.
        check_vma=False,
    )(call)


def axes_of(call: Call) -> MeshAxes:
    """The names of mesh axes in force for a call; ValueError where the mesh has none of them."""
    mesh = _mesh(call)
    return current_axes(name for name, kind in _free(mesh).items() if kind == AxisType.Auto)


def _mesh(call: Call) -> AbstractMesh:
    """The ambient mesh, or that which is part of the queries' type."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.typeof(call.q).sharding.mesh if mesh.empty else mesh


def _free(mesh: AbstractMesh) -> dict[str, AxisType]:
    """The axes of several devices that are not manual, with their kinds."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True) if not mesh.empty else ()
    return {name: kind for name, kind in kinds if kind != AxisType.Manual and mesh.shape[name] > 1}


def _explicit(call: Call, free: dict[str, AxisType], dim: int) -> tuple[str, ...]:
    """The mesh axes that split a dimension of the queries by their type."""
    spec = jax.typeof(call.q).sharding.spec
    entry = spec[dim] if dim < len(spec) else None
    names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
    return tuple(name for name in names if free.get(name) == AxisType.Explicit)


def piece(call: Call, meeting: str, axes: MeshAxes) -> Call:
    """The call that backends receive on the mesh: the whole, or shapes of its part on a split sequence."""
    layout = Layout.of(call, meeting, axes)
    return call if layout is None or layout.split is None else layout.split.piece(call)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which mesh axes split the batch, the heads and the sequence of one call.

    Attributes:
      mesh: the mesh.
      batch: mesh axes of the batch; may be empty.
      heads: mesh axis of the heads, or None.
      split: how the sequence is split, or None.
      num_sequences: B, by which a split array is told from one that is broadcast.
      explicit: whether shardings are part of types on these axes, so that arguments must be brought to theirs.
    """

    mesh: AbstractMesh
    batch: tuple[str, ...]
    heads: str | None
    split: context.Split | None
    num_sequences: int
    explicit: bool

    @classmethod
    def of(cls, call: Call, meeting: str, axes: MeshAxes) -> "Layout | None":
        """The layout for a call on its mesh; None when there is nothing to split."""
        mesh = _mesh(call)
        free = _free(mesh)
        if not free:
            return None
        num_sequences, _, _, _, num_kv_heads = call.sizes
        own_rows, own_heads = (_explicit(call, free, dim) for dim in (0, 2))
        heads = own_heads[0] if own_heads else axes.heads
        heads = heads if heads in free and num_kv_heads % mesh.shape[heads] == 0 else None
        batch, parts = [], 1
        for name in dict.fromkeys((*own_rows, *axes.batch)):
            if name in free and name not in own_heads and num_sequences % (parts * mesh.shape[name]) == 0:
                batch.append(name)
                parts *= mesh.shape[name]
        sequence = axes.sequence if axes.sequence in free and axes.sequence not in (*batch, heads) else None
        split = None if sequence is None else context.Split.of(call, sequence, mesh.shape[sequence], meeting)
        layout = cls(
            mesh=mesh, batch=tuple(batch), heads=heads, split=split, num_sequences=num_sequences, explicit=False
        )
        explicit = any(free[name] == AxisType.Explicit for name in layout.axes)
        return dataclasses.replace(layout, explicit=explicit) if layout.axes else None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that split anything."""
        others = (self.heads, None if self.split is None else self.split.axis)
        return self.batch + tuple(name for name in others if name is not None)

    @property
    def rows(self) -> str | None:
        """The mesh axis of the queries."""
        return self.split.axis if self.split is not None and self.split.rows else None

    @property
    def keys(self) -> str | None:
        """The mesh axis of the keys."""
        return self.split.axis if self.split is not None and self.split.keys else None

    def specs(self, call: Call) -> Call:
        """A call with partition specs for arrays."""
        heads, batch = self.heads, self.batch
        return dataclasses.replace(
            call,
            q=PartitionSpec(batch, self.rows, heads, None),
            k=PartitionSpec(batch, self.keys, heads, None),
            v=PartitionSpec(batch, self.keys, heads, None),
            mask=self._mask(call.mask),
            bias=self._bias(call.bias),
            sinks=None if call.sinks is None else PartitionSpec(heads),
            q_offset=self._by_batch(call.q_offset),
            kv_positions=self._by_batch(call.kv_positions),
            dropout_seeds=None if call.dropout_seeds is None else PartitionSpec(batch, heads, None),
        )

    def _mask(self, mask):
        match mask:
            case And() | Or():
                return dataclasses.replace(mask, left=self._mask(mask.left), right=self._mask(mask.right))
            case Dense():
                return Dense(self._by_pair(mask.array))
            case Segments():
                return Segments(self._by_batch(mask.q_ids), self._by_batch(mask.kv_ids))
            case Lengths():
                return Lengths(self._by_batch(mask.q), self._by_batch(mask.kv))
            case PrefixLM():
                return PrefixLM(self._by_batch(mask.length))
        return mask

    def _bias(self, bias):
        match bias:
            case DenseBias():
                return DenseBias(self._by_pair(bias.array))
            case ALiBi():
                return ALiBi(PartitionSpec(self.heads))
            case RelativeBias():
                return dataclasses.replace(bias, table=PartitionSpec(None, self.heads))
        return None

    def _by_batch(self, x) -> PartitionSpec | None:
        """The spec of a scalar, [1, …] or [B, …]."""
        if x is None:
            return None
        split = getattr(x, "ndim", 0) > 0 and x.shape[0] == self.num_sequences and self.num_sequences > 1
        return PartitionSpec(self.batch) if split else PartitionSpec()

    def _by_pair(self, x) -> PartitionSpec:
        """The spec of [T, S] or [B or 1, N or 1, T or 1, S or 1]."""
        rows = self.rows if x.shape[-2] > 1 else None
        if x.ndim < 4:
            return PartitionSpec(rows)
        return PartitionSpec(self.batch if x.shape[0] > 1 else None, self.heads if x.shape[1] > 1 else None, rows)
