"""Folders of GPT-2 and its relatives as the hub has them: bare names, buffers, copies, half precision, old fields."""

import json
from pathlib import Path

import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures import Fields, find_architecture
from zoo.formats.safetensors import SafetensorsFile, write_file
from zoo.weights import flatten


def make(folder: Path, case: str, change) -> Path:
    """A small checkpoint of a recorded case, its tensors changed as asked."""
    with np.load(small.RECORDED / f"{case}.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    small.write_folder(folder, manifest["config"], {name: tuple(shape) for name, shape in manifest["shapes"].items()})
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = change({name: np.array(file.read(name)) for name in file.shapes})
    entries = [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
    write_file(folder / "model.safetensors", entries)
    return folder


def halve(tensors, prefix: str = ""):
    return {name.removeprefix(prefix): x.astype(np.float16) for name, x in tensors.items()}


def hub_gpt2(tensors):
    bare = halve(tensors, "transformer.")
    buffers = {"h.0.attn.bias": np.ones((1, 1, 48, 48), np.uint8), "h.0.attn.masked_bias": np.float32([-1e4])}
    return bare | buffers | {"lm_head.weight": bare["wte.weight"]}


def hub_pythia(tensors):
    layer = "gpt_neox.layers.0.attention"
    buffers = {
        f"{layer}.bias": np.ones((1, 1, 64, 64), bool),
        f"{layer}.masked_bias": np.float32([-1e9]),
        f"{layer}.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    return {name.replace("embed_out", "lm_head"): x for name, x in halve(tensors).items()} | buffers


def hub_bloom(tensors):
    return halve(tensors, "transformer.")


def hub_opt(tensors):
    return halve(tensors, "model.") | {"decoder.version": np.float32([3])}


HUB = {"gpt2": hub_gpt2, "gpt_neox": hub_pythia, "bloom": hub_bloom, "opt": hub_opt}


@pytest.mark.parametrize("model_type", HUB)
def test_files_of_the_hub_hold_the_same_model(model_type, tmp_path):
    found = zoo.load(make(tmp_path / "hub", f"{model_type}-causal_lm", HUB[model_type]))
    plain = zoo.load(make(tmp_path / "plain", f"{model_type}-causal_lm", halve))
    assert not found.origin.left_out
    theirs = flatten(plain.params)
    assert all(np.array_equal(leaf, theirs[name]) for name, leaf in flatten(found.params).items())


def test_a_base_model_leaves_the_copy_of_its_table_out(tmp_path):
    assert zoo.load(make(tmp_path, "gpt2-causal_lm", hub_gpt2), head="base").origin.left_out == ("lm_head.weight",)


def config(model_type: str, **fields):
    architecture = find_architecture(model_type)
    values = {name: value for name, value in (architecture.tiny | fields).items() if value != "absent"}
    return architecture.config_from_hf(Fields(values, "config.json"), "causal_lm")


def test_old_and_absent_fields():
    assert config("gpt2", n_inner=None).decoder.mlp.hidden_size == 4 * 24
    assert config("gpt2", n_head="absent", num_attention_heads=4) == config("gpt2")
    assert config("bloom", hidden_size="absent", n_embed=24, n_head="absent", num_attention_heads=6) == config("bloom")
    assert config("gpt_neo", num_layers=24, attention_types="absent").decoder.pattern == ("global", "local")
    assert config("gpt_neo", num_layers=3, attention_types=[[["global"], 3]]).decoder.local is None
    assert config("opt", word_embed_proj_dim="absent", do_layer_norm_before="absent").output_width is None
    rotation = {"rope_type": "default", "rope_theta": 1000, "partial_rotary_factor": 0.25}
    unsaid = {"rotary_pct": "absent", "rotary_emb_base": "absent"}
    assert config("gpt_neox", **unsaid, rope_parameters=rotation) == config("gpt_neox")
    assert config("gpt_neox", **unsaid).decoder.attention.rotary.size == 4


@pytest.mark.parametrize(
    ("model_type", "field"),
    [
        ("gpt2", "add_cross_attention"),
        ("bloom", "apply_residual_connection_post_layernorm"),
    ],
)
def test_what_changes_the_mathematics_is_refused(model_type, field):
    with pytest.raises(zoo.CheckpointError, match=f"{field} is True"):
        config(model_type, **{field: True})
