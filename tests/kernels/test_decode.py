"""Few queries against a long cache: split over blocks of keys, and over pages."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, VARIED, compare
from tiers import tiered

from zoo.kernels import Causal, Lengths, Window, attention, decode, online, paged, paged_attention, split_k
from zoo.kernels.cases import Sizes, fits

# The package's attribute of this name is the function.
module = importlib.import_module("zoo.kernels.attention")

# Three blocks of two chunks and the rest of a fourth, which begins early.
SEVERAL = Sizes(T=3, S=59, K=2, V=12)
ONE_QUERY = Sizes(T=1, S=59, K=2)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(online, "CHUNK", 8)
    monkeypatch.setattr(split_k, "block_size", lambda call: min(16, call.sizes[2]))
    module._run.clear_cache()
    yield
    module._run.clear_cache()


def test_a_caller_who_vouches_for_what_is_hidden_gets_the_same():
    rng = np.random.default_rng(0)
    q, k, v = ONE_QUERY.inputs(rng, jnp.float32)
    mask = Lengths(kv=9)
    k, v = (x.at[:, 9:].set(0) for x in (jnp.asarray(k), jnp.asarray(v)))
    careful, trusting = (attention(q, k, v, mask=mask, hidden_is_finite=told) for told in (False, True))
    np.testing.assert_array_equal(careful, trusting)
    # What is seen is not vouched for: it still turns its row to NaN.
    assert jnp.isnan(attention(q, k, v.at[:, 2].set(jnp.nan), mask=mask, hidden_is_finite=True)).all()


@pytest.mark.parametrize("case", tiered(ALL, VARIED))
def test_first_keys_alone_float32(case, monkeypatch):
    """Where all that is seen is in the first half or quarter of the keys."""
    monkeypatch.setattr(decode, "MIN_KEYS", 8)
    module._run.clear_cache()
    sizes, rng = SEVERAL if fits(case, SEVERAL) else Sizes(T=14, S=14), np.random.default_rng(7)
    arguments, inputs = ALL[case](rng, sizes), sizes.inputs(rng, jnp.float32)
    for filled in (1, 8, 9, 30, 31, sizes.S):
        seen = Lengths(kv=min(filled, sizes.S)) & arguments.get("mask", Lengths())
        given = arguments | {"mask": seen, "return_lse": True}
        results = [attention(*inputs, **given, backend=name) for name in ("dense", "decode")]
        for expected, actual in zip(*results, strict=True):
            np.testing.assert_allclose(actual, expected, atol=2e-5)
    module._run.clear_cache()


def test_room_that_is_not_filled_is_not_read():
    prefixes = [decode.prefixes(n) for n in (256, 511, 600, 1024, 4096)]
    assert prefixes == [(256,), (511,), (300, 600), (256, 512, 1024), (1024, 2048, 4096)]
    q, k, v = Sizes(T=1, S=1024).inputs(np.random.default_rng(0), jnp.float32)
    for filled, read in ((1, 256), (256, 256), (257, 512), (600, 1024)):
        call = _call(q, k, v.at[:, read:].set(jnp.nan), mask=Lengths(kv=filled))
        assert jnp.isfinite(decode._attend(call)[0]).all()
        call = _call(q, k, v.at[:, read - 1].set(jnp.nan), mask=Lengths(kv=min(filled, read - 1)))
        assert jnp.isnan(decode._attend(call)[0]).any()  # within, hidden keys are read; `attend` sees to those


@pytest.mark.parametrize("case", tiered(ALL, VARIED))
def test_split_k_float32(case, small_chunks):
    """Output and log-sum-exp; the gradient is the dense backend's."""
    sizes, rng = SEVERAL if fits(case, SEVERAL) else Sizes(T=14, S=14), np.random.default_rng(7)
    arguments = ALL[case](rng, sizes)
    inputs = sizes.inputs(rng, jnp.float32)
    results = [attention(*inputs, **arguments, backend=name, return_lse=True) for name in ("dense", "split_k")]
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("case", ["lengths", "sinks_dropout"])
def test_split_k_oracle(case, small_chunks):
    compare(case, SEVERAL, jnp.float32, ["split_k"], 1e-6)


@pytest.mark.parametrize("case", ["padding", "sinks", "positions"])
def test_split_k_one_query_bfloat16(case, small_chunks):
    compare(case, ONE_QUERY, jnp.bfloat16, ["split_k"], 1e-2)


def test_block_sizes():
    """Whole chunks, enough for an accelerator, never beyond the cache."""
    shapes = {(1, 8, 32768): 8192, (64, 8, 32768): 1024, (64, 8, 700): 512, (1, 1, 100): 100}
    for (batch, heads, num_keys), expected in shapes.items():
        q, k = (jax.ShapeDtypeStruct((batch, length, heads, 64), jnp.bfloat16) for length in (1, num_keys))
        assert split_k.block_size(_call(q, k, k)) == expected


def _call(q, k, v, **arguments):
    return module.prepare(q, k, v, **arguments)[0]


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


@jax.debug_nans(True)
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


PAGE, NUM_PAGES, LENGTHS = 4, 40, (30, 7, 0)


