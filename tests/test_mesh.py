"""Every architecture on eight devices, as on one: the losses of a few training steps, and what it writes.

No device holds anything of the whole batch meanwhile, says the compiled program. Default tier: a model for each module
that splits its work in a way of its own, and every axis once.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import results
from models import CONFIGS, RECURRENT, draw_parameters, inputs
from tiers import tiered

from zoo.architectures import Fields, find_architecture, list_architectures
from zoo.config import DualConfig, ImageTokenizerConfig
from zoo.dual import DualEncoder
from zoo.generate import generate
from zoo.image_tokens import ImageTokenizer
from zoo.recurrent import Recurrent
from zoo.tasks.losses import cross_entropy
from zoo.training.config import MeshConfig
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh, shard_parameters
from zoo.training.state import abstract_state, bind_apply, start_state
from zoo.training.step import make_train_step
from zoo.transformer import Transformer

sys.path.append(str(Path(__file__).parent / "parity"))

from small import GENERATING, config_fields

STEPS, ROWS, LENGTH = 3, 88, 12  # no other dimension has as many as there are rows
ONE, MIXED = MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=4, tensor=2),
    "context": MeshConfig(data=2, context=2, tensor=2),
    "slices": MeshConfig(data=4, fsdp=2, slices=2),
}
EXPERTS = {
    "expert": MeshConfig(data=1, expert=4),
    "expert, mixed": MeshConfig(data=1, expert=2, tensor=2, fsdp=2),
    "expert, context": MeshConfig(data=1, expert=4, context=2),
    "fsdp": MeshConfig(data=1, fsdp=8),
}


def config_of(name: str):
    """The small model of an architecture, with the head that has most to do."""
    architecture = find_architecture(name)
    heads = (*GENERATING, "masked_lm", "image_classification", "embedding", "base")
    head = next(head for head in heads if head in architecture.classes)
    fields = config_fields(name, head)
    if architecture.compose is not None:
        architecture = architecture.compose(Fields(fields, "config.json"))
    return architecture.config_from_hf(Fields(dict(architecture.defaults) | fields, "config.json"), head)


# Architectures whose small models are the same (a family's names) are one case.
ARCHITECTURES = {config: name for name in reversed(list_architectures()) for config in [config_of(name)]}
WALKED: dict = {name: config for config, name in sorted(ARCHITECTURES.items(), key=lambda item: item[1])}
WALKED |= {f"recurrent-{name}": RECURRENT[name] for name in ("lstm", "attention")}
WALKED |= {"image-tokenizer": ImageTokenizerConfig(image_size=12, patch_size=4, width=16, num_blocks=1, levels=(5, 4))}
MECHANISMS = ("bert", "clip", "deberta-v2", "llama", "mixtral", "t5", "vit", "recurrent-attention", "image-tokenizer")
"""Names of WALKED that are in the default tier."""
WRITING = [name for name, config in WALKED.items() if getattr(config, "decoder", None) or name.startswith("recurrent")]


@functools.cache
def build(name: str):
    """The model, its inputs, and parameters of which each matters."""
    config = WALKED[name] if name in WALKED else CONFIGS[name]
    if isinstance(config, ImageTokenizerConfig):
        given = {"pixel_values": np.random.default_rng(0).random((ROWS, 3, 12, 12)).astype(np.float32)}
        return ImageTokenizer(config), given, draw_parameters(ImageTokenizer(config), given)
    if isinstance(config, DualConfig):
        model = DualEncoder(config, layers="scanned")
        given = inputs(config.text, ROWS, LENGTH) | inputs(config.image, ROWS)
    else:
        recurrent = name.startswith("recurrent")
        model = Recurrent(config) if recurrent else Transformer(config, layers="scanned")
        given = inputs(config, ROWS, LENGTH)
    if "input_ids" in given:  # the last rows end early
        given["attention_mask"] = (np.arange(LENGTH) < LENGTH - np.arange(ROWS)[:, None] % 4).astype(np.int32)
    return model, given, draw_parameters(model, given)


class Anything:
    """The cross-entropy of whatever a model gives, each row with targets of its own; padding does not count."""

    def loss(self, apply, params, batch, rng=None):
        batch = dict(batch)
        rows = batch.pop("rows")
        output = apply(params, **batch)
        if hasattr(output, "token_ids"):
            error = jnp.square(output.pixel_values - batch["pixel_values"]).mean()
            return error, {"weight": jnp.float32(1)}
        names = ("logits_per_text", "logits", "pooler_output", "last_hidden_state")
        scores = next(value for name in names if (value := getattr(output, name, None)) is not None)
        shape = scores.shape[:-1]
        mask = batch.get("attention_mask")
        weights = mask if mask is not None and mask.shape == shape else jnp.ones(shape)
        positions = jnp.arange(np.prod(shape[1:], dtype=int)).reshape(shape[1:])
        targets = (rows.reshape(-1, *[1] * positions.ndim) * 13 + positions[None] * 7) % scores.shape[-1]
        loss, metrics = cross_entropy(scores, targets, weights.astype(jnp.float32))
        return loss + getattr(output, "aux_loss", 0.0), metrics


@functools.cache
def train(name: str, mesh_config: MeshConfig, accumulate: int = 1) -> tuple[np.ndarray, list]:
    """Losses and gradient norms of a few steps; and what of the program has all rows of the batch."""
    model, given, params = build(name)
    given = given | {"rows": np.arange(ROWS, dtype=np.int32)}
    task, mesh = Anything(), make_mesh(mesh_config)
    optimizer, schedule, found = optax.sgd(0.02), optax.constant_schedule(0.02), []
    with jax.set_mesh(mesh):
        target = abstract_state(model, task, optimizer, given, mesh)
        state = start_state(params, optimizer, target)
        step = make_train_step(
            task, bind_apply(model), optimizer, schedule, seed=0, accumulate=accumulate, target=target
        )
        batch = place_batch(given, mesh)
        program = step.lower(state, batch).compile()
        for _ in range(STEPS):
            state, metrics = program(state, batch)
            found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    whole = [result for result in results(program.as_text()) if {ROWS, ROWS * LENGTH} & {*result.shape}]
    return np.array(found), whole


def assert_as_one(name: str, mesh: MeshConfig, accumulate: int = 1) -> None:
    """The same losses as on one device, of a model that learns, and nothing of the whole batch."""
    (found, whole), (one, _) = train(name, mesh, accumulate), train(name, ONE)
    assert np.isfinite(one).all() and one[-1, 0] < one[0, 0]
    np.testing.assert_allclose(found[:, 0], one[:, 0], rtol=2e-5)
    # A unit near the kink of a ReLU may fall on its other side: T5's at the third step.
    np.testing.assert_allclose(found[:, 1], one[:, 1], rtol=1e-3)
    # Contrastive scores are of all texts with all images. Experts of two groups have as many rows as there are
    # positions, since each row is there twice: tests/test_partition.py looks at them.
    if not isinstance(build(name)[0], DualEncoder) and mesh.expert == 1:
        assert whole == []


@pytest.mark.parametrize("name", tiered(WALKED, ["bert", "mixtral", "t5", "recurrent-attention"]))
def test_every_architecture_trains_on_a_mixed_mesh_as_on_one_device(name):
    assert_as_one(name, MIXED)


AXES = [(name, mesh) for name in ("llama", "t5") for mesh in MESHES]


@pytest.mark.parametrize(("name", "mesh"), tiered(AXES, [("llama", mesh) for mesh in ("slices", "fsdp", "context")]))
def test_every_axis_trains_as_one_device(name, mesh):
    assert_as_one(name, MESHES[mesh])


@pytest.mark.parametrize(
    ("name", "mesh"),
    # The last one has biases.
    tiered(
        [*(("mixtral", mesh) for mesh in EXPERTS), ("gpt_oss", "expert, mixed")],
        [("mixtral", "expert, mixed"), ("mixtral", "expert, context")],
    ),
)
def test_experts_on_several_devices_train_as_on_one(name, mesh):
    assert_as_one(name, EXPERTS[mesh])


SUMMED = {"fsdp": MeshConfig(data=2, fsdp=2), "expert": EXPERTS["expert, mixed"]}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", tiered(SUMMED, ["expert"]))
def test_gradients_of_experts_are_summed_in_float32(mesh):
    """Where products are in bfloat16: a sum in that, inside `shard_map`, makes XLA's CPU compiler end the process."""
    model, given, params = build("mixtral")
    model, mesh = model.clone(dtype=jnp.bfloat16), make_mesh(SUMMED[mesh])

    def loss(params):
        output = model.apply({"params": params}, **given)
        return jnp.square(output.logits).mean() + output.aux_loss

    def gradient_norm(params):
        return float(optax.tree.norm(jax.jit(jax.grad(loss))(params)))

    one = gradient_norm(params)
    with jax.set_mesh(mesh):
        split = jax.device_put(params, shard_parameters(params, mesh))
        np.testing.assert_allclose(gradient_norm(split), one, rtol=0.01)


