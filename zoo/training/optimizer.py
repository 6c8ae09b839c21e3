"""From two small configurations, `OptimizerConfig` and `ScheduleConfig`, to one optax transformation.

Every optimizer is the same chain: clip the global gradient norm, turn gradients into a direction (AdamW, Muon
or Adafactor), add decoupled weight decay to matrices, scale by the schedule. Moments are float32, or 8 bits
(`int8_adam.py`). Norms, biases and embeddings are never decayed; which parameters are matrices is read from
the table in `sharding.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.training.config import OptimizerConfig, ScheduleConfig, TrainingConfig
from zoo.training.guard import watch
from zoo.training.int8_adam import keeps_int8, scale_by_int8_adam
from zoo.training.sharding import matrix_axes, path_name


def make_schedule(config: ScheduleConfig, peak: float, num_steps: int) -> Callable[[jax.Array], jax.Array]:
    """Return the learning rate of update number `step`, counted from 0.

    The warm-up climbs from peak / (warmup_steps + 1), never 0: no update is wasted. The decay reaches
    `final_fraction` on the last update, num_steps - 1; inverse_sqrt knows no last update.
    """
    warmup = config.warmup_steps
    start = warmup if config.name != "wsd" else max(warmup, round(num_steps * (1 - config.decay_fraction)))
    length = max(num_steps - 1 - start, 1)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - start) / length, 0.0, 1.0)
        if config.name == "constant":
            shape = jnp.ones_like(progress)
        elif config.name == "inverse_sqrt":
            shape = jnp.sqrt((warmup + 1) / jnp.maximum(step + 1, warmup + 1))
        elif config.name == "cosine":
            shape = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        else:
            shape = 1 - progress
        ends = config.name not in ("constant", "inverse_sqrt")
        decay = shape + (1 - shape) * config.final_fraction if ends else shape
        return peak * decay * jnp.minimum((step + 1) / (warmup + 1), 1.0)

    return schedule


def decay_mask(params: Any) -> Any:
    """Return True for the parameters that are decayed: the kernels, of heads too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).endswith("kernel"), params)


def muon_dimensions(params: Any) -> Any:
    """Return optax's MuonDimensionNumbers for matrices, None for what Adam updates.

    Axes that are neither contracted nor produced, the stacked layers and the experts, are a batch of
    matrices: a query projection [L, D, N, H] is L matrices of D by N·H.
    """

    def dimensions(path, x):
        axes = matrix_axes(path_name(path), x.ndim)
        return axes and optax.contrib.MuonDimensionNumbers(reduction_axis=axes[0], output_axis=axes[1])

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _matrix_labels(params: Any) -> Any:
    """Return "matrix" for what Muon updates and "other" for what Adam does."""

    def label(path, x):
        return "other" if matrix_axes(path_name(path), x.ndim) is None else "matrix"

    return jax.tree_util.tree_map_with_path(label, params)


def _state_labels(params: Any) -> Any:
    """Return "int8" for the parameters whose moments are kept in 8 bits and "float32" for the others."""
    return jax.tree_util.tree_map_with_path(lambda path, x: "int8" if keeps_int8(path, x) else "float32", params)


def _as_matrices(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Show every matrix to a transformation as [layers…, inputs, outputs]: Adafactor factors those two."""

    def flatten(tree):
        def reshape(path, x):
            axes = matrix_axes(path_name(path), x.ndim)
            if axes is None:
                return x
            left, right = axes
            return x.reshape(*x.shape[: left[0]], *(_size(x, side) for side in (left, right)))

        return jax.tree_util.tree_map_with_path(reshape, tree)

    def init(params):
        return inner.init(flatten(params))

    def update(updates, state, params=None):
        flat, state = inner.update(flatten(updates), state, flatten(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), flat, updates), state

    return optax.GradientTransformation(init, update)


def _size(x: Any, axes: tuple[int, ...]) -> int:
    size = 1
    for axis in axes:
        size *= x.shape[axis]
    return size


def _promoting(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return optax's `inner`, for users of JAX's strict modes too: it raises Python floats to an int32 count."""
    inner = optax.with_extra_args_support(inner)

    def update(updates, state, params=None, **others):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **others)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _scale_by_adam(first: float, second: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """Return `optax.scale_by_adam`, with directions read from the moments as they are kept.

    XLA on CPUs updates each array in a loop of its own. One that made a moment again from the old one, for the
    parameter's update, would need that copied first, as it is overwritten in place.
    """
    adam = _promoting(optax.scale_by_adam(first, second, epsilon, mu_dtype=jnp.float32))
    if jax.default_backend() != "cpu":
        return adam

    def update(updates, state, params=None, *, sound=True, **_):
        _, new = adam.update(updates, state, params)
        kept = jax.tree.map(lambda x, y: jnp.where(sound, x, y), (new.mu, new.nu), (state.mu, state.nu))
        mu, nu = jax.lax.optimization_barrier(kept)
        known_mu, known_nu = (1 - jax.lax.pow(jnp.float32(decay), new.count) for decay in (first, second))
        return jax.tree.map(lambda m, v: m / known_mu / (jnp.sqrt(v / known_nu) + epsilon), mu, nu), new

    return optax.GradientTransformationExtraArgs(adam.init, update)


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the transformation from gradients to an ascent direction of about unit size."""
    first, second = config.betas
    adam = _scale_by_adam(first, second, config.epsilon)
    if config.name == "adamw":
        if config.state == "float32":
            return adam
        int8 = scale_by_int8_adam(first, second, config.epsilon)
        return optax.partition({"int8": int8, "float32": adam}, _state_labels)
    if config.name == "muon":
        # A learning rate of -1 makes optax's complete optimizer a plain direction: decay and schedule come
        # after, the same for all. consistent_rms: https://arxiv.org/abs/2502.16982, section 2.2.
        muon = optax.contrib.muon(
            -1.0,
            beta=config.momentum,
            eps=config.epsilon,
            mu_dtype=jnp.float32,
            muon_weight_dimension_numbers=muon_dimensions,
            consistent_rms=0.2,
        )
        # optax's own split would give the rest Adam with Nesterov momentum.
        return optax.partition({"matrix": _promoting(muon), "other": adam}, _matrix_labels)
    # As in "Scaling Vision Transformers" (https://arxiv.org/abs/2106.04560): no scaling by the parameter's
    # size, so that AdamW's learning rates carry over, and a first moment.
    parts = [_as_matrices(optax.scale_by_factored_rms()), optax.clip_by_block_rms(1.0)]
    if first > 0:
        parts.append(optax.ema(first, debias=True, accumulator_dtype=jnp.float32))
    return _promoting(optax.chain(*parts))


def make_optimizer(config: OptimizerConfig, schedule: Callable[[jax.Array], jax.Array]) -> Any:
    """Return the optax transformation for a configuration and the schedule of its learning rate."""
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    parts.append(_direction(config))
    if config.weight_decay > 0:
        parts.append(optax.add_decayed_weights(config.weight_decay, decay_mask))
    parts.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*parts)


def make_updates(
    optimizer: OptimizerConfig, schedule: ScheduleConfig, training: TrainingConfig
) -> tuple[optax.GradientTransformation, Callable[[jax.Array], jax.Array]]:
    """Return a run's optax transformation and the schedule of its learning rate."""
    rates = make_schedule(schedule, optimizer.learning_rate, training.num_steps)
    updates = make_optimizer(optimizer, rates)
    return updates if training.spike_sigmas is None else watch(updates), rates
