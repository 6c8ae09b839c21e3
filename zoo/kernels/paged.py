"""Attention over a paged cache: keys and values lie in pages that a table assigns to sequences.

Pages are gathered a few at a time, so that memory does not grow with the cache, and only those that some sequence
still reads. Tables and lengths are dynamic: a step of serving never recompiles. For inference: no gradient. Not here:
kernels for pages on GPUs and TPUs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import dense, online
from zoo.kernels.call import (
    DTYPES,
    accumulator_of,
    check_scale,
    check_softcap,
    guard_nonfinite,
    mesh_axes_of,
    varying,
)
from zoo.kernels.masks import FAR, as_array, check_window, int32

BLOCK_KEYS = 2048
"""Keys of one sequence gathered at once, about: enough chunks that few sequences occupy an accelerator."""
MAX_LOGITS = 2**25
"""Of all sequences and heads at once: with many queries, fewer keys are gathered."""


def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    return_lse: bool = False,
):
    """Causal attention of each sequence's last T tokens over its keys so far, which include their own.

    Equal to `attention` with `q_offset=lengths - T` and `mask=Causal() & Lengths(kv=lengths)` over the keys laid side
    by side, contracts included. What lies in unused pages, or in a page behind its sequence's end, is never seen.

    Args:
      q: queries [B, T, N, H], the last of which is at position lengths - 1.
      k_pages: keys [P, page size, K, H]; K divides N.
      v_pages: values [P, page size, K, Hv].
      page_table: int32 [B, M]: page m of a sequence holds its positions from m * page size on. Entries behind the
        end are not read, and may be anything. Sequences may share pages.
      lengths: how many keys each sequence has, int32 [B], 0 … M * page size.
      window: how many keys before its own a query sees, a Python integer; None for all.
      scale: factor of the logits, a Python float; 1 / sqrt(H) by default.
      softcap: c in c * tanh(logits / c), a Python float.
      sinks: one logit a head [N] that joins the softmax's denominator.
      return_lse: also return the log of the softmax's denominator, float32 [B, T, N].

    Returns:
      [B, T, N, Hv] in the dtype of v_pages, or (that, log-sum-exp).

    Raises:
      ValueError: arguments that do not fit together.
    """
    page_table, lengths, sinks = (as_array(x) for x in (page_table, lengths, sinks))
    _check(q, k_pages, v_pages, page_table, lengths, window, sinks)
    window = None if window is None else min(int(window), int(FAR))
    settings = window, check_scale(scale, q.shape[-1]), check_softcap(softcap)
    out, lse = _attend(q, k_pages, v_pages, int32(page_table), int32(lengths), sinks, settings)
    return (out, lse) if return_lse else out


@functools.partial(jax.jit, static_argnames="settings")
def _attend(q, k_pages, v_pages, page_table, lengths, sinks, settings):
    window, scale, softcap = settings
    arrays = q, k_pages, v_pages, page_table, lengths, sinks
    q, k_pages, v_pages, page_table, lengths, sinks = varying(arrays, mesh_axes_of(arrays))
    (batch, num_queries, num_heads, _), (num_pages, page_size, num_kv_heads, _) = q.shape, k_pages.shape
    # More pages than the table has are never gathered; behind its end the table is read again, and hidden.
    keys = min(BLOCK_KEYS, MAX_LOGITS // (batch * num_heads * num_queries))
    pages = min(max(keys // page_size, 1), page_table.shape[1])
    positions = (lengths[:, None] - num_queries + jnp.arange(num_queries, dtype=jnp.int32)[None])[:, None, :, None]
    first = jnp.zeros_like(positions) if window is None else jnp.maximum(positions - window, 0)
    accumulator = accumulator_of(q.dtype)

    def visit(block, state: online.State) -> online.State:
        start = jnp.minimum(block * pages, page_table.shape[1] - pages)
        table = jnp.clip(jax.lax.dynamic_slice_in_dim(page_table, start, pages, axis=1), 0, num_pages - 1)
        k, v = (x[table].reshape(batch, pages * page_size, num_kv_heads, -1) for x in (k_pages, v_pages))
        k, v = guard_nonfinite(k, v)
        columns = (start * page_size + jnp.arange(pages * page_size, dtype=jnp.int32))[None, None, None]
        allowed = (first <= columns) & (columns <= positions) & (columns >= block * pages * page_size)
        logits = dense.combine(online.products(q, k, accumulator), None, allowed, scale, softcap)
        return state.add(logits, v)

    state = online.State.empty(q, v_pages.shape[-1])
    block_keys = pages * page_size
    begin = jnp.where(lengths[:, None] > 0, first[:, 0, :, 0], np.iinfo(np.int32).max).min() // block_keys
    state = jax.lax.fori_loop(begin, -(-lengths.max() // block_keys), visit, state)
    return state.finish(sinks, v_pages.dtype)


def _check(q, k_pages, v_pages, page_table, lengths, window, sinks) -> None:
    for name, array in (("q", q), ("k_pages", k_pages), ("v_pages", v_pages)):
        if len(array.shape) != 4:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; give 4 axes, heads before the last")
    shapes = f"q {tuple(q.shape)}, k_pages {tuple(k_pages.shape)}, v_pages {tuple(v_pages.shape)}"
    if k_pages.shape[:3] != v_pages.shape[:3]:
        raise ValueError(f"pages of keys and values differ: {shapes}; their first 3 axes must be the same")
    if q.shape[3] != k_pages.shape[3] or q.shape[2] % k_pages.shape[2]:
        raise ValueError(f"heads do not fit: {shapes}; the last axes are the same, and axis 2 of k_pages divides q's")
    if 0 in (*q.shape, *k_pages.shape, *v_pages.shape, *jnp.shape(page_table)):
        raise ValueError(f"an axis is empty: {shapes}, page_table {jnp.shape(page_table)}")
    if not q.dtype == k_pages.dtype == v_pages.dtype or q.dtype.name not in DTYPES:
        raise ValueError(
            f"dtypes are q {q.dtype}, k_pages {k_pages.dtype}, v_pages {v_pages.dtype}; cast all three to one of "
            + ", ".join(DTYPES)
        )
    batch = q.shape[0]
    for name, array, num_axes in (("page_table", page_table, 2), ("lengths", lengths, 1)):
        shape = jnp.shape(array)
        if len(shape) != num_axes or shape[0] != batch or not jnp.issubdtype(array.dtype, jnp.integer):
            wanted = f"[{batch}, pages of a sequence]" if num_axes == 2 else f"[{batch}]"
            raise ValueError(f"{name} is {array.dtype} of shape {shape}; give integers of shape {wanted}")
    check_window("window", window)
    if sinks is not None and jnp.shape(sinks) != (q.shape[2],):
        raise ValueError(f"sinks has shape {jnp.shape(sinks)}; give one logit a head, [{q.shape[2]}]")
