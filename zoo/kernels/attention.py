"""The attention op: validation, the choice of a backend, and the one jitted function that all runs through.

Contracts (all backends): query positions are q_offset + arange(T), however T and S align. The order is scale,
bias, soft cap, mask; a bias of -inf (anything down from -1e30) hides its key as a mask does, soft cap or not. Softmax
and sums are float32. A row whose keys are all masked gives 0, log-sum-exp -inf and zero gradient. NaN in masked values
never leaks; a row that sees a non-finite vector is NaN throughout.
"""

import dataclasses
import functools
import inspect
import logging
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import (
    blockwise,
    cudnn,
    decode,
    dense,
    dropout,
    mosaic,
    mosaic_tpu,
    sharding,
    splash,
    split_k,
    triton,
)
from zoo.kernels.axes import MeshAxes
from zoo.kernels.bias import ALiBi, Bias, DenseBias, RelativeBias
from zoo.kernels.call import DTYPES, Call, check_scale, check_softcap, mesh_axes_of, varying
from zoo.kernels.context import MEETINGS
from zoo.kernels.masks import FAR, Full, Mask, as_array, int32

logger = logging.getLogger("zoo.kernels")

BACKENDS = {
    "dense": dense,
    "blockwise": blockwise,
    "decode": decode,
    "split_k": split_k,
    "cudnn": cudnn,
    "mosaic": mosaic,
    "triton": triton,
    "splash": splash,
    "mosaic_tpu": mosaic_tpu,
}

# On each platform the first of these that takes a call runs it. The order on CPUs is measured; on GPUs and TPUs it is
# what their makers' figures suggest: a library's kernel, then zoo's own, which takes what libraries refuse.
PREFERENCE = {
    "cpu": ("decode", "blockwise"),
    "gpu": ("split_k", "cudnn", "mosaic", "triton", "blockwise"),
    "tpu": ("splash", "mosaic_tpu", "blockwise"),
}

# Up to this many logits a head `dense` is the faster one, forward and backward, by measurement on CPUs: in the
# accumulator's own dtype, and in half precision.
MAX_DENSE_LOGITS = 128 * 128
MAX_DENSE_LOGITS_HALF = 64 * 64

# With few queries a CPU's blocks have a row or two each, and `dense` is the faster one up to this many logits in all
# (256 MB): 1 to 5 queries of 32 to 128 heads over 20,000 keys take it a twentieth to two thirds of the time.
FEW_QUERIES = 16
MAX_FEW_LOGITS = 2**26

# An offset given as a Python integer is compiled in from this many queries on, where it lets whole blocks of
# keys be dropped at compile time. Below, it is an argument: decoding over Python integers compiles once.
STATIC_OFFSET_QUERIES = 128


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask = Full(),  # noqa: B008  (frozen and without fields)
    bias: Bias | None = None,
    sinks: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    q_offset: int | jax.Array = 0,
    kv_positions: jax.Array | None = None,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    backend: str = "auto",
    context: Literal["gather", "ring"] = "gather",
    return_lse: bool = False,
    hidden_is_finite: bool = False,
):
    """Multi-head attention, softmax(cap(scale q·k + bias) | mask) v.

    Args:
      q: queries [B, T, N, H].
      k: keys [B, S, K, H]; K divides N, and query head n reads key head n // (N / K).
      v: values [B, S, K, Hv].
      mask: which keys each query sees, in positions; see `zoo.kernels.masks`.
      bias: added to the scaled logits; see `zoo.kernels.bias`.
      sinks: one logit a head [N] that joins the softmax's denominator and carries no value.
      scale: factor of the logits, a Python float; 1 / sqrt(H) by default.
      softcap: c in c * tanh(logits / c).
      q_offset: position of the first query: an integer, or integers of shape [] or [B]. Arrays are dynamic; a
        Python integer is compiled in when T >= 128.
      kv_positions: positions of the keys, [S] or [B, S]; 0 … S-1 by default. Empty cache slots take 2**29.
      dropout_rng: key of jax.random; without one nothing is dropped.
      dropout_rate: probability that a weight is dropped, a Python float.
      backend: "auto", or the name of one, which then runs or raises.
      context: how queries meet keys on a mesh whose axis `context` splits both: "gather" collects all keys on each
        device; "ring" passes them round, in memory for one device's share. Without such an axis it says nothing.
      return_lse: also return the log of the softmax's denominator, [B, T, N] float32 (sinks included).
      hidden_is_finite: the caller vouches that masked keys and values hold no NaN or infinity, as a cache of zeros
        does. `decode` then compiles no way out for where they leak; other backends keep theirs.

    Returns:
      [B, T, N, Hv] in the dtype of v, or (that, log-sum-exp).

    Raises:
      ValueError: arguments that do not fit together, an explicit backend that cannot run them, or a mesh whose axes
        are all unknown (`mesh_axes`).
      TypeError: a forward-mode derivative of a backend that has none. `dense`, `decode` and `split_k` have derivatives
        of all modes and orders; the others gradients, and `blockwise` forward-mode derivatives of those.
    """
    call, rng = prepare(
        q, k, v, mask, bias, sinks, scale, softcap, q_offset, kv_positions, dropout_rng, dropout_rate, hidden_is_finite
    )
    if context not in MEETINGS:
        raise ValueError(f"context={context!r} is unknown; choose from {', '.join(MEETINGS)}")
    axes = sharding.axes_of(call)
    chosen = choose(sharding.piece(call, context, axes), backend)
    try:
        out, lse = _run(call, rng, chosen, context, axes)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f"backend={chosen!r} has no forward-mode derivative; backend='dense' has derivatives of all modes"
        ) from error
    return (out, lse) if return_lse else out


