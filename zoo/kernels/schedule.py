"""Which blocks of keys each block of queries must visit.

A block pair is dead (no query of the block sees any key of the block), partial (the mask must be evaluated), or
whole (it need not). The answer is NumPy where positions are known at trace time, an array computed in
O(T + S + blocks) where they are not (lengths, segments, offsets); kernels run the same loop over either.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.masks import FAR, Clause, is_static

PARTIAL, WHOLE, DEAD = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """For each block of one side, the blocks of the other side to visit.

    Attributes:
      order: indices of the other side's blocks, partial ones first, then whole, then dead, int32 [B or 1, I, J].
      num_partial: how many are partial [B or 1, I].
      num_live: how many are partial or whole [B or 1, I].
    """

    order: np.ndarray | jax.Array
    num_partial: np.ndarray | jax.Array
    num_live: np.ndarray | jax.Array

    def has(self, kind: int) -> bool:
        """Whether any PARTIAL or any WHOLE block may occur; True when not known at trace time."""
        if not is_static(self.order):
            return True
        return bool((self.num_partial if kind == PARTIAL else self.num_live - self.num_partial).any())

    def loop(self, batch, row, visit, carry):
        """Fold `visit(other, carry, masked)` over the live blocks of a row of the schedule."""
        batch = 0 if self.order.shape[0] == 1 else batch
        order, num_partial, num_live = (
            jnp.asarray(x)[batch, row] for x in (self.order, self.num_partial, self.num_live)
        )
        for kind, start, stop in ((PARTIAL, 0, num_partial), (WHOLE, num_partial, num_live)):
            if self.has(kind):
                carry = jax.lax.fori_loop(
                    start,
                    stop,
                    lambda n, carry, masked=kind == PARTIAL: visit(order[n], carry, masked),
                    carry,
                )
        return carry


def plan(kinds: np.ndarray | jax.Array) -> Schedule:
    """The schedule of the rows of a table of kinds [B or 1, I, J]."""
    numpy = _namespace(kinds)
    return Schedule(
        order=numpy.argsort(kinds, axis=-1, stable=True).astype(np.int32),
        num_partial=(kinds == PARTIAL).sum(-1).astype(np.int32),
        num_live=(kinds != DEAD).sum(-1).astype(np.int32),
    )


def classify(
    clauses: tuple[Clause, ...], positions, num_blocks: tuple[int, int], block_sizes: tuple[int, int]
) -> np.ndarray | jax.Array:
    """PARTIAL, WHOLE or DEAD for each pair of blocks, int32 [B or 1, I, J].

    Args:
      clauses: the mask's normal form, padded to whole blocks.
      positions: of the keys, [B or 1, S], padded alike.
      num_blocks: I, J.
      block_sizes: rows and columns of a block.
    """
    verdicts = [_classify_clause(clause, positions, num_blocks[1], *block_sizes) for clause in clauses]
    live = functools.reduce(lambda a, b: a | b, [live for live, _ in verdicts])
    whole = functools.reduce(lambda a, b: a | b, [whole for _, whole in verdicts])
    numpy = _namespace(live, whole)
    kinds = numpy.where(whole, WHOLE, numpy.where(live, PARTIAL, DEAD)).astype(np.int32)
    return numpy.broadcast_to(kinds, (kinds.shape[0], *num_blocks))


def agree(kinds: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """One table for a whole batch, [1, I, J]: what all sequences agree on, else PARTIAL."""
    first = kinds[:1]
    return _namespace(kinds).where((kinds == first).all(0, keepdims=True), first, PARTIAL).astype(np.int32)


def _classify_clause(clause: Clause, positions, num_key_blocks: int, block_q: int, block_k: int):
    """Whether a clause can hold, and whether it must hold, throughout each pair of blocks."""
    first, last = (x[:, None, :] for x in _extremes(positions, block_k))
    live, whole = [np.ones((1, 1, 1), bool)], [np.full((1, 1, 1), not clause.dense)]
    if clause.low is not None:
        smallest, largest = (x[:, :, None] for x in _extremes(clause.low, block_q))
        live.append(last >= smallest)
        whole.append(first >= largest)
    if clause.high is not None:
        smallest, largest = (x[:, :, None] for x in _extremes(clause.high, block_q))
        live.append(first <= largest)
        whole.append(last <= smallest)
    if clause.end is not None:
        start = np.arange(num_key_blocks, dtype=np.int32)[None, None] * block_k
        live.append(start < clause.end[:, :, None])
        whole.append(start + block_k <= clause.end[:, :, None])
    for q_ids, kv_ids in clause.segments:
        q_first, q_last = (x[:, :, None] for x in _extremes(q_ids, block_q))
        k_first, k_last = (x[:, None, :] for x in _extremes(kv_ids, block_k))
        live.append((q_first <= k_last) & (k_first <= q_last))
        whole.append((q_first == q_last) & (k_first == k_last) & (q_first == k_first))
    return functools.reduce(lambda a, b: a & b, live), functools.reduce(lambda a, b: a & b, whole)


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
    widths = [
        (0, 0 if size == 1 else target - size) for size, target in zip(array.shape[-2:], targets, strict=True)
    ]
    return jnp.pad(array, [(0, 0), (0, 0), *widths]) if any(after for _, after in widths) else array
