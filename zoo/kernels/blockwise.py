"""Attention in O(T + S) memory in plain JAX: an online softmax over blocks, and its exact gradient.

One key head at a time (its blocks stay in cache), each block of queries visits only the blocks of keys that the
mask leaves alive, and the backward pass recomputes the weights from the saved log-sum-exp. The method is that of
FlashAttention-2 (Dao 2023). Not here: forward-mode and second derivatives, for which see `dense`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from zoo.kernels import block
from zoo.kernels.call import (
    LOWEST,
    Call,
    accumulator_of,
    guard_nonfinite,
    mesh_axes_of,
    narrow,
    of_all,
    varying,
    without_nonfinite,
)
from zoo.kernels.order import zero_after
from zoo.kernels.schedule import plan
from zoo.kernels.tiles import At, DropoutTiles, Grid, MaskTiles, bias_tiles, prepare_bias

MAX_BATCHED_LOGITS = 128 * 128
"""Up to so many logits a head, a CPU takes all heads in one batch of products."""

PLATFORM = None
"""Runs on any."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can. It always can."""
    return None


def attend(call: Call, block_sizes: tuple[int, int] | None = None) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    _, num_queries, num_keys, _, _ = call.sizes
    grid = Grid.cut(num_queries, num_keys, block_sizes or default_block_sizes(call))
    inputs = (call.q, call.k, call.v, prepare_bias(call, grid), call.sinks)
    rest = dataclasses.replace(call, q=None, k=None, v=None, bias=None, sinks=None)
    return _attend(inputs, rest, grid)


def default_block_sizes(call: Call) -> tuple[int, int]:
    """Rows and columns of a block, by measurement on CPUs with 2 MB of L2 cache a core.

    The taller a block, the better the cores share its products; but where rows of a block see different keys, a tall
    one computes what the mask then hides.
    """
    _, num_queries, num_keys, _, _ = call.sizes
    clauses = call.clauses()
    rows = [x for c in clauses for x in (c.low, c.high, *(ids for ids, _ in c.segments)) if x is not None]
    rows_differ = any(x.shape[-1] > 1 for x in rows)
    return min(512 if rows_differ else 2048, num_queries), min(512, num_keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(inputs, rest: Call, grid: Grid):
    return _forward(inputs, rest, grid)[0]


def _forward(inputs, rest: Call, grid: Grid):
    problem = Problem(inputs, rest, grid)
    blocks = problem.split_queries(problem.prescale(problem.call.q)), *problem.guarded_keys_values()
    (out, largest, total), _ = problem.each_head(functools.partial(_forward_head, problem), blocks)
    out = problem.join_queries(out).astype(problem.call.v.dtype)
    lse, short = block.log_sum_exp(*(problem.join_queries(x) for x in (largest, total)))
    return (out, lse.astype(jnp.float32)), (inputs, rest, out, lse, short)


def _forward_head(problem: "Problem", head, blocks, carry):
    """One key head and its group of query heads: blocks of q, k, v -> of output, largest logit and sum; no carry."""
    q, k, v = blocks
    grid = problem.grid

    def attend_row(row):
        q_block, member, query = row
        at = problem.locate(head, member, query)

        def visit(key, carry):
            largest, total, acc = carry
            here = dataclasses.replace(at, key=key)
            logits, _ = problem.logits(_dot(q_block, k[key], 1, 1), here, transposed=False)
            new_largest = jnp.maximum(largest, logits.max(-1))
            weights = jnp.exp(logits - new_largest[:, None])
            decay = jnp.exp(largest - new_largest)
            total = total * decay + weights.sum(-1)
            if problem.dropout is not None:
                weights = problem.dropout(weights, here, transposed=False)
            acc = acc * decay[:, None] + _dot(narrow(weights, v.dtype), v[key], 1, 0)
            return new_largest, total, acc

        rows = problem.zeros(grid.block_q)
        carry = rows + LOWEST, rows, problem.zeros(grid.block_q, v.shape[-1])
        return _normalise(problem, at, *problem.by_query.fold(at.batch, at.query, visit, carry))

    return lax.map(attend_row, (q, *_product_of_ranges(problem.group, grid.num_query_blocks))), carry


def _normalise(problem: "Problem", at: At, largest, total, acc):
    """Divide by the softmax's denominator; rows without keys give 0."""
    if problem.call.sinks is not None:
        sink = problem.call.sinks[at.head].astype(total.dtype)
        new_largest = jnp.maximum(largest, sink)
        decay = jnp.exp(largest - new_largest)
        largest, total, acc = new_largest, total * decay + jnp.exp(sink - new_largest), acc * decay[:, None]
    # Stacked in float32: each update of a bfloat16 stack converts the whole of it on CPUs.
    return acc / jnp.where(total == 0, 1, total)[:, None], largest, total


def _backward(grid: Grid, residuals, cotangents):
    inputs, rest, out, lse, short = residuals
    problem = Problem(inputs, rest, grid)
    later = zero_after(cotangents[0])  # else blocks are laid out in the forward pass already, and kept
    q, k, v = (without_nonfinite(x + jnp.asarray(later, x.dtype)) for x in inputs[:3])
    grad_out, lse, delta = block.rows_backward(out, lse, short, *cotangents)
    blocks = (
        *(problem.split_queries(x) for x in (problem.prescale(q), grad_out)),
        problem.split_queries(lse, -LOWEST),  # exp(logits - lse) is 0 in padded rows, however large a bias
        problem.split_queries(delta),
        problem.split_keys(k),
        problem.split_keys(k).swapaxes(2, 3),
        problem.split_keys(v),
    )
    zeros = None if problem.bias is None else varying(problem.bias.zeros(), mesh_axes_of(q))
    (dq, dk, dv), dbias = problem.each_head(functools.partial(_backward_head, problem), blocks, zeros)
    dq = problem.join_queries(dq) * problem.call.scale
    dk, dv = problem.join_keys(dk) * problem.logit_scale, problem.join_keys(dv)
    gradients = (dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype))
    dbias = None if dbias is None else jax.tree.map(lambda g, x: g.astype(x.dtype), dbias, inputs[3])
    return (*gradients, dbias, block.sinks_gradient(inputs[4], lse, delta)), None


