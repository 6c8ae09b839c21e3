"""What one block of logits needs beside q and k: its mask, its bias (and the bias's gradient) and its dropout.

Everything here is read from O(T + S) data, or sliced from an array that the caller gave dense. Blocks are
addressed by batch, query head, query block and key block, all of which may be traced.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.kernels import dropout, masks
from zoo.kernels.bias import ALiBi, DenseBias, RelativeBias, diagonal_sums, toeplitz
from zoo.kernels.call import Call
from zoo.kernels.order import zero_after
from zoo.kernels.schedule import live_pairs, pad, pad_clause, pad_pairs, pad_positions, whole_pairs


@dataclasses.dataclass(frozen=True, kw_only=True)
class At:
    """The address of a block: batch, query head, query block, key block."""

    batch: int | jax.Array
    head: int | jax.Array
    query: int | jax.Array
    key: int | jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """How T x S is cut into blocks; lengths are padded up to whole ones."""

    block_q: int
    block_k: int
    num_query_blocks: int
    num_key_blocks: int

    @classmethod
    def cut(cls, num_queries: int, num_keys: int, block_sizes: tuple[int, int]) -> "Grid":
        """The grid of blocks of these sizes."""
        block_q, block_k = block_sizes
        return cls(
            block_q=block_q,
            block_k=block_k,
            num_query_blocks=-(-num_queries // block_q),
            num_key_blocks=-(-num_keys // block_k),
        )

    @property
    def num_queries(self) -> int:
        """T, padded."""
        return self.block_q * self.num_query_blocks

    @property
    def num_keys(self) -> int:
        """S, padded."""
        return self.block_k * self.num_key_blocks

    def rows(self, at: At) -> jax.Array:
        """Array indices of a block's queries."""
        return at.query * self.block_q + jnp.arange(self.block_q, dtype=jnp.int32)

    def columns(self, at: At) -> jax.Array:
        """Array indices of a block's keys."""
        return at.key * self.block_k + jnp.arange(self.block_k, dtype=jnp.int32)

    def slice_rows(self, x, at: At) -> jax.Array:
        """The entries of [B or 1, T] that belong to a block, [block_q]."""
        return _materialise(_slice(x, (at.batch, at.query * self.block_q), (1, self.block_q))[0])

    def slice_columns(self, x, at: At) -> jax.Array:
        """The entries of [B or 1, S] that belong to a block, [block_k]."""
        return _materialise(_slice(x, (at.batch, at.key * self.block_k), (1, self.block_k))[0])

    def slice_sequence(self, x, at: At) -> jax.Array:
        """The entry of [B or 1, 1] that belongs to a block's sequence, [1]."""
        return _slice(x, (at.batch, 0), (1, 1))[0]

    def slice_pairs(self, x, at: At) -> jax.Array:
        """The entries of [B or 1, N or 1, T or 1, S or 1] that belong to a block, [block_q or 1, block_k or 1]."""
        return _slice(x, self._pair_start(at), (1, 1, self.block_q, self.block_k))[0, 0]

    def add_pairs(self, x, update, at: At) -> jax.Array:
        """Add a block to such an array, summed over its broadcast axes."""
        for axis in (0, 1):
            update = update.sum(axis, keepdims=True) if x.shape[axis + 2] == 1 else update
        start = _start(x, self._pair_start(at))
        current = lax.dynamic_slice(x, start, (1, 1, *update.shape))
        return lax.dynamic_update_slice(x, current + update[None, None], start)

    def _pair_start(self, at: At):
        return (at.batch, at.head, at.query * self.block_q, at.key * self.block_k)


def _slice(x, start, sizes) -> jax.Array:
    """A dynamic slice that reads index 0 of every axis of length 1, whatever the address says."""
    start = _start(x, start)
    return lax.dynamic_slice(jnp.asarray(x), start, [min(a, b) for a, b in zip(sizes, x.shape, strict=True)])


def _start(x, address) -> list[jax.Array]:
    """Where a slice of `x` starts, whatever the integers of its address, with 0 for every axis of length 1."""
    return [jnp.asarray(0 if size == 1 else s, jnp.int32) for size, s in zip(x.shape, address, strict=True)]


