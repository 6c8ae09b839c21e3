"""Moments in 8 bits: codes against their definition, Adam's updates, memory, meshes, checkpoints, learning; float8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import tiered
from toy import assert_same_bits

from zoo.config import AttentionConfig, EmbeddingConfig, LanguageModelHead, MlpConfig, StackConfig, TransformerConfig
from zoo.recipes import RECIPES
from zoo.training.checkpoint import Checkpoints
from zoo.training.config import MeshConfig, OptimizerConfig, ScheduleConfig
from zoo.training.int8_adam import BLOCK, SMALLEST, decode, encode, scale_by_int8_adam
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.prefetch import place_batch
from zoo.training.sharding import make_mesh, path_name
from zoo.training.state import abstract_state, bind_apply, initialise_state
from zoo.training.step import make_train_step
from zoo.transformer import Transformer

VOCAB, WIDTH, LENGTH = 64, 64, 16
GPT = TransformerConfig(
    embedding=EmbeddingConfig(width=WIDTH, vocab_size=VOCAB),
    decoder=StackConfig(
        num_layers=2,
        width=WIDTH,
        attention=AttentionConfig(num_heads=4, head_size=16, biases=("query",)),
        mlp=MlpConfig(hidden_size=512, bias=True),
        causal=True,
    ),
    head=LanguageModelHead(tied=True),
)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
@pytest.mark.parametrize("length", [1, 7, BLOCK, 2 * BLOCK + 3])
def test_codes_are_fourth_roots_of_shares(dtype, length):
    values = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32) ** 3
    values = np.abs(values) if dtype == jnp.uint8 else values
    last = jnp.iinfo(dtype).max
    for threshold in (0.0, 0.3, 0.999):
        codes, scales = encode(jnp.asarray(values), jnp.float32(threshold), dtype)
        assert codes.shape == values.shape and codes.dtype == dtype
        assert scales.shape == (3, -(-length // BLOCK))
        own = np.repeat(np.asarray(scales), min(BLOCK, length), axis=-1)[:, :length]
        root = last * (np.abs(values) / own) ** 0.25
        assert (np.abs(np.abs(codes.astype(np.float32)) - root) < 1.01).all()
        found = np.asarray(decode(codes, scales))
        np.testing.assert_allclose(found, np.sign(codes) * (np.abs(codes / last)) ** 4 * own, rtol=1e-5)
        assert dtype == jnp.int8 or (codes >= 1).all()


def test_rounding_up_at_changing_thresholds_keeps_the_mean():
    """To nearest, what lies between two codes would be kept as the nearer one for ever."""
    values = jnp.asarray(np.random.default_rng(0).uniform(0.01, 1, (4, 64)), jnp.float32)
    thresholds = (np.arange(1, 401) * 0.6180339887) % 1
    kept = [decode(*encode(values, jnp.float32(threshold), jnp.int8)) for threshold in thresholds]
    once = np.abs(kept[0] - values) / values
    mean = np.abs(np.mean(kept, 0) - values) / values
    assert mean.max() < 1e-3 < 1e-2 < once.max()


def follow(second: float, spread: float, change: float):
    """The relative error of updates after a hundred steps, of parameters whose gradients differ in size by `spread`."""
    rng = np.random.default_rng(0)
    sizes = np.exp(spread * rng.normal(size=(8, 300)))
    gradients = sizes * (rng.normal(size=(300, 8, 300)) + 0.3)
    gradients[150:] *= change
    exact, ours = optax.scale_by_adam(0.9, second, 1e-8), scale_by_int8_adam(0.9, second, 1e-8)
    zeros = jnp.zeros((8, 300))

    def step(states, gradient):
        with jax.numpy_dtype_promotion("standard"):  # optax raises Python floats to an int32 count
            wanted, one = exact.update(gradient, states[0])
        found, two = ours.update(gradient, states[1])
        return (one, two), (wanted, found)

    start = exact.init(zeros), ours.init(zeros)
    (_, state), (wanted, found) = jax.lax.scan(step, start, jnp.asarray(gradients, jnp.float32))
    assert (found[0] == wanted[0]).all()  # nothing was rounded yet
    error = jnp.sqrt(jnp.square(found - wanted)[100:].mean() / jnp.square(wanted)[100:].mean())
    return float(error), float(jnp.abs(found).max() / jnp.abs(wanted).max()), state


@pytest.mark.parametrize("second", [0.95, 0.999])
@pytest.mark.parametrize(("spread", "bound"), [(0.0, 0.05), (1.0, 0.1), (2.0, 0.2)])
def test_updates_stay_close_to_adams(second, spread, bound):
    error, largest, state = follow(second, spread, 0.1)
    assert 1e-3 < error < bound and largest < 1.5
    assert state.mu.codes.dtype == jnp.int8 and state.nu.codes.dtype == jnp.uint8


@jax.debug_nans(True)
def test_blocks_that_no_gradient_reached_stay_where_they_are():
    ours = scale_by_int8_adam(0.9, 0.95, 1e-8)
    gradient = jnp.zeros((2, 512)).at[0, 3].set(1e-3)
    state = ours.init(gradient)
    for _ in range(3):
        update, state = ours.update(gradient, state)
    assert float(update[0, 3]) == pytest.approx(1, rel=0.05)
    assert np.count_nonzero(update) == 1 and np.isfinite(update).all()


class Cycles:
    """Predict a sequence whose next number is a fixed permutation of the last."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(step)
        successor = np.random.default_rng(1).permutation(VOCAB)
        tokens = np.empty((8, LENGTH + 1), np.int32)
        tokens[:, 0] = rng.integers(0, VOCAB, 8)
        for place in range(LENGTH):
            tokens[:, place + 1] = successor[tokens[:, place]]
        return {"tokens": tokens}

    def loss(self, apply, params, batch, rng=None):
        logits = apply(params, input_ids=batch["tokens"][:, :-1]).logits
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
        return losses.mean(), {"weight": jnp.float32(losses.size)}


