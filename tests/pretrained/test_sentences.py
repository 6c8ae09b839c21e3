"""Folders of sentence-transformers: sentence vectors, their way back to disk, and what zoo does not compute."""

import json

import numpy as np
import pytest
import small

import zoo
from zoo.formats.safetensors import SafetensorsFile, write_file

POOLING = {"word_embedding_dimension": 24, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
DENSE = {"in_features": 24, "out_features": 6, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
SHAPES = {"linear.weight": (6, 24), "linear.bias": (6,)}


def entry(number: int, kind: str) -> dict:
    path = f"{number}_{kind}" if number else ""
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


@pytest.fixture
def folder(checkpoint):
    """A transformer, mean pooling, a dense layer and normalisation."""
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    write(checkpoint, "modules.json", [entry(number, kind) for number, kind in enumerate(kinds)])
    write(checkpoint, "sentence_bert_config.json", {"max_seq_length": 32})
    for name, fields in (("1_Pooling", POOLING), ("2_Dense", DENSE)):
        (checkpoint / name).mkdir()
        write(checkpoint / name, "config.json", fields)
    arrays = [(name, shape, np.dtype(np.float32), lambda n=name, s=shape: draw(n, s)) for name, shape in SHAPES.items()]
    write_file(checkpoint / "2_Dense" / "model.safetensors", arrays)
    return checkpoint


def draw(name, shape) -> np.ndarray:
    return small.draw(name, shape)


def write(folder, name: str, content) -> None:
    (folder / name).write_text(json.dumps(content))


def batch() -> dict[str, np.ndarray]:
    ids = small.make_ids(99, 2, 7)
    return {"input_ids": ids, "attention_mask": np.array([[1] * 7, [1] * 4 + [0] * 3])}


def states(folder) -> tuple[np.ndarray, np.ndarray]:
    """Of the transformer alone, with the mask."""
    given = batch()
    return np.asarray(zoo.load(folder, head="base")(**given).last_hidden_state), given["attention_mask"][..., None]


def test_vector_is_pooled_projected_and_normalised(folder):
    bundle = zoo.load(folder)
    hidden, mask = states(folder)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    vector = np.tanh(pooled @ draw("linear.weight", (6, 24)).T + draw("linear.bias", (6,)))
    vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
    np.testing.assert_allclose(bundle(**batch()).pooler_output, vector, atol=1e-5)
    assert any(name.startswith("cls.") for name in bundle.origin.left_out)


def test_saved_folder_has_its_modules(folder, tmp_path):
    bundle = zoo.load(folder)
    saved = zoo.save(bundle, tmp_path / "saved")
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "2_Dense/config.json"):
        assert json.loads((saved / name).read_text()) == json.loads((folder / name).read_text())
    assert dict(SafetensorsFile(saved / "2_Dense" / "model.safetensors").shapes) == SHAPES
    assert not any("/" in name for name in SafetensorsFile(saved / "model.safetensors").shapes)
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["BertModel"]
    np.testing.assert_array_equal(zoo.load(saved)(**batch()).pooler_output, bundle(**batch()).pooler_output)


def weighted(x, mask):
    weights = mask * np.arange(1, x.shape[1] + 1)[:, None]
    return (x * weights).sum(1) / weights.sum(1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pooling_mode_cls_token": True}, lambda x, mask: x[:, 0]),
        ({"pooling_mode": "max"}, lambda x, mask: np.where(mask, x, -np.inf).max(1)),
        ({"pooling_mode": ["lasttoken"]}, lambda x, mask: x[[0, 1], mask[..., 0].sum(1) - 1]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda x, mask: (x * mask).sum(1) / np.sqrt(mask.sum(1))),
        ({"pooling_mode_weightedmean_tokens": True}, lambda x, mask: weighted(x, mask)),
        (
            # In the order of the reference's own list, whatever the file's.
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_lasttoken": True},
            lambda x, mask: np.concatenate(
                [x[:, 0], (x * mask).sum(1) / mask.sum(1), x[[0, 1], mask[..., 0].sum(1) - 1]], -1
            ),
        ),
    ],
)
def test_pooling_modes(folder, fields, expected):
    write(folder, "modules.json", [entry(0, "Transformer"), entry(1, "Pooling")])
    write(folder / "1_Pooling", "config.json", fields)
    np.testing.assert_allclose(zoo.load(folder)(**batch()).pooler_output, expected(*states(folder)), atol=1e-6)


