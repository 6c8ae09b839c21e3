"""The truth a result is compared with: attention and its gradients in float64 NumPy, for a sample of queries.

Each sampled query is computed in full against all keys, so every length can be checked. The gradients are those for a
cotangent that is zero but at the sampled queries: then those of keys, values and biases, too, follow from these rows
alone. Short problems are checked at every query. Masks and biases are evaluated by zoo; no backend is used.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import BOTH, Problem, allowed_pairs
from zoo.kernels import DenseBias, RelativeBias, dropout
from zoo.kernels.bias import relative_bucket

MAX_LOGITS = 2**22
"""Logits that a reference computes; it decides how many queries are sampled."""
MAX_KEY_VALUES = 2**25
"""Elements of k that a reference holds; it decides from how many sequences queries are sampled."""

# Beyond these a result is wrong, not rounded: float32 leaves room for TF32 products.
TOLERANCE = {"float32": 5e-3, "bfloat16": 3e-2, "float16": 5e-3}
ROW_FACTOR = 8
"""A single row may be off by so many times as much as the whole."""


@dataclasses.dataclass
class Reference:
    """What a sample of queries must give.

    Attributes:
      dtype: of the problem.
      sequences, rows: array indices of the sample.
      grad_out: the cotangent [B, T, N, Hv] to take gradients with.
      expected: float64 arrays: "out" and "q" [sequences, rows, N, .], "k" and "v" [sequences, S, K, .], and the
        gradients of trained arguments by their names.
    """

    dtype: str
    sequences: np.ndarray
    rows: np.ndarray
    grad_out: jax.Array
    expected: dict[str, np.ndarray]

    @property
    def num_rows(self) -> int:
        """Queries checked, over all sequences."""
        return len(self.sequences) * len(self.rows)

    def errors(self, results: dict) -> tuple[float, float]:
        """Relative error of the worst result, as a whole and at its worst row; NaN is passed on."""
        found = [discrepancy(self._select(name, results[name]), truth) for name, truth in self.expected.items()]
        whole, worst_row = np.max(found, axis=0)
        return float(whole), float(worst_row)

    def _select(self, name: str, array) -> np.ndarray:
        if name in ("out", "q"):
            array = array[self.sequences[:, None], self.rows[None]]
        elif name in ("k", "v"):
            array = array[self.sequences]
        elif getattr(array, "ndim", 0) == 4:  # a dense bias
            array = array[self.sequences] if array.shape[0] > 1 else array
            array = array[:, :, self.rows] if array.shape[2] > 1 else array
        return np.asarray(array).astype(np.float64)


def discrepancy(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """||found - expected|| / ||expected||, and the same of the worst row against its own and the mean row's norm."""
    if not (np.isneginf(found) == np.isneginf(expected)).all():
        return np.inf, np.inf
    finite = ~np.isneginf(expected)
    found, expected = np.where(finite, found, 0), np.where(finite, expected, 0)
    wrong, right = (np.linalg.norm(np.atleast_1d(x), axis=-1) for x in (found - expected, expected))
    mean = np.sqrt(np.mean(right**2))
    tiny = np.finfo(np.float32).tiny
    return float(np.linalg.norm(wrong) / (np.linalg.norm(right) + tiny)), float((wrong / (right + mean + tiny)).max())


