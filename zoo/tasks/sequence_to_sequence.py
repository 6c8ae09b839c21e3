"""One text from another (translation, summarization, dates): teacher-forced loss, and scores of what greedy decoding
or a beam writes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from zoo.data import DataConfig, Dataset, TextTokenizer, pair_batches, read_texts
from zoo.generate import generate
from zoo.tasks.losses import language_loss, score_split
from zoo.tasks.pair_baselines import PairBaseline, write_baseline
from zoo.tasks.report import Figure, Question, loss_figures, write
from zoo.tasks.text_scores import TextScore, check_scores, score_texts, signature

_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class SequenceToSequenceConfig:
    """Read a source, write its target."""

    source_length: int = 64
    """Tokens of a source, S, its end token included; a longer source loses its end."""
    target_length: int = 32
    """Tokens of a target, T, its end token included; a longer target loses its end."""
    batch_size: int = 64
    """Rows a step over all devices, B."""
    packed: bool = True
    """Short pairs share a row in training, so that little of it is padding; False: each has its own, for models that
    carry a state along the row."""
    label_smoothing: float = 0.0
    """Share of each target's probability that goes to all tokens alike, in training."""
    scores: tuple[TextScore, ...] = ("exact_match",)
    """Of what the model writes for held-out sources, against their targets."""
    baselines: tuple[PairBaseline, ...] = ()
    """Simple ways of writing a target, scored beside the model."""
    num_beams: int = 1
    """Sequences to follow side by side when held-out sources are scored; 1 is greedy."""

    head: ClassVar[str] = "seq2seq_lm"

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; give a share from 0 to below 1")
        if self.num_beams < 1:
            raise ValueError(f"num_beams is {self.num_beams}; give at least 1, which is greedy")

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return data.source_key, data.target_key

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs."""
        return {"embedding": self.source_length, "decoder_embedding": self.target_length}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer, *, seed: int, data: DataConfig) -> "SequenceToSequence":
        """The task on a dataset. ValueError for a score whose package is missing."""
        check_scores(self.scores)
        return SequenceToSequence(self, dataset, tokenizer, seed, data.source_key, data.target_key)


@dataclass(frozen=True, eq=False)
class SequenceToSequence:
    """`SequenceToSequenceConfig` on a dataset: a `Task` as training sees it."""

    config: SequenceToSequenceConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int
    source_key: str
    target_key: str

    option: ClassVar[str] = "prompt"
    extras: ClassVar[tuple[str, ...]] = ("prefix",)

    def batches(self, split: str):
        """Pairs, endless and shuffled, for "train", where they may share rows; otherwise one pass, a pair a row."""
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
            packed=self.config.packed,
        )

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per target token, the end token included; of smoothed targets in training."""
        targets, segments = batch["targets"], batch["targets_segment_ids"]
        ids = {"input_ids": batch["inputs"], "decoder_input_ids": targets[:, :-1]}
        if self.config.packed:
            rows = {
                "segment_ids": batch["inputs_segment_ids"],
                "position_ids": batch["inputs_positions"],
                "decoder_segment_ids": segments[:, :-1],
                "decoder_position_ids": batch["targets_positions"][:, :-1],
            }
        else:  # a row has one pair, whose id is 1
            rows = {"attention_mask": batch["inputs_segment_ids"], "decoder_attention_mask": segments[:, :-1]}
        output = apply(params, **ids, **rows, dropout_rng=rng)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        smoothing = 0.0 if rng is None else self.config.label_smoothing
        loss, metrics = language_loss(apply, params, output, targets[:, 1:], same.astype(jnp.float32), smoothing)
        return loss + output.aux_loss, metrics

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per token), and the scores of what the model writes against the whole targets."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        written = self._write_split(apply, params)
        wanted = read_texts(self.dataset.split("validation"), self.target_key)
        return {
            "loss": scored["loss"],
            "perplexity": math.exp(min(scored["loss"], 700.0)),
            "accuracy": scored["accuracy"],
            **score_texts(self.config.scores, written, wanted),
            "pairs": float(len(wanted)),
            "tokens": scored["weight"],
        }

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss, and the scores with their signatures."""
        yield from loss_figures(results)
        how = "greedy decoding" if self.config.num_beams == 1 else f"{self.config.num_beams} beams"
        for name in results:
            if name not in ("loss", "perplexity", "accuracy", "pairs", "tokens"):
                note = f"of {results['pairs']:,.0f} pairs, {how}; {signature(name)}"
                yield Figure(name=name.replace("_", " "), value=f"{results[name]:.2f}", note=note)

    def baselines(self) -> Iterator[Figure]:
        """The scores of texts that were written without a model."""
        train, heldout = self.dataset.split("train"), self.dataset.split("validation")
        sources, wanted = read_texts(heldout, self.source_key), read_texts(heldout, self.target_key)
        for name in self.config.baselines:
            pairs = read_texts(train, self.source_key), read_texts(train, self.target_key)
            written, how = write_baseline(name, sources, *pairs)
            for score, value in score_texts(self.config.scores, written, wanted).items():
                yield Figure(name=f"{name}: {score.replace('_', ' ')}", value=f"{value:.2f}", note=how)

    @property
    def example(self) -> str:
        """A held-out source."""
        return self.dataset.split("validation")[0][self.source_key]

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out sources from all over the split, and what the model writes."""
        source = self.dataset.split("validation")
        for place in np.linspace(0, len(source) - 1, _SHOWN).astype(int):
            prompt = source[int(place)][self.source_key]
            ids = self.tokenizer.sequence(prompt)
            ids = [*ids[: self.config.source_length - 1], ids[-1]] if len(ids) > self.config.source_length else ids
            yield prompt.split("\n")[0], "".join(self._answer(apply, params, ids, Question()))

    def respond(self, apply, params, question: Question) -> Iterator[str]:
        """The target that the model writes for one source."""
        ids = self.tokenizer.sequence(question.prompt)
        if len(ids) > self.config.source_length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and this model reads {self.config.source_length}; shorten it"
            )
        return self._answer(apply, params, ids, question)

    def _answer(self, apply, params, ids: list[int], question: Question) -> Iterator[str]:
        begin, decode = self.tokenizer.encode(question.prefix) if question.prefix else [], self.tokenizer.decode
        options = self._options | dict(question.options) | {"seed": question.seed}
        options["max_new_tokens"] = min(options["max_new_tokens"], self.config.target_length - len(begin))
        if options["max_new_tokens"] < 1:
            raise ValueError(
                f"the prefix has {len(begin)} tokens and this model writes {self.config.target_length}; shorten it"
            )
        options["input_ids"] = np.array([ids], np.int32)
        options["decoder_input_ids"] = np.array([[self.tokenizer.start_id, *begin]], np.int32)
        return write(apply, params, decode, begin, **options)

    def predictions(self, apply, params) -> dict[str, str]:
        """What the model writes for each held-out source, one a line as sacreBLEU reads it."""
        return {"": "".join(f"{' '.join(text.splitlines())}\n" for text in self._write_split(apply, params))}

    def _write_split(self, apply, params) -> list[str]:
        """What the model writes for each held-out source."""
        written: list[str] = []
        for batch in self.batches("validation"):
            written += self.write(apply, params, batch["inputs"], batch["inputs_segment_ids"])
        return written[: len(self.dataset.split("validation"))]  # the last batch is filled up with blank rows

    def write(self, apply, params, input_ids: np.ndarray, attention_mask: np.ndarray) -> list[str]:
        """What the model writes for encoded sources [B, S], as text."""
        # A row without a source (padding of the last batch) still needs a token to attend to.
        attention_mask = np.maximum(attention_mask, ~attention_mask.any(-1, keepdims=True))
        generated = generate(apply, params, input_ids, attention_mask, **self._options)
        return [self.tokenizer.decode(row) for row in np.asarray(generated.sequences)]

    @property
    def _options(self) -> dict[str, Any]:
        """How targets are written."""
        return {
            "max_new_tokens": self.config.target_length,
            "num_beams": self.config.num_beams,
            "eos_token_id": self.tokenizer.eos_id,
            "pad_token_id": self.tokenizer.pad_id,
            "decoder_start_token_id": self.tokenizer.start_id,
        }
