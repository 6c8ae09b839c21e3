"""cuDNN's fused attention, forward and backward, for NVIDIA GPUs in half precision.

What cuDNN expresses exactly: no mask, causal from position 0, a window to the left of it, lengths, and a dense bias
with its gradient. All else is refused. `jax.nn.dot_product_attention` rounds the log-sum-exp to the dtype of q, so
the function beneath it is called, which gives float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from zoo.kernels import fused, nvidia
from zoo.kernels.bias import DenseBias
from zoo.kernels.call import Call
from zoo.kernels.masks import And, Causal, Full, Lengths, Mask, Window, is_static

PLATFORM = "gpu"
# The dtypes it takes, and in each what stands for a bias of -inf: far below any logit, and so that the difference of
# two does not overflow.
HIDDEN = {"bfloat16": -(2.0**41), "float16": -(2.0**15)}


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    if call.q.dtype.name not in HIDDEN:
        return f"q, k and v are {call.q.dtype}, and it takes {' or '.join(HIDDEN)}"
    if call.softcap is not None:
        return "it has no soft cap"
    if call.sinks is not None:
        return "it has no sinks"
    if call.dropout_rate > 0:
        return "its dropout is not zoo's pattern"
    return _head_size_refusal(call) or _bias_refusal(call) or _mask_refusal(call)


def attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    return fused.attend(_kernel, call)


def _head_size_refusal(call: Call) -> str | None:
    capability, size = nvidia.compute_capability(), _head_size(call)
    if capability is None and jax.default_backend() == PLATFORM:
        return "it is NVIDIA's, and the GPU is not"
    if capability is not None and capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    limit = 256 if capability is not None and capability[0] == 9 else 128
    return f"head size {size} is above {limit}, its limit on this GPU" if size > limit else None


def _head_size(call: Call) -> int:
    """The one size, a multiple of 8, that q, k and v are padded to with zeros."""
    return -(-max(call.q.shape[-1], call.v.shape[-1]) // 8) * 8


def _bias_refusal(call: Call) -> str | None:
    if call.bias is None:
        return None
    if not isinstance(call.bias, DenseBias):
        return f"it takes a bias for each pair, and {type(call.bias).__name__} is one for each distance"
    _, num_queries, num_keys, _, _ = call.sizes
    array = call.bias.array
    if array.shape[-2:] != (num_queries, num_keys):
        return f"the bias has shape {array.shape}, and it takes no broadcast along T or S"
    if array.dtype != call.q.dtype:
        return f"the bias is {array.dtype}, and it takes that of q, {call.q.dtype}"
    if num_queries % 2 or num_keys % 2:
        return f"with a bias T = {num_queries} and S = {num_keys} must be even"
    return None


def _mask_refusal(call: Call) -> str | None:
    if (reason := fused.range_refusal(call)) is not None:
        return reason
    try:
        band = _Band.of(call)
    except NotImplementedError as error:
        return str(error)
    _, num_queries, num_keys, _, _ = call.sizes
    if band.right is None and band.left is None:
        return None
    if band.right is None or (band.right > 0 and num_queries > 1):
        return "the window reaches past the query, and its windows end there"
    if num_queries == 1:
        return None if band.left is None else "a window of one query begins at a key known at run time"
    if call.static_offset != 0:
        return "its causal mask begins at position 0, and q_offset is " + (
            "dynamic" if call.static_offset is None else str(call.static_offset)
        )
    if band.left is not None and call.bias is not None:
        return "it has no window together with a bias"
    if band.left is not None and num_queries > num_keys:
        return f"with a window T = {num_queries} must be at most S = {num_keys}"
    return None


@dataclasses.dataclass(frozen=True)
class _Band:
    """How far before and behind its own position a query sees; None without limit."""

    left: int | None = None
    right: int | None = None

    @classmethod
    def of(cls, call: Call) -> "_Band":
        """The band of a call's mask, without limits that no key of the call lies beyond."""
        band, (_, num_queries, num_keys, _, _) = _band(call.mask), call.sizes
        if call.static_offset != 0:
            return band
        return cls(
            left=None if band.left is None or band.left >= num_queries - 1 else band.left,
            right=None if band.right is None or band.right >= num_keys - 1 else band.right,
        )


def _band(mask: Mask) -> _Band:
    match mask:
        case Full() | Lengths():
            return _Band()
        case Causal():
            return _Band(right=0)
        case Window():
            return _Band(mask.left, mask.right)
        case And():
            a, b = _band(mask.left), _band(mask.right)
            least = lambda *limits: min((x for x in limits if x is not None), default=None)  # noqa: E731
            return _Band(least(a.left, b.left), least(a.right, b.right))
    raise NotImplementedError(f"it has no mask like {type(mask).__name__}")


def _kernel(call: Call, ranges: fused.Ranges) -> tuple[jax.Array, jax.Array]:
    from jax._src.cudnn.fused_attention_stablehlo import MaskType

    batch, num_queries, num_keys, _, _ = call.sizes
    band = _Band.of(call)
    causal = band.right == 0 and num_queries > 1
    lengths = _lengths(ranges, batch, num_queries, min(num_keys, num_queries) if causal else num_keys)
    kinds = {
        (False, False): MaskType.NO_MASK,
        (False, True): MaskType.PADDING,
        (True, False): MaskType.CAUSAL,
        (True, True): MaskType.PADDING_CAUSAL,
    }
    size, value_size = _head_size(call), call.v.shape[-1]
    widen = lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, size - x.shape[-1])])  # noqa: E731
    out, lse = _library(
        widen(call.q), widen(call.k), widen(call.v), _bias(call), None, *(lengths or (None, None)),
        scale=call.scale, mask_type=kinds[causal, lengths is not None], return_residual=True,
        sliding_window_length=None if band.left is None else band.left + 1,
    )  # fmt: skip
    return out[..., :value_size], lse.swapaxes(1, 2)


def _lengths(ranges: fused.Ranges, batch: int, num_queries: int, num_keys: int):
    """(of the queries, of the keys), int32 [B] each, or None where all are whole.

    Rows that see nothing come last in whatever mask gets here, so that the length of the queries leaves them out.
    A length of zero is raised to one, whose row is finite, and which the caller discards.
    """
    lengths = ranges.num_rows, ranges.num_keys
    if is_static(*lengths) and (lengths[0] == num_queries).all() and (lengths[1] == num_keys).all():
        return None
    return tuple(jnp.broadcast_to(jnp.maximum(length, 1), batch) for length in lengths)


def _bias(call: Call) -> jax.Array | None:
    """The bias with four axes and without infinities."""
    if call.bias is None:
        return None
    array = call.bias.array.reshape((1,) * (4 - call.bias.array.ndim) + call.bias.array.shape)
    return jnp.where(jnp.isneginf(array), jnp.asarray(HIDDEN[array.dtype.name], array.dtype), array)


def _library(*arguments, **options) -> Any:
    from jax._src.cudnn.fused_attention_stablehlo import dot_product_attention

    return dot_product_attention(*arguments, **options)
