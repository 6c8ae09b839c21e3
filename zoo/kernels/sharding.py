"""Attention on a mesh: each device runs the backend on its own sequences, heads and rows.

Attention is independent over the batch and over groups of heads, so no device needs another's data. Left to itself the
partitioner does not see that in a loop over heads, and gathers them. The batch is split over the axes `data`, `fsdp`
and `expert`, heads over `tensor`, the sequence over `context`, where sizes divide. What devices must tell each other
about a split sequence is in `context.py`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec

from zoo.kernels import context
from zoo.kernels.bias import ALiBi, DenseBias, RelativeBias
from zoo.kernels.call import Call
from zoo.kernels.masks import And, Dense, Lengths, Or, PrefixLM, Segments

BATCH_AXES = ("data", "fsdp", "expert")
HEAD_AXIS = "tensor"


def run(attend: Callable[[Call], tuple[jax.Array, jax.Array]], call: Call, meeting: str) -> tuple[jax.Array, jax.Array]:
    """`attend(call)`, on each device of the ambient mesh for its own part if there is one."""
    layout = Layout.of(call, meeting)
    if layout is None:
        return attend(call)
    specs = layout.specs(call)
    if layout.explicit:
        call = jax.tree.map(jax.reshard, call, specs)
    return jax.shard_map(
        attend if layout.split is None else functools.partial(context.run, attend, layout.split),
        in_specs=(specs,),
        out_specs=(specs.q, PartitionSpec(*specs.q[:3])),
        axis_names=set(layout.axes),
        # Loops that begin with constants and end with data that varies over devices fail the check of variance.
        check_vma=False,
    )(call)


def piece(call: Call, meeting: str) -> Call:
    """The call that backends receive on the ambient mesh: the whole, or shapes of its part on a split sequence."""
    layout = Layout.of(call, meeting)
    return call if layout is None or layout.split is None else layout.split.piece(call)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Which mesh axes split the batch, the heads and the sequence of one call.

    Attributes:
      batch: mesh axes of the batch; may be empty.
      heads: mesh axis of the heads, or None.
      split: how the sequence is split over the axis `context`, or None.
      num_sequences: B, by which a split array is told from one that is broadcast.
      explicit: whether shardings are part of types on these axes, so that arguments must be brought to theirs.
    """

    batch: tuple[str, ...]
    heads: str | None
    split: context.Split | None
    num_sequences: int
    explicit: bool

    @classmethod
    def of(cls, call: Call, meeting: str) -> "Layout | None":
        """The layout for a call on the ambient mesh; None when there is nothing to split."""
        mesh = jax.sharding.get_abstract_mesh()
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True)) if not mesh.empty else {}
        free = {name for name, kind in kinds.items() if kind != AxisType.Manual and mesh.shape[name] > 1}
        num_sequences, _, _, _, num_kv_heads = call.sizes
        batch, parts = [], 1
        for name in BATCH_AXES:
            if name in free and num_sequences % (parts * mesh.shape[name]) == 0:
                batch.append(name)
                parts *= mesh.shape[name]
        split_heads = HEAD_AXIS in free and num_kv_heads % mesh.shape[HEAD_AXIS] == 0
        split = context.Split.of(call, mesh.shape[context.AXIS], meeting) if context.AXIS in free else None
        heads = HEAD_AXIS if split_heads else None
        layout = cls(batch=tuple(batch), heads=heads, split=split, num_sequences=num_sequences, explicit=False)
        explicit = any(kinds[name] == AxisType.Explicit for name in layout.axes)
        return dataclasses.replace(layout, explicit=explicit) if layout.axes else None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes that split anything."""
        others = ((self.heads, self.heads is not None), (context.AXIS, self.split is not None))
        return self.batch + tuple(name for name, used in others if used and name)

    @property
    def rows(self) -> str | None:
        """The mesh axis of the queries."""
        return context.AXIS if self.split is not None and self.split.rows else None

    @property
    def keys(self) -> str | None:
        """The mesh axis of the keys."""
        return context.AXIS if self.split is not None and self.split.keys else None

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
