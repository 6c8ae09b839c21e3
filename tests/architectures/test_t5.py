"""T5 folders as they are found: copies of the table, an output table of its own, a stray tensor, encoders cut out."""

import json

import jax
import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures import Fields
from zoo.architectures.t5 import TINY, config_from_hf
from zoo.formats.safetensors import write_file

STRAY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@pytest.fixture
def checkpoint(tmp_path):
    """A function that writes a folder with other fields and further tensors, and gives its tensors."""
    with np.load(small.RECORDED / "t5-seq2seq_lm.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    drawn = {name: small.draw(name, tuple(shape)) for name, shape in manifest["shapes"].items()}

    def write(fields=None, more=lambda tensors: {}, keep=lambda name: True):
        tensors = {name: x for name, x in (drawn | more(drawn)).items() if keep(name)}
        (tmp_path / "config.json").write_text(json.dumps(manifest["config"] | (fields or {})))
        entries = [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
        write_file(tmp_path / "model.safetensors", entries)
        return tmp_path

    return write


def logits(bundle):
    ids = np.array([[5, 6, 7, 2]], np.int32)
    return np.asarray(bundle(input_ids=ids, decoder_input_ids=ids).logits)


def test_copies_of_the_table_and_the_stray_bias(checkpoint):
    expected = logits(zoo.load(checkpoint()))
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    folder = checkpoint(more=lambda x: dict.fromkeys(copies, x["shared.weight"]) | {STRAY: np.ones((8, 4), np.float32)})
    np.testing.assert_array_equal(logits(zoo.load(folder)), expected)
    folder = checkpoint(more=lambda x: {copies[0]: x["shared.weight"]}, keep=lambda name: name != "shared.weight")
    np.testing.assert_array_equal(logits(zoo.load(folder)), expected)


@pytest.mark.parametrize("fields", [{"tie_word_embeddings": False}, {"scale_decoder_outputs": False}])
def test_version_1_1_has_an_output_table_and_no_scale(checkpoint, fields, tmp_path):
    fields = fields if "scale_decoder_outputs" in fields else fields | {"scale_decoder_outputs": None}
    folder = checkpoint(fields, more=lambda x: {"lm_head.weight": x["shared.weight"][::-1].copy()})
    bundle = zoo.load(folder)
    assert not bundle.config.head.tied and bundle.config.head.scale == 1.0
    zoo.save(bundle, tmp_path / "saved")
    again = zoo.load(tmp_path / "saved")
    assert again.config == bundle.config
    tied = zoo.load(checkpoint(fields))
    assert tied.config.head.tied and tied.config.head.scale == 1.0


def test_an_encoder_is_cut_out_of_a_whole_model(checkpoint):
    folder = checkpoint(more=lambda x: {"lm_head.weight": x["shared.weight"]})
    whole, encoder = zoo.load(folder), zoo.load(folder, head="encoder")
    ids = np.array([[5, 6, 7, 2]], np.int32)
    expected = whole(input_ids=ids, decoder_input_ids=ids).encoder_last_hidden_state
    np.testing.assert_allclose(encoder(input_ids=ids).last_hidden_state, expected, atol=1e-6)
    assert "decoder" not in encoder.params
    classifier = zoo.load(folder, head="sequence_classification")
    assert all(path.startswith("head/") for path in classifier.origin.fresh)
    assert jax.numpy.isfinite(classifier(input_ids=ids).logits).all()


def test_feed_forward_names():
    def mlp(**fields):
        return config_from_hf(Fields(TINY | {"model_type": "t5"} | fields, "x"), "base").encoder.mlp

    assert (mlp().activation, mlp().gated) == ("relu", False)
    assert (mlp(feed_forward_proj="gated-gelu").activation, mlp(feed_forward_proj="gated-gelu").gated) == (
        "gelu_tanh",
        True,
    )
    assert mlp(feed_forward_proj="gated-silu").activation == "silu"
    assert mlp(feed_forward_proj="gated-gelu", dense_act_fn="gelu").activation == "gelu"
    with pytest.raises(ValueError, match="feed_forward_proj is 'gate-gelu'"):
        mlp(feed_forward_proj="gate-gelu")
