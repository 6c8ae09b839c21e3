"""`zoo.load(…, quantize=…)`: what is quantised, that products mean the rounded kernels, and where such models go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.sharding import AxisType
from models import CONFIGS, MECHANISMS, RECURRENT, build, inputs
from test_hostile import write
from test_loading import edit_config, mesh
from tiers import tiered

import zoo
import zoo.architectures
import zoo.transformer
from zoo.bundle import Bundle
from zoo.config import LanguageModelHead
from zoo.formats.safetensors import read_json
from zoo.quantization import quantize_params, quantized_axes
from zoo.training.sharding import parameter_spec
from zoo.weights import export_params, flatten, unflatten

CASES = {
    "bert-masked_lm": "encoder, with a tied head and its transform",
    "gpt2-causal_lm": "decoder, tied, fused projections",
    "llama-causal_lm": "decoder, a head of its own, grouped queries",
    "gpt_oss-causal_lm": "experts",
    "t5-seq2seq_lm": "encoder-decoder",
    "vit-image_classification": "pixels",
    "clip-base": "two towers",
}


def folder_of(case: str, path):
    fields, shapes, _ = small.read_recorded(*case.split("-"))
    return small.write_folder(path, fields, shapes)


def meant(quantized, plain, config) -> dict:
    """The float parameters that quantised ones stand for."""
    leaves, found = flatten(quantized), {}
    for path, leaf in flatten(plain).items():
        form = next((form for form in ("int8", "w8a8") if f"{path}/{form}" in leaves), None)
        if form is None:
            found[path] = leaves[path]
            continue
        ins, outs = quantized_axes(path, leaf.ndim, config)
        order = [axis for axis in range(leaf.ndim) if axis not in ins + outs] + [*outs, *ins]
        scale = leaves[f"{path}/scale"]
        whole = leaves[f"{path}/{form}"].astype(scale.dtype) * scale.reshape(*scale.shape, *(1,) * len(ins))
        found[path] = whole.transpose(np.argsort(order))
    return unflatten(found)


def main(bundle, batch) -> np.ndarray:
    return np.asarray(small.main_output(bundle(**batch), bundle.origin.head))


@pytest.mark.parametrize("case", tiered(CASES, ["bert-masked_lm", "t5-seq2seq_lm"]))
def test_every_family_computes_with_the_rounded_kernels(case, tmp_path):
    folder = folder_of(case, tmp_path / "folder")
    plain, int8, w8a8 = (zoo.load(folder, quantize=how) for how in (None, "int8", "w8a8"))
    rounded = dataclasses.replace(plain, params=meant(int8.params, plain.params, plain.config))
    batch = next(iter(small.make_inputs(plain).values()))
    expected, whole = main(rounded, batch), main(plain, batch)
    size = np.abs(expected).max()
    np.testing.assert_allclose(main(int8, batch), expected, atol=1e-3 * size)
    rounding = np.abs(expected - whole).max()
    assert 1e-4 * size < rounding < 0.1 * size  # every kernel is within half a step of its output's scale
    assert 1e-4 * size < np.abs(main(w8a8, batch) - expected).max() < 0.15 * size
    leaves = flatten(plain.params)
    for path, leaf in flatten(rounded.params).items():
        step = np.abs(leaves[path]).max() / 127
        assert np.abs(leaf - leaves[path]).max() <= 0.51 * step, path


FLOAT = {
    "head/kernel",
    "head/logits/kernel",
    "head/distilled_logits/kernel",
    "decoder/mlp/experts/router/kernel",
    "encoder/convolution/projection/kernel",
    "embedder/audio/first_convolution/kernel",
    "embedder/audio/second_convolution/kernel",
    *(f"decoder/layer_0/alignment/{name}/kernel" for name in ("query", "key", "score")),
}
"""Kernels that may stay in floats: convolutions, and what chooses between classes, experts or positions."""


@pytest.mark.parametrize("name", tiered([*CONFIGS, *RECURRENT], [*MECHANISMS]))
def test_every_product_is_quantised_and_fits(name):
    """Traced alone: a kernel whose inputs were taken for outputs does not fit its product."""
    model, params = build(name)
    quantized = jax.eval_shape(lambda params: quantize_params(params, "int8", model.config), params)
    jax.eval_shape(lambda params: model.apply({"params": params}, **inputs(model.config)), quantized)
    floats = {path for path in flatten(quantized) if path.endswith(("kernel", "token/embedding"))}
    language = isinstance(model.config.head, LanguageModelHead)
    assert floats <= FLOAT - ({"head/kernel"} if language else set())


def test_bytes_are_a_quarter(tmp_path):
    plain, int8 = (zoo.load(folder_of("gpt2-causal_lm", tmp_path / str(how)), quantize=how) for how in (None, "int8"))
    sizes = [
        {path: leaf.nbytes for path, leaf in flatten(bundle.params).items() if "kernel" in path or "token" in path}
        for bundle in (plain, int8)
    ]
    scales = sum(size for path, size in sizes[1].items() if path.endswith("scale"))
    assert sum(sizes[1].values()) - scales == sum(sizes[0].values()) / 4
    table = int8.params["embedder"]["token"]["embedding"]
    assert table["int8"].dtype == jnp.int8 and table["scale"].shape == table["int8"].shape[:1]


@pytest.mark.parametrize("case", tiered(["gpt2-causal_lm", "t5-seq2seq_lm"], ["gpt2-causal_lm"]))
def test_generation_with_a_cache_is_that_of_the_rounded_kernels(case, tmp_path):
    folder = folder_of(case, tmp_path / "folder")
    plain, int8 = (zoo.load(folder, quantize=how) for how in (None, "int8"))
    rounded = dataclasses.replace(plain, params=meant(int8.params, plain.params, plain.config))
    ids = small.make_ids(plain.config.embedding.vocab_size, 2, 6)
    for options in ({}, {"num_beams": 3}):
        written, expected = (bundle.generate(ids, max_new_tokens=8, **options) for bundle in (int8, rounded))
        assert np.array_equal(written.sequences, expected.sequences)
        if written.scores is not None:
            np.testing.assert_allclose(written.scores, expected.scores, atol=1e-3)


def test_w8a8_decodes_one_row_at_a_time_as_all_at_once(tmp_path):
    bundle = zoo.load(folder_of("llama-causal_lm", tmp_path / "folder"), quantize="w8a8")
    ids = small.make_ids(bundle.config.embedding.vocab_size, 1, 6)
    written = np.asarray(bundle.generate(ids, max_new_tokens=8, eos_token_id=None).sequences)
    logits = np.asarray(bundle(input_ids=written).logits)
    assert np.array_equal(logits[:, 5:-1].argmax(-1), written[:, 6:])


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"tensor": 2, "fsdp": 4}])
def test_on_a_mesh_scales_lie_with_their_outputs(axes, tmp_path):
    folder = folder_of("llama-causal_lm", tmp_path / "folder")
    one, many = zoo.load(folder, quantize="int8"), zoo.load(folder, quantize="int8", mesh=mesh(**axes))
    assert all(map(np.array_equal, jax.tree.leaves(one.params), jax.tree.leaves(many.params)))
    up = many.params["decoder"]["mlp"]["up"]["kernel"]
    assert not up["int8"].is_fully_replicated
    if "tensor" in axes:
        assert up["int8"].sharding.spec[1] == up["scale"].sharding.spec[1] == "tensor"
    batch = {"input_ids": small.make_ids(one.config.embedding.vocab_size, 8, 9)}
    # An activation that another order of sums puts over an edge moves by a step of 15 bits.
    np.testing.assert_allclose(one(**batch).logits, many(**batch).logits, atol=2e-3)


def test_layouts_of_what_stands_for_kernels():
    both = jax.make_mesh((2, 2, 2), ("fsdp", "tensor", "expert"), (AxisType.Auto,) * 3)
    for path, shape, spec in (
        ("decoder/attention/query/kernel/int8", (6, 4, 8, 16), (None, "tensor", None, "fsdp")),
        ("decoder/attention/query/kernel/scale", (6, 4, 8), (None, "tensor", None)),
        ("decoder/attention/output/kernel/w8a8", (6, 16, 4, 8), (None, "fsdp", "tensor", None)),
        ("decoder/mlp/experts/up_kernel/int8", (6, 2, 32, 16), (None, "expert", "tensor", "fsdp")),
        ("decoder/mlp/experts/up_kernel/scale", (6, 2, 32), (None, "expert", "tensor")),
        ("embedder/token/embedding/int8", (64, 16), ("tensor", "fsdp")),
        ("embedder/token/embedding/scale", (64,), ("tensor",)),
        ("head/kernel/int8", (64, 16), ("tensor", "fsdp")),
    ):
        assert tuple(parameter_spec(path, shape, both)) == spec, path


def test_host_memory_stays_near_one_tensor(checkpoint, loading_peak):
    """On the devices too: what is not yet quantised is never there together."""
    edit_config(checkpoint, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, architectures=["BertModel"])
    rows = zoo.architectures.find_architecture("bert")
    fields = zoo.architectures.Fields(read_json(checkpoint / "config.json"), "config.json")
    config = rows.config_from_hf(fields, "base")
    shapes = zoo.transformer.parameter_shapes(zoo.Transformer(config))
    entries = export_params(rows.weights(config, "base"), shapes)
    write(checkpoint, {name: np.full(shape, 0.5, np.float32) for name, shape, _, _ in entries})
    model, largest = (4 * function(leaf.size for leaf in jax.tree.leaves(shapes)) for function in (sum, max))
    peak = loading_peak(checkpoint, quantize="int8")
    before = sum(array.nbytes for array in jax.live_arrays())
    bundle = zoo.load(checkpoint, quantize="int8")
    assert peak <= largest + 0.2 * model, f"{peak / 1e6:.1f} MB of {model / 1e6:.1f}"
    assert sum(array.nbytes for array in jax.live_arrays()) - before < 0.3 * model
    assert isinstance(bundle.params["encoder"]["mlp"]["up"]["kernel"], dict)


def test_saved_and_loaded_again_in_zoo_s_layout(tmp_path):
    bundle = zoo.load(folder_of("gpt2-causal_lm", tmp_path / "folder"), quantize="int8")
    own = zoo.save(bundle, tmp_path / "own", layout="zoo")
    again = zoo.load(own)
    assert [*flatten(again.params)] == sorted(flatten(bundle.params))
    for path, leaf in flatten(bundle.params).items():
        assert leaf.dtype == flatten(again.params)[path].dtype and np.array_equal(leaf, flatten(again.params)[path])
    ids = {"input_ids": small.make_ids(bundle.config.embedding.vocab_size, 2, 7)}
    assert np.array_equal(bundle(**ids).logits, again(**ids).logits)
    other = zoo.load(own, quantize="w8a8")  # the same integers, multiplied otherwise
    kernel = other.params["decoder"]["mlp"]["up"]["kernel"]
    assert np.array_equal(kernel["w8a8"], bundle.params["decoder"]["mlp"]["up"]["kernel"]["int8"])
    assert "in float32 and int8" in (own / "README.md").read_text()
    with pytest.raises(ValueError, match="the model is quantised, which layout='zoo' alone holds"):
        zoo.save(bundle, tmp_path / "theirs")
    with pytest.raises(ValueError, match="this model is quantised with the head 'causal_lm'"):
        zoo.load(own, head="sequence_classification")


def test_a_head_that_is_drawn_is_quantised_too(checkpoint):
    bundle = zoo.load(checkpoint, head="sequence_classification", quantize="int8")
    assert "head/pooler/kernel" in bundle.origin.fresh
    assert np.abs(bundle.params["head"]["pooler"]["kernel"]["int8"]).max() == 127
    assert np.isfinite(bundle(input_ids=np.arange(5, 15)[None]).logits).all()


def test_a_model_made_from_scratch(tmp_path):
    model, params = build("attention")
    plain = zoo.save(Bundle(model=model, params=params, config=model.config), tmp_path / "plain", layout="zoo")
    bundle = zoo.load(plain, quantize="int8")
    batch = inputs(model.config)
    expected = model.apply({"params": meant(bundle.params, params, model.config)}, **batch).logits
    np.testing.assert_allclose(bundle(**batch).logits, expected, atol=1e-3)


def test_another_word_is_refused(checkpoint):
    with pytest.raises(ValueError, match="quantize is 'int4'; choose 'int8' or 'w8a8', or None"):
        zoo.load(checkpoint, quantize="int4")
