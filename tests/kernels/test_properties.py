"""What must hold for any attention: mask algebra, packing, key order, shifts, causality, block sizes, NaN, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import VARIED
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import tiered

from zoo.kernels import (
    ALiBi,
    Causal,
    Chunked,
    Dense,
    DenseBias,
    Full,
    Lengths,
    PrefixLM,
    RelativeBias,
    Segments,
    Window,
    attention,
    blockwise,
    explain,
    merge,
)
from zoo.kernels.attention import _run, choose, prepare
from zoo.kernels.axes import MeshAxes
from zoo.kernels.bias import diagonal_sums, toeplitz
from zoo.kernels.call import narrow
from zoo.kernels.cases import CASES, Sizes
from zoo.kernels.dense import evaluate_mask

B, T, S, N, H = 2, 12, 15, 2, 4
LENGTHS = np.array([4, 11], np.int32)
QUERY_IDS, KEY_IDS = (np.sort(np.random.default_rng(i).integers(0, 3, (B, n))) for i, n in ((0, T), (1, S)))
DENSE = np.random.default_rng(2).random((B, 1, T, S)) < 0.5


def inputs(dtype=jnp.float32, num_queries=T, num_keys=S, seed=0):
    rngs = jax.random.split(jax.random.key(seed), 3)
    shapes = ((B, num_queries, N, H), (B, num_keys, N, H), (B, num_keys, N, H))
    return tuple(jax.random.normal(rng, shape, dtype) for rng, shape in zip(rngs, shapes, strict=True))


def pairs(function) -> np.ndarray:
    """A mask by its definition: function(query, key) over the grid, bool [B, T, S]."""
    q, k = np.arange(T)[None, :, None], np.arange(S)[None, None, :]
    return np.broadcast_to(function(q, k), (B, T, S))


ATOMS = {
    "full": (Full(), pairs(lambda q, k: (q >= 0) & (k >= 0))),
    "causal": (Causal(), pairs(lambda q, k: k <= q)),
    "window": (Window(3, 1), pairs(lambda q, k: (q - 3 <= k) & (k <= q + 1))),
    "half window": (Window(None, 2), pairs(lambda q, k: k <= q + 2)),
    "chunked": (Chunked(4), pairs(lambda q, k: q // 4 == k // 4)),
    "prefix": (PrefixLM(LENGTHS), pairs(lambda q, k: (k <= q) | (k < LENGTHS[:, None, None]))),
    "lengths": (Lengths(kv=LENGTHS), pairs(lambda q, k: k < LENGTHS[:, None, None])),
    "query lengths": (Lengths(q=LENGTHS), pairs(lambda q, k: (q < LENGTHS[:, None, None]) & (k >= 0))),
    "segments": (Segments(QUERY_IDS, KEY_IDS), QUERY_IDS[:, :, None] == KEY_IDS[:, None, :]),
    "dense": (Dense(DENSE), DENSE[:, 0]),
}


def allowed(mask) -> np.ndarray:
    """What the op's normal form of a mask allows, bool [B, T, S]."""
    call, _ = prepare(*inputs(), mask)
    found = evaluate_mask(call)
    found = np.ones((1, 1, 1, 1), bool) if found is None else np.asarray(found)
    return np.broadcast_to(found, (B, 1, T, S))[:, 0]


@pytest.mark.parametrize("name", ATOMS)
def test_masks_are_their_definitions(name):
    np.testing.assert_array_equal(allowed(ATOMS[name][0]), ATOMS[name][1])


