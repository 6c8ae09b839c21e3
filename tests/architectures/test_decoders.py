"""Folders of decoders as they are found on the hub: old fields and buffers, half precision, quantised weights."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from parity import small
from tiers import tiered

import zoo
from zoo.config import LongRopeScaling
from zoo.formats.safetensors import SafetensorsFile, write_file


@pytest.fixture
def make(tmp_path):
    """A small checkpoint of a recorded case, with some fields and all tensors changed as asked."""

    def make(case: str, fields: dict | None = None, change=lambda tensors: tensors) -> Path:
        with np.load(small.RECORDED / f"{case}.npz") as file:
            manifest = json.loads(file["manifest"].tobytes())
        shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        kept = {name: value for name, value in (manifest["config"] | (fields or {})).items() if value != "absent"}
        folder = small.write_folder(tmp_path / "checkpoint", kept, shapes)
        file = SafetensorsFile(folder / "model.safetensors")
        tensors = change({name: np.array(file.read(name)) for name in file.shapes})
        entries = [(name, x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()]
        write_file(folder / "model.safetensors", entries)
        return folder

    return make


def logits(bundle):
    return np.asarray(bundle(**small.make_text(bundle.config, 2, 9)).logits)


def test_files_may_lack_the_prefix_and_hold_rotary_buffers(make):
    def rename(tensors):
        bare = {name.removeprefix("model."): x for name, x in tensors.items() if name != "lm_head.weight"}
        return bare | {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}

    folder = make("llama-causal_lm", change=rename)
    bundle = zoo.load(folder, head="causal_lm")
    assert bundle.origin.fresh == ("head/kernel",)
    base = zoo.load(folder, head="base")
    assert base.origin.left_out == ()


def test_a_tied_file_may_hold_the_table_twice(make):
    once = zoo.load(make("qwen2-causal_lm"))

    def double(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}

    np.testing.assert_array_equal(logits(zoo.load(make("qwen2-causal_lm", change=double))), logits(once))
    assert zoo.load(make("qwen2-causal_lm", change=double), head="base").origin.left_out == ("lm_head.weight",)

    def differ(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}

    with pytest.raises(zoo.CheckpointError, match="ties them"):
        zoo.load(make("qwen2-causal_lm", change=differ))


def test_biases_and_layers_that_the_config_does_not_tell_of_are_refused(make):
    for fields in ({"attention_bias": False}, {"num_hidden_layers": 1, "layer_types": "absent"}):
        with pytest.raises(zoo.CheckpointError, match=r"no use for model\.layers\.\d\."):
            zoo.load(make("llama-causal_lm", fields))


def test_an_answering_head_on_a_language_model(make):
    """Files of Llama's answering head call the base model `transformer`; others do not."""
    bundle = zoo.load(make("llama-causal_lm"), head="question_answering")
    assert bundle.origin.fresh == ("head/bias", "head/kernel")
    assert zoo.load(make("llama-question_answering"), head="base").origin.fresh == ()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(make, dtype):
    rounded = zoo.load(make("qwen3-causal_lm", change=lambda tensors: {n: x.astype(dtype) for n, x in tensors.items()}))
    again = zoo.load(
        make("qwen3-causal_lm", change=lambda tensors: {n: x.astype(dtype).astype("f4") for n, x in tensors.items()})
    )
    np.testing.assert_array_equal(logits(rounded), logits(again))


def test_mistral_without_a_window_differs_from_mistral_that_does_not_say(make):
    assert zoo.load(make("mistral-base", {"sliding_window": None})).config.decoder.local is None
    assert zoo.load(make("mistral-base", {"sliding_window": "absent"})).config.decoder.local.window == (4095, 0)


def test_llama_configs_of_2023(make):
    """Fields that came later are absent; others have no bearing on a single device."""
    fields = dict.fromkeys(
        ("num_key_value_heads", "head_dim", "rope_parameters", "rope_theta", "attention_bias", "mlp_bias"), "absent"
    )
    fields |= {"num_attention_heads": 3, "head_dim": 8, "pretraining_tp": 2, "rope_scaling": None}

    def change(tensors):
        kept = {name: x for name, x in tensors.items() if not name.endswith("bias")}
        return {
            name: x[:24] if "q_proj" in name else x[:, :24] if "o_proj" in name else
            np.concatenate([x, x[:8]]) if "k_proj" in name or "v_proj" in name else x
            for name, x in kept.items()
        }  # fmt: skip

    attention = zoo.load(make("llama-causal_lm", fields, change)).config.decoder.attention
    assert (attention.kv_heads, attention.biases, attention.rotary.base) == (3, (), 10_000.0)


def test_gemma_means_the_approximation_by_gelu(make):
    for fields in ({"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": None}):
        assert zoo.load(make("gemma-base", fields)).config.decoder.mlp.activation == "gelu_tanh"


def test_gemma_scales_embeddings_in_the_compute_dtype(make):
    """In bfloat16 the square root of 24, 4.899, is 4.90625."""
    folder = make("gemma-base")
    states = [zoo.load(folder, dtype=dtype)(**small.make_text(zoo.load(folder).config, 1, 3), output_hidden_states=True)
              for dtype in ("float32", "bfloat16")]  # fmt: skip
    table = np.asarray(zoo.load(folder).params["embedder"]["token"]["embedding"])
    ids = small.make_text(zoo.load(folder).config, 1, 3)["input_ids"]
    np.testing.assert_allclose(states[0].hidden_states[0], table[ids] * 24**0.5, rtol=1e-6)
    rounded = (table[ids] * np.float32(4.90625)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(states[1].hidden_states[0]), rounded)


