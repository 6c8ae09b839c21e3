"""What is measured: one cell of the grid, its values, and how much work it is.

Operations are counted from the pairs (query, key) that the mask leaves alive: forward 2 (H + Hv) a pair and head,
backward 2.5 times that, so forward+backward 3.5 times. Bytes are those that must move once: every input read, every
output written; in decoding only the keys and values that some query sees, and nothing else, are counted.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import DenseBias, Full, RelativeBias, masks
from zoo.kernels.attention import prepare
from zoo.kernels.call import Call
from zoo.kernels.cases import CASES, SMALL_CASES, Sizes, fits

ALL_CASES = CASES | SMALL_CASES
DTYPES = ("float32", "bfloat16", "float16")
FORWARD, BOTH, DECODE = "forward", "forward+backward", "decode"
DIRECTIONS = (FORWARD, BOTH, DECODE)
BACKWARD_FACTOR = 2.5
"""Five products in the backward pass for two in the forward pass (Dao 2023)."""

MAX_PAIRS_AT_ONCE = 2**24
"""Pairs of a mask that are evaluated at a time while they are counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid."""

    case: str
    direction: str
    dtype: str
    sizes: Sizes

    def __str__(self) -> str:
        z = self.sizes
        letters = f"B={z.B} T={z.T} S={z.S} N={z.N} K={z.K} H={z.H}" + (f" Hv={z.V}" if z.V != z.H else "")
        return f"{self.case}, {self.dtype}, {self.direction}: {letters}"

    @property
    def refusal(self) -> str | None:
        """Why the cell is no sensible problem; None when it is."""
        if not fits(self.case, self.sizes):
            return f"case {self.case} needs as many queries as keys"
        if self.direction == DECODE and "q_offset" in _arguments(self.case, Sizes()):
            return f"case {self.case} has positions of its own"
        return None


def _arguments(case: str, sizes: Sizes) -> dict:
    return ALL_CASES[case](np.random.default_rng(0), sizes)


class Problem:
    """The values of a cell.

    Attributes:
      inputs: q [B, T, N, H], k [B, S, K, H], v [B, S, K, Hv], standard normal.
      grad_out: cotangent of the output [B, T, N, Hv], standard normal.
      trained: arguments with a gradient of their own: sinks, and biases that are learned.
      fixed: the other arguments that hold arrays.
      static: arguments that are compiled in.
    """

    def __init__(self, cell: Cell):
        self.cell = cell
        z = cell.sizes
        shapes = ((z.B, z.T, z.N, z.H), (z.B, z.S, z.K, z.H), (z.B, z.S, z.K, z.V), (z.B, z.T, z.N, z.V))
        # On the device: a cache of gigabytes would take the host a minute.
        keys = jax.random.split(jax.random.key(0), len(shapes))
        *inputs, self.grad_out = (_normal(key, shape, cell.dtype) for key, shape in zip(keys, shapes, strict=True))
        self.inputs = tuple(inputs)
        arguments = _arguments(cell.case, z)
        if cell.direction == DECODE:
            arguments["q_offset"] = jnp.int32(z.S - 1)  # an array, as a step of generation has it
        learned = isinstance(arguments.get("bias"), RelativeBias | DenseBias)
        names = {"sinks", "bias"} if learned else {"sinks"}
        self.trained = {name: value for name, value in arguments.items() if name in names}
        others = {name: value for name, value in arguments.items() if name not in names}
        self.static = {name: value for name, value in others.items() if isinstance(value, int | float)}
        self.fixed = {name: value for name, value in others.items() if name not in self.static}

    @property
    def arguments(self) -> dict:
        """All keyword arguments of `zoo.attention`."""
        return self.trained | self.fixed | self.static

    def call(self, **changes) -> Call:
        """The problem as backends receive it, without dropout's seeds; `changes` replace arguments."""
        names = ("bias", "sinks", "scale", "softcap", "kv_positions", "dropout_rng")
        defaults = dict.fromkeys(names) | {"mask": Full(), "q_offset": 0, "dropout_rate": 0.0}
        return prepare(*self.inputs, **(defaults | self.arguments | changes))[0]

    @functools.cached_property
    def live_pairs(self) -> int:
        """Pairs (query, key) that the mask allows, summed over batch and heads."""
        return count_pairs(self.call())

    @property
    def flops(self) -> float:
        """Operations that the problem needs."""
        z = self.cell.sizes
        forward = 2.0 * (z.H + z.V) * self.live_pairs
        return forward * (1 + BACKWARD_FACTOR) if self.cell.direction == BOTH else forward

    @functools.cached_property
    def needed_bytes(self) -> int:
        """Bytes that must move: in decoding k and v as far as seen; else every input and output once."""
        z, item = self.cell.sizes, jnp.dtype(self.cell.dtype).itemsize
        if self.cell.direction == DECODE:
            seen = np.broadcast_to(allowed_pairs(self.call()).any((1, 2)), (z.B, z.S))
            return int(seen.sum()) * z.K * (z.H + z.V) * item
        queries, keys = z.B * z.T * z.N * (z.H + z.V), z.B * z.S * z.K * (z.H + z.V)
        # Backward also reads the output's cotangent, and writes a gradient for each of q, k and v.
        return (queries + keys) * item * (2 if self.cell.direction == BOTH else 1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def rows_of(clause: masks.Clause, rows: np.ndarray) -> masks.Clause:
    """A clause for some of the queries only, in NumPy and with an axis for heads: [B or 1, N or 1, rows (, S)]."""

    def per_row(x):
        # A single value holds for all queries.
        return None if x is None else np.asarray(x)[:, None, rows if x.shape[-1] > 1 else slice(None)]

    dense = [np.asarray(array) for array in clause.dense]
    return masks.Clause(
        low=per_row(clause.low),
        high=per_row(clause.high),
        end=None if clause.end is None else np.asarray(clause.end)[:, None],
        segments=tuple(
            (np.asarray(q_ids)[:, None, rows], np.asarray(kv_ids)[:, None]) for q_ids, kv_ids in clause.segments
        ),
        dense=tuple(array if array.shape[-2] == 1 else array[..., rows, :] for array in dense),
    )


def allowed_pairs(call: Call, rows: np.ndarray | None = None) -> np.ndarray:
    """Which keys the queries at array indices `rows` (all by default) may see, bool [B or 1, N or 1, rows, S]."""
    _, num_queries, num_keys, _, _ = call.sizes
    rows = np.arange(num_queries) if rows is None else rows
    clauses = tuple(rows_of(clause, rows) for clause in call.clauses())
    positions = np.asarray(call.frame().key_positions)[:, None]
    kept = masks.keep(clauses, positions, np.arange(num_keys))
    kept = np.ones((1, 1, 1, 1), bool) if kept is None else np.asarray(kept)
    return np.broadcast_to(kept, (*kept.shape[:2], len(rows), num_keys))


def count_pairs(call: Call) -> int:
    """Live pairs of a mask over batch and heads: in closed form for intervals of keys, else by evaluating it."""
    batch, num_queries, num_keys, num_heads, _ = call.sizes
    clauses = call.clauses()
    if len(clauses) == 1 and call.kv_positions is None and not clauses[0].segments and not clauses[0].dense:
        rows = np.arange(num_queries)
        low, high, end = (getattr(rows_of(clauses[0], rows), name) for name in ("low", "high", "end"))
        first = np.maximum(0 if low is None else low, 0)
        last = np.minimum(num_keys if high is None else np.asarray(high).astype(np.int64) + 1, num_keys)
        last = last if end is None else np.minimum(last, end)
        counts = np.broadcast_to(np.maximum(last - first, 0), (batch, 1, num_queries))
        return int(counts.sum()) * num_heads
    chunk, total = max(1, MAX_PAIRS_AT_ONCE // (batch * num_keys)), 0
    for start in range(0, num_queries, chunk):
        kept = allowed_pairs(call, np.arange(start, min(start + chunk, num_queries)))
        total += int(kept.sum()) * (batch // kept.shape[0]) * (num_heads // kept.shape[1])
    return total
