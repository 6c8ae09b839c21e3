"""cuDNN's backend without a GPU: its mapping over a stand-in for the library, and the lowering of the real call."""

import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, compare, compare_output
from jax._src.cudnn import fused_attention_stablehlo as library

from zoo.kernels import Causal, DenseBias, Lengths, Window, attention, blockwise, cudnn, explain, fused, nvidia
from zoo.kernels.attention import BACKENDS
from zoo.kernels.cases import TEST_SIZES, Sizes

module = importlib.import_module("zoo.kernels.attention")
MaskType = library.MaskType
GARBAGE = 1e3
# T at which a Python offset is static, so that causal masks are known to begin at 0.
GROUPED, SQUARE = Sizes(T=128, S=141, K=2, V=12), Sizes(T=128, S=128)


def stand_in(q, k, v, bias, mask, q_lengths, kv_lengths, *, scale, mask_type, sliding_window_length, return_residual):
    """The library's semantics in XLA; garbage where it promises nothing, no gradient for the log-sum-exp."""
    causal = mask_type in (MaskType.CAUSAL, MaskType.PADDING_CAUSAL)
    assert (q_lengths is not None) == (mask_type in (MaskType.PADDING, MaskType.PADDING_CAUSAL))
    assert sliding_window_length is None or (causal and bias is None and q.shape[1] <= k.shape[1])
    assert mask is None and q.shape[-1] == v.shape[-1] and q.shape[-1] % 8 == 0
    assert bias is None or (bias.shape[2:] == (q.shape[1], k.shape[1]) and bias.dtype == q.dtype)
    window = None if sliding_window_length is None else (sliding_window_length - 1, 0)
    wide = (None if x is None else x.astype(jnp.float32) for x in (q, k, v, bias))
    out, lse = jax.nn.dot_product_attention(
        *wide, scale=scale, is_causal=causal, local_window_size=window, query_seq_lengths=q_lengths,
        key_value_seq_lengths=kv_lengths, implementation="xla", return_residual=return_residual,
    )  # fmt: skip
    if q_lengths is not None:
        outside = jnp.arange(q.shape[1])[None] >= q_lengths[:, None]
        out = jnp.where(outside[..., None, None], GARBAGE, out)
        lse = jnp.where(outside[..., None], GARBAGE, lse)
    return out.astype(q.dtype), lse.swapaxes(1, 2)


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(cudnn, "_library", stand_in)
    monkeypatch.setitem(cudnn.HIDDEN, "float32", -(2.0**41))
    monkeypatch.setitem(
        BACKENDS, "stand_in", types.SimpleNamespace(attend=cudnn.attend, supports=cudnn.supports, PLATFORM=None)
    )
    module._run.clear_cache()
    return "stand_in"


OWN_CASES = {
    "causal_padding": lambda rng, z: {"mask": Causal() & Lengths(kv=jnp.asarray([90, 0]))},
    "window_padding": lambda rng, z: {"mask": Window(9, 0) & Lengths(jnp.asarray([128, 70]), jnp.asarray([60, 100]))},
    "wide_window": lambda rng, z: {"mask": Causal() & Window(500, 500)},
    "bias": lambda rng, z: {"mask": Causal(), "bias": _bias(rng, z.B, 1, z.T, z.S)},
    "bias_of_heads": lambda rng, z: {"mask": Lengths(kv=jnp.asarray([90, 33])), "bias": _bias(rng, z.N, z.T, z.S)},
}


def _bias(rng, *shape):
    shape = (1,) * (4 - len(shape)) + shape
    return DenseBias(jnp.asarray(rng.standard_normal(shape), jnp.float32))


@pytest.fixture
def cases(monkeypatch):
    for name, case in OWN_CASES.items():
        monkeypatch.setitem(ALL, name, case)


SUPPORTED = ("full", "causal", "window", "padding", "lengths", "scale")


@pytest.mark.parametrize("case", [*SUPPORTED, *OWN_CASES])
def test_float32(case, backend, cases):
    """With the library's own gradient, and zeros where its input was padding."""
    compare_output(case, SQUARE if case in ("bias", "bias_of_heads") else GROUPED, backend)


@pytest.mark.parametrize("case", ["window", "window_padding"])
def test_gradient_of_the_log_sum_exp(case, backend, cases):
    compare(case, GROUPED, jnp.float32, [backend], 1e-5)


@pytest.mark.parametrize("case", ["causal", "padding"])
def test_one_query(case, backend):
    """Causality over a dynamic offset is a length here."""
    compare_output(case, TEST_SIZES["decode"], backend)


def test_bfloat16(backend):
    compare("window", SQUARE, jnp.bfloat16, [backend], 1e-2)


REFUSED = {
    "symmetric_window": "reaches past", "chunked": "Chunked", "prefix": "PrefixLM", "packed": "Segments",
    "packed_full": "Segments", "alibi": "ALiBi", "relative": "RelativeBias", "relative_causal": "RelativeBias",
    "softcap": "soft cap", "sinks": "sinks", "dropout": "dropout", "prefix_or_window": "union", "dense_mask": "union",
    "key_mask": "Dense", "causal_dense_bias": "the bias is float32", "dense_bias": "soft cap",
    "key_bias": "broadcast", "offset": "q_offset is 7", "offset_array": "RelativeBias",
    "positions": "RelativeBias", "sinks_dropout": "soft cap",
}  # fmt: skip


def test_every_case_is_tried_or_refused():
    assert set(ALL) == {*SUPPORTED, *REFUSED}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_feature(case, backend):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=REFUSED[case]):
        attention(*SQUARE.inputs(rng, jnp.bfloat16), **ALL[case](rng, SQUARE), backend=backend)


