"""The kernels of the backend `triton`, in Pallas: what one program on a GPU computes. Imports Pallas; import it late.

Every kernel receives whole arrays (`Operands`, references) and reads the blocks that its place in the grid and its
schedule name. Exponentials are in base 2, where they are one instruction.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from zoo.kernels import dropout
from zoo.kernels.bias import ALiBi, DenseBias
from zoo.kernels.call import LOWEST, mesh_axes_of, struct_like
from zoo.kernels.tiles import At, Grid, block_mask
from zoo.kernels.triton import Operands, Settings, Steps

LOG2_E = math.log2(math.e)


class References(Grid):
    """A grid that slices references as `Grid` does arrays. Index 0 is read of every axis of length 1."""

    def slice_rows(self, x, at: At) -> jax.Array:
        """The entries of [B or 1, T] that belong to a block, [block_q]."""
        return x[_index(x, 0, at.batch), self.row_slice(at)]

    def slice_columns(self, x, at: At) -> jax.Array:
        """The entries of [B or 1, S] that belong to a block, [block_k]."""
        return x[_index(x, 0, at.batch), self.column_slice(at)]

    def slice_sequence(self, x, at: At) -> jax.Array:
        """The entry of [B or 1, 1] that belongs to a block's sequence, [1]."""
        return x[_index(x, 0, at.batch), :]

    def slice_pairs(self, x, at: At) -> jax.Array:
        """The entries of [B or 1, N or 1, T or 1, S or 1] that belong to a block, [block_q or 1, block_k or 1]."""
        return x[self.pair_index(x, at)]

    def pair_index(self, x, at: At) -> tuple:
        """The index of those entries."""
        rows = slice(None) if x.shape[2] == 1 else self.row_slice(at)
        columns = slice(None) if x.shape[3] == 1 else self.column_slice(at)
        return _index(x, 0, at.batch), _index(x, 1, at.head), rows, columns

    def row_slice(self, at: At):
        """Where a block's queries lie along T."""
        return pl.ds(at.query * self.block_q, self.block_q)

    def column_slice(self, at: At):
        """Where a block's keys lie along S."""
        return pl.ds(at.key * self.block_k, self.block_k)


def _index(x, axis: int, index):
    return 0 if x.shape[axis] == 1 else index