SPLIT_TWICE = {
    "mixed": ("llama", MIXED),
    "context": ("t5", MESHES["context"]),
    "expert": ("mixtral", EXPERTS["expert, mixed"]),
}


@pytest.mark.parametrize("case", tiered(SPLIT_TWICE, ["mixed"]))
def test_micro_batches_train_as_the_whole_batch(case):
    """Of rows that end early, so that the micro-batches score different numbers of tokens."""
    assert_as_one(*SPLIT_TWICE[case], accumulate=2)


@functools.cache
def write(name: str, mesh_config: MeshConfig) -> np.ndarray:
    """What a model writes, greedily."""
    model, given, params = build(name)
    given = {key: value for key, value in given.items() if not key.startswith("decoder_")}
    options = {"decoder_start_token_id": 1} if "decoder_input_ids" in build(name)[1] else {}
    if not options:  # a prompt is padded on the left
        given = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"][:, ::-1]}
    mesh = make_mesh(mesh_config)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, shard_parameters(params, mesh))
        found = generate(bind_apply(model), params, **given, **options, max_new_tokens=8, no_repeat_ngram_size=1)
    return np.asarray(found.sequences)


@pytest.mark.parametrize("name", tiered(WRITING, ["t5"]))
def test_every_decoder_writes_on_a_mixed_mesh_as_on_one_device(name):
    one = write(name, ONE)
    assert len(np.unique(one[:, -8:])) >= 8  # no token comes twice, so that each step has to choose
    np.testing.assert_array_equal(write(name, MIXED), one)


@pytest.mark.parametrize("case", ["context", "expert"])
def test_decoders_write_from_split_caches_and_experts_as_on_one_device(case):
    name, mesh = SPLIT_TWICE[case]
    np.testing.assert_array_equal(write(name, mesh), write(name, ONE))
