"""What a task says of a trained model, for whoever prints it: figures, and answers to a few questions."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zoo.generate import generate, stream


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A line of the results."""

    name: str
    value: str
    note: str = ""
    """The unit, and what it was measured on."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a trained model is asked, in the words of evaluate.py's options."""

    prompt: str = ""
    pair: str = ""
    """A second text beside it."""
    context: str = ""
    """The text that holds the answer."""
    image: str = ""
    """A picture's path."""
    prefix: str = ""
    """What the answer begins with."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How to generate, by the names of `zoo.generation_config.GenerationConfig`; the rest is the task's to say."""
    seed: int = 0
    """Of what is drawn."""
    candidates: tuple[str, ...] = ()
    """Texts to search in."""
    output: str | None = None
    """Where a picture that is drawn goes."""
    variants: int | None = None
    """How many are drawn."""


@runtime_checkable
class Reporting(Protocol):
    """What a task has beside what training asks of it (`zoo.training.protocol.Task`).

    One whose questions have further parts has `beside`: the other options of evaluate.py that it needs ("pair",
    "context"), each with a value that goes with `example`. Options that it reads where they are given are its `extras`
    ("candidates", "prefix", "output", "variants"). What it has for a `description` opens the run's model card.
    """

    option: str
    """The option of evaluate.py that holds the question: "prompt" or "image"."""
    example: str
    """A value of it to try."""

    def figures(self, results: Mapping[str, float]) -> Iterator[Figure]:
        """Return lines for what `evaluate` gave."""
        ...

    def baselines(self) -> Iterator[Figure]:
        """Return what simple ways reach on the same held-out data; they may take seconds."""
        ...

    def samples(self, apply: Callable[..., Any], params: Any) -> Iterator[tuple[str, str]]:
        """Return a few questions to show the model by, and its answers."""
        ...

    def respond(self, apply: Callable[..., Any], params: Any, question: Question) -> Iterable[str]:
        """Return the model's answer, or its pieces as they come. ValueError for a question that it cannot read."""
        ...


@runtime_checkable
class Predicting(Protocol):
    """What a task has whose held-out predictions others score."""

    def predictions(self, apply: Callable[..., Any], params: Any) -> Mapping[str, str]:
        """Return the files that the field's own scorers read: "" is the one asked for, others add their name to it."""
        ...


def loss_figures(results: Mapping[str, float], per: str = "token") -> Iterator[Figure]:
    """Return the lines of a loss over a vocabulary."""
    note = f"nats per {per}, {results['tokens']:,.0f} tokens scored"
    yield Figure(name="loss", value=f"{results['loss']:.4f}", note=note)
    yield Figure(name="perplexity", value=f"{results['perplexity']:.2f}", note="per token")
    accuracy = f"{100 * results['accuracy']:.1f} %"
    yield Figure(name="accuracy", value=accuracy, note="likeliest token is the right one")


def write(
    apply: Callable[..., Any],
    params: Any,
    decode: Callable[[Sequence[int]], str],
    begin: Sequence[int],
    **options: Any,
) -> Iterator[str]:
    """The text that begins with the ids `begin` and goes on as `zoo.generate` does with `options`, in pieces as they
    come; what beams write comes whole.
    """
    if options.get("num_beams", 1) > 1:
        yield decode(np.asarray(generate(apply, params, **options).sequences)[0].tolist())
    else:
        yield from spell(stream(apply, params, **options), decode, begin)


def spell(
    tokens: Iterable[np.ndarray], decode: Callable[[Sequence[int]], str], begin: Sequence[int] = ()
) -> Iterator[str]:
    """The text of the ids `begin` and of the first row's tokens, one of each row at a time, in pieces as they come."""
    ids, shown = list(begin), ""
    for token in itertools.chain([[]], tokens):
        ids += np.asarray(token, int).tolist()[:1]
        text = decode(ids)
        # A character may take several tokens: until it is whole it is shown as U+FFFD.
        if text.startswith(shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield decode(ids).removeprefix(shown)
