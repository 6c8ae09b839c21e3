"""flax_model.msgpack: the same model from what the deleted Flax classes wrote, and an error for all other bytes."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import serialization
from parity import small

import zoo
from zoo.formats.msgpack import FlaxFile
from zoo.formats.safetensors import SafetensorsFile
from zoo.weights import CheckpointError, flatten, unflatten

CASES = [
    ("bert", "masked_lm"), ("bert", "base"), ("roberta", "token_classification"), ("gpt2", "causal_lm"),
    ("vit", "base"), ("t5", "seq2seq_lm"), ("bart", "seq2seq_lm"), ("marian", "seq2seq_lm"), ("whisper", "seq2seq_lm"),
    ("clip", "base"),
]  # fmt: skip


def flax_names(tensors: dict[str, np.ndarray]) -> dict:
    """Names and layouts as Flax modules have them: embeddings, scales, and kernels with their outputs last.

    GPT-2's Conv1D keeps its kernel the other way round than torch's does, so it is transposed as well.
    """
    leaves = {}
    for name, tensor in tensors.items():
        *modules, leaf = name.split(".")
        last = modules[-1] if modules else ""
        if leaf == "weight" and tensor.ndim == 1:
            # T5 named the scale of its norm as torch does.
            leaf = "weight" if last.endswith("layer_norm") and "layer" in modules else "scale"
        elif leaf == "weight" and ("embed" in last or last in ("shared", "wte", "wpe", "relative_attention_bias")):
            leaf = "embedding"
        elif leaf == "weight":
            leaf, tensor = "kernel", tensor.transpose(*range(2, tensor.ndim), 1, 0)
        leaves["/".join([*modules, leaf])] = tensor
    return unflatten(leaves)


def write(folder, tensors) -> None:
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(flax_names(tensors)))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def folders(request, tmp_path_factory):
    """A checkpoint in safetensors, and in a Flax file."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with np.load(small.RECORDED / f"{'-'.join(request.param)}.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    small.write_folder(folder / "torch", manifest["config"], manifest["shapes"])
    (folder / "flax").mkdir()
    shutil.copy(folder / "torch" / "config.json", folder / "flax")
    file = SafetensorsFile(folder / "torch" / "model.safetensors")
    write(folder / "flax", {name: file.read(name) for name in file.shapes})
    return folder


def test_same_parameters(folders):
    expected, found = zoo.load(folders / "torch"), zoo.load(folders / "flax")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_chunks_and_half_precision(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 40)
    kernel = np.arange(60, dtype=np.float32).reshape(3, 2, 10).astype(jax.numpy.dtype(dtype))
    scalar = np.float32(2)
    tree = {"a": {"kernel": kernel, "bias": np.ones(3, np.float32)}, "0": {"scale": kernel[0, 0]}, "scale": scalar}
    (tmp_path / "x").write_bytes(serialization.msgpack_serialize(tree))
    file = FlaxFile(tmp_path / "x")
    assert dict(file.shapes) == {"a.weight": (10, 2, 3), "a.bias": (3,), "0.weight": (10,), "weight": ()}
    np.testing.assert_array_equal(file.read("a.weight"), kernel.transpose(2, 1, 0))
    np.testing.assert_array_equal(file.read("0.weight"), kernel[0, 0])
    assert file.read("weight") == 2


def shard(folder, num_files: int = 2) -> dict[str, str]:
    """Replace the one file by several, as the deleted classes' save_pretrained did: names by slashes in the index."""
    leaves = flatten(serialization.msgpack_restore((folder / "flax_model.msgpack").read_bytes()))
    (folder / "flax_model.msgpack").unlink()
    weight_map = {}
    for number in range(num_files):
        own = dict(list(leaves.items())[number::num_files])
        name = f"flax_model-{number + 1:05d}-of-{num_files:05d}.msgpack"
        (folder / name).write_bytes(serialization.msgpack_serialize(unflatten(own)))
        weight_map |= dict.fromkeys(own, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    return weight_map


def test_shards(folders, tmp_path):
    folder = shutil.copytree(folders / "flax", tmp_path / "shards")
    weight_map = shard(folder)
    expected, found = zoo.load(folders / "torch"), zoo.load(folder)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    name, home = next(iter(weight_map.items()))
    other = next(file for file in weight_map.values() if file != home)
    for file, message in (
        ("../a.msgpack", "shards lie beside the index"), ("/etc/passwd", "beside"), ("a.bin", "is no msgpack file"),
        ("flax_model-3.msgpack", "cannot be read"), (other, "does not have it"), (None, "beside"),
    ):  # fmt: skip
        (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map | {name: file}}))
        with pytest.raises(CheckpointError, match=message):
            zoo.load(folder)
    del weight_map[name]
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="the index does not list"):
        zoo.load(folder)


WRONG = {
    "begin with a map": b"\x07",
    "cannot be read": b"",
    "more after": b"\x80\x80",
    "maps more than": b"\x81\xa1a" * 100 + b"\x80",
    "ends within": b"\xdf\xff\xff\xff\xff",
    "as a name": b"\x82\xa1a\x80\xa1a\x80",
    "no array": b"\x82\xa1a\xa1b\xa1b\x80",
    "extension type 5": b"\x81\xa1a\xd4\x05\x00",
    "kind 0xcb": b"\x81\xa1a\xcb" + bytes(8),
    "without its shape": b"\x81\xa1a\x81\xb9__msgpack_chunked_array__\xc3",
    "dtype 'object'": serialization.msgpack_serialize({"a": np.zeros(1)}).replace(b"\xa7float64", b"\xa6object")[:-8]
    + bytes(9),
}


@pytest.mark.parametrize("message", WRONG)
def test_other_bytes_are_errors(message, tmp_path):
    (tmp_path / "x").write_bytes(WRONG[message])
    with pytest.raises(CheckpointError, match=message):
        FlaxFile(tmp_path / "x")


def test_damage_is_an_error_or_a_file(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"a": {"kernel": np.ones((2, 3), np.float32)}, "b": {"0": {"scale": np.ones(4, np.float16)}}}
    whole = serialization.msgpack_serialize(tree)
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            FlaxFile(tmp_path / "x")
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "x").write_bytes(bytes(damaged))
        try:
            file = FlaxFile(tmp_path / "x")
        except CheckpointError:
            continue
        for name in file.shapes:
            assert file.read(name).shape == file.shapes[name]