class Problem:
    """Operands and settings inside a kernel: how blocks are read, and the logits and gradients of any block."""

    def __init__(self, operands: Operands, settings: Settings):
        self.operands, self.settings = operands, settings
        self.grid = References(**vars(settings.grid))
        self.group = operands.q.shape[2] // operands.k.shape[2]
        self.unit = LOG2_E * settings.unit

    def queries(self, x, at: At) -> jax.Array:
        """A block of [B, T, N, H], [block_q, H]."""
        return x[at.batch, self.grid.row_slice(at), at.head, :]

    def keys(self, x, at: At) -> jax.Array:
        """A block of [B, S, K, H], [block_k, H]."""
        return x[at.batch, self.grid.column_slice(at), lax.div(at.head, self.group), :]

    def schedule(self, batch, row):
        """(live blocks in a row of the schedule, the function that gives the n-th and whether it is whole)."""
        order, num_live = self.operands.order, self.operands.num_live

        def read(n):
            entry = order[_index(order, 0, batch), row, n]
            return lax.shift_right_logical(entry, 1), lax.rem(entry, 2) == 1

        return num_live[_index(num_live, 0, batch), row], read

    def exponential(self, logits: jax.Array, largest: jax.Array) -> jax.Array:
        """Exp of how far logits lie below another, both in units of `Settings.unit`.

        The difference first: it is exact near the largest, where one of large products would lose all.
        """
        return jnp.exp2((logits - largest) * self.unit)

    def logits(self, products: jax.Array, at: At, whole: jax.Array | None, transposed: bool = False):
        """Logits of a block of q·k in units of `Settings.unit`, and the soft cap's derivative (None without one).

        A whole block needs no mask; None where that is not known.
        """
        scale, softcap = self.settings.scale, self.settings.softcap
        if self.operands.bias is not None:
            # Before the scale, where Triton lets the product begin with the bias in place of zero.
            products = products + self.unscaled_bias(at, transposed)
        logits, slope = products, None
        if softcap is not None:
            logits = _tanh(products * (scale / softcap))
            slope = 1 - logits * logits
            if self.operands.bias is not None:
                # What a bias hides stays hidden: the cap would make -inf a number like others.
                hidden = products <= LOWEST / scale
                logits, slope = jnp.where(hidden, -jnp.inf, logits), jnp.where(hidden, 0.0, slope)
        if any(clause.is_full for clause in self.operands.clauses):
            return logits, slope

        def masked():
            allowed = block_mask(self.operands.clauses, self.operands.key_positions, self.grid, at, transposed)
            masked_slope = None if slope is None else jnp.where(allowed, slope, 0.0)
            return jnp.where(allowed, logits, -jnp.inf), masked_slope

        return masked() if whole is None else lax.cond(whole, lambda: (logits, slope), masked)

    def unscaled_bias(self, at: At, transposed: bool) -> jax.Array:
        """The bias of a block over the scale; an axis may be 1."""
        per_scale = 1 / self.settings.scale
        match bias := self.operands.bias:
            case DenseBias():
                block = self.grid.slice_pairs(bias.array, at).astype(jnp.float32) * per_scale
                return block.T if transposed else block
            case ALiBi():
                return bias.slopes[at.head].astype(jnp.float32) * -per_scale * self.distances(at, transposed)
        reach = bias.values.shape[1] // 2
        lowest, highest = self.relative_extremes(at)
        read = lambda x: bias.values[at.head, jnp.maximum(jnp.minimum(x, reach), -reach) + reach]  # noqa: E731
        shape = (self.grid.block_k, self.grid.block_q) if transposed else (self.grid.block_q, self.grid.block_k)
        return lax.cond(  # beyond its reach on either side, a relative bias is one number
            (lowest < reach) & (highest > -reach),
            lambda: read(self.relative(at, transposed)),
            lambda: jnp.full(shape, read(lowest)),
        )

    def relative(self, at: At, transposed: bool = False) -> jax.Array:
        """Key position - query position of the pairs of a block."""
        rows, columns = self.positions(at)
        return columns[:, None] - rows[None, :] if transposed else columns[None, :] - rows[:, None]

    def distances(self, at: At, transposed: bool = False) -> jax.Array:
        """The absolute value of that, in floats."""
        return jnp.abs(self.relative(at, transposed).astype(jnp.float32))

    def positions(self, at: At) -> tuple[jax.Array, jax.Array]:
        """Positions of a block's queries and keys."""
        positions = self.operands.key_positions
        columns = self.grid.columns(at) if positions is None else self.grid.slice_columns(positions, at)
        return self.grid.slice_rows(self.operands.query_positions, at), columns

    def relative_extremes(self, at: At) -> tuple[jax.Array, jax.Array]:
        """The least and the greatest of these relative positions."""
        queries, keys = self.operands.query_positions, self.operands.key_positions
        batch, row = _index(queries, 0, at.batch), at.query * self.grid.block_q
        if keys is None:
            first, last = at.key * self.grid.block_k, (at.key + 1) * self.grid.block_k - 1
        else:
            columns = self.grid.slice_columns(keys, at)
            first, last = columns.min(), columns.max()
        return first - queries[batch, row + self.grid.block_q - 1], last - queries[batch, row]

    def drop(self, weights: jax.Array, at: At, transposed: bool = False) -> jax.Array:
        """Weights of a block after dropout."""
        if self.operands.seeds is None:
            return weights
        column, row = (-1, 0) if transposed else (0, -1)
        rows, columns = jnp.expand_dims(self.grid.rows(at), row), jnp.expand_dims(self.grid.columns(at), column)
        rate, seeds = self.settings.dropout_rate, self.operands.seeds
        kept = dropout.survive(seeds[at.batch, at.head, 0], seeds[at.batch, at.head, 1], rows, columns, rate)
        return jnp.where(kept, weights * (1 / (1 - rate)), 0.0)

    def differentiate(self, q, k, v, grad_out, at: At, whole: jax.Array | None, transposed: bool = False):
        """(weights after dropout, gradient of the natural logits before the soft cap) of a block."""
        pair = lambda x, y: _dot(y, x, 1, 1) if transposed else _dot(x, y, 1, 1)  # noqa: E731
        axis = 0 if transposed else 1
        rows = (at.batch, at.head, self.grid.row_slice(at))
        lse = jnp.expand_dims(self.operands.above.lse[rows], axis)
        delta = jnp.expand_dims(self.operands.above.delta[rows], axis)
        logits, slope = self.logits(pair(q, k), at, whole, transposed)
        weights = self.exponential(jnp.minimum(logits, lse), lse)  # as in block.recompute_weights
        # A sum, not a difference: then the product begins with the term in place of zero.
        grad_logits = weights * (self.drop(pair(grad_out, v), at, transposed) + (-delta))
        grad_logits = grad_logits if slope is None else grad_logits * slope
        return self.drop(weights, at, transposed), grad_logits


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """A product of two matrices over the axes named, in float32."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _tanh(x: jax.Array) -> jax.Array:
    """Exact to a rounding of 1; the library's, exact to a rounding of itself, takes as long as the rest of a kernel."""
    return 1 - 2 / (1 + jnp.exp2(x * (2 * LOG2_E)))


