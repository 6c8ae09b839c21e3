"""Folders of BART's relatives as they are found on the hub: copies of tables, fixed sines, missing and old fields."""

import json
from pathlib import Path

import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures.marian import sinusoids
from zoo.formats.safetensors import SafetensorsFile, write_file

OLD_FIELDS = {
    "_num_labels": 3, "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.0,
    "extra_pos_embeddings": 2, "force_bos_token_to_be_generated": True, "normalize_before": False,
    "normalize_embedding": True, "num_hidden_layers": 2, "static_position_embeddings": False,
    "task_specific_params": {"summarization": {"num_beams": 4}}, "tokenizer_class": None,
}  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """A recorded case as a folder, with fields changed ("absent" takes one out) and tensors changed as asked."""

    def make(case: str, fields: dict | None = None, change=lambda tensors: tensors) -> Path:
        with np.load(small.RECORDED / f"{case}.npz") as file:
            manifest = json.loads(file["manifest"].tobytes())
        shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        folder = small.write_folder(tmp_path / "checkpoint", manifest["config"], shapes)
        kept = {name: value for name, value in (manifest["config"] | (fields or {})).items() if value != "absent"}
        (folder / "config.json").write_text(json.dumps(kept))
        file = SafetensorsFile(folder / "model.safetensors")
        tensors = change({name: np.array(file.read(name)) for name in file.shapes})
        entries = [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
        write_file(folder / "model.safetensors", entries)
        return folder

    return make


def logits(folder: Path, **options) -> np.ndarray:
    bundle = zoo.load(folder, **options)
    return np.asarray(bundle(**small.make_inputs(bundle)["padded"]).logits)


def copies(tensors: dict) -> dict:
    """With every name of the one table."""
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return tensors | dict.fromkeys(names, tensors["model.shared.weight"])


@pytest.mark.parametrize("model_type", ["bart", "mbart", "pegasus", "m2m_100"])
def test_four_copies_of_the_table_and_old_fields(make, model_type):
    case = f"{model_type}-seq2seq_lm"
    expected = logits(make(case))
    assert (logits(make(case, OLD_FIELDS, copies)) == expected).all()

    def differ(tensors):
        tensors = copies(tensors)
        return tensors | {"model.decoder.embed_tokens.weight": tensors["model.shared.weight"] + 1}

    with pytest.raises(zoo.CheckpointError, match=r"model\.decoder\.embed_tokens\.weight differ"):
        zoo.load(make(case, change=differ))


def test_a_base_model_has_all_that_a_language_model_needs(make):
    """As facebook/bart-base: no prefix, no bias of the logits."""
    bundle = zoo.load(make("bart-base", change=lambda x: x | {"encoder.version": np.ones(1, "f4")}), head="seq2seq_lm")
    assert bundle.origin.fresh == ()
    assert not np.any(bundle.params["head"]["bias"])


def test_a_language_model_has_all_that_a_base_model_needs(make):
    bundle = zoo.load(make("bart-seq2seq_lm", change=copies), head="base")
    assert bundle.origin.left_out == ("final_logits_bias", "lm_head.weight")


def test_missing_fields_have_the_defaults_of_the_reference(make):
    absent = dict.fromkeys(("eos_token_id", "pad_token_id", "decoder_start_token_id", "scale_embedding"), "absent")
    bundle = zoo.load(make("bart-sequence_classification", absent | {"id2label": "absent"}))
    assert (bundle.config.head.end_id, bundle.config.head.num_classes, bundle.config.embedding.scale) == (2, 3, 1.0)
    assert np.asarray(bundle.prepare(input_ids=np.array([[5, 6, 2]]))["decoder_input_ids"]).tolist() == [[2, 5, 6]]
    bundle = zoo.load(make("m2m_100-seq2seq_lm", absent | {"activation_function": "absent"}))
    assert bundle.config.embedding.scale == 24**0.5
    assert bundle.config.encoder.mlp.activation == "relu"


def test_mbart_begins_with_the_last_token(make):
    ids = np.array([[7, 8, 2, 33], [9, 2, 34, 1]])
    bundle = zoo.load(make("mbart-base"))
    assert np.asarray(bundle.prepare(input_ids=ids)["decoder_input_ids"]).tolist() == [[33, 7, 8, 2], [34, 9, 2, 34]]


def test_logits_of_their_own(make):
    def untie(tensors):
        return copies(tensors) | {"lm_head.weight": tensors["model.shared.weight"][::-1]}

    tied = logits(make("pegasus-seq2seq_lm", change=lambda x: x | {"final_logits_bias": 0 * x["final_logits_bias"]}))
    fields = {"tie_word_embeddings": False}
    own = logits(
        make("pegasus-seq2seq_lm", fields, lambda x: untie(x | {"final_logits_bias": np.zeros((1, 41), "f4")}))
    )
    np.testing.assert_allclose(own, tied[..., ::-1], atol=1e-5)


SINES = dict.fromkeys(("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"))


def as_opus(tensors: dict) -> dict:
    """One vocabulary for both sides, and sines in the file: Helsinki-NLP's folders."""
    shared = tensors.pop("model.encoder.embed_tokens.weight")
    bias = np.linspace(-1, 1, len(shared), dtype=np.float32)[None]
    return copies(tensors | {"model.shared.weight": shared, "final_logits_bias": bias}) | dict.fromkeys(
        SINES, sinusoids(40, 24)
    )


def test_opus_folders(make):
    fields = {"share_encoder_decoder_embeddings": "absent", "decoder_vocab_size": 41, "bad_words_ids": [[1]]}
    expected = logits(make("marian-seq2seq_lm", fields, as_opus))
    fields |= {"decoder_vocab_size": "absent", "bos_token_id": 0, "static_position_embeddings": True}

    def unwritten(tensors: dict) -> dict:
        return {name: x for name, x in as_opus(tensors).items() if name not in SINES}

    def half(tensors: dict) -> dict:
        return {name: x.astype("f2") if name in SINES else x for name, x in as_opus(tensors).items()}

    assert (logits(make("marian-seq2seq_lm", fields, unwritten)) == expected).all()
    assert (logits(make("marian-seq2seq_lm", fields, half)) == expected).all()


@pytest.mark.parametrize("case", ["marian-seq2seq_lm", "pegasus-base"])
def test_other_sines_are_an_error(make, case):
    names = SINES if case.startswith("marian") else [name.removeprefix("model.") for name in SINES]
    wrong = np.roll(sinusoids(40, 24), 1, 0)
    with pytest.raises(zoo.CheckpointError, match=r"embed_positions\.weight is off by"):
        zoo.load(make(case, change=lambda tensors: tensors | dict.fromkeys(names, wrong)))


def test_nllb_folders(make):
    names = [name + "s" for name in SINES]
    folder = make("m2m_100-seq2seq_lm", change=lambda x: copies(x) | dict.fromkeys(names, np.ones((42, 24), "f4")))
    assert zoo.load(folder).origin.left_out == ()
