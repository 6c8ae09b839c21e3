"""Beam search: the arithmetic of one step, equal to the reference's in every rounding and tie that decides.

The beams of all rows advance together. Of each row's num_beams * V continuations the best are kept; those that end are
set aside by their score over length ** length_penalty, and the best of the others go on.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.generation_config import GenerationConfig

IMPOSSIBLE = -1e9
"""Added to the scores of what may not be chosen. Finite, as in the reference, so that such beams fill empty places."""


@struct.dataclass
class Beams:
    """The beams of B rows, N each, over a buffer of T tokens."""

    tokens: Int[Array, "B N T"]
    """Beams that go on, best first."""
    scores: Float[Array, "B N"]
    """Sums of their log-probabilities."""
    origin: Int[Array, "B N"]
    """The beam of the step before that each goes on from."""
    finished: Int[Array, "B N T"]
    finished_scores: Float[Array, "B N"]
    """Sums over length ** length_penalty, best first."""
    finished_lengths: Int[Array, "B N"]
    """New tokens, the end token included."""
    is_finished: Bool[Array, "B N"]
    """Whether the place among the finished is taken."""
    may_improve: Bool[Array, " B"]
    """Whether a beam that goes on may still beat a finished one."""
    goes_on: Bool[Array, ""]
    """Whether another step is needed."""

    @classmethod
    def start(cls, tokens: Int[Array, "R T"], num_beams: int) -> "Beams":
        """All beams at the prompt; the first alone counts, for the others are the same."""
        tokens = tokens.reshape(-1, num_beams, tokens.shape[-1])
        shape = tokens.shape[:2]
        scores = jnp.broadcast_to(jnp.where(jnp.arange(num_beams) == 0, 0.0, IMPOSSIBLE), shape)
        return cls(
            tokens=tokens,
            scores=scores,
            origin=jnp.zeros(shape, jnp.int32),
            finished=tokens,
            finished_scores=jnp.full(shape, IMPOSSIBLE),
            finished_lengths=jnp.zeros(shape, jnp.int32),
            is_finished=jnp.zeros(shape, bool),
            may_improve=jnp.ones(shape[:1], bool),
            goes_on=jnp.bool(True),
        )

    @property
    def rows(self) -> Int[Array, " R"]:
        """For each beam, the row of the step before that it goes on from, among B * N."""
        batch, num_beams = self.origin.shape
        return (self.origin + num_beams * jnp.arange(batch)[:, None]).reshape(-1)

    @property
    def flat(self) -> Int[Array, "R T"]:
        """The beams that go on, a row each."""
        return self.tokens.reshape(-1, self.tokens.shape[-1])


def advance(
    beams: Beams,
    log_probs: Float[Array, "R V"],
    config: GenerationConfig,
    *,
    end: Int[Array, ""],
    count: Int[Array, ""],
    limit: Int[Array, ""],
    rng: Array,
) -> Beams:
    """One token more for each beam.

    Args:
        beams: before.
        log_probs: of the next token, processed.
        config: beams, penalties and end tokens.
        end: where in the buffer the next token goes.
        count: new tokens before this step.
        limit: new tokens at the most.
        rng: key, read in sampling only.
    """
    num_beams, vocab_size = beams.scores.shape[1], log_probs.shape[-1]
    totals = log_probs.reshape(*beams.scores.shape, vocab_size) + beams.scores[..., None]
    totals = totals.reshape(len(totals), -1)
    # Enough that num_beams go on even where each beam ends in every way it can.
    kept = min(max(2, 1 + len(config.eos_token_id)) * num_beams, totals.shape[-1])
    # The largest of scores with Gumbel noise are draws without replacement (Kool et al. 2019).
    noisy = totals + jax.random.gumbel(rng, totals.shape) if config.do_sample else totals
    place = lax.top_k(noisy, kept)[1]
    totals, origin, token = _take(totals, place), place // vocab_size, place % vocab_size
    tokens = _take(beams.tokens, origin).at[:, :, end].set(token)
    ends = jnp.isin(token, np.array(config.eos_token_id, np.int32)) | (count + 1 >= limit)

    scores, chosen = lax.top_k(totals + _penalty(ends), num_beams)
    finished = _set_aside(beams, tokens, totals, ends, config, count)
    beams = beams.replace(tokens=_take(tokens, chosen), scores=scores, origin=_take(origin, chosen), **finished)
    beams = beams.replace(may_improve=beams.may_improve & _may_improve(beams, config, count + 1, limit))
    filled = beams.is_finished.all() & (config.early_stopping is True)
    return beams.replace(goes_on=beams.may_improve.any() & ~filled & ~ends.all())


def _set_aside(beams: Beams, tokens, totals, ends, config: GenerationConfig, count) -> dict[str, Array]:
    """Merge continuations that end, and are among the best num_beams, with those that ended before."""
    num_beams, kept = beams.scores.shape[1], totals.shape[1]
    ended = ends & (jnp.arange(kept) < num_beams)[None]
    full = beams.is_finished.all(-1, keepdims=True) & (config.early_stopping is True)
    scores = totals / _powers(tokens, config)[count + 1]
    scores = scores + _penalty(full) + _penalty(~beams.may_improve[:, None]) + _penalty(~ended)
    lengths = jnp.full(scores.shape, count + 1, jnp.int32)
    best, place = lax.top_k(jnp.concatenate([beams.finished_scores, scores], 1), num_beams)
    merge = lambda old, new: _take(jnp.concatenate([old, new], 1), place)  # noqa: E731
    return {
        "finished": merge(beams.finished, tokens),
        "finished_scores": best,
        "finished_lengths": merge(beams.finished_lengths, lengths),
        "is_finished": merge(beams.is_finished, ended),
    }


def _may_improve(beams: Beams, config: GenerationConfig, count, limit) -> Bool[Array, " B"]:
    """Whether the best beam could beat the worst finished one at its most hopeful length."""
    hopeful = limit if config.early_stopping == "never" and config.length_penalty > 0 else count
    best = beams.scores[:, :1] / _powers(beams.tokens, config)[hopeful]
    worst = jnp.where(beams.is_finished, beams.finished_scores.min(-1, keepdims=True), IMPOSSIBLE)
    return (best > worst).any(-1)


def _penalty(ruled_out: Bool[Array, "B n"]) -> Float[Array, "B n"]:
    """`IMPOSSIBLE` where a continuation may not be chosen, else 0."""
    return ruled_out.astype(jnp.float32) * IMPOSSIBLE


def _powers(tokens: Int[Array, "B N T"], config: GenerationConfig) -> Float[Array, " T"]:
    """Length ** length_penalty for every length, rounded once from double precision."""
    lengths = np.arange(tokens.shape[-1] + 2, dtype=np.float64)
    lengths[0] = 1  # read by no one; a negative power of zero is not a number
    return jnp.asarray((lengths**config.length_penalty).astype(np.float32))


def _take(values: Array, place: Int[Array, "B n"]) -> Array:
    """`values[b, place[b]]` for each row b."""
    return jnp.take_along_axis(values, place.reshape(*place.shape, *(1,) * (values.ndim - 2)), axis=1)