@functools.partial(jax.jit, static_argnames=("backend", "context", "axes"))
def _run(call: Call, rng: jax.Array | None, backend: str, context: str, axes: MeshAxes) -> tuple[jax.Array, jax.Array]:
    if rng is not None:
        batch, _, _, num_heads, _ = call.sizes
        call = dataclasses.replace(call, dropout_seeds=dropout.seeds(rng, batch, num_heads))
    # Inside a user's shard_map some arrays differ between devices and some do not: backends see all alike.
    call = varying(call, mesh_axes_of(call))
    return sharding.run(BACKENDS[backend].attend, call, context, axes)


def choose(call: Call, backend: str) -> str:
    """The backend that runs a call: the one named, or the best that supports it. Static facts decide."""
    if backend == "auto":
        chosen, reason = _automatic(call)
        _log_once(chosen, reason)
        return chosen
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose from auto, {', '.join(BACKENDS)}")
    if (reason := refusal(backend, call)) is not None:
        raise ValueError(f"backend={backend!r} cannot run this call: {reason}; use backend='auto' or another")
    return backend


def refusal(backend: str, call: Call) -> str | None:
    """Why a backend cannot run a call on this machine; None when it can."""
    module, platform = BACKENDS[backend], jax.default_backend()
    if _is_symbolic(call) and backend != "dense":
        return "T or S is a symbolic size, and it cuts them into blocks; dense does not"
    if module.PLATFORM not in (None, platform):
        return f"it is made for a {module.PLATFORM.upper()}, and JAX runs on a {platform.upper()}"
    return module.supports(call)


def _automatic(call: Call) -> tuple[str, str]:
    """The backend expected to be the fastest for these shapes, and why."""
    batch, num_queries, num_keys, num_heads, _ = call.sizes
    if _is_symbolic(call):
        return "dense", f"T = {num_queries} and S = {num_keys} are not both known, and it cuts neither into blocks"
    order = PREFERENCE.get(jax.default_backend(), ("blockwise",))
    first = next(name for name in order if BACKENDS[name].supports(call) is None)
    if first == "decode":
        return first, f"T x N = {num_queries * num_heads} rows are few, so that reading the keys decides"
    limit = MAX_DENSE_LOGITS if call.q.dtype == call.accumulator else MAX_DENSE_LOGITS_HALF
    if num_queries * num_keys <= limit:
        return "dense", f"T x S = {num_queries * num_keys} logits a head are at most {limit}"
    few = jax.default_backend() == "cpu" and num_queries <= FEW_QUERIES and isinstance(batch, int)
    if few and batch * num_heads * num_queries * num_keys <= MAX_FEW_LOGITS:
        return "dense", f"T = {num_queries} queries are few, and all logits at most {MAX_FEW_LOGITS}"
    reason = f"T x S = {num_queries * num_keys} logits a head are more than {limit}"
    return first, f"{reason}, and of {', '.join(order)} it is the first that takes the call"


