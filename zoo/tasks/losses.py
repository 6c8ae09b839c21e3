"""Losses over a vocabulary, and the sums that turn batches of them into held-out figures."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.partition import axes_of_rows, axis_of_positions, free_axes

ROWS = {"cpu": 512}
"""Positions whose logits over the vocabulary are held at once, by platform; elsewhere MANY_ROWS.

On 2 CPU cores 512 rows stay near the caches: the loss of gpt-tiny's step and its gradient took 0.6 of the time that all
its 4,096 rows at once took.
"""
MANY_ROWS = 4096


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
    nats, right = _score(logits, targets, smoothing)
    return _mean((nats * weights).sum(), (right * weights).sum(), weights)


def vocabulary_loss(
    logits_of: Callable[[Float[Array, "B t D"]], Float[Array, "B t V"]],
    states: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    smoothing: float = 0.0,
    *,
    rows: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """What `cross_entropy` gives for `logits_of(states)`, in pieces of about `rows` positions: never B T V logits.

    Gradients are made with the loss, piece by piece, so that no logits are kept or computed twice. Positions that do
    not count are put last in their row, and pieces without one that counts are left out: padding and tokens that a
    masked model sees cost nothing. On a mesh `rows` are those of a device; a sequence that is split over devices is
    not cut any further.
    """
    batch, length = targets.shape
    if axis_of_positions(length) is not None:
        return cross_entropy(logits_of(states), targets, weights, smoothing)
    rows = rows or ROWS.get(jax.default_backend(), MANY_ROWS)
    here = batch // math.prod(free_axes()[axis] for axis in axes_of_rows(batch))
    parts = max(1, min(length, here * length // rows))
    room = ((0, 0), (0, -length % parts))
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    states = jnp.take_along_axis(states, order[..., None], 1)
    targets, counted = (jnp.take_along_axis(x, order, 1) for x in (targets, weights))

    def split(x):
        x = jnp.pad(x, room + ((0, 0),) * (x.ndim - 2))
        return x.reshape(batch, parts, -1, *x.shape[2:]).swapaxes(0, 1)

    pieces = (split(states), split(targets), split(counted))
    logits_of, parameters = jax.closure_convert(logits_of, pieces[0][0])

    def score(states, parameters, targets, weights):
        nats, right = _score(logits_of(states, *parameters), targets, smoothing)
        return (nats * weights).sum(), (right * weights).sum()

    return _mean(*_sum_pieces(score, pieces, parameters), weights)


def language_loss(
    apply: Callable[..., Any], params: Any, output: Any, targets: Int[Array, "B T"], *others: Any
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`vocabulary_loss` of what a model gave, by its own head; `others` are the weights, and smoothing.

    Under `jit` the logits in `output`, which nothing reads, are not computed.
    """

    def head(states):
        return apply(params, states=states, method="logits_of")

    return vocabulary_loss(head, output.last_hidden_state, targets, *others)


def _sum_pieces(score: Callable, pieces: tuple, parameters: list) -> tuple[Array, Array]:
    """The sums of `score(states, parameters, targets, weights)` over pieces; the first can be differentiated."""

    def run(work, pieces, parameters):
        """Sum what `work` gives of each piece that counts; beside the sum stands what is kept of each."""

        def body(total, piece):
            states, targets, weights = piece
            given = (states, parameters, targets, weights)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(work, *given))
            added, kept = lax.cond((weights > 0).any(), work, lambda *_: nothing, *given)
            return jax.tree.map(jnp.add, total, added), kept

        shapes, _ = jax.eval_shape(work, pieces[0][0], parameters, pieces[1][0], pieces[2][0])
        return lax.scan(body, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), pieces)

    @jax.custom_vjp
    def total(states, parameters, targets, weights):
        return run(lambda *given: (score(*given), None), (states, targets, weights), parameters)[0]

    def forward(states, parameters, targets, weights):
        def work(*given):
            sums, (to_states, to_parameters) = jax.value_and_grad(score, (0, 1), has_aux=True)(*given)
            return (sums, to_parameters), to_states

        (sums, to_parameters), to_states = run(work, (states, targets, weights), parameters)
        return sums, (to_states, to_parameters)

    def backward(gradients, cotangents):
        scaled = jax.tree.map(lambda x: (cotangents[0] * x.astype(jnp.float32)).astype(x.dtype), gradients)
        return (*scaled, None, None)

    total.defvjp(forward, backward)
    states, targets, weights = pieces
    return total(states, parameters, targets, weights)


def _score(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"], smoothing: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Nats of each target, and 1 where it is the likeliest token, else 0."""
    logits = logits.astype(jnp.float32)
    # A masked sum, not an indexed read: its gradient fuses with the softmax, where a read's is a scatter.
    vocabulary = jnp.arange(logits.shape[-1], dtype=targets.dtype)
    is_target = targets[..., None] == lax.broadcast_to_rank(vocabulary, logits.ndim)
    picked = jnp.sum(jnp.where(is_target, logits, 0.0), -1)
    aim = picked if smoothing == 0 else (1 - smoothing) * picked + smoothing * logits.mean(-1)
    # The target is likeliest where it equals the greatest; cheaper than argmax.
    right = picked >= logits.max(-1)
    return jax.nn.logsumexp(logits, axis=-1) - aim, right.astype(jnp.float32)


def _mean(nats: Array, right: Array, weights: Array) -> tuple[Array, dict[str, Array]]:
    weight = weights.sum()
    count = jnp.maximum(weight, 1.0)
    return nats / count, {"weight": weight, "accuracy": right / count}


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
