"""The training state, and its initialisation directly into its shardings.

The state is what the next step needs and cannot compute: there is no rng in it (a step folds its number into
the seed) and no data position (the checkpoint holds it beside the state).
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.training.protocol import Apply, Model, Params, Task
from zoo.training.sharding import check_axes, matrix_axes, path_name, shard_optimizer_state, shard_parameters
from zoo.training.tuning import merge

FLOAT8 = "float8"
"""The compute dtype of products in 8 bits, and what marks their kernels."""


@flax.struct.dataclass
class TrainState:
    """Everything that a step replaces. `step` is int32, the number of updates made."""

    step: jax.Array
    params: Params
    opt_state: Any


def bind_apply(model: Model, compute_dtype: Any = None) -> Apply:
    """Return the forward pass of a model as tasks call it: `apply(params, **inputs)`.

    With a `compute_dtype` of "float8" the products of its blocks are made in 8 bits, forward and backward.
    """

    def apply(params, **inputs):
        params = _in_float8(params) if compute_dtype == FLOAT8 else params
        return model.apply({"params": params}, **inputs)

    return apply


def activation_dtype(compute_dtype: Any) -> jnp.dtype:
    """Return the dtype of activations for a compute dtype: itself, but bfloat16 for float8."""
    return jnp.dtype(jnp.bfloat16 if compute_dtype == FLOAT8 else compute_dtype)


def _in_float8(params: Params) -> Params:
    """Mark the kernels of blocks that are matrices by the table, as `zoo.kernels.product` reads the mark.

    Experts, routers, embedders and heads are not among them: as is the custom, what is before and after the blocks
    keeps its precision (Micikevicius et al. 2022).
    """

    def mark(path, leaf):
        name = path_name(path)
        in_block = name.startswith(("encoder/", "decoder/")) and "/convolution/" not in name
        rounded = in_block and name.endswith("/kernel") and matrix_axes(name, leaf.ndim) is not None
        return {FLOAT8: leaf} if rounded else leaf

    return jax.tree_util.tree_map_with_path(mark, params)


def _initial_parameters(model: Model, task: Task, batch: Any, rng: jax.Array) -> Params:
    """Return the parameters of the model for the inputs that the task's loss gives it.

    The task alone knows which arrays of a batch the model reads, so its loss is traced with an `apply` that
    initialises. The compiler drops the forward pass: no parameter depends on it.
    """
    found: list[Params] = []

    def apply(params, **inputs):
        del params
        output, variables = model.init_with_output(rng, **inputs)
        found.append(variables["params"])
        return output

    task.loss(apply, {}, batch, None)
    if not found:
        raise ValueError(f"{type(task).__name__}.loss never called apply, so the model's inputs are unknown")
    return found[0]


def _make_initialiser(model: Model, task: Task, optimizer: optax.GradientTransformation, batch: Mapping[str, Any]):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def initialise(rng):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return _at_start(_initial_parameters(model, task, zeros, rng), optimizer)

    return initialise


def abstract_state(
    model: Model,
    task: Task,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, Any],
    mesh: Mesh,
    *,
    trained: Params | None = None,
    frozen: Params | None = None,
) -> TrainState:
    """Return the state's shapes, dtypes and shardings (ShapeDtypeStructs); nothing is allocated.

    `trained` (arrays or shapes) are the parameters that train where they are not simply the model's; with `frozen`
    they must make up those. Raises ValueError if a parameter is missing, unknown or of another shape, and for a mesh
    axis that splits nothing.
    """
    state = jax.eval_shape(_make_initialiser(model, task, optimizer, batch), jax.random.key(0))
    check_axes(state.params, mesh)
    if trained is not None:
        _check_parameters(jax.eval_shape(merge, trained, frozen or {}), state.params)
        state = jax.eval_shape(lambda params: _at_start(params, optimizer), trained)
    shardings = TrainState(
        step=NamedSharding(mesh, PartitionSpec()),
        params=shard_parameters(state.params, mesh),
        opt_state=shard_optimizer_state(state.opt_state, state.params, mesh),
    )
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings)


def initialise_state(
    model: Model,
    task: Task,
    optimizer: optax.GradientTransformation,
    batch: Mapping[str, Any],
    target: TrainState,
    seed: int,
) -> TrainState:
    """Return a fresh state, each array made on the devices that keep it; the same values on every mesh."""
    shardings = jax.tree.map(lambda x: x.sharding, target)
    initialise = jax.jit(_make_initialiser(model, task, optimizer, batch), out_shardings=shardings)
    return initialise(jax.random.key(seed))


def start_state(params: Params, optimizer: optax.GradientTransformation, target: TrainState) -> TrainState:
    """Return a state at step 0 around given parameters, such as a pretrained checkpoint's."""
    shardings = jax.tree.map(lambda x: x.sharding, target)
    # jit copies: the caller's arrays are not donated with the state.
    return jax.jit(lambda params: _at_start(params, optimizer), out_shardings=shardings)(params)


def _at_start(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def _check_parameters(params: Params, target: Params) -> None:
    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in leaves}

    given, wanted = shapes(params), shapes(target)
    for path in sorted(given.keys() | wanted.keys()):
        if given.get(path) != wanted.get(path):
            raise ValueError(
                f"parameter {path!r} is {given.get(path, 'absent')} in the given parameters and "
                f"{wanted.get(path, 'absent')} in the model; load them into a model of the same configuration"
            )


def count_parameters(params: Params) -> int:
    """Return the number of scalars in a tree of arrays or shapes."""
    return sum(x.size for x in jax.tree.leaves(params))
