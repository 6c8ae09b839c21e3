"""Products with kernels of 8 bits against their definitions in NumPy, their gradients, and what they leave alone."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from zoo.kernels import float8
from zoo.kernels.product import accumulate, grouped_product, input_sizes, layer_kernels, product, table_rows

RNG = np.random.default_rng(0)


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def quantized(form, outputs, inputs):
    values = RNG.integers(-127, 128, (*outputs, *inputs)).astype(np.int8)
    scale = RNG.uniform(0.5, 2, outputs).astype(np.float32)
    return {form: jnp.asarray(values), "scale": jnp.asarray(scale)}, values * scale[(..., *(None,) * len(inputs))]


def exact(x, whole, num_inputs):
    axes = range(-num_inputs, 0)
    return np.tensordot(x.astype(np.float64), whole.astype(np.float64), (axes, axes))


SHAPES = {"one row": ((1, 1), (40,), (3, 8)), "rows": ((2, 5), (4, 8), (24,)), "a vector": ((), (40,), (7,))}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weight_only_products_are_those_of_the_kernel_that_is_meant(shape, dtype):
    leading, inputs, outputs = SHAPES[shape]
    kernel, whole = quantized("int8", outputs, inputs)
    x = jnp.asarray(drawn(*leading, *inputs), dtype)
    out = jax.jit(lambda x: accumulate(x, kernel, num_contracted=len(inputs)))(x)
    x = np.asarray(x, np.float64)
    # An activation is within half a step of 15 bits of its row's largest.
    step = np.abs(x).max(tuple(range(len(leading), x.ndim)), keepdims=True) / (127 * 128)
    bound = exact(np.broadcast_to(step / 2, x.shape), np.abs(whole), len(inputs))
    assert out.dtype == jnp.float32 and out.shape == (*leading, *outputs)
    assert (np.abs(out - exact(x, whole, len(inputs))) <= 1.01 * bound + 1e-4).all()
    assert product(jnp.asarray(x, dtype), kernel, num_contracted=len(inputs)).dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_w8a8_products_are_integer_products_of_rounded_rows(shape):
    leading, inputs, outputs = SHAPES[shape]
    kernel, _ = quantized("w8a8", outputs, inputs)
    x = drawn(*leading, *inputs)
    rows = tuple(range(len(leading), x.ndim))
    unit = np.abs(x).max(rows, keepdims=True) / 127
    sums = exact(np.round(x / unit), np.asarray(kernel["w8a8"]), len(inputs))
    expected = sums * unit.reshape(*leading, *(1,) * len(outputs)) * np.asarray(kernel["scale"])
    out = jax.jit(lambda x: accumulate(x, kernel, num_contracted=len(inputs)))(x)
    np.testing.assert_allclose(out, expected, rtol=2e-6)


@pytest.mark.parametrize("form", ["int8", "w8a8"])
def test_rows_of_zeros_stay_and_bad_rows_stay_bad(form):
    kernel, _ = quantized(form, (6,), (16,))
    x = drawn(4, 16)
    x[1], x[2, 3], x[3, 5] = 0, np.nan, np.inf
    out = np.asarray(accumulate(jnp.asarray(x), kernel))
    assert np.isfinite(out[0]).all() and (out[1] == 0).all() and not np.isfinite(out[2:]).any()


@pytest.mark.parametrize("form", ["int8", "w8a8"])
def test_the_gradient_of_an_input_is_that_of_the_kernel_that_is_meant(form):
    kernel, whole = quantized(form, (3, 8), (40,))
    x, cotangent = drawn(5, 40), drawn(5, 3, 8)
    (found,) = jax.vjp(lambda x: accumulate(x, kernel), x)[1](cotangent)
    np.testing.assert_allclose(found, np.einsum("boh,ohi->bi", cotangent, whole), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", ["int8", "w8a8"])
def test_experts_multiply_their_own_rows(form):
    sizes, x = np.array([3, 0, 4]), drawn(7, 16)
    kernel, whole = quantized(form, (3, 5), (16,))
    own = whole.reshape(3, 5, 16)[np.repeat(np.arange(3), sizes)]
    out = jax.jit(grouped_product)(x, kernel, sizes)
    exact_out = np.einsum("mi,moi->mo", x, own)
    tolerance = 1e-4 if form == "int8" else 0.02
    assert np.abs(out - exact_out).max() <= tolerance * np.abs(exact_out).max()


def test_rows_of_a_table():
    table, whole = quantized("int8", (9,), (4,))
    np.testing.assert_allclose(table_rows(table, jnp.array([[3, 8]])), whole[[[3, 8]]], rtol=1e-6)
    assert np.isnan(table_rows(table, jnp.array([9]))).all()


def test_kernels_that_do_not_fit_are_named():
    kernel, _ = quantized("int8", (6,), (16,))
    with pytest.raises(ValueError, match=r"product of \(2, 15\) and a kernel of \(16,\) inputs"):
        product(jnp.ones((2, 15)), kernel)
    with pytest.raises(ValueError, match=r"a kernel of \['int4'\] is none"):
        product(jnp.ones((2, 16)), {"int4": jnp.ones((6, 16))})
    assert input_sizes({"float8": jnp.ones((4, 8, 6))}, 2) == (4, 8)


def rounded(x, dtype):
    unit = np.abs(x).max() / float(ml_dtypes.finfo(dtype).max)
    return (x / unit).astype(dtype).astype(np.float64) * unit


def of_a_layer(x, stack):
    return accumulate(x, layer_kernels(stack)[1], num_contracted=2)


def of_a_slice(x, stack):
    return accumulate(x, stack[1], num_contracted=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_of_a_stack_multiplies_as_a_kernel_of_its_own(dtype):
    x, stack, cotangent = jnp.asarray(drawn(6, 4, 8), dtype), drawn(3, 4, 8, 5), drawn(6, 5)
    results = [jax.jit(lambda x, stack, f=f: (f(x, stack), jax.vjp(f, x, stack)[1](cotangent)))(x, stack)
               for f in (of_a_layer, of_a_slice)]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert results[0][1][1][1].any() and not results[0][1][1][::2].any()


def test_second_derivatives_of_a_layer_of_a_stack():
    x, stack = drawn(6, 4, 8), drawn(3, 4, 8, 5)

    def steepness(f):
        return lambda x, stack: jnp.square(jax.grad(lambda x: jnp.sin(f(x, stack)).sum())(x)).sum()

    found, expected = (jax.grad(steepness(f), (0, 1))(x, stack) for f in (of_a_layer, of_a_slice))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


def test_float8_rounds_operands_to_e4m3_and_gradients_to_e5m2():
    x, kernel, cotangent = drawn(6, 4, 8), drawn(4, 8, 5), drawn(6, 5) * 1e-6
    out, pull = jax.vjp(lambda x, kernel: accumulate(x, {"float8": kernel}, num_contracted=2), x, kernel)
    ours, weights = rounded(x, ml_dtypes.float8_e4m3fn), rounded(kernel, ml_dtypes.float8_e4m3fn)
    np.testing.assert_allclose(out, np.einsum("bnh,nho->bo", ours, weights), rtol=1e-4, atol=1e-4)
    dx, dk = pull(cotangent)
    gradient = rounded(cotangent, ml_dtypes.float8_e5m2)
    np.testing.assert_allclose(dx, np.einsum("bo,nho->bnh", gradient, weights), rtol=1e-4, atol=1e-10)
    np.testing.assert_allclose(dk, np.einsum("bnh,bo->nho", ours, gradient), rtol=1e-4, atol=1e-10)
    assert dk.dtype == jnp.float32 and not np.allclose(out, np.einsum("bnh,nho->bo", x, kernel), rtol=1e-3)


@jax.debug_nans(True)
def test_float8_keeps_its_operands_in_8_bits_for_the_backward_pass():
    x, kernel = jnp.asarray(drawn(6, 8)), jnp.asarray(drawn(8, 5))
    kept = jax.tree.leaves(jax.vjp(lambda x, kernel: float8.multiply(x, kernel, 1), x, kernel)[1])
    assert sorted(leaf.dtype.itemsize for leaf in kept if leaf.size > 1) == [1, 1]
    zeros = jax.vjp(lambda x: float8.multiply(x, kernel, 1), jnp.zeros_like(x))
    assert not np.asarray(zeros[0]).any() and np.isfinite(zeros[1](jnp.ones((6, 5)))[0]).all()