def _backward_head(problem: "Problem", head, blocks, dbias):
    """One key head: blocks of (q, grad_out, lse, delta, k, kᵀ, v) and the bias's gradient so far -> gradients.

    Logits are computed transposed, [block_k, block_q], and the gradient of q is summed transposed: so no product
    needs a transpose of what was just computed.
    """
    q, grad_out, lse, delta, k, k_transposed, v = blocks

    def visit_column(carry, key):
        def visit(member, query, carry):
            dq, dk, dv, dbias = carry
            row = member * problem.grid.num_query_blocks + query
            here = dataclasses.replace(problem.locate(head, member, query), key=key)
            logits, slope = problem.logits(_dot(k[key], q[row], 1, 1), here, transposed=True)
            weights = block.recompute_weights(logits, lse[row][None, :])
            grad_weights = _dot(v[key], grad_out[row], 1, 1)
            dropped = weights
            if problem.dropout is not None:
                grad_weights = problem.dropout(grad_weights, here, transposed=True)
                dropped = problem.dropout(weights, here, transposed=True)
            grad_logits = weights * (grad_weights - delta[row][None, :])
            grad_logits = grad_logits if slope is None else grad_logits * slope
            dbias = dbias if dbias is None else problem.bias.add(dbias, grad_logits, here)
            grad_logits = narrow(grad_logits, q.dtype)
            dv = dv + _dot(narrow(dropped, q.dtype), grad_out[row], 1, 0)
            dk = dk + _dot(grad_logits, q[row], 1, 0)
            dq = dq.at[row].add(_dot(k_transposed[key], grad_logits, 1, 0))
            return dq, dk, dv, dbias

        dq, dbias = carry
        carry = dq, *(problem.zeros(*x.shape[1:]) for x in (k, v)), dbias

        def visit_member(member, carry):
            return problem.by_key.fold(head[0], key, functools.partial(visit, member), carry)

        dq, dk, dv, dbias = lax.fori_loop(0, problem.group, visit_member, carry)
        return (dq, dbias), (dk, dv)

    dq = problem.zeros(q.shape[0], q.shape[2], q.shape[1])
    (dq, dbias), (dk, dv) = lax.scan(visit_column, (dq, dbias), jnp.arange(k.shape[0], dtype=jnp.int32))
    return (dq.swapaxes(1, 2), dk, dv), dbias


_attend.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """A product of two matrices over the axes named, accumulated in float32.

    The first operand's columns are always contracted, and never a `.T`: other forms leave a CPU's bfloat16 units.
    """
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=accumulator_of(a.dtype))


