"""What `zoo.load` and `zoo.save` do beside translating weights: heads, names, dtypes, shards, meshes, memory."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType
from test_hostile import tensors_of, write

import zoo
import zoo.architectures
import zoo.transformer
import zoo.weights
from zoo.formats.hub import COPIES, FILES
from zoo.formats.safetensors import SafetensorsFile
from zoo.weights import CheckpointError, flatten

IDS = {"input_ids": np.arange(5, 15)[None]}


def same(a, b) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_head_of_the_config_or_of_the_caller(checkpoint):
    bundle = zoo.load(checkpoint)
    assert bundle.origin.head == "masked_lm" and bundle(**IDS).logits.shape == (1, 10, 99)
    classifier = zoo.load(checkpoint, head="sequence_classification")
    assert classifier(**IDS).logits.shape == (1, 3)
    assert classifier.origin.fresh == (
        "head/logits/bias",
        "head/logits/kernel",
        "head/pooler/bias",
        "head/pooler/kernel",
    )
    assert "cls.predictions.bias" in classifier.origin.left_out
    assert float(jnp.abs(classifier.params["head"]["logits"]["kernel"]).max()) > 0
    with pytest.raises(ValueError, match="head is 'poem'; bert has base, masked_lm"):
        zoo.load(checkpoint, head="poem")


def test_a_head_that_the_config_names_must_be_there(checkpoint):
    edit_config(checkpoint, architectures=["BertForSequenceClassification"])
    with pytest.raises(CheckpointError, match=r"it lacks .*classifier"):
        zoo.load(checkpoint)


def test_old_names_and_missing_prefix(checkpoint):
    expected = zoo.load(checkpoint)
    tensors = tensors_of(checkpoint)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for n, t in tensors.items()}  # fmt: skip
    write(checkpoint, old)
    assert same(zoo.load(checkpoint).params, expected.params)
    write(checkpoint, {n.removeprefix("bert."): t for n, t in tensors.items()})
    assert same(zoo.load(checkpoint).params, expected.params)
    write(checkpoint, tensors | {"bert.embeddings.position_ids": np.arange(40)[None]})
    assert same(zoo.load(checkpoint).params, expected.params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(dtype, checkpoint, tmp_path):
    write(checkpoint, {n: t.astype(dtype) for n, t in tensors_of(checkpoint).items()})
    bundle = zoo.load(checkpoint)
    assert {leaf.dtype for leaf in jax.tree.leaves(bundle.params)} == {jnp.dtype("float32")}
    narrow = zoo.load(checkpoint, param_dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow.params)} == {jnp.dtype(dtype)}
    zoo.save(narrow, tmp_path / "saved")
    before, after = (SafetensorsFile(folder / "model.safetensors") for folder in (checkpoint, tmp_path / "saved"))
    assert all(before.read(n).tobytes() == after.read(n).tobytes() for n in before.shapes)


def test_shards(checkpoint, tmp_path):
    bundle = zoo.load(checkpoint)
    folder = zoo.save(bundle, tmp_path / "shards", max_shard_bytes=20_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert same(zoo.load(folder).params, bundle.params)


def test_hidden_states(checkpoint):
    bundle = zoo.load(checkpoint)
    output = bundle(**IDS, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert np.array_equal(output.hidden_states[-1], output.last_hidden_state)
    scanned = zoo.load(checkpoint, layers="scanned")(**IDS, output_hidden_states=True)
    for a, b in zip(output.hidden_states, scanned.hidden_states, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert bundle(**IDS).hidden_states is None


def mesh(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes))


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"tensor": 4, "fsdp": 2}, {"data": 8}])
def test_a_mesh_gives_the_same(axes, checkpoint):
    one, many = zoo.load(checkpoint), zoo.load(checkpoint, mesh=mesh(**axes))
    assert same(one.params, many.params)
    kernel = many.params["encoder"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.is_fully_replicated == (axes == {"data": 8})
    np.testing.assert_allclose(one(**IDS).logits, many(**IDS).logits, atol=1e-5)


def test_host_memory_stays_near_one_tensor(checkpoint, loading_peak):
    """NumPy's peak while loading onto eight devices: at most the largest tensor and a fifth of the model."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4000}
    edit_config(checkpoint, **sizes, architectures=["BertModel"])
    rows = zoo.architectures.find_architecture("bert")
    fields = zoo.architectures.Fields(json.loads((checkpoint / "config.json").read_text()), "config.json")
    config = rows.config_from_hf(fields, "base")
    shapes = zoo.transformer.parameter_shapes(zoo.Transformer(config))
    entries = zoo.weights.export_params(rows.weights(config, "base"), shapes)
    write(checkpoint, {name: np.full(shape, 0.5, np.float32) for name, shape, _, _ in entries})
    model = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    largest = max(4 * leaf.size for leaf in flatten(shapes).values())
    peak = loading_peak(checkpoint, on_a_mesh=True)
    assert model > 15e6
    assert peak <= largest + 0.2 * model, f"{peak / 1e6:.1f} MB of {model / 1e6:.1f}"


def test_of_a_repository_one_copy_is_fetched():
    utils = pytest.importorskip("huggingface_hub.utils")
    read = ["config.json", "model-00001-of-00002.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors"]
    read += ["tokenizer.model", "chat_template.jinja", "flax_model.msgpack", "merges.txt", "source.spm"]
    unread = ["consolidated.00.safetensors", "original/model.safetensors", "onnx/config.json", "pytorch_model.bin"]
    unread += ["modeling_custom.py", "original/params.json"]
    found = utils.filter_repo_objects(read + unread, allow_patterns=FILES, ignore_patterns=COPIES)
    assert list(found) == read
