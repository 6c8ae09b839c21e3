"""What attention maps say in a few figures: how spread a head looks, how far, and where a layer's inputs end up.

All take maps as `Attended.weights` holds them and average over what is there; none looks at values, so none says what a
head writes (see `zoo.inspection.ablation` for that).
"""

import numpy as np
from jaxtyping import Float


def entropy(weights: Float[np.ndarray, "L B N T S"]) -> Float[np.ndarray, "L N"]:
    """Mean entropy of a head's weights over its queries, in bits: 0 looks at one key, log2(S) at all S alike.

    A sink's share is no key and counts as none: rows are normalised first. Queries that see nothing are left out.
    """
    shares, seen = _shares(weights)
    bits = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(-1)
    return _mean_over_queries(bits, seen)


def mean_distance(weights: Float[np.ndarray, "L B N T S"]) -> Float[np.ndarray, "L N"]:
    """How many positions away from its query a head looks, on average; queries and keys must be the same positions.

    Raises:
        ValueError: maps that are not square, such as cross-attention's.
    """
    _check_square(weights)
    positions = np.arange(weights.shape[-1])
    shares, seen = _shares(weights)
    return _mean_over_queries((shares * np.abs(positions[:, None] - positions)).sum(-1), seen)


def rollout(weights: Float[np.ndarray, "L B N T T"]) -> Float[np.ndarray, "L B T T"]:
    """Attention rollout (Abnar & Zuidema 2020, section 3): how much of each input is in each position after each layer.

    Heads are averaged, half of each layer is its residual connection, and layers are multiplied. Rows sum to 1; a query
    that sees nothing keeps itself.

    Raises:
        ValueError: maps that are not square, such as cross-attention's.
    """
    _check_square(weights)
    shares, seen = _shares(weights)
    own = np.eye(weights.shape[-1])
    heads = np.where(seen[..., None], shares, own).mean(2)
    mixed, layers = np.broadcast_to(own, heads.shape[1:]), []
    for layer in 0.5 * heads + 0.5 * own:
        mixed = layer @ mixed
        layers.append(mixed)
    return np.stack(layers)


def _shares(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights in float64 whose rows sum to 1, and which rows see anything."""
    weights = weights.astype(np.float64)
    total = weights.sum(-1, keepdims=True)
    return weights / np.where(total > 0, total, 1), total[..., 0] > 0


def _mean_over_queries(values: np.ndarray, seen: np.ndarray) -> Float[np.ndarray, "L N"]:
    count = np.maximum(seen.sum((1, 3)), 1)
    return np.where(seen, values, 0).sum((1, 3)) / count


def _check_square(weights: np.ndarray) -> None:
    if weights.shape[-2] != weights.shape[-1]:
        raise ValueError(
            f"the maps are {weights.shape[-2]} queries by {weights.shape[-1]} keys; distance and rollout are of "
            "self-attention, whose queries and keys are the same positions"
        )
