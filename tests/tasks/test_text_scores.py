"""Scores of written texts are the packages' own, and a package that is missing is named."""

import sys

import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from zoo.tasks.text_scores import check_scores, score_texts, signature

WANTED = ["the cat sat on the mat today", "four dogs ran home at once", "it rains"]
WRITTEN = ["the cat sat on the mat", "four dogs ran home at once", "it snows"]


def test_perfect_texts_score_a_hundred():
    scores = score_texts(("exact_match", "bleu", "chrf", "rouge"), WANTED, WANTED)
    assert set(scores) == {"exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert all(score == pytest.approx(100) for score in scores.values())


def test_known_values():
    scores = score_texts(("exact_match", "rouge"), WRITTEN, WANTED)
    assert scores["exact_match"] == pytest.approx(100 / 3)
    # 6 of 6 words found of 7, all, and one of two: F of 12/13, 1 and 1/2.
    assert scores["rouge1"] == pytest.approx(100 * (12 / 13 + 1 + 1 / 2) / 3)


def test_bleu_is_of_the_whole_set():
    # Papineni et al. 2002: clipped counts over the set, and a penalty for its length. 13a tokens, up to four.
    matches, written = [13, 10, 8, 6], [14, 11, 8, 6]
    precisions = [m / n for m, n in zip(matches, written, strict=True)]
    expected = 2.718281828 ** (1 - 15 / 14)
    for precision in precisions:
        expected *= precision**0.25
    assert score_texts(("bleu",), WRITTEN, WANTED)["bleu"] == pytest.approx(100 * expected, rel=1e-4)


def test_signatures():
    assert "tok:13a" in signature("bleu") and "version:" in signature("bleu")
    assert "nc:6" in signature("chrf")
    assert "rouge-score" in signature("rougeL")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    check_scores(("exact_match",))
    with pytest.raises(ValueError, match="sacrebleu, which is not installed: pip install"):
        check_scores(("bleu",))
