"""Encoders and decoders joined, each pair against the reference; folders as they are found."""

import json

import jax
import numpy as np
import pytest
from parity import small

import zoo
from zoo.formats.safetensors import SafetensorsFile, write_file
from zoo.weights import CheckpointError

IMAGE = {"image_size": 16, "patch_size": 4, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
IMAGE |= {"hidden_size": 24}
IDS = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 1}
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 61}
BART = {"d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 36, "vocab_size": 61}
PAIRS = {
    "vit-bert": ({}, BERT | {"type_vocab_size": 2}),
    "vit-roberta": ({"hidden_size": 32}, BERT | {"max_position_embeddings": 42}),
    "beit-bart": (
        {"use_relative_position_bias": True, "use_mask_token": True},
        BART | {"max_position_embeddings": 40, "scale_embedding": True, "d_model": 18},
    ),
    "dinov2-mbart": ({"mlp_ratio": 2}, BART | {"max_position_embeddings": 40}),
    "deit-trocr": (
        {"qkv_bias": False},
        BART | {"max_position_embeddings": 40, "d_model": 18, "cross_attention_hidden_size": 24},
    ),
    "vit-trocr": (
        {},
        BART
        | {"use_learned_position_embeddings": False, "layernorm_embedding": False, "scale_embedding": True}
        | {"activation_function": "relu", "tie_word_embeddings": False},
    ),
}


@pytest.mark.peers
@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_equal_the_reference(pair, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sides = [
        (IMAGE if side == "encoder" else IDS | {"is_decoder": True, "add_cross_attention": True})
        | fields
        | {"model_type": kind}
        for side, kind, fields in zip(("encoder", "decoder"), pair.split("-"), PAIRS[pair], strict=True)
    ]
    config = transformers.VisionEncoderDecoderConfig(
        encoder=sides[0], decoder=sides[1], decoder_start_token_id=3, **IDS
    )
    first = tmp_path / "first"
    transformers.VisionEncoderDecoderModel(config).save_pretrained(first)
    fields = json.loads((first / "config.json").read_text())
    folder = small.write_folder(tmp_path / "checkpoint", fields, small.tensor_shapes(first))
    bundle = zoo.load(folder)

    def reference(folder):
        load = transformers.VisionEncoderDecoderModel.from_pretrained
        model, info = load(folder, output_loading_info=True, attn_implementation="eager")
        missing = info["missing_keys"] - small.unread(bundle.origin.architecture, info["missing_keys"])
        assert not missing and not info["unexpected_keys"], info
        positions = getattr(getattr(model.decoder, "model", None), "decoder", None)
        positions = getattr(positions, "embed_positions", None)
        if hasattr(positions, "weights"):  # no buffer, so that loading leaves it without numbers
            positions.weights = positions.get_embedding(*positions.weights.shape, positions.padding_idx)
        model.generation_config = transformers.GenerationConfig.from_model_config(model.config)
        batch = {name: torch.tensor(x if x.dtype == np.float32 else x.astype(np.int64)) for name, x in inputs.items()}
        with torch.no_grad():
            output = model.eval()(**batch)
            pixels = batch["pixel_values"]
            written = model.generate(pixels, do_sample=False, **BEAMS)
        return output.logits.numpy(), output.encoder_last_hidden_state.numpy(), written.numpy()

    inputs = small.make_inputs(bundle)["padded"]
    seen = inputs["decoder_attention_mask"] == 1
    logits, encoded, written = reference(folder)
    with jax.default_matmul_precision("highest"):
        ours = bundle(**inputs)
        np.testing.assert_allclose(ours.logits[seen], logits[seen], atol=1e-4)
        np.testing.assert_allclose(ours.encoder_last_hidden_state, encoded, atol=1e-4)
        found = bundle.generate(pixel_values=inputs["pixel_values"], **BEAMS).sequences
        np.testing.assert_array_equal(found, written)

    saved = zoo.save(bundle, tmp_path / "saved")
    assert zoo.load(saved).config == bundle.config
    np.testing.assert_array_equal(reference(saved)[0], logits)


# Sinusoids are absent at padding in the reference, which no trained model writes before its end.
BEAMS = {"max_new_tokens": 10, "num_beams": 3, "suppress_tokens": [1]}


@pytest.fixture
def folder(tmp_path):
    fields, shapes, _ = small.read_recorded("vision-encoder-decoder", "seq2seq_lm")
    return small.write_folder(tmp_path / "checkpoint", fields, shapes)


def test_an_output_layer_beside_the_table(folder):
    tied = zoo.load(folder)
    assert tied.config.head.tied
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: file.read(name) for name in file.shapes}
    table = tensors["decoder.transformer.wte.weight"]
    more = {"decoder.transformer.h.0.crossattention.bias": np.ones((1, 1, 48, 48), np.float32)}
    for logits, same in ((table, True), (table[::-1].copy(), False)):
        tensors |= more | {"decoder.lm_head.weight": logits}
        entries = [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
        write_file(folder / "model.safetensors", entries)
        bundle = zoo.load(folder)
        assert bundle.config.head.tied == same
        assert zoo.load(zoo.save(bundle, folder.parent / "saved")).config.head.tied == same


def test_what_is_not_followed_is_refused(folder):
    fields = json.loads((folder / "config.json").read_text())
    swin = fields | {"encoder": fields["encoder"] | {"model_type": "donut-swin"}}
    for changed, message in (
        (swin, "is 'donut-swin'; zoo joins beit, deit, dinov2, vit"),
        (fields | {"tie_encoder_decoder": True}, "tie_encoder_decoder is True"),
    ):
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            zoo.load(folder)