def forward(operands: Operands, settings: Settings) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Output [B, T, N, Hv], and over [B, N, T] the largest logit in units and the sum of exp(logits - it), padded."""
    batch, num_queries, num_heads, _ = operands.q.shape
    outputs = (
        jax.ShapeDtypeStruct((batch, num_queries, num_heads, operands.v.shape[3]), operands.v.dtype),
        *(jax.ShapeDtypeStruct((batch, num_heads, num_queries), jnp.float32) for _ in ("largest", "total")),
    )
    return _launch(_forward_kernel, (settings.grid.num_query_blocks, num_heads, batch), outputs, operands, settings)


def _forward_kernel(operands: Operands, out, out_largest, out_total, *, settings: Settings):
    problem = Problem(operands, settings)
    at = At(query=pl.program_id(0), head=pl.program_id(1), batch=pl.program_id(2), key=0)
    q = problem.queries(operands.q, at)
    num_live, key_block = problem.schedule(at.batch, at.query)

    def visit(n, carry):
        largest, total, acc = carry
        key, whole = key_block(n)
        here = dataclasses.replace(at, key=key)
        logits, _ = problem.logits(_dot(q, problem.keys(operands.k, here), 1, 1), here, whole)
        new_largest = jnp.maximum(largest, logits.max(1))
        weights = problem.exponential(logits, new_largest[:, None])
        decay = problem.exponential(largest, new_largest)
        total = total * decay + weights.sum(1)
        weights = problem.drop(weights, here).astype(operands.v.dtype)
        acc = acc * decay[:, None] + _dot(weights, problem.keys(operands.v, here), 1, 0)
        return new_largest, total, acc

    block_q = settings.grid.block_q
    lowest = max(LOWEST / settings.scale, -3e38)
    carry = _zeros(block_q) + lowest, _zeros(block_q), _zeros(block_q, operands.v.shape[3])
    largest, total, acc = lax.fori_loop(0, num_live, visit, carry)
    if operands.sinks is not None:
        sink = operands.sinks[at.head].astype(jnp.float32) * (1 / settings.unit)
        new_largest = jnp.maximum(largest, sink)
        decay = problem.exponential(largest, new_largest)
        total = total * decay + problem.exponential(sink, new_largest)
        largest, acc = new_largest, acc * decay[:, None]
    safe_total = jnp.where(total == 0, 1.0, total)  # rows without keys give 0
    rows = problem.grid.row_slice(at)
    out[at.batch, rows, at.head, :] = (acc / safe_total[:, None]).astype(out.dtype)
    out_largest[at.batch, at.head, rows], out_total[at.batch, at.head, rows] = largest, total


def gradient_by_rows(operands: Operands, settings: Settings) -> tuple[jax.Array, jax.Array | None]:
    """Gradient of q [B, T, N, H]; and for a structured bias, float32 sums [B, N, I, …] for each block of queries.

    Of ALiBi, the last axis has the sum of distance times gradient; of steps, that of the gradient by step.
    """
    batch, _, num_heads, _ = operands.q.shape
    num_blocks = settings.grid.num_query_blocks
    dq = jax.ShapeDtypeStruct(operands.q.shape, operands.q.dtype)
    sums = None
    if isinstance(operands.bias, ALiBi | Steps):
        width = operands.bias.starts.shape[0] if isinstance(operands.bias, Steps) else 1
        sums = jax.ShapeDtypeStruct((batch, num_heads, num_blocks, width), jnp.float32)
    return _launch(_row_kernel, (num_blocks, num_heads, batch), (dq, sums), operands, settings)


def _row_kernel(operands: Operands, dq, bias_sums, *, settings: Settings):
    problem = Problem(operands, settings)
    at = At(query=pl.program_id(0), head=pl.program_id(1), batch=pl.program_id(2), key=0)
    q, grad_out = (problem.queries(x, at) for x in (operands.q, operands.above.grad_out))
    num_live, key_block = problem.schedule(at.batch, at.query)

    def visit(n, carry):
        acc, sums = carry
        key, whole = key_block(n)
        here = dataclasses.replace(at, key=key)
        k, v = (problem.keys(x, here) for x in (operands.k, operands.v))
        _, grad_logits = problem.differentiate(q, k, v, grad_out, here, whole)
        acc = acc + _dot(grad_logits.astype(k.dtype), k, 1, 0)
        return acc, sums if sums is None else _add_to_sums(problem, sums, grad_logits, here)

    sums = None if bias_sums is None else _zeros(bias_sums.shape[-1])
    acc, sums = lax.fori_loop(0, num_live, visit, (_zeros(*q.shape), sums))
    dq[at.batch, problem.grid.row_slice(at), at.head, :] = (acc * settings.scale).astype(dq.dtype)
    if bias_sums is not None:
        bias_sums[at.batch, at.head, at.query, :] = sums


def _add_to_sums(problem: Problem, sums: jax.Array, grad_logits: jax.Array, at: At) -> jax.Array:
    """Add a block to the sums of `gradient_by_rows`."""
    if isinstance(problem.operands.bias, ALiBi):
        return sums + _total(grad_logits * problem.distances(at))
    starts = problem.operands.bias.starts
    # A block far from the diagonal has one step, and the loop one turn.
    first, last = ((starts[:] <= x).astype(jnp.int32).sum() - 1 for x in problem.relative_extremes(at))
    relative, places = problem.relative(at), jnp.arange(sums.shape[0], dtype=jnp.int32)

    def add(n, sums):
        inside = (relative >= starts[n]) & (relative < starts[n + 1])
        return sums + jnp.where(places == n, _total(jnp.where(inside, grad_logits, 0.0)), 0.0)

    return lax.fori_loop(first, last + 1, add, sums)


def _total(x: jax.Array) -> jax.Array:
    return x.sum(1).sum(0)


def gradient_by_columns(operands: Operands, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Gradients of k [B, S, K, H] and v [B, S, K, Hv]."""
    batch, _, num_kv_heads, _ = operands.k.shape
    outputs = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (operands.k, operands.v))
    launch_grid = (settings.grid.num_key_blocks, num_kv_heads, batch)
    return _launch(_column_kernel, launch_grid, outputs, operands, settings)


