"""GGUF files, written by the gguf package from small checkpoints: equal to the checkpoint, and hostile ones refused."""

import json

import numpy as np
import pytest
from parity import small

import zoo
from zoo.architectures import find_architecture
from zoo.formats.gguf import _FAMILIES, _LAYER, _TOP, GgufFile

gguf = pytest.importorskip("gguf")


def checkpoint(folder, model_type: str):
    """A folder with drawn weights of the recorded case, without the fields that GGUF cannot express."""
    with np.load(small.RECORDED / f"{model_type}-causal_lm.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return small.write_folder(folder, manifest["config"], shapes)


def write(path, model_type: str, bundle, folder, metadata=(), tensors=()):
    """The file that llama.cpp's converter would write of a folder."""
    family = next(name for name, known in _FAMILIES.items() if known.model_type == model_type)
    stack = bundle.config.decoder
    attention, known = stack.attention, _FAMILIES[family]
    writer = gguf.GGUFWriter(str(path), family)
    writer.add_block_count(stack.num_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(stack.width)
    writer.add_feed_forward_length(stack.mlp.hidden_size)
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_size)
    writer.add_layer_norm_rms_eps(stack.norm.epsilon)
    writer.add_rope_freq_base(attention.rotary.base)
    writer.add_rope_dimension_count(attention.rotary.size or attention.head_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    for name, value in metadata:
        getattr(writer, f"add_{name}")(value)
    ours = {hub: own for own, hub in (_TOP | _LAYER | dict(known.names or {})).items()}
    file = small.SafetensorsFile(folder / "model.safetensors")
    for name in file.shapes:
        x = np.array(file.read(name))
        base, _, kind = name.removeprefix("model.").rpartition(".")
        if base.startswith("layers."):
            _, layer, part = base.split(".", 2)
            own = f"blk.{layer}.{ours[part]}.{kind}"
        else:
            own = f"{ours.get(base, ours.get(f'model.{base}'))}.{kind}"
        if known.pairs_interleaved and (".attn_q." in own or ".attn_k." in own):
            heads = attention.num_heads if ".attn_q." in own else attention.kv_heads
            x = x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        x = x + 1 if known.norms_raised and own.endswith("norm.weight") else x
        writer.add_tensor(own, np.ascontiguousarray(x))
    for name, x in tensors:
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CAPS = (("attn_logit_softcapping", 2.0), ("final_logit_softcapping", 3.0), ("sliding_window", 6))


@pytest.mark.parametrize(("model_type", "metadata"), [("llama", ()), ("qwen3", ()), ("gemma2", CAPS)])
def test_a_file_is_the_folder_it_was_made_of(tmp_path, model_type, metadata):
    folder = checkpoint(tmp_path / "folder", model_type)
    # What a file cannot say, or says of real models only.
    changed = {"rope_scaling": None, "rope_parameters": None, "rope_theta": 500.0, "query_pre_attn_scalar": 8}
    fields = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(fields))
    bundle = zoo.load(folder)
    file = write(tmp_path / "model.gguf", model_type, bundle, folder, metadata)
    again = zoo.load(file)
    ids = small.make_ids(bundle.config.embedding.vocab_size, 2, 9)
    np.testing.assert_allclose(again(input_ids=ids).logits, bundle(input_ids=ids).logits, atol=2e-5)
    assert zoo.load(zoo.save(again, tmp_path / "saved")).config == again.config
    assert GgufFile(file).tokenizer_metadata() == {"model": "gpt2", "tokens": ["a", "b"]}


@pytest.fixture
def file(tmp_path):
    folder = checkpoint(tmp_path / "folder", "llama")
    return write(tmp_path / "model.gguf", "llama", zoo.load(folder), folder)


def test_quantised_numbers_are_the_packages(tmp_path):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(tmp_path / "one.gguf"), "llama")
    x = rng.standard_normal((4, 64)).astype(np.float32)
    for kind in ("Q8_0", "Q4_1", "BF16"):
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"blk.0.ffn_{kind}.weight", gguf.quantize(x, number), raw_dtype=number)
    writer.add_tensor("output.weight", x.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = GgufFile(tmp_path / "one.gguf")
    assert set(found.shapes.values()) == {(4, 64)}
    np.testing.assert_array_equal(found.read("lm_head.weight"), x.astype(np.float16))
    for kind in ("Q8_0", "Q4_1", "BF16"):
        number = gguf.GGMLQuantizationType[kind]
        expected = gguf.dequantize(gguf.quantize(x, number), number)
        np.testing.assert_array_equal(found.read(f"blk.0.ffn_{kind}.weight"), expected)


def test_llama_3_gives_its_frequencies_one_by_one(tmp_path):
    folder = checkpoint(tmp_path / "folder", "llama")
    divisors = np.array([1.0, 1.0, 2.5, 8.0], np.float32)
    file = write(tmp_path / "m.gguf", "llama", zoo.load(folder), folder, tensors=[("rope_freqs.weight", divisors)])
    scaling = zoo.load(file).config.decoder.attention.rotary.scaling
    assert (scaling.short_factors, scaling.long_factors, scaling.attention_factor) == (
        (1, 1, 2.5, 8),
        (1, 1, 2.5, 8),
        1,
    )


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(zoo.CheckpointError, match=r"model\.gguf"):
        zoo.load(file)


def test_damage_is_an_error_or_another_model(file):
    """Bytes of the header set to others: never another error, and never without end."""
    whole = file.read_bytes()
    header, rng = whole.index(b"token_embd"), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(4, header + 200, 3):
            damaged[place] = rng.choice([0, 1, 127, 255, rng.integers(256)])
        file.write_bytes(damaged)
        try:
            found = GgufFile(file)
            found.config_fields()
        except zoo.CheckpointError:
            pass


def test_other_families_and_other_files_are_named(tmp_path):
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(str(path), "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(zoo.CheckpointError, match=r"general\.architecture is 'rwkv6'; zoo reads llama"):
        zoo.load(path)
    path.write_bytes(b"GGUF" + bytes(4) + b"\xff" * 100)
    with pytest.raises(zoo.CheckpointError, match="its version is 0"):
        zoo.load(path)
    path.write_text("hello")
    with pytest.raises(zoo.CheckpointError, match="it does not begin with GGUF"):
        zoo.load(path)


def test_every_family_is_an_architecture():
    for family in _FAMILIES.values():
        assert find_architecture(family.model_type).head_of(family.reference_class) == "causal_lm"
