"""What each of eight devices does, read from compiled programs: no parameter whole, nothing of the whole batch.

Every dimension has a size of its own, so that a shape says what it is of.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import collectives, results
from models import CONFIGS, attention
from tiers import tiered

from zoo import embeddings
from zoo.config import LearnedPositions
from zoo.kernels import mesh_axes
from zoo.tasks.losses import vocabulary_loss
from zoo.training.config import MeshConfig, OptimizerConfig
from zoo.training.optimizer import make_optimizer
from zoo.training.sharding import make_mesh, parameter_spec, path_name, shard_batch, shard_parameters
from zoo.training.state import abstract_state, bind_apply
from zoo.training.step import make_train_step
from zoo.transformer import Transformer, parameter_shapes

ROWS, LENGTH, WIDTH, HIDDEN, VOCAB, HEADS, HEAD_SIZE, SELECTED, CAPACITY = 40, 24, 56, 88, 104, 4, 12, 3, 36
TENSOR = MeshConfig(data=1, tensor=4)
MIXED = MeshConfig(data=2, fsdp=2, tensor=2)
EXPERT = MeshConfig(data=2, expert=2, tensor=2)


def config_of(name: str):
    """A configuration of tests/models.py in these sizes."""
    config = CONFIGS[name]

    def resize(stack):
        heads = attention(num_heads=HEADS, head_size=HEAD_SIZE)
        own = dataclasses.replace(heads, dropout=0.1, rotary=stack.attention.rotary)
        mlp = dataclasses.replace(stack.mlp, hidden_size=HIDDEN)
        if mlp.experts is not None:
            experts = dataclasses.replace(mlp.experts, num_experts=6, num_selected=SELECTED)
            mlp = dataclasses.replace(mlp, experts=experts)
        cross = None if stack.cross_attention is None else heads
        return dataclasses.replace(
            stack, width=WIDTH, num_layers=3, attention=own, cross_attention=cross, mlp=mlp, dropout=0.1
        )

    embedding = dataclasses.replace(config.embedding, width=WIDTH, vocab_size=VOCAB)
    if isinstance(embedding.positions, LearnedPositions):
        embedding = dataclasses.replace(embedding, positions=LearnedPositions(max_length=LENGTH + 1))
    stacks = {side: getattr(config, side) for side in ("encoder", "decoder")}
    stacks = {side: resize(stack) for side, stack in stacks.items() if stack is not None}
    return dataclasses.replace(config, embedding=embedding, **stacks)


class Tokens:
    """Targets of what every decoder reads; dropout everywhere."""

    def loss(self, apply, params, batch, rng=None):
        targets = batch["targets"]
        given = {name: value for name, value in batch.items() if name != "targets"}
        output = apply(params, **given, **({} if rng is None else {"dropout_rng": rng}))
        head = lambda states: apply(params, states=states, method="logits_of")  # noqa: E731
        counted = jnp.ones(targets.shape, jnp.float32)
        loss, metrics = vocabulary_loss(head, output.last_hidden_state, targets, counted, rows=LENGTH)
        return loss + output.aux_loss, metrics


@functools.cache
def train_step(name: str, mesh_config: MeshConfig, accumulate: int = 1, remat: str = "none") -> str:
    """The HLO of a training step."""
    config, task, mesh = config_of(name), Tokens(), make_mesh(mesh_config)
    model = Transformer(config, layers="scanned", remat=remat)
    tokens = np.zeros((ROWS, LENGTH), np.int32)
    batch = {"input_ids": tokens, "attention_mask": tokens, "targets": tokens}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = tokens
    optimizer = make_optimizer(OptimizerConfig(clip_norm=None, weight_decay=0.0), lambda _: 1e-3)
    with jax.set_mesh(mesh):
        target = abstract_state(model, task, optimizer, batch, mesh)
        step = make_train_step(
            task, bind_apply(model), optimizer, lambda _: 0.0, seed=0, accumulate=accumulate, target=target
        )
        return step.lower(target, abstract(batch, shard_batch(batch, mesh))).compile().as_text()


def abstract(tree, shardings):
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)


def whole_parameters(name: str, mesh_config: MeshConfig, text: str) -> list:
    """Results of the program that are as large as a parameter which the mesh splits, a layer of it or its transpose."""
    mesh = make_mesh(mesh_config)
    shapes = parameter_shapes(Transformer(config_of(name)))
    whole = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        spec = parameter_spec(path_name(path), leaf.shape, mesh)
        if any(spec):
            one = leaf.shape[1:] if path_name(path).startswith(("encoder/", "decoder/")) else leaf.shape
            whole |= {tuple(sorted(shape)): path_name(path) for shape in (leaf.shape, one) if np.prod(shape) > WIDTH}
    found = [(result, tuple(sorted(size for size in result.shape if size > 1))) for result in results(text)]
    return [(whole[sizes], result) for result, sizes in found if sizes in whole]


def of_whole_batch(text: str) -> list:
    """Results of the program that have all rows of the batch, or all its positions in one dimension."""
    sizes = {ROWS, ROWS * LENGTH, ROWS * LENGTH * SELECTED}
    return [result for result in results(text) if sizes & {*result.shape}]


@pytest.mark.parametrize("name", tiered(["llama", "gpt2", "t5", "mixtral"], ["llama"]))
def test_tensor_sharding_makes_no_parameter_whole(name):
    text = train_step(name, TENSOR)
    assert whole_parameters(name, TENSOR, text) == []
    assert {result.operation for result in collectives(text)} == {"all-reduce"}


CASES = [
    ("llama", MeshConfig(data=8)),
    ("llama", MeshConfig(data=1, fsdp=8)),
    ("llama", MeshConfig(data=4, context=2)),
    ("llama", MeshConfig(data=4, fsdp=2, slices=2)),
    ("gpt2", MIXED),
    ("t5", MIXED),
    ("mixtral", MIXED),
    ("mixtral", EXPERT),
]


def describe(case) -> str:
    return case if isinstance(case, str) else repr(case)


@pytest.mark.parametrize(("name", "mesh"), tiered(CASES, CASES[2:3] + CASES[7:]), ids=describe)
def test_nothing_of_batch_size_is_on_one_device(name, mesh):
    assert of_whole_batch(train_step(name, mesh)) == []


def test_micro_batches_stay_on_their_devices():
    text = train_step("llama", MIXED, accumulate=2)
    assert of_whole_batch(text) == []
    assert not [result for result in collectives(text) if ROWS // 2 in result.shape]


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("mesh_config", [TENSOR, MIXED], ids=["tensor", "mixed"])
def test_decoding_keeps_the_cache_where_it_is(name, mesh_config):
    """Of a step: no parameter whole under tensor, nothing of the whole batch, no heads of another device."""
    text, cache = decoding_step(name, mesh_config)
    if mesh_config == TENSOR:
        assert whole_parameters(name, mesh_config, text) == []
    else:
        assert of_whole_batch(text) == []
    for leaf in (cache.layers.key, cache.layers.value):
        rows = ("data", "fsdp") if mesh_config == MIXED else None
        assert leaf.sharding.spec[1:4] == (rows, None, "tensor")
    assert not [result for result in results(text) if {CAPACITY, HEADS} <= {*result.shape}]


@functools.cache
def decoding_step(name: str, mesh_config: MeshConfig):
    """The HLO of a step of decoding, and the cache that it is given: as the prompt's program leaves it."""
    config, mesh = config_of(name), make_mesh(mesh_config)
    model = Transformer(config, layers="scanned")

    def read(params, ids, mask, *memory):
        return model.apply({"params": params}, ids, mask, CAPACITY, *memory, method="prefill")

    def step(params, token, cache):
        return model.apply({"params": params}, token, cache, method="step")

    shapes, tokens = parameter_shapes(model), np.zeros((ROWS, LENGTH), np.int32)
    params = abstract(shapes, shard_parameters(shapes, mesh))
    memory = (np.zeros((ROWS, LENGTH, WIDTH), np.float32), tokens) if config.is_encoder_decoder else ()
    given = tuple(abstract(x, shard_batch(x, mesh)) for x in (tokens, tokens, *memory))
    with jax.set_mesh(mesh):
        _, cache = jax.eval_shape(read, params, *given)
        _, shardings = jax.jit(read).lower(params, *given).compile().output_shardings
        cache, token = abstract(cache, shardings), tokens[:, 0]
        program = jax.jit(step).lower(params, abstract(token, shard_batch(token, mesh)), cache).compile()
    return program.as_text(), cache


