"""Which class a text, or a pair of texts, belongs to (GLUE, Wang et al. 2019): cross-entropy, accuracy, F1 and
Matthews' correlation.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data import DataConfig, Dataset, TextTokenizer, label_batches, read_texts
from zoo.tasks.losses import score_split
from zoo.tasks.report import Figure, Question

_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class TextClassificationConfig:
    """Tell the class of a text, or of a pair."""

    sequence_length: int = 128
    """Tokens a row, T, special ones included; the longer text of a pair loses its end first."""
    batch_size: int = 32
    """Rows a step over all devices, B."""
    label_smoothing: float = 0.0
    """Share of the target that all classes get alike (Szegedy et al. 2016)."""
    f1_class: int | None = None
    """The number of the class whose F1 is reported: 1 is what GLUE reports of MRPC and QQP. None: the mean of all."""

    head: ClassVar[str] = "sequence_classification"

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; give a share from 0 to below 1")

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return (data.text_key,) if data.pair_key is None else (data.text_key, data.pair_key)

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs."""
        return {"embedding": self.sequence_length}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer, *, seed: int, data: DataConfig) -> "TextClassification":
        """The task on a dataset. ValueError if it has no classes."""
        classes = dataset.classes(data.label_key)
        if self.f1_class is not None and not 0 <= self.f1_class < len(classes):
            raise ValueError(f"task.f1_class is {self.f1_class}; the classes are 0 to {len(classes) - 1}")
        return TextClassification(self, dataset, tokenizer, seed, self.text_keys(data), data.label_key, classes)


