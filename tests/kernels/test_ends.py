"""Calls at the ends of what arguments take, and inside transformations and environments of users."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from zoo.kernels import (
    ALiBi,
    Causal,
    Chunked,
    Dense,
    DenseBias,
    Lengths,
    PrefixLM,
    RelativeBias,
    Segments,
    Window,
    attention,
    explain,
    mesh_axes,
    paged_attention,
    splash,
)
from zoo.kernels.attention import prepare
from zoo.kernels.tiles import Grid
from zoo.partition import split_rows

BACKENDS = ("dense", "small_blocks")


def qkv(length=24, num_keys=None, dtype=jnp.float32, heads=1):
    rng = np.random.default_rng(0)
    shape = (1, num_keys or length, heads, 8)
    return tuple(jnp.asarray(rng.standard_normal(s), dtype) for s in ((1, length, heads, 8), shape, shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_ids_at_the_ends_of_their_type_are_ids_like_others(dtype, backend):
    info = np.iinfo(dtype)
    q, k, v = qkv()
    for mine, other in ((0, info.max), (info.max, info.min), (info.max - 1, info.max), (info.min + 1, info.min)):
        ids = jnp.asarray(np.repeat(np.array([[mine, other]], dtype), 12, axis=1))
        moved = v.at[:, 12:].set(100.0)
        before, after = (attention(q, k, x, mask=Segments(ids), backend=backend)[:, :12] for x in (v, moved))
        np.testing.assert_array_equal(before, after)


def test_ids_of_splash_may_be_those_of_its_padding():
    """The library compares two ids alone: padding has ids of its own, which a document may have too."""
    ids = jnp.asarray([[splash.OWN_Q, splash.OWN_KEY, 5, splash.OWN_Q]])
    q, k, v = qkv(4)
    call, _ = prepare(q, k, v, Segments(ids))
    q_ids, kv_ids = splash.segment_ids(call, Grid.cut(4, 4, (8, 8)))
    wanted = np.zeros((8, 8), bool)
    wanted[:4, :4] = np.asarray(ids[0])[:, None] == np.asarray(ids[0])
    found = np.asarray(q_ids[0])[:, None] == np.asarray(kv_ids[0])
    np.testing.assert_array_equal(found[:4], wanted[:4])


def test_ids_of_64_bits_are_told_apart_or_refused():
    ids = np.array([[0, 2**32, 0, 2**32]])
    q, k, v = qkv(4)
    with pytest.raises(ValueError, match="some ids are larger"):
        attention(q, k, v, mask=Segments(ids))
    with pytest.raises(ValueError, match="no type holds ids of both int32 and uint32"):
        attention(q, k, v, mask=Segments(ids.astype(np.int32), ids.astype(np.uint32)))
    with jax.enable_x64(True):
        for backend in BACKENDS:
            found = attention(q, k, v, mask=Segments(jnp.asarray(ids)), backend=backend)
            np.testing.assert_allclose(
                found, attention(q, k, v, mask=Segments(np.array([[0, 1, 0, 1]])), backend=backend), atol=1e-6
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_beyond_int32_are_large_and_none_wraps(backend):
    q, k, v = qkv()
    whole = attention(q, k, v, backend=backend)
    for mask in (
        Lengths(kv=jnp.asarray([2**32 - 1], jnp.uint32)), Lengths(kv=2**40), Window(2**31 - 1, 2**31 - 1),
        Window(2**40, None), Chunked(2**33), PrefixLM(jnp.asarray(2**32 - 1, jnp.uint32)), None,
    ):  # fmt: skip
        np.testing.assert_allclose(attention(q, k, v, mask=mask, backend=backend), whole, atol=1e-6)
    least = jnp.asarray([-(2**31)], jnp.int32)
    assert (attention(q, k, v, mask=Lengths(kv=least), backend=backend) == 0).all()
    with pytest.raises(ValueError, match="positions lie between"):
        attention(q, k, v, mask=Causal(), q_offset=2**40)
    with pytest.raises(ValueError, match="positions lie between"):
        attention(q, k, v, mask=Causal(), kv_positions=np.arange(24) + 2**32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_second_derivatives_of_blocks_are_those_of_the_dense_backend(dtype):
    q, k, v = qkv(40, dtype=dtype, heads=2)
    tangents = qkv(40, dtype=dtype, heads=2)[::-1]

    def product(backend):
        def loss(*x):
            return (attention(*x, mask=Causal(), backend=backend).astype(jnp.float32) ** 2).sum()

        return jax.jit(lambda *x: jax.jvp(jax.grad(loss, (0, 1, 2)), x, tangents)[1])(q, k, v)

    for found, wanted in zip(product("small_blocks"), product("dense"), strict=True):
        found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
        assert np.linalg.norm(found - wanted) < {"float32": 1e-5}.get(dtype, 5e-2) * np.linalg.norm(wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [-1e6, -1e8, -1e9, -1e10, -1e20, 1e9])
def test_a_bias_that_moves_all_keys_alike_moves_no_gradient(value, backend):
    q, k, v = qkv(20, 30)
    gradient = jax.jit(
        jax.grad(lambda bias, v: attention(q * 0, k, v, bias=DenseBias(bias), backend=backend).sum(), (0, 1))
    )
    found, wanted = (gradient(jnp.full((1, 1, 1, 30), x), v) for x in (value, 0.0))
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_padding_have_no_gradient_however_large_a_bias(backend):
    q, k, v = qkv(21)
    for bias in (ALiBi(jnp.array([-20.0])), DenseBias(jnp.full((1, 1, 1, 21), 95.0)),
                 RelativeBias(jnp.full((4, 1), 200.0), max_distance=8)):  # fmt: skip
        found = jax.grad(
            lambda *x, bias=bias: attention(*x, mask=Causal(), bias=bias, backend=backend).sum(), (0, 1, 2)
        )
        assert all(np.isfinite(x).all() for x in found(q, k, v))


@pytest.mark.parametrize("backend", [*BACKENDS, "decode", "split_k"])
def test_a_bias_of_minus_infinity_hides_under_a_soft_cap_too(backend):
    q, k, v = qkv(3, 30)
    seen = np.arange(30) % 3 > 0
    for hidden in (-np.inf, np.finfo(np.float32).min):
        bias = DenseBias(jnp.where(jnp.asarray(seen), 1.0, hidden)[None, None, None])
        masked = {"bias": DenseBias(jnp.ones((1, 1, 1, 30))), "mask": Dense(jnp.asarray(seen)[None, None, None])}
        found, wanted = (
            jax.grad(lambda v, a=a: attention(q, k, v, softcap=5.0, backend=backend, **a).sum())(v)
            for a in ({"bias": bias}, masked)
        )
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert (found[:, ~seen] == 0).all()


def test_paged_attention_refuses_what_attention_refuses():
    q, _, _ = qkv(1)
    pages = jnp.ones((4, 4, 1, 8))
    call = functools.partial(paged_attention, q, pages, pages, [[0, 1]], [8])
    assert call(window=np.int64(3)).shape == q.shape and call(window=2**40).shape == q.shape
    for options, message in (
        ({"softcap": 0.0}, "above 0"), ({"softcap": -1.0}, "above 0"), ({"scale": float("nan")}, "finite"),
        ({"softcap": jnp.asarray(3.0)}, "compiled in"), ({"scale": jnp.asarray(1.0)}, "compiled in"),
        ({"window": -1}, "counts keys"), ({"window": jnp.asarray(3)}, "counts keys"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call(**options)


def test_a_chunk_of_a_prompt_over_pages_takes_little_memory():
    """8 sequences of 512 queries and 32 heads: logits of 2,048 keys for all would be a gigabyte and more."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 512, 32, 64), (512, 16, 8, 64), (512, 16, 8, 64))
    ]
    table, lengths = jax.ShapeDtypeStruct((8, 256), jnp.int32), jax.ShapeDtypeStruct((8,), jnp.int32)
    compiled = jax.jit(paged_attention).lower(*shapes, table, lengths).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 800e6


