"""What is timed: one implementation, compiled for one problem, on the values that all others get."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

import zoo
from benchmarks.problems import BOTH, Problem
from benchmarks.reference import Reference
from zoo.kernels.attention import BACKENDS, choose, refusal

SQUARE = ("dense",)
"""Backends whose memory grows with T x S."""


class Refused(Exception):
    """An implementation cannot run a problem; the message says why, in one line."""


@dataclasses.dataclass(kw_only=True)
class Contender:
    """One implementation of one problem, ready to run.

    Attributes:
      name: as in the table.  kind: "backend" of zoo, or "peer".
      start: issue one call on the device; returns what `wait` waits for.
      wait: return when a started call, and with it all before, has ended.
      results: one call with the reference's cotangent: {"out", and gradients by name}.
      temp_bytes: memory beyond inputs and outputs.  compile_seconds: until the first call can run.
      weight_bytes: of a whole model's parameters.  exact: whether it computes in the problem's own dtype.
      samples: seconds a call, one entry a round.
    """

    name: str
    kind: str
    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    results: Callable[[Reference], dict]
    compile_seconds: float
    temp_bytes: int | None = None
    weight_bytes: int | None = None
    exact: bool = True
    samples: list[float] = dataclasses.field(default_factory=list)


Attend = Callable[..., jax.Array]
"""(q, k, v, trained arguments, fixed arguments) -> out."""


def compile_jax(name: str, kind: str, attend: Attend, problem: Problem, operands, finish=lambda gradients: gradients):
    """A contender from a JAX function.

    Args:
      name, kind: see Contender.
      attend: the function.
      problem: gives q, k and v.
      operands: (trained, fixed) as `attend` takes them; gradients are also taken for `trained`, a dict.
      finish: rewrites those gradients as gradients of the problem's own trained arguments.
    """
    trained, fixed = operands
    backward = problem.cell.direction == BOTH

    def both(q, k, v, trained, fixed, grad_out):
        out, pull = jax.vjp(lambda q, k, v, trained: attend(q, k, v, trained, fixed), q, k, v, trained)
        return out, pull(grad_out)

    inputs = (*problem.inputs, trained, fixed)
    start = time.perf_counter()
    function: Any = jax.jit(both if backward else attend)
    compiled = function.lower(*inputs, *([problem.grad_out] if backward else [])).compile()
    seconds = time.perf_counter() - start

    def results(reference: Reference) -> dict:
        if not backward:
            return {"out": compiled(*inputs)}
        out, (*gradients, others) = compiled(*inputs, reference.grad_out)
        others = {key: jax.tree.leaves(value)[0] for key, value in finish(others).items()}
        return {"out": out} | dict(zip("qkv", gradients, strict=True)) | others

    inputs_timed = (*inputs, problem.grad_out) if backward else inputs
    analysis = compiled.memory_analysis()
    return Contender(
        name=name,
        kind=kind,
        start=lambda: compiled(*inputs_timed),
        wait=jax.block_until_ready,
        results=results,
        compile_seconds=seconds,
        temp_bytes=None if analysis is None else analysis.temp_size_in_bytes,
    )


def automatic(problem: Problem) -> str:
    """The backend that `auto` runs."""
    return choose(problem.call(), "auto")


def backend(name: str, problem: Problem, square_up_to: int) -> Contender:
    """A backend of zoo, through `zoo.attention`; raises Refused with the backend's own reason."""
    if (reason := refusal(name, problem.call())) is not None:
        raise Refused(reason)
    if name in SQUARE and problem.cell.sizes.T > 1:
        refuse_square(problem, square_up_to)
    static = problem.static

    def attend(q, k, v, trained, fixed):
        return zoo.attention(q, k, v, **trained, **fixed, **static, backend=name)

    return compile_jax(name, "backend", attend, problem, (problem.trained, problem.fixed))


def refuse_square(problem: Problem, square_up_to: int) -> None:
    """Raise Refused beyond the length up to which T x S memory is allowed."""
    if square_up_to < problem.cell.sizes.S:
        raise Refused(f"its memory grows with S², and --square-up-to is {square_up_to}")


def backend_names() -> list[str]:
    """Every backend that zoo has, whether it runs here or not."""
    return list(BACKENDS)
