"""Questions with their contexts and answers, in the layout of SQuAD's releases (JSON), or one a line (JSONL).

An example is {"id", "title", "context", "question", "answers": {"text": [...], "answer_start": [...]}}, as TFDS gives
SQuAD; a question without an answer has empty lists, or "is_impossible": true and none. Every answer is checked against
its context.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Example = dict[str, Any]

_TYPES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


def read_squad(path: Path, text: str) -> Iterator[Example]:
    """The questions of a JSON file: data, paragraphs, qas. ValueError naming the file and the place in it."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{str(path)!r} line {error.lineno} is not JSON: {error.msg} at column {error.colno}"
        ) from None
    file, seen = repr(str(path)), {}
    if not isinstance(content, dict):
        raise ValueError(f"{file} is a JSON {type(content).__name__}; SQuAD's layout is an object with a list 'data'")
    for i, article in enumerate(_part(content, "data", list, file)):
        place = f"{file} data[{i}]"
        for j, paragraph in enumerate(_part(article, "paragraphs", list, place)):
            inner = f"{place}.paragraphs[{j}]"
            shared = {"title": article.get("title", ""), "context": _part(paragraph, "context", str, inner)}
            for k, question in enumerate(_part(paragraph, "qas", list, inner)):
                where = f"{inner}.qas[{k}]"
                where += _name_line(text, _part(question, "id", str, where))
                yield read_question({**question, **shared}, where, seen)


def _name_line(text: str, name: str) -> str:
    """The id, and its line where the file spells it once."""
    spelt = json.dumps(name)
    line = f", line {text.count(chr(10), 0, text.index(spelt)) + 1}" if text.count(spelt) == 1 else ""
    return f" (id {name!r}{line})"


def read_question(fields: dict[str, Any], where: str, seen: dict[str, str]) -> Example:
    """One question, checked; `seen` remembers where each id was. ValueError naming `where`.

    Answers are a list of {"text", "answer_start"}, as in SQuAD's files, or an object of two lists.
    """
    context, name = _part(fields, "context", str, where), _part(fields, "id", str, where)
    if seen.setdefault(name, where) != where:
        raise ValueError(f"{where} has the id of {seen[name]}: give each question its own")
    if "answers" not in fields and fields.get("is_impossible") is not True:
        raise ValueError(
            f"{where} has no 'answers'; give a list of {{'text', 'answer_start'}}, or 'is_impossible': true for a "
            "question that its context does not answer"
        )
    answers = _part({"answers": [], **fields}, "answers", (list, dict), where)
    if isinstance(answers, dict):
        columns = [_part(answers, key, list, f"{where} answers") for key in ("text", "answer_start")]
        if len(columns[0]) != len(columns[1]):
            raise ValueError(f"{where} has {len(columns[0])} answers and {len(columns[1])} places where they start")
        answers = [{"text": text, "answer_start": start} for text, start in zip(*columns, strict=True)]
    for answer in answers:
        _check_answer(context, answer, where)
    impossible = fields.get("is_impossible", not answers)
    if impossible is not (not answers):
        raise ValueError(f"{where} has is_impossible={impossible!r} and {len(answers)} answers; one of them is wrong")
    return {
        "id": name,
        "title": str(fields.get("title", "")),
        "context": context,
        "question": _part(fields, "question", str, where),
        "answers": {key: [answer[key] for answer in answers] for key in ("text", "answer_start")},
    }


def _check_answer(context: str, answer: Any, where: str) -> None:
    said, start = _part(answer, "text", str, f"{where} answer"), _part(answer, "answer_start", int, f"{where} answer")
    if start < 0 or context[start : start + len(said)] != said:
        found = context[max(start, 0) : max(start, 0) + len(said)]
        raise ValueError(
            f"{where} has the answer {said[:60]!r} with answer_start {start}, where the context has {found[:60]!r}: "
            "count characters from 0, not bytes or words"
        )


def _part(value: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """`value[key]`, of a type and not blank."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {str(value)[:60]!r}, not an object with {key!r}")
    kinds = kind if isinstance(kind, tuple) else (kind,)
    found = value.get(key)
    wanted = " or ".join(_TYPES[one] for one in kinds)
    if key not in value:
        raise ValueError(f"{where} has no {key!r}; give {wanted}")
    if not isinstance(found, kinds) or isinstance(found, bool):
        raise ValueError(f"{where} has {key!r}: {str(found)[:60]!r}; give {wanted}")
    if isinstance(found, str) and not found.strip():
        raise ValueError(f"{where} has a blank {key!r}")
    return found
