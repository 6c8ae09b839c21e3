"""Backends for TPUs: interpreted on a CPU against the float64 oracle, and lowered for a TPU without one."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, VARIED, compare
from jax.extend.core import jaxprs_in_params
from tiers import tiered

from zoo.kernels import ALiBi, Causal, Chunked, Lengths, RelativeBias, Segments, Window, attention, mosaic_tpu, splash
from zoo.kernels.attention import BACKENDS
from zoo.kernels.bias import alibi_slopes, toeplitz
from zoo.kernels.cases import CASES, TEST_SIZES, Sizes, fits
from zoo.kernels.mosaic_blocks import diagonal_sums, spread
from zoo.kernels.mosaic_grid import block_size

INTERPRETED = ["splash_interpreted", "mosaic_interpreted"]

# Splash's blocks are 128 wide and positions static from 128 queries on: two by three blocks, the last ones partial.
RAGGED = Sizes(T=136, S=264, N=2, K=1, V=12)
SQUARE = Sizes(T=264, S=264, N=2, K=1)

LONG = Sizes(B=1, T=128, S=2**16, N=1, K=1)

REFUSED = {
    "prefix": "conjunctions",
    "alibi": "bias",
    "relative": "bias",
    "relative_causal": "bias",
    "dropout": "dropout",
    "prefix_or_window": "conjunctions",
    "dense_mask": "conjunctions",
    "key_mask": "conjunctions",
    "causal_dense_bias": "bias",
    "dense_bias": "bias",
    "key_bias": "bias",
    "offset_array": "bias",
    "positions": "bias",
    "sinks_dropout": "bias",
}
"""Cases that splash refuses, and the word that names why; `mosaic_tpu` takes all."""


@pytest.fixture(autouse=True, scope="module")
def backends():
    """Both backends interpreted, with small blocks, and both as a TPU has them but without asking for one."""
    names = []
    for name, module, block_sizes in (("splash", splash, (128, 128)), ("mosaic", mosaic_tpu, (16, 16))):
        attend = functools.partial(module.attend, block_sizes=block_sizes, interpret=True)
        for kind, function in (("interpreted", attend), ("lowered", module.attend)):
            names.append(f"{name}_{kind}")
            BACKENDS[names[-1]] = types.SimpleNamespace(attend=function, supports=module.supports, PLATFORM=None)
    yield
    for name in names:
        del BACKENDS[name]


@pytest.mark.parametrize("case", tiered(ALL, VARIED))
def test_float32(case):
    """Grouped heads, ragged lengths, T != S and V != H, where the case allows it."""
    if case in REFUSED:
        compare(case, TEST_SIZES["grouped"], jnp.float32, ["mosaic_interpreted"], 1e-6)
    else:
        compare(case, RAGGED if fits(case, RAGGED) else SQUARE, jnp.float32, INTERPRETED, 1e-6)


@pytest.mark.parametrize(
    ("case", "sizes", "names"),
    [
        # A head size of 16: its scale is a power of two, which splash wants in bfloat16.
        ("sinks", dataclasses.replace(RAGGED, H=16), INTERPRETED),
        ("relative", TEST_SIZES["square"], INTERPRETED[1:]),
        ("sinks_dropout", TEST_SIZES["square"], INTERPRETED[1:]),
    ],
)
def test_bfloat16(case, sizes, names):
    compare(case, sizes, jnp.bfloat16, names, 1e-2)


@pytest.mark.parametrize("case", REFUSED)
def test_splash_refuses(case):
    arguments = ALL[case](np.random.default_rng(0), SQUARE)
    with pytest.raises(ValueError, match=f"splash_lowered.*{REFUSED[case]}"):
        attention(*SQUARE.inputs(np.random.default_rng(0), jnp.float32), **arguments, backend="splash_lowered")


@pytest.mark.parametrize(
    ("sizes", "dtype", "arguments", "reason"),
    [
        (TEST_SIZES["square"], jnp.float32, {"mask": Causal()}, "q_offset is dynamic"),
        (SQUARE, jnp.float32, {"mask": Causal(), "q_offset": jnp.ones((), int)}, "q_offset is dynamic"),
        (SQUARE, jnp.float32, {"kv_positions": jnp.arange(SQUARE.S)}, "kv_positions"),
        (SQUARE, jnp.float16, {}, "float16"),
        (SQUARE, jnp.bfloat16, {"scale": 0.3}, "scale q beforehand"),
        (SQUARE, jnp.float32, {"mask": Segments(jnp.ones((1, 264), int)) & Segments(jnp.ones((1, 264), int))}, "pair"),
        (LONG, jnp.float32, {"mask": Causal() & Chunked(9)}, "at most 65535"),
        (LONG, jnp.float32, {"mask": Causal() & Window(9, None)}, None),
    ],
)
def test_splash_refuses_what_no_case_has(sizes, dtype, arguments, reason):
    q, k, v = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in jax.eval_shape(lambda: inputs(sizes, dtype)))
    trace = functools.partial(attention, **arguments, backend="splash_lowered")
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            jax.eval_shape(trace, q, k, v)
    else:
        assert jax.eval_shape(trace, q, k, v).shape == (sizes.B, sizes.T, sizes.N, sizes.V)


def test_float16_is_refused():
    with pytest.raises(ValueError, match="float16"):
        attention(*inputs(TEST_SIZES["square"], jnp.float16), backend="mosaic_lowered")


@pytest.mark.parametrize("backend", ["splash", "mosaic_tpu"])
def test_a_machine_without_a_tpu_says_so(backend):
    with pytest.raises(ValueError, match="made for a TPU, and JAX runs on a CPU"):
        attention(*inputs(SQUARE, jnp.float32), backend=backend)


def inputs(sizes, dtype=jnp.float32):
    return sizes.inputs(np.random.default_rng(0), dtype)


def with_gradients(backend, qkv, rows=slice(None), **arguments):
    """Output, log-sum-exp, and the gradients of a sum over some rows of the output."""

    def loss(q, k, v):
        out, lse = attention(q, k, v, backend=backend, return_lse=True, **arguments)
        return out[:, rows].sum(), (out, lse)

    gradients, outputs = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return outputs, gradients


@pytest.mark.parametrize("backend", INTERPRETED)
def test_the_future_cannot_change_the_past(backend):
    q, k, v = inputs(Sizes(T=136, S=136, N=2, K=1))
    past = slice(0, 117)
    spoilt = q.at[:, 117, 0].set(jnp.inf), k.at[:, 117, :, 3].set(jnp.nan), v.at[:, 120].set(jnp.nan)
    arguments = {"mask": Causal(), "softcap": 3.0, "rows": past}
    (expected, _), clean = with_gradients(backend, (q, k, v), **arguments)
    (actual, _), dirty = with_gradients(backend, spoilt, **arguments)
    np.testing.assert_allclose(actual[:, past], expected[:, past], atol=1e-6)
    assert jnp.isnan(actual[:, 117:]).all()
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize("backend", INTERPRETED)
def test_empty_rows_and_padding(backend):
    q, k, v = inputs(Sizes(T=130, S=140, N=2, K=2))
    k, v = k.at[:, 118:].set(jnp.nan), v.at[:, 118:].set(jnp.nan)
    q = q.at[0, 115:].set(jnp.nan)
    (out, lse), gradients = with_gradients(
        backend, (q, k, v), mask=Lengths(jnp.asarray([115, 130]), jnp.asarray([118, 0]))
    )
    assert jnp.isfinite(out).all()
    assert (out[0, 115:] == 0).all()
    assert (out[1] == 0).all()
    assert jnp.isneginf(lse[1]).all()
    assert jnp.isneginf(lse[0, 115:]).all()
    for name, gradient in zip("qkv", gradients, strict=True):
        assert jnp.isfinite(gradient).all(), name
        assert (gradient[1] == 0).all(), name
        assert (gradient[0, 118:] == 0).all(), name


def test_vmap_over_lengths():
    q, k, v = (jnp.stack([x] * 2) for x in inputs(Sizes(B=1, T=20, S=20, N=2, K=2)))
    lengths = jnp.asarray([[7], [20]])
    gradient = jax.grad(
        lambda q, k, v, n: (attention(q, k, v, mask=Causal() & Lengths(kv=n), backend="mosaic_interpreted") ** 2).sum()
    )
    batched = jax.jit(jax.vmap(gradient))(q, k, v, lengths)
    for i in range(2):
        np.testing.assert_allclose(batched[i], gradient(q[i], k[i], v[i], lengths[i]), atol=1e-5)


@pytest.mark.parametrize("size", [8, 24])
def test_spread_and_its_transpose(size):
    """24 = 8 * 3: three rows are left when no half is whole."""
    piece, block = (
        jnp.asarray(np.random.default_rng(0).standard_normal(shape)) for shape in ((1, 2 * size), (size, size))
    )
    expected = toeplitz(piece[0, :-1], size, size)  # entry (s, t) is piece[t - s + size - 1]
    np.testing.assert_array_equal(jax.jit(spread, static_argnums=1)(piece, size), expected)
    transposed = jax.vjp(lambda piece: toeplitz(piece[0, :-1], size, size), piece)[1](block)[0]
    np.testing.assert_allclose(jax.jit(diagonal_sums)(block)[:, :-1], transposed[:, :-1], atol=1e-6)


def test_block_sizes():
    assert [block_size(length) for length in (1, 128, 197, 384, 1024, 8192)] == [128, 128, 256, 384, 512, 512]
    assert block_size(1, 8192) == 128


def gradient_trace(backend, arguments, sizes, dtype=jnp.bfloat16):
    """Forward and backward pass with abstract q, k and v of some sizes, traced."""
    trained = {name: arguments.pop(name) for name in ("bias", "sinks") if name in arguments}

    def loss(q, k, v, trained):
        out, lse = attention(q, k, v, **trained, **arguments, backend=backend, return_lse=True)
        return out.astype(jnp.float32).sum() + lse.sum()

    arrays = (
        jax.ShapeDtypeStruct((sizes.B, length, heads, size), dtype)
        for length, heads, size in (
            (sizes.T, sizes.N, sizes.H),
            (sizes.S, sizes.K, sizes.H),
            (sizes.S, sizes.K, sizes.V),
        )
    )
    return jax.jit(jax.grad(loss, (0, 1, 2, 3))).trace(*arrays, trained)


LOWERED = {name: ALL[name] for name in (*CASES, "dense_mask", "dense_bias", "key_bias", "positions", "offset_array")}


@pytest.mark.parametrize("case", tiered(LOWERED, lambda case: case in VARIED))
def test_lowers_for_a_tpu(case):
    """Forward and gradient become kernels for a TPU at real sizes, for heads of half a register's width and a whole."""
    size = 64 if len(case) % 2 else 128
    sizes = Sizes(B=2, T=1024, S=1024, N=8, K=4, H=size, V=size)
    for backend, scale in (("splash_lowered", 1 / 16), ("mosaic_lowered", None)):
        if backend == "mosaic_lowered" or case not in REFUSED:
            arguments = LOWERED[case](np.random.default_rng(0), sizes) | {"scale": scale}
            text = gradient_trace(backend, arguments, sizes).lower(lowering_platforms=("tpu",)).as_text()
            # A dense bias has a kernel for its gradient.
            assert text.count("tpu_custom_call") == (4 if case in ("dense_bias", "key_bias") else 3)