def test_a_model_on_a_mesh_of_other_names():
    """Its axes are to be told: nothing of the batch is whole on a device then, and without it nothing runs."""
    config = config_of("llama")
    model = Transformer(config, layers="scanned")
    ids = jnp.asarray(np.random.default_rng(0).integers(5, 60, (ROWS, LENGTH)), jnp.int32)
    params = model.init(jax.random.key(0), ids)["params"]
    forward = lambda params, ids: model.apply({"params": params}, input_ids=ids).logits  # noqa: E731
    expected = jax.jit(forward)(params, ids)
    mesh = jax.make_mesh((4, 2), ("dp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="the mesh has the axes dp, tp, and none is one of context, data"):
        shard_parameters(params, mesh)
    split = jax.NamedSharding(mesh, jax.P("dp"))
    again = jax.jit(forward, in_shardings=(None, split))
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match="say what yours split with"):
            again(params, ids)
        with mesh_axes(batch="dp", heads="tp"):
            np.testing.assert_allclose(again(params, ids), expected, atol=1e-4)
            assert of_whole_batch(again.lower(params, ids).compile().as_text()) == []


def test_what_a_branch_adds_is_summed_once():
    """Rematerialising whole blocks makes the sums over devices that end a branch again; `branches` keeps them."""
    again, kept = (len(collectives(train_step("llama", TENSOR, remat=remat))) for remat in ("full", "branches"))
    assert kept == again - 1  # a layer, scanned: the attention's; the MLP's is the next layer's input


def test_the_checks_see_what_they_are_to_see(monkeypatch):
    """Parameters are whole where `fsdp` gathers them; and a batch is, where tables are read as they lie."""
    fsdp = MeshConfig(data=1, fsdp=8)
    found = {path for path, _ in whole_parameters("llama", fsdp, train_step("llama", fsdp))}
    assert {"decoder/mlp/up/kernel", "head/kernel"} <= found
    for name in ("split_rows", "whole_columns"):
        monkeypatch.setattr(embeddings, name, lambda x: x)
    assert of_whole_batch(train_step.__wrapped__("llama", fsdp))