def pages_of(k, v, lengths, rng, dtype=jnp.float32):
    """Keys and values cut into pages in random order, NaN wherever nothing was written, and the table."""
    table = rng.permutation(NUM_PAGES)[: 3 * 8].reshape(3, 8).astype(np.int32)
    arrays = []
    for x in (k, v):
        pages = np.full((NUM_PAGES, PAGE, *x.shape[2:]), np.nan)
        for b, length in enumerate(lengths):
            for s in range(length):
                pages[table[b, s // PAGE], s % PAGE] = x[b, s]
        arrays.append(jnp.asarray(pages, dtype))
    for b, length in enumerate(lengths):
        table[b, -(-length // PAGE) :] = 2**30 if b else -1  # not even a page
    return *arrays, jnp.asarray(table)


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(paged, "BLOCK_KEYS", 3 * PAGE)
    monkeypatch.setattr(online, "CHUNK", PAGE)
    paged._attend.clear_cache()
    yield
    paged._attend.clear_cache()


def problem(num_queries, lengths=LENGTHS, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    q, k, v = Sizes(B=3, T=num_queries, S=32, K=2, V=12).inputs(rng, dtype)
    return q, k, v, pages_of(np.asarray(k, float), np.asarray(v, float), lengths, rng, dtype), jnp.asarray(lengths)


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize(
    "arguments", [{}, {"window": 5, "scale": 0.3}, {"softcap": 2.0, "sinks": jnp.arange(4.0)}], ids=str
)
def test_paged_equals_contiguous(num_queries, arguments, small_pages):
    q, k, v, (k_pages, v_pages, table), lengths = problem(num_queries)
    actual = paged_attention(q, k_pages, v_pages, table, lengths, **arguments, return_lse=True)
    mask = Causal() & Window(arguments.get("window"), None) & Lengths(kv=lengths)
    others = {name: value for name, value in arguments.items() if name != "window"}
    expected = attention(q, k, v, mask=mask, q_offset=lengths - num_queries, backend="dense", return_lse=True, **others)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert (actual[0][2] == 0).all()


def test_paged_bfloat16(small_pages):
    q, k, v, (k_pages, v_pages, table), lengths = problem(2, dtype=jnp.bfloat16)
    actual = paged_attention(q, k_pages, v_pages, table, lengths)
    expected = attention(q, k, v, mask=Causal() & Lengths(kv=lengths), q_offset=lengths - 2, backend="dense")
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(jnp.float32), expected.astype(jnp.float32), atol=2e-2)


def test_paged_sequences_share_pages(small_pages):
    """A common prefix lies in memory once."""
    q, k, v, (k_pages, v_pages, table), _ = problem(1, lengths=(32, 32, 32))
    shared = table.at[1:, :5].set(table[0, :5])
    k, v = (x.at[1:, : 5 * PAGE].set(x[0, : 5 * PAGE]) for x in (k, v))
    lengths = jnp.asarray([32, 27, 22])
    actual = paged_attention(q, k_pages, v_pages, shared, lengths)
    expected = attention(q, k, v, mask=Lengths(kv=lengths), backend="dense")
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_paged_visible_nan_reaches_the_rows_that_see_it(small_pages):
    q, _, _, (k_pages, v_pages, table), lengths = problem(3, lengths=(30, 9, 4))
    spoilt = v_pages.at[table[0, 7], 0, 1, 0].set(jnp.nan)  # position 28, which the last two of 27, 28, 29 see
    clean, dirty = (paged_attention(q, k_pages, x, table, lengths) for x in (v_pages, spoilt))
    expected = np.zeros((3, 3, 4), bool)
    expected[0, 1:, 2:] = True
    np.testing.assert_array_equal(np.isnan(dirty).all(-1), expected)
    np.testing.assert_allclose(dirty[~expected], clean[~expected], atol=1e-6)


def test_paged_steps_compile_once(small_pages):
    q, _, _, (k_pages, v_pages, table), _ = problem(1)
    for length in (3, 20, 29):
        paged_attention(q, k_pages, v_pages, jnp.roll(table, length), jnp.full(3, length))
    assert paged._attend._cache_size() == 1


def test_paged_gathers_few_pages_at_once():
    """Memory beside the arguments does not grow with the table."""

    def temporary(pages_each):
        shapes = [(2, 1, 8, 64)] + [(2 * pages_each, 16, 8, 64)] * 2
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        arguments += [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, pages_each), (2,))]
        return jax.jit(paged_attention).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary(1024) < 1.1 * temporary(256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"page_table": jnp.zeros((2, 8), jnp.int32)}, r"\[3, pages"),
        ({"lengths": jnp.zeros(3)}, "lengths is float32"),
        ({"v_pages": jnp.zeros((40, 5, 2, 12))}, "first 3 axes"),
        ({"k_pages": jnp.zeros((40, 4, 2, 12))}, "heads do not fit"),
        ({"q": jnp.zeros((3, 1, 4, 8), jnp.bfloat16)}, "cast all three to one of"),
        ({"window": -1}, "counts keys"),
        ({"sinks": jnp.zeros(2)}, r"\[4\]"),
    ],
)
def test_paged_errors_name_the_value_and_the_mend(arguments, message):
    q, _, _, (k_pages, v_pages, page_table), lengths = problem(1)
    given = {"q": q, "k_pages": k_pages, "v_pages": v_pages, "page_table": page_table, "lengths": lengths}
    with pytest.raises(ValueError, match=message):
        paged_attention(**(given | arguments))