@pytest.mark.parametrize("backend", [*BACKENDS, "decode", "split_k"])
def test_64_bit_mode_changes_nothing(backend):
    q, k, v = qkv(3, 300)
    arguments = {"mask": Causal() & Window(200, None), "q_offset": 290, "bias": ALiBi(jnp.ones(1))}
    run = jax.grad(lambda *x: attention(*x, **arguments, backend=backend).sum(), (0, 1, 2))
    wanted = run(q, k, v)
    with jax.enable_x64(True):
        for found, expected in zip(run(q, k, v), wanted, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("backend", "length"), [("dense", 24), ("small_blocks", 24), ("decode", 2), ("split_k", 2)])
def test_inside_a_shard_map_of_a_user_who_checks_what_varies(backend, length):
    mesh = jax.make_mesh((2, 2), ("dp", "tp"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((4, length, 4, 8), (4, 24, 2, 8), (4, 24, 2, 8))
    )
    table, sinks, lengths = jnp.ones((8, 4)), jnp.ones(4), jnp.asarray([24, 3, 1, 0])

    def run(q, k, v, lengths, table, sinks):
        mask = Lengths(kv=lengths) & Causal()
        return attention(q, k, v, mask=mask, bias=RelativeBias(table), sinks=sinks, q_offset=3, backend=backend)

    heads = P("dp", None, "tp")
    split = jax.shard_map(run, mesh=mesh, in_specs=(heads,) * 3 + (P("dp"), P(None, "tp"), P("tp")), out_specs=heads)
    inputs = q, k, v, lengths, table, sinks
    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: (f(*x) ** 2).sum(), (0, 1, 2, 4, 5)))(*inputs) for f in (split, run)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-5), found, wanted)