def train(optimizer: OptimizerConfig, steps: int, mesh: MeshConfig, start=None, compute_dtype="float32"):
    """Losses and the final state; from `start`, a state of another mesh, where it is given."""
    model, task, device_mesh = Transformer(GPT, layers="scanned"), Cycles(), make_mesh(mesh)
    schedule = make_schedule(ScheduleConfig(name="constant", warmup_steps=5), optimizer.learning_rate, steps)
    transformation = make_optimizer(optimizer, schedule)
    with jax.set_mesh(device_mesh):
        target = abstract_state(model, task, transformation, task.batch(0), device_mesh)
        state = initialise_state(model, task, transformation, task.batch(0), target, 0)
        if start is not None:
            state = jax.device_put(start, jax.tree.map(lambda x: x.sharding, target))
        apply = bind_apply(model, compute_dtype)
        step = make_train_step(task, apply, transformation, schedule, seed=0, accumulate=1, target=target)
        losses = []
        for index in range(int(state.step), steps):
            state, metrics = step(state, place_batch(task.batch(index), device_mesh))
            losses.append(metrics["loss"])
    return np.array(losses), state


INT8 = OptimizerConfig(learning_rate=3e-3, state="int8")
ONE = MeshConfig(data=1)


@pytest.fixture(scope="module")
def one():
    return train(INT8, 80, ONE)


def moments(state) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {path_name(path): leaf for path, leaf in leaves if leaf.ndim}


def test_a_gpt_learns_as_with_adam(one):
    exact, _ = train(OptimizerConfig(learning_rate=3e-3), 80, ONE)
    ours = one[0]
    assert exact[-10:].mean() < 0.2 * exact[0]
    assert not np.array_equal(ours, exact)
    np.testing.assert_allclose(ours[-20:].mean(), exact[-20:].mean(), rtol=0.1)


def test_state_takes_a_quarter(one):
    _, exact = train(OptimizerConfig(state="float32"), 0, ONE)
    ours, whole = (sum(leaf.nbytes for leaf in moments(state).values()) for state in (one[1], exact))
    assert ours < 0.3 * whole  # heads of size 16 have a scale for 16 codes here
    large = {path: leaf for path, leaf in moments(one[1]).items() if "/codes/" in path}
    assert {leaf.dtype.itemsize for leaf in large.values()} == {1} and min(x.size for x in large.values()) >= SMALLEST
    assert "embedding" in "".join(large) and not any(path.endswith(("bias", "scale")) for path in large)
    kept = [leaf for path, leaf in moments(one[1]).items() if path.endswith(("bias", "norm/scale"))]
    assert kept and all(leaf.dtype == jnp.float32 for leaf in kept)


