"""Masked-token prediction (BERT, Devlin et al. 2019): hide 15 % of the tokens, predict them from both sides."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from zoo.data import (
    DataConfig,
    Dataset,
    TextTokenizer,
    packed_batches,
    read_texts,
    scored_windows,
    unigram_cross_entropy,
)
from zoo.generation_config import read_config
from zoo.logits import choose, narrow
from zoo.tasks.losses import language_loss, score_split
from zoo.tasks.report import Figure, Question, loss_figures

MASK = "<mask>"
"""What a prompt writes where a token is hidden."""

_PROMPT = "import os\n\ndef read(path):\n    <mask> open(path) as file:\n        return file.read<mask>\n"

EVALUATION_SEED = 1
"""The held-out tokens that are hidden are the same in every evaluation."""


@dataclass(frozen=True, kw_only=True)
class MaskedLMConfig:
    """Predict hidden tokens from all others in their document."""

    sequence_length: int = 128
    """Tokens a row, T."""
    batch_size: int = 32
    """Rows a step over all devices, B."""
    mask_rate: float = 0.15
    """Share of tokens to predict; of these 80 % become the mask token, 10 % a random one, 10 % stay."""

    head: ClassVar[str] = "masked_lm"

    def __post_init__(self):
        if not 0 < self.mask_rate < 1:
            raise ValueError(f"mask_rate is {self.mask_rate}; give a share between 0 and 1, 0.15 in BERT")

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return (data.text_key,)

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs."""
        return {"embedding": self.sequence_length}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer, *, seed: int, data: DataConfig) -> "MaskedLM":
        """The task on a dataset."""
        return MaskedLM(self, dataset, tokenizer, seed, data.text_key)


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """`MaskedLMConfig` on a dataset: a `Task` as training sees it."""

    config: MaskedLMConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int
    text_key: str

    option: ClassVar[str] = "prompt"
    example: ClassVar[str] = f"import {MASK}"

    def batches(self, split: str):
        """Packed rows, endless and shuffled, for "train"; otherwise each held-out token once."""
        length = self.config.sequence_length - 1  # rows carry one token more than they have targets
        options = dict(sequence_length=length, batch_size=self.config.batch_size, text_key=self.text_key)
        source = self.dataset.split(split)
        if split == "train":
            return packed_batches(source, self.tokenizer, seed=self.seed, **options)
        return scored_windows(source, self.tokenizer, stride=length, **options)

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per hidden token."""
        tokens, segments = batch["tokens"], batch["segment_ids"]
        if rng is None:
            mask_rng, dropout_rng = jax.random.fold_in(jax.random.key(EVALUATION_SEED), tokens.sum()), None
        else:
            mask_rng, dropout_rng = jax.random.split(rng)
        candidates = (segments > 0) & (tokens != self.tokenizer.bos_id) & (tokens != self.tokenizer.eos_id)
        inputs, hidden = self._hide(tokens, candidates, mask_rng)
        output = apply(
            params,
            input_ids=inputs,
            segment_ids=segments,
            position_ids=batch["positions"],
            dropout_rng=dropout_rng,
        )
        loss, metrics = language_loss(apply, params, output, tokens, hidden.astype(jnp.float32))
        return loss + output.aux_loss, metrics

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per hidden token), perplexity and accuracy."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        return {
            "loss": scored["loss"],
            "perplexity": math.exp(min(scored["loss"], 700.0)),
            "accuracy": scored["accuracy"],
            "tokens": scored["weight"],
        }

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss, perplexity and accuracy."""
        return loss_figures(results, per="hidden token")

    def baselines(self) -> Iterator[Figure]:
        """What the tokens' frequencies alone tell."""
        ids = [
            np.concatenate(
                [self.tokenizer.encode(text) for text in read_texts(self.dataset.split(split), self.text_key)]
            )
            for split in ("train", "validation")
        ]
        nats = unigram_cross_entropy(*ids, self.tokenizer.vocab_size)
        note = "nats per token: the training split's token frequencies"
        yield Figure(name="unigram", value=f"{nats:.4f}", note=note)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """A function with two gaps, filled."""
        yield _PROMPT, self.respond(apply, params, Question(prompt=_PROMPT))

    def respond(self, apply, params, question: Question) -> str:
        """The prompt with each `<mask>` filled by one token, the likeliest unless it is to be drawn."""
        prompt = question.prompt
        parts = [self.tokenizer.encode(part) for part in prompt.split(MASK)]
        if len(parts) == 1:
            raise ValueError(f"the prompt {prompt!r} has nothing to fill; write {MASK} where a token is missing")
        ids = [self.tokenizer.bos_id, *parts[0]]
        for part in parts[1:]:
            ids += [self.tokenizer.mask_id, *part]
        ids.append(self.tokenizer.eos_id)
        if len(ids) > self.config.sequence_length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and this model reads {self.config.sequence_length}; shorten it"
            )
        row = np.array(ids, np.int32)
        logits = apply(params, input_ids=row[None]).logits[0]
        special = [self.tokenizer.pad_id, self.tokenizer.bos_id, self.tokenizer.eos_id,
                   self.tokenizer.unk_id, self.tokenizer.mask_id]  # fmt: skip
        known = logits.at[:, np.array([token for token in special if token is not None])].set(-jnp.inf)
        config = read_config({"top_k": None, **question.options})
        if config.do_sample:
            known = narrow(known, config.temperature, config.top_k, config.top_p, config.min_p)
        chosen = choose(known, jax.random.key(question.seed), config)
        return self.tokenizer.decode(np.where(row == self.tokenizer.mask_id, np.asarray(chosen), row))

    def _hide(self, tokens: Int[Array, "B T"], candidates: Bool[Array, "B T"], rng: Array):
        """The corrupted tokens, and which of them are to be predicted (Devlin et al. 2019, section 3.1)."""
        which, how, what = jax.random.split(rng, 3)
        hidden = candidates & (jax.random.uniform(which, tokens.shape) < self.config.mask_rate)
        fate = jax.random.uniform(how, tokens.shape)
        random = jax.random.randint(what, tokens.shape, 0, self.tokenizer.vocab_size)
        replaced = jnp.where(fate < 0.8, self.tokenizer.mask_id, jnp.where(fate < 0.9, random, tokens))
        return jnp.where(hidden, replaced, tokens), hidden