def _column_kernel(operands: Operands, dk, dv, *, settings: Settings):
    """One block of keys against the queries of all heads of its group; logits are transposed, [block_k, block_q]."""
    problem = Problem(operands, settings)
    key, key_head, batch = (pl.program_id(axis) for axis in range(3))
    at = At(key=key, head=key_head * problem.group, batch=batch, query=0)
    k, v = (problem.keys(x, at) for x in (operands.k, operands.v))
    num_live, query_block = problem.schedule(batch, key)

    def visit(n, carry):
        dk_acc, dv_acc = carry
        query, whole = query_block(lax.rem(n, num_live))
        here = dataclasses.replace(at, head=at.head + lax.div(n, num_live), query=query)
        q, grad_out = (problem.queries(x, here) for x in (operands.q, operands.above.grad_out))
        dropped, grad_logits = problem.differentiate(q, k, v, grad_out, here, whole, transposed=True)
        dv_acc = dv_acc + _dot(dropped.astype(grad_out.dtype), grad_out, 1, 0)
        return dk_acc + _dot(grad_logits.astype(q.dtype), q, 1, 0), dv_acc

    # One loop over members and blocks: the compiler pipelines innermost loops alone.
    carry = _zeros(*k.shape), _zeros(*v.shape)
    dk_acc, dv_acc = lax.fori_loop(0, problem.group * num_live, visit, carry)
    dk[batch, problem.grid.column_slice(at), key_head, :] = (dk_acc * settings.scale).astype(dk.dtype)
    dv[batch, problem.grid.column_slice(at), key_head, :] = dv_acc.astype(dv.dtype)


