"""zoo_questions: questions about API documentation, in the shape of SQuAD (Rajpurkar et al. 2016, 2018):
{"id", "title", "context", "question", "answers": {"text", "answer_start"}, "kind"}.

A context is what installed packages say of a function or class: its signature, its docstring's first paragraph and
the sections on parameters, results and errors. Asked are what a parameter means, its type, its default; what is
returned; when an error is raised; what the whole is for. Answers are spans of the context; where it says a thing twice,
as a default in the signature and in words, either is right. About a fifth of the questions have no answer there: about
a parameter of another function of the package, or what the context leaves open.

The split is by module: what is held out comes from files that train has not seen.
"""

import functools
import hashlib
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from zoo.data.builders.docstrings import is_held_out, read_documents, versions
from zoo.data.builders.embedded import EmbeddedBuilder
from zoo.data.builders.entries import KINDS, Entry, Span, find_sections, read_entries, read_signature, trim

ASKED = 5
"""Answerable questions a context at the most."""
UNANSWERABLE = 1
"""Of the other kind."""
LONGEST_CONTEXT = 1800
"""Characters."""

PHRASES: Mapping[str, tuple[str, ...]] = {
    "meaning": (
        "What does {x} mean?", "What is {x}?", "What is {x} for?", "What does the parameter {x} of {f} stand for?",
        "Describe the argument {x}.", "What should be passed as {x} to {f}?", "Explain {x}.",
        "What is the role of {x} in {f}?", "what does {x} do",
    ),
    "type": (
        "What type is {x}?", "Which type does {x} have?", "Of what type must {x} be?", "what kind of value is {x}",
        "What is the type of the argument {x} of {f}?", "Which values may {x} take, by their type?",
    ),
    "default": (
        "What is the default of {x}?", "Which value does {x} have by default?", "What does {x} default to?",
        "What is {x} when it is left out?", "which default does {f} give {x}",
        "If I do not pass {x}, which value is used?",
    ),
    "result": (
        "What does {f} return?", "What is returned?", "What comes back from {f}?", "What is the result of {f}?",
        "what do I get from {f}",
    ),
    "result type": (
        "What type does {f} return?", "Of what type is the result?", "What is the type of what {f} returns?",
        "which type is returned",
    ),
    "error": (
        "When is {x} raised?", "In which case does {f} raise {x}?", "Why would {f} raise {x}?", "what leads to {x}",
    ),
    "purpose": (
        "What does {f} do?", "What is {f} for?", "What is the purpose of {f}?", "Describe {f} in one sentence.",
        "what is {f} good for",
    ),
}  # fmt: skip
"""How each kind is asked, of {x} and the function {f}."""
QUOTES = ("{}", "{}", "`{}`", '"{}"')

_WORD = re.compile(r"\w+")
_QUALIFIER = re.compile(r"^\w[\w.]*\.")
"""What stands before a method's own name."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question of a kind about a name, and the spans of the context that answer it."""

    kind: str
    name: str = ""
    answers: tuple[Span, ...] = ()


def make_context(signature: str, text: str) -> str:
    """The signature, the docstring's first paragraph and its sections that are asked about."""
    summary = re.split(r"\n[ ]*\n", text)[0]
    sections = [text[part.begin : part.end].strip("\n") for part in find_sections(text) if part.title in KINDS]
    return "\n\n".join([signature, summary, *sections])


def answerable(context: str) -> Iterator[Asked]:
    """What a context answers."""
    signature, entries = context.partition("\n")[0], list(read_entries(context))
    signed = read_signature(signature)
    summary = re.compile(r"\n\n(.*?)(?:\.(?=\s)|\n\n|$)", re.DOTALL).match(context, len(signature))
    if summary and (span := trim(context, *summary.span(1))):
        yield Asked(kind="purpose", answers=(span,))
    for name, entry in _once(entries).items():
        if entry.kind == "error":
            yield from _asked("error", name, entry.meaning)
            continue
        annotation, default = signed.get(name, (None, None))
        yield from _asked("meaning", name, entry.meaning)
        yield from _asked("type", name, entry.type or annotation)
        if default is not None:
            yield from _asked("default", name, default, entry.default)
    for entry in entries:
        if entry.kind == "return":
            yield from _asked("result", "", entry.meaning)
            yield from _asked("result type", "", entry.type)


