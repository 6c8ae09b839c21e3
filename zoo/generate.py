"""Text from a model: greedy, sampled or by beams, batched, in one compiled loop over the key/value cache.

A model takes part through four methods of its `apply`: `encode` (encoder-decoders), `prefill`, `step`, and `for_steps`,
the parameters as a loop of steps reads them best; what it keeps between steps is its own business, as long as it has
`select`. What runs once, the encoder and the prompt, is compiled with its layers scanned; a step, which runs for every
token, as the model says. Prompts are padded to a bucket, so prompts of many lengths share one compilation. What may be
asked for is in `zoo.generation_config`, what it does to logits in `zoo.logits`, and a step of beam search in
`zoo.beam_search`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.beam_search import Beams
from zoo.beam_search import advance as advance_beams
from zoo.generation_config import GenerationConfig, read_config
from zoo.logits import History, choose, guide, process

BUCKET = 32
"""Lengths of prompts and of what follows are rounded up to a multiple of this."""
DEFAULT_NEW_TOKENS = 20
"""Where neither max_length nor max_new_tokens is given, as in the reference."""


@struct.dataclass
class Generated:
    """What `generate` returns: R rows, num_return_sequences for each row of the input, side by side."""

    sequences: Int[Array, "R T"]
    """The prompt (for encoder-decoders, the decoder's) and what follows it, padded after the end token."""
    lengths: Int[Array, " R"]
    """New tokens of each row, the end token included."""
    scores: Float[Array, " R"] | None = None
    """Of beams: the sum of a row's log-probabilities over its length ** length_penalty."""


def generate(
    apply: Callable[..., Any],
    params: Any,
    input_ids: Int[Array, "B P"] | None = None,
    attention_mask: Int[Array, "B P"] | None = None,
    *,
    seed: int = 0,
    prng_key: Array | None = None,
    pixel_values: Float[Array, "B C height width"] | None = None,
    input_features: Float[Array, "B M F"] | None = None,
    token_type_ids: Int[Array, "B P"] | None = None,
    decoder_input_ids: Int[Array, "B T"] | None = None,
    decoder_attention_mask: Int[Array, "B T"] | None = None,
    negative_prompt_ids: Int[Array, "B P"] | None = None,
    negative_prompt_attention_mask: Int[Array, "B P"] | None = None,
    max_positions: int | None = None,
    reread_past: int | None = None,
    **options: Any,
) -> Generated:
    """Continue prompts, or decode from encoded inputs.

    Args:
        apply: `apply(params, method=..., **inputs)`; a stable object, since compilation is cached on it.
        params: the model's parameters.
        input_ids: prompts, padded on the left; for an encoder-decoder, its encoder's input, padded on either side.
        attention_mask: 1 for tokens, 0 for padding; None: no padding, except that in prompts `pad_token_id` is taken
            for it, where that ends no sequence.
        seed: of the sampling.
        prng_key: a key instead of the seed.
        pixel_values: an encoder's input.
        input_features: an encoder's input.
        token_type_ids: of an encoder's input.
        decoder_input_ids: an encoder-decoder's prompt; `decoder_start_token_id` comes before it, unless it is there.
        decoder_attention_mask: of that prompt, padded on the left.
        negative_prompt_ids: what the encoder reads to be led away from, with `guidance_scale`; one row serves all.
        negative_prompt_attention_mask: 1 for its tokens, 0 for padding; None: no padding.
        max_positions: that the decoder has a vector for; more tokens are an error, except by default.
        reread_past: with more tokens than this, what the cache holds is of no use: they are all read again (LongRoPE,
            whose rotation of every position then changes).
        options: fields of `GenerationConfig`; `decoder_start_token_id` tells an encoder-decoder. Without `max_length`
            and `max_new_tokens` there are 20 new tokens.

    Raises:
        ValueError: an unknown option or one that zoo lacks, empty prompts, a mask of another shape, a row without
            tokens, or no room for a new token.
    """
    inputs: dict[str, Any] = dict(
        input_ids=input_ids,
        attention_mask=attention_mask,
        pixel_values=pixel_values,
        input_features=input_features,
        token_type_ids=token_type_ids,
        decoder_input_ids=decoder_input_ids,
        decoder_attention_mask=decoder_attention_mask,
        negative_prompt_ids=negative_prompt_ids,
        negative_prompt_attention_mask=negative_prompt_attention_mask,
    )
    config = _read(options)
    start, config = _prepare(inputs, config, max_positions, reread_past)
    rng = jax.random.key(seed) if prng_key is None else prng_key
    loop = _search if config.num_beams > 1 else _generate
    tokens, lengths, scores, end = loop(apply, params, apply(params, method="for_steps"), start, rng, config)
    return Generated(tokens[:, int(start.begin) : int(end)], lengths, scores)


def stream(
    apply: Callable[..., Any],
    params: Any,
    input_ids: Int[Array, "B P"] | None = None,
    attention_mask: Int[Array, "B P"] | None = None,
    *,
    seed: int = 0,
    prng_key: Array | None = None,
    max_positions: int | None = None,
    reread_past: int | None = None,
    **options: Any,
) -> Iterator[Int[np.ndarray, " R"]]:
    """The tokens that `generate` writes with the same arguments, one of each row at a time as they come.

    Raises:
        ValueError: as `generate`, and for beams, which are known only at their end.
    """
    inputs = {name: options.pop(name) for name in _INPUTS if name in options}
    config = _read(options)
    if config.num_beams > 1:
        raise ValueError(f"num_beams is {config.num_beams}; what beams write is known at their end only: give 1")
    inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
    start, config = _prepare(inputs, config, max_positions, reread_past)
    rng = jax.random.key(seed) if prng_key is None else prng_key
    return _stream(apply, params, start, rng, config)


def _stream(apply, params, start, rng, config):
    looped = apply(params, method="for_steps")
    state = _begin(apply, params, start, rng, config)
    yield np.asarray(state.token)
    while bool(state.goes_on):
        state = _next(apply, params, looped, start, state, rng, config)
        yield np.asarray(state.token)


_INPUTS = (
    "pixel_values", "input_features", "token_type_ids", "decoder_input_ids", "decoder_attention_mask",
    "negative_prompt_ids", "negative_prompt_attention_mask",
)  # fmt: skip


def _read(options: Mapping[str, Any]) -> GenerationConfig:
    return read_config(options, [name for name in inspect.signature(generate).parameters if name != "options"])


@struct.dataclass
class Start:
    """What generation begins with, padded to buckets. Positions are those of the buffer of P + room tokens."""

    encoder: dict[str, Array]
    """The encoder's inputs; empty without one."""
    ids: Int[Array, "B P"]
    """The decoder's prompt."""
    mask: Int[Array, "B P"]
    begin: Int[Array, ""]
    prompt_end: Int[Array, ""]
    limit: Int[Array, ""]
    min_length: Int[Array, ""]
    source_end: Int[Array, ""]
    reread_at: Int[Array, ""] | None
    """Where sequences that end there are read anew; None where they do not come so far."""
    room: int = struct.field(pytree_node=False)
    """Places for new tokens."""
    sides: int = struct.field(pytree_node=False, default=1)
    """2 with guidance: below the rows of the encoder, and of the cache, stand as many to be led away from."""

    def history(self, tokens: Int[Array, "R T"], end: Int[Array, ""]) -> History:
        """What logits depend on beside the model."""
        copies = len(tokens) // len(self.ids)
        source = self.encoder.get("input_ids")
        source = None if source is None else source[: len(self.ids)]
        return History(
            tokens=tokens,
            begin=self.begin,
            prompt_end=self.prompt_end,
            end=end,
            limit=self.limit,
            min_length=self.min_length,
            first=jnp.repeat(self.mask.argmax(-1), copies),
            source=None if source is None else jnp.repeat(source, copies, axis=0),
            source_end=self.source_end,
        )

    def tokens(self, copies: int, fill: int) -> Int[Array, "R T"]:
        """The buffer: each prompt `copies` times, and `fill` where new tokens go."""
        room = jnp.full((len(self.ids), self.room), fill, jnp.int32)
        return jnp.repeat(jnp.concatenate([self.ids, room], 1), copies, axis=0)


def _prepare(
    inputs: Mapping[str, Any], config: GenerationConfig, max_positions: int | None, reread_past: int | None
) -> tuple[Start, GenerationConfig]:
    """Check and pad the inputs. The configuration that is compiled on has no lengths, so that these may vary."""
    inputs = {name: np.asarray(value) for name, value in inputs.items() if value is not None}
    encoder, source_end, begin = {}, 0, 0
    if config.decoder_start_token_id is None:
        for name in inputs:
            if name not in ("input_ids", "attention_mask"):
                raise ValueError(f"{name} was given; a model without an encoder continues input_ids")
        ids, mask = _check_prompt(inputs, "", config)
        begin = -ids.shape[1] % BUCKET
    else:
        # The decoder's prompt is no more than a few tokens: a bucket would be nothing but padding.
        encoder, source_end = _encoder_inputs(inputs)
        ids, mask = _decoder_prompt(inputs, len(next(iter(encoder.values()))), config)
    sides = 1 if config.guidance_scale == 1 else 2
    if sides == 1 and "negative_prompt_ids" in inputs:
        raise ValueError("negative_prompt_ids are given and guidance_scale is 1, which leads nowhere; give another")
    if sides == 2:
        encoder = _with_negative(inputs, encoder, config)
    length = ids.shape[1]
    limit = _limit(length, int(length - mask.sum(-1).max()), config, max_positions)
    shortest = config.min_length if config.min_new_tokens is None else length + config.min_new_tokens
    reread_at = None
    if reread_past is not None and length <= reread_past < limit - 1:
        reread_at = jnp.int32(begin + reread_past + 1)
    pad = ((0, 0), (begin, 0))
    start = Start(
        encoder={name: jnp.asarray(value) for name, value in encoder.items()},
        ids=jnp.asarray(np.pad(ids, pad, constant_values=config.padding)),
        mask=jnp.asarray(np.pad(mask, pad)),
        begin=jnp.int32(begin),
        prompt_end=jnp.int32(begin + length),
        limit=jnp.int32(begin + limit),
        min_length=jnp.int32(shortest),
        source_end=jnp.int32(source_end),
        reread_at=reread_at,
        room=limit - length + -(limit - length) % BUCKET,
        sides=sides,
    )
    return start, dataclasses.replace(config, max_length=None, max_new_tokens=None, min_length=0, min_new_tokens=None)


def _limit(length: int, padding: int, config: GenerationConfig, max_positions: int | None) -> int:
    """Tokens of the longest sequences, after a prompt of `length` whose longest row has `padding` before it."""
    # The last token is written and never read, so it needs no position.
    most = None if max_positions is None else max_positions + padding + 1
    if config.max_new_tokens is not None:
        limit = length + config.max_new_tokens
    elif config.max_length is not None:
        limit = config.max_length
    else:
        limit = length + DEFAULT_NEW_TOKENS
        limit = limit if max_positions is None else min(limit, max_positions)
    if limit <= length:
        raise ValueError(f"max_length is {limit} and the prompt has {length} tokens; give more, or max_new_tokens")
    if most is not None and limit > most:
        raise ValueError(f"{limit} tokens are asked for, prompt included, and this model has {max_positions} positions")
    return limit


def _check_prompt(inputs: Mapping[str, np.ndarray], prefix: str, config: GenerationConfig):
    """Ids and mask of a decoder's prompt, padded on the left if at all."""
    if f"{prefix}input_ids" not in inputs:
        raise ValueError("input_ids is missing; give the prompts [batch, length]")
    ids = inputs[f"{prefix}input_ids"].astype(np.int32)
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"{prefix}input_ids have shape {ids.shape}; give [batch, length] with at least one token")
    if f"{prefix}attention_mask" in inputs:
        mask = inputs[f"{prefix}attention_mask"].astype(np.int32)
    elif not prefix and config.pad_token_id is not None and config.pad_token_id not in config.eos_token_id:
        mask = (ids != config.pad_token_id).astype(np.int32)
    else:
        mask = np.ones_like(ids)
    _check_mask(ids, mask, prefix)
    if not mask[:, -1].all():
        raise ValueError("prompts are padded on the right; pad them on the left, so that they end together")
    return ids, mask


