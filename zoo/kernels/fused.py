"""What a library's fused kernel is wrapped in, so that it keeps the op's contracts whatever it does itself.

Such a kernel promises little about rows without keys and about NaN, and has no gradient for the log-sum-exp. Around
it here: q, k and v are cleaned on the way in, rows are put right on the way out, all of it O(T + S) and in plain
JAX, so that the same selections also keep the gradients clean.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from zoo.kernels import blockwise
from zoo.kernels.bias import DenseBias
from zoo.kernels.call import Call, is_finite, without_nonfinite
from zoo.kernels.masks import is_static


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ranges:
    """The keys of each row as one range of array indices: `first` inclusive, `end` exclusive, int32 [B or 1, T].

    Both lie in 0 … S; a row without keys has first >= end. NumPy when known at trace time.
    """

    first: Any
    end: Any

    @classmethod
    def of(cls, call: Call) -> "Ranges":
        """The ranges of a call for which `range_refusal` is None."""
        clause, (_, num_queries, num_keys, _, _) = call.clauses()[0], call.sizes
        zero = np.zeros((1, num_queries), np.int32)
        first = zero if clause.low is None else clause.low
        end = zero + np.int32(num_keys) if clause.high is None else clause.high + np.int32(1)
        return cls(*((np if is_static(x) else jnp).clip(x, 0, num_keys).astype(np.int32) for x in (first, end)))

    @property
    def alive(self) -> Any:
        """Which rows see a key, bool [B or 1, T]."""
        return self.first < self.end

    @property
    def num_rows(self) -> Any:
        """How many rows see a key, int32 [B or 1]."""
        return self.alive.sum(-1).astype(np.int32)

    @property
    def num_keys(self) -> Any:
        """The end of the last range that is not empty, int32 [B or 1]."""
        return (self.end * self.alive.astype(np.int32)).max(-1)


def range_refusal(call: Call) -> str | None:
    """Why the rows of a call do not each see one range of keys; None when they do."""
    if call.kv_positions is not None:
        return "keys lie at positions of their own (kv_positions)"
    clause, *others = call.clauses()
    if others:
        return "the mask is a union"
    if clause.segments:
        return "the mask has Segments"
    return "the mask has a Dense array" if clause.dense else None


def attend(kernel: Callable, call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32, by a fused kernel.

    Args:
      kernel: a function of (call, ranges), hashable, that returns both. Its call has finite q, k and v, and finite
        or -inf in a dense bias. What it does with rows outside `ranges.alive` does not matter, so long as it is
        finite. Its gradient for the output is used, its gradient for the log-sum-exp is not.
      call: what was asked for; `range_refusal(call)` is None.
    """
    ranges = Ranges.of(call)
    columns = np.arange(call.sizes[2], dtype=np.int32)[None]
    seen = (ranges.first.min(-1, keepdims=True) <= columns) & (columns < ranges.end.max(-1, keepdims=True))
    clean = lambda x, keep: jnp.where(keep[:, :, None, None], without_nonfinite(x), jnp.zeros_like(x))  # noqa: E731
    cleaned = dataclasses.replace(call, q=clean(call.q, ranges.alive), k=clean(call.k, seen), v=clean(call.v, seen))
    outputs: Any = _attend(kernel, cleaned, ranges)
    out, lse = outputs
    alive, poisoned = _alive(call, ranges), _sees_nonfinite(call, ranges)
    out = jnp.where(alive[..., None], out, jnp.zeros_like(out))
    lse = jnp.where(alive, lse, -jnp.inf)
    return jnp.where(poisoned[..., None], jnp.nan, out).astype(call.v.dtype), jnp.where(poisoned, jnp.nan, lse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(kernel, call: Call, ranges: Ranges):
    return kernel(call, ranges)


def _forward(kernel, call, ranges):
    call, ranges = jax.tree.map(lambda primal: primal.value, (call, ranges))
    outputs, pullback = jax.vjp(lambda call: kernel(call, ranges), call)
    return outputs, (call, pullback)


def _backward(kernel, residuals, cotangents):
    call, pullback = residuals
    grad_out, grad_lse = (jnp.zeros(x.shape, x.dtype) if type(x) is SymbolicZero else x for x in cotangents)
    if type(cotangents[1]) is SymbolicZero:
        return *pullback((grad_out, grad_lse)), None
    # Few programs differentiate the log-sum-exp, and none of the libraries does.
    return *jax.vjp(blockwise.attend, call)[1]((grad_out, grad_lse)), None


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _alive(call: Call, ranges: Ranges) -> jax.Array:
    """Which rows see a key that no bias of -inf hides, bool [B or 1, T, N or 1]."""
    if not isinstance(call.bias, DenseBias):
        return jnp.asarray(ranges.alive)[..., None]
    array = call.bias.array.reshape((1,) * (4 - call.bias.array.ndim) + call.bias.array.shape)
    columns = jnp.arange(call.sizes[2], dtype=jnp.int32)[None, None, None]
    within = (ranges.first[:, None, :, None] <= columns) & (columns < ranges.end[:, None, :, None])
    return (within & ~jnp.isneginf(array)).any(-1).swapaxes(1, 2)


def _sees_nonfinite(call: Call, ranges: Ranges) -> jax.Array:
    """Which rows see a vector with NaN or infinity, bool [B, T, N]: by sums over prefixes, in O(T + S)."""
    batch, num_queries, _, num_heads, num_kv_heads = call.sizes
    bad = ~(is_finite(call.k) & is_finite(call.v))[..., 0]
    before = jnp.pad(jnp.cumsum(bad, axis=1, dtype=jnp.int32), [(0, 0), (1, 0), (0, 0)])  # [B, S + 1, K]

    def count(index):
        index = jnp.broadcast_to(index, (batch, num_queries))
        return jnp.take_along_axis(before, index[:, :, None], axis=1)

    key = jnp.repeat(count(ranges.end) > count(ranges.first), num_heads // num_kv_heads, axis=2)
    return (key | ~is_finite(call.q)[..., 0]) & ranges.alive[..., None]
