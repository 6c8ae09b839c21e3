"""Answers to questions as spans of a context (BERT, Devlin et al. 2019, sections 4.2 and 4.3): a start and an end among
the context's tokens, or the first position where it holds no answer.

A context longer than a row is read through windows that overlap. Of all windows' spans the best one counts.
"""

import functools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zoo.data import DataConfig, Dataset, TextTokenizer, read_texts, window_batches
from zoo.data.sources import Source
from zoo.tasks.answer_baselines import nearest_sentences
from zoo.tasks.report import Figure, Question
from zoo.tasks.spans import ANSWER_LENGTH, span_scores, window_starts
from zoo.tasks.squad_scores import score_answers

_SHOWN = 6
_NEVER = -1e9
NO_ANSWER = "(no answer in the context)"
"""What is shown where none is found."""


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringConfig:
    """Find the span of a context that answers a question."""

    sequence_length: int = 384
    """Tokens a row, T: begin, question, end, a window of the context, end."""
    question_length: int = 64
    """Tokens of a question at the most; a longer one loses its end."""
    answer_length: int = ANSWER_LENGTH
    """Tokens of an answer at the most."""
    stride: int = 128
    """Tokens of the context from the beginning of one window to that of the next."""
    batch_size: int = 32
    """Rows a step over all devices, B."""
    empty_windows: float = 1.0
    """Share of the windows without their question's answer that are trained on, where another window holds it (Alberti
    et al. 2019 keep few); scoring reads all."""
    no_answer_threshold: float | None = 0.0
    """No answer is given where the first position's score is more than so far above the best span's; None: always one
    (SQuAD 1.1)."""

    head: ClassVar[str] = "question_answering"

    def __post_init__(self):
        for name in ("question_length", "answer_length", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if not 0 <= self.empty_windows <= 1:
            raise ValueError(f"empty_windows is {self.empty_windows}; give a share from 0 to 1")
        need = self.question_length + self.stride + self.answer_length + 2
        if self.sequence_length < need:
            raise ValueError(
                f"sequence_length is {self.sequence_length}; with question_length={self.question_length}, "
                f"stride={self.stride} and answer_length={self.answer_length} some answers would lie whole in no "
                f"window: give at least {need}, or a smaller stride"
            )

    def text_keys(self, data: DataConfig) -> tuple[str, ...]:
        """The fields that it reads."""
        return "context", "question"

    def longest(self) -> dict[str, int]:
        """Positions that each embedding needs."""
        return {"embedding": self.sequence_length}

    def bind(self, dataset: Dataset, tokenizer: TextTokenizer, *, seed: int, data: DataConfig) -> "QuestionAnswering":
        """The task on a dataset. ValueError if it has no questions in SQuAD's shape."""
        example = dataset.split("train")[0]
        missing = [name for name in ("question", "context", "answers") if name not in example]
        if missing:
            raise ValueError(
                f"dataset {dataset.name!r} has no field {missing[0]!r} but {', '.join(example)}: give questions in "
                "SQuAD's shape, with a question, a context, and answers as text and answer_start"
            )
        return QuestionAnswering(self, dataset, tokenizer, seed)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best span of a context."""

    text: str
    score: float
    """The sum of its ends' logits, of the window where it is greatest."""
    none_score: float
    """The same of the first position, of the window where it is least."""
    nats: float
    """The loss, summed over windows."""
    num_right: int
    """Windows whose likeliest ends are right."""
    num_windows: int = 1


@dataclass(frozen=True, eq=False)
class QuestionAnswering:
    """`QuestionAnsweringConfig` on a dataset: a `Task` as training sees it."""

    config: QuestionAnsweringConfig
    dataset: Dataset
    tokenizer: TextTokenizer
    seed: int

    unit: ClassVar[str] = "windows"
    option: ClassVar[str] = "prompt"

    def batches(self, split: str):
        """Windows with their answers, endless and shuffled, for "train"; otherwise one pass."""
        source, size = self.dataset.split(split), self.config.batch_size
        if split != "train":
            return window_batches(source, self.cut, batch_size=size, seed=None)
        return window_batches(source, self.cut_to_train, batch_size=size, seed=self.seed)

    def cut_to_train(self, example: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The rows of a question without some of those that miss its answer, the same ones each time."""
        rows = self.cut(example)
        if not any(row["starts"] for row in rows):
            return rows
        draw = np.random.default_rng(zlib.crc32(example["question"].encode())).random(len(rows))
        return [row for row, x in zip(rows, draw, strict=True) if row["starts"] or x < self.config.empty_windows]

    def cut(self, example: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
        """The rows of a question: begin, question, end, a window of the context, end, padding.

        "starts" and "ends" are the positions of the first answer's first and last token, or 0 where the window does
        not hold it whole; "shift" turns a position into a token of the context.
        """
        config, tokenizer = self.config, self.tokenizer
        question = tokenizer.encode(example["question"])[: config.question_length]
        ids, offsets = _encode_context(tokenizer, example["context"])
        answer = _locate(offsets, example["answers"]) if "answers" in example else None
        head = [tokenizer.bos_id, *question, *tokenizer.between_ids]
        room = config.sequence_length - len(head) - 1
        rows = []
        for begin in window_starts(len(ids), room, config.stride):
            window = [*ids[begin : begin + room], tokenizer.eos_id]
            row = _lay_row(head, window, config.sequence_length, tokenizer.pad_id)
            if not tokenizer.has_types:
                del row["token_type_ids"]
            shift = begin - len(head)
            ends = [0, 0]
            if answer is not None and begin <= answer[0] and answer[1] < begin + room:
                ends = [place - shift for place in answer]
            row |= {name: np.asarray(value, np.int32) for name, value in zip(("starts", "ends"), ends, strict=True)}
            rows.append(row | {"shift": np.asarray(shift, np.int32), "weights": np.ones((), np.float32)})
        return rows

    def loss(self, apply, params, batch: Mapping[str, Any], rng=None):
        """Mean nats of a start and of an end, per window; accuracy is how often both are likeliest."""
        nats, right = _score_ends(*self.logits(apply, params, batch, rng), batch)
        weight = batch["weights"].sum()
        count = jnp.maximum(weight, 1.0)
        accuracy = (right.astype(jnp.float32) * batch["weights"]).sum() / count
        return (nats * batch["weights"]).sum() / count, {"weight": weight, "accuracy": accuracy}

    def evaluate(self, apply, params) -> dict[str, float]:
        """Held-out loss and accuracy as in training, over all windows, and SQuAD's scores of the answers."""
        found = self.find(apply, params, "validation")
        num_windows = sum(answer.num_windows for answer in found)
        return {
            "loss": sum(answer.nats for answer in found) / num_windows,
            "accuracy": sum(answer.num_right for answer in found) / num_windows,
            **score_answers([self.decide(answer) for answer in found], self._wanted()),
            "questions": float(len(found)),
            "windows": float(num_windows),
        }

    def find(self, apply, params, split: str) -> list[Found]:
        """The best span of each question of a split."""
        source = self.dataset.split(split)
        found: list[Found | None] = [None] * len(source)
        for batch in self.batches(split):
            for index, window in self._read_windows(apply, params, batch, source):
                earlier = found[index]
                found[index] = window if earlier is None else _better(earlier, window)
        return [answer for answer in found if answer is not None]

    def decide(self, found: Found) -> str:
        """The answer, empty for none."""
        threshold = self.config.no_answer_threshold
        return "" if threshold is not None and found.none_score - found.score > threshold else found.text

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Loss and SQuAD's scores."""
        yield Figure(name="loss", value=f"{results['loss']:.4f}", note=f"nats, {results['windows']:,.0f} windows")
        notes = {
            "exact": f"answers that are exact, of {results['questions']:,.0f} questions",
            "f1": "words in common, SQuAD's scorer",
            "has_answer_exact": "of questions that have an answer",
            "has_answer_f1": "the same",
            "no_answer_exact": "of questions that have none",
        }
        for name in [name for name in notes if name in results]:
            yield Figure(name=name.replace("_", " "), value=f"{results[name]:.2f}", note=notes[name])

    def baselines(self) -> Iterator[Figure]:
        """The most similar sentence; and no answer, where some questions have none."""
        source, wanted = self.dataset.split("validation"), self._wanted()
        sentences = nearest_sentences(read_texts(source, "question"), read_texts(source, "context"))
        ways = {"sentence": (sentences, "F1 of the sentence most like the question, by TF-IDF of words")}
        if not all(wanted):
            ways["no answer"] = [""] * len(wanted), "F1 of never giving an answer"
        for name, (answers, how) in ways.items():
            scores = score_answers(answers, wanted)
            yield Figure(name=name, value=f"{scores['f1']:.2f}", note=f"{how} (exact {scores['exact']:.2f})")

    def samples(self, apply, params) -> Iterator[tuple[str, str]]:
        """Held-out questions and the answers found."""
        source = self.dataset.split("validation")
        for place in np.linspace(0, len(source) - 1, _SHOWN).astype(int):
            example = source[int(place)]
            title = f" ({example['title']})" if example.get("title") else ""
            yield f"{example['question']}{title}", self._answer(apply, params, example)

    @property
    def example(self) -> str:
        """The question about the shortest context."""
        return self._shortest["question"]

    @property
    def beside(self) -> dict[str, str]:
        """The context of `example`."""
        return {"context": self._shortest["context"]}

    def respond(self, apply, params, question: Question) -> str:
        """The span of the context that answers the prompt."""
        if not question.context.strip():
            raise ValueError("--context is missing: this run finds the answer to --prompt in a context")
        return self._answer(apply, params, {"question": question.prompt, "context": question.context})

    def predictions(self, apply, params) -> dict[str, str]:
        """The answers as SQuAD's scorer reads them: id to text, and id to the probability that there is none."""
        source = self.dataset.split("validation")
        found = dict(zip(_ids(source), self.find(apply, params, "validation"), strict=True))
        files = {"": {name: self.decide(answer) for name, answer in found.items()}}
        if self.config.no_answer_threshold is not None:
            odds = {name: answer.none_score - answer.score for name, answer in found.items()}
            files["na_prob"] = {name: float(jax.nn.sigmoid(value)) for name, value in odds.items()}
        return {name: json.dumps(values, ensure_ascii=False, indent=1) + "\n" for name, values in files.items()}

    @functools.cached_property
    def _shortest(self) -> Mapping[str, Any]:
        source = self.dataset.split("validation")
        return min((source[index] for index in range(len(source))), key=lambda example: len(example["context"]))

    def _wanted(self) -> list[Sequence[str]]:
        source = self.dataset.split("validation")
        return [source[index]["answers"]["text"] for index in range(len(source))]

    def _answer(self, apply, params, example: Mapping[str, Any]) -> str:
        rows = self.cut(example)
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        windows = self._read_windows(apply, params, batch | {"example": np.zeros(len(rows), np.int32)}, [example])
        return self.decide(functools.reduce(_better, (window for _, window in windows))) or NO_ANSWER

    def logits(self, apply, params, batch: Mapping[str, Any], rng) -> tuple[jax.Array, jax.Array]:
        """Start and end logits [B, T], out of reach where no answer can be."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        output = apply(params, **inputs, dropout_rng=rng)
        ends = (output.start_logits, output.end_logits)
        start, end = (jnp.where(batch["candidates"] > 0, logits.astype(jnp.float32), _NEVER) for logits in ends)
        return start, end

    def _read_windows(self, apply, params, batch, source) -> Iterator[tuple[int, Found]]:
        """For each row that is not blank: the index of its example, and its best span."""
        read = {name: np.asarray(value) for name, value in _read_rows(self, apply, params, batch).items()}
        for row in np.flatnonzero(batch["weights"]):
            index, shift = int(batch["example"][row]), int(batch["shift"][row])
            context = source[index]["context"]
            _, offsets = _encode_context(self.tokenizer, context)
            text = ""
            if read["score"][row] > -np.inf:  # an empty context has no span
                text = context[offsets[read["first"][row] + shift, 0] : offsets[read["last"][row] + shift, 1]].strip()
            numbers = {name: float(read[name][row]) for name in ("score", "none_score", "nats")}
            yield index, Found(text=text, **numbers, num_right=int(read["right"][row]))


@functools.lru_cache(maxsize=1 << 15)
def _encode_context(tokenizer: TextTokenizer, context: str) -> tuple[list[int], np.ndarray]:
    """The tokens of a context and their characters; several questions are asked about each."""
    return tokenizer.encode_with_offsets(context)


def _locate(offsets: np.ndarray, answers: Mapping[str, Any]) -> tuple[int, int] | None:
    """The first and the last token with a character of the first answer."""
    if not len(answers["text"]):
        return None
    begin = int(answers["answer_start"][0])
    touched = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < begin + len(answers["text"][0])))
    return (int(touched[0]), int(touched[-1])) if touched.size else None


def _lay_row(head: list[int], window: list[int], length: int, pad_id: int) -> dict[str, np.ndarray]:
    """The arrays of a row; an answer is among the window's tokens without its last, or the first of all."""
    ids = np.array([*head, *window], np.int32)
    padding = (0, length - ids.size)
    is_window = np.repeat(np.array([0, 1], np.int32), (len(head), len(window)))
    candidates = is_window.copy()
    candidates[[0, -1]] = 1, 0
    return {
        "input_ids": np.pad(ids, padding, constant_values=pad_id),
        "attention_mask": np.pad(np.ones_like(ids), padding),
        "token_type_ids": np.pad(is_window, padding),
        "candidates": np.pad(candidates, padding),
    }


def _score_ends(start: Float[Array, "B T"], end: Float[Array, "B T"], batch: Mapping[str, Any]):
    """Of each row the mean nats of both ends, and whether both are the likeliest."""
    nats, right = jnp.zeros(len(start)), jnp.ones(len(start), bool)
    for logits, wanted in ((start, batch["starts"]), (end, batch["ends"])):
        nats -= jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[:, None], 1)[:, 0] / 2
        right &= logits.argmax(-1) == wanted
    return nats, right


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read_rows(task: QuestionAnswering, apply, params, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Of each row the best span's "score", "first" and "last" position, "none_score", "nats" and "right"."""
    start, end = task.logits(apply, params, batch, None)
    inside = (batch["candidates"] > 0) & (jnp.arange(start.shape[-1]) > 0)[None]
    ends = (jnp.where(inside, scores, -jnp.inf) for scores in (start, end))
    spans = span_scores(*ends, task.config.answer_length).reshape(len(start), -1)
    first, last = jnp.divmod(spans.argmax(-1), start.shape[-1])
    nats, right = _score_ends(start, end, batch)
    none_score = start[:, 0] + end[:, 0]
    return dict(score=spans.max(-1), first=first, last=last, none_score=none_score, nats=nats, right=right)


def _better(one: Found, other: Found) -> Found:
    """Of two windows: the better span, and the lower score of no answer (Devlin et al. 2019's code for SQuAD 2)."""
    return Found(
        text=max(one, other, key=lambda found: found.score).text,
        score=max(one.score, other.score),
        none_score=min(one.none_score, other.none_score),
        nats=one.nats + other.nats,
        num_right=one.num_right + other.num_right,
        num_windows=one.num_windows + other.num_windows,
    )


def _ids(source: Source) -> list[str]:
    return [str(source[index].get("id", index)) for index in range(len(source))]
