"""How well vectors agree with people about which words are alike: Spearman's rank correlation over judged pairs."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from zoo.static.vectors import WordVectors


@dataclass(frozen=True)
class JudgedPair:
    """Two words and how alike people find them, on any scale."""

    first: str
    second: str
    score: float


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Agreement with judged pairs."""

    correlation: float
    """Spearman's, from -1 to 1, over the pairs whose words both have vectors."""
    num_scored: int
    num_pairs: int
    unknown: tuple[str, ...]
    """Words without a vector, whose pairs are left out."""


def read_pairs(path: str | os.PathLike) -> list[JudgedPair]:
    """Judged pairs of words from a file such as WordSim-353, SimLex-999 or MEN.

    Two words and a score a row, split by tabs, commas or spaces, whichever the first row has. The score is the first
    column after the words that holds a number (SimLex-999 has a part of speech before it). A first row without a number
    is a heading; lines that are blank or begin with # are skipped.

    Raises:
        ValueError: a malformed row, named by file and line.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not numbered:
        raise ValueError(f"{path} has no pairs; each row is two words and a score")
    separator = next((mark for mark in ("\t", ",") if mark in numbered[0][1]), None)
    rows = [(n, [field.strip().strip('"') for field in line.strip().split(separator)]) for n, line in numbered]
    if not any(map(_is_number, rows[0][1][2:])):
        rows = rows[1:]
    column = (
        next((place for place, field in enumerate(rows[0][1]) if place > 1 and _is_number(field)), 2) if rows else 2
    )
    pairs = []
    for number, fields in rows:
        if len(fields) <= column or not fields[0] or not fields[1] or not _is_number(fields[column]):
            raise ValueError(
                f"{path}:{number} is {fields}; two words and, in column {column + 1}, a score belong there"
            )
        pairs.append(JudgedPair(fields[0], fields[1], float(fields[column])))
    if not pairs:
        raise ValueError(f"{path} has a heading and no pairs; each row is two words and a score")
    return pairs


def score_pairs(vectors: WordVectors, pairs: Sequence[JudgedPair]) -> PairScores:
    """Spearman's correlation of cosines and judgements. A word is looked up as it is spelt, else in small letters.

    Raises:
        ValueError: fewer than three pairs have vectors, or all scores are equal, so nothing can be correlated.
    """
    found = [(_known(vectors, pair.first), _known(vectors, pair.second), pair) for pair in pairs]
    scored = [(first, second, pair.score) for first, second, pair in found if first is not None and second is not None]
    missing = [word for first, second, pair in found for word, known in ((pair.first, first), (pair.second, second))
               if known is None]  # fmt: skip
    if len(scored) < 3:
        raise ValueError(
            f"{len(scored)} of {len(pairs)} pairs have vectors for both words, and a correlation needs 3: "
            f"{', '.join(dict.fromkeys(missing))} have none"
        )
    cosines = np.array([vectors.similarity(first, second) for first, second, _ in scored])
    return PairScores(
        correlation=spearman(cosines, np.array([score for *_, score in scored])),
        num_scored=len(scored),
        num_pairs=len(pairs),
        unknown=tuple(dict.fromkeys(missing)),
    )


def spearman(x: Float[np.ndarray, " M"], y: Float[np.ndarray, " M"]) -> float:
    """Correlation of the ranks; equal values share the mean of their ranks. ValueError where one side is constant."""
    first, second = _ranks(x), _ranks(y)
    if first.std() == 0 or second.std() == 0:
        raise ValueError("all values of one side are equal, so there is nothing to correlate")
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _known(vectors: WordVectors, word: str) -> str | None:
    return next((form for form in (word, word.lower()) if form in vectors), None)


def _is_number(field: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", field) is not None
