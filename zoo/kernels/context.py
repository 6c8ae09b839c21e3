"""Attention over a sequence that is split over the mesh axis `context`: device i of C holds the i-th of C equal runs.

The pairs of one run of rows and one run of keys are an attention call of their own (`crop`), which any backend runs.
Where queries and keys are both split, they meet in one of two ways. `gather`: each device gathers all keys and values,
and runs its rows against them: the fewest programs, and O(S) memory. `ring`: keys and values travel round the devices,
and the parts are merged by their log-sum-exps: C steps, and memory for one device's share (Liu et al. 2023). Where
queries alone are split, each device has all keys from the start; where keys alone are, as in decoding from a split
cache, each device attends to its own and the outputs are merged: no key moves.

Under a causal mask the last rows have the most keys, and with one run of rows a device the last device the most work.
Then device i works on the i-th and the i-th last of 2 C runs instead: every device has the same. The exchange is made
here, by two permutations of queries and of outputs (in a ring of keys and values too), and undone: it costs less than
one step of the ring, and the caller's sequence stays in order, for positions, shifted labels and caches alike.

What a key has besides its vectors (segment ids, positions) is replicated: 4 bytes each. So are the columns of dense
masks and biases, whose rows are split.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from zoo.kernels.bias import DenseBias
from zoo.kernels.call import Call, accumulator_of
from zoo.kernels.masks import And, Causal, Chunked, Clause, Dense, Full, Lengths, Mask, Or, PrefixLM, Segments, Window
from zoo.kernels.merging import add_sinks, merge, merge_devices
from zoo.kernels.schedule import live_pairs, pad_clause

MEETINGS = ("gather", "ring")

Attend = Callable[[Call], tuple[jax.Array, jax.Array]]

FEW_QUERIES = 4
"""With so many times more keys (S * K) than queries (T * N), queries travel instead, and keys stay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How the sequence of one call lies on the devices.

    Attributes:
      axis: the mesh axis.
      num_shards: C, its devices.
      rows, keys: whether queries, and whether keys are split.
      ring: whether keys travel in a ring, rather than be gathered.
      num_runs: runs of rows a device works on: 2 where the mask is skewed, else 1.
      aligned: whether a causal mask leaves of every piece all, nothing, or what is causal from its own first key on:
        then kernels whose masks are compiled in can run the ring.
    """

    axis: str
    num_shards: int
    rows: bool
    keys: bool
    ring: bool
    num_runs: int
    aligned: bool

    @classmethod
    def of(cls, call: Call, axis: str, num_shards: int, meeting: str) -> "Split | None":
        """The split of a call; None where neither length divides."""
        _, num_queries, num_keys, num_heads, num_kv_heads = call.sizes
        keys = num_keys % num_shards == 0
        few = keys and num_queries * num_heads * FEW_QUERIES <= num_keys * num_kv_heads
        rows = num_queries % num_shards == 0 and not few
        if not rows and not keys:
            return None
        ring = rows and keys and meeting == "ring"
        lengths = (num_queries, num_keys) if ring else (num_queries,)
        balanced = rows and _is_skewed(call) and all(length % (2 * num_shards) == 0 for length in lengths)
        aligned = ring and num_queries == num_keys and _is_causal(call)
        num_runs = 2 if balanced else 1
        return cls(
            axis=axis, num_shards=num_shards, rows=rows, keys=keys, ring=ring, num_runs=num_runs, aligned=aligned
        )

    def piece(self, call: Call) -> Call:
        """The shapes of the calls that devices make, by which a backend is chosen."""
        num_queries = call.sizes[1] // (self.num_shards * self.num_runs if self.rows else 1)
        moved = self.num_shards * self.num_runs if self.ring else self.num_shards
        num_keys = call.sizes[2] // (moved if self.ring or not self.rows else 1)

        def cut(call, start):
            first = 0 if num_keys == call.sizes[2] else start
            piece = crop(call, call.q[:, :num_queries], call.k[:, :num_keys], call.v[:, :num_keys], start, first)
            return _from_first_key(piece) if self.aligned else piece

        return jax.eval_shape(cut, call, jax.ShapeDtypeStruct((), jnp.int32))

    def starts(self, index: jax.Array, size: int) -> jax.Array:
        """Where the runs of a device begin in the sequence, [num_runs], by their length."""
        if self.num_runs == 1:
            return jnp.stack([index * size])
        return jnp.stack([index, 2 * self.num_shards - 1 - index]) * size


def _is_skewed(call: Call) -> bool:
    """Whether the number of keys a row sees grows, or falls, along the sequence."""
    pairs = [*_dense_masks(call.mask), *([call.bias.array] if isinstance(call.bias, DenseBias) else [])]
    if call.kv_positions is not None or any(array.shape[-2] > 1 for array in pairs):
        return False
    below, above = _limits(call.mask)
    return below != above


def _is_causal(call: Call) -> bool:
    """Whether `Causal`, from position 0 on, is all that reads positions."""
    known = call.static_offset == 0 and call.kv_positions is None and not _has_structured_bias(call)
    return known and _past(call.mask) is not None and _reads_positions(call)


def _reads_positions(call: Call) -> bool:
    """Whether the mask or the bias depends on positions at all."""
    return not _is_free(call.mask) or _has_structured_bias(call)


def _is_free(mask: Mask) -> bool:
    match mask:
        case Full() | Segments() | Lengths() | Dense():
            return True
        case And() | Or():
            return _is_free(mask.left) and _is_free(mask.right)
    return False


def _has_structured_bias(call: Call) -> bool:
    return call.bias is not None and not isinstance(call.bias, DenseBias)


def _past(mask: Mask) -> Mask | None:
    """What is left of a mask where all keys lie before all queries; None where that depends on how far."""
    match mask:
        case Causal():
            return Full()
        case _ if _is_free(mask):
            return mask
        case And():
            left, right = _past(mask.left), _past(mask.right)
            return None if left is None or right is None else left & right
    return None


def _from_first_key(piece: Call) -> Call:
    """A piece whose first row and first key have the same position, or which reads none, known at trace time."""
    return dataclasses.replace(piece, q_offset=None, static_offset=0)


def _dense_masks(mask: Mask) -> list:
    match mask:
        case And() | Or():
            return _dense_masks(mask.left) + _dense_masks(mask.right)
        case Dense():
            return [mask.array]
    return []


def _limits(mask: Mask) -> tuple[bool, bool]:
    """Whether the row's position limits the keys it sees from below, and from above."""
    match mask:
        case Causal() | PrefixLM():
            return False, True
        case Window():
            return mask.left is not None, mask.right is not None
        case Chunked():
            return True, True
        case And() | Or():
            (below, above), (other_below, other_above) = _limits(mask.left), _limits(mask.right)
            if isinstance(mask, And):
                return below or other_below, above or other_above
            return below and other_below, above and other_above
    return False, False