LINEAR = {name: CASES[name] for name in ("chunked", "packed", "relative", "dropout")} | {
    "offsets": lambda rng, z: {
        "mask": Causal(),
        "q_offset": jnp.arange(z.B),
        "bias": ALiBi(jnp.asarray(alibi_slopes(z.N))),
    },
    "positions": lambda rng, z: {
        "mask": Causal() & Lengths(kv=z.S - 3),
        "kv_positions": jnp.arange(z.S),
        "bias": RelativeBias(jnp.ones((32, z.N))),
    },
}


@pytest.mark.parametrize("case", LINEAR)
def test_memory_is_linear(case):
    """Nothing outside the kernels, and no block inside, comes near T x S elements."""
    sizes = Sizes(B=1, T=8192, S=8192, N=2, K=1, H=64, V=64)
    for backend in ("splash_lowered", "mosaic_lowered") if case in ("chunked", "packed") else ("mosaic_lowered",):
        trace = gradient_trace(backend, LINEAR[case](np.random.default_rng(0), sizes), sizes)
        assert max(array_sizes(trace.jaxpr.jaxpr)) <= sizes.T * sizes.S / 32


def array_sizes(jaxpr):
    """Elements of every array in a program and in those it calls."""
    for equation in jaxpr.eqns:
        yield from (math.prod(variable.aval.shape) for variable in (*equation.invars, *equation.outvars))
        for inner in jaxprs_in_params(equation.params):
            yield from array_sizes(inner)
