"""Few queries against a long cache: split over blocks of keys, and over pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, compare

from zoo.kernels import Causal, Lengths, Window, attention, online, split_k
from zoo.kernels.cases import Sizes, fits

# Three blocks of two chunks and the rest of a fourth, which begins early.
SEVERAL = Sizes(T=3, S=59, K=2, V=12)
ONE_QUERY = Sizes(T=1, S=59, K=2)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(online, "CHUNK", 8)
    monkeypatch.setattr(split_k, "block_size", lambda call: min(16, call.sizes[2]))


@pytest.mark.parametrize("case", [case for case in ALL if fits(case, SEVERAL)])
def test_split_k_float32(case, small_chunks):
    compare(case, SEVERAL, jnp.float32, ["split_k"], 1e-6)


@pytest.mark.parametrize("case", ["packed", "packed_full"])
def test_split_k_packed(case, small_chunks):
    compare(case, Sizes(T=14, S=14), jnp.float32, ["split_k"], 1e-6)


@pytest.mark.parametrize("case", ["padding", "sinks", "positions"])
def test_split_k_one_query_bfloat16(case, small_chunks):
    compare(case, ONE_QUERY, jnp.bfloat16, ["split_k"], 1e-2)


def test_block_sizes():
    """Whole chunks, enough for an accelerator, never beyond the cache."""
    shapes = {(1, 8, 32768): 8192, (64, 8, 32768): 1024, (64, 8, 700): 512, (1, 1, 100): 100}
    for (batch, heads, num_keys), expected in shapes.items():
        call = _call(*Sizes(B=batch, T=1, S=num_keys, N=heads, K=heads).inputs(np.random.default_rng(0), jnp.bfloat16))
        assert split_k.block_size(call) == expected


def _call(q, k, v, **arguments):
    from zoo.kernels.attention import prepare  # the package's attribute of this module's name is the function

    absent = dict.fromkeys(("bias", "sinks", "scale", "softcap", "kv_positions", "dropout_rng"))
    absent |= {"mask": Lengths(), "q_offset": 0, "dropout_rate": 0.0}
    return prepare(q, k, v, **(absent | arguments))[0]


def test_split_k_refuses_many_queries():
    with pytest.raises(ValueError, match=r"split_k.*T = 17"):
        attention(*Sizes(T=17).inputs(np.random.default_rng(0), jnp.float32), backend="split_k")


def test_split_k_reads_live_blocks_alone(small_chunks):
    """Visible NaN makes rows NaN, masked NaN nothing, and a dead block is not even read."""
    q, k, v = ONE_QUERY.inputs(np.random.default_rng(0), jnp.float32)
    mask = Window(20, 0) & Lengths(kv=jnp.asarray([45, 40]))
    arguments = {"mask": mask, "q_offset": jnp.asarray([41, 44]), "return_lse": True}
    clean = attention(q, k, v, **arguments, backend="dense")
    dead, masked = v.at[:, :16].set(jnp.nan), v.at[:, 46:].set(jnp.nan)
    for values in (dead, masked):
        for a, b in zip(clean, attention(q, k, values, **arguments, backend="split_k"), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    out, lse = attention(q, k.at[0, 30, 1, 0].set(jnp.nan), v, **arguments, backend="split_k")
    assert jnp.isnan(out).all(-1).tolist() == [[[False, False, True, True]], [[False] * 4]]
    assert jnp.isnan(lse).tolist() == [[[False, False, True, True]], [[False] * 4]]
    raw = split_k._attend(_call(q, k, dead, mask=mask, q_offset=jnp.asarray([41, 44])))[0]
    assert jnp.isfinite(raw).all()


def test_split_k_empty_rows_and_gradients(small_chunks):
    q, k, v = SEVERAL.inputs(np.random.default_rng(0), jnp.float32)
    mask = Causal() & Lengths(kv=jnp.asarray([20, 0]))

    def loss(q, k, v):
        return attention(q, k, v, mask=mask, q_offset=30, backend="split_k").sum()

    out, lse = attention(q, k, v, mask=mask, q_offset=30, backend="split_k", return_lse=True)
    assert (out[1] == 0).all()
    assert jnp.isneginf(lse[1]).all()
    for gradient in jax.grad(loss, (0, 1, 2))(q, k, v):
        assert jnp.isfinite(gradient).all()
        assert (gradient[1] == 0).all()


def test_split_k_steps_compile_once():
    q, k, v = ONE_QUERY.inputs(np.random.default_rng(0), jnp.float32)
    step = jax.jit(
        lambda offset, length: attention(
            q, k, v, mask=Causal() & Lengths(kv=length), q_offset=offset, backend="split_k"
        )
    )
    for i in range(4):
        step(jnp.int32(10 + i), jnp.asarray([5 + i, 9]))
    assert step._cache_size() == 1
