"""Spans of a text that is read through windows: where windows begin, and how well two ends go together."""

import jax.numpy as jnp
from jaxtyping import Array, Float

ANSWER_LENGTH = 30
"""Tokens of an answer at the most, where nothing else is said (Devlin et al. 2019's code)."""


def window_starts(num_tokens: int, room: int, stride: int) -> list[int]:
    """Where windows of `room` tokens begin, `stride` apart, until one reaches the end; at least one.

    A span of at most `room - stride + 1` tokens lies whole in some window.
    """
    return [0, *range(stride, num_tokens - room + stride, stride)]


def span_scores(start: Float[Array, "B T"], end: Float[Array, "B T"], longest: int) -> Float[Array, "B T T"]:
    """The sum of both ends' scores for each first and last position; -inf for spans over `longest` or backwards."""
    first, last = jnp.arange(start.shape[-1])[:, None], jnp.arange(end.shape[-1])[None]
    fits = (first <= last) & (last < first + longest)
    return jnp.where(fits, start[..., :, None] + end[..., None, :], -jnp.inf)
