"""Flash attention written for Hopper and Blackwell (Mosaic GPU), from tokamax: an optional extra, in half precision.

The kernel takes a range of keys for each row, so every mask that is a range of positions runs here and skips blocks:
causal at any offset, windows, chunks, prefixes, lengths. `tokamax.dot_product_attention` takes neither such ranges
nor gives the softmax's residuals, so the op beneath it is called.
"""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import fused, nvidia
from zoo.kernels.bias import DenseBias
from zoo.kernels.call import Call
from zoo.kernels.masks import Causal, is_static

PLATFORM = "gpu"
# The dtypes it takes, and in each what stands for a bias of -inf, which would make a block without keys NaN.
HIDDEN = {"bfloat16": -(2.0**41), "float16": -(2.0**15)}
# Lengths are padded to whole blocks of the forward and of the backward kernel.
BLOCK = 128
MAX_HEAD_SIZE = {9: 128, 10: 64}
"""By compute capability; cautious, for no larger size of its backward kernel has been seen to work."""


def supports(call: Call) -> str | None:
    """Why this backend cannot run the call; None when it can."""
    capability = nvidia.compute_capability()
    if jax.default_backend() == PLATFORM and (capability is None or capability[0] not in MAX_HEAD_SIZE):
        return "it is made for Hopper and Blackwell (compute capability 9 and 10)"
    if importlib.util.find_spec("tokamax") is None:
        return "tokamax is not installed: pip install 'zoo[mosaic]'"
    return feature_refusal(call, 9 if capability is None else capability[0])


def feature_refusal(call: Call, generation: int) -> str | None:
    """What of a call the kernel lacks, whether or not it is installed; None when it has all.

    `generation` is the major number of the compute capability.
    """
    size, max_head_size = max(call.q.shape[-1], call.v.shape[-1]), MAX_HEAD_SIZE[generation]
    if call.q.dtype.name not in HIDDEN:
        return f"q, k and v are {call.q.dtype}, and it takes {' or '.join(HIDDEN)}"
    if size > max_head_size:
        return f"head size {size} is above {max_head_size}, what its backward pass is known to take on this GPU"
    if call.sinks is not None:
        return "it has no sinks"
    if call.dropout_rate > 0:
        return "its dropout takes a mask for each pair"
    if call.bias is not None and call.softcap is not None:
        return "its soft cap would show what a bias of -inf hides"
    if call.bias is not None and not isinstance(call.bias, DenseBias):
        return f"it takes a bias for each pair, and {type(call.bias).__name__} is one for each distance"
    if call.bias is not None and call.bias.array.dtype != call.q.dtype:
        return f"the bias is {call.bias.array.dtype}, and its gradient would be summed in that of q, {call.q.dtype}"
    if call.bias is not None and generation == 10:
        return "the gradient of a bias is not tested on Blackwell by its authors"
    return fused.range_refusal(call)


def attend(call: Call) -> tuple[jax.Array, jax.Array]:
    """Attention output [B, T, N, Hv] in v's dtype, and log-sum-exp [B, T, N] in float32."""
    return fused.attend(_kernel, call)


def _kernel(call: Call, ranges: fused.Ranges) -> tuple[jax.Array, jax.Array]:
    _, num_queries, num_keys, _, _ = call.sizes
    # A row without keys sees the first one, which is zero or read for nothing: its residuals must be finite.
    where = np.where if is_static(ranges.first, ranges.end) else jnp.where
    rows = -num_queries % BLOCK
    first = _pad(where(ranges.alive, ranges.first, 0), rows, 1, mode="edge")
    end = _pad(where(ranges.alive, ranges.end, 1), rows, 1, mode="edge")
    q = _pad(call.q, rows, 1)
    k, v = (_pad(x, -num_keys % BLOCK, 1) for x in (call.k, call.v))
    causal = isinstance(call.mask, Causal) and call.static_offset == 0
    # Ranges that say nothing new would only be read and compared.
    starts_at_0 = is_static(first) and not first.any()
    whole = causal or (is_static(end) and (end == num_keys).all())
    out, (largest, total) = _library(
        q, k, v, _bias(call, rows, -num_keys % BLOCK), is_causal=causal,
        first=None if starts_at_0 else jnp.asarray(first)[:, None],
        end=None if whole and num_keys % BLOCK == 0 else jnp.asarray(end)[:, None],
        scale=call.scale, softcap=call.softcap,
    )  # fmt: skip
    lse = (largest + jnp.log(total)).swapaxes(1, 2)
    return out[:, :num_queries].astype(call.v.dtype), lse[:, :num_queries]


def _bias(call: Call, rows: int, columns: int) -> jax.Array | None:
    """The bias with four axes, over padded lengths, and without infinities."""
    if call.bias is None:
        return None
    array = call.bias.array.reshape((1,) * (4 - call.bias.array.ndim) + call.bias.array.shape)
    array = jnp.where(jnp.isneginf(array), jnp.asarray(HIDDEN[array.dtype.name], array.dtype), array)
    array = array if array.shape[2] == 1 else _pad(array, rows, 2)
    return array if array.shape[3] == 1 else _pad(array, columns, 3)


def _pad(x, amount: int, axis: int, mode: str = "constant"):
    """Lengthen one axis at its end."""
    widths = [(0, amount if i == axis else 0) for i in range(x.ndim)]
    return (np if is_static(x) else jnp).pad(x, widths, mode=mode) if amount else x


def _library(q, k, v, bias, *, is_causal, first, end, scale, softcap):
    """Output [B, T, N, V], and (largest logit, sum of exponentials above it), float32 [B, N, T] each."""
    from tokamax._src.ops.attention import base, pallas_mosaic_gpu  # pyright: ignore[reportMissingImports]

    leave_command_line_alone()
    return pallas_mosaic_gpu.PallasMosaicGpuFlashAttention()(
        q, k, v, bias=bias, mask=base.Mask(k_start=first, k_end=end, is_causal=is_causal),
        logits_scale=scale, logits_soft_cap=softcap, return_residuals=True,
    )  # fmt: skip


def leave_command_line_alone() -> None:
    """Parse absl's flags from the program's name alone: tokamax would parse those of whatever program imports zoo."""
    from absl import flags  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
