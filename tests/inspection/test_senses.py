"""Senses: attention without weights against its formula, learned weights against the model, scores against oracles."""

import json

import jax
import numpy as np
import pytest
from checkpoints import write_checkpoint

import zoo
from zoo.inspection.senses import (
    Placement,
    Sense,
    contextual_placements,
    learned_attention,
    main,
    read_senses,
    static_placements,
    weight_free_attention,
    weight_table,
)
from zoo.inspection.words import find_word, input_vectors, read_sentences, word_ids, word_states
from zoo.static import WordVectors

FIRST = Sense(name="money", anchors=("a",), sentences=("the bank raised money", "money in the bank", "bank money"))
SECOND = Sense(name="river", anchors=("b",), sentences=("the bank of the river", "a bank and a river"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return zoo.load(write_checkpoint(tmp_path_factory.mktemp("senses") / "bert", "bert", "masked_lm"))


def placement(vectors, anchors=((1.0, 0.0), (0.0, 1.0))) -> Placement:
    return Placement(word="bank", way="static", senses=(FIRST, SECOND), vectors=np.array(vectors, float),
                     anchors=np.array(anchors))  # fmt: skip


def test_attention_without_weights_is_the_formula():
    vectors = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    exact = vectors.astype(float)
    weights = np.exp(exact @ exact.T)
    weights /= weights.sum(-1, keepdims=True)
    out, found = weight_free_attention(vectors)
    np.testing.assert_allclose(found, weights, atol=2e-6)
    np.testing.assert_allclose(out, weights @ exact, atol=1e-5)


def test_static_vectors_do_not_know_their_sentence_and_attention_without_weights_does():
    draw = np.random.default_rng(0)
    words = ("bank", "money", "river", "raised", "in", "of", "a", "b")
    vectors = WordVectors(words=words, matrix=draw.normal(size=(len(words), 4)))
    static, mixed = static_placements("bank", (FIRST, SECOND), vectors)
    assert np.ptp(static.vectors, axis=0).max() == 0
    assert (static.separation, static.accuracy, static.silhouette) == (0.5, 0.5, 0.0)
    rows = vectors.matrix[[words.index(word) for word in ("bank", "raised", "money")]]  # "the" has no vector
    weights = np.exp(rows @ rows[0])
    np.testing.assert_allclose(mixed.vectors[0], weights / weights.sum() @ rows, atol=1e-5)
    with pytest.raises(ValueError, match="'bank' has no vector"):
        static_placements("bank", (FIRST, SECOND), WordVectors(words=words[1:], matrix=vectors.matrix[1:]))


def test_scores_of_heaps():
    apart = placement([[5, 0.1], [1, 0.1], [2, 0], [0.1, 1], [0, 3]])
    assert (apart.separation, apart.accuracy) == (1, 1)
    assert apart.silhouette > 0.95
    swapped = placement([[0.1, 1], [0, 3], [0.2, 1], [5, 0.1], [1, 0.1]])
    assert (swapped.separation, swapped.accuracy) == (0, 1)  # the anchors are crossed, the heaps are not
    mixed = placement([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1]])
    # Of six pairs the first sense leans more in two (1, 0 against 0, 1; 1, 1 against 0, 1) and as much in two.
    assert mixed.separation == pytest.approx((2 + 0.5 * 2) / 6)


def test_the_silhouette_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    found = placement(np.random.default_rng(1).normal(size=(5, 2)))
    expected = metrics.silhouette_score(found.vectors, found.labels, metric="cosine")
    assert found.silhouette == pytest.approx(expected, abs=1e-6)


def test_learned_weights_give_the_models_own_output(bert):
    """Weights, values and the output projection of layer 1, by hand, are what the model's attention returns."""
    text = "the bank of the river"
    tokens, weights = learned_attention(bert, text)
    assert tokens[0] == "[CLS]" and "".join(tokens[1:-1]) == text.replace(" ", "")
    assert weights.shape == (bert.config.encoder.num_layers, len(tokens), len(tokens))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    states = bert(**read_sentences(bert, [text]).inputs, output_hidden_states=True).hidden_states
    config = bert.config.encoder.attention
    for layer in range(2):
        part = jax.tree.map(
            lambda leaf, layer=layer: np.asarray(leaf[layer], float), bert.params["encoder"]["attention"]
        )
        x = np.asarray(states[layer][0], float)
        query, key = (
            np.einsum("td,dnh->nth", x, part[n]["kernel"]) + part[n]["bias"][:, None] for n in ("query", "key")
        )
        logits = query @ key.transpose(0, 2, 1) / np.sqrt(config.head_size)
        expected = np.exp(logits - logits.max(-1, keepdims=True))
        expected /= expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(weights[layer], expected.mean(0), atol=1e-5)


def test_words_have_the_mean_of_their_tokens(bert):
    texts = ["money in the bank", "The bank of the river, and more"]
    states, reading = word_states(bert, texts, ["bank", "river"])
    whole = bert(**reading.inputs, output_hidden_states=True).hidden_states
    assert states.shape == (len(whole), 2, bert.config.encoder.width)
    for row, word in enumerate(("bank", "river")):
        places = [place for place, (a, b) in enumerate(reading.spans[row]) if texts[row][a:b] and
                  a >= texts[row].index(word) and b <= texts[row].index(word) + len(word)]  # fmt: skip
        assert places and "".join(reading.tokens[row][place] for place in places) == word
        np.testing.assert_allclose(states[-1, row], np.asarray(whole[-1])[row, places].mean(0), atol=1e-6)
    vectors = input_vectors(bert, ["bank", "river", "bank"])
    assert vectors.words == ("bank", "river")
    table = np.asarray(bert.params["embedder"]["token"]["embedding"])
    np.testing.assert_allclose(vectors["river"], table[word_ids(bert, "river")].mean(0), atol=1e-6)


def test_placements_of_a_model_go_by_layer(bert):
    pair = (Sense(name="x", anchors=("money",), sentences=FIRST.sentences),
            Sense(name="y", anchors=("river", "water"), sentences=SECOND.sentences))  # fmt: skip
    placed = contextual_placements("bank", pair, bert)
    assert [found.way for found in placed] == ["layer 1", "layer 2", "layer 3"]
    alone, _ = word_states(bert, ["river", "water"], ["river", "water"])
    units = alone[2] / np.linalg.norm(alone[2], axis=-1, keepdims=True)
    np.testing.assert_allclose(placed[1].anchors[1], units.mean(0), atol=1e-5)


def test_own_sentences_use_each_word_once_and_no_anchor():
    for word, senses in read_senses().items():
        anchors = {anchor for sense in senses for anchor in sense.anchors}
        sentences = [text for sense in senses for text in sense.sentences]
        assert all(len(sense.sentences) >= 8 for sense in senses) and len(set(sentences)) == len(sentences)
        for text in sentences:
            assert find_word(text, word) and not anchors & {part.strip(".,").lower() for part in text.split()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has no words"),
        ({"bank": {"one": {"anchors": ["a"], "sentences": ["a bank", "the bank"]}}}, "'bank' needs two senses"),
        ({"bank": {n: {"anchors": ["a"], "sentences": ["a bank"]} for n in "xy"}}, "two texts or more"),
        ({"bank": {n: {"anchors": [], "sentences": ["a bank", "b bank"]} for n in "xy"}}, "'bank' needs two senses"),
        (
            {"bank": {n: {"anchors": ["a"], "sentences": ["a bank", "banks"]} for n in "xy"}},
            "stands 0 times in 'banks'",
        ),
    ],
)
def test_malformed_senses_are_named(tmp_path, fields, message):
    (tmp_path / "senses.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        read_senses(tmp_path / "senses.json")


def test_a_table_of_weights_reads_as_sums():
    weights = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])
    lines = weight_table(["money", "bank", "grows"], weights, 2)
    assert lines[0] == "money = 0.70 money + 0.20 bank + ..."
    assert weight_table(["money", "bank", "grows"], weights)[2] == "grows = 0.50 grows + 0.25 money + 0.25 bank"


def test_the_command(bert, tmp_path, capsys):
    fields = {"bank": {name: {"anchors": [name], "sentences": sense.sentences}
                       for name, sense in (("money", FIRST), ("river", SECOND))}}  # fmt: skip
    (tmp_path / "senses.json").write_text(json.dumps(fields))
    main([str(bert.origin.folder), "--senses", str(tmp_path / "senses.json"), "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "bank         static                          0.500     0.500       0.000" in shown
    rows = (tmp_path / "out" / "senses.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 5  # sentences, and ways: two static ones and three layers
    for name in ("senses.png", "weights.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    assert "money in the bank grows: layer 3" in (tmp_path / "out" / "weights.txt").read_text()
    with pytest.raises(SystemExit, match=r"^error: .*nothing.txt"):
        main([str(bert.origin.folder), "--vectors", str(tmp_path / "nothing.txt")])
