"""RoBERTa and its relatives as they are found: padding anywhere, tied copies, no prefix, fields left out."""

import json

import numpy as np
import pytest
from parity import small
from test_vit import rewrite

import zoo


def checkpoint(folder, case: str):
    with np.load(small.RECORDED / f"{case}.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return small.write_folder(folder, manifest["config"], shapes)


@pytest.fixture
def masked_lm(tmp_path):
    return checkpoint(tmp_path / "roberta", "roberta-masked_lm")


def test_padding_may_stand_on_the_left(masked_lm):
    bundle = zoo.load(masked_lm)
    ids = small.make_ids(61, 2, 9)
    padded = np.pad(ids, ((0, 0), (4, 0)), constant_values=1)
    found = bundle(input_ids=padded, attention_mask=(padded != 1).astype(np.int32)).logits
    np.testing.assert_allclose(found[:, 4:], bundle(input_ids=ids).logits, atol=1e-4)


def test_tied_copies_and_old_buffers_may_be_there(masked_lm):
    expected = zoo.load(masked_lm)
    path = masked_lm / "model.safetensors"
    file = small.SafetensorsFile(path)
    tensors = {name: file.read(name).copy() for name in file.shapes}
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"]
    tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"]
    tensors["roberta.embeddings.position_ids"] = np.arange(42)[None]
    tensors["roberta.pooler.dense.weight"] = np.zeros((24, 24), np.float32)
    tensors["roberta.pooler.dense.bias"] = np.zeros(24, np.float32)
    small.write_file(path, [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()])
    bundle = zoo.load(masked_lm)
    ids = small.make_ids(61, 2, 9)
    np.testing.assert_array_equal(bundle(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert set(bundle.origin.left_out) == {"roberta.pooler.dense.weight", "roberta.pooler.dense.bias"}


def test_an_untied_head_has_its_own_table(masked_lm, tmp_path):
    path = masked_lm / "model.safetensors"
    file = small.SafetensorsFile(path)
    tensors = {name: file.read(name).copy() for name in file.shapes}
    tensors["lm_head.decoder.weight"] = small.draw("own", (61, 24))
    small.write_file(path, [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()])
    with pytest.raises(zoo.CheckpointError, match="tie_word_embeddings"):
        zoo.load(masked_lm)
    bundle = zoo.load(rewrite(masked_lm, {"tie_word_embeddings": False}))
    np.testing.assert_array_equal(bundle.params["head"]["kernel"].T, tensors["lm_head.decoder.weight"])
    assert zoo.load(zoo.save(bundle, tmp_path / "saved")).config == bundle.config


def test_a_head_for_a_file_without_its_prefix(tmp_path):
    folder = checkpoint(tmp_path / "base", "xlm-roberta-base")
    bundle = zoo.load(folder, head="token_classification")
    assert set(bundle.origin.fresh) == {"head/kernel", "head/bias"}
    ids = small.make_ids(61, 1, 5)
    np.testing.assert_allclose(
        bundle(input_ids=ids).last_hidden_state, zoo.load(folder)(input_ids=ids).last_hidden_state, atol=1e-5
    )


@pytest.mark.parametrize(
    ("case", "lacking"),
    [
        ("roberta-base", ("pad_token_id", "hidden_act", "hidden_dropout_prob", "layer_norm_eps")),
        ("distilbert-base", ("activation", "sinusoidal_pos_embds", "attention_dropout")),
        ("electra-pretraining", ("layer_norm_eps", "type_vocab_size")),
        ("mpnet-base", ("relative_attention_num_buckets", "pad_token_id", "layer_norm_eps")),
    ],
)
def test_absent_fields_have_the_reference_defaults(tmp_path, case, lacking):
    folder = checkpoint(tmp_path / case, case)
    before = zoo.load(folder).config
    path = folder / "config.json"
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name not in lacking}
    path.write_text(json.dumps(fields))
    found = zoo.load(folder).config
    assert found.encoder.mlp == before.encoder.mlp
    assert found.embedding.positions == before.embedding.positions
    assert found.encoder.norm.epsilon == (1e-12 if "layer_norm_eps" in lacking else before.encoder.norm.epsilon)