MIXED = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.parametrize("mesh", tiered([MeshConfig(data=8), MeshConfig(data=1, fsdp=8), MIXED], [MIXED]), ids=str)
def test_eight_devices_equal_one(mesh, one):
    losses, state = train(INT8, 20, mesh)
    # A sum in another order may put a moment over an edge between two codes: a step there is 3 % of a moment.
    np.testing.assert_allclose(losses, one[0][:20], rtol=5e-3)
    found = moments(state)
    for path, leaf in found.items():
        if mesh.fsdp > 1 and "/codes/" in path and path.endswith("up/kernel"):
            scale = found[path.replace("codes", "scales")]
            assert not leaf.sharding.is_fully_replicated and not scale.sharding.is_fully_replicated
            assert scale.sharding.spec[1] == leaf.sharding.spec[1]


def test_a_checkpoint_restores_the_same_bits_on_another_mesh(tmp_path):
    _, state = train(INT8, 3, MeshConfig(data=1, fsdp=8))
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, {"step": 3, "tokens": 0}, {})
    model, task, mesh = Transformer(GPT, layers="scanned"), Cycles(), make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    target = abstract_state(model, task, make_optimizer(INT8, lambda step: 3e-3), task.batch(0), mesh)
    with Checkpoints(tmp_path) as checkpoints:
        again = checkpoints.restore(3, target)
    assert_same_bits(again, state)
    _, ended = train(INT8, 6, ONE, start=jax.device_get(again))
    _, whole = train(INT8, 6, ONE, start=jax.device_get(state))
    assert_same_bits(ended, whole)


def test_only_adam_keeps_8_bits():
    with pytest.raises(ValueError, match=r"optimizer\.state is 'int8'; it must be float32 with muon"):
        OptimizerConfig(name="muon", state="int8")
    with pytest.raises(ValueError, match=r"optimizer\.state is 'int4'; it must be float32 or int8"):
        OptimizerConfig(state="int4")


def test_products_in_float8_learn_as_in_bfloat16():
    """Every kernel of the blocks is rounded, nothing else is, and the gradients point the same way."""
    bfloat16, _ = train(OptimizerConfig(learning_rate=3e-3), 80, ONE, compute_dtype="bfloat16")
    float8, state = train(OptimizerConfig(learning_rate=3e-3), 80, ONE, compute_dtype="float8")
    assert not np.array_equal(float8, bfloat16)
    assert float8[-20:].mean() < 1.15 * bfloat16[-20:].mean() + 0.02 and float8[-10:].mean() < 0.25 * float8[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_gradients_in_float8_are_close_to_bfloat16s():
    model, task = Transformer(GPT, dtype=jnp.bfloat16), Cycles()
    params = jax.jit(lambda rng: model.init(rng, input_ids=jnp.ones((1, 1), jnp.int32))["params"])(jax.random.key(0))

    def gradients(compute_dtype):
        apply = bind_apply(model, compute_dtype)
        return jax.jit(jax.grad(lambda params: task.loss(apply, params, task.batch(0))[0]))(params)

    exact, ours = gradients("bfloat16"), gradients("float8")
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(exact), jax.tree.leaves(ours), strict=True):
        cosine = float((one * two).sum() / jnp.linalg.norm(one) / jnp.linalg.norm(two))
        assert cosine > 0.97 and not np.array_equal(one, two), path_name(path)


def test_a_run_in_float8_has_activations_in_bfloat16():
    run = dataclasses.replace(RECIPES["gpt-tiny"](), compute_dtype="float8")
    assert run.make_model().dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="compute_dtype is 'float8' and the model is of RecurrentConfig"):
        dataclasses.replace(RECIPES["translate-dates-lstm"](), compute_dtype="float8")
