"""Skip-gram with negative sampling (Mikolov et al. 2013, "Distributed Representations of Words and Phrases"), in JAX.

Each word predicts the words near it: log sigmoid(u_context · v_centre) + k E[log sigmoid(-u_negative · v_centre)] is
raised, over centres thinned by frequency, contexts within a window of random size, and negatives drawn by
frequency ** 0.75. The original updates after each pair; here a step takes a batch of pairs, which share one sample of
negatives (Ji et al. 2016): that leaves the expected loss as it is and turns most of the work into two matrix products.
Adam takes the place of plain gradient descent. Left out: hierarchical softmax, phrases, CBOW.
"""

import collections
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from zoo.static.vectors import WordVectors, split_words

_SHARED_NEGATIVES = 256
"""Negatives a step."""


@dataclass(frozen=True, kw_only=True)
class SkipGramConfig:
    """How vectors are trained."""

    dimensions: int = 100
    """Numbers a word, D."""
    window: int = 5
    """Words to either side that a centre predicts, at the most; each centre draws its own reach from 1 to this."""
    negatives: int = 5
    """Random words that weigh against each true context, k."""
    min_count: int = 5
    """Words that occur less often are left out, and their neighbours move together."""
    subsample: float = 1e-3
    """t of the paper: a word of frequency f stays with probability sqrt(t / f) + t / f. 1 keeps all."""
    epochs: int = 5
    """Passes over the text."""
    batch_size: int = 4096
    """Pairs a step, B."""
    learning_rate: float = 0.005
    """Of Adam at the first step; it falls to nothing in a straight line."""
    seed: int = 0

    def __post_init__(self):
        for name in ("dimensions", "window", "negatives", "min_count", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 < self.subsample <= 1:
            raise ValueError(f"subsample is {self.subsample}; give a share above 0, or 1 to keep all words")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What training reports after each epoch."""

    epoch: int
    loss: float
    """Mean over the epoch's pairs, in nats; with zero vectors it is (1 + negatives) log 2."""
    num_pairs: int


def train_skipgram(
    texts: Iterable[str], config: SkipGramConfig, report: Callable[[Progress], Any] = lambda progress: None
) -> WordVectors:
    """Vectors of the words of `texts`, the most frequent word first. The same seed gives the same vectors.

    Args:
        texts: documents; no window reaches from one into the next.
        config: how.
        report: called after each epoch.

    Raises:
        ValueError: no two neighbouring words occur `config.min_count` times.
    """
    corpus = read_corpus(texts, config.min_count)
    draw, rng = np.random.default_rng(config.seed), jax.random.key(config.seed)
    shape = (len(corpus.words), config.dimensions)
    centre = (jax.random.uniform(jax.random.fold_in(rng, 0), shape) - 0.5) / config.dimensions
    params = Tables(centre=centre, context=jnp.zeros(shape))
    state, taken = _ADAM.init(params), 0
    cumulative = jnp.asarray(np.cumsum(corpus.counts**0.75) / (corpus.counts**0.75).sum(), jnp.float32)
    for epoch in range(config.epochs):
        pairs = draw_pairs(corpus, config, draw)
        size = min(config.batch_size, len(pairs))
        losses = []
        for start in range(0, len(pairs) - size + 1, size):
            taken += 1
            rate = config.learning_rate * (1 - (epoch + start / len(pairs)) / config.epochs)
            params, state, value = _step(
                params,
                state,
                pairs[start : start + size],
                cumulative,
                jax.random.fold_in(rng, taken),
                rate,
                config.negatives,
            )
            losses.append(value)
        report(Progress(epoch=epoch + 1, loss=float(jnp.stack(losses).mean()), num_pairs=len(losses) * size))
    return WordVectors(words=corpus.words, matrix=np.asarray(params.centre))


@dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Texts as numbers of words, rare words left out."""

    words: tuple[str, ...]
    """The most frequent first."""
    counts: Int[np.ndarray, " V"]
    ids: Int[np.ndarray, " tokens"]
    """All texts, one after the other."""
    texts: Int[np.ndarray, " tokens"]
    """Which text each token is from."""


def read_corpus(texts: Iterable[str], min_count: int) -> Corpus:
    """Split texts into words, and number those that occur `min_count` times. ValueError where none are neighbours."""
    split = [split_words(text) for text in texts]
    counts = collections.Counter(word for words in split for word in words)
    # Words of equal frequency stand in the order of the alphabet, so that the order of texts changes no number.
    kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    index = {word: row for row, word in enumerate(kept)}
    numbered = [[index[word] for word in words if word in index] for words in split]
    if not any(len(words) > 1 for words in numbered):
        raise ValueError(
            f"no two neighbouring words occur {min_count} times in these {len(split)} texts; "
            "give more text or a smaller min_count"
        )
    return Corpus(
        words=tuple(kept),
        counts=np.array([counts[word] for word in kept], np.int64),
        ids=np.concatenate([np.array(words, np.int32) for words in numbered]),
        texts=np.repeat(np.arange(len(numbered), dtype=np.int32), [len(words) for words in numbered]),
    )


def draw_pairs(corpus: Corpus, config: SkipGramConfig, draw: np.random.Generator) -> Int[np.ndarray, "P 2"]:
    """One epoch's pairs of centre and context, shuffled.

    Frequent words are dropped before windows are laid, so that windows reach further where they were.
    """
    frequency = corpus.counts / corpus.counts.sum()
    kept = np.sqrt(config.subsample / frequency) + config.subsample / frequency
    stays = draw.random(len(corpus.ids)) < kept[corpus.ids]
    ids, texts = corpus.ids[stays], corpus.texts[stays]
    reach = draw.integers(1, config.window, len(ids), endpoint=True)
    pairs = []
    for distance in range(1, min(config.window, len(ids) - 1) + 1):
        left, right = slice(None, -distance), slice(distance, None)
        together = texts[left] == texts[right]
        for centre, context in ((left, right), (right, left)):
            chosen = together & (reach[centre] >= distance)
            pairs.append(np.stack([ids[centre][chosen], ids[context][chosen]], -1))
    found = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int32)
    if not len(found):
        raise ValueError(f"subsample={config.subsample} leaves no two words side by side in this text; give 1")
    return found[draw.permutation(len(found))]


@struct.dataclass
class Tables:
    """What is learned: a vector for each word as a centre, which is kept, and one as a context."""

    centre: Float[Array, "V D"]
    context: Float[Array, "V D"]


def loss(
    params: Tables, pairs: Int[Array, "B 2"], negatives: Int[Array, " M"], weight: float | Float[Array, ""]
) -> Float[Array, ""]:
    """Mean over pairs of -log sigmoid(u_context · v) - weight * (mean over negatives of log sigmoid(-u_negative · v)).

    A negative that is the pair's own context counts for nothing, as in word2vec.
    """
    centre, context, noise = params.centre[pairs[:, 0]], params.context[pairs[:, 1]], params.context[negatives]
    near = jax.nn.softplus(-(centre * context).sum(-1))
    counted = (negatives[None] != pairs[:, 1:]).astype(jnp.float32)
    far = jax.nn.softplus(centre @ noise.T) * counted
    return (near + weight * far.mean(-1)).mean()


def draw_negatives(cumulative: Float[Array, " V"], rng: Array, count: int) -> Int[Array, " M"]:
    """Words drawn with the probabilities whose running sums are given."""
    drawn = jnp.searchsorted(cumulative, jax.random.uniform(rng, (count,)))
    return jnp.minimum(drawn, len(cumulative) - 1)  # rounding may leave the last sum below 1


_ADAM = optax.scale_by_adam()


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _step(
    params: Tables, state: Any, pairs: Int[Array, "B 2"], cumulative: Float[Array, " V"], rng: Array, rate, weight
):
    """One step of Adam: new parameters, new state, loss."""
    negatives = draw_negatives(cumulative, rng, _SHARED_NEGATIVES)
    value, gradient = jax.value_and_grad(loss)(params, pairs, negatives, weight)
    with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to an int32 count
        updates, state = _ADAM.update(gradient, state)
    return jax.tree.map(lambda old, update: old - rate * update, params, updates), state, value