def _is_symbolic(call: Call) -> bool:
    """Tell whether a length is a size of `jax.export.symbolic_shape`."""
    return not all(isinstance(size, int) for size in call.sizes[1:3])


@functools.cache
def _log_once(backend: str, reason: str) -> None:
    logger.info("attention runs on %s: %s", backend, reason)


def explain(q, k, v, *, backend: str = "auto", context: Literal["gather", "ring"] = "gather", **arguments) -> str:
    """Say which backend `attention` would run with these arguments, and why each other one would not.

    Takes arrays or jax.ShapeDtypeStruct. Nothing is computed.
    """
    leaves, structure = jax.tree.flatten((q, k, v, arguments))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return _explain_structs(leaves, structure, backend, context)
    arguments = {name: value for name, value in arguments.items() if name != "return_lse"}
    if unknown := arguments.keys() - inspect.signature(prepare).parameters:
        raise TypeError(f"explain takes no {', '.join(sorted(unknown))}; its arguments are those of attention")
    call, rng = prepare(q, k, v, **arguments)
    piece = sharding.piece(call, context, sharding.axes_of(call))
    chosen = choose(piece, backend)
    reason = _automatic(piece)[1] if backend == "auto" else "asked for by name"
    batch, num_queries, num_keys, num_heads, num_kv_heads = call.sizes
    offset = "dynamic" if call.static_offset is None else call.static_offset
    features = {"bias": call.bias, "sinks": call.sinks, "softcap": call.softcap, "dropout": rng}
    pieces = f"  in pieces of T={piece.sizes[1]} S={piece.sizes[2]} on a mesh that splits the sequence"
    lines = [
        f"attention over B={batch} T={num_queries} S={num_keys} N={num_heads} K={num_kv_heads} "
        f"H={call.q.shape[-1]} Hv={call.v.shape[-1]} {call.q.dtype} on {jax.default_backend()}",
        f"  mask {describe(call.mask)}, q_offset {offset}",
        "  with " + (", ".join(name for name, value in features.items() if value is not None) or "nothing else"),
        *([pieces] if piece is not call else []),
        f"  runs on {chosen}: {reason}",
    ]
    for name in BACKENDS:
        if name != chosen:
            lines.append(f"  not on {name}: {refusal(name, piece) or 'it could, but is expected to be slower'}")
    return "\n".join(lines)


def _explain_structs(leaves: list, structure, backend: str, context) -> str:
    """`explain` where some of the leaves of (q, k, v, arguments) are structs: these are traced."""
    texts = []

    def trace(structs):
        structs = iter(structs)
        filled = [next(structs) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in leaves]
        q, k, v, arguments = jax.tree.unflatten(structure, filled)
        texts.append(explain(q, k, v, backend=backend, context=context, **arguments))

    jax.eval_shape(trace, [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)])
    return texts[0]


def describe(mask: Mask) -> str:
    """A mask as it is written, arrays by their shapes."""
    parts = []
    for field in dataclasses.fields(mask):
        value = getattr(mask, field.name)
        shaped = hasattr(value, "shape") and f"{value.dtype}{list(value.shape)}"
        parts.append(describe(value) if isinstance(value, Mask) else shaped or repr(value))
    joiner = {"And": " & ", "Or": " | "}.get(type(mask).__name__)
    return f"({joiner.join(parts)})" if joiner else f"{type(mask).__name__}({', '.join(parts)})"


