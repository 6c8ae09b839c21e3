"""What happens to logits before a token is chosen: pure functions of the logits and of what was written before them.

`process` applies them in the reference's order. Each is the reference's in value: see `zoo.generation_config` for
what they are for and where they are from.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from zoo.generation_config import GenerationConfig

Scores = Float[Array, "R V"]


@struct.dataclass
class History:
    """The sequences so far, and how long they may become. Positions are those of `tokens`."""

    tokens: Int[Array, "R T"]
    begin: Int[Array, ""]
    """Where the prompts begin; what lies before fills a bucket. Padding of a caller's own counts as tokens."""
    prompt_end: Int[Array, ""]
    end: Int[Array, ""]
    """Where the next token goes."""
    limit: Int[Array, ""]
    """Where the longest sequences end."""
    min_length: Int[Array, ""]
    """Tokens before which no sequence ends, counted from `begin`."""
    first: Int[Array, " R"]
    """Where each row's first token is that is not padding."""
    source: Int[Array, "R S"] | None = None
    """What the encoder read, where it reads ids."""
    source_end: Int[Array, ""] | int = 0
    """What lies after this fills a bucket."""

    def last(self, count: int) -> Int[Array, "R count"]:
        """The newest tokens."""
        return lax.dynamic_slice_in_dim(self.tokens, self.end - count, count, 1)


def process(scores: Scores, history: History, config: GenerationConfig) -> Scores:
    """Everything that `config` asks for, in the reference's order."""
    eos, length = _ids(config.eos_token_id, scores), history.end - history.begin
    if config.sequence_bias:
        scores = bias_sequences(scores, history, config.sequence_bias)
    if config.repetition_penalty != 1:
        scores = penalise_repetition(scores, history, config.repetition_penalty)
    if config.no_repeat_ngram_size:
        places = jnp.arange(history.tokens.shape[1])
        written = (places >= history.begin) & (places < history.end)
        scores = ban_ngrams(scores, history, config.no_repeat_ngram_size, history.tokens, written)
    if config.encoder_no_repeat_ngram_size and history.source is not None:
        read = jnp.arange(history.source.shape[1]) < history.source_end
        scores = ban_ngrams(scores, history, config.encoder_no_repeat_ngram_size, history.source, read)
    if config.bad_words_ids:
        words = [word for word in config.bad_words_ids if word not in [(end,) for end in config.eos_token_id]]
        scores = bias_sequences(scores, history, [(word, -np.inf) for word in words])
    if eos.size:
        scores = jnp.where(length < history.min_length, scores.at[:, eos].set(-jnp.inf), scores)
    if config.forced_bos_token_id is not None:
        scores = jnp.where(length == 1, force(scores, (config.forced_bos_token_id,)), scores)
    if config.forced_eos_token_id:
        scores = jnp.where(history.end == history.limit - 1, force(scores, config.forced_eos_token_id), scores)
    if config.remove_invalid_values:
        scores = jnp.nan_to_num(scores)
    if config.exponential_decay_length_penalty is not None:
        scores = hasten_end(scores, history, eos, *config.exponential_decay_length_penalty)
    if config.suppress_tokens:
        scores = scores.at[:, _ids(config.suppress_tokens, scores)].set(-jnp.inf)
    if config.begin_suppress_tokens:
        suppressed = scores.at[:, _ids(config.begin_suppress_tokens, scores)].set(-jnp.inf)
        forced = (history.prompt_end - history.begin == 1) & (config.forced_bos_token_id is not None)
        scores = jnp.where(history.end == history.prompt_end + forced.astype(jnp.int32), suppressed, scores)
    if config.do_sample:
        kept = len(config.eos_token_id) + 1 if config.num_beams > 1 and config.eos_token_id else 1
        kept = max(kept, 2 if config.num_beams > 1 else 1)
        scores = narrow(scores, config.temperature, config.top_k, config.top_p, config.min_p, kept)
    return jax.nn.log_softmax(scores) if config.renormalize_logits else scores


def guide(logits: Float[Array, "n V"], scale: float) -> Scores:
    """Logits u + scale · (c - u) of c and, as many rows below, u (Ho and Salimans 2022, eq. 6, scale 1 + w)."""
    if scale == 1:
        return logits
    led, away = jnp.split(logits.astype(jnp.float32), 2)
    return away + scale * (led - away)


def choose(scores: Scores, rng: Array, config: GenerationConfig) -> Int[Array, " R"]:
    """One token a row: drawn by its probability, or the likeliest."""
    token = jax.random.categorical(rng, scores) if config.do_sample else scores.argmax(-1)
    return token.astype(jnp.int32)