def dense_bias_gradient(operands: Operands, settings: Settings) -> jax.Array:
    """Gradient of a dense bias, float32, in the bias's padded shape."""
    array, grid = operands.bias.array, settings.grid
    blocks = _bias_blocks(array.shape, grid)
    launch_grid = (blocks[3], blocks[2], blocks[0] * blocks[1])
    outputs = jax.ShapeDtypeStruct(array.shape, jnp.float32)
    return _launch(_bias_kernel, launch_grid, outputs, operands, settings)


def _bias_blocks(shape: tuple[int, ...], grid: Grid) -> tuple[int, int, int, int]:
    """Along each axis, how many blocks a dense bias has; 1 where it is broadcast."""
    rows = 1 if shape[2] == 1 else grid.num_query_blocks
    return shape[0], shape[1], rows, 1 if shape[3] == 1 else grid.num_key_blocks


def _bias_kernel(operands: Operands, dbias, *, settings: Settings):
    """One block of the bias, summed over all blocks of logits that it is broadcast to."""
    problem = Problem(operands, settings)
    grid, (batch, _, num_heads, _) = problem.grid, operands.q.shape
    blocks = _bias_blocks(dbias.shape, grid)
    own = lax.div(pl.program_id(2), blocks[1]), lax.rem(pl.program_id(2), blocks[1]), pl.program_id(1), pl.program_id(0)
    # An axis of the logits is either an axis of the bias, or summed over.
    counts = [
        1 if mine > 1 else all_
        for mine, all_ in zip(blocks, (batch, num_heads, grid.num_query_blocks, grid.num_key_blocks), strict=True)
    ]

    def visit(n, acc):
        place = []
        for mine, count in zip(own[::-1], counts[::-1], strict=True):
            place.append(mine + lax.rem(n, count))
            n = lax.div(n, count)
        here = At(**dict(zip(("key", "query", "head", "batch"), place, strict=True)))
        q, grad_out = (problem.queries(x, here) for x in (operands.q, operands.above.grad_out))
        k, v = (problem.keys(x, here) for x in (operands.k, operands.v))
        _, grad_logits = problem.differentiate(q, k, v, grad_out, here, whole=None)
        for axis in (0, 1):
            if acc.shape[axis] == 1:
                grad_logits = jnp.expand_dims(grad_logits.sum(axis), axis)
        return acc + grad_logits

    shape = (1 if dbias.shape[2] == 1 else grid.block_q, 1 if dbias.shape[3] == 1 else grid.block_k)
    acc = lax.fori_loop(0, math.prod(counts), visit, _zeros(*shape))
    at = At(batch=own[0], head=own[1], query=own[2], key=own[3])
    dbias[grid.pair_index(dbias, at)] = acc


def _zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


def _launch(kernel, launch_grid: tuple[int, ...], outputs, operands: Operands, settings: Settings):
    """Run a kernel with whole arrays as its operands and results."""
    tiling = settings.tiling
    axes = mesh_axes_of(operands)
    outputs = jax.tree.map(lambda x: struct_like(x, axes), outputs)
    return pl.pallas_call(
        functools.partial(kernel, settings=settings),
        grid=launch_grid,
        out_shape=outputs,
        interpret=settings.interpret,
        compiler_params=pallas_triton.CompilerParams(num_warps=tiling.num_warps, num_stages=tiling.num_stages),
        name=kernel.__name__.strip("_"),
    )(operands)
