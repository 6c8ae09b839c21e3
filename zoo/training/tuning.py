"""What of a pretrained model trains: all of it, a new head alone, or that and low-rank updates (LoRA).

Trained and frozen parameters are two trees. `merge` makes the model's own tree of them, inside the loss: the model
sees plain parameters, whatever its architecture, and what is frozen is never differentiated.

LoRA (Hu et al. 2021): a frozen kernel W [I, O] becomes W + alpha / rank · A B, with A [I, rank] drawn and B [rank, O]
zero, so training starts at the checkpoint. Beside `.../query/kernel`, A is `.../query/lora_a` and B
`.../query/lora_b` among the trained parameters; `.../query/lora_scale`, among the frozen ones, is alpha / rank. Layers
that are stacked have their A and B stacked.

Left out: dropout on what A reads, and frozen parameters in fewer bits.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from zoo.training.config import InitConfig
from zoo.training.protocol import Params
from zoo.training.sharding import matrix_axes

_A, _B, _SCALE = "lora_a", "lora_b", "lora_scale"
_PROJECTIONS = {"query", "key", "value", "output", "up", "gate", "down"}


def split(params: Params, fresh: Iterable[str], config: InitConfig, seed: int) -> tuple[Params, Params]:
    """Return a model's parameters as (trained, frozen), whose `merge` they are.

    `fresh` are the paths of those that the checkpoint lacked, which always train, and the rest of the head with them.

    Raises ValueError if nothing would train, or for a target of LoRA that the model does not have.
    """
    if config.tune == "full":
        return params, {}
    leaves = flatten_dict(params, sep="/")
    trains = set(fresh)
    if any(path.startswith("head/") for path in trains):
        trains |= {path for path in leaves if path.startswith("head/")}
    trained = {path: leaf for path, leaf in leaves.items() if path in trains}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trains}
    if config.tune == "lora":
        adapters, scales = _make_adapters(frozen, config, seed)
        trained, frozen = trained | adapters, frozen | scales
    if not trained:
        raise ValueError(
            "init.tune is 'frozen' and the checkpoint has every parameter that this task's model needs, so nothing "
            "would train; use 'full' or 'lora'"
        )
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def merge(trained: Params, frozen: Params) -> Params:
    """Return the parameters that the model takes; pure, to be differentiated with respect to `trained`."""
    if not frozen:
        return trained
    leaves: dict[str, Any] = flatten_dict(frozen, sep="/")
    ours: dict[str, Any] = flatten_dict(trained, sep="/")
    for path, leaf in ours.items():
        module, _, name = path.rpartition("/")
        if name == _A:
            kernel, scale = leaves[f"{module}/kernel"], leaves.pop(f"{module}/{_SCALE}")
            leaves[f"{module}/kernel"] = kernel + scale * _product(leaf, ours[f"{module}/{_B}"], kernel.shape)
        elif name != _B:
            leaves[path] = leaf
    return unflatten_dict(leaves, sep="/")


def _make_adapters(frozen: dict[str, Any], config: InitConfig, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A and B of every kernel that is a target, and their scales, by path."""
    modules = {path.rpartition("/")[0]: path for path in frozen if path.endswith("/kernel")}
    names = {module: module.rpartition("/")[2] for module in modules}
    targets = config.targets if config.targets != ("all",) else _PROJECTIONS & {*names.values()}
    for target in targets:
        if target not in names.values():
            known = ", ".join(sorted(set(names.values())))
            raise ValueError(f"init.targets has {target!r}, which is no projection of this model; it has {known}")
    adapters, scales = {}, {}
    chosen = sorted(module for module, name in names.items() if name in targets)
    for index, module in enumerate(chosen):
        kernel = frozen[modules[module]]
        axes = matrix_axes(modules[module], kernel.ndim)
        assert axes is not None  # the table of shardings knows every kernel as a matrix
        stacked, inputs, outputs = (
            tuple(kernel.shape[axis] for axis in part) for part in (range(axes[0][0]), *axes)
        )  # fmt: skip
        key = jax.random.fold_in(jax.random.key(seed), index)
        drawn = jax.random.normal(key, (*stacked, *inputs, config.rank)) / math.sqrt(math.prod(inputs))
        adapters[f"{module}/{_A}"] = drawn
        adapters[f"{module}/{_B}"] = jnp.zeros((*stacked, config.rank, *outputs))
        scales[f"{module}/{_SCALE}"] = jnp.asarray(config.alpha / config.rank, jnp.float32)
    return adapters, scales


def _product(a: jax.Array, b: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A B in the shape of their kernel: [layers…, I…, rank] and [layers…, rank, O…] to [layers…, I…, O…]."""
    num_stacked = a.ndim + b.ndim - len(shape) - 2
    stacked, rank = shape[:num_stacked], a.shape[-1]
    a, b = a.reshape(*stacked, -1, rank), b.reshape(*stacked, rank, -1)
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST).reshape(shape)
