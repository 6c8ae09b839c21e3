"""zoo's own attention kernels for a TPU: every mask, bias and feature of the op in O(T + S) memory, both ways.

An online softmax over blocks and its gradient from the saved log-sum-exp, as in FlashAttention-2 (Dao 2023). Blocks lie
transposed, keys by queries: then the softmax's statistics lie along the lanes, no product needs a transpose of what
was just computed, and nothing that is saved is padded to a register's width. Tables in scalar memory say which blocks
the mask leaves alive, so dead ones are neither copied nor computed, be the mask static or dynamic.
Not here: float64 and float16, and second derivatives.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zoo.kernels import block
from zoo.kernels.call import LOWEST, Call, guard_nonfinite, without_nonfinite
from zoo.kernels.mosaic_blocks import DenseBlocks, DropoutBlocks, MaskBlocks, bias_blocks, prepare
from zoo.kernels.mosaic_grid import KeyWalk, Operand, PairWalk, QueryWalk, Steps, block_size, launch
from zoo.kernels.tiles import At, Grid

PLATFORM = "tpu"

MAX_TABLE = 2**16
"""Entries of a schedule that are kept in scalar memory; beyond, all sequences of a batch share one."""

NN, NT = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
"""Products whose second operand's rows, or columns, are contracted."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    if call.q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"dtype {call.q.dtype}; it computes in float32 and bfloat16"
    return None