def other_mesh(kind):
    return jax.make_mesh((2, 2), ("dp", "tp"), axis_types=(kind,) * 2, devices=jax.devices()[:4])


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mesh_of_other_names_is_refused_until_they_are_given(backend):
    mesh, spec = other_mesh(AxisType.Auto), P("dp", None, "tp")
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.standard_normal((4, 24, heads, 8)), jnp.float32) for heads in (4, 2, 2)]
    wanted = attention(*inputs, backend=backend)
    run = jax.jit(lambda *x: attention(*x, backend=backend), in_shardings=jax.NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        with pytest.raises(ValueError, match=r"the mesh has the axes dp, tp, and none is one of data.*mesh_axes"):
            run(*inputs)
        with pytest.raises(ValueError, match="mesh_axes"):
            split_rows(jnp.ones((4, 24, 8)))
        with mesh_axes(batch="dp", heads="tp"):
            text = run.lower(*inputs).compile().as_text()
            assert not any(word in text for word in COLLECTIVES)
            np.testing.assert_allclose(run(*inputs), wanted, atol=1e-6)
        with mesh_axes(batch="dp", sequence="tp"):
            out = jax.jit(lambda *x: attention(*x, backend=backend, context="ring"))(*inputs)
            np.testing.assert_allclose(out, wanted, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ambient", [False, True])
def test_axes_that_are_part_of_types_need_no_names(backend, ambient):
    mesh, spec = other_mesh(AxisType.Explicit), P("dp", None, "tp", None)
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(rng.standard_normal((4, 24, heads, 8)), jnp.float32) for heads in (4, 2, 2)]
    wanted = attention(*inputs, mask=Causal(), backend=backend)
    inputs = [jax.device_put(x, jax.NamedSharding(mesh, spec)) for x in inputs]
    with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
        out = attention(*inputs, mask=Causal(), backend=backend)
        assert jax.typeof(out).sharding.spec == spec
        np.testing.assert_allclose(out, wanted, atol=1e-6)


@pytest.mark.parametrize("sizes", ["b, 160, 2, 8", "2, t, 2, 8", "b, t, 2, 8"])
def test_symbolic_sizes_are_exported(sizes):
    shape = export.symbolic_shape(sizes)
    run = lambda x: attention(x, x, x, mask=Causal() & Lengths(q=9), bias=ALiBi(jnp.ones(2)))  # noqa: E731
    exported = export.export(jax.jit(run))(jax.ShapeDtypeStruct(shape, jnp.float32))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 160, 2, 8)), jnp.float32)
    np.testing.assert_allclose(exported.call(x), run(x), atol=1e-6)
    with pytest.raises(ValueError, match="symbolic") if "t" in sizes else contextlib.nullcontext():
        export.export(jax.jit(lambda x: attention(x, x, x, backend="blockwise")))(
            jax.ShapeDtypeStruct(shape, jnp.float32)
        )


