"""Associations: WEAT by hand, p-values by enumeration, sentence scores against one pass a token."""

import itertools
import json

import jax
import numpy as np
import pytest
from checkpoints import write_checkpoint

import zoo
from zoo.inspection import association
from zoo.inspection.association import (
    Preference,
    SentencePair,
    WordTest,
    main,
    read_sentence_pairs,
    read_word_tests,
    weat,
)
from zoo.inspection.sentence_scores import score_pairs, score_sentences
from zoo.static import WordVectors

PAIRS = [
    ("The bank raised money.", "The river raised money."),
    ("she said that the bank was there", "he said that the bank was there"),
    ("one", "one and two"),
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return zoo.load(write_checkpoint(tmp_path_factory.mktemp("association") / "bert", "bert", "masked_lm"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return zoo.load(write_checkpoint(tmp_path_factory.mktemp("association") / "gpt2", "gpt2", "causal_lm"))


def word_test(first=("x1", "x2", "x3"), second=("y1", "y2", "y3")) -> WordTest:
    return WordTest(name="test", targets={"x": first, "y": second},
                    attributes={"a": ("a1", "a2"), "b": ("b1", "b2", "b3")})  # fmt: skip


@pytest.fixture
def vectors():
    words = ("x1", "x2", "x3", "x4", "y1", "y2", "y3", "a1", "a2", "b1", "b2", "b3")
    return WordVectors(words=words, matrix=np.random.default_rng(3).normal(size=(len(words), 4)))


def by_hand(vectors: WordVectors, test: WordTest) -> tuple[float, float]:
    """Caliskan et al. 2017, appendix: s(w, A, B), d, and the share of divisions with as great a difference."""

    def cosine(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    def s(word):
        means = [np.mean([cosine(vectors[word], vectors[a]) for a in words]) for words in test.attributes.values()]
        return means[0] - means[1]

    first, second = ([s(word) for word in words] for words in test.targets.values())
    every = first + second
    d = (np.mean(first) - np.mean(second)) / np.std(every, ddof=1)
    divisions = list(itertools.combinations(range(len(every)), len(first)))
    differences = [
        np.mean([every[i] for i in chosen]) - np.mean([every[i] for i in range(len(every)) if i not in chosen])
        for chosen in divisions
    ]
    return d, np.mean([difference >= np.mean(first) - np.mean(second) - 1e-9 for difference in differences])


@pytest.mark.parametrize("first", [("x1", "x2", "x3"), ("x1", "x2", "x3", "x4")])
def test_weat_by_hand(vectors, first):
    test = word_test(first)
    found = weat(vectors, test)
    d, p = by_hand(vectors, test)
    assert found.effect == pytest.approx(d, abs=1e-5)
    assert found.p_value == pytest.approx(p, abs=1e-12)
    assert [len(values) for values in found.associations] == [len(first), 3]


def test_weat_turns_with_its_targets(vectors):
    found = weat(vectors, word_test())
    turned = weat(vectors, word_test(("y1", "y2", "y3"), ("x1", "x2", "x3")))
    assert turned.effect == pytest.approx(-found.effect)


def test_drawn_divisions_agree_with_all(vectors, monkeypatch):
    exact = weat(vectors, word_test(("x1", "x2", "x3", "x4"))).p_value
    monkeypatch.setattr(association, "MAX_EXACT", 5_000)
    assert weat(vectors, word_test(("x1", "x2", "x3", "x4"))).p_value == exact  # 35 divisions
    values = np.random.default_rng(0).normal(size=16)
    values[:8] += 0.5
    monkeypatch.setattr(association, "MAX_EXACT", 20_000)
    exact = association._division_p_value(values, 8, 0)  # 12,870 divisions
    monkeypatch.setattr(association, "MAX_EXACT", 10_000)
    assert association._division_p_value(values, 8, 0) == pytest.approx(exact, abs=5 * np.sqrt(exact / 10_000))


def test_weat_names_what_is_wrong(vectors):
    with pytest.raises(ValueError, match="'x9' has no vector"):
        weat(vectors, word_test(("x1", "x9")))
    with pytest.raises(ValueError, match=r"'x1'.* in both targets"):
        word_test(("x1", "x2"), ("x1", "y2"))
    same = WordVectors(words=vectors.words, matrix=np.ones((len(vectors), 2)))
    with pytest.raises(ValueError, match="associated alike"):
        weat(same, word_test())


def test_own_tests_are_well_formed():
    tests = read_word_tests()
    assert len(tests) == 2 and all(len(set(test.words)) == 32 for test in tests)
    pairs = read_sentence_pairs()
    assert len(pairs) == 12 and {pair.group for pair in pairs} == {"trades of more men", "trades of more women"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "has no tests"),
        ({"t": {"targets": {"x": ["a", "b"], "y": ["c", "d"]}}}, "'t' needs 'attributes'"),
        ({"t": {"targets": {"x": ["a", "b"]}, "attributes": {"x": ["a"], "y": ["b"]}}}, "'t' needs two targets"),
    ],
)
def test_malformed_tests_are_named(tmp_path, fields, message):
    (tmp_path / "tests.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        read_word_tests(tmp_path / "tests.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("more,less\na,b\n", "sent_more and sent_less are needed"),
        ("sent_more,sent_less\na,b\nc\n", r"pairs.csv:3 needs two different sentences"),
        ("sent_more,sent_less\na,a\n", r"pairs.csv:2 needs two different sentences"),
        ("sent_more,sent_less\n", "has no pairs"),
    ],
)
def test_malformed_pairs_are_named(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_sentence_pairs(tmp_path / "pairs.csv")


def test_crows_pairs_columns_are_read(tmp_path):
    (tmp_path / "pairs.csv").write_text(
        ',sent_more,sent_less,stereo_antistereo,bias_type\n0,"He, too.","She, too.",stereo,gender\n'
    )
    assert read_sentence_pairs(tmp_path / "pairs.csv") == [
        SentencePair(more="He, too.", less="She, too.", group="gender")
    ]


def log_softmax(logits) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float64)))


