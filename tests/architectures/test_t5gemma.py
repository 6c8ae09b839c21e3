"""T5Gemma: defaults of nested configurations, texts padded on the left, classifiers without a decoder."""

import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures import Fields
from zoo.architectures.t5gemma import config_from_hf


def write(tmp_path, head, **fields):
    config, shapes, _ = small.read_recorded("t5gemma", head)
    return small.write_folder(tmp_path / "checkpoint", config | fields, shapes)


def test_absent_fields_have_the_defaults():
    config = config_from_hf(Fields({"encoder": {"hidden_size": 3584}}, "config.json"), "seq2seq_lm")
    assert (config.encoder.width, config.decoder.width, config.decoder.num_layers) == (3584, 2304, 26)
    assert config.head.tied and config.head.softcap == 30.0 and config.decoder.cross_attention.softcap == 50.0
    assert config.encoder.local.window == (4096, 4096) and config.decoder.local.window == (4095, 0)
    assert config.embedding.scale == 3584**0.5 and config.decoder_embedding.scale == 2304**0.5


def encoder_by_itself(folder):
    config, shapes, _ = small.read_recorded("t5gemma", "sequence_classification")
    shapes = {name: shape for name, shape in shapes.items() if "decoder" not in name}
    width = {"score.out_proj.weight": (3, config["encoder"]["hidden_size"])}
    return small.write_folder(folder / "checkpoint", config | {"is_encoder_decoder": False}, shapes | width)


@pytest.mark.peers
def test_an_encoder_by_itself_equals_the_reference(tmp_path):
    folder = encoder_by_itself(tmp_path)
    check_against_the_reference(zoo.load(folder), folder)


def test_an_encoder_by_itself(tmp_path):
    bundle = zoo.load(encoder_by_itself(tmp_path))
    assert bundle.config.decoder is None
    assert zoo.load(zoo.save(bundle, tmp_path / "saved")).config == bundle.config


@pytest.mark.peers
def test_a_decoder_sees_no_padding_on_the_left(tmp_path):
    folder = write(tmp_path, "sequence_classification")
    check_against_the_reference(zoo.load(folder), folder)


def check_against_the_reference(bundle, folder):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = np.array([[1, 1, 1, 7, 8, 9, 5, 6], [7, 8, 9, 5, 6, 7, 8, 1], [9, 8, 7, 6, 5, 6, 7, 8]], np.int32)
    mask = (ids != 1).astype(np.int32)
    model = transformers.T5GemmaForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    np.testing.assert_allclose(bundle(input_ids=ids, attention_mask=mask).logits, theirs, atol=1e-4)