def run(attend: Attend, split: Split, call: Call) -> tuple[jax.Array, jax.Array]:
    """One device's part of a call, inside a shard_map: rows and keys are its own, all else as `crop` takes it."""
    if not split.rows:
        return _run_own_keys(attend, split, call)
    return _run_ring(attend, split, call) if split.ring else _run_all_keys(attend, split, call)


def _run_own_keys(attend: Attend, split: Split, call: Call) -> tuple[jax.Array, jax.Array]:
    """All rows against the device's keys, then merged."""
    start = lax.axis_index(split.axis) * call.sizes[2]
    out, lse = attend(crop(dataclasses.replace(call, sinks=None), call.q, call.k, call.v, 0, start))
    out, lse = add_sinks(*merge_devices(out.astype(call.accumulator), lse, split.axis), call.sinks)
    return out.astype(call.v.dtype), lse


def _run_all_keys(attend: Attend, split: Split, call: Call) -> tuple[jax.Array, jax.Array]:
    """The device's rows against all keys."""
    k, v = (lax.all_gather(x, split.axis, axis=1, tiled=True) if split.keys else x for x in (call.k, call.v))
    q = _exchange(split, call.q)
    starts = split.starts(lax.axis_index(split.axis), q.shape[2])
    parts = [attend(crop(call, q[i], k, v, starts[i], 0)) for i in range(split.num_runs)]
    out, lse = (_restore(split, jnp.stack(x)) for x in zip(*parts, strict=True))
    return out, lse


