"""What a task says of a trained model, for whoever prints it: figures, and answers to a few questions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from zoo.generate import Sampling

FREE = Sampling(temperature=0.7, top_p=0.95)
"""How an answer is drawn where many are right."""


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
    max_new_tokens: int = 200
    sampling: Sampling = FREE
    seed: int = 0
    candidates: tuple[str, ...] = ()
    """Texts to search in."""
    output: str | None = None
    """Where a picture that is drawn goes."""
    variants: int | None = None
    """How many are drawn."""
    guidance_scale: float | None = None
    """How far they are led to the prompt."""


EXTRAS = {
    "candidates": "this run was not trained to search among texts",
    "output": "this run draws no pictures",
    "variants": "this run draws no pictures",
    "guidance_scale": "this run draws no pictures",
}
"""Options of evaluate.py that few tasks read, those that name them in `extras`; and why others do not."""


class Reporting(Protocol):
    """What a task has beside what training asks of it (`zoo.training.protocol.Task`).

    One whose questions have further parts has `beside`: the other options of evaluate.py that it reads ("pair",
    "context"), each with a value that goes with `example`. What it reads of `EXTRAS`, where they are given, are its
    `extras`; an option that others read and that means nothing to it is in `unused`, with the reason. One that samples
    in a way of its own says so in `sampling`. What it has for a `description` opens the run's model card.
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

    def respond(self, apply: Callable[..., Any], params: Any, question: Question) -> str:
        """Return the model's answer. ValueError for a question that it cannot read."""
        ...


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
