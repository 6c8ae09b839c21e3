"""torch's attention on the same values: scaled_dot_product_attention, its kernels by name, and FlexAttention.

torch runs on the device that JAX runs on, with queries, keys and values contiguous as it documents them, [B, N, T, H].
What a user makes once for many calls (a block mask, a bias as an array) is made before the clock starts.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.contenders import Contender, Refused
from benchmarks.plain import plain, refuse_extras, table_gradient
from benchmarks.problems import BOTH, Problem
from benchmarks.reference import Reference
from zoo.kernels import ALiBi, Causal, Chunked, Dense, DenseBias, Full, Lengths, Mask, PrefixLM, Segments, Window
from zoo.kernels.dense import diagonals
from zoo.kernels.masks import And, Or

# Else torch's threads spin on after each call, and whoever comes next has fewer cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def import_torch() -> Any:
    """torch, on the device that JAX runs on; Refused where there is none."""
    try:
        import torch
    except ImportError as error:
        raise Refused("torch is not installed") from error
    platform = jax.default_backend()
    if platform == "gpu" and not torch.cuda.is_available():
        raise Refused("the torch installed has no GPU")
    if platform not in ("cpu", "gpu"):
        raise Refused(f"torch does not run on a {platform.upper()} here")
    return torch


def to_torch(x: jax.Array) -> Any:
    """A copy of an array as a tensor on JAX's device."""
    return import_torch().from_dlpack(jax.block_until_ready(jnp.asarray(x))).clone()


def _heads_first(x: jax.Array) -> Any:
    return to_torch(x).transpose(1, 2).contiguous()


def prepare(name: str, attend: Callable, problem: Problem, trained: tuple, finish: Callable) -> Contender:
    """A contender from `attend(q, k, v) -> out [B, N, T, Hv]`.

    `trained` are tensors with a gradient; `finish` makes {name: gradient} of the problem's arguments from theirs.
    """
    torch = import_torch()
    backward, on_gpu = problem.cell.direction == BOTH, jax.default_backend() == "gpu"
    q, k, v = (_heads_first(x).requires_grad_(backward) for x in problem.inputs)
    leaves = [q, k, v, *(x.requires_grad_(backward) for x in trained)]
    grad_out = _heads_first(problem.grad_out)

    def run(cotangent):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains at length why a kernel does not fit
            if not backward:
                with torch.no_grad():
                    return attend(q, k, v), ()
            out = attend(q, k, v)
            return out, torch.autograd.grad(out, leaves, cotangent)

    def wait(_=None):
        if on_gpu:
            torch.cuda.synchronize()

    def results(reference: Reference) -> dict:
        out, gradients = run(_heads_first(reference.grad_out))
        out, *firsts = (x.detach().float().transpose(1, 2).cpu().numpy() for x in (out, *gradients[:3]))
        others = finish(*gradients[3:]) if len(gradients) > 3 else {}
        return {"out": out} | dict(zip("qkv", firsts, strict=False)) | others

    start = time.perf_counter()
    run(grad_out)
    wait()
    seconds = time.perf_counter() - start
    return Contender(
        name=name,
        kind="peer",
        start=lambda: run(grad_out),
        wait=wait,
        results=results,
        compile_seconds=seconds,
        temp_bytes=_peak_bytes(torch, lambda: run(grad_out)) if on_gpu else None,
    )


