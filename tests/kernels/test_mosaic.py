"""The Mosaic backend without a GPU: its mapping over a stand-in for the kernel, and over tokamax's own reference."""

import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, compare, compare_output

from zoo.kernels import Causal, DenseBias, Lengths, Window, attention, explain, mosaic, nvidia
from zoo.kernels.attention import BACKENDS
from zoo.kernels.cases import TEST_SIZES, Sizes, fits

module = importlib.import_module("zoo.kernels.attention")
SQUARE, STATIC = TEST_SIZES["square"], Sizes(T=256, S=128, K=2)


def stand_in(q, k, v, bias, *, is_causal, first, end, scale, softcap):
    """The kernel's semantics from its description: lengths are whole blocks, ranges are [B or 1, 1, T]."""
    (_, num_queries, num_heads, _), num_keys = q.shape, k.shape[1]
    assert num_queries % 128 == 0
    assert num_keys % 128 == 0
    k, v = (jnp.repeat(x, num_heads // x.shape[2], axis=2).astype(jnp.float32) for x in (k, v))
    logits = jnp.einsum("btnh,bsnh->bnts", q.astype(jnp.float32), k) * scale
    logits = logits if bias is None else logits + bias.astype(jnp.float32)
    logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
    columns = jnp.arange(num_keys)[None, None, None]
    lowest = jnp.finfo(jnp.float32).min
    logits = logits if first is None else jnp.where(first[..., None] <= columns, logits, lowest)
    logits = logits if end is None else jnp.where(columns < end[..., None], logits, lowest)
    logits = jnp.where(columns <= jnp.arange(num_queries)[None, None, :, None], logits, lowest) if is_causal else logits
    largest = jax.lax.stop_gradient(logits.max(-1))
    exponentials = jnp.exp(logits - largest[..., None])
    total = exponentials.sum(-1)
    out = jnp.einsum("bnts,bsnh->btnh", exponentials / total[..., None], v).astype(q.dtype)
    return out, (largest, jax.lax.stop_gradient(total))


def tokamax_reference(q, k, v, bias, *, is_causal, first, end, scale, softcap):
    mosaic.leave_command_line_alone()
    base = importlib.import_module("tokamax._src.ops.attention.base")
    mask = base.Mask(k_start=first, k_end=end, is_causal=is_causal)
    return base.DotProductAttention()(
        q, k, v, bias=bias, mask=mask, logits_scale=scale, logits_soft_cap=softcap, return_residuals=True
    )


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(mosaic, "_library", stand_in)
    monkeypatch.setitem(mosaic.HIDDEN, "float32", -(2.0**41))
    supports = functools.partial(mosaic.feature_refusal, generation=9)
    monkeypatch.setitem(
        BACKENDS, "stand_in", types.SimpleNamespace(attend=mosaic.attend, supports=supports, PLATFORM=None)
    )
    module._run.clear_cache()
    return "stand_in"


REFUSED = {
    "packed": "Segments", "packed_full": "Segments", "alibi": "ALiBi", "relative": "RelativeBias",
    "relative_causal": "RelativeBias", "sinks": "sinks", "dropout": "dropout", "prefix_or_window": "union",
    "dense_mask": "union", "key_mask": "Dense", "offset_array": "RelativeBias", "positions": "RelativeBias",
    "sinks_dropout": "sinks", "dense_bias": "soft cap",
}  # fmt: skip
SUPPORTED = [case for case in ALL if case not in REFUSED]


@pytest.mark.parametrize("case", SUPPORTED)
def test_float32(case, backend):
    """With the kernel's own gradient, and zeros where its input was padding."""
    compare_output(case, TEST_SIZES["grouped"], backend)


@pytest.mark.parametrize("case", ["causal", "window"])
def test_static_offset(case, backend):
    """Causal from position 0 is the kernel's own, and lengths are whole blocks."""
    compare_output(case, STATIC, backend)


@pytest.mark.parametrize("case", ["lengths", "causal_dense_bias"])
def test_gradient_of_the_log_sum_exp(case, backend):
    compare(case, TEST_SIZES["grouped"], jnp.float32, [backend], 1e-5)


def test_bfloat16(backend):
    compare("softcap", SQUARE, jnp.bfloat16, [backend], 1e-2)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_feature(case, backend):
    rng = np.random.default_rng(0)
    sizes = SQUARE if fits(case, SQUARE) else STATIC
    with pytest.raises(ValueError, match=REFUSED[case]):
        attention(*sizes.inputs(rng, jnp.bfloat16), **ALL[case](rng, sizes), backend=backend)


def test_refusals_of_sizes_and_devices(monkeypatch):
    q = jnp.zeros((1, 128, 2, 64), jnp.bfloat16)
    bias = DenseBias(jnp.zeros((128, 128), jnp.bfloat16))

    def refusal(q, generation=9, **arguments):
        return mosaic.feature_refusal(module.prepare(q, q, q, **arguments)[0], generation)

    assert refusal(q) is None
    assert refusal(q, bias=bias) is None
    assert "Blackwell" in refusal(q, 10, bias=bias)
    assert "above 64" in refusal(jnp.zeros((1, 128, 2, 128), jnp.bfloat16), 10)
    assert "float32" in refusal(q.astype(jnp.float32))
    assert "the bias is float32" in refusal(q, bias=DenseBias(jnp.zeros((128, 128))))
    assert "not on mosaic: it is made for a GPU" in explain(q, q, q)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(nvidia, "compute_capability", lambda: (8, 0))
    assert "Hopper" in mosaic.supports(module.prepare(q, q, q)[0])


def test_nonfinite_values_and_empty_rows(backend):
    q, k, v = SQUARE.inputs(np.random.default_rng(0), jnp.float32)
    bad = k.at[0, 20, 1].set(jnp.nan), v.at[1, 30:].set(jnp.inf)
    mask = Window(5, 3) & Lengths(jnp.asarray([40, 35]), jnp.asarray([40, 30]))
    results = [attention(q, *bad, mask=mask, backend=name, return_lse=True) for name in ("dense", backend)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.isnan(results[1][0]).all(-1).sum() == 9


@pytest.mark.parametrize("case", ["causal", "window", "padding", "dense_bias", "lengths"])
def test_tokamax_reference(case, backend, monkeypatch):
    pytest.importorskip("tokamax", reason="the extra 'mosaic' is not installed", exc_type=ImportError)
    monkeypatch.setattr(mosaic, "_library", tokamax_reference)
    compare_output(case, SQUARE, backend)


@pytest.mark.filterwarnings("ignore:The out_shape and scratch_shapes:DeprecationWarning")  # tokamax's, of JAX's names
def test_lowers_for_hopper(monkeypatch):
    """The real kernel, forward and backward, told that a Hopper is there."""
    pytest.importorskip("tokamax", reason="the extra 'mosaic' is not installed", exc_type=ImportError)
    gpu = importlib.import_module("tokamax._src.gpu_utils")
    monkeypatch.setattr(gpu, "has_mosaic_gpu_support", lambda device=None: True)
    monkeypatch.setattr(gpu, "is_sm90", lambda device=None: True)
    q = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)

    def loss(q, length):
        call = module.prepare(q, q, q, Causal() & Lengths(kv=length))[0]
        assert mosaic.supports(call) is None
        return mosaic.attend(call)[0].astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss)).trace(q, jax.ShapeDtypeStruct((2,), jnp.int32))
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("mosaic_gpu") >= 3