@dataclass(frozen=True, eq=False)
class TextClassification:
    """`TextClassificationConfig` on a dataset: a `Task` as training sees it."""

    config: TextClassificationConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int
    text_keys: tuple[str, ...]
    label_key: str
    classes: tuple[str, ...]

    unit: ClassVar[str] = "texts"
    option: ClassVar[str] = "prompt"

    def batches(self, split: str):
        """Rows with their classes, endless and shuffled, for "train"; otherwise one pass."""
        return label_batches(
            self.dataset.split(split),
            self.encode,
            classes=self.classes,
            label_key=self.label_key,
            batch_size=self.config.batch_size,
            seed=self.seed if split == "train" else None,
        )

    def encode(self, example: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A row of one text or two."""
        return self.tokenizer.encode_row([example[key] for key in self.text_keys], self.config.sequence_length)

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats per row."""
        logits = self._logits(apply, params, batch, rng)
        smoothing = 0.0 if rng is None else self.config.label_smoothing
        targets = jax.nn.one_hot(batch["labels"], len(self.classes)) * (1 - smoothing) + smoothing / len(self.classes)
        nats = -(targets * jax.nn.log_softmax(logits)).sum(-1)
        weight = batch["weights"].sum()
        count = jnp.maximum(weight, 1.0)
        right = (logits.argmax(-1) == batch["labels"]).astype(jnp.float32) * batch["weights"]
        return (nats * batch["weights"]).sum() / count, {"weight": weight, "accuracy": right.sum() / count}

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss (nats per text); accuracy, F1 and Matthews' correlation, times 100."""
        scored = score_split(self.loss, apply, params, self.batches("validation"))
        guesses, wanted = self._guess(apply, params)
        scores = score_classes(guesses, wanted, self.config.f1_class)
        return {"loss": scored["loss"], **scores, "texts": scored["weight"]}

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss and scores."""
        chance = f"nats per text; chance has {math.log(len(self.classes)):.4f}"
        yield Figure(name="loss", value=f"{results['loss']:.4f}", note=chance)
        note = f"of {results['texts']:,.0f} texts in {len(self.classes)} classes"
        yield Figure(name="accuracy", value=f"{results['accuracy']:.2f} %", note=note)
        chosen = self.config.f1_class
        whose = "mean over classes" if chosen is None else f"of the class {self.classes[chosen]}"
        yield Figure(name="F1", value=f"{results['f1']:.2f}", note=whose)
        yield Figure(name="MCC", value=f"{results['mcc']:.2f}", note="Matthews' correlation, times 100")

    def baselines(self) -> Iterator[Figure]:
        """The commonest class, and a linear classifier of words."""
        from sklearn.dummy import DummyClassifier
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        linear = make_pipeline(words, LogisticRegression(max_iter=1000, C=10))
        (texts, labels), (asked, wanted) = self._texts("train"), self._texts("validation")
        for name, model, how in (
            ("commonest", DummyClassifier(), "accuracy of the commonest class"),
            ("TF-IDF", linear, "accuracy of logistic regression on words and pairs of words, scikit-learn"),
        ):
            scores = score_classes(model.fit(texts, labels).predict(asked), wanted)
            yield Figure(name=name, value=f"{scores['accuracy']:.2f} %", note=how)

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out texts and what the model takes them for."""
        source = self.dataset.split("validation")
        for place in np.linspace(0, len(source) - 1, _SHOWN).astype(int):
            example = source[int(place)]
            asked = " | ".join(example[key].split("\n")[0][:100] for key in self.text_keys)
            yield f"{asked} ({self.name(example[self.label_key])})", self._answer(apply, params, example)

    @property
    def example(self) -> str:
        """The first line of a held-out text."""
        return self.dataset.split("validation")[0][self.text_keys[0]].split("\n")[0]

    def respond(self, apply, params, question: Question) -> str:
        """The likeliest classes of the prompt, with their probabilities; of the prompt and the pair's second text."""
        given = (question.prompt, question.pair)[: len(self.text_keys)]
        if not all(given):
            raise ValueError("this run was trained on pairs; give --prompt and --pair")
        return self._answer(apply, params, dict(zip(self.text_keys, given, strict=True)))

    @property
    def beside(self) -> dict[str, str]:
        """The second text of `example`, of a pair."""
        first = self.dataset.split("validation")[0]
        return {} if len(self.text_keys) == 1 else {"pair": first[self.text_keys[1]].split("\n")[0]}

    def predictions(self, apply, params) -> dict[str, str]:
        """The classes by name as GLUE's scorer reads them: index and prediction, by tabs, under a header."""
        guesses, _ = self._guess(apply, params)
        lines = [f"{index}\t{self.classes[guess]}" for index, guess in enumerate(guesses)]
        return {"": "\n".join(["index\tprediction", *lines]) + "\n"}

    def name(self, label: Any) -> str:
        """A label as a word."""
        return label if isinstance(label, str) else self.classes[int(label)]

    def _guess(self, apply, params) -> tuple[list[int], list[int]]:
        """The likeliest class and the right one of each held-out row."""
        forward = jax.jit(lambda params, batch: self._logits(apply, params, batch, None).argmax(-1))
        guesses, wanted = [], []
        for batch in self.batches("validation"):
            real = batch["weights"] > 0
            guesses += np.asarray(forward(params, batch))[real].tolist()
            wanted += batch["labels"][real].tolist()
        return guesses, wanted

    def _answer(self, apply, params, example: Mapping[str, Any]) -> str:
        batch = {name: value[None] for name, value in self.encode(example).items()}
        likely = np.asarray(jax.nn.softmax(self._logits(apply, params, batch, None)[0]))
        return ", ".join(f"{self.classes[i]} ({100 * likely[i]:.1f} %)" for i in np.argsort(-likely)[:3])

    def _logits(self, apply, params, batch: Mapping[str, Any], rng):
        # A single text is all of the first type, which is what models take without being told.
        names = ("input_ids", "attention_mask", "token_type_ids")[: 2 if len(self.text_keys) == 1 else 3]
        return apply(params, **{name: batch[name] for name in names if name in batch}, dropout_rng=rng).logits

    def _texts(self, split: str) -> tuple[list[str], list[int]]:
        source = self.dataset.split(split)
        columns = [read_texts(source, key) for key in self.text_keys]
        names = [self.classes.index(self.name(source[index][self.label_key])) for index in range(len(source))]
        return ["\n".join(texts) for texts in zip(*columns, strict=True)], names


def score_classes(guesses: Any, wanted: Any, f1_class: int | None = None) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation (for several classes, Gorodkin 2004), times 100.

    F1 is the mean over the classes that are there, or that of class `f1_class`. Scores that are 0 / 0 are 0.
    """
    guesses, wanted = np.asarray(guesses), np.asarray(wanted)
    right = guesses == wanted
    f1 = {}
    for name in np.union1d(guesses, wanted).tolist():
        named = int((guesses == name).sum()) + int((wanted == name).sum())
        f1[name] = 2 * int((right & (wanted == name)).sum()) / named
    counts = np.array([[(x == name).sum() for name in f1] for x in (guesses, wanted)], np.float64)
    size = len(wanted)
    spread = (size**2 - (counts**2).sum(1)).prod()
    covariance = right.sum() * size - (counts[0] * counts[1]).sum()
    return {
        "accuracy": 100 * float(right.mean()),
        "f1": 100 * (float(np.mean(list(f1.values()))) if f1_class is None else f1.get(f1_class, 0.0)),
        "mcc": 100 * float(covariance / np.sqrt(spread)) if spread else 0.0,
    }
