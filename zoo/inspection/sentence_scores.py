"""How likely a language model finds sentences: pseudo-log-likelihood of masked models, log-likelihood of decoders."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.bundle import Bundle
from zoo.config import LanguageModelHead
from zoo.inspection.words import read_sentences
from zoo.training.state import bind_apply

Scored = Literal["shared", "all"]
_ROWS = 16
"""Rows that a compiled call takes."""


@dataclass(frozen=True)
class _Query:
    """A row of ids, and the places whose tokens are asked for."""

    ids: list[int]
    targets: list[int]
    """The tokens that belong at `places`."""
    places: list[int]
    """Whose logits say how likely each target is."""
    sentence: int


def score_pairs(
    bundle: Bundle, pairs: Sequence[tuple[str, str]], *, scored: Scored = "shared"
) -> Float[np.ndarray, " M"]:
    """Score of each pair's first sentence less that of its second, in nats.

    Args:
        bundle: a masked language model or a decoder.
        pairs: of sentences.
        scored: of masked models, "shared" counts the tokens that both sentences have, given all others (Nangia et al.
            2020), so that a word's own frequency does not; "all" counts every token (Salazar et al. 2020). A decoder
            always scores all.

    Raises:
        ValueError: a model without a language-model head, or a masked one without a mask token.
    """
    texts = [text for pair in pairs for text in pair]
    if bundle.config.decoder is not None or scored == "all":
        scores = score_sentences(bundle, texts)
    else:
        ids, content = _encode(bundle, texts)
        places = []
        for first in range(0, len(texts), 2):
            match = difflib.SequenceMatcher(None, ids[first], ids[first + 1], autojunk=False)
            equal = [
                (block.a + step, block.b + step) for block in match.get_matching_blocks() for step in range(block.size)
            ]
            shared = [(a, b) for a, b in equal if a in content[first] and b in content[first + 1]]
            places += [[a for a, _ in shared], [b for _, b in shared]]
        scores = _pseudo_scores(bundle, ids, places)
    return scores[::2] - scores[1::2]


def score_sentences(bundle: Bundle, texts: Sequence[str]) -> Float[np.ndarray, " B"]:
    """Log-likelihood of each text in nats: of a decoder's tokens after its first, or masked one at a time and summed.

    Special tokens are not scored. A decoder whose tokenizer adds no first token reads its end token before the text, if
    it has one, as GPT-2 was trained to.
    """
    ids, content = _encode(bundle, texts)
    if bundle.config.decoder is None:
        return _pseudo_scores(bundle, ids, [sorted(places) for places in content])
    queries = []
    for number, (row, places) in enumerate(zip(ids, content, strict=True)):
        start = bundle.tokenizer.bos_id if bundle.tokenizer.bos_id is not None else bundle.tokenizer.eos_id
        scored = sorted(places)
        if scored[0] == 0 and start is not None:
            row, scored = [start, *row], [place + 1 for place in scored]
        scored = [place for place in scored if place > 0]
        queries.append(_Query(row, [row[place] for place in scored], [place - 1 for place in scored], number))
    return _run(bundle, queries, len(texts))


def _encode(bundle: Bundle, texts: Sequence[str]) -> tuple[list[list[int]], list[set[int]]]:
    """Ids of each text, and the places of those that stand for characters of it."""
    if not isinstance(getattr(bundle.config, "head", None), LanguageModelHead) or (
        bundle.config.encoder is not None and bundle.config.decoder is not None
    ):
        raise ValueError("sentences are scored by a masked language model or a decoder; this model is neither")
    reading = read_sentences(bundle, texts)
    ids = [row[: len(spans)].tolist() for row, spans in zip(reading.inputs["input_ids"], reading.spans, strict=True)]
    return ids, [{place for place, (a, b) in enumerate(spans) if a < b} for spans in reading.spans]


def _pseudo_scores(bundle: Bundle, ids: list[list[int]], places: list[list[int]]) -> Float[np.ndarray, " B"]:
    """The sum over `places` of the log-probability of each token where it alone is hidden."""
    mask = bundle.tokenizer.mask_id
    if mask is None:
        raise ValueError("this model's tokenizer has no mask token, so no token can be hidden; use a masked model")
    queries = [
        _Query([*row[:place], mask, *row[place + 1 :]], [row[place]], [place], number)
        for number, (row, asked) in enumerate(zip(ids, places, strict=True))
        for place in asked
    ]
    return _run(bundle, queries, len(ids))


def _run(bundle: Bundle, queries: Sequence[_Query], num_sentences: int) -> Float[np.ndarray, " B"]:
    scores, score = np.zeros(num_sentences), _scorer(bundle)
    for batch in _batches(queries):
        length = 16 * -(-max(len(query.ids) for query in batch) // 16)  # few lengths, so few programs
        ids, mask = np.zeros((2, _ROWS, length), np.int32)
        targets, weights = np.zeros((_ROWS, length), np.int32), np.zeros((_ROWS, length), np.float32)
        mask[:, 0] = 1  # rows that fill up the batch
        for row, query in enumerate(batch):
            ids[row, : len(query.ids)], mask[row, : len(query.ids)] = query.ids, 1
            targets[row, query.places], weights[row, query.places] = query.targets, 1
        nats = np.asarray(score(bundle.params, ids, mask, targets, weights), np.float64)
        np.add.at(scores, [query.sentence for query in batch], nats[: len(batch)])
    return scores


def _batches(queries: Sequence[_Query]) -> Iterator[Sequence[_Query]]:
    ordered = sorted(queries, key=lambda query: len(query.ids))
    for start in range(0, len(ordered), _ROWS):
        yield ordered[start : start + _ROWS]


def _scorer(bundle: Bundle) -> Callable[..., Float[Array, " B"]]:
    apply = bind_apply(bundle.model)

    @jax.jit
    def score(params: Any, ids: Int[Array, "B T"], mask: Int[Array, "B T"], targets: Int[Array, "B T"], weights):
        """The sum of the targets' log-probabilities in each row, over the places that `weights` counts."""
        logits = apply(params, input_ids=ids, attention_mask=mask).logits.astype(jnp.float32)
        nats = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return (nats * weights).sum(-1)

    return score
