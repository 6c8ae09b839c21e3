"""What one block of logits needs on a TPU beside q and k, as operands that the kernels' pipeline fetches.

Blocks lie transposed, keys by queries [block_k, block_q]: what belongs to a row of attention lies along the lanes,
[1, block_q], and what belongs to a key down the sublanes, [block_k, 1]. Per-row integers of all clauses are one array
[B, fields, T], per-key ones another, [B, S, fields]. A bias over positions without gaps is the vector that all its
blocks repeat; it is spread by rotations that double the rows, and its gradient is summed along the diagonals by
rotations that halve them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from zoo.kernels import dropout, masks
from zoo.kernels.bias import ALiBi, DenseBias, RelativeBias, relative_bucket
from zoo.kernels.call import Call
from zoo.kernels.masks import Clause
from zoo.kernels.mosaic_grid import Operand
from zoo.kernels.schedule import pad
from zoo.kernels.tiles import At, Diagonals, Grid, MaskTiles, prepare_bias


class MaskBlocks:
    """Blocks of the mask."""

    def __init__(self, call: Call, grid: Grid):
        tiles = MaskTiles(call, grid)
        self.grid, self.live = grid, tiles.live
        self._rows, self._columns, self._dense = [], [], []
        # The clauses again, with places among the operands for arrays.
        self.clauses = tuple(
            Clause(
                low=self._row(clause.low),
                high=self._row(clause.high),
                end=self._row(clause.end),
                segments=tuple((self._row(q_ids), self._column(kv_ids)) for q_ids, kv_ids in clause.segments),
                dense=tuple(self._pairs(array) for array in clause.dense),
            )
            for clause in tiles.clauses
        )
        is_full = any(clause.is_full for clause in tiles.clauses)
        self.positions = None if call.kv_positions is None or is_full else self._column(tiles.positions)

    def _row(self, array) -> int | None:
        if array is None:
            return None
        self._rows.append(jnp.broadcast_to(jnp.asarray(array, jnp.int32), (array.shape[0], self.grid.num_queries)))
        return len(self._rows) - 1

    def _column(self, array) -> int:
        self._columns.append(jnp.asarray(array, jnp.int32))
        return len(self._columns) - 1

    def _pairs(self, array) -> int:
        self._dense.append(array.swapaxes(2, 3).astype(jnp.int32))
        return len(self._dense) - 1

    def operands(self) -> dict[str, Any]:
        """What the kernels fetch."""
        operands: dict[str, Any] = {"dense": [pair_operand(array, self.grid) for array in self._dense]}
        if self._rows:
            operands["rows"] = _by_batch(
                _stack(self._rows, 1), (None, len(self._rows), self.grid.block_q), query_axis=2
            )
        if self._columns:
            operands["columns"] = _by_batch(
                _stack(self._columns, 2), (None, self.grid.block_k, len(self._columns)), key_axis=1
            )
        return operands

    def __call__(self, refs, at: At) -> jax.Array | None:
        """Which pairs of a block are allowed, bool [block_k, block_q]; None for all."""
        row = lambda n: None if n is None else refs["rows"][n : n + 1, :]  # noqa: E731
        column = lambda n: refs["columns"][:, n : n + 1]  # noqa: E731
        indices = key_indices(self.grid, at)
        positions = indices if self.positions is None else column(self.positions)
        clauses = (
            Clause(
                low=row(clause.low),
                high=row(clause.high),
                end=row(clause.end),
                segments=tuple((row(q_ids), column(kv_ids)) for q_ids, kv_ids in clause.segments),
                dense=tuple(refs["dense"][n][...] != 0 for n in clause.dense),
            )
            for clause in self.clauses
        )
        return masks.union([clause.holds(positions, indices) for clause in clauses])


class DropoutBlocks:
    """Blocks of the dropout pattern, scaled to keep the expectation."""

    def __init__(self, call: Call, grid: Grid):
        self.seeds, self.rate, self.grid = call.dropout_seeds, call.dropout_rate, grid

    def operands(self) -> dict[str, Operand]:
        """What the kernels fetch: the seeds as scalars, int32."""
        return {"seeds": Operand(jax.lax.bitcast_convert_type(self.seeds, jnp.int32).reshape(-1))}

    def __call__(self, refs, weights: jax.Array, at: At) -> jax.Array:
        """Weights [block_k, block_q] after dropout."""
        start = 2 * (at.batch * self.seeds.shape[1] + at.head)
        seed = tuple(refs["seeds"][start + word].astype(jnp.uint32) for word in range(2))
        kept = dropout.survive(*seed, query_indices(self.grid, at), key_indices(self.grid, at), self.rate)
        return jnp.where(kept, weights / (1 - self.rate), 0)


def prepare(call: Call, grid: Grid) -> DenseBias | Diagonals | ALiBi | RelativeBias | None:
    """The bias in the form that blocks are read from. Plain JAX, so that gradients flow on to tables and slopes."""
    bias = prepare_bias(call, grid)
    if isinstance(bias, DenseBias):
        return DenseBias(bias.array.swapaxes(2, 3))
    if not isinstance(bias, Diagonals):
        return bias
    # A block repeats the piece of the vector that lies under its diagonals; transposed, it reads it from the end.
    pieces = jnp.pad(bias.vector, ((0, 0), (0, 0), (0, 1)))
    pieces = pieces.reshape(*pieces.shape[:2], -1, grid.block_q)
    pieces = jnp.concatenate([pieces[:, :, :-1], pieces[:, :, 1:]], axis=-1)
    return Diagonals(jnp.roll(pieces[..., ::-1], -1, axis=-1)[:, :, :, None])


class DiagonalBlocks:
    """Blocks of a bias that repeats one vector; they are square. pieces [B or 1, N, I + J - 1, 1, 2 * block]."""

    def __init__(self, bias: Diagonals, grid: Grid):
        self.pieces, self.grid = bias.vector, grid

    def operands(self) -> dict[str, Operand]:
        """What the kernels fetch."""
        return {"bias": Operand(self.pieces, (None, None, None, 1, self.pieces.shape[-1]), self._index)}

    def _index(self, at: At):
        return (_broadcast(self.pieces, 0, at.batch), at.head, self._diagonal(at), 0, 0)

    def _diagonal(self, at: At):
        return at.key - at.query + self.grid.num_query_blocks - 1

    def __call__(self, refs, at: At) -> jax.Array:
        """What is added to the logits of a block."""
        return spread(refs["bias"][...], self.grid.block_k)

    def gradient(self, call: Call) -> Operand:
        """The sums of a head: a row for each of its pieces."""
        batch, _, _, num_heads, _ = call.sizes
        shape = self.pieces.shape[2], self.pieces.shape[4]
        return Operand(
            jax.ShapeDtypeStruct((batch, num_heads, *shape), jnp.float32),
            (None, None, *shape),
            lambda at: (at.batch, at.head, 0, 0),
        )

    def add(self, sums, refs, block, at: At) -> None:
        """Add the gradient of a block of logits [block_k, block_q] to the sums."""
        row = (slice_of(self._diagonal(at), 1), slice(None))
        sums[row] += diagonal_sums(block)

    def finish(self, sums: jax.Array) -> Diagonals:
        """The gradient of the pieces from the sums [B, N, pieces, 2 * block]."""
        sums = sums if self.pieces.shape[0] > 1 else sums.sum(0, keepdims=True)
        return Diagonals(sums[:, :, :, None])


def spread(piece: jax.Array, num_rows: int) -> jax.Array:
    """[1, 2 n] -> [n, n] of which entry (s, t) is piece[t - s + n - 1]."""
    from jax.experimental.pallas import tpu as pltpu

    odd, length = num_rows // (num_rows & -num_rows), piece.shape[1]
    rows = jnp.concatenate([pltpu.roll(piece, (length - s) % length, 1) for s in reversed(range(odd))])
    # As many rows again, above: each lies further to the left by as many as there are.
    while rows.shape[0] < num_rows:
        rows = jnp.concatenate([pltpu.roll(rows, length - rows.shape[0], 1), rows])
    return rows[:, :num_rows]


def diagonal_sums(block: jax.Array) -> jax.Array:
    """The transpose of `spread`: [n, n] -> sums of the diagonals [1, 2 n]."""
    from jax.experimental.pallas import tpu as pltpu

    rows = jnp.concatenate([block, jnp.zeros_like(block)], axis=1)
    while rows.shape[0] % 2 == 0:
        half = rows.shape[0] // 2
        rows = pltpu.roll(rows[:half], half, 1) + rows[half:]
    last = rows.shape[0] - 1
    return sum((pltpu.roll(rows[s : s + 1], last - s, 1) for s in range(last)), rows[last:])


class PositionBlocks:
    """Blocks of a structured bias over keys at arbitrary positions, evaluated pair by pair."""

    def __init__(self, bias: ALiBi | RelativeBias, call: Call, grid: Grid):
        frame = call.frame()
        self.bias, self.grid = bias, grid
        self.query = jnp.asarray(pad(frame.query, grid.num_queries, "edge"))[:, None]
        self.key = jnp.asarray(pad(frame.key, grid.num_keys, "edge"))[:, :, None]
        self.num_parameters = 1 if isinstance(bias, ALiBi) else bias.table.shape[0]

    def operands(self) -> dict[str, Operand]:
        """What the kernels fetch: positions, and the parameters as scalars, head by head."""
        parameters = jax.tree.leaves(self.bias)[0].astype(jnp.float32)
        return {
            "bias": Operand(parameters.T.reshape(-1)),
            "bias_query": _by_batch(self.query, (None, 1, self.grid.block_q), query_axis=2),
            "bias_key": _by_batch(self.key, (None, self.grid.block_k, 1), key_axis=1),
        }

    def __call__(self, refs, at: At) -> jax.Array:
        """What is added to the logits of a block."""
        parameter = lambda n: refs["bias"][at.head * self.num_parameters + n]  # noqa: E731
        if isinstance(self.bias, ALiBi):
            return parameter(0) * self._features(refs)
        bucket = self._features(refs)
        total = jnp.full(bucket.shape, parameter(0))
        for n in range(1, self.num_parameters):
            total = jnp.where(bucket == n, parameter(n), total)
        return total

    def _features(self, refs) -> jax.Array:
        """What a parameter is the factor of (ALiBi), or the number of the pair's parameter."""
        relative = refs["bias_key"][...] - refs["bias_query"][...]
        if isinstance(self.bias, ALiBi):
            return -jnp.abs(relative).astype(jnp.float32)
        return relative_bucket(relative, self.num_parameters, self.bias.bidirectional, self.bias.max_distance)

    def gradient(self, call: Call) -> Operand:
        """The sums of a head: a row for each parameter, and a column for each row of a block."""
        batch, _, _, num_heads, _ = call.sizes
        shape = self.num_parameters, self.grid.block_q
        return Operand(
            jax.ShapeDtypeStruct((batch, num_heads, *shape), jnp.float32),
            (None, None, *shape),
            lambda at: (at.batch, at.head, 0, 0),
        )

    def add(self, sums, refs, block, at: At) -> None:
        """Add the gradient of a block of logits [block_k, block_q] to the sums."""
        features = self._features(refs)
        if isinstance(self.bias, ALiBi):
            sums[...] += (features * block).sum(0, keepdims=True)
            return
        for n in range(self.num_parameters):
            sums[n : n + 1, :] += jnp.where(features == n, block, 0).sum(0, keepdims=True)

    def finish(self, sums: jax.Array) -> ALiBi | RelativeBias:
        """The gradient of the bias from the sums [B, N, parameters, block_q]."""
        gradient = sums.sum((0, 3))
        leaf = jax.tree.leaves(self.bias)[0]
        gradient = gradient.T.reshape(leaf.shape).astype(leaf.dtype)
        return jax.tree.map(lambda _: gradient, self.bias)


