"""How well a search finds: ranks, recall and mean reciprocal rank, of vectors and of the words that texts share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from zoo.static import count_words

RECALL = (1, 5, 10)
"""How many found texts a right one is looked for among."""
FOUND = 10
"""How many texts an answer shows at the most."""
_ROWS = 512


def find_answers(sources: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """The distinct targets, and for each source which of them are right: all that stand beside an equal source."""
    places = {text: place for place, text in enumerate(dict.fromkeys(targets))}
    right: dict[str, set[int]] = {}
    for source, target in zip(sources, targets, strict=True):
        right.setdefault(source, set()).add(places[target])
    return list(places), [sorted(right[source]) for source in sources]


def rank_answers(asked: Any, known: Any, answers: Sequence[Sequence[int]]) -> Float[np.ndarray, " Q"]:
    """For each query the rank of its nearest right text, 1 the first, by the products of `asked` and `known`.

    Both are dense or sparse matrices, [Q, D] and [P, D]. A text as near as the right one counts half before it; other
    right ones do not count.
    """
    ranks = []
    for start in range(0, asked.shape[0], _ROWS):
        scores = asked[start : start + _ROWS] @ known.T
        scores = scores if isinstance(scores, np.ndarray) else scores.toarray()
        for row, right in zip(scores, answers[start:], strict=False):
            best, others = row[list(right)].max(), np.delete(row, right)
            ranks.append(1 + (others > best).sum() + (others == best).sum() / 2)
    return np.array(ranks)


def score_ranks(ranks: Float[np.ndarray, " Q"]) -> dict[str, float]:
    """Shares of queries whose right text is among the first few, and the mean reciprocal rank, from 0 to 100."""
    recall = {f"recall_at_{count}": 100 * float((ranks <= count).mean()) for count in RECALL}
    return recall | {"mrr": 100 * float((1 / ranks).mean())}


def nearest(
    asked: Float[np.ndarray, " D"], known: Float[np.ndarray, "P D"], count: int = FOUND
) -> list[tuple[int, float]]:
    """The rows of `known` and their products with `asked`, greatest first: cosines of vectors of length one."""
    cosines = known @ asked
    return [(int(place), float(cosines[place])) for place in np.argsort(-cosines, kind="stable")[:count]]


def tfidf(texts: Sequence[str], known: Sequence[str], share: str) -> tuple[Any, Any]:
    """Both as sparse rows of length one, weighted as `known` suggests. ValueError where scikit-learn is missing."""
    counts = count_words(known, shared=share)
    return counts(texts), counts.matrix
