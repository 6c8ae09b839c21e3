"""Attention and its gradient in float64 NumPy, written from the definition and sharing no code with the backends.

Only the dropout pattern is taken from the package: what is dropped is its choice, what follows from it is not.
"""

import math

import numpy as np

from zoo.kernels import (
    ALiBi,
    Causal,
    Chunked,
    Dense,
    DenseBias,
    Full,
    Lengths,
    PrefixLM,
    RelativeBias,
    Segments,
)
from zoo.kernels import Window as WindowMask
from zoo.kernels import dropout as package_dropout
from zoo.kernels.masks import And, Or


def allowed_pairs(mask, shape, q_positions, k_positions):
    """Bool [B, N, T, S] from the definition of each mask. Positions [B, T] and [B, S]."""
    batch, _, num_queries, num_keys = shape
    q, k = (x.astype(np.int64) for x in (q_positions[:, None, :, None], k_positions[:, None, None, :]))

    def column(value):  # a count or [B] against [B, N, T, S]
        return np.broadcast_to(np.asarray(value).reshape(-1), (batch,))[:, None, None, None]

    match mask:
        case Full():
            result = np.array(True)
        case Causal():
            result = k <= q
        case WindowMask():
            result = np.ones((1, 1, 1, 1), bool)
            result = result if mask.left is None else result & (q - mask.left <= k)
            result = result if mask.right is None else result & (k <= q + mask.right)
        case Chunked():
            result = q // mask.size == k // mask.size
        case PrefixLM():
            result = (k <= q) | (k < column(mask.length))
        case Lengths():
            rows, columns = np.arange(num_queries)[:, None], np.arange(num_keys)[None, :]
            result = np.ones((1, 1, 1, 1), bool)
            result = result if mask.q is None else result & (rows < column(mask.q))
            result = result if mask.kv is None else result & (columns < column(mask.kv))
        case Segments():
            q_ids = np.asarray(mask.q_ids)
            k_ids = q_ids if mask.kv_ids is None else np.asarray(mask.kv_ids)
            result = q_ids[:, None, :, None] == k_ids[:, None, None, :]
        case Dense():
            result = np.asarray(mask.array)
        case And():
            sides = [allowed_pairs(m, shape, q_positions, k_positions) for m in (mask.left, mask.right)]
            result = sides[0] & sides[1]
        case Or():
            sides = [allowed_pairs(m, shape, q_positions, k_positions) for m in (mask.left, mask.right)]
            result = sides[0] | sides[1]
    return np.broadcast_to(result, shape)


def bucket_of(relative, num_buckets, bidirectional, max_distance):
    """T5's bucket of one key position - query position, by scalar arithmetic."""
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = num_buckets // 2
    if distance < exact:
        return offset + distance
    fraction = math.log(distance / exact) / math.log(max_distance / exact)
    return offset + min(num_buckets - 1, exact + int(fraction * (num_buckets - exact) + 1e-9))


def bias_values(bias, shape, relative):
    """The bias [B, N, T, S]; relative [B, T, S] is key position - query position."""
    match bias:
        case None:
            return np.zeros(shape)
        case DenseBias():
            return np.broadcast_to(np.asarray(bias.array, np.float64), shape)
        case ALiBi():
            return -np.asarray(bias.slopes, np.float64)[None, :, None, None] * np.abs(relative)[:, None]
        case RelativeBias():
            return np.moveaxis(np.asarray(bias.table, np.float64)[buckets(bias, relative)], -1, 1)


def buckets(bias, relative):
    """Bucket numbers, of the shape of `relative`."""
    one = np.vectorize(lambda r: bucket_of(int(r), bias.table.shape[0], bias.bidirectional, bias.max_distance))
    return one(relative)


def bias_gradient(bias, gradient, relative):
    """Gradient of the bias's array from that of the logits [B, N, T, S]."""
    match bias:
        case DenseBias():
            shape = (1,) * (4 - bias.array.ndim) + bias.array.shape
            axes = tuple(axis for axis in range(4) if shape[axis] == 1)
            return gradient.sum(axes, keepdims=True).reshape(bias.array.shape)
        case ALiBi():
            return -(gradient * np.abs(relative)[:, None]).sum((0, 2, 3))
        case RelativeBias():
            table = np.zeros(bias.table.shape)
            np.add.at(table, buckets(bias, relative), np.moveaxis(gradient, 1, -1))
            return table


