"""Questions about API documentation: what is read from docstrings, and that every answer stands where it is said."""

import pytest

from zoo.data import DataConfig, open_dataset
from zoo.data.builders import questions
from zoo.data.builders.entries import find_sections, read_entries, read_signature
from zoo.data.builders.questions import answerable, make_context, unanswerable

NUMPY = """Clip the values
of an array.

Prose that the context leaves out.

Parameters
----------
a, b : array_like
    Arrays, e.g. of numbers. And more.
mode : {'low', 'high'}, optional
    Which end to
    clip. The default is 'low'.
*rest
    What is handed on.

Returns
-------
out : ndarray of float
    The clipped array.

Raises
------
ValueError
    If `a` is empty.

Notes
-----
limit : int
    Not a parameter.
"""
GOOGLE = """Opens a door.

  Args:
    name (str, *optional*): Who opens it. Defaults to `None`.
    force: how hard to push, in newtons
      or pounds.

  Returns:
    bool: Whether it is open
    now. Or not.

  Example:
    limit: not a parameter
"""


def said(text, entry):
    spans = (entry.type, entry.default, entry.meaning)
    return (entry.kind, entry.name, *(None if span is None else text[slice(*span)] for span in spans))


def test_numpys_style():
    assert [said(NUMPY, entry) for entry in read_entries(NUMPY)] == [
        ("parameter", "a", "array_like", None, "Arrays, e.g. of numbers"),
        ("parameter", "b", "array_like", None, "Arrays, e.g. of numbers"),
        ("parameter", "mode", "{'low', 'high'}", "'low'", "Which end to\n    clip"),
        ("parameter", "rest", None, None, "What is handed on"),
        ("return", "", "ndarray of float", None, "The clipped array"),
        ("error", "ValueError", None, None, "If `a` is empty"),
    ]


def test_googles_style():
    assert [said(GOOGLE, entry) for entry in read_entries(GOOGLE)] == [
        ("parameter", "name", "str", "`None`", "Who opens it"),
        ("parameter", "force", None, None, "how hard to push, in newtons\n      or pounds"),
        ("return", "", "bool", None, "Whether it is open\n    now"),
    ]
    assert [section.title for section in find_sections(GOOGLE)] == ["Args", "Returns", "Example"]


def test_signatures():
    signature = "f(a, b: int=3, *args, c: list[str] | None=None, d='%', **rest)"
    spans = read_signature(signature)
    assert {name: tuple(span and signature[slice(*span)] for span in found) for name, found in spans.items()} == {
        "a": (None, None),
        "b": ("int", "3"),
        "c": ("list[str] | None", "None"),
        "d": (None, None),  # no word that could be matched
    }
    assert read_signature("class") == {}


@pytest.fixture(scope="module")
def context():
    return make_context("clip(a, b, mode='low', *rest)", NUMPY)


def test_a_context_is_the_signature_the_summary_and_the_sections(context):
    assert context.startswith("clip(a, b, mode='low', *rest)\n\nClip the values\nof an array.\n\nParameters\n---")
    assert context.endswith("If `a` is empty.") and "Prose" not in context and "Notes" not in context


def test_answers_are_what_the_context_says(context):
    found = {(one.kind, one.name): [context[slice(*span)] for span in one.answers] for one in answerable(context)}
    assert found["default", "mode"] == ["'low'", "'low'"]
    assert found["purpose", ""] == ["Clip the values\nof an array"]
    assert found["type", "b"] == ["array_like"] and found["meaning", "rest"] == ["What is handed on"]
    assert found["result", ""] == ["The clipped array"] and found["result type", ""] == ["ndarray of float"]
    assert found["error", "ValueError"] == ["If `a` is empty"]
    assert ("default", "a") not in found and ("type", "rest") not in found


def test_questions_without_an_answer_have_none(context):
    found = {(one.kind, one.name) for one in unanswerable(context, ["limit", "mode", "array"])}
    assert found == {("meaning", "limit"), ("type", "limit"), ("default", "limit")}
    bare = make_context("f(a, b=1)", "Adds things.\n\nArgs:\n  a: one\n    thing\n  b: another thing\n")
    assert {(one.kind, one.name) for one in unanswerable(bare, [])} == {
        ("default", "a"),
        ("error", "ValueError"),
        ("result", ""),
    }


def test_the_set(tmp_path, monkeypatch):
    documents = tuple(
        (f"pack/module{n % 20}.py", {"name": f"pack.f{n}", "package": "pack", "entry": f"C.f{n}(a, mode='low')\n\nwhat",
                                    "text": NUMPY.replace("Clip", f"Clip {n}").replace("mode", f"mode{n % 7}")})
        for n in range(100)
    )  # fmt: skip
    monkeypatch.setattr(questions, "read_documents", lambda: documents)
    questions._read_contexts.cache_clear()
    dataset = open_dataset(DataConfig(name="zoo_questions", directory=str(tmp_path)))
    questions._read_contexts.cache_clear()
    train, validation = ([source[i] for i in range(len(source))] for source in dataset.splits.values())
    assert len(validation) > 20 and not {e["context"] for e in train} & {e["context"] for e in validation}
    for example in train + validation:
        answers = example["answers"]
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert text and example["context"][start:].startswith(text)
    assert all(example["context"].startswith(f"{example['title'].removeprefix('pack.')}(") for example in train)
    assert len({example["id"] for example in train + validation}) == len(train + validation)
    assert len({example["question"] for example in train}) > 100
    share = sum(not example["answers"]["text"] for example in train) / len(train)
    assert 0.05 < share < 0.3