def unanswerable(context: str, strangers: Sequence[str]) -> Iterator[Asked]:
    """What a context does not answer: of parameters that it has not got, and what it leaves open."""
    signature, entries = context.partition("\n")[0], list(read_entries(context))
    words, signed = set(_WORD.findall(context)), read_signature(signature)
    for name in strangers:
        if name not in words:
            yield from (Asked(kind=kind, name=name) for kind in ("meaning", "type", "default"))
    for name, entry in _once(entries).items():
        if entry.kind != "parameter":
            continue
        if name in signed and signed[name][1] is None and entry.default is None and "default" not in context.lower():
            yield Asked(kind="default", name=name)
    if not any(entry.kind == "error" for entry in entries):
        yield Asked(kind="error", name="ValueError")
    if not any(entry.kind == "return" for entry in entries) and "return" not in context.lower():
        yield Asked(kind="result")


def _once(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Parameters and errors by name, without those named twice."""
    names = [entry.name for entry in entries]
    return {entry.name: entry for entry in entries if entry.name and names.count(entry.name) == 1}


def _asked(kind: str, name: str, *spans: Span | None) -> Iterator[Asked]:
    answers = tuple(span for span in spans if span is not None)
    if answers:
        yield Asked(kind=kind, name=name, answers=answers)


@functools.cache
def _read_contexts() -> tuple[tuple[str, str, Mapping[str, str]], ...]:
    """Every context with at least two parameters, once, with its module and document."""
    found: list[tuple[str, str, Mapping[str, str]]] = []
    said: set[str] = set()
    for module, document in read_documents():
        signature = _QUALIFIER.sub("", document["entry"].partition("\n\n")[0])
        context = make_context(signature, document["text"])
        told = context.removeprefix(signature)
        if len(context) <= LONGEST_CONTEXT and context.isascii() and told not in said and len(_parameters(context)) > 1:
            said.add(told)
            found.append((context, module, document))
    return tuple(found)


def _parameters(context: str) -> list[str]:
    return [entry.name for entry in read_entries(context) if entry.kind == "parameter"]


def write_questions(split: str) -> Iterator[dict[str, Any]]:
    """The examples of "train" or "validation"."""
    strangers: dict[str, list[str]] = {}
    for context, _, document in _read_contexts():
        strangers.setdefault(document["package"], []).extend(_parameters(context))
    for context, module, document in _read_contexts():
        if is_held_out(module) == (split == "validation"):
            yield from _ask(context, document, strangers[document["package"]])


def _ask(context: str, document: Mapping[str, str], strangers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Draw questions about a context, by its name alone."""
    draw = random.Random(document["name"])
    asked = list(answerable(context))
    chosen = draw.sample(asked, min(ASKED, len(asked)))
    open_ends = list(unanswerable(context, draw.sample(strangers, min(3, len(strangers)))))
    chosen += draw.sample(open_ends, min(UNANSWERABLE, len(open_ends)))
    function = document["name"].rpartition(".")[2]
    for number, question in enumerate(chosen):
        quote = draw.choice(QUOTES)
        phrase = draw.choice(PHRASES[question.kind])
        yield {
            "id": f"{document['name']}:{number}",
            "title": document["name"],
            "context": context,
            "question": phrase.format(x=quote.format(question.name), f=quote.format(function)),
            "answers": {
                "text": [context[begin:end] for begin, end in question.answers],
                "answer_start": [begin for begin, _ in question.answers],
            },
            "kind": question.kind,
        }


class ZooQuestions(EmbeddedBuilder):
    """Questions about API documentation."""

    VERSION = tfds.core.Version(".".join(map(str, sys.version_info[:3])))
    # Another release of any package makes another set.
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(
            name="edition_1_" + hashlib.sha256(repr(versions()).encode()).hexdigest()[:8], version=VERSION
        )
    ]
    FEATURES: ClassVar = {
        **{field: tfds.features.Text() for field in ("id", "title", "context", "question", "kind")},
        "answers": tfds.features.Sequence(
            {"text": tfds.features.Text(), "answer_start": tfds.features.Scalar(np.int32)}
        ),
    }

    def _generate_examples(self, split):
        yield from enumerate(write_questions(split))
