"""`WordVectors`: one vector a word, what is near to a word, and analogies. Files are in `zoo.static.files`."""

import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def split_words(text: str) -> list[str]:
    """The words of a text in small letters: runs of letters, with an apostrophe inside."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True, kw_only=True, eq=False)
class WordVectors:
    """Words and their vectors, the most frequent first where that is known."""

    words: tuple[str, ...]
    matrix: Float[np.ndarray, "V D"]

    def __post_init__(self):
        if self.matrix.ndim != 2 or len(self.words) != len(self.matrix) or not self.matrix.size:
            raise ValueError(f"{len(self.words)} words and a matrix of {self.matrix.shape}; give [words, dimensions]")
        if len(self.index) != len(self.words):
            seen: set[str] = set()
            twice = next(word for word in self.words if word in seen or seen.add(word))
            raise ValueError(f"the word {twice!r} occurs twice; give each word one vector")

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @functools.cached_property
    def unit(self) -> Float[np.ndarray, "V D"]:
        """The vectors at length one, float32; a zero vector stays zero, near to nothing."""
        lengths = np.linalg.norm(self.matrix, axis=-1, keepdims=True)
        return (self.matrix / np.where(lengths == 0, 1, lengths)).astype(np.float32)

    def __contains__(self, word: object) -> bool:
        return word in self.index

    def __len__(self) -> int:
        return len(self.words)

    def rows(self, words: Sequence[str]) -> Int[np.ndarray, " W"]:
        """Where the words stand. ValueError for an unknown one, with the nearest spellings."""
        for word in words:
            if word not in self.index:
                raise ValueError(f"the word {word!r} has no vector among {len(self):,}{self._nearest_spelling(word)}")
        return np.array([self.index[word] for word in words], np.int64)

    def __getitem__(self, word: str) -> Float[np.ndarray, " D"]:
        """The vector of a word. ValueError as in `rows`."""
        return self.matrix[self.rows([word])[0]]

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two words."""
        one, other = self.unit[self.rows([first, second])]
        return float(one @ other)

    def nearest(self, word: str, count: int = 10) -> list[tuple[str, float]]:
        """The other words with the greatest cosines to `word`, the nearest first."""
        return self._greatest(self.unit[self.rows([word])[0]], count, {word})

    def analogy(self, a: str, b: str, c: str, count: int = 10) -> list[tuple[str, float]]:
        """What `c` is to, as `a` is to `b`: the words d with the greatest cos(d, b) - cos(d, a) + cos(d, c).

        3CosAdd over vectors of length one (Mikolov et al. 2013; Levy and Goldberg 2014). The three given words are no
        answers, as is usual: without that, `b` or `c` themselves often come first.
        """
        first, second, third = self.unit[self.rows([a, b, c])]
        return self._greatest(second - first + third, count, {a, b, c})

    def _greatest(self, wanted: Float[np.ndarray, " D"], count: int, left_out: set[str]) -> list[tuple[str, float]]:
        if count < 1:
            raise ValueError(f"count is {count}; ask for at least one word")
        scores = self.unit @ wanted
        scores[[self.index[word] for word in left_out]] = -np.inf
        count = min(count, len(self) - len(left_out))
        best = np.argsort(-scores, kind="stable")[:count]
        return [(self.words[row], float(scores[row])) for row in best]

    def _nearest_spelling(self, word: str) -> str:
        # Of millions of words, those that could be meant: comparing with all of them would take a minute.
        alike = [known for known in self.words if known[:1] == word[:1] and abs(len(known) - len(word)) <= 2]
        close = difflib.get_close_matches(word, alike or self.words[:10_000], n=3, cutoff=0.6)
        close = [word.lower()] if word.lower() in self.index else close
        return f"; did you mean {' or '.join(map(repr, close))}?" if close else "; no known word is spelt like it"
