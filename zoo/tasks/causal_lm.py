"""Next-token prediction over packed documents (GPT): the loss, and held-out bits per byte."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from zoo.data import (
    DataConfig,
    Dataset,
    TextTokenizer,
    ngram_bits_per_byte,
    packed_batches,
    read_texts,
    scored_windows,
    xz_bits_per_byte,
)
from zoo.tasks.losses import language_loss, score_split
from zoo.tasks.report import Figure, Question, loss_figures, write

_PROMPT = 'class Shelf:\n    """A shelf of books."""\n\n    def __init__(self'
_FREE = {"max_new_tokens": 200, "do_sample": True, "temperature": 0.7, "top_k": None, "top_p": 0.95}
"""How a text goes on where nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class CausalLMConfig:
    """Predict each token from those before it in its document."""

    sequence_length: int = 256
    """Tokens a row, T."""
    batch_size: int = 32
    """Rows a step over all devices, B."""
    stride: int = 128
    """Held-out windows advance by this many tokens, so that each scored token has at least
    sequence_length - stride tokens of context, where its document has them."""

    head: ClassVar[str] = "causal_lm"

    def __post_init__(self):
        if not 0 < self.stride <= self.sequence_length:
            raise ValueError(f"stride is {self.stride}; give 1 to sequence_length ({self.sequence_length})")

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return (data.text_key,)

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs."""
        return {"embedding": self.sequence_length}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer, *, seed: int, data: DataConfig) -> "CausalLM":
        """The task on a dataset."""
        return CausalLM(self, dataset, tokenizer, seed, data.text_key)


@dataclass(frozen=True, eq=False)
class CausalLM:
    """`CausalLMConfig` on a dataset: a `Task` as training sees it."""

    config: CausalLMConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int
    text_key: str

    option: ClassVar[str] = "prompt"
    example: ClassVar[str] = "def "

    def batches(self, split: str):
        """Packed rows, endless and shuffled, for "train"; otherwise windows that score every token once."""
        options = dict(sequence_length=self.config.sequence_length, batch_size=self.config.batch_size,
                       text_key=self.text_key)  # fmt: skip
        source = self.dataset.split(split)
        if split == "train":
            return packed_batches(source, self.tokenizer, seed=self.seed, **options)
        return scored_windows(source, self.tokenizer, stride=self.config.stride, **options)

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per token; a row's segments do not see each other."""
        tokens, segments = batch["tokens"], batch["segment_ids"]
        output = apply(
            params,
            input_ids=tokens[:, :-1],
            segment_ids=segments[:, :-1],
            position_ids=batch["positions"][:, :-1],
            dropout_rng=rng,
        )
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        weights = same.astype(jnp.float32) * batch.get("weights", 1.0)
        loss, metrics = language_loss(apply, params, output, tokens[:, 1:], weights)
        return loss + output.aux_loss, metrics

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per token), perplexity, and bits per byte of the documents' text."""
        source = self.dataset.split("validation")
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        num_bytes = sum(len(source[i][self.text_key].encode()) for i in range(len(source)))
        nats = scored["loss"] * scored["weight"]
        return {
            "loss": scored["loss"],
            "perplexity": math.exp(min(scored["loss"], 700.0)),
            "accuracy": scored["accuracy"],
            "bits_per_byte": nats / math.log(2) / num_bytes,
            "tokens": scored["weight"],
            "bytes": float(num_bytes),
        }

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss, perplexity, accuracy and bits per byte."""
        yield from loss_figures(results)
        note = f"on {results['bytes']:,.0f} bytes of text"
        yield Figure(name="bits per byte", value=f"{results['bits_per_byte']:.4f}", note=note)

    def baselines(self) -> Iterator[Figure]:
        """A byte model that counts, and a compressor."""
        train, heldout = (read_texts(self.dataset.split(split), self.text_key) for split in ("train", "validation"))
        note = "bits per byte: interpolated Kneser-Ney, same training split"
        yield Figure(name="5-gram", value=f"{ngram_bits_per_byte(train, heldout):.4f}", note=note)
        note = "bits per byte: of the held-out text alone, for scale"
        yield Figure(name="xz -9", value=f"{xz_bits_per_byte(heldout):.4f}", note=note)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """How the model goes on from the beginning of a class."""
        yield _PROMPT, "".join(self.respond(apply, params, Question(prompt=_PROMPT)))

    def respond(self, apply, params, question: Question) -> Iterator[str]:
        """The prompt and its continuation, up to the end of a document."""
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(question.prompt)]
        ends = {"eos_token_id": self.tokenizer.eos_id, "pad_token_id": self.tokenizer.pad_id}
        options = _FREE | dict(question.options) | ends | {"seed": question.seed}
        return write(apply, params, self.tokenizer.decode, ids, input_ids=np.array([ids], np.int32), **options)
