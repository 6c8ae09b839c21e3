"""Vectors of texts whose cosine is their likeness (Sentence-BERT, Reimers & Gurevych 2019), learned from pairs: each
text is to find its partner among those of the whole batch (InfoNCE, van den Oord et al. 2018), and scored by search.
"""

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zoo.data import DataConfig, Dataset, TextTokenizer, read_texts, row_batches
from zoo.data.sources import read_field
from zoo.tasks.losses import score_split
from zoo.tasks.report import Figure, Question
from zoo.tasks.retrieval import RECALL, find_answers, nearest, rank_answers, score_ranks, tfidf

_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class SentenceEmbeddingConfig:
    """Bring the two texts of a pair together, and apart from all others."""

    source_length: int = 32
    """Tokens of a source, special ones included; a longer source loses its end."""
    target_length: int = 32
    """Tokens of a target, special ones included; a longer target loses its end."""
    batch_size: int = 256
    """Pairs a step over all devices, B: each is told from B - 1 others, or from those of its micro-batch where
    training.accumulate is more than 1."""
    temperature: float = 0.05
    """Cosines are divided by it: the lower, the more the nearest of the others count."""
    symmetric: bool = True
    """Find sources by targets as well as targets by sources (CLIP, Radford et al. 2021)."""

    head: ClassVar[str] = "embedding"

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; give a number above 0, such as 0.05")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; a pair is told from others: give at least 2")

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return data.source_key, data.target_key

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs."""
        return {"embedding": max(self.source_length, self.target_length)}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer, *, seed: int, data: DataConfig) -> "SentenceEmbedding":
        """The task on a dataset."""
        return SentenceEmbedding(self, dataset, tokenizer, seed, data.source_key, data.target_key)


@dataclass(frozen=True, eq=False)
class SentenceEmbedding:
    """`SentenceEmbeddingConfig` on a dataset: a `Task` as training sees it."""

    config: SentenceEmbeddingConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int
    source_key: str
    target_key: str

    unit: ClassVar[str] = "pairs"
    option: ClassVar[str] = "prompt"
    extras: ClassVar[tuple[str, ...]] = ("candidates",)
    description: ClassVar[str] = (
        "A model that gives each text a vector; the cosine of two vectors is the likeness of their texts.\n\n"
        "```python\nimport zoo\n\nbundle = zoo.load(\".\")    # with the path of this folder\n"
        'vectors = bundle.embed(["a text", "another"])    # of length one\ncosines = vectors @ vectors.T\n```'
    )  # fmt: skip

    def batches(self, split: str):
        """Pairs, endless and shuffled, for "train"; otherwise one pass."""
        return row_batches(
            self.dataset.split(split),
            self.encode,
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def encode(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A pair as two rows: "source_" and "target_" "input_ids", "attention_mask" and "text", which equal texts
        alone share.
        """
        row: dict[str, np.ndarray] = {}
        for side, key in (("source", self.source_key), ("target", self.target_key)):
            text = read_field(dict(example), key)
            for name, value in self._row(text, getattr(self.config, f"{side}_length")).items():
                row[f"{side}_{name}"] = value
            row[f"{side}_text"] = np.array(zlib.crc32(text.encode()), np.uint32).view(np.int32)
        return row

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats that finding a partner takes among the batch's; accuracy is how often it is the nearest."""
        rngs = (None, None) if rng is None else jax.random.split(rng)
        source, target = (
            _embed(apply, params, batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"], key)
            for side, key in zip(("source", "target"), rngs, strict=True)
        )
        # A TPU would round the factors of a float32 product to bfloat16, and the temperature magnify what is lost.
        scores = jnp.matmul(source, target.T, precision="highest") / self.config.temperature
        scores = jnp.where(_rivals(batch), scores, -jnp.inf)
        own = jnp.diagonal(scores)
        nats = jax.nn.logsumexp(scores, 1) - own
        if self.config.symmetric:
            nats = (nats + jax.nn.logsumexp(scores, 0) - own) / 2
        weights = batch["weights"]
        weight = weights.sum()
        count = jnp.maximum(weight, 1.0)
        accuracy = ((own >= scores.max(1)).astype(jnp.float32) * weights).sum() / count
        return (nats * weights).sum() / count, {"weight": weight, "accuracy": accuracy}

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per pair, among a batch's), and the scores of search: for each held-out source, where
        its target stands among all held-out targets.
        """
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        sources, pool, answers = self._held_out
        asked, known = (
            self.embed(apply, params, texts, length)
            for texts, length in ((sources, self.config.source_length), (pool, self.config.target_length))
        )
        scores = score_ranks(rank_answers(asked, known, answers))
        counts = {"queries": float(len(sources)), "pool": float(len(pool))}
        return {"loss": scored["loss"], "accuracy": 100 * scored["accuracy"], **scores, **counts}

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss, recall and mean reciprocal rank."""
        note = f"nats per pair among {self.config.batch_size}"
        yield Figure(name="loss", value=f"{results['loss']:.4f}", note=note)
        asked = f"{results['queries']:,.0f} held-out sources among {results['pool']:,.0f} held-out targets"
        for count in RECALL:
            note = f"{asked}: the right one is first" if count == 1 else f"it is among the first {count}"
            yield Figure(name=f"recall@{count}", value=f"{results[f'recall_at_{count}']:.2f} %", note=note)
        yield Figure(name="MRR", value=f"{results['mrr']:.2f}", note="mean of 1 / rank, times 100")

    def baselines(self) -> Iterator[Figure]:
        """The same search by what texts share."""
        sources, pool, answers = self._held_out
        for share in ("words", "letters"):
            scores = score_ranks(rank_answers(*tfidf(sources, pool, share), answers))
            note = f"by TF-IDF of {share}, scikit-learn; recall@10 {scores['recall_at_10']:.2f} %"
            yield Figure(name=f"recall@1: {share}", value=f"{scores['recall_at_1']:.2f} %", note=note)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out sources from all over the split, and the nearest of the held-out targets."""
        sources, pool, _ = self._held_out
        chosen = [sources[place] for place in np.linspace(0, len(sources) - 1, _SHOWN).astype(int)]
        known = self.embed(apply, params, pool, self.config.target_length)
        for source, vector in zip(chosen, self.embed(apply, params, chosen, self.config.source_length), strict=True):
            ((place, cosine),) = nearest(vector, known, 1)
            yield source, f"{pool[place]}  (cosine {cosine:.3f})"

    @property
    def example(self) -> str:
        """A held-out source."""
        return self._held_out[0][0]

    def respond(self, apply, params, question: Question) -> str:
        """The texts nearest to the prompt with their cosines: of the candidates, or else of all held-out targets."""
        pool = question.candidates or self._held_out[1]
        (asked,) = self.embed(apply, params, [question.prompt], self.config.source_length)
        known = self.embed(apply, params, pool, self.config.target_length)
        return "\n".join(f"{cosine:7.4f}  {pool[place]}" for place, cosine in nearest(asked, known))

    def embed(self, apply, params, texts: Sequence[str], length: int) -> Float[np.ndarray, "n D"]:
        """Vectors of length one of texts, each cut to `length` tokens."""
        size = min(self.config.batch_size, len(texts))
        parts = []
        for start in range(0, len(texts), size):
            rows = [self._row(text, length) for text in texts[start : start + size]]
            # One shape is compiled once: what is missing in the last batch is filled up.
            rows += [rows[0]] * (size - len(rows))
            columns = (np.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask"))
            parts.append(_embed_rows(apply, params, *columns))
        return np.concatenate([np.asarray(part) for part in parts])[: len(texts)]

    @functools.cached_property
    def _held_out(self) -> tuple[list[str], list[str], list[list[int]]]:
        """Sources, the texts they are to be found in, and which of those are right."""
        split = self.dataset.split("validation")
        sources, targets = read_texts(split, self.source_key), read_texts(split, self.target_key)
        return sources, *find_answers(sources, targets)

    def _row(self, text: str, length: int) -> dict[str, np.ndarray]:
        row = self.tokenizer.encode_row([text], length)
        return {name: row[name] for name in ("input_ids", "attention_mask")}


def _embed(apply, params, input_ids, attention_mask, rng=None) -> Float[Array, "B D"]:
    """What an embedding head gives, of length one also where the head leaves that out."""
    vectors = apply(params, input_ids=input_ids, attention_mask=attention_mask, dropout_rng=rng).pooler_output
    if vectors is None:
        raise ValueError("this model gives no vector of a text; give it an EmbeddingHead as model.head")
    return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-24))


_embed_rows = jax.jit(_embed, static_argnums=0)


def _rivals(batch: Mapping[str, Any]) -> Bool[Array, "B B"]:
    """Which targets, by column, each source is scored against: its own, and those of the pairs that share no text with
    it, neither side with neither, for those are no wrong answers. Blank rows are nobody's.
    """
    source, target, real = batch["source_text"], batch["target_text"], batch["weights"] > 0
    shared = [a[:, None] == b[None] for a in (source, target) for b in (source, target)]
    rivals = ~functools.reduce(jnp.logical_or, shared) & real[:, None] & real[None]
    return rivals | jnp.eye(len(source), dtype=bool)
