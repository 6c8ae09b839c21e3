"""One sequence from another (translation, dates): teacher-forced loss, and exact match of greedy decoding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.data import Dataset, Tokenizer, pair_batches
from zoo.generate import GREEDY, Sampling, generate
from zoo.tasks.losses import cross_entropy, score_split


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceConfig:
    """Read a source, write its target."""

    source_length: int = 64
    """Tokens of a source, S, its end token included; a longer source loses its end."""
    target_length: int = 32
    """Tokens of a target, T, its end token included; a longer target loses its end."""
    batch_size: int = 64
    """Pairs a step over all devices, B."""

    def bind(
        self, dataset: Dataset, tokenizer: Tokenizer, *, seed: int, source_key: str, target_key: str
    ) -> "SequenceToSequence":
        """The task on a dataset."""
        return SequenceToSequence(self, dataset, tokenizer, seed, source_key, target_key)


@dataclass(frozen=True, eq=False)
class SequenceToSequence:
    """`SequenceToSequenceConfig` on a dataset: a `Task` as training sees it."""

    config: SequenceToSequenceConfig
    dataset: Dataset
    tokenizer: Tokenizer
    seed: int
    source_key: str
    target_key: str

    def batches(self, split: str):
        """Padded pairs, endless and shuffled, for "train"; otherwise one pass."""
        source = self.dataset.split(split)
        return pair_batches(
            source,
            self.tokenizer,
            source_key=self.source_key,
            target_key=self.target_key,
            source_length=self.config.source_length,
            target_length=self.config.target_length,
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per target token, the end token included."""
        target, segments = batch["target_ids"], batch["target_segment_ids"]
        output = apply(
            params,
            input_ids=batch["input_ids"],
            attention_mask=batch["input_segment_ids"],
            decoder_input_ids=target[:, :-1],
            dropout_rng=rng,
        )
        loss, metrics = cross_entropy(output.logits, target[:, 1:], (segments[:, 1:] > 0).astype(jnp.float32))
        return loss + output.aux_loss, metrics

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per token) and the share of pairs whose greedy output is exactly the target."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        pairs = right = 0
        for batch in self.batches("validation"):
            real = batch["target_segment_ids"].any(-1)
            written = self.translate(apply, params, batch["input_ids"], batch["input_segment_ids"])
            wanted = [self.tokenizer.decode(row) for row in batch["target_ids"]]
            right += sum(a == b for a, b, is_real in zip(written, wanted, real, strict=True) if is_real)
            pairs += int(real.sum())
        return {
            "loss": scored["loss"],
            "perplexity": math.exp(min(scored["loss"], 700.0)),
            "accuracy": scored["accuracy"],
            "exact_match": right / pairs,
            "pairs": float(pairs),
            "tokens": scored["weight"],
        }

    def respond(self, apply, params, prompt: str, *, max_new_tokens: int, sampling: Sampling, seed: int) -> str:
        """The target that the model writes for one source."""
        ids = np.array([[*self.tokenizer.encode(prompt), self.tokenizer.eos_id]], np.int32)
        if ids.shape[1] > self.config.source_length:
            raise ValueError(
                f"the prompt has {ids.shape[1]} tokens and this model reads {self.config.source_length}; shorten it"
            )
        options: dict[str, Any] = dict(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
        return self.translate(apply, params, ids, np.ones_like(ids), **options)[0]

    def translate(self, apply, params, input_ids: np.ndarray, attention_mask: np.ndarray, **options) -> list[str]:
        """What the model writes for encoded sources [B, S], as text; greedy unless `options` say otherwise."""
        # A row without a source (padding of the last batch) still needs a token to attend to.
        attention_mask = np.maximum(attention_mask, ~attention_mask.any(-1, keepdims=True))
        generated = generate(
            apply,
            params,
            input_ids,
            attention_mask,
            **({"max_new_tokens": self.config.target_length, "sampling": GREEDY} | options),
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.pad_id,
            decoder_start_token_id=self.tokenizer.bos_id,
        )
        return [self.tokenizer.decode(row) for row in np.asarray(generated.sequences)]
