"""What the backward pass makes again is not kept from the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.kernels import attention, blockwise, norm, product
from zoo.kernels.order import zero_after

LAYERS = 8


def normed(x, kernels):
    for kernel in kernels:
        x = x + jnp.tanh(product.accumulate(norm.normalise(x, None, None, True, 1e-6), kernel))
    return x


def multiplied(x, kernels):
    for kernel in product.layer_kernels(kernels):
        x = jnp.tanh(product.accumulate(x, kernel))
    return x


def attended(x, kernels):
    for kernel in kernels:
        y = product.accumulate(x, kernel).reshape(2, -1, 4, x.shape[-1] // 4)
        x = x + attention(y, jnp.sin(y), jnp.cos(y), backend="blockwise").reshape(x.shape)
    return x


PROGRAMS = {"norm": (norm, normed, 2048, 32), "product": (product, multiplied, 16, 128),
            "attention": (blockwise, attended, 2048, 32)}  # fmt: skip


@pytest.fixture
def forgotten_programs():
    """What a test has compiled is not found by those after it."""
    yield
    jax.clear_caches()


# `zero_after` is 0 elsewhere: there is no difference to be seen.
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends order their programs by themselves")
@pytest.mark.parametrize("name", PROGRAMS)
def test_memory_of_a_backward_pass(name, monkeypatch, forgotten_programs):
    module, program, rows, width = PROGRAMS[name]
    rng = np.random.default_rng(0)
    x, kernels = (
        jnp.asarray(rng.normal(0, 0.1, size), jnp.float32) for size in ((rows, width), (LAYERS, width, width))
    )

    def gradient():
        jax.clear_caches()
        program_of = jax.jit(jax.grad(lambda x, kernels: jnp.square(program(x, kernels)).sum()))
        compiled = program_of.lower(x, kernels).compile()
        return compiled(x, kernels), compiled.memory_analysis().temp_size_in_bytes

    found, size = gradient()
    monkeypatch.setattr(module, "zero_after", lambda x: 0)
    expected, size_when_kept = gradient()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    one = {"norm": x.nbytes, "product": kernels[0].nbytes, "attention": 3 * x.nbytes}[name]
    assert size < size_when_kept - 0.7 * LAYERS * one, (size, size_when_kept, one)


@pytest.mark.parametrize("x", [[3.0, 5.0], [5.0, 3.0], [1.0, 1.0], [np.nan, 1.0], [-np.inf, np.nan], [np.inf] * 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero(x, dtype):
    assert jax.jit(zero_after)(jnp.asarray([[x]], dtype)) == 0
