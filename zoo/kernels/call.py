"""One attention call as backends receive it: arrays as leaves, settings as static structure."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels.bias import Bias
from zoo.kernels.masks import Clause, Frame, Mask, indices, normalise

LOWEST = -1e30
"""Stands for -inf where a difference of infinities would be NaN."""


DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Dtypes of queries, keys and values."""


def _static():
    return dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of `attention` in one pytree. What is static here is compiled in.

    Attributes:
      q: [B, T, N, H].  k: [B, S, K, H].  v: [B, S, K, Hv].
      mask, bias: objects.  sinks: [N] or None.
      q_offset: int32 [B or 1] or None where `static_offset` holds it.
      kv_positions: int32 [B or 1, S], or None for 0 … S-1.
      dropout_seeds: uint32 [B, N, 2], or None without dropout. Two words a head, so that a shard
        drops what the whole would.
      scale, softcap, dropout_rate: Python floats.
      hidden_is_finite: whether the caller vouches that what the mask hides holds no NaN or infinity.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    mask: Mask
    bias: Bias | None
    sinks: jax.Array | None
    q_offset: jax.Array | None
    kv_positions: jax.Array | None
    dropout_seeds: jax.Array | None
    static_offset: int | None = _static()
    scale: float = _static()
    softcap: float | None = _static()
    dropout_rate: float = _static()
    hidden_is_finite: bool = _static()

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, T, S, N, K."""
        batch, num_queries, num_heads, _ = self.q.shape
        return batch, num_queries, self.k.shape[1], num_heads, self.k.shape[2]

    @property
    def accumulator(self) -> jnp.dtype:
        """The dtype of logits, softmax and sums: float32, or float64 for float64 inputs."""
        return accumulator_of(self.q.dtype)

    @property
    def scales(self) -> tuple[float, float]:
        """The scale as a factor of the queries and one of the logits.

        Scaling q instead of the logits saves a pass, but must not round what the caller gave in few bits.
        """
        exact = self.q.dtype == self.accumulator or math.frexp(abs(self.scale))[0] == 0.5
        return (self.scale, 1.0) if exact else (1.0, self.scale)

    def frame(self) -> Frame:
        """Positions of rows and columns; in NumPy where known."""
        _, num_queries, num_keys, _, _ = self.sizes
        rows = indices(num_queries)[None]
        query = rows + (np.int32(self.static_offset) if self.q_offset is None else self.q_offset[:, None])
        return Frame(query=query, key=self.kv_positions, num_keys=num_keys)

    def clauses(self) -> tuple[Clause, ...]:
        """The mask's normal form for this call."""
        return normalise(self.mask, self.frame())


def mesh_axes_of(*arrays) -> frozenset[str]:
    """The mesh axes over which any of these varies inside a `jax.shard_map` that checks it; empty elsewhere."""
    kinds = [getattr(jax.typeof(x), "manual_axis_type", None) for x in jax.tree.leaves(arrays)]
    return frozenset().union(*(kind.varying for kind in kinds if kind is not None))


def struct_like(x, axes: frozenset[str]) -> jax.ShapeDtypeStruct:
    """The struct of a kernel's result that varies over these mesh axes."""
    kind = {"manual_axis_type": jax.sharding.ManualAxisType(varying=axes)} if axes else {}
    return jax.ShapeDtypeStruct(x.shape, x.dtype, **kind)


def varying(x, axes: frozenset[str]):
    """A pytree whose arrays vary over (at least) these mesh axes, as loops ask of what they begin with."""

    def mark(leaf):
        missing = axes - mesh_axes_of(leaf)
        return jax.lax.pcast(jnp.asarray(leaf), tuple(sorted(missing)), to="varying") if missing else leaf

    return jax.tree.map(mark, x) if axes else x


@jax.custom_batching.custom_vmap
def of_all(holds: jax.Array) -> jax.Array:
    """A condition, bool []; under `jax.vmap` whether it holds of all, so that a `cond` on it runs one branch, not both.

    For branches of which one is right wherever it holds, and the other always.
    """
    return holds


@of_all.def_vmap
def _of_all_batched(axis_size, in_batched, holds):
    return of_all(holds.all()), False


def check_scale(scale, head_size: int) -> float:
    """The factor of the logits that is compiled in: what is given, or 1 / sqrt(H).

    Raises:
      ValueError: no finite Python number.
    """
    return 1 / math.sqrt(head_size) if scale is None else _check_number("scale", scale, -math.inf)


def check_softcap(softcap) -> float | None:
    """The cap of the logits that is compiled in, or None.

    Raises:
      ValueError: no finite Python number above 0.
    """
    return None if softcap is None else _check_number("softcap", softcap, 0.0)


def _check_number(name: str, value, low: float) -> float:
    if not (isinstance(value, int | float | np.floating | np.integer) and low < value < math.inf):
        bound = "finite" if low == -math.inf else f"finite, above {low}"
        raise ValueError(f"{name}={value!r} is compiled in: give a Python number, {bound}, or None")
    return float(value)


def accumulator_of(dtype) -> np.dtype:
    """The dtype in which products of `dtype` are summed: float64 for float64, float32 for everything narrower."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def is_finite(x: jax.Array) -> jax.Array:
    """Which vectors of the last axis hold neither NaN nor infinity, bool [..., 1]."""
    # 0 * x is 0 or NaN. A sum of floats: `isfinite(x).all()` would become a cascade of windows on CPUs, and their
    # maximum of many float32 vectors loses NaN.
    return (jax.lax.stop_gradient(x) * 0).sum(-1, keepdims=True) == 0


@jax.custom_jvp
def without_nonfinite(x: jax.Array) -> jax.Array:
    """Zeros in place of NaN and infinity; its derivative is the identity.

    A masked value enters products with weight zero, and 0 * NaN is NaN: products must see zeros instead.
    """
    # CPUs widen what they compute in half precision and hand the wide copy to the product; integers stay as they are.
    kind = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bits, infinity = (jax.lax.bitcast_convert_type(y, kind) for y in (x, jnp.asarray(jnp.inf, x.dtype)))
    kept = jnp.where((bits & infinity) == infinity, jnp.zeros_like(bits), bits)  # all bits of the exponent set
    return jax.lax.bitcast_convert_type(kept, x.dtype)


without_nonfinite.defjvp(lambda primals, tangents: (without_nonfinite(*primals), *tangents))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def narrow(x: jax.Array, dtype) -> jax.Array:
    """float32 `x` in the dtype of an operand, rounded to nearest even; its derivative is that of a conversion.

    CPUs do not vectorise the conversion to bfloat16; the same in integers takes half the time.
    """
    if dtype != jnp.bfloat16 or x.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return x.astype(dtype)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return jax.lax.bitcast_convert_type(((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(jnp.uint16), dtype)


@narrow.defjvp
def _narrow_jvp(dtype, primals, tangents):
    return narrow(primals[0], dtype), tangents[0].astype(dtype)


def guard_nonfinite(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys and values such that a non-finite vector of either reaches the rows that see it, and no others.

    Such a key becomes NaN, and with it its logits: the mask selects them away, or the row turns NaN. Its value
    becomes zero.
    """
    finite = is_finite(k) & is_finite(v)
    return jnp.where(finite, k, jnp.nan), jnp.where(finite, v, jnp.zeros_like(v))
