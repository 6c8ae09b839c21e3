"""Texts as counts: bag of words and TF-IDF, by scikit-learn (the extra `tasks`), as sparse rows."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

Weighting = Literal["counts", "tfidf"]
SHARED: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word"},
    "every word": {"analyzer": "word", "token_pattern": r"\w+"},
    "letters": {"analyzer": "char_wb", "ngram_range": (1, 4)},
}
"""What texts may share: words of two letters at least, every word, or runs of one to four letters within a word, as
scikit-learn cuts them."""


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """Texts as rows over what occurs in them, and what turns further texts into such rows."""

    words: tuple[str, ...]
    """What each column counts."""
    matrix: Any
    """Sparse, [texts, words], float32."""
    vectorizer: Any

    def __call__(self, texts: Sequence[str]) -> Any:
        """Further texts as sparse rows; words that are no column are left out."""
        return self.vectorizer.transform(texts)

    def similarities(self, texts: Sequence[str]) -> Float[np.ndarray, "A P"]:
        """Cosines of each of `texts` with each of the counted ones; a text without a known word has 0."""
        normalize = _scikit("preprocessing").normalize
        return (normalize(self(texts)) @ normalize(self.matrix).T).toarray()


def count_words(texts: Sequence[str], *, weighting: Weighting = "tfidf", shared: str = "words") -> TextCounts:
    """Count what occurs in texts.

    Args:
        texts: one row each.
        weighting: "counts" is the bag of words. "tfidf" weighs a count by how few of the texts have the word
            (Spärck Jones 1972), in scikit-learn's smoothed form, and makes rows of length one.
        shared: a key of `SHARED`.

    Raises:
        ValueError: scikit-learn is missing, `shared` is unknown, or no text has a word.
    """
    if shared not in SHARED:
        raise ValueError(f"shared={shared!r} is unknown; choose from {', '.join(SHARED)}")
    features = _scikit("feature_extraction.text")
    kind = features.CountVectorizer if weighting == "counts" else features.TfidfVectorizer
    vectorizer = kind(dtype=np.float32, **SHARED[shared])
    matrix = vectorizer.fit_transform(texts)
    return TextCounts(words=tuple(vectorizer.get_feature_names_out()), matrix=matrix, vectorizer=vectorizer)


def _scikit(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError:
        raise ValueError("counting words needs scikit-learn: pip install scikit-learn") from None