def _materialise(x: jax.Array) -> jax.Array:
    """The same integers, computed once a block rather than once for each of its elements.

    XLA would fuse the slice into the loop over the block, where it keeps a CPU from vectorising (measured: 4 times
    slower). It does not fuse what it thinks expensive, such as a division by what it does not see to be 1.
    """
    return lax.div(x, jnp.asarray(1 - zero_after(x), x.dtype))


class MaskTiles:
    """Blocks of the mask, and the table of which blocks matter."""

    def __init__(self, call: Call, grid: Grid):
        frame = call.frame()
        last = frame.num_keys - 1 if frame.key is None else int(masks.FAR) - 1
        padded = grid.num_keys > frame.num_keys
        clauses = call.clauses()
        self.grid = grid
        if frame.key is None:
            self.positions = np.arange(grid.num_keys, dtype=np.int32)[None]
        else:
            self.positions = pad_positions(frame.key, grid.num_keys)
        self.clauses = tuple(
            pad_clause(clause, grid.num_queries, grid.num_keys, last if padded else None) for clause in clauses
        )

    def live(self, per_batch: bool):
        """Which pairs of blocks matter, bool [B or 1, I, J]; to any sequence of the batch unless `per_batch`."""
        table = live_pairs(self.clauses, self.positions, *self._blocks())
        return table if per_batch else table.any(0, keepdims=True)

    def whole(self):
        """Which pairs of blocks need no mask, bool [B or 1, I, J]."""
        return whole_pairs(self.clauses, self.positions, *self._blocks())

    def _blocks(self) -> tuple[tuple[int, int], tuple[int, int]]:
        grid = self.grid
        return (grid.num_query_blocks, grid.num_key_blocks), (grid.block_q, grid.block_k)

    def __call__(self, at: At, transposed: bool) -> jax.Array | None:
        """Which pairs of a block are allowed, bool [block_q, block_k] or transposed; None for all."""
        return block_mask(self.clauses, self.positions, self.grid, at, transposed)


def block_mask(clauses: tuple[masks.Clause, ...], positions, grid: Grid, at: At, transposed: bool) -> jax.Array | None:
    """Which pairs of a block clauses allow, bool [block_q, block_k] or transposed; None for all.

    Args:
      clauses: over whole blocks, of arrays or of what else the grid slices.
      positions: of the keys, [B or 1, S], over whole blocks; None where they are the array indices.
      grid: how blocks are sliced.
      at: the block.
      transposed: give [block_k, block_q].
    """
    sliced = tuple(
        masks.Clause(
            low=None if clause.low is None else grid.slice_rows(clause.low, at),
            high=None if clause.high is None else grid.slice_rows(clause.high, at),
            end=None if clause.end is None else grid.slice_sequence(clause.end, at),
            segments=tuple(
                (grid.slice_rows(q_ids, at), grid.slice_columns(kv_ids, at)) for q_ids, kv_ids in clause.segments
            ),
            dense=tuple(grid.slice_pairs(array, at) for array in clause.dense),
        )
        for clause in clauses
    )
    columns = grid.columns(at)
    return masks.keep(sliced, columns if positions is None else grid.slice_columns(positions, at), columns, transposed)