def _exchange(split: Split, x: jax.Array) -> jax.Array:
    """The device's run of [B, T, …] -> the runs that it works on, [num_runs, B, T / num_runs, …]."""
    if split.num_runs == 1:
        return x[None]
    first, second = (
        lax.ppermute(part, split.axis, _home(split, side)) for side, part in enumerate(jnp.split(x, 2, axis=1))
    )
    odd = lax.axis_index(split.axis) % 2 == 1
    return jnp.stack([jnp.where(odd, second, first), jnp.where(odd, first, second)])


def _restore(split: Split, x: jax.Array) -> jax.Array:
    """The inverse of `_exchange`."""
    if split.num_runs == 1:
        return x[0]
    odd = lax.axis_index(split.axis) % 2 == 1
    sides = jnp.where(odd, x[1], x[0]), jnp.where(odd, x[0], x[1])
    moves = ([(after, before) for before, after in _home(split, side)] for side in range(2))
    return jnp.concatenate(
        [lax.ppermute(part, split.axis, move) for part, move in zip(sides, moves, strict=True)], axis=1
    )


def _home(split: Split, side: int) -> list[tuple[int, int]]:
    """Which device works on the first (0) or second (1) half of each device's run.

    Of the 2 C halves, device i works on i and 2 C - 1 - i: on one even and one odd, so that each side is a permutation.
    """
    halves = [2 * i + side for i in range(split.num_shards)]
    return [(i, min(half, 2 * split.num_shards - 1 - half)) for i, half in enumerate(halves)]


