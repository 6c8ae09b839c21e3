"""Optimizers against definitions in NumPy: what is decayed, what Muon orthogonalises, how the rate moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import SHAPES

from zoo.recipes.lineage import transformer_optimizer
from zoo.training.config import OptimizerConfig, ScheduleConfig
from zoo.training.optimizer import decay_mask, make_optimizer, make_schedule, muon_dimensions


def arrays(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PARAMS, GRADIENTS = arrays(0), arrays(1)


def constant(_):
    return jnp.float32(0.1)


def flat(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def first_update(**config):
    """Return the first update of every parameter, with a learning rate of 0.1, no decay and no clipping."""
    opt = make_optimizer(OptimizerConfig(**{"weight_decay": 0.0, "clip_norm": None, **config}), constant)
    state = opt.init(PARAMS)
    updates, state = jax.jit(opt.update)(GRADIENTS, state, PARAMS)
    return flat(updates), state


def test_matrices_and_heads_are_decayed_and_nothing_else():
    mask = flat(decay_mask(PARAMS))
    assert {path for path, decays in mask.items() if decays} == {
        *(f"decoder/attention/{name}/kernel" for name in ("query", "key", "value", "output")),
        "decoder/mlp/up/kernel",
        "decoder/mlp/down/kernel",
        "head/kernel",
    }


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_decay_is_decoupled(name):
    plain, _ = first_update(name=name)
    decayed, _ = first_update(name=name, weight_decay=0.5)
    for path, decays in flat(decay_mask(PARAMS)).items():
        expected = plain[path] - (0.1 * 0.5 * flat(PARAMS)[path] if decays else 0)
        np.testing.assert_allclose(decayed[path], expected, rtol=1e-5, atol=1e-6)


def test_clipping_scales_the_global_norm():
    opt = make_optimizer(OptimizerConfig(weight_decay=0.0, clip_norm=0.5, betas=(0.9, 0.9)), constant)
    _, state = jax.jit(opt.update)(GRADIENTS, opt.init(PARAMS), PARAMS)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), 0.1 * 0.5, rtol=1e-5)


def test_adamw_first_step_is_the_sign_of_the_gradient():
    updates, state = first_update(name="adamw")
    for path, gradient in flat(GRADIENTS).items():
        np.testing.assert_allclose(updates[path], -0.1 * np.sign(gradient), rtol=1e-3, atol=1e-4)
    assert {x.dtype for x in jax.tree.leaves(state)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_muon_dimension_numbers():
    dims = flat(muon_dimensions(PARAMS))
    numbers = optax.contrib.MuonDimensionNumbers
    assert dims == {
        "decoder/attention/query/kernel/reduction_axis/0": 1,
        **{
            f"decoder/{path}/kernel/{axis}/{i}": value
            for path, axes in {
                "attention/query": ((1,), (2, 3)),
                "attention/key": ((1,), (2, 3)),
                "attention/value": ((1,), (2, 3)),
                "attention/output": ((1, 2), (3,)),
                "mlp/up": ((1,), (2,)),
                "mlp/down": ((1,), (2,)),
            }.items()
            for axis, values in zip(numbers._fields, axes, strict=True)
            for i, value in enumerate(values)
        },
    }
    experts = {"decoder": {"mlp": {"experts": {"up_kernel": jnp.zeros((2, 4, 8, 16))}}}}
    assert muon_dimensions(experts)["decoder"]["mlp"]["experts"]["up_kernel"] == numbers((2,), (3,))
    router = {"decoder": {"mlp": {"experts": {"router": {"kernel": jnp.zeros((2, 8, 4))}}}}}
    assert jax.tree.leaves(muon_dimensions(router)) == []


def newton_schulz(matrix):
    """Five quintic iterations on a float64 matrix: https://kellerjordan.github.io/posts/muon."""
    x = matrix / np.linalg.norm(matrix)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def test_muon_orthogonalises_each_layer_on_its_own():
    updates, _ = first_update(name="muon")
    gradients = flat(GRADIENTS)
    for path, rows in {"attention/query": 16, "attention/output": 16, "mlp/up": 16, "mlp/down": 32}.items():
        name = f"decoder/{path}/kernel"
        for layer in range(2):
            gradient = np.asarray(gradients[name][layer], np.float64).reshape(rows, -1)
            expected = -0.1 * 0.2 * np.sqrt(max(gradient.shape)) * newton_schulz(gradient)
            np.testing.assert_allclose(updates[name][layer].reshape(rows, -1), expected, rtol=2e-3, atol=2e-4)
    for path in ("embedder/token/embedding", "head/kernel", "decoder/mlp/up/bias", "final_norm/scale"):
        np.testing.assert_allclose(np.abs(updates[path]), 0.1, rtol=1e-2)  # Adam's first step