class DropoutTiles:
    """Blocks of the dropout pattern, scaled to keep the expectation."""

    def __init__(self, call: Call, grid: Grid):
        self.seeds, self.rate, self.grid = call.dropout_seeds, call.dropout_rate, grid

    def __call__(self, weights: jax.Array, at: At, transposed: bool) -> jax.Array:
        """Weights [block_q, block_k], or transposed, after dropout."""
        seed = _slice(self.seeds, (at.batch, at.head, 0), (1, 1, 2))[0, 0]
        kept = dropout.keep(seed, self.grid.rows(at), self.grid.columns(at), self.rate)
        return jnp.where(kept.T if transposed else kept, weights / (1 - self.rate), 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonals:
    """A structured bias as the vector that all its blocks repeat, float32 [B or 1, N, T + S - 1], T and S padded."""

    vector: jax.Array


def prepare_bias(call: Call, grid: Grid) -> DenseBias | Diagonals | ALiBi | RelativeBias | None:
    """The bias in the form that blocks are read from. Plain JAX, so that gradients flow on to tables and slopes."""
    bias = call.bias
    if isinstance(bias, DenseBias):
        array = bias.array.reshape((1,) * (4 - bias.array.ndim) + bias.array.shape)
        return DenseBias(pad_pairs(array, grid.num_queries, grid.num_keys))
    if bias is None or call.kv_positions is not None:
        return bias
    steps = np.arange(grid.num_queries + grid.num_keys - 1, dtype=np.int32) - (grid.num_queries - 1)
    return Diagonals(jnp.moveaxis(bias.evaluate(steps[None] - call.frame().query[:, :1]), 0, 1))


class DenseBiasTiles:
    """Blocks of a dense bias."""

    def __init__(self, bias: DenseBias, grid: Grid):
        self.array, self.grid = bias.array, grid

    def __call__(self, at: At, transposed: bool) -> jax.Array:
        """What is added to the logits of a block."""
        block = self.grid.slice_pairs(self.array, at)
        return block.T if transposed else block

    def zeros(self):
        """A gradient to begin with."""
        return DenseBias(jnp.zeros(self.array.shape, jnp.float32))

    def add(self, gradient, block, at: At):
        """Add the gradient of a transposed block of logits, [block_k, block_q]."""
        return DenseBias(self.grid.add_pairs(gradient.array, block.T, at))


class DiagonalTiles:
    """Blocks of a bias that repeats one vector."""

    def __init__(self, bias: Diagonals, grid: Grid):
        self.vector, self.grid = bias.vector, grid

    def __call__(self, at: At, transposed: bool) -> jax.Array:
        """What is added to the logits of a block."""
        grid = self.grid
        piece = _slice(self.vector, self._start(at), (1, 1, grid.block_q + grid.block_k - 1))[0, 0]
        if transposed:
            return toeplitz(piece[::-1], grid.block_k, grid.block_q)
        return toeplitz(piece, grid.block_q, grid.block_k)

    def zeros(self):
        """A gradient to begin with."""
        return Diagonals(jnp.zeros(self.vector.shape, jnp.float32))

    def add(self, gradient, block, at: At):
        """Add the gradient of a transposed block of logits, [block_k, block_q]."""
        sums = diagonal_sums(block)[::-1]
        start = _start(gradient.vector, self._start(at))
        current = lax.dynamic_slice(gradient.vector, start, (1, 1, sums.shape[0]))
        return Diagonals(lax.dynamic_update_slice(gradient.vector, current + sums[None, None], start))

    def _start(self, at: At):
        grid = self.grid
        first = at.key * grid.block_k - at.query * grid.block_q + grid.num_queries - grid.block_q
        return at.batch, at.head, first


class PositionTiles:
    """Blocks of a structured bias over keys at arbitrary positions, evaluated pair by pair."""

    def __init__(self, bias: ALiBi | RelativeBias, call: Call, grid: Grid):
        frame = call.frame()
        self.bias, self.grid = bias, grid
        self.query = pad(frame.query, grid.num_queries, "edge")
        self.key = pad(frame.key, grid.num_keys, "edge")

    def __call__(self, at: At, transposed: bool) -> jax.Array:
        """What is added to the logits of a block."""
        block = self._block(self.bias, at)
        return block.T if transposed else block

    def zeros(self):
        """A gradient to begin with."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), self.bias)

    def add(self, gradient, block, at: At):
        """Add the gradient of a transposed block of logits, [block_k, block_q]."""
        update = jax.vjp(lambda bias: self._block(bias, at), self.bias)[1](block.T)[0]
        return jax.tree.map(lambda total, x: total + x.astype(total.dtype), gradient, update)

    def _block(self, bias, at: At) -> jax.Array:
        relative = self.grid.slice_columns(self.key, at)[None, :] - self.grid.slice_rows(self.query, at)[:, None]
        one_head = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, at.head, 1, axis=-1), bias)
        return one_head.evaluate(relative)[0]


def bias_tiles(bias, call: Call, grid: Grid):
    """The reader of a prepared bias's blocks, or None."""
    if bias is None:
        return None
    if isinstance(bias, DenseBias):
        return DenseBiasTiles(bias, grid)
    return DiagonalTiles(bias, grid) if isinstance(bias, Diagonals) else PositionTiles(bias, call, grid)