@pytest.mark.parametrize("backend", ["dense", "decode", "split_k", "auto"])
def test_few_queries_have_derivatives_of_all_modes_and_orders(backend):
    q, k, v = qkv(3, 30)
    loss = lambda *x: (attention(*x, mask=Causal(), q_offset=20, backend=backend) ** 2).sum()  # noqa: E731
    _, slope = jax.jvp(loss, (q, k, v), (q, k, v))
    gradients = jax.grad(loss, (0, 1, 2))(q, k, v)
    np.testing.assert_allclose(slope, sum((g * x).sum() for g, x in zip(gradients, (q, k, v), strict=True)), rtol=1e-5)
    twice = jax.grad(lambda q: (jax.grad(loss)(q, k, v) * q).sum())(q)
    forward = jax.jvp(jax.grad(lambda q: loss(q, k, v)), (q,), (q,))[1] + jax.grad(loss)(q, k, v)
    np.testing.assert_allclose(twice, forward, atol=1e-4)


def test_who_has_no_forward_mode_says_who_has():
    q, k, v = qkv()
    with pytest.raises(TypeError, match="backend='dense' has derivatives of all modes"):
        jax.jvp(lambda q: attention(q, k, v, backend="small_blocks"), (q,), (q,))


@pytest.mark.parametrize("backend", ["decode", "split_k", "small_blocks"])
def test_a_mapped_step_runs_one_branch(backend):
    """A cond over a mapped condition would become a select of both branches."""
    q, k, v = (jnp.stack([x] * 3) for x in qkv(1, 600))
    lengths = jnp.asarray([[5], [600], [0]])
    step = lambda q, k, v, kv: attention(q, k, v, mask=Lengths(kv=kv), backend=backend)  # noqa: E731
    mapped = jax.vmap(step)
    found = mapped(q, k, v, lengths)
    np.testing.assert_allclose(found, jnp.stack([step(*x) for x in zip(q, k, v, lengths, strict=True)]), atol=1e-6)
    one, all_ = (
        str(jax.make_jaxpr(f)(*x)).count("cond[")
        for f, x in ((step, (q[0], k[0], v[0], lengths[0])), (mapped, (q, k, v, lengths)))
    )
    assert one == all_ > 0
    spoilt = k.at[1, 0, 3, 0].set(jnp.nan)
    assert np.isnan(mapped(q, spoilt, v, lengths)[1]).all() and np.isfinite(mapped(q, spoilt, v, lengths)[0]).all()


def test_lists_and_structs_are_taken():
    q, k, v = qkv(4)
    for mask in (Segments([[0, 0, 1, 1]]), Dense([[True] * 4] * 4), Lengths(kv=[3])):
        assert attention(q, k, v, mask=mask, bias=DenseBias([[0.0] * 4] * 4), sinks=[1.0]).shape == q.shape
    struct = jax.ShapeDtypeStruct
    text = explain(
        *(struct(x.shape, x.dtype) for x in (q, k, v)), mask=Lengths(kv=struct((1,), jnp.int32)),
        q_offset=struct((1,), jnp.int32), kv_positions=struct((1, 4), jnp.int32),
    )  # fmt: skip
    assert "runs on" in text
    with pytest.raises(TypeError, match="explain takes no soft_cap"):
        explain(q, k, v, soft_cap=3.0)
    with pytest.raises(ValueError, match=r"float8_e4m3fn.*cast all three"):
        attention(*(x.astype(jnp.float8_e4m3fn) for x in (q, k, v)))