def _check_mask(ids: np.ndarray, mask: np.ndarray, prefix: str = "") -> None:
    if mask.shape != ids.shape:
        raise ValueError(f"{prefix}attention_mask has shape {mask.shape}; give that of {prefix}input_ids, {ids.shape}")
    if not mask.any(-1).all():
        raise ValueError(
            f"row {int(np.argmin(mask.any(-1)))} of {prefix}attention_mask is all padding; give it a token"
        )


def _encoder_inputs(inputs: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """What the encoder reads, ids padded on the right to a bucket, and how many ids there were."""
    encoder = {name: value for name, value in inputs.items() if not name.startswith(("decoder_", "negative_"))}
    if "input_ids" not in encoder:
        if not encoder:
            raise ValueError("the encoder's input is missing; give input_ids, pixel_values or input_features")
        return encoder, 0
    ids = encoder["input_ids"].astype(np.int32)
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"input_ids have shape {ids.shape}; give [batch, length] with at least one token")
    encoder["attention_mask"] = encoder.get("attention_mask", np.ones_like(ids)).astype(np.int32)
    _check_mask(ids, encoder["attention_mask"])
    room = ((0, 0), (0, -ids.shape[1] % BUCKET))
    return {name: np.pad(value, room) for name, value in (encoder | {"input_ids": ids}).items()}, ids.shape[1]


