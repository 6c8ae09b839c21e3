"""Rotation as config.json has it, old and new, against the frequencies that the reference computes from the same."""

import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.architectures.architecture import Fields
from zoo.architectures.rotary import rotary_from_hf, rotary_to_hf
from zoo.rotary import rotary_frequencies

HEAD_SIZE, MAX_LENGTH = 16, 256
FACTORS = [1.0 + number / 4 for number in range(HEAD_SIZE // 2)]
BY_BAND = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "nothing": {},
    "base": {"rope_theta": 5e5},
    "base_of_5": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "null_scaling": {"rope_theta": 1e6, "rope_scaling": None},
    "linear": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear_of_5": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **BY_BAND}},
    "llama3_of_5": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **BY_BAND}},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    "yarn_without_original": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn_given_factor": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 64,
            "beta_fast": 16, "beta_slow": 2, "truncate": False,
        },
    },
    "yarn_of_deepseek": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.8,
            "original_max_position_embeddings": 64,
        },
    },
    "longrope": {
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS[::-1]},
    },
    "longrope_of_5": {
        "rope_parameters": {
            "rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS[::-1], "factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 1e4,
        },
    },
}  # fmt: skip


def translate(fields: dict):
    return rotary_from_hf(Fields(fields, "config.json"), HEAD_SIZE, max_length=MAX_LENGTH)


@pytest.mark.peers
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [32, 128, 512])
def test_frequencies_are_the_references(name, length):
    torch = pytest.importorskip("torch")
    modelling = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = modelling.LlamaConfig(
        hidden_size=4 * HEAD_SIZE, num_attention_heads=4, max_position_embeddings=MAX_LENGTH, **CONFIGS[name]
    )
    theirs = modelling.LlamaRotaryEmbedding(config)
    cosine, sine = theirs(torch.zeros(1), torch.arange(length)[None])
    frequencies, factor = rotary_frequencies(translate(CONFIGS[name]), HEAD_SIZE, length)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
    np.testing.assert_allclose(jnp.cos(angles) * factor, cosine[0, :, : HEAD_SIZE // 2].numpy(), atol=2e-4)
    np.testing.assert_allclose(jnp.sin(angles) * factor, sine[0, :, : HEAD_SIZE // 2].numpy(), atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip(name):
    rotary = translate(CONFIGS[name])
    assert translate(rotary_to_hf(rotary, HEAD_SIZE)) == rotary


def test_part_of_a_head():
    old, new = {"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}
    assert translate(old) == translate(new) == translate(rotary_to_hf(translate(old), HEAD_SIZE))
    assert translate(old).size == 8


def test_layer_types_have_their_own():
    nested = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
        }
    }
    flat = {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 1e3}
    for layer_type, base_field in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")):
        found = [
            rotary_from_hf(
                Fields(fields, "config.json"), HEAD_SIZE, max_length=64, layer_type=layer_type, base_field=base_field
            )
            for fields in (nested, flat)
        ]
        assert found[0] == found[1]
        assert (found[0].scaling is None) == (layer_type == "sliding_attention")


def test_an_unknown_kind_is_refused():
    with pytest.raises(zoo.CheckpointError, match="rope_type is 'spiral'"):
        translate({"rope_scaling": {"type": "spiral", "factor": 2.0}})