def attend(
    call: Call, block_sizes: tuple[int, int] | None = None, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    _, num_queries, num_keys, _, _ = call.sizes
    grid = Grid.cut(num_queries, num_keys, block_sizes or default_block_sizes(call))
    inputs = (call.q, call.k, call.v, prepare(call, grid), call.sinks)
    rest = dataclasses.replace(call, q=None, k=None, v=None, bias=None, sinks=None)
    return _attend(inputs, rest, grid, interpret)


def default_block_sizes(call: Call) -> tuple[int, int]:
    """Rows and columns of a block; the same where a bias runs along diagonals."""
    _, num_queries, num_keys, _, _ = call.sizes
    if call.bias is not None:
        size = block_size(num_queries, num_keys)
        return size, size
    return block_size(num_queries), block_size(num_keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(inputs, rest: Call, grid: Grid, interpret: bool):
    return _forward(inputs, rest, grid, interpret)[0]


def _forward(inputs, rest: Call, grid: Grid, interpret: bool):
    problem = Problem(inputs, rest, grid, interpret)
    call, (q, k, v) = problem.call, inputs[:3]
    k, v = guard_nonfinite(k, v)
    batch, _, _, num_heads, _ = call.sizes
    scalars = {} if call.sinks is None else {"sinks": Operand(call.sinks.astype(jnp.float32))}
    value_size = v.shape[-1]
    shapes = (batch, num_heads, value_size, grid.num_queries), (batch, num_heads, 1, grid.num_queries)
    out, largest, total = problem.launch(
        _forward_kernel,
        problem.by_query,
        problem.readers() | scalars | {
            "q": problem.query_operand(problem.prescale(q)),
            "k": problem.key_operand(k),
            "v_transposed": problem.transposed_key_operand(v),
        },
        [
            problem.transposed_query_operand(jax.ShapeDtypeStruct(shapes[0], v.dtype)),
            *(problem.row_operand(jax.ShapeDtypeStruct(shapes[1], jnp.float32)) for _ in ("largest", "total")),
        ],
        [(1, grid.block_q), (1, grid.block_q), (value_size, grid.block_q)],
    )  # fmt: skip
    out = problem.join_queries(out)
    lse, short = block.log_sum_exp(*(problem.join_queries(x)[..., 0] for x in (largest, total)))
    return (out, lse), (inputs, rest, out, lse, short)


def _forward_kernel(problem: "Problem", steps: Steps, refs, outputs, scratch):
    out, out_largest, out_total = outputs
    largest, total, acc = scratch

    @steps.first
    def _():
        largest[...] = jnp.full_like(largest, LOWEST)
        total[...] = jnp.zeros_like(total)
        acc[...] = jnp.zeros_like(acc)

    @steps.live
    def _():
        logits, _ = problem.logits(refs, steps.at)
        new_largest = jnp.maximum(largest[...], logits.max(0, keepdims=True))
        weights = jnp.exp(logits - new_largest)
        decay = jnp.exp(largest[...] - new_largest)
        largest[...], total[...] = new_largest, total[...] * decay + weights.sum(0, keepdims=True)
        if problem.dropout is not None:
            weights = problem.dropout(refs, weights, steps.at)
        v = refs["v_transposed"][...]
        acc[...] = acc[...] * decay + _dot(v, weights.astype(v.dtype), NN)

    @steps.last
    def _():
        top, sum_, values = largest[...], total[...], acc[...]
        if "sinks" in refs:
            sink = refs["sinks"][steps.at.head]
            new_top = jnp.maximum(top, sink)
            decay = jnp.exp(top - new_top)
            top, sum_, values = new_top, sum_ * decay + jnp.exp(sink - new_top), values * decay
        out_largest[...], out_total[...] = top, sum_
        out[...] = (values / jnp.where(sum_ == 0, 1.0, sum_)).astype(out.dtype)


def _backward(grid: Grid, interpret: bool, residuals, cotangents):
    inputs, rest, out, lse, short = residuals
    problem = Problem(inputs, rest, grid, interpret)
    q, k, v = (without_nonfinite(x) for x in inputs[:3])
    grad_out, lse, delta = block.rows_backward(out, lse, short, *cotangents)
    operands = problem.readers() | {
        "q": problem.query_operand(problem.prescale(q)),
        "k": problem.key_operand(k),
        "v": problem.key_operand(v),
        "grad_out": problem.query_operand(grad_out),
        "lse": problem.row_operand(problem.split_rows(lse, -LOWEST)),
        "delta": problem.row_operand(problem.split_rows(delta, 0)),
    }
    dq, dbias = _query_gradient(problem, operands, k)
    dk, dv = _key_gradients(problem, operands)
    return (dq, dk, dv, dbias, block.sinks_gradient(inputs[4], lse, delta)), None


def _query_gradient(problem: "Problem", operands, k):
    """Gradients of the queries and of the bias."""
    grid, call = problem.grid, problem.call
    batch, _, _, num_heads, _ = call.sizes
    shape = jax.ShapeDtypeStruct((batch, num_heads, k.shape[-1], grid.num_queries), call.q.dtype)
    sums = [] if problem.bias is None or isinstance(problem.bias, DenseBlocks) else [problem.bias.gradient(call)]
    dq, *sums = problem.launch(
        _query_gradient_kernel,
        problem.by_query,
        operands | {"k_transposed": problem.transposed_key_operand(k)},
        [problem.transposed_query_operand(shape), *sums],
        [(k.shape[-1], grid.block_q)],
    )
    if isinstance(problem.bias, DenseBlocks):
        sums = problem.launch(_bias_gradient_kernel, problem.by_bias, operands, [problem.bias.gradient(call)], [])
    return problem.join_queries(dq), problem.bias.finish(sums[0]) if sums else None


def _query_gradient_kernel(problem: "Problem", steps: Steps, refs, outputs, scratch):
    (acc,) = scratch
    out, *sums = outputs

    @steps.first
    def _():
        acc[...] = jnp.zeros_like(acc)

    if sums:

        @steps.first_of_head
        def _():
            sums[0][...] = jnp.zeros_like(sums[0])

    @steps.live
    def _():
        _, grad_logits = problem.gradients(refs, steps.at)
        if sums:
            problem.bias.add(sums[0], refs, grad_logits, steps.at)
        k = refs["k_transposed"][...]
        acc[...] += _dot(k, grad_logits.astype(k.dtype), NN)

    @steps.last
    def _():
        out[...] = (acc[...] * problem.call.scale).astype(out.dtype)


def _bias_gradient_kernel(problem: "Problem", steps: Steps, refs, outputs, scratch):
    (sums,) = outputs

    @steps.first
    def _():
        sums[...] = jnp.zeros_like(sums)

    @steps.live
    def _():
        problem.bias.add(sums, refs, problem.gradients(refs, steps.at)[1], steps.at)


def _key_gradients(problem: "Problem", operands):
    """Gradients of the keys and values."""
    grid, call = problem.grid, problem.call
    batch, _, _, _, num_kv_heads = call.sizes
    shapes = [(batch, num_kv_heads, grid.num_keys, x.shape[-1]) for x in (call.k, call.v)]
    outputs = [problem.key_operand(jax.ShapeDtypeStruct(shape, call.q.dtype)) for shape in shapes]
    scratch = [(grid.block_k, shape[-1]) for shape in shapes]
    dk, dv = problem.launch(_key_gradients_kernel, problem.by_key, operands, outputs, scratch)
    return problem.join_keys(dk), problem.join_keys(dv)


def _key_gradients_kernel(problem: "Problem", steps: Steps, refs, outputs, scratch):
    dk, dv = scratch

    @steps.first
    def _():
        dk[...], dv[...] = jnp.zeros_like(dk), jnp.zeros_like(dv)

    @steps.live
    def _():
        weights, grad_logits = problem.gradients(refs, steps.at)
        q, grad_out = refs["q"][...], refs["grad_out"][...]
        dk[...] += _dot(grad_logits.astype(q.dtype), q, NN)
        dv[...] += _dot(weights.astype(grad_out.dtype), grad_out, NN)

    @steps.last
    def _():
        outputs[0][...] = (dk[...] * problem.logit_scale).astype(outputs[0].dtype)
        outputs[1][...] = dv[...].astype(outputs[1].dtype)


_attend.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, dimensions) -> jax.Array:
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


class Problem:
    """One call cut into blocks: operands, walks, and the logits of any block."""

    def __init__(self, inputs, rest: Call, grid: Grid, interpret: bool):
        q, k, v, bias, sinks = inputs
        self.call = dataclasses.replace(rest, q=q, k=k, v=v, sinks=sinks)
        self.grid, self.interpret = grid, interpret
        self.group = q.shape[2] // k.shape[2]
        self.query_scale, self.logit_scale = self.call.scales
        self.mask = MaskBlocks(self.call, grid)
        self.bias = bias_blocks(bias, self.call, grid)
        self.dropout = None if self.call.dropout_seeds is None else DropoutBlocks(self.call, grid)

    @functools.cached_property
    def live(self):
        """Which pairs of blocks matter, bool [B or 1, I, J]."""
        per_batch = self.call.sizes[0] * self.grid.num_query_blocks * self.grid.num_key_blocks <= MAX_TABLE
        return self.mask.live(per_batch=per_batch)

    @property
    def by_query(self) -> QueryWalk:
        """The walk of the forward pass and of the gradient of the queries."""
        batch, _, _, num_heads, _ = self.call.sizes
        return QueryWalk(self.live, batch, num_heads)

    @property
    def by_key(self) -> KeyWalk:
        """The walk of the gradients of keys and values."""
        batch, _, _, _, num_kv_heads = self.call.sizes
        return KeyWalk(self.live, batch, num_kv_heads, self.group)

    @property
    def by_bias(self) -> PairWalk:
        """The walk of the gradient of a dense bias."""
        batch, _, _, num_heads, _ = self.call.sizes
        return PairWalk(self.live, self.bias.array.shape, batch, num_heads)

    def launch(self, kernel, walk, operands, outputs, scratch):
        """Run one of the kernels."""
        return launch(functools.partial(kernel, self), walk, operands, outputs, scratch, self.interpret)

    def readers(self) -> dict[str, Any]:
        """Operands of the mask, the bias and the dropout."""
        parts = [part.operands() for part in (self.mask, self.bias, self.dropout) if part is not None]
        return functools.reduce(lambda a, b: a | b, parts)

    def prescale(self, q: jax.Array) -> jax.Array:
        """The part of the scale that goes into the queries."""
        return q * jnp.asarray(self.query_scale, q.dtype)

    def logits(self, refs, at: At):
        """A block of logits [block_k, block_q], and the soft cap's derivative (None without one)."""
        products = _dot(refs["k"][...], refs["q"][...], NT)
        bias = None if self.bias is None else self.bias(refs, at)
        return block.logits(products, self.logit_scale, bias, self.call.softcap, self.mask(refs, at))

    def gradients(self, refs, at: At):
        """Weights after dropout, and the gradient of the logits before the soft cap, [block_k, block_q]."""
        logits, slope = self.logits(refs, at)
        weights = block.recompute_weights(logits, refs["lse"][...])
        grad_weights = _dot(refs["v"][...], refs["grad_out"][...], NT)
        dropped = weights
        if self.dropout is not None:
            grad_weights = self.dropout(refs, grad_weights, at)
            dropped = self.dropout(refs, weights, at)
        grad_logits = weights * (grad_weights - refs["delta"][...])
        return dropped, grad_logits if slope is None else grad_logits * slope

    def query_operand(self, x) -> Operand:
        """[B, T, N, H] as blocks [block_q, H]."""
        x = self._heads_first(x, self.grid.num_queries)
        return Operand(x, (None, None, self.grid.block_q, x.shape[-1]), lambda at: (at.batch, at.head, at.query, 0))

    def key_operand(self, x) -> Operand:
        """[B, S, K, H] as blocks [block_k, H]; what has the shape of an output is heads first already."""
        x = self._heads_first(x, self.grid.num_keys)
        return Operand(x, (None, None, self.grid.block_k, x.shape[-1]), lambda at: (*self._key_head(at), at.key, 0))

    def transposed_key_operand(self, x) -> Operand:
        """[B, S, K, H] as blocks [H, block_k]."""
        x = self._heads_first(x, self.grid.num_keys).swapaxes(2, 3)
        return Operand(x, (None, None, x.shape[2], self.grid.block_k), lambda at: (*self._key_head(at), 0, at.key))

    def transposed_query_operand(self, x) -> Operand:
        """An output [B, N, H, T] as blocks [H, block_q]."""
        return Operand(x, (None, None, x.shape[2], self.grid.block_q), lambda at: (at.batch, at.head, 0, at.query))

    def row_operand(self, x) -> Operand:
        """[B, N, 1, T] as blocks [1, block_q]."""
        return self.transposed_query_operand(x)

    def split_rows(self, x: jax.Array, filler: float) -> jax.Array:
        """[B, T, N] -> [B, N, 1, T], padded to whole blocks."""
        widths = ((0, 0), (0, self.grid.num_queries - x.shape[1]), (0, 0))
        return jnp.pad(x, widths, constant_values=filler).swapaxes(1, 2)[:, :, None]

    def join_queries(self, x: jax.Array) -> jax.Array:
        """[B, N, H, T] -> [B, T, N, H], without padding."""
        return x.transpose(0, 3, 1, 2)[:, : self.call.sizes[1]]

    def join_keys(self, x: jax.Array) -> jax.Array:
        """[B, K, S, H] -> [B, S, K, H], without padding."""
        return x.swapaxes(1, 2)[:, : self.call.sizes[2]]

    def _key_head(self, at: At):
        return at.batch, at.head if self.group == 1 else lax.div(at.head, jnp.int32(self.group))

    def _heads_first(self, x, length: int):
        """[B, T, N, H] -> [B, N, length, H]."""
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        widths = ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0))
        return jnp.pad(x, widths).swapaxes(1, 2)