def narrow(
    scores: Scores,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    kept: int = 1,
) -> Scores:
    """Divide by the temperature and rule out all but the likeliest tokens, at least `kept` of them."""
    scores = scores / temperature
    kept = min(kept, scores.shape[-1])
    if top_k and max(top_k, kept) < scores.shape[-1]:
        least = lax.top_k(scores, max(top_k, kept))[0][:, -1:]
        scores = jnp.where(scores < least, -jnp.inf, scores)
    if top_p is not None and top_p < 1:
        order = jnp.argsort(scores, axis=-1)
        ascending = jnp.take_along_axis(scores, order, -1)
        unlikely = jnp.cumsum(jax.nn.softmax(ascending), -1) <= 1 - top_p
        unlikely = unlikely.at[:, -kept:].set(False)
        unlikely = jnp.put_along_axis(jnp.zeros_like(unlikely), order, unlikely, -1, inplace=False)
        scores = jnp.where(unlikely, -jnp.inf, scores)
    if min_p is not None:
        probability = jax.nn.softmax(scores)
        unlikely = probability < min_p * probability.max(-1, keepdims=True)
        likeliest = lax.top_k(probability, kept)[1]
        unlikely = jnp.put_along_axis(unlikely, likeliest, False, -1, inplace=False)
        scores = jnp.where(unlikely, -jnp.inf, scores)
    return scores


def penalise_repetition(scores: Scores, history: History, penalty: float) -> Scores:
    """Make tokens that are there already less likely, or more where the penalty is below one."""
    places = jnp.arange(history.tokens.shape[1])[None]
    there = (places >= history.first[:, None]) & (places < history.end)
    seen = mark(scores, history.tokens, there)
    return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def ban_ngrams(
    scores: Scores, history: History, size: int, text: Int[Array, "R T"], valid: Bool[Array, " T"]
) -> Scores:
    """Rule out tokens that would repeat `size` tokens in a row of `text`, where it is valid."""
    count = text.shape[1] - size + 1
    if count < 1:
        return scores
    windows = [text[:, place : place + count] for place in range(size)]
    whole = valid[:count] & valid[size - 1 :]
    # Before there are enough tokens to repeat, the newest ones reach into what fills the bucket.
    whole &= history.end - history.begin >= size - 1
    newest = history.last(size - 1)
    repeats = jnp.broadcast_to(whole, windows[0].shape)
    for place, window in enumerate(windows[:-1]):
        repeats &= window == newest[:, place : place + 1]
    return jnp.where(mark(scores, windows[-1], repeats), -jnp.inf, scores)


def bias_sequences(scores: Scores, history: History, biases) -> Scores:
    """Add a bias to the last token of each sequence, where the others are the newest tokens."""
    highest = max((max(sequence) for sequence, _ in biases), default=0)
    if highest >= scores.shape[-1]:
        raise ValueError(f"{highest} in bad_words_ids or sequence_bias is no id of {scores.shape[-1]}")
    total = jnp.zeros_like(scores)
    for size in sorted({len(sequence) for sequence, _ in biases}):
        group = [(sequence, bias) for sequence, bias in biases if len(sequence) == size]
        sequences = np.array([sequence for sequence, _ in group], np.int32)
        matches = jnp.broadcast_to(history.end - history.begin >= size - 1, (scores.shape[0], len(group)))
        if size > 1:
            matches &= (history.last(size - 1)[:, None] == sequences[None, :, :-1]).all(-1)
        values = np.array([bias for _, bias in group], np.float32)
        total = total.at[:, sequences[:, -1]].add(jnp.where(matches, values, 0.0))
    return scores + total


def hasten_end(scores: Scores, history: History, eos: np.ndarray, start: int, factor: float) -> Scores:
    """Raise the end token's score exponentially once `start` tokens are written."""
    past = (history.end - history.prompt_end - start).astype(jnp.float32)
    ends = scores[:, eos]
    more = jnp.where(jnp.isfinite(ends), jnp.abs(ends) * (factor**past - 1), 0.0)
    return jnp.where(past > 0, scores.at[:, eos].add(more), scores)


def force(scores: Scores, ids: tuple[int, ...]) -> Scores:
    """Nothing but `ids`."""
    return jnp.full_like(scores, -jnp.inf).at[:, np.array(ids)].set(0.0)


def mark(scores: Scores, ids: Int[Array, "R n"], where: Bool[Array, "R n"]) -> Bool[Array, "R V"]:
    """True at the ids of each row, where these count."""
    vocab_size = scores.shape[-1]
    rows = jnp.arange(ids.shape[0])[:, None]
    marked = jnp.zeros(scores.shape, bool)
    return marked.at[rows, jnp.where(where, ids, vocab_size)].set(True, mode="drop")


def _ids(ids: tuple[int, ...], scores: Scores) -> np.ndarray:
    """Those of `ids` that the vocabulary has: checkpoints name others too."""
    return np.array([token for token in ids if 0 <= token < scores.shape[-1]], np.int32)
