"""A problem in plain words and arrays, for libraries that know no mask objects and no structured biases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from benchmarks.contenders import Refused
from benchmarks.problems import Problem
from zoo.kernels import Causal, Full, Lengths, Mask, RelativeBias, Window
from zoo.kernels.dense import evaluate_bias, evaluate_mask
from zoo.kernels.masks import And

MAX_ARRAY_BYTES = 2**33
"""Largest mask or bias that is made as an array for a peer."""


@dataclasses.dataclass(kw_only=True)
class Plain:
    """A problem for ops that know no mask objects.

    Attributes:
      causal: whether keys after the query are hidden.
      window: keys seen to the left and right, or None.
      kv_lengths: keys that are no padding, int32 [B], or None.
      mask: what these words do not say, bool [B or 1, N or 1, T, S], or None.
      bias: added to the logits, [B or 1, N or 1, T, S] in the inputs' dtype, or None.
    """

    causal: bool = False
    window: tuple[int, int] | None = None
    kv_lengths: jax.Array | None = None
    mask: jax.Array | None = None
    bias: jax.Array | None = None


def conjuncts(mask: Mask) -> list[Mask]:
    """The parts of a mask that must all hold."""
    return conjuncts(mask.left) + conjuncts(mask.right) if isinstance(mask, And) else [mask]


def plain(problem: Problem, words: frozenset[str]) -> Plain:
    """The problem in a peer's `words`, a subset of causal, window and lengths; the rest of it as arrays."""
    z = problem.cell.sizes
    described, rest = Plain(), []
    # A word speaks of array indices, which are positions only where queries and keys both start at 0.
    aligned = z.T == z.S and "kv_positions" not in problem.arguments and "q_offset" not in problem.arguments
    for part in conjuncts(problem.arguments.get("mask", Full())):
        match part:
            case Full():
                pass
            case Causal() if "causal" in words and aligned:
                described.causal = True
            case Window(left=int(left), right=0) if "window" in words and aligned:
                # One that ends at the query is causal, too; said so, because not every op hides the future otherwise.
                described.causal, described.window = True, (left, 0)
            case Window(left=int(left), right=int(right)) if "window" in words and aligned:
                described.window = (left, right)
            case Lengths(q=None, kv=kv) if "lengths" in words and getattr(kv, "shape", None) == (z.B,):
                described.kv_lengths = kv
            case _:
                rest.append(part)
    if rest:
        _check_bytes(z.T * z.S * z.B, "mask")
        mask = evaluate_mask(problem.call(mask=functools.reduce(lambda a, b: a & b, rest)))
        described.mask = None if mask is None or bool(mask.all()) else mask
    if problem.arguments.get("bias") is not None:
        _check_bytes(z.N * z.T * z.S * jnp.dtype(problem.cell.dtype).itemsize, "bias")
        described.bias = evaluate_bias(problem.call()).astype(problem.cell.dtype)
    return described


def _check_bytes(count: int, what: str) -> None:
    if count > MAX_ARRAY_BYTES:
        raise Refused(f"its {what} would be an array of {count / 1e9:.0f} GB")


def refuse_extras(problem: Problem, *known: str) -> None:
    """Raise Refused where the problem has a feature beyond masks and biases that is not `known`."""
    for name, feature in (("softcap", "soft cap"), ("sinks", "sinks"), ("dropout_rate", "this dropout")):
        if name in problem.arguments and name not in known:
            raise Refused(f"it has no {feature}")


def table_gradient(problem: Problem, gradient: jax.Array) -> dict:
    """The gradient of a bias as an array, as one of the problem's own bias."""
    bias = problem.trained["bias"]
    if not isinstance(bias, RelativeBias):
        return {"bias": gradient}

    @jax.jit
    def pull(gradient):
        array = lambda b: evaluate_bias(problem.call(bias=b))  # noqa: E731
        return jax.vjp(array, bias)[1](gradient.astype(jnp.float32))[0].table

    return {"bias": pull(gradient)}
