"""Words into numbers without context: counts of words in texts, and one vector a word whatever stands around it.

    vectors = read_vectors("glove.6B.100d.txt")          # or word2vec's text and binary files, or .npy
    vectors.nearest("river", 5)
    vectors.analogy("man", "king", "woman")              # man is to king as woman is to ...

    vectors = train_skipgram(texts, SkipGramConfig())    # skip-gram with negative sampling, in JAX
    write_vectors(vectors, "vectors.txt")

`python -m zoo.static --help` has the same as commands. The names load on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.static.counts import TextCounts, count_words
    from zoo.static.files import read_vectors, write_vectors
    from zoo.static.similarity import PairScores, read_pairs, score_pairs
    from zoo.static.skipgram import SkipGramConfig, train_skipgram
    from zoo.static.vectors import WordVectors, split_words

_HOME = {
    "PairScores": "similarity",
    "SkipGramConfig": "skipgram",
    "TextCounts": "counts",
    "WordVectors": "vectors",
    "count_words": "counts",
    "read_pairs": "similarity",
    "read_vectors": "files",
    "score_pairs": "similarity",
    "split_words": "vectors",
    "train_skipgram": "skipgram",
    "write_vectors": "files",
}
__all__ = [
    "PairScores",
    "SkipGramConfig",
    "TextCounts",
    "WordVectors",
    "count_words",
    "read_pairs",
    "read_vectors",
    "score_pairs",
    "split_words",
    "train_skipgram",
    "write_vectors",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'zoo.static' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"zoo.static.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