def make_reference(problem: Problem) -> Reference:
    """Draw the sample and compute what it must give."""
    z = problem.cell.sizes
    rng = np.random.default_rng(1)
    num_sequences = min(z.B, 4, max(1, MAX_KEY_VALUES // (z.S * z.K * z.H)))
    num_rows = min(z.T, max(4, MAX_LOGITS // (num_sequences * z.N * z.S)))
    sequences = np.sort(rng.choice(z.B, num_sequences, replace=False))
    # The first and the last queries are where masks and blocks end.
    drawn = {0, z.T - 1, *rng.choice(z.T, num_rows, replace=False).tolist()}
    rows = np.array(sorted(drawn))
    chosen = np.zeros((z.B, z.T, 1, 1), bool)
    chosen[sequences[:, None], rows[None]] = True
    grad_out = jnp.where(chosen, problem.grad_out, jnp.zeros_like(problem.grad_out))
    expected = _attend(problem, sequences, rows, grad_out)
    return Reference(problem.cell.dtype, sequences, rows, grad_out, expected)


def _attend(problem: Problem, sequences: np.ndarray, rows: np.ndarray, grad_out: jax.Array) -> dict[str, np.ndarray]:
    """{"out": …} and, forward and backward, the gradients of the sample."""
    call, z = problem.call(), problem.cell.sizes
    group = z.N // z.K
    q, k, v = (_sample(x, sequences, rows if i == 0 else None, z.K) for i, x in enumerate(problem.inputs))
    products = (q @ k.swapaxes(-1, -2)).reshape(len(sequences), z.N, len(rows), z.S)
    weights, capped_slope, sink = _softmax(products * call.scale, problem, call, sequences, rows)
    factor = _dropout(problem, sequences, rows)
    grouped = lambda x: x.reshape(len(sequences), z.K, group * len(rows), -1)  # noqa: E731
    ungrouped = lambda x: x.reshape(len(sequences), z.N, len(rows), -1).swapaxes(1, 2)  # noqa: E731
    results = {"out": ungrouped(grouped(weights * factor) @ v)}
    if problem.cell.direction != BOTH:
        return results
    cotangent = _sample(grad_out, sequences, rows, z.K)
    grad_weights = (cotangent @ v.swapaxes(-1, -2)).reshape(weights.shape) * factor
    mean = (weights * grad_weights).sum(-1, keepdims=True)
    grad_logits = weights * (grad_weights - mean) * capped_slope
    results["q"] = call.scale * ungrouped(grouped(grad_logits) @ k)
    results["k"] = call.scale * (grouped(grad_logits).swapaxes(-1, -2) @ q).swapaxes(1, 2)
    results["v"] = (grouped(weights * factor).swapaxes(-1, -2) @ cotangent).swapaxes(1, 2)
    if "bias" in problem.trained:
        results["bias"] = _bias_gradient(problem.trained["bias"], grad_logits, _relative(call, sequences, rows))
    if "sinks" in problem.trained:
        results["sinks"] = -(sink * mean[..., 0]).sum((0, 2))
    return results


def _sample(x: jax.Array, sequences, rows, num_kv_heads: int) -> np.ndarray:
    """[B, L, heads, D] -> float64 [sequences, K, heads / K * rows, D]."""
    x = np.asarray(x[sequences] if rows is None else x[sequences[:, None], rows[None]]).astype(np.float64)
    return x.swapaxes(1, 2).reshape(len(sequences), num_kv_heads, -1, x.shape[-1])


def _softmax(logits, problem: Problem, call, sequences, rows):
    """Weights, derivative of the soft cap, and the sinks' weights [sequences, N, rows]."""
    if call.bias is not None:
        logits = logits + _bias(call.bias, _relative(call, sequences, rows), sequences, rows)
    slope = 1.0
    if call.softcap is not None:
        capped = np.tanh(logits / call.softcap)
        logits, slope = call.softcap * capped, 1 - capped**2
    allowed = allowed_pairs(call, rows)
    allowed = allowed if allowed.shape[0] == 1 else allowed[sequences]
    logits = np.where(allowed, logits, -np.inf)
    sinks = np.full((1, logits.shape[1], 1), -np.inf)
    if call.sinks is not None:
        sinks = np.asarray(call.sinks).astype(np.float64)[None, :, None]
    largest = np.maximum(logits.max(-1), sinks)
    largest = np.where(np.isneginf(largest), 0, largest)
    weights, sink = np.exp(logits - largest[..., None]), np.exp(sinks - largest)
    total = weights.sum(-1) + sink
    total = np.where(total == 0, 1, total)
    return weights / total[..., None], slope, sink / total


def _relative(call, sequences, rows) -> np.ndarray:
    """Key position - query position, int [sequences or 1, rows, S]."""
    query, key = (np.asarray(x) for x in (call.frame().query, call.frame().key_positions))
    query, key = (x if x.shape[0] == 1 else x[sequences] for x in (query, key))
    return key[:, None, :] - query[:, rows, None]


def _bias(bias, relative, sequences, rows) -> np.ndarray:
    """The bias at the sample, float64 [sequences or 1, N or 1, rows or 1, S]."""
    if not isinstance(bias, DenseBias):
        return np.moveaxis(np.asarray(bias.evaluate(relative)).astype(np.float64), 0, 1)
    array = bias.array.reshape((1,) * (4 - bias.array.ndim) + bias.array.shape)
    array = array[sequences] if array.shape[0] > 1 else array
    return np.asarray(array[:, :, rows] if array.shape[2] > 1 else array).astype(np.float64)


def _bias_gradient(bias, grad_logits, relative) -> np.ndarray:
    if isinstance(bias, RelativeBias):
        columns = grad_logits.sum(0, keepdims=True) if relative.shape[0] == 1 else grad_logits
        num_buckets = bias.table.shape[0]
        buckets = np.asarray(relative_bucket(relative, num_buckets, bias.bidirectional, bias.max_distance))
        gradient = np.zeros(bias.table.shape)
        for head in range(gradient.shape[1]):
            gradient[:, head] = np.bincount(buckets.ravel(), columns[:, head].ravel(), len(gradient))
        return gradient
    shape = (1,) * (4 - bias.array.ndim) + bias.array.shape
    axes = tuple(axis for axis in range(4) if shape[axis] == 1)
    return grad_logits.sum(axes, keepdims=True)


def _dropout(problem: Problem, sequences, rows):
    """Factor of each weight: 0 where dropped."""
    rate = problem.static.get("dropout_rate", 0.0)
    if not rate:
        return 1.0
    z = problem.cell.sizes
    seeds = dropout.seeds(problem.fixed["dropout_rng"], z.B, z.N)[sequences]
    return np.asarray(dropout.keep(seeds, rows, np.arange(z.S), rate)) / (1 - rate)
