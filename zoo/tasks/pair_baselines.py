"""Ways of writing a target without a model, that a model of pairs has to beat."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from zoo.tasks.retrieval import tfidf

PairBaseline = Literal["copy", "lead", "nearest"]

_LANGUAGE = re.compile(r"^>>\w+<<\s*")
"""What names the language to write, before a source."""
_ROWS = 512


def write_baseline(
    name: PairBaseline, sources: Sequence[str], train_sources: Sequence[str], train_targets: Sequence[str]
) -> tuple[list[str], str]:
    """Texts for `sources`, and how they were made.

    "copy" repeats the source; "lead" gives as many of its first words as training targets have on average; "nearest"
    gives the target of the training source that is most like it, by TF-IDF of one to four letters, among those with the
    same language to write: a translation memory.
    """
    if name == "copy":
        return [_LANGUAGE.sub("", source) for source in sources], "the source itself"
    if name == "lead":
        num_words = round(np.mean([len(target.split()) for target in train_targets]))
        return [" ".join(source.split()[:num_words]) for source in sources], f"the source's first {num_words} words"
    written = [""] * len(sources)
    for language in {_language(source) for source in sources}:
        mine = [index for index, source in enumerate(train_sources) if _language(source) == language]
        asked = [index for index, source in enumerate(sources) if _language(source) == language]
        nearest = nearest_texts([sources[i] for i in asked], [train_sources[i] for i in mine])
        for index, found in zip(asked, nearest, strict=True):
            written[index] = train_targets[mine[found]]
    return written, "the target of the nearest training source, by TF-IDF of letters"


def _language(source: str) -> str:
    found = _LANGUAGE.match(source)
    return found[0] if found else ""


def nearest_texts(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """For each text the index of the most similar known one."""
    asked, memory = tfidf(texts, known, "letters")
    parts = [(asked[row : row + _ROWS] @ memory.T).argmax(1) for row in range(0, len(texts), _ROWS)]
    return np.concatenate([np.asarray(part).ravel() for part in parts])
