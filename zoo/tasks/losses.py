"""Losses over a vocabulary, and the sums that turn batches of them into held-out figures."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean negative log-likelihood in nats over the positions that `weights` counts.

    With `smoothing`, a share of each target's probability goes to all V tokens alike (Szegedy et al. 2016).

    Returns:
        The mean, and {"weight": number of positions, "accuracy": share whose likeliest token is right}.
    """
    logits = logits.astype(jnp.float32)
    # A masked sum, not an indexed read: its gradient fuses with the softmax, where a read's is a scatter.
    is_target = targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
    picked = jnp.sum(jnp.where(is_target, logits, 0.0), -1)
    aim = picked if smoothing == 0 else (1 - smoothing) * picked + smoothing * logits.mean(-1)
    nats = jax.nn.logsumexp(logits, axis=-1) - aim
    # The target is likeliest where it equals the greatest; cheaper than argmax.
    right = picked >= logits.max(-1)
    weight = weights.sum()
    count = jnp.maximum(weight, 1.0)
    metrics = {"weight": weight, "accuracy": (right * weights).sum() / count}
    return (nats * weights).sum() / count, metrics


def score_split(
    loss: Callable[..., Any], apply: Callable[..., Any], params: Any, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Mean of a task's loss and metrics over a whole split, weighted by `metrics["weight"]`, whose sum is "weight".

    Compiled once for each `loss(apply, params, batch, rng)` and `apply`.
    """
    totals: dict[str, float] = {}
    # Dispatch runs ahead of the device; the results are read at the end.
    for metrics in [_score_batch(loss, apply, params, batch) for batch in batches]:
        weight = float(metrics.pop("weight"))
        totals["weight"] = totals.get("weight", 0.0) + weight
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + weight * float(value)
    weight = totals.pop("weight", 0.0)
    if weight == 0.0:
        raise ValueError("the split has nothing to score; give it at least one document of two tokens")
    return {"weight": weight, **{name: value / weight for name, value in totals.items()}}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score_batch(loss, apply, params, batch):
    value, metrics = loss(apply, params, batch, None)
    return {"loss": value, **metrics}
