"""JAX's splash attention on a TPU, behind zoo's contracts: static masks, segment ids, grouped heads, soft cap, sinks.

Masks over positions are compiled in and whole blocks that they kill are neither copied nor computed. Segments and
lengths are ids that the kernel compares; they skip nothing (`mosaic_tpu` does). The library's own derivative knows no
log-sum-exp, so its forward and backward kernels are called one by one, and the cotangent of the log-sum-exp joins
their row sums. Not here: biases, dropout, dynamic offsets, key positions, unions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import block
from zoo.kernels.call import LOWEST, Call, guard_nonfinite, is_finite, without_nonfinite
from zoo.kernels.masks import (
    And,
    Causal,
    Chunked,
    Clause,
    Frame,
    Full,
    Lengths,
    Mask,
    Segments,
    Window,
    int32,
    normalise,
)
from zoo.kernels.mosaic_grid import block_size
from zoo.kernels.schedule import live_pairs, pad_clause, plan
from zoo.kernels.tiles import Grid

PLATFORM = "tpu"

MAX_PACKED_KEYS = 2**16 - 1
"""Up to so many keys an arbitrary interval of them fits 32 bits."""

OWN_Q, OWN_KEY = np.int32(-(2**31)), np.int32(-(2**31) + 1)
"""Ids of padded queries and padded keys: equal to no other."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    parts = _conjuncts(call.mask)
    if call.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"dtype {call.q.dtype}; it computes in float32 and bfloat16"
    if call.bias is not None:
        return "it adds no bias"
    if call.dropout_rate > 0:
        return "it has no dropout"
    if call.kv_positions is not None:
        return "it takes no kv_positions"
    if call.scales[1] != 1.0:
        return (
            f"it scales queries alone, and {call.scale:.6g} is no power of two: {call.q.dtype} would be rounded "
            "(if it may be, scale q beforehand and give scale=1.0)"
        )
    if parts is None:
        return "its masks are conjunctions of Causal, Window, Chunked, Lengths and Segments"
    if call.static_offset is None and any(isinstance(part, Causal | Window | Chunked) for part in parts):
        return "masks over positions are compiled in, and q_offset is dynamic (as it always is below 128 queries)"
    pairs = [part for part in parts if isinstance(part, Segments)]
    if len(pairs) > 1 or any(len(part.pairs) > 1 for part in pairs):
        return "it compares one pair of segment ids, of 32 bits"
    if _encode(_clause(call), call.sizes[2], padded=True) is None:
        return f"S = {call.sizes[2]}, and such intervals of keys are made for at most {MAX_PACKED_KEYS}"
    return None


