"""Word vectors: neighbours, analogies, files, judged pairs, counts, and skip-gram against the paper's formulas."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.static import (
    SkipGramConfig,
    WordVectors,
    count_words,
    read_pairs,
    read_vectors,
    score_pairs,
    train_skipgram,
    write_vectors,
)
from zoo.static.__main__ import main
from zoo.static.similarity import spearman
from zoo.static.skipgram import Tables, draw_negatives, draw_pairs, loss, read_corpus


@pytest.fixture
def vectors():
    """Royalty along the first axis, sex along the second, fruit along the third; no vector has length one."""
    return WordVectors(
        words=("man", "woman", "king", "queen", "apple", "Élan"),
        matrix=np.array([[0, 2, 0.1], [0, -2, 0.1], [3, 3, 0], [4, -4, 0], [0, 0, 5], [0.1, 1e-7, -2.5]], np.float32),
    )


def test_neighbours_are_ordered_by_cosine(vectors):
    found = vectors.nearest("king", 3)
    units = [row / np.linalg.norm(row) for row in vectors.matrix.astype(float)]
    cosines = {word: float(unit @ units[2]) for word, unit in zip(vectors.words, units, strict=True) if word != "king"}
    assert [word for word, _ in found] == sorted(cosines, key=cosines.get, reverse=True)[:3]
    np.testing.assert_allclose([score for _, score in found], sorted(cosines.values(), reverse=True)[:3], atol=1e-6)
    assert len(vectors.nearest("king", 100)) == len(vectors) - 1


def test_an_analogy_is_3cosadd_without_its_own_words(vectors):
    (word, score), *_ = vectors.analogy("man", "king", "woman", 1)
    unit = vectors.matrix / np.linalg.norm(vectors.matrix, axis=1, keepdims=True)
    man, woman, king, queen = unit[:4].astype(float)
    assert word == "queen"
    assert score == pytest.approx(queen @ king - queen @ man + queen @ woman, abs=1e-6)
    assert {"man", "king", "woman"}.isdisjoint(word for word, _ in vectors.analogy("man", "king", "woman", 6))


def test_an_unknown_word_names_the_nearest_spelling(vectors):
    with pytest.raises(ValueError, match=r"'quen' has no vector among 6; did you mean 'queen'"):
        vectors.nearest("quen")
    with pytest.raises(ValueError, match="did you mean 'king'"):
        vectors.similarity("KING", "man")


def test_vectors_must_fit_their_words():
    with pytest.raises(ValueError, match="2 words and a matrix of"):
        WordVectors(words=("a", "b"), matrix=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="'a' occurs twice"):
        WordVectors(words=("a", "a"), matrix=np.zeros((2, 2)))


@pytest.mark.parametrize("name", ["v.txt", "v.vec", "v.bin", "v.npy", "v.txt.gz", "v.bin.gz"])
def test_files_give_back_what_was_written(tmp_path, vectors, name):
    path = write_vectors(vectors, tmp_path / name)
    read = read_vectors(path)
    assert read.words == vectors.words
    np.testing.assert_array_equal(read.matrix, vectors.matrix)
    assert read_vectors(path, max_words=2).words == ("man", "woman")


def test_layouts_are_those_of_glove_and_word2vec(tmp_path):
    vectors = WordVectors(words=("a", "b"), matrix=np.array([[1, 0.5], [-2, 0.25]], np.float32))
    assert write_vectors(vectors, tmp_path / "v.txt").read_text() == "a 1.0 0.5\nb -2.0 0.25\n"
    assert write_vectors(vectors, tmp_path / "v.vec").read_text() == "2 2\na 1.0 0.5\nb -2.0 0.25\n"
    rows = [b"a " + np.array([1, 0.5], "<f4").tobytes(), b"b " + np.array([-2, 0.25], "<f4").tobytes()]
    assert write_vectors(vectors, tmp_path / "v.bin").read_bytes() == b"2 2\n" + rows[0] + b"\n" + rows[1] + b"\n"
    (tmp_path / "w.bin").write_bytes(b"2 2\n" + rows[0] + rows[1])  # some writers end no rows
    np.testing.assert_array_equal(read_vectors(tmp_path / "w.bin").matrix, vectors.matrix)


def test_glove_files_with_spaced_and_repeated_words_are_read(tmp_path):
    (tmp_path / "v.txt").write_text("a 1 2\n. . . 3 4\na 5 6\n")
    read = read_vectors(tmp_path / "v.txt")
    assert read.words == ("a", ". . .")
    assert read.matrix.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"a 1 2\nb 1\n", r"v.txt:2 has 1 numbers after a word; 2 belong there"),
        ("v.txt", b"a 1 2\nb 1 x\n", r"v.txt:2 is no word with 2 numbers"),
        ("v.txt", b"a 1 2\nb 1 nan\n", r"v.txt:2 has a number that is not finite"),
        ("v.txt", b"", "has no vectors"),
        ("v.vec", b"3 2\na 1 2\n", "has 1 vectors, and its first line promises 3"),
        ("v.bin", b"2 2\na " + bytes(8) + b"b " + bytes(5), "ends within word 2 of 2"),
        ("v.bin", b"\x80\x04pickle", "no word2vec binary"),
        ("v.npy", b"\x80\x04pickle", "is no array of numbers"),
        ("v.pkl", b"", "in no known format of word vectors"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_vectors(tmp_path / name)


def test_words_that_a_format_cannot_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="white space"):
        write_vectors(WordVectors(words=("a b",), matrix=np.ones((1, 2))), tmp_path / "v.txt")


WORDSIM = "Word 1,Word 2,Human (mean)\nman,woman,8\nking,queen,9\nKing,apple,1\nman,apple,2\nman,zebra,3\n"
SIMLEX = "word1\tword2\tPOS\tSimLex999\tconc\nman\twoman\tN\t8\t1\nking\tqueen\tN\t9\t5\nking\tapple\tN\t1\t2\n"


def test_judged_pairs_are_scored_by_rank(tmp_path, vectors):
    (tmp_path / "wordsim.csv").write_text(WORDSIM)
    scores = score_pairs(vectors, read_pairs(tmp_path / "wordsim.csv"))
    cosines = [vectors.similarity(*pair) for pair in (("man", "woman"), ("king", "queen"), ("king", "apple"),
                                                      ("man", "apple"))]  # fmt: skip
    assert (scores.num_scored, scores.num_pairs, scores.unknown) == (4, 5, ("zebra",))
    assert scores.correlation == pytest.approx(spearman(np.array(cosines), np.array([8, 9, 1, 2])))
    (tmp_path / "simlex.txt").write_text(SIMLEX)
    assert [pair.score for pair in read_pairs(tmp_path / "simlex.txt")] == [8, 9, 1]
    (tmp_path / "men.txt").write_text("# judged\nman woman 5.5\n\nking queen 1e1\n")
    assert [pair.score for pair in read_pairs(tmp_path / "men.txt")] == [5.5, 10]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b,1\nc,d\n", r"pairs.csv:2 is \['c', 'd'\]; two words and, in column 3, a score"),
        ("a,b,score\nc,d,high\n", r"pairs.csv:2"),
        ("a,b,1\n\n,d,2\n", r"pairs.csv:3"),
        ("", "has no pairs"),
        ("word,word,score\n", "a heading and no pairs"),
    ],
)
def test_malformed_pairs_are_named(tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(tmp_path / "pairs.csv")


def test_too_few_pairs_name_the_unknown_words(tmp_path, vectors):
    (tmp_path / "pairs.csv").write_text("man,woman,1\nman,zebra,2\nking,yak,3\n")
    with pytest.raises(ValueError, match=r"1 of 3 pairs have vectors for both words.*zebra, yak have none"):
        score_pairs(vectors, read_pairs(tmp_path / "pairs.csv"))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
def test_spearman_equals_scipys(pairs):
    stats = pytest.importorskip("scipy.stats")
    x, y = np.array(pairs, float).T
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        with pytest.raises(ValueError, match="nothing to correlate"):
            spearman(x, y)
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_bags_of_words_and_tfidf():
    pytest.importorskip("sklearn")
    texts = ["the cat sat", "the cat and the dog", "a bird"]
    counts = count_words(texts, weighting="counts")
    assert counts.matrix.toarray()[:, counts.words.index("the")].tolist() == [1, 2, 0]
    tfidf = count_words(texts)
    # idf = ln((1 + texts) / (1 + texts with the word)) + 1, rows of length one
    idf = {word: np.log(4 / (1 + number)) + 1 for word, number in {"the": 2, "cat": 2, "sat": 1}.items()}
    row = np.array([idf[word] for word in ("the", "cat", "sat")])
    found = tfidf.matrix.toarray()[0, [tfidf.words.index(word) for word in ("the", "cat", "sat")]]
    np.testing.assert_allclose(found, row / np.linalg.norm(row), rtol=1e-6)
    assert tfidf.similarities(["dog", "zebra"]).argmax(1).tolist() == [1, 0]
    assert tfidf.similarities(["zebra"]).tolist() == [[0, 0, 0]]


def test_counting_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        count_words(["a text"])


def clusters(num_texts: int = 120) -> list[str]:
    """Texts whose words all come from one of two vocabularies."""
    draw = np.random.default_rng(0)
    vocabularies = [["oak", "elm", "ash", "fir", "yew", "box"], ["iron", "zinc", "lead", "gold", "tin", "brass"]]
    return [" ".join(draw.choice(vocabularies[number % 2], 12)) for number in range(num_texts)]


TINY = dict(dimensions=8, min_count=1, subsample=1.0, epochs=6, batch_size=256, learning_rate=0.02)


def test_skipgram_finds_clusters_and_is_deterministic():
    losses = []
    vectors = train_skipgram(clusters(), SkipGramConfig(**TINY), lambda progress: losses.append(progress.loss))
    trees = {"oak", "elm", "ash", "fir", "yew", "box"}
    for word in vectors.words:
        nearest = {found for found, _ in vectors.nearest(word, 5)}
        assert nearest | {word} == (trees if word in trees else set(vectors.words) - trees)
    assert losses[0] < 6 * np.log(2) * 1.001 and losses[-1] < 0.9 * losses[0] and len(losses) == 6
    again = train_skipgram(clusters(), SkipGramConfig(**TINY))
    np.testing.assert_array_equal(again.matrix, vectors.matrix)
    other = train_skipgram(clusters(), SkipGramConfig(**TINY, seed=1))
    assert np.abs(other.matrix - vectors.matrix).max() > 0.01


def test_the_loss_is_the_papers():
    draw = np.random.default_rng(0)
    centre, context = draw.normal(size=(2, 7, 4))
    pairs, negatives = draw.integers(0, 7, (5, 2)), draw.integers(0, 7, 9)
    expected = 0.0
    for word, near in pairs:
        expected -= np.log(1 / (1 + np.exp(-context[near] @ centre[word])))
        far = [-np.log(1 / (1 + np.exp(context[other] @ centre[word]))) if other != near else 0 for other in negatives]
        expected += 3 * np.mean(far)
    found = loss(Tables(centre=jnp.float32(centre), context=jnp.float32(context)), pairs, negatives, 3.0)
    assert float(found) == pytest.approx(expected / 5, rel=1e-5)


def test_negatives_follow_frequency_to_the_three_quarters():
    counts = np.array([1000, 100, 10, 1]) ** 0.75
    drawn = draw_negatives(jnp.float32(np.cumsum(counts) / counts.sum()), jax.random.key(0), 200_000)
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, counts / counts.sum(), atol=5 * np.sqrt(0.25 / len(drawn)))


def test_windows_are_drawn_and_stay_within_texts():
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    corpus = read_corpus([text, text.upper(), "z a " * 2], 1)
    config = SkipGramConfig(window=4, subsample=1.0, min_count=1)
    pairs = np.concatenate([draw_pairs(corpus, config, np.random.default_rng(seed)) for seed in range(300)])
    order = np.array([ord(word) - ord("a") for word in corpus.words])
    distance = np.abs(np.diff(order[pairs]))[:, 0]
    # The last text's z and a stand side by side; in the others no window reaches from one text into the next.
    assert set(np.unique(distance)) == {0, 1, 2, 3, 4, 25}
    counts = np.bincount(distance, minlength=5)[1:5] / (300 * 2 * 2)
    expected = np.array([(26 - d) * (4 - d + 1) / 4 for d in (1, 2, 3, 4)])
    np.testing.assert_allclose(counts, expected, rtol=0.03)


def test_frequent_words_are_thinned():
    corpus = read_corpus(["often rare " + "often " * 98] * 400, 1)
    config = SkipGramConfig(window=1, subsample=0.02, min_count=1)
    pairs = draw_pairs(corpus, config, np.random.default_rng(0))
    # Of frequency 0.99, sqrt(t / f) + t / f stay: 16.2 %. All of the rare word's, of frequency 0.01 < t, do.
    kept = np.sqrt(0.02 / 0.99) + 0.02 / 0.99
    often = (pairs[:, 0] == corpus.words.index("often")).sum() / 400
    assert often == pytest.approx(2 * 99 * kept - 2 * 0.99, rel=0.05)


def test_skipgram_says_what_it_cannot_use():
    with pytest.raises(ValueError, match="no two neighbouring words occur 5 times in these 1 texts"):
        train_skipgram(["one two three"], SkipGramConfig())
    with pytest.raises(ValueError, match="subsample is 0"):
        SkipGramConfig(subsample=0)
    with pytest.raises(ValueError, match="window is 0"):
        SkipGramConfig(window=0)


def test_the_commands(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(clusters(60)))
    options = [f"--skipgram.{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    main(["train", str(tmp_path / "v.bin"), "--data", str(tmp_path / "texts.txt"), *options])
    main(["convert", str(tmp_path / "v.bin"), str(tmp_path / "v.txt.gz")])
    with gzip.open(tmp_path / "v.txt.gz", "rt") as file:
        assert len(file.readlines()) == 12
    main(["nearest", str(tmp_path / "v.txt.gz"), "oak"])
    main(["analogy", str(tmp_path / "v.bin"), "oak", "elm", "zinc"])
    (tmp_path / "pairs.csv").write_text("oak,elm,9\noak,zinc,1\niron,tin,8\n")
    main(["similarity", str(tmp_path / "v.bin"), str(tmp_path / "pairs.csv")])
    shown = capsys.readouterr().out
    assert "12 words, 8 numbers each" in shown and "oak is to elm as zinc is to: " in shown
    assert "3 of 3 pairs" in shown
    with pytest.raises(SystemExit, match=r"^error: the word 'oka' has no vector among 12; did you mean 'oak'"):
        main(["nearest", str(tmp_path / "v.bin"), "oka"])
