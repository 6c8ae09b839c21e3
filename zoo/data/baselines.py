"""What a model has to beat on the same bytes: an n-gram model, a compressor, token frequencies.

The n-gram model is interpolated Kneser-Ney with three discounts an order (Chen and Goodman, 1999, "An
empirical study of smoothing techniques for language modeling", section 3), over bytes and one symbol that
stands between documents. It is charged for the end of each document too, as a model that must predict eos is.
"""

import dataclasses
import lzma
import math
from collections.abc import Iterable, Sequence

import numpy as np

_BOUNDARY = 256
_NUM_SYMBOLS = 257
# 257^7 < 2^63: an n-gram is the digits of one int64.
_LARGEST_ORDER = 7


def ngram_bits_per_byte(train: Iterable[str], heldout: Iterable[str], order: int = 5) -> float:
    """Bits per UTF-8 byte of `heldout` under a Kneser-Ney byte model of `train`."""
    scored = [text.encode() for text in heldout]
    num_bytes = _count(scored)
    model = KneserNey.fit([text.encode() for text in train], order)
    return float(-model.log2_probabilities(scored).sum() / num_bytes)


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """Bits per UTF-8 byte of `texts` end to end, compressed alone by xz at its strongest (preset 9)."""
    data = [text.encode() for text in texts]
    return 8 * len(lzma.compress(b"".join(data), preset=9)) / _count(data)


def unigram_cross_entropy(
    train_ids: Sequence[int] | np.ndarray, heldout_ids: Sequence[int] | np.ndarray, vocab_size: int
) -> float:
    """Nats per token of `heldout_ids` by the token frequencies of `train_ids`, each counted once more."""
    train, heldout = np.asarray(train_ids, np.int64).ravel(), np.asarray(heldout_ids, np.int64).ravel()
    if not heldout.size:
        raise ValueError("heldout_ids is empty: there is nothing to score")
    for name, ids in (("train_ids", train), ("heldout_ids", heldout)):
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise ValueError(f"{name} reach from {ids.min()} to {ids.max()}, outside vocab_size={vocab_size}")
    counts = np.bincount(train, minlength=vocab_size) + 1
    return float(math.log(counts.sum()) - np.log(counts)[heldout].mean())


@dataclasses.dataclass(frozen=True)
class _Order:
    """The n-grams of one length: sorted codes with the discounted part of their probability, by context."""

    grams: np.ndarray
    discounted: np.ndarray  # (count - discount) / count of its context
    contexts: np.ndarray
    backoff: np.ndarray  # what the discounts free in a context, given to the next shorter one

    @classmethod
    def from_counts(cls, grams: np.ndarray, counts: np.ndarray) -> "_Order":
        contexts, starts = _distinct(grams // _NUM_SYMBOLS)
        totals = np.add.reduceat(counts, starts)
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        sizes = np.diff(np.append(starts, grams.size))
        return cls(
            grams=grams,
            discounted=(counts - discounts) / np.repeat(totals, sizes),
            contexts=contexts,
            backoff=np.add.reduceat(discounts, starts) / totals,
        )

    def interpolate(self, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """The probabilities of `grams`, from those of the next shorter ones."""
        backoff = _look_up(self.contexts, self.backoff, grams // _NUM_SYMBOLS, missing=1.0)
        return _look_up(self.grams, self.discounted, grams, missing=0.0) + backoff * shorter


@dataclasses.dataclass(frozen=True)
class KneserNey:
    """An interpolated model: `orders[n - 1]` holds the n-grams."""

    orders: tuple[_Order, ...]

    @classmethod
    def fit(cls, documents: Sequence[bytes], order: int) -> "KneserNey":
        """Count `documents`. ValueError where there is nothing to count, or `order` is not 1 to 7."""
        if not 1 <= order <= _LARGEST_ORDER:
            raise ValueError(f"order={order} must lie in 1 to {_LARGEST_ORDER}")
        _count(documents)
        codes = np.sort(_encode(documents, order))
        orders = []
        for length in range(order, 0, -1):
            grams, starts = _distinct(codes)
            orders.append(_Order.from_counts(grams, np.diff(np.append(starts, codes.size))))
            # A shorter n-gram counts once for each symbol that is seen before it.
            codes = np.sort(grams % _NUM_SYMBOLS ** (length - 1))
        return cls(tuple(reversed(orders)))

    def log2_probabilities(self, documents: Sequence[bytes]) -> np.ndarray:
        """Of every byte and document end in turn, float64."""
        codes = _encode(documents, len(self.orders))
        probabilities = np.full(codes.size, 1 / _NUM_SYMBOLS)
        for length, order in enumerate(self.orders, 1):
            probabilities = order.interpolate(codes % _NUM_SYMBOLS**length, probabilities)
        return np.log2(probabilities)


def _encode(documents: Sequence[bytes], order: int) -> np.ndarray:
    """The n-gram that ends at each byte and each document end, as an int64 with the last symbol lowest."""
    parts = []
    padding = np.full(order - 1, _BOUNDARY, np.int64)
    for document in documents:
        symbols = np.concatenate([padding, np.frombuffer(document, np.uint8), [_BOUNDARY]])
        codes = np.zeros(len(document) + 1, np.int64)
        for start in range(order):
            codes = codes * _NUM_SYMBOLS + symbols[start : start + codes.size]
        parts.append(codes)
    return np.concatenate(parts)


def _distinct(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values of sorted `codes`, and where each begins."""
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return codes[starts], starts


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, *, missing: float) -> np.ndarray:
    places = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[places] == wanted, values[places], missing)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off a count of 0, 1, 2, and 3 or more: Chen and Goodman's equation 26."""
    n = np.bincount(np.minimum(counts, 5), minlength=5)[:5].astype(float)
    if n[1:].all():
        ratio = n[1] / (n[1] + 2 * n[2])
        estimates = [k - (k + 1) * ratio * n[k + 1] / n[k] for k in (1, 2, 3)]
        if all(0 < estimate < k for k, estimate in enumerate(estimates, 1)):
            return np.array([0.0, *estimates])
    # Too little text for the estimate. Half a count always leaves something for what was never seen.
    return np.array([0.0, 0.5, 0.5, 0.5])


def _count(documents: Sequence[bytes]) -> int:
    """How many bytes there are; ValueError for none."""
    num_bytes = sum(map(len, documents))
    if not num_bytes:
        raise ValueError(f"{len(documents)} documents hold no text: bits per byte need at least one byte")
    return num_bytes
