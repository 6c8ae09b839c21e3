"""What each head is worth: how the loss changes without it (Michel et al. 2019, "Are Sixteen Heads Really Better than
One?", section 3.2).

A head is taken out by zeroing its rows of the output projection: what it writes is gone, whatever it looked at. The
core knows nothing of it. Layers that share parameters (ALBERT) lose a head together.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

KINDS = ("attention", "cross_attention")
"""Names of the modules whose output projection has a row of heads."""


def ablate_heads(loss: Callable[[Any], Float[Array, ""]], params: Any) -> dict[str, Float[np.ndarray, "U N"]]:
    """How much the loss rises when one head is taken out, for every head of a model; below 0 it falls.

    Args:
        loss: parameters to a scalar; traced, and compiled once for each kind of attention.
        params: of any model.

    Returns:
        By the attention's path, such as "encoder/attention": [layers with parameters of their own, heads]. Nothing for
        models without heads.
    """
    effects = {}
    paths = output_kernels(params)
    whole = jax.jit(loss)(params) if paths else None
    for path in paths:
        num_layers, num_heads = _layers_first(flatten_dict(params, sep="/")[path]).shape[:2]

        def effect(params, index, path=path, num_heads=num_heads):
            return loss(without_head(params, path, index // num_heads, index % num_heads))

        measure = jax.jit(lambda params, indices, effect=effect: lax.map(lambda index: effect(params, index), indices))
        found = measure(params, jnp.arange(num_layers * num_heads))
        effects[path.removesuffix("/output/kernel")] = np.asarray(found - whole).reshape(num_layers, num_heads)
    return effects


def output_kernels(params: Any) -> list[str]:
    """Paths of the output projections of all attention, sorted."""
    return sorted(
        path
        for path in flatten_dict(params, sep="/")
        if path.endswith("/output/kernel") and path.split("/")[-3] in KINDS
    )


def without_head(params: Any, path: str, layer: Any, head: Any) -> Any:
    """The parameters with the rows of one head, of the kernel at `path`, at zero; layer and head may be traced."""
    leaves = flatten_dict(params, sep="/")
    kernel = leaves[path]
    stacked = _layers_first(kernel)
    leaves[path] = stacked.at[layer, head].set(0).reshape(kernel.shape)
    return unflatten_dict(leaves, sep="/")


def _layers_first(kernel: Float[Array, "*L N H D"]) -> Float[Array, "L N H D"]:
    """A pooling head's attention is one layer, without an axis for it."""
    return jnp.asarray(kernel).reshape(-1, *kernel.shape[-3:])