def _peak_bytes(torch: Any, run: Callable) -> int:
    """Memory of a call beyond its inputs and outputs, by torch's allocator."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out, gradients = run()
    torch.cuda.synchronize()
    held = sum(x.numel() * x.element_size() for x in (out, *gradients))
    return max(0, torch.cuda.max_memory_allocated() - before - held)


def sdpa(problem: Problem, square_up_to: int, *, name: str, kernel: str | None = None) -> Contender:
    """`scaled_dot_product_attention`, by the `kernel` named or the one that torch chooses."""
    refuse_extras(problem)
    torch = import_torch()
    if kernel is not None and jax.default_backend() != "gpu":
        raise Refused("torch has its kernels by name on a GPU only")
    z, described = problem.cell.sizes, plain(problem, frozenset({"causal"}))
    if described.causal and (described.mask is not None or described.bias is not None):
        described = plain(problem, frozenset())  # torch takes an array or is_causal, not both
    mask = None if described.mask is None else to_torch(described.mask.astype(jnp.uint8)).bool()
    if described.bias is not None:
        bias = to_torch(described.bias)
        mask = bias if mask is None else torch.where(mask, bias, -torch.inf)
    learned = "bias" in problem.trained
    if mask is not None and not learned:
        mask = mask.broadcast_to(z.B, *mask.shape[1:])
    choice, scale = _kernel_choice(kernel), problem.call().scale

    def attend(q, k, v):
        with choice():
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=described.causal, scale=scale, enable_gqa=z.N != z.K
            )

    def finish(gradient):
        return table_gradient(problem, jnp.asarray(gradient.float().cpu().numpy()))

    return prepare(name, attend, problem, (mask,) if learned else (), finish)


def _kernel_choice(kernel: str | None) -> Callable:
    if kernel is None:
        return contextlib.nullcontext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return lambda: sdpa_kernel(getattr(SDPBackend, kernel))


def flex(problem: Problem, square_up_to: int) -> Contender:
    """FlexAttention, compiled, with its own mask and score functions."""
    refuse_extras(problem, "softcap")
    torch = import_torch()
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if "kv_positions" in problem.arguments:
        raise Refused("key positions are not written for it here")
    if problem.cell.direction == BOTH and jax.default_backend() == "cpu":
        raise Refused("it has no gradient on a CPU")
    z, call = problem.cell.sizes, problem.call()
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    offset = 0 if call.static_offset == 0 else to_torch(jnp.broadcast_to(call.frame().query[:, 0], (z.B,)))
    position = (lambda b, q: q) if isinstance(offset, int) else (lambda b, q: q + offset[b])
    block_mask = None
    if not isinstance(call.mask, Full):
        heads = z.N if isinstance(call.mask, Dense) and call.mask.array.ndim == 4 else None
        function = mask_function(call.mask, position, z.B)
        block_mask = create_block_mask(function, z.B, heads, z.T, z.S, device=device)
    score, trained = score_function(problem, position)
    torch._dynamo.reset()  # past some shapes it would stop compiling, and run unfused
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q, k, v):
        return compiled(
            q, k, v, score_mod=score, block_mask=block_mask, scale=call.scale, enable_gqa=z.N != z.K
        )  # fmt: skip

    def finish(gradient):
        gradient = jnp.asarray(gradient.float().cpu().numpy())
        if isinstance(call.bias, DenseBias):
            return {"bias": gradient}
        pull = jax.vjp(lambda b: diagonals(problem.call(bias=b)), call.bias)[1]
        return {"bias": pull(gradient)[0].table}

    return prepare("torch-flex", attend, problem, trained, finish)


def mask_function(mask: Mask, position: Callable, batch: int) -> Callable:
    """FlexAttention's mask_mod (b, h, q, k) -> bool for a mask; `position(b, q)` is a query's position."""
    match mask:
        case Full():
            return lambda b, h, q, k: q >= 0
        case Causal():
            return lambda b, h, q, k: k <= position(b, q)
        case Window(left=left, right=right):
            left, right = (2**30 if side is None else side for side in (left, right))
            return lambda b, h, q, k: (position(b, q) - left <= k) & (k <= position(b, q) + right)
        case Chunked(size=size):
            return lambda b, h, q, k: position(b, q) // size == k // size
        case PrefixLM(length=length):
            seen = _per_batch(length, batch)
            return lambda b, h, q, k: (k <= position(b, q)) | (k < seen[b])
        case Lengths(q=rows, kv=columns):
            rows, columns = (_per_batch(2**30 if x is None else x, batch) for x in (rows, columns))
            return lambda b, h, q, k: (q < rows[b]) & (k < columns[b])
        case Segments(q_ids=q_ids, kv_ids=kv_ids):
            kv_ids = q_ids if kv_ids is None else kv_ids
            rows, columns = (to_torch(jnp.broadcast_to(x, (batch, x.shape[1]))) for x in (q_ids, kv_ids))
            return lambda b, h, q, k: rows[b, q] == columns[b, k]
        case And(left=left, right=right):
            first, second = (mask_function(part, position, batch) for part in (left, right))
            return lambda b, h, q, k: first(b, h, q, k) & second(b, h, q, k)
        case Or(left=left, right=right):
            first, second = (mask_function(part, position, batch) for part in (left, right))
            return lambda b, h, q, k: first(b, h, q, k) | second(b, h, q, k)
    raise Refused(f"mask {type(mask).__name__} is not written for it here")


def _per_batch(value, batch: int) -> Any:
    return to_torch(jnp.broadcast_to(jnp.asarray(value, jnp.int32).reshape(-1), (batch,)))


def score_function(problem: Problem, position: Callable) -> tuple[Callable | None, tuple]:
    """FlexAttention's score_mod for the bias and the soft cap, and the tensors in it that are trained."""
    call, num_queries = problem.call(), problem.cell.sizes.T
    cap, trained, add = call.softcap, (), None
    match call.bias:
        case ALiBi(slopes=slopes):
            slopes = to_torch(slopes)
            add = lambda b, h, q, k: -slopes[h] * (k - position(b, q)).abs()  # noqa: E731
        case DenseBias(array=array):
            values = to_torch(jnp.broadcast_to(array, (1,) * (4 - array.ndim) + array.shape))
            own = [int(size > 1) for size in values.shape]  # a broadcast axis is read at 0
            trained = (values,)
            add = lambda b, h, q, k: values[b * own[0], h * own[1], q * own[2], k * own[3]]  # noqa: E731
        case None:
            pass
        case _:
            values = to_torch(diagonals(call))
            trained = (values,)
            sequence = int(values.shape[0] > 1)
            add = lambda b, h, q, k: values[b * sequence, h, k - q + num_queries - 1]  # noqa: E731
    if add is None and cap is None:
        return None, ()

    def score_mod(score, b, h, q, k):
        score = score if add is None else score + add(b, h, q, k)
        return score if cap is None else cap * (score / cap).tanh()

    return score_mod, trained