def _with_negative(
    inputs: Mapping[str, np.ndarray], encoder: Mapping[str, np.ndarray], config: GenerationConfig
) -> dict[str, np.ndarray]:
    """The encoder's ids and mask, and below them those to be led away from."""
    if set(encoder) != {"input_ids", "attention_mask"} or "negative_prompt_ids" not in inputs:
        raise ValueError(
            f"guidance_scale is {config.guidance_scale}, which needs negative_prompt_ids and an encoder that reads "
            "input_ids; give both, or guidance_scale=1"
        )
    names = {"input_ids": "negative_prompt_ids", "attention_mask": "negative_prompt_attention_mask"}
    away, _ = _encoder_inputs({name: inputs[given] for name, given in names.items() if given in inputs})
    rows, length = encoder["input_ids"].shape
    if len(away["input_ids"]) not in (1, rows):
        raise ValueError(
            f"negative_prompt_ids have {len(away['input_ids'])} rows and input_ids {rows}; give 1 or {rows}"
        )
    both = {}
    for name, value in encoder.items():
        width = max(length, away[name].shape[1])
        below = np.broadcast_to(away[name], (rows, away[name].shape[1]))
        both[name] = np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (value, below)])
    return both


def _decoder_prompt(inputs: Mapping[str, np.ndarray], batch: int, config: GenerationConfig):
    """The start token, `forced_decoder_ids`, and what the caller gave."""
    start = np.full((batch, 1), config.decoder_start_token_id, np.int32)
    if "decoder_input_ids" not in inputs:
        forced = [token for _, token in sorted(config.forced_decoder_ids)]
        if [place for place, _ in sorted(config.forced_decoder_ids)] != list(range(1, len(forced) + 1)):
            raise ValueError(
                f"forced_decoder_ids is {config.forced_decoder_ids}; give a token for each place from 1 on"
            )
        ids = np.concatenate([start, np.broadcast_to(np.array(forced, np.int32), (batch, len(forced)))], 1)
        return ids, np.ones_like(ids)
    ids, mask = _check_prompt(inputs, "decoder_", config)
    if len(ids) != batch:
        raise ValueError(f"decoder_input_ids have {len(ids)} rows and the encoder's input {batch}; give as many")
    if (ids[:, 0] != start[:, 0]).all():
        ids, mask = np.concatenate([start, ids], 1), np.concatenate([np.ones_like(start), mask], 1)
    return ids, mask


