"""One optimizer step as one jitted call: gradients, accumulation, update, metrics that stay on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.training.config import TrainingConfig
from zoo.training.fixed_order import ROWS, hidden_one, sum_parts
from zoo.training.flops import count_flops
from zoo.training.guard import is_sound, is_spike
from zoo.training.host import give_back_freed_memory
from zoo.training.protocol import Apply, Params, Task
from zoo.training.sharding import shard_batch
from zoo.training.state import TrainState
from zoo.training.tuning import merge

Metrics = dict[str, jax.Array]


def _gradients(
    task: Task, apply: Apply, params: Params, frozen: Params, batch: Any, rng: jax.Array
) -> tuple[Metrics, Params]:
    """Return metrics (with "loss") and the gradients of the mean loss per scored token, of `params` alone."""

    def loss(params):
        value, metrics = task.loss(apply, merge(params, frozen), batch, rng)
        return value, {"loss": value, **metrics}

    (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return {name: x.astype(jnp.float32) for name, x in metrics.items()}, gradients


def split_batch(batch: Any, parts: int) -> Any:
    """Reshape [B, ...] to [parts, B / parts, ...]; part i has the rows i, i + parts, ...

    Taking every parts-th row keeps each row on its device: contiguous parts would each lie on a few devices.
    """

    def split(x):
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def accumulate_gradients(
    task: Task, apply: Apply, params: Params, frozen: Params, batch: Any, rng: jax.Array, parts: int
) -> tuple[Metrics, Params]:
    """Return what `_gradients` gives for the whole batch, made in `parts` micro-batches one after the other.

    Each is a mean over its own scored tokens, so the mean over all weighs it by their number.
    """
    micro = split_batch(batch, parts)
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), micro)
    shapes = jax.eval_shape(lambda b: _gradients(task, apply, params, frozen, b, rng), first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)

    def body(total, xs):
        index, part = xs
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty:
            part = jax.lax.with_sharding_constraint(part, shard_batch(part, mesh))
        metrics, gradients = _gradients(task, apply, params, frozen, part, jax.random.fold_in(rng, index))
        weight = metrics["weight"]
        return jax.tree.map(lambda t, x: t + weight * x, total, (metrics | {"weight": 1.0}, gradients)), None

    (metrics, gradients), _ = jax.lax.scan(body, zeros, (jnp.arange(parts), micro))
    return _mean(metrics, gradients)


def sum_gradients(
    task: Task, apply: Apply, params: Params, frozen: Params, batch: Any, rng: jax.Array, parts: int, once: jax.Array
) -> tuple[Metrics, Params]:
    """Return the sums over scored tokens of what `_gradients` gives, in the same bits on any number of devices.

    Call it inside a `shard_map` over the whole mesh, with this device's rows. `_mean` makes the whole batch's of them.
    """

    def weigh(rows, part):
        metrics, gradients = _gradients(task, apply, params, frozen, rows, jax.random.fold_in(rng, part))
        weight = metrics["weight"]
        return jax.tree.map(lambda x: weight * x, (metrics | {"weight": jnp.ones(())}, gradients))

    return sum_parts(weigh, batch, parts, jax.sharding.get_abstract_mesh(), once)


def _mean(metrics: Metrics, gradients: Params) -> tuple[Metrics, Params]:
    """Divide sums over scored tokens by the tokens' number, which is "weight" and stays."""
    weight = metrics["weight"]
    scale = jnp.where(weight > 0, 1 / jnp.maximum(weight, 1e-30), 0)
    metrics, gradients = jax.tree.map(lambda x: x * scale, (metrics, gradients))
    return metrics | {"weight": weight}, gradients


