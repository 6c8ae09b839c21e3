"""Few queries against a long cache: blocks of keys, in each of which every chunk is a product of its own.

A step of decoding has too few rows to occupy an accelerator by them, so it is the keys that are spread. Blocks that
the mask leaves dead, by dynamic lengths, offsets and windows too, are not read. JAX's own Pallas kernel for decoding
(jax.experimental.pallas.ops.gpu.decode_attention) is not used: it transposes the whole cache at every step, and
rounds unnormalised partial sums to the dtype of q.
"""

import jax
import jax.numpy as jnp

from zoo.kernels import dense, dropout, masks, online
from zoo.kernels.bias import DenseBias
from zoo.kernels.call import Call
from zoo.kernels.schedule import plan
from zoo.kernels.tiles import Grid, MaskTiles

MAX_QUERIES = 16
"""Beyond, rows alone keep an accelerator busy, and the logits of a block take more memory than its keys."""

MIN_PRODUCTS = 256
"""Products that a block is cut into, at least: about two for each multiprocessor of a large GPU."""

PLATFORM = None
"""Runs on any."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    num_queries = call.sizes[1]
    return None if num_queries <= MAX_QUERIES else f"T = {num_queries}, and it is made for at most {MAX_QUERIES}"


def block_size(call: Call) -> int:
    """How many keys are taken at once: whole chunks, enough of them for the accelerator, at most S."""
    batch, _, num_keys, _, num_kv_heads = call.sizes
    if num_keys < online.CHUNK:
        return num_keys
    wanted = -(-MIN_PRODUCTS // (batch * num_kv_heads))
    return online.CHUNK * min(max(wanted, 4), num_keys // online.CHUNK)


def _attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    _, num_queries, num_keys, _, _ = call.sizes
    block = block_size(call)
    live = MaskTiles(call, Grid.cut(num_queries, num_keys, (num_queries, block))).live(per_batch=False)

    def visit(index, state: online.State) -> online.State:
        # The last block begins early enough to be whole; what it repeats is hidden.
        start = jnp.minimum(index * block, num_keys - block)
        columns = start + jnp.arange(block, dtype=jnp.int32)
        k, v = (jax.lax.dynamic_slice_in_dim(x, start, block, axis=1) for x in (call.k, call.v))
        allowed = (columns >= index * block)[None, None, None]
        pairs = _mask(call, start, block)
        allowed = allowed if pairs is None else allowed & pairs
        products = online.products(call.q, k, call.accumulator)
        logits = dense.combine(products, _bias(call, start, block), allowed, call.scale, call.softcap)
        return state.add(logits, v, lambda weights: _drop(weights, call, columns))

    state = online.State.empty(call.q, call.v.shape[-1])
    return plan(live).fold(0, 0, visit, state).finish(call.sinks, call.v.dtype)


attend = dense.stands_in(_attend)


def _slice(x, start, size: int) -> jax.Array:
    """Columns of [..., S or 1]."""
    return x if x.shape[-1] == 1 else jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, size, axis=-1)


def _mask(call: Call, start, size: int) -> jax.Array | None:
    """Which pairs of a block are allowed, bool [B or 1, N or 1, T, size], or None for all."""
    heads = lambda x: x if x is None or x.ndim == 4 else jnp.asarray(x)[:, None]  # noqa: E731
    clauses = tuple(
        masks.Clause(
            low=heads(clause.low),
            high=heads(clause.high),
            end=heads(clause.end),
            segments=tuple((heads(q_ids), heads(_slice(kv_ids, start, size))) for q_ids, kv_ids in clause.segments),
            dense=tuple(_slice(array, start, size) for array in clause.dense),
        )
        for clause in call.clauses()
    )
    positions = heads(_slice(call.frame().key_positions, start, size))
    return masks.keep(clauses, positions, start + jnp.arange(size, dtype=jnp.int32))


def _bias(call: Call, start, size: int) -> jax.Array | None:
    """The bias of a block, [B or 1, N or 1, T or 1, size or 1], or None."""
    if call.bias is None:
        return None
    if isinstance(call.bias, DenseBias):
        return _slice(dense.evaluate_bias(call), start, size)
    frame = call.frame()
    relative = _slice(frame.key_positions, start, size)[:, None, :] - frame.query[:, :, None]
    return jnp.moveaxis(call.bias.evaluate(relative), 0, 1)


def _drop(weights: jax.Array, call: Call, columns) -> jax.Array:
    """Weights [B, N, T, size] after dropout, scaled to keep the expectation."""
    if call.dropout_seeds is None:
        return weights
    kept = dropout.keep(call.dropout_seeds, jnp.arange(weights.shape[2], dtype=jnp.int32), columns, call.dropout_rate)
    return jnp.where(kept, weights / (1 - call.dropout_rate), 0)
