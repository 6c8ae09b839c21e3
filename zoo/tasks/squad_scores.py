"""Exact match and F1 of answers, as SQuAD's own scorer takes them (Rajpurkar et al. 2016; 2018 for questions without
an answer).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(answer: str) -> str:
    """Lower case, without punctuation, articles, and white space beyond single spaces."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, wanted: str) -> float:
    """1 where both are the same when normalised, else 0."""
    return float(normalize(answer) == normalize(wanted))


def f1(answer: str, wanted: str) -> float:
    """The harmonic mean of precision and recall over words, from 0 to 1; of two answers one of which has no words, 1
    where neither has.
    """
    said, right = normalize(answer).split(), normalize(wanted).split()
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def score_answers(answers: Sequence[str], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over questions, times 100, each answer against the most similar of those wanted: "exact" and "f1".

    An empty answer is right where nothing is wanted. Where some questions have an answer and some have none, there are
    "has_answer_exact", "has_answer_f1" and "no_answer_exact" of each part too; the latter's F1 is the same.
    """
    scores: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for answer, texts in zip(answers, wanted, strict=True):
        # As the scorer does: a text without a word in it is no answer.
        known = [text for text in texts if normalize(text)]
        exact, words = (max(score(answer, text) for text in known or [""]) for score in (exact_match, f1))
        scores[bool(known)].append((exact, words))
    found = _means(scores[True] + scores[False])
    if scores[True] and scores[False]:
        found |= {f"has_answer_{name}": value for name, value in _means(scores[True]).items()}
        found["no_answer_exact"] = _means(scores[False])["exact"]
    return found


def _means(scores: list[tuple[float, float]]) -> dict[str, float]:
    columns = zip(("exact", "f1"), zip(*scores, strict=True), strict=True)
    return {name: 100 * sum(column) / len(scores) for name, column in columns}
