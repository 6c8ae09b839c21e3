"""One case on one backend: against the float64 oracle, forward and gradient; or against the dense backend."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from oracle import attention as oracle

from zoo.kernels import attention
from zoo.kernels.cases import CASES, SMALL_CASES

ALL = CASES | SMALL_CASES
VARIED = (
    "causal", "window", "padding", "packed", "prefix_or_window", "relative_causal", "dense_bias", "positions",
    "offset_array", "sinks_dropout",
)  # fmt: skip
"""Cases that between them have every kind of mask, bias and option: those of the default tier, where there are many."""
FORWARD = ("out", "lse")
EPSILON = 2.0**-23  # a few roundings are no error, however lucky the reference was


def evaluate(backend, q, k, v, grad_out, grad_lse, arguments):
    """{name: float64 array} of outputs and gradients."""
    trained = {name: arguments[name] for name in ("bias", "sinks") if name in arguments}
    fixed = {name: value for name, value in arguments.items() if name not in trained}

    def loss(q, k, v, trained):
        out, lse = attention(q, k, v, **trained, **fixed, backend=backend, return_lse=True)
        finite = jnp.where(jnp.isneginf(lse), 0, lse)
        return (out.astype(jnp.float32) * grad_out).sum() + (finite * grad_lse).sum(), (out, lse)

    gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))
    gradients, outputs = gradient(q, k, v, trained)
    results = dict(zip(FORWARD, outputs, strict=True)) | dict(zip("qkv", gradients[:3], strict=True))
    results |= {name: jax.tree.leaves(value)[0] for name, value in gradients[3].items()}
    return {name: np.asarray(value, np.float64) for name, value in results.items()}


def root_mean_square(x):
    finite = np.where(np.isfinite(x), x, 0)
    return float(np.sqrt(np.mean(finite**2)))


def errors(results, truth):
    """Root mean square error of each result; infinities must agree exactly."""
    for name, value in truth.items():
        np.testing.assert_array_equal(np.isneginf(results[name]), np.isneginf(value))
        assert not np.isnan(results[name]).any(), f"NaN in {name}"
    finite = {name: np.isfinite(value) for name, value in truth.items()}
    return {
        name: root_mean_square(np.where(finite[name], results[name], 0) - np.where(finite[name], value, 0))
        for name, value in truth.items()
    }


def compare(case, sizes, dtype, backends, tolerance):
    """Dense within `tolerance` of the oracle, relative to each result's size; the others within twice dense's error."""
    rng = np.random.default_rng(7)
    arguments = ALL[case](rng, sizes)
    inputs = sizes.inputs(rng, dtype)
    cotangents = (
        jnp.asarray(rng.standard_normal((sizes.B, sizes.T, sizes.N, sizes.V)), dtype).astype(jnp.float32),
        jnp.asarray(rng.standard_normal((sizes.B, sizes.T, sizes.N)), jnp.float32),
    )
    out, lse, gradients = oracle(*inputs, *cotangents, **arguments)
    truth = {"out": out, "lse": lse} | gradients
    reference = errors(evaluate("dense", *inputs, *cotangents, arguments), truth)
    floor = {name: tolerance * max(root_mean_square(value), 1e-3) for name, value in truth.items()}
    for name, error in reference.items():
        assert error <= floor[name], f"dense {name}: {error:.2e} of {floor[name]:.2e}"
    for backend in backends:
        for name, error in errors(evaluate(backend, *inputs, *cotangents, arguments), truth).items():
            bound = max(2 * reference[name], 8 * EPSILON * root_mean_square(truth[name]))
            assert error <= bound, f"{backend} {name}: {error:.2e} of {bound:.2e}"


def compare_output(case, sizes, backend):
    """Output, log-sum-exp, and the gradient of the output alone, against the dense backend in float32.

    A gradient that reaches the log-sum-exp too may take another path: that one is for `compare`.
    """
    rng = np.random.default_rng(7)
    arguments = ALL[case](rng, sizes)
    trained = {name: arguments.pop(name) for name in ("bias", "sinks") if name in arguments}
    inputs = *sizes.inputs(rng, jnp.float32), trained
    weights = jnp.asarray(rng.standard_normal((sizes.B, sizes.T, sizes.N, sizes.V)), jnp.float32)

    def loss(name, q, k, v, trained):
        out, lse = attention(q, k, v, **trained, **arguments, backend=name, return_lse=True)
        return (out * weights).sum(), (out, lse)

    expected, actual = (
        jax.jit(jax.grad(functools.partial(loss, name), (0, 1, 2, 3), has_aux=True))(*inputs)
        for name in ("dense", backend)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), actual, expected)