def test_phi3_names_its_own_class_as_code(make):
    hooks = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    hooks["AutoTokenizer"] = "Xenova/gpt-4o"
    bundle = zoo.load(make("phi3-causal_lm", {"auto_map": hooks}))
    scaling = bundle.config.decoder.attention.rotary.scaling
    assert isinstance(scaling, LongRopeScaling)
    with pytest.raises(zoo.CheckpointError, match="auto_map asks for the code of Phi3Other"):
        zoo.load(make("phi3-causal_lm", {"auto_map": hooks | {"AutoModel": "modeling_phi3.Phi3Other"}}))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_quantised_weights_are_refused(make, method):
    with pytest.raises(zoo.CheckpointError, match=rf"quantised \({method}\).*unquantised"):
        zoo.load(make("llama-causal_lm", {"quantization_config": {"quant_method": method, "bits": 4}}))


@pytest.mark.peers
def test_gpt_oss_in_mxfp4(make, tmp_path):
    rng = np.random.default_rng(0)

    def pack(tensors):
        packed = {}
        for name, x in tensors.items():
            if name.endswith(("gate_up_proj", "down_proj")):
                packed[f"{name}_blocks"] = rng.integers(0, 256, (4, x.shape[2], x.shape[1] // 32, 16), np.uint8)
                packed[f"{name}_scales"] = rng.integers(120, 127, (4, x.shape[2], x.shape[1] // 32), np.uint8)
            else:
                packed[name] = x
        return packed

    folder = make("gpt_oss-causal_lm", {"quantization_config": {"quant_method": "mxfp4"}}, pack)
    bundle = zoo.load(folder)
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("transformers.integrations.mxfp4")
    file, name = SafetensorsFile(folder / "model.safetensors"), "model.layers.1.mlp.experts.down_proj"
    parts = [torch.tensor(np.array(file.read(f"{name}_{part}"))) for part in ("blocks", "scales")]
    theirs = reference.convert_moe_packed_tensors(*parts, dtype=torch.float32).numpy()
    np.testing.assert_array_equal(bundle.params["decoder"]["mlp"]["experts"]["down_kernel"][1], theirs)
    zoo.save(bundle, tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    np.testing.assert_array_equal(logits(zoo.load(tmp_path / "saved")), logits(bundle))


def test_mxfp4_needs_its_scales(make):
    def pack(tensors):
        return tensors | {"model.layers.0.mlp.experts.down_proj_blocks": np.zeros((4, 32, 1, 16), np.uint8)}

    with pytest.raises(zoo.CheckpointError, match=r"down_proj_blocks .* has scales of shape None"):
        zoo.load(make("gpt_oss-causal_lm", {"quantization_config": {"quant_method": "mxfp4"}}, pack))


@pytest.mark.parametrize(
    ("old", "vision"), [("language_model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")]
)
def test_gemma_3_that_sees_is_loaded_without_its_eyes(make, tmp_path, old, vision):
    text = zoo.load(make("gemma3_text-causal_lm"))
    inner = text.origin.fields

    def nest(tensors):
        own = {old + name.removeprefix("model." if old.startswith("model.") else ""): x for name, x in tensors.items()}
        return own | {f"{vision}embeddings.weight": np.ones((3, 3), np.float32)}

    outer = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}}
    bundle = zoo.load(make("gemma3_text-causal_lm", outer | {"text_config": inner}, nest))
    assert bundle.config == text.config
    np.testing.assert_array_equal(logits(bundle), logits(text))
    assert zoo.load(zoo.save(bundle, tmp_path / "saved")).config == text.config


LONG = {"max_new_tokens": 10, "eos_token_id": None}


def make_long(length: int) -> np.ndarray:
    """Prompts from whose continuation on LongRoPE takes other factors."""
    return np.random.default_rng(0).integers(5, 67, (2, length)).astype(np.int32)


@pytest.mark.parametrize("length", tiered([25, 30, 31], [30]))
def test_longrope_reads_all_again_where_it_changes_its_factors(length, make):
    bundle, ids = zoo.load(make("phi3-causal_lm")), make_long(length)
    with jax.default_matmul_precision("highest"):
        whole = ids
        for _ in range(10):
            whole = np.concatenate([whole, np.asarray(bundle(input_ids=whole).logits[:, -1:].argmax(-1))], 1)
        greedy = np.asarray(bundle.generate(ids, **LONG).sequences)
        assert np.array_equal(greedy, whole)
        assert np.array_equal(np.stack(list(bundle.stream(ids, **LONG)), 1), greedy[:, length:])


@pytest.mark.peers
@pytest.mark.parametrize("length", [25, 30, 31])
def test_longrope_writes_what_the_reference_does(length, make):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    folder, ids = make("phi3-causal_lm"), make_long(length)
    bundle = zoo.load(folder)
    with jax.default_matmul_precision("highest"):
        greedy, beams = (np.asarray(bundle.generate(ids, **LONG, num_beams=beams).sequences) for beams in (1, 3))
    model = transformers.Phi3ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    for wanted, num_beams in ((greedy, 1), (beams, 3)):
        found = model.generate(torch.tensor(ids).long(), max_new_tokens=10, do_sample=False, num_beams=num_beams)
        assert np.array_equal(found, wanted)
