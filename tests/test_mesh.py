"""The real model on eight devices: the same losses as on one, for every kind of mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import CONFIGS, VOCAB

from zoo.tasks.losses import cross_entropy
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh
from zoo.training.state import abstract_state, bind_apply, initialise_state
from zoo.training.step import make_train_step
from zoo.transformer import Transformer

STEPS = 20
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "tensor": MeshConfig(data=4, tensor=2),
    "mixed": MeshConfig(data=2, fsdp=2, tensor=2),
    "context": MeshConfig(data=2, context=2, tensor=2),
}


class RandomTokens:
    """A task on fixed random rows with packed segments, the same batches on every mesh."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(step)
        tokens = rng.integers(1, VOCAB, (8, 17)).astype(np.int32)
        return {"tokens": tokens, "segment_ids": np.sort(rng.integers(1, 3, (8, 17)), -1).astype(np.int32)}

    def loss(self, apply, params, batch, rng=None):
        inputs, segments = batch["tokens"][:, :-1], batch["segment_ids"][:, :-1]
        given = dict(input_ids=inputs, segment_ids=segments)
        if self.pairs:
            given = dict(given, decoder_input_ids=inputs, decoder_segment_ids=segments)
        output = apply(params, **given)
        weights = (batch["segment_ids"][:, 1:] == segments).astype(jnp.float32)
        loss, metrics = cross_entropy(output.logits, batch["tokens"][:, 1:], weights)
        return loss + output.aux_loss, metrics

    def __init__(self, pairs: bool):
        self.pairs = pairs


@functools.cache
def losses(name: str, mesh_config: MeshConfig, layers: str = "scanned") -> np.ndarray:
    model, task = Transformer(CONFIGS[name], layers=layers), RandomTokens(CONFIGS[name].encoder is not None)
    mesh = make_mesh(mesh_config)
    schedule = make_schedule(ScheduleConfig(warmup_steps=2), 1e-2, STEPS)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), schedule)
    with jax.set_mesh(mesh):
        target = abstract_state(model, task, optimizer, task.batch(0), mesh)
        state = initialise_state(model, task, optimizer, task.batch(0), target, 0)
        step = make_train_step(task, bind_apply(model), optimizer, schedule, seed=0, accumulate=1, target=target)
        found = []
        for index in range(STEPS):
            state, metrics = step(state, place_batch(task.batch(index), mesh))
            found.append(metrics["loss"])
        sharded = sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))
    assert sharded > 0 or (mesh_config.fsdp == 1 and mesh_config.tensor == 1)
    return np.array(found)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_losses_equal_one_device(name, mesh):
    one = losses(name, MeshConfig(data=1))
    assert one[-1] < one[0]
    np.testing.assert_allclose(losses(name, MESHES[mesh]), one, atol=1e-5, rtol=0)
