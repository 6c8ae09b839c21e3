"""With `training.deterministic_parts` a run has the same bits on 1, 2, 4 and 8 devices; without, it has not."""

import functools

import jax
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

STEPS, B = 10, 16


class Tokens:
    """Next tokens of random rows that score different numbers of them, so that parts weigh differently."""

    def batch(self, step):
        rng = np.random.default_rng(step)
        weights = np.arange(16) < rng.integers(2, 17, (B, 1))
        return {"tokens": rng.integers(1, VOCAB, (B, 17)).astype(np.int32), "weights": weights.astype(np.float32)}

    def loss(self, apply, params, batch, rng=None):
        output = apply(params, input_ids=batch["tokens"][:, :-1], dropout_rng=rng)
        loss, metrics = cross_entropy(output.logits, batch["tokens"][:, 1:], batch["weights"])
        return loss + output.aux_loss, metrics


@functools.cache
def train(name, sizes, parts, optimizer="adamw", layers="unrolled"):
    """Parameters and metrics, as bytes, after some steps on a mesh."""
    model, task = Transformer(CONFIGS[name], layers=layers), Tokens()
    mesh = make_mesh(MeshConfig(**dict(sizes)))
    schedule = make_schedule(ScheduleConfig(warmup_steps=2), 1e-2, STEPS)
    optimizer = make_optimizer(OptimizerConfig(name=optimizer, learning_rate=1e-2, clip_norm=0.5), schedule)
    with jax.set_mesh(mesh):
        target = abstract_state(model, task, optimizer, task.batch(0), mesh)
        state = initialise_state(model, task, optimizer, task.batch(0), target, 0)
        step = make_train_step(
            task, bind_apply(model), optimizer, schedule, seed=0, accumulate=1, deterministic_parts=parts, target=target
        )
        lines = []
        for index in range(STEPS):
            state, metrics = step(state, place_batch(task.batch(index), mesh))
            lines.append({name: float(x) for name, x in metrics.items()})
    assert lines[-1]["loss"] < lines[0]["loss"]
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)], lines


MESHES = [(("data", 2),), (("data", 4),), (("data", 8),), (("data", 2), ("fsdp", 2)), (("data", 1), ("fsdp", 8))]
ONE = (("data", 1),)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("name", ["gpt2"])
def test_the_same_bits_on_any_number_of_devices(name, mesh):
    assert train(name, mesh, 8) == train(name, ONE, 8)


def test_without_it_the_bits_differ():
    """Otherwise the test above could not fail."""
    (one, lines), (eight, other) = (train("gpt2", mesh, None) for mesh in (ONE, (("data", 8),)))
    assert one != eight
    np.testing.assert_allclose([x["loss"] for x in lines], [x["loss"] for x in other], atol=1e-4)
