"""Next-token prediction over packed documents (GPT): the loss, and held-out bits per byte."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.data import Dataset, Tokenizer, packed_batches, scored_windows
from zoo.generate import Sampling, generate
from zoo.tasks.losses import cross_entropy, score_split


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

    def __post_init__(self):
        if not 0 < self.stride <= self.sequence_length:
            raise ValueError(f"stride is {self.stride}; give 1 to sequence_length ({self.sequence_length})")

    def bind(self, dataset: Dataset, tokenizer: Tokenizer, *, seed: int, text_key: str) -> "CausalLM":
        """The task on a dataset."""
        return CausalLM(self, dataset, tokenizer, seed, text_key)


@dataclass(frozen=True, eq=False)
class CausalLM:
    """`CausalLMConfig` on a dataset: a `Task` as training sees it."""

    config: CausalLMConfig
    dataset: Dataset
    tokenizer: Tokenizer
    seed: int
    text_key: str

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
        loss, metrics = cross_entropy(output.logits, tokens[:, 1:], weights)
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

    def respond(self, apply, params, prompt: str, *, max_new_tokens: int, sampling: Sampling, seed: int) -> str:
        """`prompt` and its continuation, up to the end of a document."""
        ids = np.array([[self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]], np.int32)
        generated = generate(
            apply,
            params,
            ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            eos_token_id=self.tokenizer.eos_id,
            pad_token_id=self.tokenizer.pad_id,
        )
        return self.tokenizer.decode(np.asarray(generated.sequences)[0])
