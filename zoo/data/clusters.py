"""k-means: a few points that stand for many (Lloyd 1982), started as k-means++ does (Arthur and Vassilvitskii 2007)."""

import numpy as np
from jaxtyping import Float, Int

_ROWS = 1 << 14


def fit_clusters(points: Float[np.ndarray, "n d"], count: int, *, seed: int = 0, rounds: int = 12):
    """`count` centres [count, d] of at least as many points; a centre that loses its points goes to the worst one.

    Raises:
        ValueError: fewer different points than centres.
    """
    rng = np.random.default_rng(seed)
    points = np.asarray(points, np.float32)
    centres, distances = points[rng.integers(len(points))][None], np.full(len(points), np.inf, np.float32)
    while len(centres) < count:
        distances = np.minimum(distances, np.square(points - centres[-1]).sum(1))
        if not distances.any():
            raise ValueError(f"there are {len(centres)} different points and {count} centres are asked for; ask fewer")
        chance = distances.astype(np.float64)
        centres = np.append(centres, points[rng.choice(len(points), p=chance / chance.sum())][None], 0)
    for _ in range(rounds):
        nearest, distances = assign(points, centres)
        sizes = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, column, count) for column in points.T], 1)
        centres = (sums / np.maximum(sizes, 1)[:, None]).astype(np.float32)
        lost = np.flatnonzero(sizes == 0)
        centres[lost] = points[np.argsort(-distances)[: len(lost)]]
    return centres


def assign(
    points: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "count d"]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Each point's nearest centre, and the square of its distance."""
    nearest, distances = [], []
    for start in range(0, len(points), _ROWS):
        rows = points[start : start + _ROWS]
        scores = np.square(centres).sum(1) - 2 * rows @ centres.T
        nearest.append(scores.argmin(1))
        distances.append(scores.min(1) + np.square(rows).sum(1))
    return np.concatenate(nearest), np.concatenate(distances)
