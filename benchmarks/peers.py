"""Other libraries' attention on the same values, compared with the same reference. torch's are in torch_peers.py.

A peer gets the mask in its own words where it has them, and otherwise what its user would write: an array.
"""

import functools
from collections.abc import Callable

import jax

from benchmarks.contenders import Contender, Refused, compile_jax, refuse_square
from benchmarks.plain import plain, refuse_extras, table_gradient
from benchmarks.problems import Problem
from benchmarks.torch_peers import flex, sdpa

WORDS = frozenset({"causal", "window", "lengths"})
"""What jax.nn and tokamax can say of a mask without an array."""


def _jax_contender(name: str, function: Callable, problem: Problem, **extras) -> Contender:
    described = plain(problem, WORDS)
    options = {"is_causal": described.causal, "local_window_size": described.window} | extras
    if "scale" in problem.static:
        options["scale"] = problem.static["scale"]
    fixed = {"key_value_seq_lengths": described.kv_lengths, "mask": described.mask}
    learned = "bias" in problem.trained
    arrays = {"bias": described.bias}
    trained, fixed = (arrays, fixed) if learned else ({}, fixed | arrays)

    def attend(q, k, v, trained, fixed):
        return function(q, k, v, **trained, **fixed, **options)

    finish = functools.partial(_finish, problem)
    return compile_jax(name, "peer", attend, problem, (trained, fixed), finish)


def _finish(problem: Problem, gradients: dict) -> dict:
    return table_gradient(problem, gradients["bias"]) if gradients else {}


def jax_nn(problem: Problem, square_up_to: int, *, implementation: str) -> Contender:
    """`jax.nn.dot_product_attention`."""
    refuse_extras(problem)
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise Refused(f"it is made for a GPU, and JAX runs on a {jax.default_backend().upper()}")
    if implementation == "xla" and problem.cell.sizes.T > 1:
        refuse_square(problem, square_up_to)
    if problem.cell.sizes.V != problem.cell.sizes.H:
        raise Refused("its keys and values have one head size")
    name, function = f"jax-{implementation}", jax.nn.dot_product_attention
    return _jax_contender(name, function, problem, implementation=implementation)


def tokamax(problem: Problem, square_up_to: int) -> Contender:
    """`tokamax.dot_product_attention` with the implementation that it chooses."""
    refuse_extras(problem, "softcap")
    try:
        from tokamax import dot_product_attention
    except ImportError as error:
        raise Refused("tokamax is not installed") from error
    if jax.default_backend() == "cpu" and problem.cell.sizes.T > 1:
        refuse_square(problem, square_up_to)
    cap = {"logits_soft_cap": problem.static["softcap"]} if "softcap" in problem.static else {}
    return _jax_contender("tokamax", dot_product_attention, problem, **cap)


PEERS: dict[str, Callable[[Problem, int], Contender]] = {
    "jax-xla": functools.partial(jax_nn, implementation="xla"),
    "jax-cudnn": functools.partial(jax_nn, implementation="cudnn"),
    "torch-sdpa": functools.partial(sdpa, name="torch-sdpa"),
    "torch-sdpa-cudnn": functools.partial(sdpa, name="torch-sdpa-cudnn", kernel="CUDNN_ATTENTION"),
    "torch-sdpa-flash": functools.partial(sdpa, name="torch-sdpa-flash", kernel="FLASH_ATTENTION"),
    "torch-sdpa-efficient": functools.partial(sdpa, name="torch-sdpa-efficient", kernel="EFFICIENT_ATTENTION"),
    "torch-flex": flex,
    "tokamax": tokamax,
}
"""Every peer by its name: makes a contender of (problem, longest length for T x S memory), or raises Refused."""


def default_peers() -> tuple[str, ...]:
    """The peers that run unasked: FlexAttention takes a CPU over a minute a shape to compile."""
    return tuple(name for name in PEERS if not (name == "torch-flex" and jax.default_backend() == "cpu"))
