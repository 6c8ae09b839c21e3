"""g2p_en's .npz: what it computes by its own formulas, the table both ways, and files that are none."""

import io
import zipfile

import numpy as np
import pytest

import zoo
from zoo.architectures.g2p import GRAPHEMES, PHONEMES, WEIGHTS
from zoo.weights import export_params

WIDTH, INPUTS = 6, 5


def arrays():
    """Random weights of a small model."""
    rng = np.random.default_rng(0)
    shapes = {"enc_emb": (len(GRAPHEMES), INPUTS), "dec_emb": (len(PHONEMES), INPUTS + 1)}
    for side, width in (("enc", INPUTS), ("dec", INPUTS + 1)):
        shapes |= {f"{side}_w_ih": (3 * WIDTH, width), f"{side}_w_hh": (3 * WIDTH, WIDTH)}
        shapes |= {f"{side}_b_ih": (3 * WIDTH,), f"{side}_b_hh": (3 * WIDTH,)}
    shapes |= {"fc_w": (len(PHONEMES), WIDTH), "fc_b": (len(PHONEMES),)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "checkpoint.npz"
    np.savez(path, **arrays())
    return path


def by_definition(weights, word, count):
    """Greedy decoding of one word, in NumPy."""

    def step(side, token, hidden):
        x = weights[f"{side}_emb"][token]
        mapped = weights[f"{side}_w_ih"] @ x + weights[f"{side}_b_ih"]
        recurrent = weights[f"{side}_w_hh"] @ hidden + weights[f"{side}_b_hh"]
        (xr, xz, xn), (hr, hz, hn) = np.split(mapped, 3), np.split(recurrent, 3)
        reset, update = 1 / (1 + np.exp(-xr - hr)), 1 / (1 + np.exp(-xz - hz))
        return (1 - update) * np.tanh(xn + reset * hn) + update * hidden

    hidden, token, written = np.zeros(WIDTH), PHONEMES.index("<s>"), []
    for letter in [*word, "</s>"]:
        hidden = step("enc", GRAPHEMES.index(letter), hidden)
    for _ in range(count):
        hidden = step("dec", token, hidden)
        token = int((weights["fc_w"] @ hidden + weights["fc_b"]).argmax())
        if PHONEMES[token] == "</s>":
            break
        written.append(PHONEMES[token])
    return " ".join(symbol for symbol in written if not symbol.startswith("<"))


def test_it_writes_what_its_formulas_say(file, tmp_path):
    bundle, words = zoo.load(file), ["zoo", "a", "recurrent"]
    assert len(GRAPHEMES) == 29 and len(PHONEMES) == 74
    for loaded in (bundle, zoo.load(zoo.save(bundle, tmp_path / "own", layout="zoo"))):
        written = loaded.generate(**loaded.tokenizer(words), max_new_tokens=7).sequences
        found = [loaded.tokenizer.decode(row) for row in np.asarray(written)]
        assert found == [by_definition(arrays(), word, 7) for word in words]


def test_the_table_runs_both_ways(file):
    written = {name: np.asarray(make()) for name, *_, make in export_params(WEIGHTS, zoo.load(file).params)}
    assert written.keys() == arrays().keys()
    for name, value in arrays().items():
        np.testing.assert_array_equal(written[name], value)


def test_letters_that_are_not_known_are_read_as_such(file):
    tokenizer = zoo.load(file).tokenizer
    assert tokenizer.encode("Aé") == [GRAPHEMES.index(token) for token in ("a", "<unk>", "</s>")]
    batch = tokenizer(["ab", "a"])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert tokenizer.decode([PHONEMES.index(token) for token in ("<s>", "K", "AE1", "</s>", "T")]) == "K AE1"


def damaged(path, change):
    given = arrays()
    change(given)
    np.savez(path, **given)


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        (lambda given: given.pop("fc_b"), "has no fc_b"),
        (lambda given: given.update(more=np.zeros(2)), "more"),
        (lambda given: given.update(enc_emb=np.zeros((30, INPUTS), np.float32)), "29 rows, one a symbol"),
        (lambda given: given.update(fc_w=np.zeros((), np.float32)), "fc_w"),
        (lambda given: given.update(dec_w_hh=np.zeros((3, 3), np.float32)), "dec_w_hh"),
        (lambda given: given.update(fc_b=np.array([{}], object)), "holds Python objects"),
    ],
)
def test_other_files_are_named(tmp_path, change, mend):
    damaged(tmp_path / "other.npz", change)
    with pytest.raises(zoo.CheckpointError, match=mend):
        zoo.load(tmp_path / "other.npz")


def test_a_file_that_is_no_zip_of_arrays_is_named(tmp_path):
    (tmp_path / "text.npz").write_text("no zip")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("enc_emb.npy", b"no array")
    (tmp_path / "zip.npz").write_bytes(held.getvalue())
    for name in ("text.npz", "zip.npz"):
        with pytest.raises(zoo.CheckpointError, match=f"{name} is no .npz file of plain arrays"):
            zoo.load(tmp_path / name)
