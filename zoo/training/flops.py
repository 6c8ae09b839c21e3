"""The model's floating-point operations, counted from its own program, and what the devices could do at best.

MFU (model FLOPs utilisation) is 3 x the matrix-product FLOPs of the forward pass (the backward pass has two
products for each) over step time and peak. Counted from the jaxpr, because the compiler's own analysis counts
the body of a loop once and library kernels not at all. Recomputation (remat), the optimizer and elementwise
work are not the model's, so not counted. A loop of unknown length counts once.
"""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from zoo.training.devices import find_accelerator, peak_products


def count_flops(function: Any, *args: Any) -> float:
    """Return the matrix-product FLOPs of a function for arguments or their shapes; nothing is run.

    What its results do not depend on, no compiler would compute, and it is not counted.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Any) -> float:
    return sum((_count_equation(equation) for equation in jaxpr.eqns), 0.0)


def _count_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(x.aval, "shape", ()) for x in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
    if name == "conv_general_dilated":
        out_features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[1]) / out_features
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if not inner and "dot_product_attention" in name and len(shapes) > 2 and len(shapes[0]) == 4:
        return 4.0 * math.prod(shapes[0]) * shapes[1][1]  # cuDNN: q [B, T, N, H], k [B, S, K, H]
    if name == "cond":
        return max(inner, default=0.0)
    return sum(inner, 0.0) * _repetitions(name, params)


def _repetitions(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
    if name == "shard_map":  # the shapes inside are those of one shard
        axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, (tuple, list)):
        return [jaxpr for part in value for jaxpr in _jaxprs(part)]
    return []


def peak_flops(device: Any, compute_dtype: Any = jnp.bfloat16) -> float | None:
    """Return one device's peak in FLOP/s for a compute dtype; None for a device that is not in the table.

    A CPU's ceiling is measured, and shared among the devices that it plays.
    """
    if device.platform == "cpu":
        return measure_ceiling(compute_dtype) / jax.local_device_count()
    accelerator = find_accelerator(device.device_kind)
    return None if accelerator is None else peak_products(accelerator, device.platform, compute_dtype)


def measure_ceiling(compute_dtype: Any = jnp.float32, size: int = 1024, seconds: float = 0.5) -> float:
    """Return the FLOP/s of the best of a few square matrix products on the default device."""
    x = jnp.ones((size, size), compute_dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32).astype(compute_dtype))
    jax.block_until_ready(product(x))
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def memory_in_use(device: Any) -> int:
    """Return the peak bytes in use: on the device where it says so, else of this process."""
    stats = device.memory_stats()
    if stats:
        return stats.get("peak_bytes_in_use", stats.get("bytes_in_use", 0))
    import resource  # Unix alone has it, and an accelerator's numbers come first

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
