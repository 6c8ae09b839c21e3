"""The vectorised n-gram model against its definition in plain Python; what the other baselines must be."""

import lzma
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from zoo.data import ngram_bits_per_byte, unigram_cross_entropy, xz_bits_per_byte
from zoo.data.baselines import KneserNey

WORDS = ["the", "cat", "dog", "sat", "on", "mat", "log", "saw", "a", "and", "ran", "to", "ça", "over"]
DRAW = random.Random(0)
TRAIN = [" ".join(DRAW.choices(WORDS, k=25)) + ".\n" for _ in range(12)] + ["", "va\x00\x01"]
HELDOUT = ["the dog and the cat sat on a log", "zebra", "", "ça"]
FALLBACK = [0, 0.5, 0.5, 0.5]


class Definition:
    """Interpolated modified Kneser-Ney as Chen and Goodman write it, one dictionary at a time."""

    def __init__(self, texts, order):
        self.order = order
        raw = Counter()
        for text in texts:
            symbols = self.symbols(text)
            raw.update(tuple(symbols[i : i + order]) for i in range(len(symbols) - order + 1))
        self.counts = {order: raw}
        for n in range(order - 1, 0, -1):
            preceding = defaultdict(set)
            for gram in self.counts[n + 1]:
                preceding[gram[1:]].add(gram[0])
            self.counts[n] = {gram: len(before) for gram, before in preceding.items()}
        self.discounts = {n: self.estimate(self.counts[n].values()) for n in self.counts}

    def symbols(self, text):
        return [256] * (self.order - 1) + list(text.encode()) + [256]

    @staticmethod
    def estimate(counts):
        n = [sum(count == k for count in counts) for k in range(5)]
        if not all(n[1:]):
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        raw = [k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3)]
        return [0, *raw] if all(0 < d < k for k, d in enumerate(raw, 1)) else FALLBACK

    def probability(self, context, symbol):
        n = len(context) + 1
        shorter = self.probability(context[1:], symbol) if context else 1 / 257
        seen = {gram[-1]: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        if not seen:
            return shorter
        total, discounts = sum(seen.values()), self.discounts[n]
        freed = sum(discounts[min(count, 3)] for count in seen.values())
        count = seen.get(symbol, 0)
        return (count - discounts[min(count, 3)] + freed * shorter) / total

    def bits(self, text):
        symbols, n = self.symbols(text), self.order
        return [
            -math.log2(self.probability(tuple(symbols[i - n + 1 : i]), symbols[i])) for i in range(n - 1, len(symbols))
        ]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_ngram_equals_its_definition(order):
    definition = Definition(TRAIN, order)
    bits = [bit for text in HELDOUT for bit in definition.bits(text)]
    num_bytes = sum(len(text.encode()) for text in HELDOUT)
    model = KneserNey.fit([text.encode() for text in TRAIN], order)
    found = model.log2_probabilities([text.encode() for text in HELDOUT])
    np.testing.assert_allclose(-found, bits, rtol=1e-12)
    assert ngram_bits_per_byte(TRAIN, HELDOUT, order) == pytest.approx(sum(bits) / num_bytes, rel=1e-12)


def test_the_test_above_meets_estimated_discounts_and_the_fallback():
    discounts = Definition(TRAIN, 5).discounts
    assert FALLBACK not in (discounts[5], discounts[4])
    assert discounts[1] == FALLBACK


@pytest.mark.parametrize("context", [b"", b"t", b"the ", b"sat on", b"never seen", b"\xff\xfe"])
def test_probabilities_of_what_may_follow_sum_to_one(context):
    model = KneserNey.fit([text.encode() for text in TRAIN], 4)
    follow = [context + bytes([symbol]) for symbol in range(256)]
    probabilities = [2 ** model.log2_probabilities([text])[len(context)] for text in [*follow, context]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    assert min(probabilities) > 0


def test_a_longer_context_helps_on_code(stdlib):
    train, heldout = (
        [s[i]["text"] for i in range(min(len(s), 80))] for s in map(stdlib.split, ("train", "validation"))
    )
    bits = [ngram_bits_per_byte(train, heldout, order) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert 4.2 < bits[0] < 5.2  # order 1 is the entropy of letters, spaces and signs
    assert 1.5 < bits[-1] < 2.6


def test_random_bytes_cannot_be_predicted():
    draw = np.random.default_rng(0)
    train, heldout = ("".join(map(chr, draw.integers(0, 128, size))) for size in (200_000, 2_000))
    assert ngram_bits_per_byte([train], [heldout]) == pytest.approx(7.1, abs=0.1)


def test_xz_is_the_size_of_the_compressed_text():
    texts = ["é" * 500, "b" * 1000]
    compressed = lzma.compress(("é" * 500 + "b" * 1000).encode(), preset=9)
    assert xz_bits_per_byte(texts) == 8 * len(compressed) / 2000


def test_unigram_is_add_one():
    # Counts 3 + 1, 1 + 1, 0 + 1 of 7.
    wanted = -(math.log(4 / 7) + math.log(1 / 7)) / 2
    assert unigram_cross_entropy([0, 0, 0, 1], [0, 2], 3) == pytest.approx(wanted)
    assert unigram_cross_entropy([], np.array([[0, 1]]), 4) == pytest.approx(math.log(4))


def test_nothing_to_measure_is_an_error():
    for measure in (
        lambda: xz_bits_per_byte([""]),
        lambda: ngram_bits_per_byte(["a"], []),
        lambda: ngram_bits_per_byte([], ["a"]),
    ):
        with pytest.raises(ValueError, match="hold no text"):
            measure()
    with pytest.raises(ValueError, match="order=8 must lie in 1 to 7"):
        ngram_bits_per_byte(["a"], ["a"], order=8)
    with pytest.raises(ValueError, match="heldout_ids is empty"):
        unigram_cross_entropy([1], [], 4)
    with pytest.raises(ValueError, match="train_ids reach from 0 to 4, outside vocab_size=4"):
        unigram_cross_entropy([0, 4], [1], 4)