class Problem:
    """One call cut into blocks: how arrays are split, where blocks lie, and the logits of any block."""

    def __init__(self, inputs, rest: Call, grid: Grid):
        q, k, v, bias, sinks = inputs
        self.call = dataclasses.replace(rest, q=q, k=k, v=v, sinks=sinks)
        self.grid, self.accumulator = grid, self.call.accumulator
        self.group = q.shape[2] // k.shape[2]
        # Heads in sequence keep their blocks in a CPU's cache; an accelerator wants them at once, and so does a CPU
        # where a head is no more than one small block.
        one_small_block = grid.num_queries * grid.num_keys <= min(MAX_BATCHED_LOGITS, grid.block_q * grid.block_k)
        self.sequential = bias is not None or (jax.default_backend() == "cpu" and not one_small_block)
        self.mask = MaskTiles(self.call, grid)
        self.bias = bias_tiles(bias, self.call, grid)
        self.dropout = None if self.call.dropout_seeds is None else DropoutTiles(self.call, grid)
        live = self.mask.live(per_batch=self.sequential)
        self.by_query, self.by_key = plan(live), plan(live.swapaxes(1, 2))
        self.query_scale, self.logit_scale = self.call.scales

    def zeros(self, *shape: int) -> jax.Array:
        """Make the zeros that sums begin with."""
        return varying(jnp.zeros(shape, self.accumulator), mesh_axes_of(self.call.q))

    def prescale(self, q: jax.Array) -> jax.Array:
        """The part of the scale that goes into the queries."""
        return q * jnp.asarray(self.query_scale, q.dtype)

    def locate(self, head, member, query) -> At:
        """The address of a row of blocks: `head` is (batch, key head), `member` a query head of its group."""
        batch, key_head = head
        return At(batch=batch, head=key_head * self.group + member, query=query, key=0)

    def logits(self, products: jax.Array, at: At, transposed: bool):
        """Scale, bias, soft cap and mask of a block of q·k, and the soft cap's derivative (None without one)."""
        bias = None if self.bias is None else self.bias(at, transposed)
        return block.logits(products, self.logit_scale, bias, self.call.softcap, self.mask(at, transposed))

    def each_head(self, function, blocks, carry=None):
        """`function(head, blocks, carry) -> results, carry` of the B * K key heads; a carry needs them in sequence."""
        batch, _, _, _, num_kv_heads = self.call.sizes
        heads = _product_of_ranges(batch, num_kv_heads)
        if self.sequential:
            return _scan(function, (heads, blocks), carry)
        return jax.vmap(lambda head, blocks: function(head, blocks, carry))(heads, blocks)

    def split_queries(self, x: jax.Array, filler: float = 0) -> jax.Array:
        """[B, T, N, …] -> [B * K, N / K * I, block_q, …], padded rows of `filler`."""
        x = jnp.moveaxis(_pad_length(x, self.grid.num_queries, filler), 2, 1)
        rows = self.group * self.grid.num_query_blocks
        return x.reshape(-1, rows, self.grid.block_q, *x.shape[3:])

    def split_keys(self, x: jax.Array) -> jax.Array:
        """[B, S, K, …] -> [B * K, J, block_k, …]."""
        x = jnp.moveaxis(_pad_length(x, self.grid.num_keys), 2, 1)
        return x.reshape(-1, self.grid.num_key_blocks, self.grid.block_k, *x.shape[3:])

    def guarded_keys_values(self) -> tuple[jax.Array, jax.Array]:
        """Blocks of keys and values in which nothing non-finite reaches a row that does not see it."""
        split = lambda k, v: (self.split_keys(k), self.split_keys(v))  # noqa: E731
        guarded = lambda k, v: split(*guard_nonfinite(k, v))  # noqa: E731
        k, v = self.call.k, self.call.v
        if jax.default_backend() != "cpu":
            return guarded(k, v)
        # To search every vector costs a CPU more than to lay out the blocks, and nearly always finds nothing.
        all_finite = jnp.isfinite(k.sum(dtype=self.accumulator) + v.sum(dtype=self.accumulator))
        return lax.cond(of_all(all_finite), split, guarded, k, v)

    def join_queries(self, x: jax.Array) -> jax.Array:
        """[B * K, N / K * I, block_q, …] -> [B, T, N, …]."""
        batch, num_queries, _, num_heads, _ = self.call.sizes
        x = x.reshape(batch, num_heads, self.grid.num_queries, *x.shape[3:])
        return jnp.moveaxis(x[:, :, :num_queries], 1, 2)

    def join_keys(self, x: jax.Array) -> jax.Array:
        """[B * K, J, block_k, …] -> [B, S, K, …]."""
        batch, _, num_keys, _, num_kv_heads = self.call.sizes
        x = x.reshape(batch, num_kv_heads, self.grid.num_keys, *x.shape[3:])
        return jnp.moveaxis(x[:, :, :num_keys], 1, 2)


def _scan(function, inputs, carry):
    """`function(*x, carry) -> results, carry` of each x in turn, as `lax.scan` would, but for when room is made."""
    num = jax.tree.leaves(inputs)[0].shape[0]

    def pick(i):
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), inputs)

    def step(i, state):
        results, carry = state
        found, carry = function(*pick(i), carry)
        return jax.tree.map(lambda room, x: lax.dynamic_update_index_in_dim(room, x, i, 0), results, found), carry

    later = zero_after(jax.tree.leaves(inputs)[-1])  # else that of all layers' backward passes is made at the start
    shapes, _ = jax.eval_shape(lambda: function(*pick(0), carry))
    room = jax.tree.map(lambda x: jnp.full((num, *x.shape), later, x.dtype), shapes)
    room = varying(room, mesh_axes_of(inputs))
    return lax.fori_loop(0, num, step, (room, carry))


def _product_of_ranges(a: int, b: int) -> tuple[jax.Array, jax.Array]:
    """Indices of a loop over a and, inside, b. Tables: a division would be repeated for each element of a block."""
    return jnp.repeat(jnp.arange(a, dtype=jnp.int32), b), jnp.tile(jnp.arange(b, dtype=jnp.int32), a)


def _pad_length(x: jax.Array, length: int, filler: float = 0) -> jax.Array:
    widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    return jnp.pad(x, widths, constant_values=filler) if length > x.shape[1] else x
