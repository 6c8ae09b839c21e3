"""Rematerialisation: which results of a layer the forward pass keeps for the backward pass, which is made again.

The policies by name, each keeping less than the one before:

| | kept of each layer, beside its input |
|---|---|
| none | everything that a gradient reads |
| all_dots | what matrix products give, also those of queries and keys where the backend is `dense` |
| dots | what products with parameters give |
| branches | what attention, cross-attention and MLP add to the residual stream |
| full | nothing |

Under `branches` the sums over devices that end a branch, where heads and hidden units are split, are not made again.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "all_dots", "dots", "branches", "full"]

_BRANCH = "branch"
_POLICIES: dict[Remat, Callable] = {
    "all_dots": jax.checkpoint_policies.dots_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "branches": jax.checkpoint_policies.save_only_these_names(_BRANCH),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialise(function: Callable, remat: Remat, **options: Any) -> Callable:
    """The same function, whose backward pass recomputes what `remat` says; options of `jax.checkpoint`.

    Raises ValueError for a name that is none of the policies'.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat is {remat!r}; it must be one of {', '.join(get_args(Remat))}")
    return function if remat == "none" else jax.checkpoint(function, policy=_POLICIES[remat], **options)


def name_branch(x: jax.Array) -> jax.Array:
    """The same array, known to the policies as what a branch adds."""
    return checkpoint_name(x, _BRANCH)