EXPRESSIONS = st.recursive(
    st.sampled_from(sorted(ATOMS)).map(lambda name: ATOMS[name]),
    lambda parts: st.tuples(st.sampled_from("&|"), parts, parts).map(
        lambda e: (e[1][0] & e[2][0], e[1][1] & e[2][1]) if e[0] == "&" else (e[1][0] | e[2][0], e[1][1] | e[2][1])
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(EXPRESSIONS)
def test_mask_algebra_is_boolean_algebra(expression):
    mask, expected = expression
    np.testing.assert_array_equal(allowed(mask), expected)


@functools.partial(jax.jit, static_argnames=("backend",))
def run(q, k, v, backend, **arguments):
    return attention(q, k, v, backend=backend, **arguments)


BACKENDS = ["dense", "small_blocks"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_separate(backend):
    q, k, v = inputs(num_keys=T)
    ids = jnp.array([[0] * 5 + [1] * 7] * B)
    packed = run(q, k, v, backend, mask=Causal() & Segments(ids, ids))
    for part in (slice(0, 5), slice(5, T)):
        alone = run(q[:, part], k[:, part], v[:, part], backend, mask=Causal())
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_key_order_and_a_constant_change_nothing(backend):
    q, k, v = inputs()
    order = np.random.default_rng(0).permutation(S)
    mask = Causal() & Window(9, None)
    expected = run(q, k, v, backend, mask=mask)
    shuffled = run(q, k[:, order], v[:, order], backend, mask=mask, kv_positions=jnp.asarray(order, jnp.int32))
    np.testing.assert_allclose(shuffled, expected, atol=2e-6)
    shifted = run(q, k, v, backend, mask=mask, bias=DenseBias(jnp.full((1, N, 1, 1), 7.0)))
    np.testing.assert_allclose(shifted, expected, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0, 3])
def test_the_future_cannot_change_the_past(backend, offset):
    q, k, v = inputs()
    later = np.arange(S)[None, :, None, None] > offset + 6
    changed = run(q, jnp.where(later, 9.0, k), jnp.where(later, -9.0, v), backend, mask=Causal(), q_offset=offset)
    expected = run(q, k, v, backend, mask=Causal(), q_offset=offset)
    np.testing.assert_array_equal(changed[:, :7], expected[:, :7])
    assert np.abs(changed[:, 7:] - expected[:, 7:]).max() > 0.1


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_block_size_changes_nothing(rows, columns):
    q, k, v = inputs()
    call, _ = prepare(q, k, v, Causal() & Window(6, None), q_offset=2)
    out, lse = jax.jit(functools.partial(blockwise.attend, block_sizes=(rows, columns)))(call)
    expected, expected_lse = _run(call, None, "dense", "gather", MeshAxes())
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(lse, expected_lse, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_behind_the_mask_never_leaks(backend):
    q, k, v = inputs()
    hidden = (np.arange(S) >= 6)[None, :, None, None]
    dirty_k, dirty_v = (jnp.where(hidden, bad, x) for x, bad in ((k, jnp.nan), (v, jnp.inf)))

    @jax.jit
    def gradient(k, v):
        def loss(q, k, v):
            return jnp.square(attention(q, k, v, mask=Lengths(kv=6), backend=backend)).sum()

        return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

    for dirty, clean in zip(jax.tree.leaves(gradient(dirty_k, dirty_v)), jax.tree.leaves(gradient(k, v)), strict=True):
        np.testing.assert_allclose(dirty, clean, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@jax.debug_nans(True)
def test_rows_without_keys_give_zero(backend):
    q, k, v = inputs()

    def loss(q, k, v):
        out, lse = attention(q, k, v, mask=Lengths(q=5), backend=backend, return_lse=True)
        return jnp.square(out).sum(), (out, lse)

    gradients, (out, lse) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert (out[:, 5:] == 0).all() and jnp.isneginf(lse[:, 5:]).all() and jnp.isfinite(lse[:, :5]).all()
    assert (gradients[0][:, 5:] == 0).all() and all(jnp.isfinite(g).all() for g in gradients)


def test_merge_joins_disjoint_keys():
    q, k, v = inputs()
    expected = attention(q, k, v, return_lse=True)
    parts = [attention(q, k[:, part], v[:, part], return_lse=True) for part in (slice(0, 4), slice(4, S))]
    empty = attention(q, k, v, mask=Lengths(kv=0), return_lse=True)
    for found in (merge(*parts), merge(empty, *parts)):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_decoding_compiles_once():
    q, k, v = inputs(num_queries=1)
    step = jax.jit(lambda n: attention(q, k, v, mask=Causal() & Lengths(kv=n + 1), q_offset=n))
    before = _run._cache_size()
    for length in range(1, 9):
        step(jnp.int32(length))
        attention(q, k, v, mask=Causal(), q_offset=length)
    assert step._cache_size() == 1
    assert _run._cache_size() == before + 1


GROWING = [(case, backward) for case in CASES for backward in (False, True)]


@pytest.mark.parametrize(("case", "backward"), tiered(GROWING, lambda case, backward: backward and case in VARIED))
def test_blockwise_memory_grows_linearly(case, backward):
    """The compiler's count of temporary bytes at 2 S is at most 2.2 times that at S; biases have gradients too."""

    def temp_bytes(length):
        sizes = Sizes(B=1, T=length, S=length, N=2, K=2, H=32, V=32)
        rng = np.random.default_rng(0)
        arguments = CASES[case](rng, sizes)
        trained = {name: arguments.pop(name) for name in ("bias", "sinks") if name in arguments}

        def loss(q, k, v, trained):
            return jnp.square(attention(q, k, v, backend="blockwise", **arguments, **trained)).sum()

        function = jax.grad(loss, (0, 1, 2, 3)) if backward else loss
        compiled = jax.jit(function).lower(*sizes.inputs(rng, jnp.float32), trained).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp_bytes(8192) <= 2.2 * temp_bytes(4096)


@pytest.mark.parametrize("shape", [(1, 5), (20, 37), (64, 48), (96, 96)])
def test_diagonal_sums_transpose_toeplitz(shape):
    rng = np.random.default_rng(0)
    block, vector = (rng.standard_normal(size).astype(np.float32) for size in (shape, (2, sum(shape) - 1)))
    expected = [np.trace(block, offset) for offset in range(1 - shape[0], shape[1])]
    np.testing.assert_allclose(diagonal_sums(jnp.asarray(block)), expected, atol=1e-4)
    matrices = [[[v[s - t + shape[0] - 1] for s in range(shape[1])] for t in range(shape[0])] for v in vector]
    np.testing.assert_array_equal(toeplitz(jnp.asarray(vector), *shape), matrices)


def test_narrow_rounds_as_conversion_does():
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    x = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, 3.4e38, 1.00390625, 1.01171875])])
    x = x[~np.isnan(x)]
    for values, expected in ((x, jnp.asarray(x).astype(jnp.bfloat16)), (np.float32([np.nan]), jnp.bfloat16(np.nan))):
        np.testing.assert_array_equal(np.float32(narrow(jnp.asarray(values), jnp.bfloat16)), np.float32(expected))


def test_wrong_arguments_are_named():
    q, k, v = inputs()
    for arguments, message in (
        ({"backend": "flash"}, "backend='flash' is unknown"),
        ({"mask": Dense(np.ones((1, 1, T, S + 1), bool))}, "16"),
        ({"bias": RelativeBias(jnp.zeros((8, N + 1)))}, "3"),
        ({"bias": ALiBi(jnp.zeros(5))}, "5"),
        ({"dropout_rate": 1.5, "dropout_rng": jax.random.key(0)}, "1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(q, k, v, **arguments)
    with pytest.raises(ValueError, match="3"):
        attention(q[:, :, :1].repeat(3, 2), k, v)


def test_explain_names_the_backend_that_runs():
    q, k, v = (jax.ShapeDtypeStruct((1, 2048, 8, 64), jnp.float32) for _ in range(3))
    said = explain(q, k, v, mask=Causal())
    call, _ = prepare(q, k, v, Causal())
    assert choose(call, "auto") == "blockwise"
    lines = said.splitlines()
    assert "B=1 T=2048" in lines[0]
    assert [line for line in lines if "blockwise" in line] and [line for line in lines if "dense" in line], said