def test_adafactor_factors_projections_as_matrices():
    params = {"attention": {"query": {"kernel": jnp.ones((2, 128, 4, 64))}}}
    opt = make_optimizer(OptimizerConfig(name="adafactor", betas=(0.0, 0.95), clip_norm=None), constant)
    shapes = sorted(x.shape for x in jax.tree.leaves(jax.eval_shape(opt.init, params)) if x.ndim > 1)
    assert shapes == [(2, 128), (2, 256)]  # rows and columns of each layer's 128 x 256, no full moment


def test_adafactor_keeps_the_update_size_of_adamw():
    updates, _ = first_update(name="adafactor")
    for path, update in updates.items():
        root_mean_square = float(jnp.sqrt(jnp.mean(update**2)))
        assert 0.05 < root_mean_square < 0.11, path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "constant", "warmup_steps": 4}, {0: 0.2, 3: 0.8, 4: 1, 50: 1, 99: 1}),
        ({"name": "linear", "warmup_steps": 0, "final_fraction": 0.0}, {0: 1, 33: 2 / 3, 99: 0}),
        (
            {"name": "cosine", "warmup_steps": 9, "final_fraction": 0.1},
            {0: 0.1, 9: 1, 54: 0.55, 99: 0.1, 500: 0.1},
        ),
        (
            {"name": "wsd", "warmup_steps": 9, "decay_fraction": 0.19, "final_fraction": 0.0},
            {9: 1, 81: 1, 90: 0.5, 99: 0},
        ),
        (
            {"name": "inverse_sqrt", "warmup_steps": 8, "final_fraction": 0.5},
            {0: 1 / 9, 8: 1, 35: 0.5, 99: 0.3, 899: 0.1},
        ),
    ],
    ids=lambda x: x.get("name", "rates"),
)
def test_schedules(config, expected):
    schedule = jax.jit(make_schedule(ScheduleConfig(**config), peak=2.0, num_steps=100))
    for step, fraction in expected.items():
        assert float(schedule(step)) == pytest.approx(2 * fraction, abs=1e-6), step


def test_the_transformers_schedule_is_its_papers():
    """Vaswani et al. 2017, equation 3, with steps counted from 1."""
    width, warmup = 512, 4000
    rate = make_schedule(
        ScheduleConfig(name="inverse_sqrt", warmup_steps=warmup - 1),
        transformer_optimizer(width, warmup).learning_rate,
        9,
    )
    for number in (1, 100, 3999, 4000, 4001, 100_000):
        expected = width**-0.5 * min(number**-0.5, number * warmup**-1.5)
        assert float(rate(number - 1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0), "optimizer.learning_rate is 0.0; it must be above 0"),
        (
            lambda: OptimizerConfig(name="sgd"),
            "optimizer.name is 'sgd'; it must be one of adamw, muon, adafactor",
        ),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: OptimizerConfig(clip_norm=0.0), "None for no clipping"),
        (lambda: ScheduleConfig(warmup_steps=-1), "schedule.warmup_steps is -1"),
        (lambda: ScheduleConfig(name="step"), "schedule.name is 'step'"),
    ],
)
def test_settings_out_of_range_are_refused(make, mend):
    with pytest.raises(ValueError, match=mend):
        make()
