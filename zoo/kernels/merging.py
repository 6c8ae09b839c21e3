"""Attention over disjoint sets of keys, joined by their log-sum-exps."""

import functools

import jax
import jax.numpy as jnp


def merge(*parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Join attention over disjoint sets of keys: pairs (out [B, T, N, Hv], lse [B, T, N]) -> one pair.

    A cache and the tokens of one step can so be attended to apart, and the cache is never copied. Sinks
    belong to one part only.
    """
    outs, lses = zip(*parts, strict=True)
    lse = functools.reduce(jnp.logaddexp, lses)
    # Where no part saw a key, the difference of infinities is NaN and the weight must be zero.
    weights = [jnp.where(jnp.isneginf(part), 0, jnp.exp(part - jnp.where(jnp.isneginf(lse), 0, lse))) for part in lses]
    out = sum(weight[..., None] * out.astype(jnp.float32) for weight, out in zip(weights, outs, strict=True))
    return out.astype(outs[0].dtype), lse


def merge_devices(out: jax.Array, lse: jax.Array, axis: str) -> tuple[jax.Array, jax.Array]:
    """`merge` over the devices of a mesh axis, each of which gives its own part; the result is on all of them."""
    # A row that saw NaN anywhere is NaN, and must carry none into the gradient of other devices' keys.
    broken = jax.lax.psum(jnp.isnan(lse).astype(jnp.int32), axis) > 0
    out, lse = jnp.where(broken[..., None], 0, out), jnp.where(broken, -jnp.inf, lse)
    largest = jax.lax.pmax(jax.lax.stop_gradient(lse), axis)
    largest = jnp.where(jnp.isneginf(largest), 0, largest)
    weight = jnp.exp(lse - largest)
    total = jax.lax.psum(weight, axis)
    safe_total = jnp.where(total == 0, 1, total)
    merged = jax.lax.psum(weight[..., None] * out, axis) / safe_total[..., None]
    lse = jnp.where(total == 0, -jnp.inf, largest + jnp.log(safe_total))
    return jnp.where(broken[..., None], jnp.nan, merged), jnp.where(broken, jnp.nan, lse)


def add_sinks(out: jax.Array, lse: jax.Array, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Attention with sinks [N] from attention without: a part that has weight and no value."""
    if sinks is None:
        return out, lse
    # As above: a row of NaN must not reach the gradient of the sinks.
    broken = jnp.isnan(lse)
    out, lse = jnp.where(broken[..., None], 0, out), jnp.where(broken, -jnp.inf, lse)
    part = jnp.zeros_like(out), jnp.broadcast_to(sinks.astype(lse.dtype), lse.shape)
    out, lse = merge((out, lse), part)
    return jnp.where(broken[..., None], jnp.nan, out), jnp.where(broken, jnp.nan, lse)