def masked_score(bert, text: str, places: list[int] | None = None) -> float:
    """One pass for each token, without batches or padding."""
    ids, total = np.array(bert.tokenizer.encode(text)), 0.0
    for place in range(1, len(ids) - 1) if places is None else places:
        hidden = ids.copy()
        hidden[place] = bert.tokenizer.mask_id
        total += log_softmax(bert(input_ids=hidden[None]).logits[0, place])[ids[place]]
    return total


def test_pseudo_likelihood_hides_one_token_at_a_time(bert):
    texts = [text for pair in PAIRS for text in pair]
    expected = [masked_score(bert, text) for text in texts]
    np.testing.assert_allclose(score_sentences(bert, texts), expected, rtol=1e-4)
    differences = score_pairs(bert, PAIRS, scored="all")
    np.testing.assert_allclose(differences, np.array(expected[::2]) - expected[1::2], atol=1e-3)


def test_pairs_are_scored_by_the_tokens_they_share(bert):
    """Prefix and suffix that both have; the changed words are seen and not scored."""
    for pair, difference in zip(PAIRS, score_pairs(bert, PAIRS), strict=True):
        ids = [bert.tokenizer.encode(text) for text in pair]
        prefix = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
        suffix = next(i for i, (a, b) in enumerate(zip(*(row[::-1] for row in ids), strict=False)) if a != b)
        scores = []
        for text, row in zip(pair, ids, strict=True):
            suffix = min(suffix, len(ids[0]) - prefix, len(ids[1]) - prefix)
            places = [*range(1, prefix), *range(len(row) - suffix, len(row) - 1)]
            scores.append(masked_score(bert, text, places))
        assert difference == pytest.approx(scores[0] - scores[1], abs=1e-3)


def test_decoders_score_whole_sentences(gpt2):
    texts = ["The bank raised money.", "more text of another length, and a river"]
    expected = []
    for text in texts:
        ids = [gpt2.tokenizer.bos_id, *gpt2.tokenizer.encode(text)]
        logits = log_softmax(gpt2(input_ids=np.array([ids])).logits[0])
        expected.append(sum(logits[place - 1, ids[place]] for place in range(1, len(ids))))
    np.testing.assert_allclose(score_sentences(gpt2, texts), expected, rtol=1e-4)
    np.testing.assert_allclose(score_pairs(gpt2, [tuple(texts)]), expected[0] - expected[1], atol=1e-2)


def test_models_without_a_language_head_are_refused(bert):
    with pytest.raises(ValueError, match="a masked language model or a decoder; this model is neither"):
        score_sentences(zoo.load(bert.origin.folder, head="embedding"), ["a text"])


def preference(differences) -> Preference:
    pairs = tuple(SentencePair(more=f"more {n}", less=f"less {n}") for n in range(len(differences)))
    return Preference(pairs=pairs, differences=np.array(differences, float))


def test_preferences():
    found = preference([1.0, 2.0, -0.5, 0.0])
    assert found.share == 0.625
    assert found.effect == pytest.approx(0.625 / np.std([1, 2, -0.5, 0], ddof=1))
    signs = itertools.product((1, -1), repeat=4)
    assert found.p_value() == pytest.approx(np.mean([a + 2 * b - 0.5 * c >= 2.5 for a, b, c, _ in signs]))
    many = preference(np.random.default_rng(0).normal(0.1, 1, 200))
    assert many.p_value(1) == pytest.approx(many.p_value(2), abs=0.01)
    assert preference([0.0, 0.0]).effect == 0


def test_the_command(bert, tmp_path, capsys):
    main([str(bert.origin.folder), "--output", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "trades, he or she: effect size d = " in shown and "of 12 pairs go with the stereotype" in shown
    for name in ("words.png", "sentences.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "v.txt").write_text("he 1 2\nshe 2 1\n")
    with pytest.raises(SystemExit, match=r"^error: the word 'rose' has no vector among 2"):
        main([str(bert.origin.folder), "--vectors", str(tmp_path / "v.txt"), "--output", str(tmp_path / "out")])
