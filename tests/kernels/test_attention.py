"""The op itself: its errors, its choices, what it compiles and what that costs."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.kernels import (
    ALiBi,
    Causal,
    Dense,
    DenseBias,
    Lengths,
    PrefixLM,
    RelativeBias,
    Segments,
    Window,
    attention,
    explain,
)
from zoo.kernels.call import is_finite
from zoo.kernels.cases import Sizes

# The package's attribute of this name is the function.
module = importlib.import_module("zoo.kernels.attention")


def zeros(*shape, dtype=jnp.float32):
    return jnp.zeros(shape, dtype)


BACKENDS = ["dense", "small_blocks", "decode"]
Q, K = zeros(2, 6, 4, 8), zeros(2, 10, 2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": zeros(2, 6, 4)}, "give 4 axes"),
        ({"q": zeros(3, 6, 4, 8)}, "batch sizes differ"),
        ({"q": zeros(2, 6, 3, 8)}, "must be a multiple"),
        ({"q": zeros(2, 6, 4, 16)}, "last axis of q and k"),
        ({"v": zeros(2, 9, 2, 8)}, "axes 1 and 2 of k and v"),
        ({"q": zeros(2, 0, 4, 8)}, "an axis is empty"),
        ({"q": zeros(2, 6, 4, 8, dtype=jnp.bfloat16)}, "cast all three to one of"),
        ({"mask": jnp.ones((6, 10), bool)}, "Dense"),
        ({"mask": Dense(jnp.ones((6, 9), bool))}, "broadcast|give \\[6, 10\\]"),
        ({"mask": Dense(jnp.ones((6, 10)))}, "give bool"),
        ({"mask": Causal() & Segments(jnp.zeros((2, 6), int))}, "give kv_ids"),
        ({"mask": Segments(jnp.zeros((2, 6), int), jnp.zeros((2, 6), int))}, r"\[2 or 1, 10\]"),
        ({"mask": Lengths(kv=jnp.ones(3, int))}, r"shape \[2\]"),
        ({"mask": PrefixLM(jnp.ones(2))}, "integer"),
        ({"bias": zeros(6, 10)}, "DenseBias"),
        ({"bias": DenseBias(zeros(4, 6, 10))}, r"\[2, 4, 6, 10\]"),
        ({"bias": ALiBi(zeros(2))}, r"\[4\]"),
        ({"bias": RelativeBias(zeros(32, 2))}, r"\[num_buckets, 4\]"),
        ({"bias": RelativeBias(zeros(32, 4), max_distance=8)}, "max_distance"),
        ({"sinks": zeros(2)}, r"\[4\]"),
        ({"scale": jnp.ones(())}, "Python number"),
        ({"softcap": -1.0}, "above 0"),
        ({"dropout_rate": 1.0}, r"\[0, 1\)"),
        ({"q_offset": 1.5}, "integer"),
        ({"q_offset": jnp.zeros(3, int)}, r"\[2\]"),
        ({"kv_positions": jnp.zeros(6, int)}, r"\[10\]"),
        ({"backend": "flash"}, "choose from"),
    ],
)
def test_errors_name_the_value_and_the_mend(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention(**({"q": Q, "k": K, "v": K} | arguments))


def test_masks_reject_bad_sizes():
    with pytest.raises(ValueError, match="integer >= 0"):
        Window(-1, 0)
    with pytest.raises(ValueError, match="masks only"):
        Causal() & jnp.ones((2, 2), bool)


def test_explicit_backend_raises_rather_than_falls_back():
    wide = zeros(1, 64, 4, 8)
    with pytest.raises(ValueError, match=r"decode.*rows"):
        attention(wide, wide, wide, backend="decode")


def test_automatic_choice_and_explain(caplog):
    long = jax.ShapeDtypeStruct((1, 1024, 4, 64), jnp.bfloat16)
    one = jax.ShapeDtypeStruct((1, 1, 4, 64), jnp.bfloat16)
    report = explain(long, long, long, mask=Causal() & Window(128, 0), bias=ALiBi(zeros(4)))
    assert "runs on blockwise" in report
    assert "(Causal() & Window(128, 0))" in report
    assert "not on decode: T * N = 4096 rows" in report
    assert "runs on decode" in explain(one, long, long)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    absorbed = struct(1, 1, 128, 576), struct(1, 20_000, 1, 576), struct(1, 20_000, 1, 512)
    assert "runs on dense: T = 1 queries are few" in explain(*absorbed)
    assert "runs on dense" in explain(*[jax.ShapeDtypeStruct((1, 64, 4, 64), jnp.float32)] * 3)
    module._log_once.cache_clear()
    caplog.set_level("INFO", logger="zoo.kernels")
    for _ in range(3):
        attention(Q, K, K)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("backend", [*BACKENDS, "split_k"])
def test_vmap_and_checkpoint(backend):
    q, k, v = (
        jnp.stack([x] * 2) for x in Sizes(B=1, T=12, S=12, N=2, K=2).inputs(np.random.default_rng(0), jnp.float32)
    )
    lengths = jnp.asarray([[7], [12]])

    def loss(q, k, v, length):
        step = jax.checkpoint(lambda q: attention(q, k, v, mask=Causal() & Lengths(kv=length), backend=backend))
        return (step(q) ** 2).sum()

    gradient = jax.grad(loss, (0, 1, 2))
    batched = jax.jit(jax.vmap(gradient))(q, k, v, lengths)
    for i in range(2):
        single = gradient(q[i], k[i], v[i], lengths[i])
        for a, b in zip(single, batched, strict=True):
            np.testing.assert_allclose(b[i], a, atol=1e-5)


def qkv(sizes, seed=0):
    return sizes.inputs(np.random.default_rng(seed), jnp.float32)


def gradients(backend, inputs, rows=slice(None), **arguments):
    def loss(q, k, v):
        return attention(q, k, v, backend=backend, **arguments)[:, rows].sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_cannot_change_the_past(backend, bad):
    q, k, v = qkv(Sizes(B=2, T=24, S=24, N=2, K=1))
    past = slice(0, 17)
    spoilt = q.at[:, 17, 0].set(bad), k.at[:, 17, :, 3].set(bad), v.at[:, 20].set(bad)
    expected, actual = (attention(*x, mask=Causal(), backend=backend) for x in ((q, k, v), spoilt))
    np.testing.assert_allclose(actual[:, past], expected[:, past], atol=1e-6)
    assert jnp.isnan(actual[:, 17:]).all(-1).all()
    clean, dirty = (gradients(backend, x, rows=past, mask=Causal()) for x in ((q, k, v), spoilt))
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_one_bad_element_among_many_vectors_is_found(dtype, bad):
    """XLA's maximum on CPUs loses NaN from a certain size on."""
    x = jnp.ones((4, 128, 4, 64), dtype).at[1, 7, 2, 5].set(bad)
    assert jnp.argwhere(~jax.jit(is_finite)(x)).tolist() == [[1, 7, 2, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_rows_and_padding(backend):
    q, k, v = qkv(Sizes(B=2, T=20, S=24, N=2, K=2))
    k, v = k.at[:, 18:].set(jnp.nan), v.at[:, 18:].set(jnp.nan)
    q = q.at[0, 15:].set(jnp.nan)
    mask = Lengths(jnp.asarray([15, 20]), jnp.asarray([18, 0]))
    out, lse = attention(q, k, v, mask=mask, backend=backend, return_lse=True)
    assert jnp.isfinite(out).all()
    assert (out[0, 15:] == 0).all()
    assert (out[1] == 0).all()
    assert jnp.isneginf(lse[1]).all()
    for name, gradient in zip("qkv", gradients(backend, (q, k, v), mask=mask), strict=True):
        assert jnp.isfinite(gradient).all(), name
        assert (gradient[1] == 0).all(), name
        assert (gradient[0, 18:] == 0).all(), name


def test_dropout_keeps_the_expected_share_and_mean():
    q, k, v = qkv(Sizes(B=4, T=64, S=64, N=8, K=8))
    out = attention(q * 0, k, jnp.ones_like(v), dropout_rate=0.3, dropout_rng=jax.random.key(0))
    # Each row averages 64 weights of 1 / (1 - rate) or 0.
    deviation = np.sqrt(0.3 / 0.7 / 64)
    assert abs(float(out[..., 0].mean()) - 1) < 5 * deviation / np.sqrt(out[..., 0].size)
    assert abs(float(out[..., 0].std()) / deviation - 1) < 0.1
    other = attention(q * 0, k, jnp.ones_like(v), dropout_rate=0.3, dropout_rng=jax.random.key(1))
    assert (out[..., 0] != other[..., 0]).mean() > 0.8