def shapes(sizes, dtype=jnp.bfloat16):
    """q, k and v without values."""
    lengths = ((sizes.T, sizes.N, sizes.H), (sizes.S, sizes.K, sizes.H), (sizes.S, sizes.K, sizes.V))
    return [jax.ShapeDtypeStruct((sizes.B, *length), dtype) for length in lengths]


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        (SQUARE, {"mask": Causal(), "q_offset": 3}, "q_offset is 3"),
        (Sizes(), {"mask": Causal()}, "q_offset is dynamic"),
        (Sizes(T=140, S=128), {"mask": Window(2, 0)}, "at most S"),
        (SQUARE, {"mask": Window(2, None)}, "reaches past"),
        (SQUARE, {"mask": Window(2, 0), "bias": DenseBias(jnp.zeros((128, 128), jnp.bfloat16))}, "window together"),
        (SQUARE, {"bias": DenseBias(jnp.zeros((128, 128)))}, "the bias is float32"),
        (Sizes(T=3, S=4), {"bias": DenseBias(jnp.zeros((3, 4), jnp.bfloat16))}, "even"),
        (Sizes(H=129), {}, "head size 136 is above 128"),
        (SQUARE, {"kv_positions": jnp.arange(128)}, "kv_positions"),
    ],
)
def test_refusals_of_sizes_and_offsets(sizes, arguments, message):
    call = module.prepare(*shapes(sizes), **arguments)[0]
    assert message in cudnn.supports(call)


def test_float32_and_other_platforms_are_refused():
    report = explain(*shapes(SQUARE, jnp.float32))
    assert "not on cudnn: it is made for a GPU" in report
    assert "float32" in cudnn.supports(module.prepare(*shapes(SQUARE, jnp.float32))[0])


@pytest.mark.parametrize(
    ("capability", "head_size", "message"),
    [((9, 0), 256, None), ((10, 0), 256, "above 128"), ((7, 5), 64, "below 8.0"), (None, 64, "NVIDIA")],
)
def test_compute_capability(monkeypatch, capability, head_size, message):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(nvidia, "compute_capability", lambda: capability)
    reason = cudnn.supports(module.prepare(*shapes(Sizes(H=head_size, V=head_size)))[0])
    assert reason is None if message is None else message in reason


def test_compute_capability_without_a_gpu():
    assert nvidia.compute_capability() is None


def test_nonfinite_values_reach_those_who_see_them_and_no_others(backend):
    q, k, v = SQUARE.inputs(np.random.default_rng(0), jnp.float32)
    mask = Window(20, 0) & Lengths(kv=jnp.asarray([128, 100]))
    bad = k.at[0, 40, 1].set(jnp.nan), v.at[1, 100:].set(jnp.inf)
    expected, actual = (
        attention(q.at[0, 5, 3, 0].set(jnp.nan), *bad, mask=mask, backend=name, return_lse=True)
        for name in ("dense", backend)
    )
    for a, b in zip(expected, actual, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.isnan(actual[0]).all(-1).sum() == 21 + 1

    def loss(name, k, v):
        out = attention(q, k, v, mask=mask, backend=name)
        return jnp.where(jnp.isnan(out), 0, out).sum()

    gradients = [jax.grad(functools.partial(loss, name), (0, 1))(*bad) for name in ("dense", backend)]
    for a, b in zip(*gradients, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_bias_of_minus_infinity_hides_keys(backend):
    q, k, v = SQUARE.inputs(np.random.default_rng(0), jnp.float32)
    hidden = np.random.default_rng(1).random((1, SQUARE.N, 128, 128)) < 0.5
    hidden[0, 1, 7, :8] = True  # with causality this row sees nothing
    bias = DenseBias(jnp.where(hidden, -jnp.inf, 1.0))
    results = [
        attention(q, k, v, bias=bias, mask=Causal(), backend=name, return_lse=True) for name in ("dense", backend)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (results[1][0][:, 7, 1] == 0).all()
    assert jnp.isneginf(results[1][1][:, 7, 1]).all()


def test_only_a_gradient_of_the_log_sum_exp_runs_blockwise(backend, monkeypatch):
    q, k, v = SQUARE.inputs(np.random.default_rng(0), jnp.float32)

    def run(call, block_sizes=None):
        raise AssertionError("blockwise")

    monkeypatch.setattr(blockwise, "attend", run)

    def loss(q, part):
        return attention(q, k, v, mask=Causal(), backend=backend, return_lse=True)[part].sum()

    def deep(q):
        layer = jax.checkpoint(lambda x, _: (attention(x, k, v, mask=Causal(), backend=backend), None))
        return jax.lax.scan(layer, q, None, length=2)[0].sum()

    jax.jit(jax.grad(loss), static_argnums=1)(q, 0)
    jax.jit(jax.grad(deep))(q)
    with pytest.raises(AssertionError, match="blockwise"):
        jax.jit(jax.grad(loss), static_argnums=1)(q, 1)


@pytest.mark.parametrize("mask", [Causal(), Window(16, 0) & Lengths(kv=100)], ids=["causal", "window"])
def test_lowers_for_a_gpu(mask, monkeypatch):
    """The real library, told that a device is there."""
    monkeypatch.setattr(library, "check_cudnn_version", lambda: 91300)
    sizes = Sizes(T=128, S=256, N=4, K=2, H=64, V=64)
    attend = functools.partial(fused.attend, cudnn._kernel)

    def loss(q, k, v):
        call = module.prepare(q, k, v, mask)[0]
        assert cudnn.supports(call) is None
        return attend(call)[0].astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*shapes(sizes)).lower(lowering_platforms=("cuda",)).as_text()
    kind = "PADDING_CAUSAL" if isinstance(mask, Window) else "CAUSAL"
    assert "__cudnn$fmhaSoftmaxBackward" in text
    assert kind in text