def attend(
    call: Call, block_sizes: tuple[int, int] | None = None, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    _, num_queries, num_keys, _, _ = call.sizes
    grid = Grid.cut(num_queries, num_keys, block_sizes or (block_size(num_queries), block_size(num_keys)))
    inputs = (call.q, call.k, call.v, call.sinks)
    return _attend(inputs, segment_ids(call, grid), Splash.of(call, grid, interpret))


def _conjuncts(mask: Mask) -> list[Mask] | None:
    """The masks whose conjunction this is; None where there is any that the kernel cannot take."""
    if isinstance(mask, And):
        left, right = _conjuncts(mask.left), _conjuncts(mask.right)
        return None if left is None or right is None else left + right
    return [mask] if isinstance(mask, Full | Causal | Window | Chunked | Lengths | Segments) else None


def _clause(call: Call) -> Clause:
    """The part of the mask that is known at trace time: intervals in NumPy."""
    _, num_queries, num_keys, _, _ = call.sizes
    query = np.arange(num_queries, dtype=np.int32)[None] + np.int32(call.static_offset or 0)
    parts = [part for part in _conjuncts(call.mask) or () if not isinstance(part, Lengths | Segments)]
    mask = functools.reduce(lambda a, b: a & b, parts, Full())
    return normalise(mask, Frame(query=query, key=None, num_keys=num_keys))[0]


def _encode(clause: Clause, num_keys: int, padded: bool) -> tuple[Any, Callable | None] | None:
    """One int32 a row, and the function of (that, key index) that says whether the row sees the key.

    The kernel carries a single number a row. None when the intervals do not fit one.
    """
    low: Any = clause.low
    high: Any = clause.high
    inside = lambda _, k: k < num_keys  # noqa: E731
    if low is None and high is None:
        return np.zeros((1, 1), np.int32), inside if padded else None
    if high is None:
        return low, (lambda row, k: (row <= k) & inside(row, k)) if padded else (lambda row, k: row <= k)
    if low is None:
        return np.minimum(high, num_keys - 1), lambda row, k: k <= row
    width = int((high - low)[0, 0])
    if (high - low == width).all():
        sees = lambda row, k: (k <= row) & (k >= row - width)  # noqa: E731
        beyond = padded and high.max() >= num_keys
        return high, (lambda row, k: sees(row, k) & inside(row, k)) if beyond else sees
    if num_keys > MAX_PACKED_KEYS:
        return None
    first, end = np.clip(low, 0, num_keys), np.clip(high.astype(np.int64) + 1, 0, num_keys)
    packed = (first.astype(np.uint32) << 16 | end.astype(np.uint32)).view(np.int32)
    return packed, lambda row, k: (jax.lax.shift_right_logical(row, np.int32(16)) <= k) & (k < (row & 0xFFFF))


def segment_ids(call: Call, grid: Grid) -> tuple[jax.Array, jax.Array] | None:
    """Ids of queries [B, T] and keys [B, S], padded to whole blocks, equal where a query may see a key."""
    batch, num_queries, num_keys, _, _ = call.sizes
    parts = [part for part in _conjuncts(call.mask) or () if isinstance(part, Lengths | Segments)]
    if not parts:
        return None
    q_ids, kv_ids = jnp.zeros((1, num_queries), jnp.int32), jnp.zeros((1, num_keys), jnp.int32)
    for part in parts:
        if isinstance(part, Segments):
            ((q_ids, kv_ids),) = part.pairs
            q_ids, kv_ids = _free_own(jnp.asarray(q_ids), jnp.asarray(kv_ids))
    for part in parts:
        if isinstance(part, Lengths):
            q_ids, kv_ids = _cut(q_ids, part.q, OWN_Q), _cut(kv_ids, part.kv, OWN_KEY)
    q_ids = jnp.pad(q_ids, ((0, 0), (0, grid.num_queries - num_queries)), mode="edge")
    kv_ids = jnp.pad(kv_ids, ((0, 0), (0, grid.num_keys - num_keys)), constant_values=OWN_KEY)
    return jnp.broadcast_to(q_ids, (batch, grid.num_queries)), jnp.broadcast_to(kv_ids, (batch, grid.num_keys))


def _free_own(q_ids: jax.Array, kv_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ids of which none is one of padding's: where any is, each becomes its place among the sorted ids of the keys."""

    def places(q_ids, kv_ids):
        ordered = jnp.sort(jnp.broadcast_to(kv_ids, (max(len(q_ids), len(kv_ids)), kv_ids.shape[1])))
        place = jax.vmap(lambda ordered, ids: jnp.searchsorted(ordered, ids).astype(jnp.int32))
        found = [place(ordered, jnp.broadcast_to(ids, (len(ordered), ids.shape[1]))) for ids in (q_ids, kv_ids)]
        there = jnp.take_along_axis(ordered, jnp.minimum(found[0], ordered.shape[1] - 1), 1) == q_ids
        return jnp.where(there, found[0], OWN_Q), found[1]

    # Nearly always there is none.
    taken = (q_ids <= OWN_KEY).any() | (kv_ids <= OWN_KEY).any()
    batch = max(len(q_ids), len(kv_ids))
    whole = lambda q_ids, kv_ids: tuple(jnp.broadcast_to(x, (batch, x.shape[1])) for x in (q_ids, kv_ids))  # noqa: E731
    return jax.lax.cond(taken, places, whole, q_ids, kv_ids)


def _cut(ids: jax.Array, length, own) -> jax.Array:
    """Ids [B or 1, length] where those at index `length` and beyond are `own`."""
    if length is None:
        return ids
    return jnp.where(
        jnp.arange(ids.shape[1], dtype=jnp.int32)[None] < int32(jnp.asarray(length)).reshape(-1, 1), ids, own
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Splash:
    """The library's kernels for one call: what is compiled into them.

    Attributes:
      forward, by_key: the schedules of key blocks for each query block, and of query blocks for each key block.
      sees: the mask as a function of a row's code and a key's index, or None for all.
      scale: factor of the queries.
    """

    grid: Grid
    forward: Any
    by_key: Any
    sees: Callable | None
    scale: float
    softcap: float | None
    interpret: bool

    @classmethod
    def of(cls, call: Call, grid: Grid, interpret: bool) -> "Splash":
        """The kernels for a call."""
        num_keys = call.sizes[2]
        clause = pad_clause(_clause(call), grid.num_queries, grid.num_keys, None)
        ids_cut_padding = any(isinstance(part, Lengths | Segments) for part in _conjuncts(call.mask) or ())
        encoded = _encode(clause, num_keys, grid.num_keys > num_keys and not ids_cut_padding)
        assert encoded is not None, "supports() has said so"
        codes, sees = encoded
        positions = np.arange(grid.num_keys, dtype=np.int32)[None]
        blocks = (grid.num_query_blocks, grid.num_key_blocks)
        live = live_pairs((clause,), positions, blocks, (grid.block_q, grid.block_k))
        codes = None if sees is None else np.broadcast_to(codes, (1, grid.num_queries))[0]
        forward, by_key = _mask_info(live, codes, keys_first=False), _mask_info(live, codes, keys_first=True)
        return cls(
            grid=grid, forward=forward, by_key=by_key, sees=sees,
            scale=call.scale, softcap=call.softcap, interpret=interpret,
        )  # fmt: skip

    @property
    def common(self) -> dict:
        """Arguments that all three kernels share."""
        return dict(
            is_mqa=False, mask_value=_kernels().DEFAULT_MASK_VALUE, attn_logits_soft_cap=self.softcap,
            mask_function=self.sees, interpret=self.interpret,
        )  # fmt: skip

    def run(self, q, k, v, ids, sinks):
        """Output [N, T, Hv] and log-sum-exp [N, T] of one sequence, heads first."""
        kernels = _kernels()
        sizes = kernels.BlockSizes(block_q=self.grid.block_q, block_kv=self.grid.block_k)
        out, (lse,) = kernels._splash_attention_forward(
            self.forward, q, k, v, _ids(ids), sinks,
            block_sizes=sizes, residual_checkpoint_name=None, save_residuals=True, **self.common,
        )  # fmt: skip
        return out, lse

    def differentiate(self, q, k, v, ids, lse, grad_out, delta):
        """Gradients of one sequence's q, k and v from `delta`, the rows' sums of out * grad_out less grad_lse."""
        kernels = _kernels()
        layout = kernels.QKVLayout.HEAD_DIM_MINOR
        common = self.common | dict(
            bq=self.grid.block_q, bkv=self.grid.block_k, q_layout=layout, k_layout=layout, v_layout=layout
        )
        arguments = (q, k, v, _ids(ids), None, lse, grad_out, delta)
        dq = kernels._splash_attention_bwd_dq(*arguments, mask_info=self.forward, **common)
        _, dk, dv = kernels._splash_attention_bwd_dkv(
            *arguments, mask_info=self.by_key, bkv_compute=self.grid.block_k, use_fused_bwd_kernel=False, **common
        )
        return dq, dk, dv


def _kernels():
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel


def _ids(ids):
    return None if ids is None else _kernels().SegmentIds(*ids)


def _mask_info(live: np.ndarray, codes: np.ndarray | None, keys_first: bool):
    """The library's tables: at each step of a row, which block to fetch, and whether it is live; [1, I, steps].

    With `keys_first` the rows are blocks of keys, and the tables are [1, steps, J].
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

    schedule = plan(live.swapaxes(1, 2) if keys_first else live)
    steps = max(1, int(schedule.num_live.max()))
    is_live = np.arange(steps) < schedule.num_live[..., None]
    # A dead step names the block that is there already, so that nothing is copied.
    last = np.maximum(schedule.num_live - 1, 0)[..., None]
    fetched = np.take_along_axis(schedule.order, np.minimum(np.arange(steps), last), axis=-1)
    # Scalar memory is small.
    small = np.int8 if fetched.max() <= np.iinfo(np.int8).max else np.int16
    fetched, is_live = fetched.astype(small), is_live.astype(np.int8)
    if keys_first:
        fetched, is_live = fetched.swapaxes(1, 2), is_live.swapaxes(1, 2)
    return splash_attention_mask_info.MaskInfo(
        data_next=fetched, mask_next=None, block_mask=is_live, partial_mask_blocks=None, q_sequence=codes
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(inputs, ids, splash: Splash):
    return _forward(inputs, ids, splash)[0]


def _forward(inputs, ids, splash: Splash):
    q, k, v, sinks = inputs
    k, v = guard_nonfinite(k, v)
    q = jnp.where(is_finite(q), q, jnp.nan)
    arrays = (_heads_first(x, length) for x, length in zip((_prescale(q, splash), k, v), _lengths(splash), strict=True))
    out, lse = jax.vmap(lambda q, k, v, ids: splash.run(q, k, v, ids, sinks))(*arrays, ids)
    num_queries = q.shape[1]
    out, lse = out.swapaxes(1, 2)[:, :num_queries].astype(v.dtype), lse.swapaxes(1, 2)[:, :num_queries]
    # The kernel averages the values of keys that are all masked, and divides by zero where it visits none.
    empty = lse < LOWEST
    out, lse = jnp.where(empty[..., None], 0, out), jnp.where(empty, -jnp.inf, lse)
    return (out, lse), (inputs, ids, out, lse)


def _backward(splash: Splash, residuals, cotangents):
    (q, k, v, sinks), ids, out, lse = residuals
    grad_out, lse, delta = block.rows_backward(out, lse, None, *cotangents)
    q_length, k_length, _ = _lengths(splash)
    gradients = jax.vmap(splash.differentiate)(
        _heads_first(_prescale(without_nonfinite(q), splash), q_length),
        *(_heads_first(without_nonfinite(x), k_length) for x in (k, v)),
        ids,
        _heads_first(lse, q_length, -LOWEST),
        _heads_first(grad_out, q_length),
        _heads_first(delta, q_length),
    )
    dq, dk, dv = (dx.swapaxes(1, 2)[:, : x.shape[1]] for dx, x in zip(gradients, (q, k, v), strict=True))
    dq = (dq.astype(jnp.float32) * splash.scale).astype(q.dtype)
    return (dq, dk, dv, block.sinks_gradient(sinks, lse, delta)), None


_attend.defvjp(_forward, _backward)


def _prescale(q: jax.Array, splash: Splash) -> jax.Array:
    """Queries times the scale, for the kernel has none; exact where `supports` agrees."""
    return q * jnp.asarray(splash.scale, q.dtype)


def _lengths(splash: Splash) -> tuple[int, int, int]:
    """Padded lengths of q, k and v."""
    return splash.grid.num_queries, splash.grid.num_keys, splash.grid.num_keys


def _heads_first(x: jax.Array, length: int, filler: float = 0.0) -> jax.Array:
    """[B, T, N, ...] -> [B, N, length, ...]."""
    widths = [(0, 0)] * x.ndim
    widths[1] = (0, length - x.shape[1])
    return jnp.pad(x, widths, constant_values=filler).swapaxes(1, 2)
