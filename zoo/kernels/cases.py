"""The features of attention as a list of named cases, from which both the tests and the benchmark draw.

A case makes the keyword arguments of `attention` for given sizes, so that the tests can run it small against the
oracle and the benchmark large against the clock.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.bias import ALiBi, DenseBias, RelativeBias, alibi_slopes
from zoo.kernels.masks import Causal, Chunked, Dense, Lengths, PrefixLM, Segments, Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of one attention problem, by the letters of `attention`."""

    B: int = 2
    T: int = 40
    S: int = 40
    N: int = 4
    K: int = 4
    H: int = 8
    V: int = 8

    def inputs(self, rng: np.random.Generator, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Standard normal q, k and v."""
        shapes = (
            (self.B, self.T, self.N, self.H),
            (self.B, self.S, self.K, self.H),
            (self.B, self.S, self.K, self.V),
        )
        q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
        return q, k, v


Arguments = Callable[[np.random.Generator, Sizes], dict]


def documents(rng: np.random.Generator, batch: int, length: int, num_documents: int = 4) -> jax.Array:
    """Segment ids of packed documents of random lengths, int32 [batch, length]."""
    return jnp.asarray(np.sort(rng.integers(0, num_documents, (batch, length)), axis=-1), jnp.int32)


def _lengths(rng: np.random.Generator, batch: int, length: int) -> jax.Array:
    return jnp.asarray(rng.integers(length // 2, length + 1, batch), jnp.int32)


def _packed(rng, sizes):
    return {"mask": Causal() & Segments(documents(rng, sizes.B, sizes.T))}


def _window(sizes: Sizes) -> int:
    return min(1024, max(2, sizes.S // 4))


def _table(rng, sizes):
    return jnp.asarray(rng.standard_normal((32, sizes.N)), jnp.float32)


def _normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


# Cases over any sizes with T = S.
CASES: dict[str, Arguments] = {
    "full": lambda rng, z: {},
    "causal": lambda rng, z: {"mask": Causal()},
    "window": lambda rng, z: {"mask": Window(_window(z), 0)},
    "symmetric_window": lambda rng, z: {"mask": Window(_window(z), _window(z))},
    "chunked": lambda rng, z: {"mask": Causal() & Chunked(_window(z))},
    "prefix": lambda rng, z: {"mask": PrefixLM(_lengths(rng, z.B, z.S))},
    "padding": lambda rng, z: {"mask": Lengths(kv=_lengths(rng, z.B, z.S))},
    "packed": _packed,
    "packed_full": lambda rng, z: {"mask": Segments(documents(rng, z.B, z.T))},
    "alibi": lambda rng, z: {"mask": Causal(), "bias": ALiBi(jnp.asarray(alibi_slopes(z.N)))},
    "relative": lambda rng, z: {"bias": RelativeBias(_table(rng, z))},
    "relative_causal": lambda rng, z: {
        "mask": Causal(),
        "bias": RelativeBias(_table(rng, z), bidirectional=False),
    },
    "softcap": lambda rng, z: {"mask": Causal(), "softcap": 2.0},
    "sinks": lambda rng, z: {"mask": Causal() & Window(_window(z), 0), "sinks": _normal(rng, z.N)},
    "dropout": lambda rng, z: {"mask": Causal(), "dropout_rate": 0.25, "dropout_rng": jax.random.key(3)},
}

# Cases that take O(T * S) memory for their arguments alone, or sizes of their own: for tests.
SMALL_CASES: dict[str, Arguments] = {
    "prefix_or_window": lambda rng, z: {"mask": Window(3, 0) | (Window(None, None) & Lengths(kv=2)) | PrefixLM(4)},
    "lengths": lambda rng, z: {"mask": Lengths(_lengths(rng, z.B, z.T), _lengths(rng, z.B, z.S).at[0].set(0))},
    "dense_mask": lambda rng, z: {"mask": Dense(jnp.asarray(rng.random((z.B, 1, z.T, z.S)) < 0.4)) | Window(1, 0)},
    "key_mask": lambda rng, z: {"mask": Causal() & Dense(jnp.asarray(rng.random((z.B, 1, 1, z.S)) < 0.7))},
    "causal_dense_bias": lambda rng, z: {"mask": Causal(), "bias": DenseBias(_normal(rng, 1, z.N, z.T, z.S))},
    "dense_bias": lambda rng, z: {"bias": DenseBias(_normal(rng, 1, z.N, z.T, z.S)), "softcap": 3.0},
    "key_bias": lambda rng, z: {"mask": Causal(), "bias": DenseBias(_normal(rng, z.B, 1, 1, z.S))},
    "offset": lambda rng, z: {"mask": Causal() & Window(9, None), "q_offset": 7},
    "offset_array": lambda rng, z: {
        "mask": Causal(),
        "q_offset": jnp.arange(z.B, dtype=jnp.int32) * 5 - 3,
        "bias": RelativeBias(_table(rng, z)),
    },
    "positions": lambda rng, z: {
        "mask": Causal() & Lengths(kv=z.S - 3),
        "kv_positions": jnp.asarray(np.stack([rng.permutation(z.S) for _ in range(z.B)]), jnp.int32),
        "bias": RelativeBias(_table(rng, z), max_distance=24),
    },
    "scale": lambda rng, z: {"mask": Causal(), "scale": 0.3},
    "sinks_dropout": lambda rng, z: {
        "mask": Window(7, 7),
        "sinks": _normal(rng, z.N),
        "dropout_rate": 0.25,
        "dropout_rng": jax.random.key(5),
        "bias": ALiBi(jnp.asarray(alibi_slopes(z.N))),
        "softcap": 4.0,
    },
}

# Sizes that the cases run at in the tests: plain; grouped heads with ragged lengths, T != S and V != H; one query.
TEST_SIZES = {
    "square": Sizes(),
    "grouped": Sizes(T=37, S=53, K=2, V=12),
    "decode": Sizes(T=1, S=53, K=2),
}


def fits(name: str, sizes: Sizes) -> bool:
    """Whether a case makes sense at these sizes: packed self-attention needs as many keys as queries."""
    return sizes.T == sizes.S or name not in ("packed", "packed_full")