def attention(
    q,
    k,
    v,
    grad_out,
    grad_lse,
    *,
    mask=None,
    bias=None,
    sinks=None,
    scale=None,
    softcap=None,
    q_offset=0,
    kv_positions=None,
    dropout_rng=None,
    dropout_rate=0.0,
):
    """(out, lse), and the gradients of sum(out * grad_out + lse * grad_lse) as {name: array}.

    Large logits are subtracted from, and a bias hides from -1e30 down, as the op promises; the rest is the definition.
    """
    q, k, v, grad_out, grad_lse = (np.asarray(x, np.float64) for x in (q, k, v, grad_out, grad_lse))
    (batch, num_queries, num_heads, head_size), num_keys = q.shape, k.shape[1]
    group, shape = num_heads // k.shape[2], (batch, num_heads, num_queries, num_keys)
    scale = 1 / math.sqrt(head_size) if scale is None else scale
    q_positions = np.broadcast_to(np.asarray(q_offset).reshape(-1, 1) + np.arange(num_queries), (batch, num_queries))
    k_positions = np.arange(num_keys) if kv_positions is None else np.asarray(kv_positions)
    k_positions = np.broadcast_to(k_positions, (batch, num_keys))
    relative = k_positions[:, None, :] - q_positions[:, :, None]
    keys, values = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    allowed = allowed_pairs(Full() if mask is None else mask, shape, q_positions, k_positions)

    logits = scale * np.einsum("btnh,bsnh->bnts", q, keys) + bias_values(bias, shape, relative)
    allowed = allowed & ~(logits <= -1e30)
    slope = np.ones(shape)
    if softcap is not None:
        slope = 1 - np.tanh(logits / softcap) ** 2
        logits = softcap * np.tanh(logits / softcap)
    logits = np.where(allowed, logits, -np.inf)
    sink = np.full(shape[:3], -np.inf) if sinks is None else np.asarray(sinks, np.float64)[None, :, None]
    largest = np.maximum(logits.max(-1), sink)
    largest = np.where(np.isneginf(largest), 0, largest)
    exponentials, sink = np.exp(logits - largest[..., None]), np.exp(sink - largest)
    total = exponentials.sum(-1) + sink
    safe = np.where(total == 0, 1, total)
    weights = exponentials / safe[..., None]
    with np.errstate(divide="ignore"):
        lse = np.log(total) + largest
    factor = np.ones(shape)
    if dropout_rng is not None and dropout_rate > 0:
        seeds = package_dropout.seeds(dropout_rng, batch, num_heads)
        kept = package_dropout.keep(seeds, np.arange(num_queries), np.arange(num_keys), dropout_rate)
        factor = np.asarray(kept) / (1 - dropout_rate)
    out = np.einsum("bnts,bsnh->btnh", weights * factor, values)

    grad_lse = np.where(total == 0, 0, np.moveaxis(grad_lse, 1, 2))
    grad_values = np.einsum("bnts,btnh->bsnh", weights * factor, grad_out)
    grad_weights = np.einsum("btnh,bsnh->bnts", grad_out, values) * factor
    common = (weights * grad_weights).sum(-1) - grad_lse
    grad_capped = weights * (grad_weights - common[..., None])
    grad_logits = grad_capped * slope
    by_group = lambda x: x.reshape(batch, num_keys, -1, group, x.shape[-1]).sum(3)  # noqa: E731
    gradients = {
        "q": scale * np.einsum("bnts,bsnh->btnh", grad_logits, keys),
        "k": by_group(scale * np.einsum("bnts,btnh->bsnh", grad_logits, q)),
        "v": by_group(grad_values),
    }
    if bias is not None:
        gradients["bias"] = bias_gradient(bias, grad_logits, relative)
    if sinks is not None:
        gradients["sinks"] = -(sink / safe * common).sum((0, 2))
    return out, np.moveaxis(lse, 1, 2), gradients
