"""ModernBERT's config.json as it was and is written, and files without a prefix or with the tied table twice."""

import json

import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures import Fields, find_architecture
from zoo.formats.safetensors import SafetensorsFile, write_file

OLD = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
NEW = {
    "layer_types": [*["full_attention", "sliding_attention", "sliding_attention"] * 7, "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
SIZES = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 22, "intermediate_size": 4}


def translate(fields):
    return find_architecture("modernbert").config_from_hf(Fields(SIZES | fields, "config.json"), "masked_lm")


@pytest.mark.parametrize("fields", [OLD, NEW, OLD | NEW, {}])
def test_old_and_new_fields_say_the_same(fields):
    config = translate(fields)
    assert config.encoder.pattern == ("global", "local", "local")
    assert config.encoder.local.window == (64, 64)
    assert (config.encoder.attention.rotary.base, config.encoder.local.rotary.base) == (160000.0, 10000.0)


def test_tensors_may_lack_the_prefix_and_be_written_twice(tmp_path):
    with np.load(small.RECORDED / "modernbert-masked_lm.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    folder = small.write_folder(tmp_path / "checkpoint", manifest["config"], manifest["shapes"])
    expected = zoo.load(folder)
    inputs = small.make_inputs(expected)["plain"]
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name.removeprefix("model."): file.read(name) for name in file.shapes}
    tensors["decoder.weight"] = tensors["embeddings.tok_embeddings.weight"]
    write_file(folder / "model.safetensors", [(n, x.shape, x.dtype, lambda x=x: x) for n, x in tensors.items()])
    np.testing.assert_array_equal(zoo.load(folder)(**inputs).logits, expected(**inputs).logits)
