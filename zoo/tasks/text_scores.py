"""The field's own scores of written texts: BLEU and chrF by sacrebleu, ROUGE by rouge-score, exact match."""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

TextScore = Literal["exact_match", "bleu", "chrf", "rouge"]

_ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def score_texts(names: Sequence[TextScore], written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Scores of a whole set, from 0 to 100; `wanted` has one reference a text.

    "rouge" gives four: F-measures of one and of two words, and of the longest common subsequence of the text and of
    its lines (Lin 2004), stemmed, each the mean over texts.
    """
    found: dict[str, float] = {}
    for name in names:
        if name == "exact_match":
            found[name] = 100 * sum(a == b for a, b in zip(written, wanted, strict=True)) / len(wanted)
        elif name == "rouge":
            scorer = _rouge()
            scores = [scorer.score(target, text) for text, target in zip(written, wanted, strict=True)]
            found |= {key: 100 * sum(score[key].fmeasure for score in scores) / len(scores) for key in _ROUGE}
        else:
            found[name] = _sacrebleu(name).corpus_score(list(written), [list(wanted)]).score
    return found


def check_scores(names: Sequence[TextScore]) -> None:
    """Raise ValueError for a score whose package is not installed."""
    for name in names:
        if name != "exact_match":
            _rouge() if name == "rouge" else _sacrebleu(name)


def signature(name: str) -> str:
    """How a score was taken, for those who compare figures."""
    if name in _ROUGE:
        return "F-measure, stemmed, rouge-score"
    if name == "exact_match":
        return "share of texts that are the reference"
    metric = _sacrebleu(name)
    metric.corpus_score(["a"], [["a"]])  # the signature counts the references
    return str(metric.get_signature())


def _sacrebleu(name: str) -> Any:
    metrics = _import("sacrebleu")
    return metrics.BLEU() if name == "bleu" else metrics.CHRF()


def _rouge() -> Any:
    return _import("rouge_score.rouge_scorer").RougeScorer(_ROUGE, use_stemmer=True)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.partition(".")[0].replace("_", "-")
        raise ValueError(f"this task is scored by {package}, which is not installed: pip install {package}") from None