def test_two_dense_layers(folder, tmp_path):
    """As in EmbeddingGemma: wider, and back."""
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    write(folder, "modules.json", [entry(number, kind) for number, kind in enumerate(kinds)])
    dense = DENSE | {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    weights = [draw("first", (30, 24)), draw("second", (24, 30))]
    for name, weight in zip(("2_Dense", "3_Dense"), weights, strict=True):
        (folder / name).mkdir(exist_ok=True)
        write(folder / name, "config.json", dense | {"in_features": weight.shape[1], "out_features": weight.shape[0]})
        entries = [("linear.weight", weight.shape, weight.dtype, lambda weight=weight: weight)]
        write_file(folder / name / "model.safetensors", entries)
    bundle = zoo.load(folder)
    hidden, mask = states(folder)
    vector = (hidden * mask).sum(1) / mask.sum(1) @ weights[0].T @ weights[1].T
    vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
    np.testing.assert_allclose(bundle(**batch()).pooler_output, vector, atol=1e-5)
    saved = zoo.save(bundle, tmp_path / "saved")
    np.testing.assert_array_equal(zoo.load(saved)(**batch()).pooler_output, bundle(**batch()).pooler_output)
    write(folder / "2_Dense", "config.json", dense | {"out_features": 30, "activation_function": "torch.nn.GELU"})
    assert zoo.load(folder).config.head.inner[0].activation == "gelu"


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", "the", "cat", "sat"]


def test_texts_with_prompts(folder):
    """Behind the prompt, in lower case, cut to the length that the folder names, in any order."""
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": False})
    write(folder, "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True})
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "document"}
    write(folder, "config_sentence_transformers.json", prompts)
    bundle = zoo.load(folder)
    texts = ["The cat sat the cat sat the cat", " CAT"]
    vectors = bundle.embed(texts, prompt="query", batch_size=1)
    ids = [[2, 5, 6, 7, 8, 3], [2, 5, 6, 8, 3]]
    for vector, row in zip(vectors, ids, strict=True):
        np.testing.assert_allclose(vector, bundle(input_ids=np.array([row])).pooler_output[0], atol=1e-6)
    np.testing.assert_allclose(bundle.embed(texts, prompt="query"), vectors, atol=1e-6)
    alone = bundle(input_ids=np.array([[2, 8, 3]])).pooler_output
    np.testing.assert_allclose(bundle.embed("cat"), alone, atol=1e-6)
    with pytest.raises(ValueError, match="'passage' is no prompt of this checkpoint; it has query, document"):
        bundle.embed(texts, prompt="passage")
    write(folder / "1_Pooling", "config.json", POOLING | {"include_prompt": False})
    with pytest.raises(zoo.CheckpointError, match="include_prompt"):
        zoo.load(folder)


def test_a_folder_without_modules_is_the_mean(checkpoint, tmp_path):
    bundle = zoo.load(checkpoint, head="embedding")
    hidden, mask = states(checkpoint)
    np.testing.assert_allclose(bundle(**batch()).pooler_output, (hidden * mask).sum(1) / mask.sum(1), atol=1e-5)
    saved = zoo.save(bundle, tmp_path / "saved")
    assert json.loads((saved / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 24
    np.testing.assert_array_equal(zoo.load(saved)(**batch()).pooler_output, bundle(**batch()).pooler_output)
    with pytest.raises(ValueError, match='load it with head="embedding"'):
        zoo.load(checkpoint).embed("the cat")


def test_old_and_nested_folders(folder, tmp_path):
    """The first releases put the transformer in 0_BERT and named its settings after its kind."""
    expected = zoo.load(folder)(**batch()).pooler_output
    (folder / "0_BERT").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(folder / "0_BERT" / name)
    (folder / "sentence_bert_config.json").rename(folder / "0_BERT" / "sentence_roberta_config.json")
    (folder / "parts").mkdir()
    (folder / "2_Dense").rename(folder / "parts" / "2_Dense")
    entries = [entry(number, kind) for number, kind in enumerate(("BERT", "Pooling", "Dense", "Dropout", "Normalize"))]
    entries[0]["path"], entries[2]["path"] = "0_BERT", "parts/2_Dense"
    write(folder, "modules.json", entries)
    bundle = zoo.load(folder)
    np.testing.assert_array_equal(bundle(**batch()).pooler_output, expected)
    assert bundle.origin.modules.max_length == 32
    np.testing.assert_array_equal(zoo.load(zoo.save(bundle, tmp_path / "saved"))(**batch()).pooler_output, expected)


def test_the_encoder_of_an_encoder_decoder(tmp_path):
    """As in Sentence-T5, whose files hold the encoder alone."""
    with np.load(small.RECORDED / "t5-encoder.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    folder = small.write_folder(tmp_path / "t5", manifest["config"], shapes)
    write(folder, "modules.json", [entry(0, "Transformer"), entry(1, "Pooling")])
    (folder / "1_Pooling").mkdir()
    write(folder / "1_Pooling", "config.json", POOLING)
    given = batch() | {"input_ids": small.make_ids(61, 2, 7)}
    bundle, mask = zoo.load(folder), given["attention_mask"][..., None]
    hidden = np.asarray(zoo.load(folder, head="encoder")(**given).last_hidden_state)
    np.testing.assert_allclose(bundle(**given).pooler_output, (hidden * mask).sum(1) / mask.sum(1), atol=1e-5)
    saved = json.loads((zoo.save(bundle, tmp_path / "saved") / "config.json").read_text())
    assert saved["architectures"] == ["T5EncoderModel"]


@pytest.mark.parametrize(
    ("place", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_median_tokens": True}, "pooling modes are .'median'."),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "pooling modes are"),
        ("2_Dense/config.json", DENSE | {"activation_function": "torch.nn.Mish"}, "Mish"),
        ("modules.json", [entry(0, "Transformer"), entry(1, "Normalize"), entry(2, "Pooling")], "in this order"),
        ("modules.json", [entry(0, "Transformer"), entry(1, "Pooling"), entry(2, "LSTM")], "LSTM"),
        ("modules.json", [entry(0, "CLIPModel") | {"path": "0_CLIPModel"}], r"zoo.load\('.*0_CLIPModel'\) gives"),
        ("modules.json", [entry(0, "Transformer") | {"path": "../bert"}], "subfolders"),
        ("modules.json", [entry(0, "Transformer") | {"path": "/etc"}], "subfolders"),
        ("modules.json", [], "lists"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "it must name texts"),
        ("modules.json", [entry(0, "Transformer") | {"type": "custom_st.Transformer"}], "custom_st"),
        ("modules.json", {"0": entry(0, "Transformer")}, "must be a list"),
    ],
)
def test_what_zoo_does_not_compute_is_refused(folder, place, content, message):
    write(folder, place, content)
    with pytest.raises(zoo.CheckpointError, match=message):
        zoo.load(folder)