def _run_ring(attend: Attend, split: Split, call: Call) -> tuple[jax.Array, jax.Array]:
    """The device's rows against each device's keys in turn."""
    inputs = (*(_exchange(split, x) for x in (call.q, call.k, call.v)), call.bias)
    rest = dataclasses.replace(call, q=None, k=None, v=None, bias=None, sinks=None)
    parts = _ring(Ring(attend=attend, split=split), inputs, rest)
    out, lse = add_sinks(*jax.tree.map(functools.partial(_restore, split), parts), call.sinks)
    return out.astype(call.v.dtype), lse


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """The steps of a ring. Arrays of rows and keys are stacked by runs, [num_runs, B, T or S, …].

    At step s the keys of device i - s visit device i.
    """

    attend: Attend
    split: Split

    def step(self, visit, step, carry, inputs, rest: Call):
        """Fold `visit(carry, row, key, piece)` over the pairs of a run of rows and a visiting run of keys."""
        index, shards, runs = lax.axis_index(self.split.axis), self.split.num_shards, self.split.num_runs
        q, k, v, bias = inputs
        row_starts = self.split.starts(index, q.shape[2])
        key_starts = self.split.starts((index - step) % shards, k.shape[2])

        def body(carry, pair):
            row, key = pair // runs, pair % runs
            call = dataclasses.replace(rest, bias=bias)
            piece = crop(call, q[row], k[key], v[key], row_starts[row], key_starts[key])

            def run(carry):
                go = functools.partial(visit, carry, row, key, key_starts[key])
                if not self.split.aligned:
                    return go(piece)
                diagonal = _from_first_key(piece)
                past = dataclasses.replace(diagonal, mask=_past(piece.mask))
                return lax.cond(row_starts[row] == key_starts[key], lambda: go(diagonal), lambda: go(past))

            alive = _is_alive(piece)
            return (run(carry) if alive is True else lax.cond(alive, run, lambda carry: carry, carry)), None

        return lax.scan(body, carry, jnp.arange(runs * runs, dtype=jnp.int32))[0]

    def forward(self, x):
        """What this device holds, sent to the next."""
        axis, shards = self.split.axis, self.split.num_shards
        return jax.tree.map(lambda x: lax.ppermute(x, axis, [(i, (i + 1) % shards) for i in range(shards)]), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(ring: Ring, inputs, rest: Call) -> tuple[jax.Array, jax.Array]:
    """Attention without sinks over stacked runs, out and log-sum-exp in float32. Residuals are one device's share."""
    return _ring_forward(ring, inputs, rest)[0]


def _ring_forward(ring: Ring, inputs, rest: Call):
    q, k, v, bias = inputs
    sums = jnp.zeros((*q.shape[:-1], v.shape[-1]), accumulator_of(q.dtype))
    state = sums, jnp.full(q.shape[:-1], -jnp.inf, jnp.float32)

    def visit(state, row, key, start, piece):
        merged = merge(tuple(x[row] for x in state), ring.attend(piece))
        return tuple(x.at[row].set(y) for x, y in zip(state, merged, strict=True))

    def step(carry, step):
        (k, v), state = carry
        return (ring.forward((k, v)), ring.step(visit, step, state, (q, k, v, bias), rest)), None

    last = ring.split.num_shards - 1
    ((k, v), state), _ = lax.scan(step, ((k, v), state), jnp.arange(last, dtype=jnp.int32))
    state = ring.step(visit, last, state, (q, k, v, bias), rest)
    return state, (inputs, rest, *state)


def _ring_backward(ring: Ring, residuals, cotangents):
    """A second ring, in which the gradients of keys and values travel after them.

    A part weighs w = exp(its lse - lse) in the whole; so do its cotangents, and its lse's has (out of the part - out)
    in the direction of the output's besides.
    """
    inputs, rest, out, lse = residuals
    q, k, v, bias = inputs
    # Rows that saw nothing, or saw NaN, have no gradient, whatever reaches them from above.
    alive = jnp.isfinite(lse)
    grad_out, grad_lse = jnp.where(alive[..., None], cotangents[0], 0), jnp.where(alive, cotangents[1], 0)

    def visit(gradients, row, key, start, piece):
        parts = dataclasses.replace(piece, q=None, k=None, v=None, bias=None)
        together = lambda q, k, v, bias: ring.attend(dataclasses.replace(parts, q=q, k=k, v=v, bias=bias))  # noqa: E731
        (part, part_lse), pull = jax.vjp(together, piece.q, piece.k, piece.v, piece.bias)
        weight = jnp.where(alive[row], jnp.exp(part_lse - lse[row]), 0)
        towards = (grad_out[row] * (part.astype(out.dtype) - out[row])).sum(-1) + grad_lse[row]
        cotangents = weight[..., None] * grad_out[row], jnp.where(alive[row], weight * towards, 0)
        dq, dk, dv, dbias = pull((cotangents[0].astype(part.dtype), cotangents[1].astype(part_lse.dtype)))
        places = (row, key, key)
        sums = (x.at[i].add(y.astype(x.dtype)) for i, x, y in zip(places, gradients, (dq, dk, dv), strict=False))
        return *sums, _add_bias(gradients[3], dbias, start)

    def step(carry, step):
        (k, v), (dq, *travelling, dbias) = carry
        # Sent on before this step's share is added, gradients travel while it is computed, as do the keys.
        gradients = (dq, *ring.forward(travelling), dbias)
        return (ring.forward((k, v)), ring.step(visit, step, gradients, (q, k, v, bias), rest)), None

    # The last transfer of keys is for nothing; a last step apart, to save it, would double the time to compile.
    gradients = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulator_of(x.dtype)), inputs)
    (_, gradients), _ = lax.scan(step, ((k, v), gradients), jnp.arange(ring.split.num_shards, dtype=jnp.int32))
    dq, *travelling, dbias = gradients
    gradients = (dq, *ring.forward(travelling), dbias)
    return jax.tree.map(lambda x, g: g.astype(x.dtype), inputs, gradients), None


_ring.defvjp(_ring_forward, _ring_backward)


def _add_bias(total, gradient, start):
    """Add the gradient of a cropped bias to that of the whole."""
    if isinstance(total, DenseBias) and total.array.shape[-1] != gradient.array.shape[-1]:
        size = gradient.array.shape[-1]
        sums = lax.dynamic_slice_in_dim(total.array, start, size, -1) + gradient.array.astype(total.array.dtype)
        return DenseBias(lax.dynamic_update_slice_in_dim(total.array, sums, start, -1))
    return jax.tree.map(lambda x, y: x + y.astype(x.dtype), total, gradient)


def _is_alive(piece: Call) -> bool | jax.Array:
    """Whether any row of a piece may see any of its keys; True where that is known at trace time."""
    sizes = piece.sizes[1:3]
    clauses = tuple(pad_clause(clause, *sizes, last_position=None) for clause in piece.clauses())
    live = live_pairs(clauses, piece.frame().key_positions, (1, 1), sizes).any()
    return bool(live) if not isinstance(live, jax.Array) else live