class DenseBlocks:
    """Blocks of a transposed dense bias [B or 1, N or 1, S or 1, T or 1]. Its gradient has a kernel of its own."""

    def __init__(self, bias: DenseBias, grid: Grid):
        self.array, self.grid = bias.array, grid

    def operands(self) -> dict[str, Operand]:
        """What the kernels fetch."""
        return {"bias": pair_operand(self.array, self.grid)}

    def __call__(self, refs, at: At) -> jax.Array:
        """What is added to the logits of a block, broadcastable to it."""
        return refs["bias"][...].astype(jnp.float32)

    def gradient(self, call: Call) -> Operand:
        """The gradient, a block for each block of the bias."""
        operand = self.operands()["bias"]
        return dataclasses.replace(operand, array=jax.ShapeDtypeStruct(self.array.shape, jnp.float32))

    def add(self, sums, refs, block, at: At) -> None:
        """Add the gradient of a block of logits [block_k, block_q], summed over broadcast axes, to the sums."""
        for axis in (0, 1):
            block = block.sum(axis, keepdims=True) if self.array.shape[axis + 2] == 1 else block
        sums[...] += block

    def finish(self, sums: jax.Array) -> DenseBias:
        """The gradient of the transposed array."""
        return DenseBias(sums.astype(self.array.dtype))


