"""Text from a model: greedy or sampled, batched, in one compiled loop over the key/value cache.

A model takes part through three methods of its `apply`: `encode` (encoder-decoders), `prefill` and `step`; what it
keeps between steps is its own business. Prompts are padded on the left to a bucket, so prompts of many lengths
share one compilation. Beam search is left for the issue on tasks.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

PROMPT_BUCKET = 32
"""Prompt lengths are rounded up to a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Choose among this many likeliest tokens only."""
    top_p: float | None = None
    """Choose among the likeliest tokens that together reach this probability (Holtzman et al. 2020)."""

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; give 0 for greedy or a number above it")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; give at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a probability in (0, 1], or None for all tokens")

    def choose(self, logits: Float[Array, "B V"], rng: Array) -> Int[Array, " B"]:
        """One token a row."""
        if self.temperature == 0:
            return logits.argmax(-1).astype(jnp.int32)
        logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = lax.top_k(logits, self.top_k)[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p is not None:
            ordered = jnp.sort(logits, axis=-1, descending=True)
            probability = jax.nn.softmax(ordered, axis=-1)
            before = jnp.cumsum(probability, -1) - probability
            # The likeliest token always stays: nothing comes before it.
            least = jnp.min(jnp.where(before < self.top_p, ordered, jnp.inf), -1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return jax.random.categorical(rng, logits).astype(jnp.int32)


GREEDY = Sampling(temperature=0.0)


@struct.dataclass
class Generated:
    """What `generate` returns."""

    sequences: Int[Array, "B T"]
    """The prompt (for encoder-decoders, the start token) and what follows it, padded after the end token."""
    lengths: Int[Array, " B"]
    """New tokens of each row, the end token included."""


def generate(
    apply: Callable[..., Any],
    params: Any,
    input_ids: Int[Array, "B P"],
    attention_mask: Int[Array, "B P"] | None = None,
    *,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    decoder_start_token_id: int | None = None,
) -> Generated:
    """Continue prompts, or decode from encoded inputs.

    Args:
        apply: `apply(params, method=..., **inputs)`; a stable object, since compilation is cached on it.
        params: the model's parameters.
        input_ids: prompts, padded on the left; for an encoder-decoder, its encoder's input, padded on either side.
        attention_mask: 1 for tokens, 0 for padding; None: no padding.
        max_new_tokens: tokens to add at the most.
        sampling: how tokens are chosen.
        seed: of the sampling.
        eos_token_id: ends a row.
        pad_token_id: fills a row after its end.
        decoder_start_token_id: the first token of an encoder-decoder's output; None for a decoder-only model.

    Raises:
        ValueError: empty prompts, a mask of another shape, or a row without tokens.
    """
    ids = np.asarray(input_ids, np.int32)
    mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"input_ids have shape {ids.shape}; give [batch, length] with at least one token")
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {mask.shape}; give that of input_ids, {ids.shape}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; give at least 1")
    if not mask.any(-1).all():
        raise ValueError(f"row {int(np.argmin(mask.any(-1)))} of attention_mask is all padding; give it a token")
    if decoder_start_token_id is None and not mask[:, -1].all():
        raise ValueError("prompts are padded on the right; pad them on the left, so that they end together")
    prompt_length = ids.shape[1]
    room = -prompt_length % PROMPT_BUCKET
    ids = np.pad(ids, ((0, 0), (room, 0)), constant_values=pad_token_id)
    mask = np.pad(mask, ((0, 0), (room, 0)))
    tokens, lengths = _generate(
        apply,
        params,
        ids,
        mask,
        jax.random.key(seed),
        max_new_tokens,
        sampling,
        eos_token_id,
        pad_token_id,
        decoder_start_token_id,
    )
    if decoder_start_token_id is None:
        start = jnp.asarray(ids[:, room:])
    else:
        start = jnp.full((ids.shape[0], 1), decoder_start_token_id, jnp.int32)
    return Generated(jnp.concatenate([start, tokens], -1), lengths)


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8, 9))
def _generate(apply, params, ids, mask, rng, max_new_tokens, sampling, eos, pad, decoder_start):
    batch, prompt = ids.shape
    memory = {}
    if decoder_start is not None:
        encoded = apply(params, input_ids=ids, attention_mask=mask, method="encode").last_hidden_state
        memory = dict(encoder_hidden_states=encoded, encoder_attention_mask=mask)
        ids, prompt = jnp.full((batch, 1), decoder_start, jnp.int32), 1
        mask = jnp.ones_like(ids)
    prompts = dict(input_ids=ids, attention_mask=mask, **memory)
    logits, cache = apply(params, **prompts, capacity=prompt + max_new_tokens, method="prefill")
    tokens = jnp.full((batch, max_new_tokens), pad, jnp.int32)
    ended, lengths = jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32)

    def record(index, logits, tokens, ended, lengths):
        token = jnp.where(ended, pad, sampling.choose(logits, jax.random.fold_in(rng, index)))
        lengths = lengths + ~ended
        if eos is not None:
            ended = ended | (token == eos)
        return token, lax.dynamic_update_slice_in_dim(tokens, token[:, None], index, 1), ended, lengths

    def unfinished(state):
        index, _, _, _, ended, _ = state
        return (index < max_new_tokens) & ~ended.all()

    def advance(state):
        index, token, cache, tokens, ended, lengths = state
        logits, cache = apply(params, token=token, cache=cache, method="step")
        token, tokens, ended, lengths = record(index, logits, tokens, ended, lengths)
        return index + 1, token, cache, tokens, ended, lengths

    token, tokens, ended, lengths = record(0, logits, tokens, ended, lengths)
    state = lax.while_loop(unfinished, advance, (jnp.int32(1), token, cache, tokens, ended, lengths))
    return state[3], state[5]