def _read_prompt(apply, params, start: Start, copies: int, guidance: float) -> tuple[Float[Array, "R V"], Any]:
    """Logits of the first new token and a cache, `copies` rows for each prompt."""
    memory: dict[str, Any] = {}
    if start.encoder:
        encoded = apply(params, **start.encoder, layers="scanned", method="encode")
        memory["encoder_hidden_states"] = encoded.last_hidden_state
        memory["encoder_attention_mask"] = start.encoder.get("attention_mask")
        if encoded.decoder_states is not None:
            memory["decoder_states"] = encoded.decoder_states
    prompts = {"input_ids": start.ids, "attention_mask": start.mask}
    prompts = {name: jnp.tile(value, (start.sides, 1)) for name, value in prompts.items()} | memory
    logits, cache = apply(params, **prompts, capacity=start.ids.shape[1] + start.room, method="prefill")
    if copies > 1:
        rows = jnp.repeat(jnp.arange(len(logits)), copies)
        logits, cache = logits[rows], cache.select(rows)
    return guide(logits, guidance), cache


def _continue(
    apply, params, looped, start: Start, tokens: Int[Array, "R T"], end: Int[Array, ""], cache: Any, guidance: float
):
    """Logits of the token at `end`, and the cache with the one before it; `looped` are the parameters for steps."""

    def step(tokens, cache):
        token = lax.dynamic_index_in_dim(tokens, end - 1, 1, keepdims=False)
        logits, cache = apply(looped, token=jnp.tile(token, start.sides), cache=cache, method="step")
        return guide(logits, guidance), cache

    def reread(tokens, cache):
        mask = jnp.pad(start.mask, ((0, 0), (0, start.room)), constant_values=1)
        mask = jnp.repeat(mask, len(tokens) // len(mask), axis=0)
        prompts = {"input_ids": tokens, "attention_mask": mask, "length": end}
        return apply(params, **prompts, capacity=tokens.shape[1], method="prefill")

    if start.reread_at is None:
        return step(tokens, cache)
    return lax.cond(end == start.reread_at, reread, step, tokens, cache)


@struct.dataclass
class Written:
    """The state of the loop without beams."""

    tokens: Int[Array, "R T"]
    end: Int[Array, ""]
    """Where the next token goes."""
    token: Int[Array, " R"]
    """The newest."""
    ended: Array
    lengths: Int[Array, " R"]
    goes_on: Array
    cache: Any


def _write(start: Start, logits, state: Written, rng, config: GenerationConfig) -> Written:
    """Choose a token of each row and put it down."""
    scores = process(logits.astype(jnp.float32), start.history(state.tokens, state.end), config)
    token = choose(scores, jax.random.fold_in(rng, state.end - start.prompt_end), config)
    token = jnp.where(state.ended, config.padding, token).astype(jnp.int32)
    ended = state.ended | jnp.isin(token, np.array(config.eos_token_id, np.int32))
    end = state.end + 1
    return state.replace(
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.end, 1),
        end=end,
        token=token,
        lengths=state.lengths + (~state.ended).astype(jnp.int32),
        ended=ended,
        goes_on=(end < start.limit) & ~ended.all(),
    )