def bias_blocks(bias, call: Call, grid: Grid):
    """The reader of a prepared bias's blocks, or None."""
    if bias is None:
        return None
    if isinstance(bias, DenseBias):
        return DenseBlocks(bias, grid)
    return DiagonalBlocks(bias, grid) if isinstance(bias, Diagonals) else PositionBlocks(bias, call, grid)


def key_indices(grid: Grid, at: At) -> jax.Array:
    """Array indices of a block's keys, int32 [block_k, 1]."""
    return at.key * grid.block_k + jax.lax.broadcasted_iota(jnp.int32, (grid.block_k, 1), 0)


def query_indices(grid: Grid, at: At) -> jax.Array:
    """Array indices of a block's queries, int32 [1, block_q]."""
    return at.query * grid.block_q + jax.lax.broadcasted_iota(jnp.int32, (1, grid.block_q), 1)


def slice_of(start, size: int):
    """A slice of a reference that begins at a traced index."""
    from jax.experimental import pallas as pl

    return pl.ds(start, size)


def pair_operand(array: jax.Array, grid: Grid) -> Operand:
    """An array over whole blocks, [B or 1, N or 1, S or 1, T or 1]."""
    _, _, num_keys, num_queries = array.shape
    block = (None, None, 1 if num_keys == 1 else grid.block_k, 1 if num_queries == 1 else grid.block_q)
    addresses = lambda at: (at.batch, at.head, at.key, at.query)  # noqa: E731
    return Operand(
        array, block, lambda at: tuple(_broadcast(array, axis, index) for axis, index in enumerate(addresses(at)))
    )


def _by_batch(array: jax.Array, block, query_axis: int | None = None, key_axis: int | None = None) -> Operand:
    """An array [B or 1, ...] one of whose axes runs over queries or keys."""

    def index(at: At):
        places: list[Any] = [_broadcast(array, 0, at.batch), 0, 0]
        if query_axis is not None:
            places[query_axis] = at.query
        if key_axis is not None:
            places[key_axis] = at.key
        return tuple(places)

    return Operand(array, block, index)


def _broadcast(array, axis: int, index):
    """The index on an axis, which is 0 where the axis has length 1."""
    return 0 if array.shape[axis] == 1 else index


def _stack(arrays, axis: int) -> jax.Array:
    """Stack arrays [B or 1, length]."""
    batch = max(array.shape[0] for array in arrays)
    return jnp.stack([jnp.broadcast_to(array, (batch, *array.shape[1:])) for array in arrays], axis)