def crop(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, row_start, key_start) -> Call:
    """The part of a call between a run of its rows and a run of its keys, as a call that every backend can run.

    Without `kv_positions`, positions are counted from the first key of the run, as a backend counts them: masks and
    biases see distances alone. Dropout hashes index + seed, so that a shifted seed gives the pattern of the whole.

    Args:
      call: the whole; its q, k and v are not read. Dense arrays may hold the run's rows alone.
      q, k, v: of the runs.
      row_start, key_start: array index of the runs' first row and first key, integers of shape [].
    """
    frame = _Run(num_queries=q.shape[1], num_keys=k.shape[1], row_start=row_start, key_start=key_start,
                 origin=key_start if call.kv_positions is None else 0)  # fmt: skip
    offset = call.static_offset if call.q_offset is None else call.q_offset
    seeds = call.dropout_seeds
    if seeds is not None:
        seeds = seeds + jnp.stack([jnp.asarray(x, jnp.uint32) for x in (row_start, key_start)])[None, None]
    piece = dataclasses.replace(
        call,
        q=q,
        k=k,
        v=v,
        mask=frame.mask(call.mask),
        bias=DenseBias(frame.pairs(call.bias.array)) if isinstance(call.bias, DenseBias) else call.bias,
        q_offset=jnp.asarray(offset + row_start - frame.origin, jnp.int32).reshape(-1),
        static_offset=None,
        kv_positions=None if call.kv_positions is None else frame.columns(call.kv_positions),
        dropout_seeds=seeds,
    )
    return piece if _reads_positions(call) else _from_first_key(piece)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run of rows and a run of keys, and what they leave of arrays over the whole."""

    num_queries: int
    num_keys: int
    row_start: int | jax.Array
    key_start: int | jax.Array
    origin: int | jax.Array

    def mask(self, mask: Mask) -> Mask:
        """The mask between them."""
        match mask:
            case And() | Or():
                return dataclasses.replace(mask, left=self.mask(mask.left), right=self.mask(mask.right))
            case Dense():
                return Dense(self.pairs(mask.array))
            case Segments():
                kv_ids = mask.q_ids if mask.kv_ids is None else mask.kv_ids
                return Segments(_take(mask.q_ids, -1, self.row_start, self.num_queries), self.columns(kv_ids))
            case Lengths():
                rows = _count_from(mask.q, self.row_start, self.num_queries)
                return Lengths(rows, _count_from(mask.kv, self.key_start, self.num_keys))
            case PrefixLM():
                return PrefixLM(_count_from(mask.length, self.origin, None))
            case Chunked() if not isinstance(self.origin, int):
                return _ChunkedFrom(self.origin, mask.size)
        return mask

    def columns(self, x: jax.Array) -> jax.Array:
        """The entries of [..., S] that belong to the keys."""
        return _take(x, -1, self.key_start, self.num_keys)

    def pairs(self, x: jax.Array) -> jax.Array:
        """The entries of [..., T or 1, S or 1] that belong to the pairs."""
        x = x if x.shape[-1] == 1 else self.columns(x)
        return x if x.shape[-2] == 1 else _take(x, -2, self.row_start, self.num_queries)


def _take(x: jax.Array, dim: int, start, size: int) -> jax.Array:
    """A run of an axis; all of it where that is as long."""
    return x if x.shape[dim] == size else lax.dynamic_slice_in_dim(x, start, size, dim)


def _count_from(count, start, limit: int | None):
    """A count of elements from the beginning, as one from `start` on."""
    if count is None or isinstance(start, int):
        return count
    return jnp.clip(jnp.asarray(count, jnp.int32) - start, 0, limit)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _ChunkedFrom(Mask):
    """`Chunked` where position 0 is the sequence's `origin`, which need not begin a chunk."""

    origin: jax.Array
    size: int = dataclasses.field(metadata={"static": True})

    def clauses(self, frame):
        """The row's chunk as an interval."""
        low = (frame.query + self.origin) // self.size * self.size - self.origin
        return (Clause(low=low, high=low + (self.size - 1)),)