def make_train_step(
    task: Task,
    apply: Apply,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    seed: int,
    accumulate: int,
    deterministic_parts: int | None = None,
    target: TrainState,
    spike_sigmas: float | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the jitted `step(state, batch, frozen=None) -> (state, metrics)`; call it under `jax.set_mesh`.

    The state is donated; what is frozen is neither donated nor differentiated. Metrics are float32 scalars on
    the device: those of the task and loss, grad_norm (before clipping), learning_rate, and skipped: 1 where the update
    would have harmed the state, which then is as it was but for its step. `spike_sigmas` asks for an optimizer from
    `zoo.training.guard.watch`. The step's rng is `fold_in(seed, step)`, so a resumed run needs no rng state.

    With `deterministic_parts` the same bits come out on any mesh that `check_parts` lets pass.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(state: TrainState, metrics: Metrics, gradients: Params) -> tuple[TrainState, Metrics]:
        loss, norm = metrics["loss"], optax.tree.norm(gradients)
        sound, watched = is_sound(loss, norm), {}
        if spike_sigmas is not None:
            sound &= ~is_spike(state.opt_state, loss, norm, spike_sigmas)
            watched = {"loss": loss, "grad_norm": norm}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, sound=sound, **watched)
        params = optax.apply_updates(state.params, updates)
        new, old = (params, opt_state), (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, old)
        metrics |= {"grad_norm": norm, "learning_rate": schedule(state.step), "skipped": jnp.where(sound, 0.0, 1.0)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    def train_step(state: TrainState, batch: Any, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        frozen = frozen or {}
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate > 1:
            metrics, gradients = accumulate_gradients(task, apply, state.params, frozen, batch, rng, accumulate)
        else:
            metrics, gradients = _gradients(task, apply, state.params, frozen, batch, rng)
        return update(state, metrics, gradients)

    def same_step(state: TrainState, batch: Any, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        """The step of one device of the mesh, which has its rows and the whole state."""
        assert deterministic_parts is not None
        rng, once = jax.random.fold_in(jax.random.key(seed), state.step), hidden_one(state.step)
        given = task, apply, state.params, frozen or {}, batch, rng
        metrics, gradients = sum_gradients(*given, deterministic_parts, once)

        def turn(_, held):
            state, metrics, gradients = held
            metrics, gradients = _mean(metrics, gradients)
            return *update(state, metrics, gradients), gradients

        metrics |= {name: jnp.zeros(()) for name in ("grad_norm", "learning_rate", "skipped")}
        state, metrics, _ = jax.lax.fori_loop(0, once, turn, (state, metrics, gradients))
        return state, metrics

    shardings = jax.tree.map(lambda x: x.sharding, target)
    step = train_step if deterministic_parts is None else _on_each_device(same_step)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def compile_step(step: Callable[..., tuple[TrainState, Metrics]], *args: Any) -> None:
    """Compile a step for its first call, and hand back what compiling took before the step asks for its own memory."""
    step.lower(*args).compile()
    give_back_freed_memory()


def step_options(training: TrainingConfig) -> dict[str, Any]:
    """What of a run's settings `make_train_step` is given."""
    names = ("seed", "accumulate", "deterministic_parts", "spike_sigmas")
    return {name: getattr(training, name) for name in names}


def count_step_flops(task: Task, apply: Apply, params: Params, frozen: Params, batch: Any) -> float:
    """Return the model's FLOPs of a step, for arrays or shapes: three forward passes.

    Where parameters are frozen, a forward pass and what of a backward pass is needed.
    """

    def loss(params, frozen, batch):
        return task.loss(apply, merge(params, frozen), batch, None)[0]

    given = params, frozen, batch
    return count_flops(jax.grad(loss), *given) if frozen else 3 * count_flops(loss, *given)


def _on_each_device(step: Callable) -> Callable:
    """A step as each device makes it, on its rows and on the whole state: nothing is left for the partitioner."""

    def whole(state, batch, frozen=None):
        specs = jax.P(), jax.P(ROWS), jax.P()
        return jax.shard_map(step, in_specs=specs, out_specs=jax.P(), check_vma=False)(state, batch, frozen or {})

    return whole
