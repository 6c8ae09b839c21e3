"""Numbers added to the attention logits: a dense array, ALiBi, or T5's bucketed relative bias.

ALiBi and relative bias depend on key position - query position alone. Where both run without gaps, all T x S
values repeat the T + S - 1 of one diagonal vector; backends carry that vector and spread it block by block
(`toeplitz`), so that neither the bias nor its gradient ever takes O(T * S) memory.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.masks import as_array, check_broadcast


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseBias:
    """A float array added to the logits: [T, S], or [B, N, T, S] where any axis may be 1."""

    array: jax.Array

    def __post_init__(self):
        object.__setattr__(self, "array", as_array(self.array))

    def check(self, batch: int, num_heads: int, num_queries: int, num_keys: int) -> None:
        """Raise ValueError unless the array fits the call."""
        check_broadcast("DenseBias(array)", self.array, (batch, num_heads, num_queries, num_keys))
        if not jnp.issubdtype(self.array.dtype, jnp.floating):
            raise ValueError(
                f"DenseBias(array) has dtype {self.array.dtype}; give floats, or mask=Dense(array) for bool"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ALiBi:
    """-slope * |key position - query position| for each head (Press et al. 2022). slopes [N]."""

    slopes: jax.Array

    def __post_init__(self):
        object.__setattr__(self, "slopes", as_array(self.slopes))

    def check(self, batch: int, num_heads: int, num_queries: int, num_keys: int) -> None:
        """Raise ValueError unless there is a slope for each head."""
        if jnp.shape(self.slopes) != (num_heads,):
            raise ValueError(f"ALiBi(slopes) has shape {jnp.shape(self.slopes)}; give one slope a head, [{num_heads}]")

    def evaluate(self, relative) -> jax.Array:
        """The bias at each key position - query position: int [...] -> float32 [N, ...]."""
        slopes = jnp.asarray(self.slopes).astype(jnp.float32)
        return -jnp.expand_dims(slopes, range(1, 1 + jnp.ndim(relative))) * jnp.abs(relative).astype(jnp.float32)[None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """A learned bias for each head and bucket of relative positions (Raffel et al. 2020).

    table [num_buckets, N].
    """

    table: jax.Array
    bidirectional: bool = dataclasses.field(default=True, metadata={"static": True})
    max_distance: int = dataclasses.field(default=128, metadata={"static": True})

    def __post_init__(self):
        object.__setattr__(self, "table", as_array(self.table))

    def check(self, batch: int, num_heads: int, num_queries: int, num_keys: int) -> None:
        """Raise ValueError unless the table fits the heads and the buckets the distance."""
        shape = jnp.shape(self.table)
        if len(shape) != 2 or shape[1] != num_heads:
            raise ValueError(f"RelativeBias(table) has shape {shape}; give [num_buckets, {num_heads}]")
        exact = shape[0] // (4 if self.bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(
                f"RelativeBias needs at least {4 if self.bidirectional else 2} buckets and a max_distance "
                f"above {exact}, got {shape[0]} buckets and max_distance={self.max_distance}"
            )

    def evaluate(self, relative) -> jax.Array:
        """The bias at each key position - query position: int [...] -> float32 [N, ...]."""
        buckets = relative_bucket(relative, self.table.shape[0], self.bidirectional, self.max_distance)
        return jnp.moveaxis(self.table.astype(jnp.float32)[buckets], -1, 0)


Bias = DenseBias | ALiBi | RelativeBias


def relative_bucket(relative, num_buckets: int, bidirectional: bool, max_distance: int) -> Any:
    """T5's bucket of each key position - query position, int32 of the same shape; NumPy of NumPy.

    Half of the buckets hold one distance each, the others grow by a constant ratio up to `max_distance` and
    beyond. If bidirectional, the upper half of all buckets is for keys after the query; else those share the
    bucket of distance 0.
    """
    xp = np if isinstance(relative, np.ndarray) else jnp
    relative = relative.astype(np.int32)
    if bidirectional:
        num_buckets //= 2
        offset, distance = xp.where(relative > 0, num_buckets, 0).astype(np.int32), xp.abs(relative)
    else:
        offset, distance = xp.zeros_like(relative), xp.maximum(-relative, 0)
    # By comparisons with numbers alone, as kernels want it: they cannot hold a constant array.
    first = first_distances(num_buckets, max_distance)
    return sum(((distance >= int(start)).astype(np.int32) for start in first), offset)


def first_distances(num_buckets: int, max_distance: int) -> np.ndarray:
    """The first distance of each bucket of one side but the first, whose is 0, int32 [num_buckets - 1]."""
    exact = num_buckets // 2
    # In float64: a float32 logarithm can miss a boundary.
    steps = np.arange(1, num_buckets - exact) / (num_buckets - exact)
    wide = np.ceil(exact * np.power(max_distance / exact, steps) - 1e-9).astype(np.int32)
    return np.concatenate([np.arange(1, exact + 1, dtype=np.int32), wide])


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The published slopes, a geometric sequence, float32 [N]; beyond a power of two, those between."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return np.asarray(slopes, np.float32)


def toeplitz(diagonals: jax.Array, num_rows: int, num_columns: int) -> jax.Array:
    """Spread [..., T + S - 1] over [..., T, S]: entry (t, s) is diagonals[s - t + T - 1]."""
    # Slices, one a row: a loop over a block then reads the vector in order, where a reshape would divide each index.
    starts = jnp.arange(num_rows - 1, -1, -1, dtype=jnp.int32)
    row = lambda start: jax.lax.dynamic_slice_in_dim(diagonals, start, num_columns, axis=-1)  # noqa: E731
    return jax.vmap(row, out_axes=-2)(starts)


def diagonal_sums(block: jax.Array) -> jax.Array:
    """The transpose of `toeplitz`: [..., T, S] -> sums of the diagonals [..., T + S - 1]."""
    *leading, num_rows, num_columns = block.shape
    # Groups of rows first, then their sums: a shift pads each row by all shifts, and 31 are less than T - 1.
    group = 32 if num_rows % 32 == 0 else 1
    groups = block.reshape(*leading, num_rows // group, group, num_columns)
    return _shifted_sum(_shifted_sum(groups, 1), group)


def _shifted_sum(rows: jax.Array, step: int) -> jax.Array:
    """The sum of rows [..., R, C], each shifted left by `step` against the one before: [..., C + (R - 1) * step]."""
    *leading, num_rows, num_columns = rows.shape
    keep = [(0, 0)] * len(leading)
    length = num_columns + (num_rows - 1) * step
    flat = jnp.pad(rows, [*keep, (0, 0), (length - num_columns, 0)]).reshape(*leading, num_rows * length)
    flat = jnp.pad(flat, [*keep, (0, num_rows * step)])  # read with a longer stride, each row lies `step` further left
    return flat.reshape(*leading, num_rows, length + step).sum(-2)[..., :length]