def prepare(
    q,
    k,
    v,
    mask=None,
    bias=None,
    sinks=None,
    scale=None,
    softcap=None,
    q_offset=0,
    kv_positions=None,
    dropout_rng=None,
    dropout_rate=0.0,
    hidden_is_finite=False,
):
    """Validate and gather the arguments into a Call; returns it and the key of the dropout, if any."""
    q, k, v = (x if hasattr(x, "shape") and hasattr(x, "dtype") else jnp.asarray(x) for x in (q, k, v))
    _check_arrays(q, k, v)
    batch, num_queries, num_heads, head_size = q.shape
    num_keys = k.shape[1]
    mask = Full() if mask is None else mask
    if not isinstance(mask, Mask):
        raise ValueError(f"mask is {type(mask).__name__}; give a mask object such as Causal(), or Dense(array)")
    mask.check(batch, num_heads, num_queries, num_keys)
    if bias is not None and not isinstance(bias, DenseBias | ALiBi | RelativeBias):
        raise ValueError(f"bias is {type(bias).__name__}; give DenseBias(array), ALiBi(slopes) or RelativeBias(table)")
    if bias is not None:
        bias.check(batch, num_heads, num_queries, num_keys)
    sinks = as_array(sinks)
    if sinks is not None and jnp.shape(sinks) != (num_heads,):
        raise ValueError(f"sinks has shape {jnp.shape(sinks)}; give one logit a head, [{num_heads}]")
    scale, softcap = check_scale(scale, head_size), check_softcap(softcap)
    if not isinstance(dropout_rate, int | float | np.floating) or not 0 <= dropout_rate < 1:
        raise ValueError(f"dropout_rate={dropout_rate!r} is compiled in: give a Python number in [0, 1)")
    offset, static_offset = _check_offset(q_offset, batch, num_queries)
    call = Call(
        q=q, k=k, v=v, mask=mask, bias=bias, sinks=sinks, q_offset=offset, static_offset=static_offset,
        kv_positions=_check_kv_positions(kv_positions, batch, num_keys), dropout_seeds=None,
        scale=scale,
        softcap=softcap,
        dropout_rate=0.0 if dropout_rng is None else float(dropout_rate),
        hidden_is_finite=hidden_is_finite,
    )  # fmt: skip
    return call, dropout_rng if dropout_rate > 0 else None


def _check_arrays(q, k, v) -> None:
    for name, array in (("q", q), ("k", k), ("v", v)):
        if len(array.shape) != 4:
            raise ValueError(f"{name} has shape {tuple(array.shape)}; give 4 axes: [batch, length, heads, head size]")
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.shape[0] == k.shape[0] == v.shape[0]:
        raise ValueError(f"batch sizes differ: {shapes}; the first axis must be the same")
    if k.shape[1:3] != v.shape[1:3]:
        raise ValueError(
            f"keys and values differ in length or heads: {shapes}; axes 1 and 2 of k and v must be the same"
        )
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"head sizes of queries and keys differ: {shapes}; the last axis of q and k must be the same")
    if k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} query heads do not divide among {k.shape[2]} key heads: {shapes}; "
            "axis 2 of q must be a multiple of axis 2 of k"
        )
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise ValueError(f"an axis is empty: {shapes}; every axis needs at least one element")
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
        dtypes = f"q {q.dtype}, k {k.dtype}, v {v.dtype}"
        raise ValueError(f"dtypes are {dtypes}; cast all three to one of {', '.join(DTYPES)}")


def _check_offset(q_offset, batch: int, num_queries: int) -> tuple[jax.Array | None, int | None]:
    """(dynamic offset [B or 1], None) or (None, static offset)."""
    array = q_offset if hasattr(q_offset, "dtype") else np.asarray(q_offset)
    if jnp.shape(array) not in ((), (1,), (batch,)) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"q_offset is {array.dtype} of shape {jnp.shape(array)}; give an integer or integers [{batch}]"
        )
    length = num_queries if isinstance(num_queries, int) else 0
    _check_range("q_offset", array, length)
    if isinstance(q_offset, int | np.integer) and length >= STATIC_OFFSET_QUERIES:
        return None, int(q_offset)
    return int32(jnp.asarray(array)).reshape(-1), None


def _check_kv_positions(kv_positions, batch: int, num_keys: int) -> jax.Array | None:
    if kv_positions is None:
        return None
    array = kv_positions if hasattr(kv_positions, "dtype") else np.asarray(kv_positions)
    shape, dtype = jnp.shape(array), array.dtype
    if shape not in ((num_keys,), (1, num_keys), (batch, num_keys)) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"kv_positions is {dtype} of shape {shape}; give integers of shape [{num_keys}] or [{batch}, {num_keys}]"
        )
    _check_range("kv_positions", array, 0)
    return int32(jnp.asarray(array)).reshape(-1, num_keys)


def _check_range(name: str, array, length: int) -> None:
    """Raise ValueError where positions known now, and `length` more, are none."""
    if not isinstance(array, np.ndarray | np.generic):
        return
    low, high = int(array.min()), int(array.max())
    if not -FAR < low <= high < FAR - length:
        raise ValueError(f"{name} reaches from {low} to {high}; positions lie between -2**30 and 2**30")