def _first(apply, params, start: Start, rng, config: GenerationConfig) -> Written:
    copies = config.num_return_sequences
    logits, cache = _read_prompt(apply, params, start, copies, config.guidance_scale)
    tokens = start.tokens(copies, config.padding)
    rows = len(tokens)
    state = Written(
        tokens=tokens,
        end=start.prompt_end,
        token=jnp.zeros(rows, jnp.int32),
        ended=jnp.zeros(rows, bool),
        lengths=jnp.zeros(rows, jnp.int32),
        goes_on=jnp.bool(True),
        cache=cache,
    )
    return _write(start, logits, state, rng, config)


def _step(apply, params, looped, start: Start, state: Written, rng, config: GenerationConfig) -> Written:
    logits, cache = _continue(apply, params, looped, start, state.tokens, state.end, state.cache, config.guidance_scale)
    return _write(start, logits, state.replace(cache=cache), rng, config)


_begin = jax.jit(_first, static_argnums=(0, 4))
_next = jax.jit(_step, static_argnums=(0, 6), donate_argnums=(4,))


@functools.partial(jax.jit, static_argnums=(0, 5))
def _generate(apply, params, looped, start: Start, rng, config: GenerationConfig):
    """Tokens, lengths, no scores, and where the longest row ends; `looped` are the parameters for steps."""
    state = lax.while_loop(
        lambda state: state.goes_on,
        lambda state: _step(apply, params, looped, start, state, rng, config),
        _first(apply, params, start, rng, config),
    )
    return state.tokens, state.lengths, None, start.prompt_end + state.lengths.max()


@functools.partial(jax.jit, static_argnums=(0, 5))
def _search(apply, params, looped, start: Start, rng, config: GenerationConfig):
    """The same by beams, with their scores."""
    num_beams = config.num_beams
    logits, cache = _read_prompt(apply, params, start, num_beams, config.guidance_scale)
    # The reference fills with the end token where the padding's id is 0 or absent.
    fill = config.pad_token_id or (*config.eos_token_id, 0)[0]

    def extend(logits, beams: Beams, end):
        count = end - start.prompt_end
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_probs = process(log_probs, start.history(beams.flat, end), config)
        rngs, limit = jax.random.fold_in(rng, count), start.limit - start.prompt_end
        return advance_beams(beams, log_probs, config, end=end, count=count, limit=limit, rng=rngs)

    def advance(state):
        beams, end, cache = state
        rows = jnp.concatenate([beams.rows + side * len(beams.rows) for side in range(start.sides)])
        cache = cache.select(rows)
        logits, cache = _continue(apply, params, looped, start, beams.flat, end, cache, config.guidance_scale)
        return extend(logits, beams, end), end + 1, cache

    beams = extend(logits, Beams.start(start.tokens(num_beams, fill), num_beams), start.prompt_end)
    state = (beams, start.prompt_end + 1, cache)
    beams, _, _ = lax.while_loop(lambda state: state[0].goes_on, advance, state)
    best = lambda leaf: leaf[:, : config.num_return_sequences].reshape(-1, *leaf.shape[2:])  # noqa: E731
    lengths = best(beams.finished_lengths)
    return best(beams.finished), lengths, best(beams.finished_scores), start.prompt_end + lengths.max()
