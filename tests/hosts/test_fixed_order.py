"""With `training.deterministic_parts` a run has the same bits on 1, 2, 4 and 8 devices; without, it has not."""

import functools

import jax
import numpy as np
import pytest
from models import CONFIGS, VOCAB
from tiers import tiered
from training.toy import Toy, assert_same_bits, run_toy

from zoo.tasks.losses import cross_entropy
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.fixed_order import check_parts
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


ONE = (("data", 1),)
EIGHT = (("data", 8),)


FOUR = (("data", 2), ("fsdp", 2))
SPLIT = [
    ((("data", 2),), "adamw"),
    ((("data", 4),), "adamw"),
    (EIGHT, "adamw"),
    (FOUR, "adamw"),
    (EIGHT, "muon"),
    ((("data", 1), ("fsdp", 8)), "muon"),
]


@pytest.mark.parametrize(("mesh", "optimizer"), tiered(SPLIT, [(FOUR, "adamw")]), ids=str)
def test_the_same_bits_on_any_number_of_devices(mesh, optimizer):
    assert train("gpt2", mesh, 8, optimizer) == train("gpt2", ONE, 8, optimizer)


def test_without_it_the_bits_differ():
    """Otherwise the test above could not fail."""
    (one, lines), (eight, other) = (train("gpt2", mesh, None) for mesh in (ONE, EIGHT))
    assert one != eight
    np.testing.assert_allclose([x["loss"] for x in lines], [x["loss"] for x in other], atol=1e-4)
    fixed = [x["loss"] for x in train("gpt2", ONE, 8)[1]]
    np.testing.assert_allclose(fixed[0], lines[0]["loss"], rtol=1e-5)  # before dropout has led them apart
    assert fixed != [x["loss"] for x in lines]


@pytest.mark.slow
def test_dropout_draws_by_part_and_not_by_device(tmp_path):
    """The toy drops hidden units, so its runs agree only if their masks do; metrics.csv and evaluations agree too."""
    states = []
    for mesh in ({"data": 1}, {"data": 2, "fsdp": 2}, {"data": 8}):
        folder = tmp_path / str(mesh["data"])
        states.append(run_toy(folder, mesh=mesh, deterministic_parts=8))
        assert (folder / "metrics.csv").read_bytes() == (tmp_path / "1" / "metrics.csv").read_bytes()
        assert_same_bits(states[-1], states[0])
    dry = run_toy(tmp_path / "dry", mesh={"data": 1}, deterministic_parts=8, model=Toy(dropout=0.0))
    assert not np.array_equal(np.asarray(dry.params["head"]["kernel"]), np.asarray(states[0].params["head"]["kernel"]))


@pytest.mark.parametrize(
    ("mesh", "parts", "batch", "message"),
    [
        ({"data": 4, "tensor": 2}, 8, 16, "deterministic_parts is 8 and mesh.tensor is 2: .* set mesh.tensor to 1"),
        ({"data": 4, "context": 2}, 8, 16, "set mesh.context to 1"),
        ({"data": 8}, 4, 16, "deterministic_parts is 4 and the mesh has 8 devices: give a power of two of them"),
        ({"data": 3}, 8, 24, "the mesh has 3 devices"),
        ({"data": 2}, 8, 12, "a batch of 12 rows does not divide into training.deterministic_parts = 8"),
    ],
)
def test_what_cannot_keep_the_order_is_refused(mesh, parts, batch, message):
    with pytest.raises(ValueError, match=message):
        check_parts(parts, make_mesh(MeshConfig(**mesh)), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deterministic_parts": 6}, "training.deterministic_parts is 6; it must be a power of two"),
        ({"deterministic_parts": 0}, "it must be a power of two"),
        ({"deterministic_parts": 8, "accumulate": 2}, "leave training.accumulate at 1"),
        ({"workers": -1}, "training.workers is -1; it must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)
