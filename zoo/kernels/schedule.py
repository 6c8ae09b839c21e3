"""Which blocks of keys each block of queries must visit, and how a mask is padded to whole blocks.

A block pair is dead when no query of the block sees any key of the block. The table of live pairs is NumPy where
positions are known at trace time, an array computed in O(T + S + blocks) where they are not (lengths, segments,
offsets); kernels run the same loop over either. That some live blocks need no mask is used on GPUs alone: on CPUs the
mask is free beside the exponential, and a second loop would double the time to compile.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.masks import FAR, Clause, is_static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """For each block of one side, the blocks of the other side to visit.

    Attributes:
      order: indices of the other side's blocks, live ones first, int32 [B or 1, I, J].
      num_live: how many are live, int32 [B or 1, I].
    """

    order: np.ndarray | jax.Array
    num_live: np.ndarray | jax.Array

    def fold(self, batch, row, visit, carry):
        """Fold `visit(other, carry)` over the live blocks of a row of the table."""
        batch = 0 if self.order.shape[0] == 1 else batch
        order, num_live = jnp.asarray(self.order)[batch, row], jnp.asarray(self.num_live)[batch, row]
        return jax.lax.fori_loop(0, num_live, lambda n, carry: visit(order[n], carry), carry)


def plan(live: np.ndarray | jax.Array) -> Schedule:
    """The schedule of the rows of a table of live pairs, bool [B or 1, I, J]."""
    order = _namespace(live).argsort(~live, axis=-1, stable=True).astype(np.int32)
    return Schedule(order=order, num_live=live.sum(-1).astype(np.int32))


def live_pairs(
    clauses: tuple[Clause, ...], positions, num_blocks: tuple[int, int], block_sizes: tuple[int, int]
) -> np.ndarray | jax.Array:
    """Which pairs of blocks may hold an allowed pair, bool [B or 1, I, J].

    Args:
      clauses: the mask's normal form, padded to whole blocks.
      positions: of the keys, [B or 1, S], padded alike.
      num_blocks: I, J.
      block_sizes: rows and columns of a block.
    """
    held = [_may_hold(clause, positions, num_blocks[1], *block_sizes) for clause in clauses]
    return _table(held, num_blocks)


def whole_pairs(
    clauses: tuple[Clause, ...], positions, num_blocks: tuple[int, int], block_sizes: tuple[int, int]
) -> np.ndarray | jax.Array:
    """Which pairs of blocks surely hold no pair that is not allowed, bool [B or 1, I, J]; as `live_pairs`."""
    held = [_must_hold(clause, positions, num_blocks[1], *block_sizes) for clause in clauses]
    return _table(held, num_blocks)


def _table(held: list, num_blocks: tuple[int, int]):
    table = functools.reduce(lambda a, b: a | b, held)
    return _namespace(table).broadcast_to(table, (table.shape[0], *num_blocks))


def _may_hold(clause: Clause, positions, num_key_blocks: int, block_q: int, block_k: int):
    """Whether a clause can hold anywhere in each pair of blocks, by the extremes of their rows and columns."""
    first, last = (x[:, None, :] for x in _extremes(positions, block_k))
    live = [np.ones((1, 1, 1), bool)]
    if clause.low is not None:
        live.append(last >= _extremes(clause.low, block_q)[0][:, :, None])
    if clause.high is not None:
        live.append(first <= _extremes(clause.high, block_q)[1][:, :, None])
    if clause.end is not None:
        start = np.arange(num_key_blocks, dtype=np.int32)[None, None] * block_k
        live.append(start < clause.end[:, :, None])
    for q_ids, kv_ids in clause.segments:
        q_first, q_last = (x[:, :, None] for x in _extremes(q_ids, block_q))
        k_first, k_last = (x[:, None, :] for x in _extremes(kv_ids, block_k))
        live.append((q_first <= k_last) & (k_first <= q_last))
    return functools.reduce(lambda a, b: a & b, live)


def _must_hold(clause: Clause, positions, num_key_blocks: int, block_q: int, block_k: int):
    """Whether a clause holds everywhere in each pair of blocks, by the same extremes. A dense part is not looked at."""
    first, last = (x[:, None, :] for x in _extremes(positions, block_k))
    whole = [np.full((1, 1, 1), not clause.dense)]
    if clause.low is not None:
        whole.append(first >= _extremes(clause.low, block_q)[1][:, :, None])
    if clause.high is not None:
        whole.append(last <= _extremes(clause.high, block_q)[0][:, :, None])
    if clause.end is not None:
        stop = (np.arange(num_key_blocks, dtype=np.int32)[None, None] + 1) * block_k
        whole.append(stop <= clause.end[:, :, None])
    for q_ids, kv_ids in clause.segments:
        q_first, q_last = (x[:, :, None] for x in _extremes(q_ids, block_q))
        k_first, k_last = (x[:, None, :] for x in _extremes(kv_ids, block_k))
        whole.append((q_first == q_last) & (k_first == k_last) & (q_first == k_first))
    return functools.reduce(lambda a, b: a & b, whole)


def _extremes(x, block: int):
    """Smallest and largest of each block of the last axis."""
    blocks = x.reshape(*x.shape[:-1], -1, block)
    return blocks.min(-1), blocks.max(-1)


def _namespace(*arrays):
    return np if is_static(*arrays) else jnp


def pad_clause(clause: Clause, num_queries: int, num_keys: int, last_position: int | None) -> Clause:
    """A clause over whole blocks: padded rows see what the last row sees, padded keys are seen by none.

    Args:
      clause: the clause as it is.
      num_queries, num_keys: lengths of whole blocks.
      last_position: no key lies beyond it, padded keys do; None when no key is padded.
    """
    rows = lambda x: None if x is None else pad(x, num_queries, "edge")  # noqa: E731
    keys = lambda x: pad(x, num_keys, "edge")  # noqa: E731
    padded = Clause(
        low=rows(clause.low),
        high=rows(clause.high),
        end=clause.end,
        segments=tuple((rows(q_ids), keys(kv_ids)) for q_ids, kv_ids in clause.segments),
        dense=tuple(pad_pairs(array, num_queries, num_keys) for array in clause.dense),
    )
    if last_position is None:
        return padded
    return padded.meet(Clause(high=np.full((1, num_queries), last_position, np.int32)))


def pad_positions(positions, num_keys: int):
    """Key positions [..., S] over whole blocks; padding lies beyond every position."""
    return pad(positions, num_keys, "constant", constant_values=FAR)


def pad(x, length: int, mode: str, **arguments):
    """Lengthen the last axis."""
    widths = [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])]
    return _namespace(x).pad(x, widths, mode=mode, **arguments) if length > x.shape[-1] else x


def pad_pairs(array, num_queries: int, num_keys: int):
    """Lengthen the two last axes with zeros, save where they are broadcast."""
    targets = (num_queries, num_keys)
    widths = [(0, 0 if size == 1 else target - size) for size, target in zip(array.shape[-2:], targets, strict=True)]
    return jnp.pad(array, [(0, 0), (0, 0), *widths]) if any(after for _, after in widths) else array
