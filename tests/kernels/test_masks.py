"""The normal form of masks against their definition, and the blocks that it lets kernels skip."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from oracle import allowed_pairs

from zoo.kernels import Causal, Chunked, Dense, Full, Lengths, PrefixLM, Segments, Window
from zoo.kernels.attention import prepare
from zoo.kernels.cases import Sizes, documents
from zoo.kernels.dense import evaluate_mask
from zoo.kernels.schedule import plan
from zoo.kernels.tiles import Grid, MaskTiles

B, T, S, N = 2, 11, 13, 2

_counts = st.integers(0, S).map(lambda n: jnp.asarray([n, (n * 5) % (S + 1)], jnp.int32))
_atoms = st.one_of(
    st.just(Full()),
    st.just(Causal()),
    st.builds(Window, st.one_of(st.none(), st.integers(0, 9)), st.one_of(st.none(), st.integers(0, 9))),
    st.builds(Chunked, st.integers(1, 7)),
    st.builds(PrefixLM, st.one_of(st.integers(0, S), _counts)),
    st.builds(Lengths, st.one_of(st.none(), _counts), st.one_of(st.none(), st.integers(0, S), _counts)),
    st.integers(0, 99).map(lambda seed: Segments(*(documents(np.random.default_rng(seed), B, n, 3) for n in (T, S)))),
    st.integers(0, 99).map(lambda seed: Dense(jnp.asarray(np.random.default_rng(seed).random((B, 1, T, S)) < 0.5))),
)
_masks = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=4,
)
few = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


def call_of(mask, q_offset=0, kv_positions=None):
    q, k, v = Sizes(B=B, T=T, S=S, N=N, K=N, H=4, V=4).inputs(np.random.default_rng(0), jnp.float32)
    return prepare(q, k, v, mask, q_offset=q_offset, kv_positions=kv_positions)[0]


def allowed(mask, **positions):
    result = evaluate_mask(call_of(mask, **positions))
    return np.broadcast_to(True if result is None else np.asarray(result), (B, N, T, S))


@few
@hypothesis.given(_masks, st.integers(-3, 9))
def test_normal_form_is_the_definition(mask, q_offset):
    positions = np.broadcast_to(np.arange(T) + q_offset, (B, T)), np.broadcast_to(np.arange(S), (B, S))
    expected = allowed_pairs(mask, (B, N, T, S), *positions)
    np.testing.assert_array_equal(allowed(mask, q_offset=q_offset), expected)


@few
@hypothesis.given(_masks, st.permutations(list(range(S))))
def test_normal_form_at_other_key_positions(mask, order):
    keys = np.broadcast_to(np.asarray(order), (B, S))
    expected = allowed_pairs(mask, (B, N, T, S), np.broadcast_to(np.arange(T), (B, T)), keys)
    np.testing.assert_array_equal(allowed(mask, kv_positions=jnp.asarray(order, jnp.int32)), expected)


@few
@hypothesis.given(_masks, st.integers(-3, 9), st.sampled_from([(2, 4), (4, 2), (3, 5), (16, 16)]))
def test_no_live_block_is_skipped(mask, q_offset, block_sizes):
    call = call_of(mask, q_offset=q_offset)
    grid = Grid.cut(T, S, block_sizes)
    live = np.asarray(MaskTiles(call, grid).live(per_batch=True))
    pairs = np.zeros((B, grid.num_queries, grid.num_keys), bool)
    pairs[:, :T, :S] = allowed(mask, q_offset=q_offset)[:, 0]
    blocks = pairs.reshape(B, grid.num_query_blocks, grid.block_q, grid.num_key_blocks, grid.block_k).any((2, 4))
    assert (live | ~blocks).all()
    schedule = plan(live)
    for batch, row in np.ndindex(live.shape[:2]):
        visited = schedule.order[batch, row][: schedule.num_live[batch, row]]
        np.testing.assert_array_equal(np.sort(visited), np.flatnonzero(live[batch, row]))


def test_static_masks_skip_blocks_at_trace_time():
    for mask, expected in ((Causal(), 10), (Window(0, 0), 4), (Chunked(256), 4), (Full(), 16)):
        sizes = Sizes(B=1, T=1024, S=1024, N=1, K=1, H=1, V=1)
        call = prepare(*(jax.ShapeDtypeStruct((1, 1024, 1, 1), jnp.float32),) * 3, mask)[0]
        live = MaskTiles(call, Grid.cut(sizes.T, sizes.S, (256, 256))).live(per_batch=True)
        assert isinstance(live, np.ndarray)
        assert live.sum() == expected, mask


def test_masks_of_different_classes_are_different_trees():
    """Else jit would now and then run one mask's program for another, as JAX 0.10 does with dataclasses."""
    ids = jnp.zeros((B, T), jnp.int32)
    masks = [Full(), Causal(), Window(3, 4), Window(4, 3), Chunked(3), Chunked(4), PrefixLM(ids), Dense(ids)]
    masks += [Lengths(ids), Lengths(None, ids), Segments(ids), Causal() & Full(), Causal() | Full(), Full() & Causal()]
    structures = [jax.tree.structure(mask) for mask in masks]
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])
    assert jax.tree.structure(Causal() & Lengths(ids)) == jax.tree.structure(Causal() & Lengths(ids + 1))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(Causal() & Lengths(ids))]
    assert paths == [".right.q"]
