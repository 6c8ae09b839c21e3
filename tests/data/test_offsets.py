"""Which characters of a text each token stands for."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zoo.data import TokenizerConfig, train_tokenizer
from zoo.data.tokenizer import REWRITTEN

STRANGE = "".join(old for old, _ in REWRITTEN)


@pytest.fixture(scope="module", params=[True, False])
def tokenizer(request):
    texts = [f"the words of line {n},\n\n  more: {n * n} é\n" for n in range(200)]
    return train_tokenizer(texts, TokenizerConfig(vocab_size=320, cross_words=request.param))


@given(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(f"the words:\n é{STRANGE}"))))
@example("the\twords \u3000 of 日本 😀\r\n\n  more" + STRANGE)
@example("")
def test_tokens_tile_the_text(tokenizer, text):
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and offsets.shape == (len(ids), 2)
    covered = np.zeros(len(text), int)
    for begin, end in offsets:
        assert 0 <= begin < end <= len(text)
        covered[begin:end] += 1
    assert covered.all()
    # Only a character that is spelt in bytes, or behind an escape, has several tokens.
    several = {text[place] for place in np.flatnonzero(covered > 1)}
    assert all(character in STRANGE or not character.isascii() or not character.isprintable() for character in several)


def test_each_token_stands_for_what_it_says(tokenizer):
    text = "line 3, the words of é,\n\n  more: 9"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert [tokenizer.decode([token]) for token in ids] == [text[begin:end] for begin, end in offsets]
