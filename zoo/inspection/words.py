"""Words in a model: which of its tokens they are, their rows of the token table, and their states in a sentence.

A word that is several tokens has the mean of theirs. Left out: encoder-decoders and dual encoders, whose texts have no
single row of states.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from zoo.bundle import Bundle
from zoo.data import Tokenizer
from zoo.static import WordVectors
from zoo.tokenization import PretrainedTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Texts as a model reads them, padded on the right."""

    inputs: dict[str, Int[np.ndarray, "B T"]]
    tokens: list[list[str]]
    """How each row's tokens are spelt, without padding."""
    spans: list[list[tuple[int, int]]]
    """Which characters of its text each token stands for; (0, 0) for special tokens."""


def read_sentences(bundle: Bundle, texts: Sequence[str]) -> Reading:
    """Tokenise. ValueError for a tokenizer that does not say which characters a token stands for, or is not there."""
    tokenizer, texts = bundle.tokenizer, list(texts)
    if isinstance(tokenizer, Tokenizer):
        encoded = [tokenizer.encode_with_offsets(text) for text in texts]
        length = 2 + max(len(ids) for ids, _ in encoded)
        rows = [tokenizer.encode_row([text], length) for text in texts]
        inputs = {name: np.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
        spans = [[(0, 0), *map(tuple, offsets.tolist()), (0, 0)] for _, offsets in encoded]
        spell = tokenizer.piece
    elif isinstance(tokenizer, PretrainedTokenizer):
        inputs = tokenizer(texts, padding_side="right")
        spans = [tokenizer.offsets(text).offsets for text in texts]
        spell = tokenizer.coder.token
    else:
        raise ValueError(getattr(tokenizer, "reason", "this model has no tokenizer, so it reads no words"))
    if not all(any(begin < end for begin, end in row) for row in spans):
        raise ValueError("this model's tokenizer does not say which characters a token stands for; use another model")
    tokens = [
        [
            text[begin:end].strip() if begin < end else str(spell(int(token)))
            for token, (begin, end) in zip(ids, row, strict=False)
        ]
        for text, ids, row in zip(texts, inputs["input_ids"], spans, strict=True)
    ]
    return Reading(inputs=inputs, tokens=tokens, spans=spans)


def find_word(text: str, word: str) -> tuple[int, int]:
    """Where a word stands in a text, whatever the case of its letters. ValueError unless it is there exactly once."""
    found = [match.span() for match in re.finditer(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)]
    if len(found) != 1:
        raise ValueError(f"the word {word!r} stands {len(found)} times in {text!r}; write it once in each sentence")
    return found[0]


def word_states(
    bundle: Bundle, texts: Sequence[str], words: Sequence[str]
) -> tuple[Float[np.ndarray, "L+1 B D"], Reading]:
    """The states of one word in each text: of the embeddings, and after each layer. ValueError as above.

    Args:
        bundle: an encoder, or a decoder, whose words see what stands before them alone.
        texts: one word's surroundings each.
        words: which, once in its text.
    """
    stacks = [getattr(bundle.config, name, None) for name in ("encoder", "decoder")]
    if sum(stack is not None for stack in stacks) != 1:
        raise ValueError("this model has no single stack of layers; give an encoder (BERT and its kin) or a decoder")
    reading = read_sentences(bundle, texts)
    states = bundle(**reading.inputs, output_hidden_states=True).hidden_states
    assert states is not None  # they were asked for
    found = []
    for row, (text, word) in enumerate(zip(texts, words, strict=True)):
        begin, end = find_word(text, word)
        places = [place for place, (first, last) in enumerate(reading.spans[row]) if first < end and last > begin]
        found.append(np.stack([np.asarray(layer[row])[places].mean(0) for layer in states]))
    return np.stack(found, 1), reading


def input_vectors(bundle: Bundle, words: Sequence[str]) -> WordVectors:
    """The model's static vectors: rows of its token table, of no place and no context. ValueError without one."""
    table = bundle.params.get("embedder", {}).get("token", {}).get("embedding")
    if table is None or not isinstance(bundle.tokenizer, Tokenizer | PretrainedTokenizer):
        raise ValueError("this model has no table of tokens, or no tokenizer; give a file of word vectors")
    table, distinct = np.asarray(table, np.float32), tuple(dict.fromkeys(words))
    return WordVectors(words=distinct, matrix=np.stack([table[word_ids(bundle, word)].mean(0) for word in distinct]))


def word_ids(bundle: Bundle, word: str) -> list[int]:
    """The tokens of a word within a text: with a space before it where the vocabulary has such words."""
    options = {} if isinstance(bundle.tokenizer, Tokenizer) else {"add_special_tokens": False}
    spelt = [bundle.tokenizer.encode(text, **options) for text in (f" {word}", word)]
    return min(filter(None, spelt), key=len)
