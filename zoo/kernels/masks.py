# ruff: noqa: D102  (every `clauses` and `check` does what the base class says)
"""Which keys a query may see: mask objects, their algebra, and the normal form that backends read.

Masks are pytrees with static structure and dynamic leaves, combined with `&` and `|`. `normalise` rewrites
any of them as a disjunction of `Clause`s; a clause is a conjunction of one interval of key positions a query
row, equal segment ids and, for what has no structure, slices of a dense array. Intervals and ids are O(T + S)
however large T * S is.

Whatever is known in Python stays in NumPy through the normal form, so that a backend can tell at trace time
which blocks of keys no query reaches. Scheduling blocks is in `schedule.py`, evaluating T x S in `dense.py`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Positions lie strictly between these, so that -FAR and FAR can mean "nowhere" without overflow.
FAR = np.int32(2**30)


class Mask:
    """A set of (query, key) pairs. `a & b` is the intersection and `a | b` the union."""

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, _as_mask(other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, _as_mask(other))

    def clauses(self, frame: "Frame") -> "tuple[Clause, ...]":
        """The mask as a disjunction of clauses."""
        raise NotImplementedError

    def check(self, batch: int, num_heads: int, num_queries: int, num_keys: int) -> None:
        """Raise ValueError unless every array fits the call."""


def _as_mask(value) -> Mask:
    if not isinstance(value, Mask):
        raise ValueError(f"a mask combines with masks only, got {type(value).__name__}; wrap an array in Dense(array)")
    return value


def _pytree(*meta_fields: str):
    """Make a frozen dataclass and a pytree of a class; `meta_fields` are static, the others are leaves.

    The class itself is among what is static: JAX's own registration of dataclasses (0.10) leaves it out when tree
    structures are compared, and then now and then runs what was compiled for another class.
    """

    def decorate(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        leaves = [name for name in names if name not in meta_fields]

        def flatten(mask):
            return [getattr(mask, name) for name in leaves], (cls, *(getattr(mask, name) for name in meta_fields))

        def flatten_with_keys(mask):
            values, static = flatten(mask)
            return list(zip(map(jax.tree_util.GetAttrKey, leaves), values, strict=True)), static

        def unflatten(static, values):
            return cls(**dict(zip(meta_fields, static[1:], strict=True)), **dict(zip(leaves, values, strict=True)))

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return decorate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """Where the rows and columns of one attention call lie.

    Attributes:
      query: positions of the queries, int32 [B or 1, T]; NumPy when known at trace time.
      key: positions of the keys, int32 [B or 1, S], or None for 0, 1, … S-1.
      num_keys: S.
    """

    query: np.ndarray | jax.Array
    key: jax.Array | None
    num_keys: int

    @property
    def key_positions(self) -> np.ndarray | jax.Array:
        """Positions of the keys, [B or 1, S]."""
        return indices(self.num_keys)[None] if self.key is None else self.key


@_pytree()
class Clause:
    """The pairs that satisfy every condition held; None and () stand for no condition.

    Attributes:
      low, high: first and last key position a row sees, int32 [..., T]; low > high for a row that sees none.
      end: keys at array index `end` and beyond are out, int32 [..., 1].
      segments: pairs of ids ([..., T], [..., S]) that must be equal.
      dense: bool arrays, broadcastable to [..., T, S], that must be true.
    """

    low: np.ndarray | jax.Array | None = None
    high: np.ndarray | jax.Array | None = None
    end: np.ndarray | jax.Array | None = None
    segments: tuple = ()
    dense: tuple = ()

    def meet(self, other: "Clause") -> "Clause":
        """The conjunction of two clauses."""
        return Clause(
            low=_meet("maximum", self.low, other.low),
            high=_meet("minimum", self.high, other.high),
            end=_meet("minimum", self.end, other.end),
            segments=self.segments + other.segments,
            dense=self.dense + other.dense,
        )

    @property
    def is_full(self) -> bool:
        """Whether the clause holds no condition at all."""
        return self.low is self.high is self.end is None and not self.segments and not self.dense

    def keep(self, positions, indices, transposed: bool = False):
        """Which of the pairs are allowed, bool [..., T, S], or None for all.

        Args:
          positions: key positions [..., S].
          indices: array indices of the same keys [S].
          transposed: give [..., S, T], without a transpose at run time.
        """
        row, column = (-2, -1) if transposed else (-1, -2)  # the axes along which rows and columns do not vary
        rows = lambda x: None if x is None else jnp.expand_dims(x, row)  # noqa: E731
        columns = lambda x: jnp.expand_dims(x, column)  # noqa: E731
        spread = Clause(
            low=rows(self.low),
            high=rows(self.high),
            end=rows(self.end),
            segments=tuple((rows(q_ids), columns(kv_ids)) for q_ids, kv_ids in self.segments),
            dense=tuple(array.swapaxes(-1, -2) if transposed else array for array in self.dense),
        )
        indices = jax.lax.broadcast_to_rank(indices, positions.ndim)
        return spread.holds(columns(positions), columns(indices))

    def holds(self, positions, indices):
        """Which of the pairs are allowed, or None for all, where every array already broadcasts to the pairs."""
        parts = [] if self.low is None else [self.low <= positions]
        parts += [] if self.high is None else [positions <= self.high]
        parts += [] if self.end is None else [indices < self.end]
        parts += [q_ids == kv_ids for q_ids, kv_ids in self.segments]
        parts += list(self.dense)
        return functools.reduce(lambda a, b: a & b, parts) if parts else None


def keep(clauses: tuple[Clause, ...], positions, indices, transposed: bool = False):
    """Which pairs a disjunction allows, bool [..., T, S], or None for all. Arguments as in `Clause.keep`."""
    return union([clause.keep(positions, indices, transposed) for clause in clauses])


def union(parts: list[Any]):
    """The disjunction of what clauses allow; None, which stands for all, absorbs the others."""
    return None if any(part is None for part in parts) else functools.reduce(lambda a, b: a | b, parts)


def is_static(*arrays) -> bool:
    """Whether all of the arrays that are present are known at trace time."""
    return all(array is None or isinstance(array, np.ndarray | np.generic) for array in arrays)


def _meet(function: str, a, b):
    """NumPy or JAX `function` of two arrays of which either may be absent."""
    if a is None or b is None:
        return b if a is None else a
    return getattr(np if is_static(a, b) else jnp, function)(a, b)


def indices(count) -> Any:
    """0, 1, … count - 1 as int32: in NumPy, or of a symbolic size in JAX."""
    return (np if isinstance(count, int) else jnp).arange(count, dtype=np.int32)


def int32(x) -> Any:
    """Counts or positions of any integer type as int32; what lies beyond ±FAR becomes that. NumPy of NumPy.

    A plain conversion would wrap: the largest uint32 would become -1.
    """
    xp = np if isinstance(x, int | np.ndarray | np.generic) else jnp
    x, far = xp.asarray(x), int(FAR)
    if x.dtype.itemsize < 4:
        return x.astype(np.int32)
    low = max(-far, np.iinfo(x.dtype).min)
    return xp.clip(x, xp.asarray(low, x.dtype), xp.asarray(far, x.dtype)).astype(np.int32)


def check_window(name: str, value) -> None:
    """Raise ValueError unless this counts keys: a Python integer, as it is compiled in, or None for all."""
    if value is not None and (not isinstance(value, int | np.integer) or value < 0):
        raise ValueError(f"{name}={value!r} counts keys: give an integer >= 0, or None for no limit")


def _per_batch(value) -> np.ndarray | jax.Array:
    """A count (scalar or [B]) as int32 [B or 1, 1]; a Python integer stays in NumPy."""
    return int32(value if isinstance(value, int | np.integer) else jnp.asarray(value)).reshape(-1, 1)


def _known_count(value):
    """A count that is known now within int32, for JAX would cut one of 64 bits; anything else as it is."""
    value = as_array(value)
    if isinstance(value, int | np.integer):
        return int(int32(int(value)))
    return int32(value) if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer) else value


def as_array(value) -> Any:
    """What need not be an array yet (a list) as one, and anything else as it is."""
    return np.asarray(value) if type(value) in (list, tuple) else value


@_pytree()
class Full(Mask):
    """Every query sees every key."""

    def clauses(self, frame):
        return (Clause(),)


@_pytree()
class Causal(Mask):
    """A query sees keys at its own position and before."""

    def clauses(self, frame):
        return (Clause(high=frame.query),)


@_pytree("left", "right")
class Window(Mask):
    """A query at q sees keys from q - left to q + right; None leaves that side open."""

    left: int | None
    right: int | None

    def __post_init__(self):
        for name in ("left", "right"):
            check_window(f"Window({name})", getattr(self, name))

    def clauses(self, frame):
        low = None if self.left is None else frame.query - int32(self.left)
        high = None if self.right is None else frame.query + int32(self.right)
        return (Clause(low=low, high=high),)


@_pytree("size")
class Chunked(Mask):
    """A query sees the keys of its own chunk: positions from a multiple of `size` up to the next."""

    size: int

    def __post_init__(self):
        if not isinstance(self.size, int | np.integer) or self.size < 1:
            raise ValueError(f"Chunked({self.size!r}) takes the length of a chunk: give an integer >= 1")

    def clauses(self, frame):
        size = int32(self.size)
        low = frame.query // size * size
        return (Clause(low=low, high=low + (size - np.int32(1))),)


@_pytree()
class PrefixLM(Mask):
    """Causal, and every key at a position below `length` (scalar or [B]) is seen by all."""

    length: int | jax.Array

    def __post_init__(self):
        object.__setattr__(self, "length", _known_count(self.length))

    def clauses(self, frame):
        return (Clause(high=_meet("maximum", frame.query, _per_batch(self.length) - np.int32(1))),)

    def check(self, batch, num_heads, num_queries, num_keys):
        _check_count("PrefixLM(length)", self.length, batch)


@_pytree()
class Lengths(Mask):
    """Queries at array index >= q see nothing, keys at index >= kv are unseen; scalars or [B], None for all.

    Alone among the structured masks this one speaks of array indices, not of positions: it marks padding.
    """

    q: int | jax.Array | None = None
    kv: int | jax.Array | None = None

    def __post_init__(self):
        object.__setattr__(self, "q", _known_count(self.q))
        object.__setattr__(self, "kv", _known_count(self.kv))

    def clauses(self, frame):
        clause = Clause()
        if self.q is not None:
            length, rows = _per_batch(self.q), indices(frame.query.shape[1])[None]
            where = np.where if is_static(length, rows) else jnp.where
            clause = clause.meet(Clause(high=where(rows < length, FAR, -FAR)))
        if self.kv is not None:
            length = _per_batch(self.kv)
            # With default positions index and position are one, and the interval says it all.
            clause = clause.meet(Clause(high=length - np.int32(1)) if frame.key is None else Clause(end=length))
        return (clause,)

    def check(self, batch, num_heads, num_queries, num_keys):
        _check_count("Lengths(q)", self.q, batch)
        _check_count("Lengths(kv)", self.kv, batch)


@_pytree()
class Segments(Mask):
    """A query sees the keys whose id equals its own: packed documents. q_ids [B or 1, T], kv_ids [B or 1, S].

    Without kv_ids, keys carry the ids of the queries (self-attention).
    """

    q_ids: jax.Array
    kv_ids: jax.Array | None = None

    def __post_init__(self):
        object.__setattr__(self, "q_ids", as_array(self.q_ids))
        object.__setattr__(self, "kv_ids", as_array(self.kv_ids))

    def clauses(self, frame):
        return (Clause(segments=self.pairs),)

    @property
    def pairs(self) -> tuple[tuple[Any, Any], ...]:
        """The ids (of queries, of keys) as one or two pairs of int32, all equal where and only where the ids are."""
        kv_ids = self.q_ids if self.kv_ids is None else self.kv_ids
        dtype = jnp.promote_types(self.q_ids.dtype, kv_ids.dtype)
        return tuple(zip(_words(self.q_ids.astype(dtype)), _words(kv_ids.astype(dtype)), strict=True))

    def check(self, batch, num_heads, num_queries, num_keys):
        if self.kv_ids is None and num_queries != num_keys:
            raise ValueError(
                f"Segments(q_ids) alone needs as many keys as queries, got {num_keys} and {num_queries}; "
                "give kv_ids of shape [B, S] as well"
            )
        for name, ids, length in (("q_ids", self.q_ids, num_queries), ("kv_ids", self.kv_ids, num_keys)):
            if ids is not None and (jnp.ndim(ids) != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != length):
                raise ValueError(f"Segments({name}) has shape {jnp.shape(ids)}; give [{batch} or 1, {length}]")
            if ids is not None and not jnp.issubdtype(ids.dtype, jnp.integer):
                raise ValueError(f"Segments({name}) has dtype {ids.dtype}; give integers")
            if isinstance(ids, np.ndarray) and (ids != ids.astype(jax.dtypes.canonicalize_dtype(ids.dtype))).any():
                raise ValueError(
                    f"Segments({name}) is {ids.dtype}, of which JAX keeps 32 bits, and some ids are larger; number the "
                    "documents from 0, or set JAX_ENABLE_X64=1"
                )
        dtypes = {ids.dtype for ids in (self.q_ids, self.kv_ids) if ids is not None}
        signed, unsigned = (max((d.itemsize for d in dtypes if jnp.issubdtype(d, kind)), default=0)
                            for kind in (jnp.signedinteger, jnp.unsignedinteger))  # fmt: skip
        if signed and unsigned >= max(4, signed):
            names = " and ".join(sorted(dtype.name for dtype in dtypes))
            raise ValueError(f"Segments: no type holds ids of both {names}; cast q_ids and kv_ids to one")


def _words(ids) -> tuple:
    """Ids as arrays of int32: one that says all, or of 64 bits the lower and the upper half."""
    if ids.dtype.itemsize < 4:
        return (ids.astype(np.int32),)
    if ids.dtype.itemsize == 4:
        static = isinstance(ids, np.ndarray)
        return (ids.view(np.int32) if static else jax.lax.bitcast_convert_type(ids, jnp.int32),)
    low, high = ids & 0xFFFFFFFF, ids >> 32
    return tuple(_words(word.astype(np.uint32))[0] for word in (low, high))


@_pytree()
class Dense(Mask):
    """A bool array, true where a query sees a key: [T, S], or [B, N, T, S] where any axis may be 1.

    Two axes are queries and keys, whatever their lengths: a mask of keys alone is [B, 1, 1, S].
    """

    array: jax.Array

    def __post_init__(self):
        object.__setattr__(self, "array", as_array(self.array))

    def clauses(self, frame):
        return (Clause(dense=(self.array.reshape((1,) * (4 - self.array.ndim) + self.array.shape),)),)

    def check(self, batch, num_heads, num_queries, num_keys):
        check_broadcast("Dense(array)", self.array, (batch, num_heads, num_queries, num_keys))
        if self.array.dtype != bool:
            raise ValueError(
                f"Dense(array) has dtype {self.array.dtype}; give bool, true where a query sees a key "
                "(numbers to add to the logits are bias=DenseBias(array))"
            )


@_pytree()
class And(Mask):
    """Intersection; write `a & b`."""

    left: Mask
    right: Mask

    def clauses(self, frame):
        return tuple(a.meet(b) for a in self.left.clauses(frame) for b in self.right.clauses(frame))

    def check(self, *sizes):
        self.left.check(*sizes)
        self.right.check(*sizes)


@_pytree()
class Or(Mask):
    """Union; write `a | b`."""

    left: Mask
    right: Mask

    def clauses(self, frame):
        return self.left.clauses(frame) + self.right.clauses(frame)

    def check(self, *sizes):
        self.left.check(*sizes)
        self.right.check(*sizes)


def normalise(mask: Mask, frame: Frame) -> tuple[Clause, ...]:
    """The mask as a disjunction of clauses: a single clause without conditions when it allows every pair."""
    clauses = mask.clauses(frame)
    return (Clause(),) if any(clause.is_full for clause in clauses) else clauses


def check_broadcast(name: str, array, shape: tuple[int, int, int, int]) -> None:
    """Raise ValueError unless an array of 2 or 4 axes broadcasts to [B, N, T, S]."""
    actual = jnp.shape(array)
    fits = len(actual) in (2, 4) and all(a in (1, b) for a, b in zip(actual[::-1], shape[::-1], strict=False))
    if not fits:
        batch, num_heads, num_queries, num_keys = shape
        raise ValueError(
            f"{name} has shape {actual}; give [{num_queries}, {num_keys}] or "
            f"[{batch}, {num_heads}, {num_queries}, {num_keys}], where any axis may be 1"
        )


def _check_count(name: str, value, batch: int) -> None:
    if value is None or isinstance(value, int | np.integer):
        return
    array = value if hasattr(value, "dtype") else np.asarray(value)
    if jnp.shape(array) not in ((), (1,), (batch,)) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name} is {array.dtype} of shape {jnp.shape(array)}; give an integer or integers of shape [{batch}]"
        )
