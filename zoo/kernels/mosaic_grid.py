"""How a TPU kernel walks over blocks: grids, the tables that skip dead blocks, and the call that puts all together.

A walk turns the indices of a grid into the address of a block, for the pipeline that copies operands as for the kernel.
Where a step has nothing to do its address stays that of the step before, so that nothing is copied.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.call import mesh_axes_of, struct_like
from zoo.kernels.masks import is_static
from zoo.kernels.schedule import plan
from zoo.kernels.tiles import At

LANES = 128
"""Blocks are multiples of a vector register's width."""

MAX_BLOCK = 512
"""Rows and columns of a block: what VMEM holds beside the pipeline's copies, with every feature of the op."""


def block_size(*lengths: int) -> int:
    """The length of blocks by which to cut axes of these lengths. A guess: not yet measured on a TPU."""

    def cost(size: int) -> float:
        # What is computed, padding included, and for each step as much as some columns more.
        return math.prod(-(-length // size) * size for length in lengths) * (1 + LANES / size)

    return min(range(LANES, MAX_BLOCK + 1, LANES), key=cost)


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array and the block of it that an address reads or writes.

    Attributes:
      array: the array, or its shape and dtype for an output.
      block: sizes of the block, None for axes that the kernel does not see; None for all of it, in scalar memory.
      index: from an address to indices in units of blocks.
    """

    array: Any
    block: tuple[int | None, ...] | None = None
    index: Callable[[At], tuple] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """Where a kernel is on its walk. The conditions decorate what is done under them.

    Attributes:
      at: the block's address.
      first, last: the first and the last step at one block of the output.
      live: the step has a block to compute.
      first_of_head: the first step of all at one query head.
    """

    at: At
    first: Callable
    last: Callable
    live: Callable
    first_of_head: Callable


class Table:
    """For each block of one side, the live blocks of the other, in scalar memory."""

    def __init__(self, live):
        schedule = plan(live)
        num_sequences, self.num_rows, self.num_columns = live.shape
        self.batched = num_sequences > 1
        self.num_steps = max(1, int(schedule.num_live.max())) if is_static(live) else self.num_columns
        self.arrays = tuple(jnp.asarray(x, jnp.int32).reshape(-1) for x in (schedule.order, schedule.num_live))

    def read(self, refs, batch, row, step):
        """The other side's block at a step, and whether the step is live."""
        order, num_live = refs
        row = row + batch * self.num_rows if self.batched else row
        count = num_live[row]
        return order[row * self.num_columns + jnp.minimum(step, jnp.maximum(count - 1, 0))], step < count


class QueryWalk:
    """For each query head and block of queries, over blocks of keys."""

    def __init__(self, live, batch: int, num_heads: int):
        self.table = Table(live)
        self.arrays = self.table.arrays
        self.grid = (batch, num_heads, self.table.num_rows, self.table.num_steps)
        self.num_parallel = 2

    def at(self, ids, refs) -> At:
        """The address of a block."""
        batch, head, query, step = ids
        return At(batch=batch, head=head, query=query, key=self.table.read(refs, batch, query, step)[0])

    def steps(self, ids, refs) -> Steps:
        """The address and the conditions."""
        batch, _, query, step = ids
        return Steps(
            at=self.at(ids, refs),
            first=when(step == 0),
            last=when(step == self.table.num_steps - 1),
            live=when(self.table.read(refs, batch, query, step)[1]),
            first_of_head=when((query == 0) & (step == 0)),
        )


class KeyWalk:
    """For each key head and block of keys, over the query heads of its group and blocks of queries."""

    def __init__(self, live, batch: int, num_kv_heads: int, group: int):
        self.table, self.group = Table(live.swapaxes(1, 2)), group
        self.arrays = self.table.arrays
        self.grid = (batch, num_kv_heads, self.table.num_rows, group, self.table.num_steps)
        self.num_parallel = 3

    def at(self, ids, refs) -> At:
        """The address of a block."""
        batch, kv_head, key, member, step = ids
        query, _ = self.table.read(refs, batch, key, step)
        return At(batch=batch, head=kv_head * self.group + member, query=query, key=key)

    def steps(self, ids, refs) -> Steps:
        """The address and the conditions."""
        batch, _, key, member, step = ids
        first = (member == 0) & (step == 0)
        return Steps(
            at=self.at(ids, refs),
            first=when(first),
            last=when((member == self.group - 1) & (step == self.table.num_steps - 1)),
            live=when(self.table.read(refs, batch, key, step)[1]),
            first_of_head=when(first & (key == 0)),
        )


class PairWalk:
    """For each block of an array [B or 1, N or 1, S or 1, T or 1], over the blocks of logits that it is added to."""

    def __init__(self, live, shape: tuple[int, ...], batch: int, num_heads: int):
        num_sequences, self.num_query_blocks, self.num_key_blocks = live.shape
        self.batched = num_sequences > 1
        self.arrays = (jnp.asarray(live, jnp.int32).reshape(-1),)
        sizes = (batch, num_heads, self.num_key_blocks, self.num_query_blocks)
        # Steps at one block of the output must follow one another: axes that it lacks come last.
        self.order = sorted(range(4), key=lambda axis: shape[axis] == 1)
        self.grid = tuple(sizes[axis] for axis in self.order)
        self.num_parallel = sum(size != 1 for size in shape)

    def at(self, ids, refs) -> At:
        """The address of a block."""
        batch, head, key, query = (ids[self.order.index(axis)] for axis in range(4))
        return At(batch=batch, head=head, query=query, key=key)

    def steps(self, ids, refs) -> Steps:
        """The address and the conditions."""
        at = self.at(ids, refs)
        row = at.query + at.batch * self.num_query_blocks if self.batched else at.query
        inner = list(zip(ids, self.grid, strict=True))[self.num_parallel :]
        return Steps(
            at=at,
            first=when(_all(place == 0 for place, _ in inner)),
            last=when(_all(place == size - 1 for place, size in inner)),
            live=when(refs[0][row * self.num_key_blocks + at.key] != 0),
            first_of_head=when(_all(place == 0 for place in (at.query, at.key))),
        )


def _all(conditions):
    return functools.reduce(operator.and_, conditions, np.bool_(True))


def when(condition):
    """Decorator: run a function without arguments under a condition."""
    from jax.experimental import pallas as pl

    return pl.when(condition)


def launch(
    kernel: Callable,
    walk: QueryWalk | KeyWalk | PairWalk,
    operands: dict[str, Any],
    outputs: Sequence[Operand],
    scratch: Sequence[tuple[int, int]],
    interpret: bool,
) -> list[jax.Array]:
    """Run `kernel(steps, refs of operands, refs of outputs, refs of scratch)` along a walk; scratch is float32."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    inputs, tree = jax.tree.flatten(operands)
    num_ids, num_tables = len(walk.grid), len(walk.arrays)

    def spec(operand: Operand) -> pl.BlockSpec:
        if operand.block is None or operand.index is None:
            return pl.BlockSpec(memory_space=pltpu.SMEM)
        index = operand.index
        return pl.BlockSpec(operand.block, lambda *ids: index(walk.at(ids[:num_ids], ids[num_ids:])))

    def body(*refs):
        ends = np.cumsum([num_tables, len(inputs), len(outputs)])
        tables, read, written, kept = (refs[a:b] for a, b in zip((0, *ends), (*ends, None), strict=True))
        ids = [pl.program_id(axis) for axis in range(num_ids)]
        kernel(walk.steps(ids, tables), tree.unflatten(read), written, kept)

    axes = mesh_axes_of(*(operand.array for operand in inputs))
    parallel = ["parallel"] * walk.num_parallel
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=num_tables,
            grid=walk.grid,
            in_specs=[spec(operand) for operand in inputs],
            out_specs=[spec(operand) for operand in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[struct_like(operand.array, axes) for operand in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(*parallel, *["arbitrary"] * (num_ids - len(parallel)))
        ),
        interpret=interpret,
    )(*walk.arrays, *(operand.array for operand in inputs))
