"""Finding answers without a model: the sentence most like the question."""

import re
from collections.abc import Sequence

from zoo.static import count_words

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def nearest_sentences(questions: Sequence[str], contexts: Sequence[str]) -> list[str]:
    """Of each context the sentence most similar to its question, by the cosine of TF-IDF vectors of words.

    How rare a word is counts over the sentences of all these contexts.
    """
    parts = {context: [part for part in _SENTENCE_END.split(context) if part] for context in dict.fromkeys(contexts)}
    places, sentences = {}, []
    for context, said in parts.items():
        places[context] = slice(len(sentences), len(sentences) + len(said))
        sentences += said
    counts = count_words(sentences, shared="every word")
    known, asked = counts.matrix, counts(questions)
    found = []
    for row, context in enumerate(contexts):
        likeness = (known[places[context]] @ asked[row].T).toarray().ravel()
        found.append(parts[context][int(likeness.argmax())] if likeness.size else "")
    return found
