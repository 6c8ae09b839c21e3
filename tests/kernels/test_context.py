"""A sequence split over the mesh axis `context`: what one device gives, the communication meant and no other."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, VARIED
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiers import tiered

from zoo.kernels import ALiBi, Causal, Lengths, Segments, Window, attention, dense, explain
from zoo.kernels.attention import BACKENDS
from zoo.kernels.cases import Sizes

SIZES = Sizes(B=2, T=32, S=32, N=4, K=2)
MESHES = {
    "context=8": {"context": 8},
    "context=4, tensor=2": {"context": 4, "tensor": 2},
    "data=2, context=2, tensor=2": {"data": 2, "context": 2, "tensor": 2},
}


def mesh(axes, kind=AxisType.Auto):
    devices = jax.devices()[: int(np.prod(list(axes.values())))]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes), devices=devices)


def problem(case, sizes):
    rng = np.random.default_rng(0)
    arguments = ALL[case](rng, sizes) if isinstance(case, str) else case
    return sizes.inputs(rng, jnp.float32), arguments


def evaluate(inputs, arguments, backend="dense", context="gather"):
    """Output, log-sum-exp, and the gradients of q, k, v, bias and sinks by cotangents of both."""
    trained = {name: arguments[name] for name in ("bias", "sinks") if name in arguments}
    fixed = {name: value for name, value in arguments.items() if name not in trained}

    def loss(q, k, v, trained):
        out, lse = attention(q, k, v, **trained, **fixed, backend=backend, context=context, return_lse=True)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        seen = jnp.isfinite(lse)
        total = jnp.where(seen[..., None], out * weight, 0).sum() + jnp.where(seen, lse * weight[..., 0], 0).sum()
        return total, (out, lse)

    return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(*inputs, trained)


@functools.cache
def one_device(case, sizes=SIZES):
    return evaluate(*problem(case, sizes))


def check(case, axes, backend, context, sizes=SIZES):
    expected = one_device(case, sizes)
    with jax.set_mesh(mesh(axes)):
        actual = evaluate(*problem(case, sizes), backend, context)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def rotate(names):
    """Each case once, meshes and backends in turn."""
    meshes, backends = list(MESHES), ["dense", "dense", "dense", "small_blocks"]
    return [(name, meshes[i % 3], backends[i % 4]) for i, name in enumerate(names)]


def is_first(case, *_):
    return case in VARIED[::2]


def is_second(case, *_):
    return case in VARIED[1::2]


@pytest.mark.parametrize(("case", "axes", "backend"), tiered(rotate(ALL), is_first))
def test_gathered_keys_equal_one_device(case, axes, backend):
    check(case, MESHES[axes], backend, "gather")


@pytest.mark.parametrize(("case", "axes", "backend"), tiered(rotate(reversed(ALL)), is_second))
def test_ring_equals_one_device(case, axes, backend):
    check(case, MESHES[axes], backend, "ring")


ONE_QUERY = Sizes(B=2, T=1, S=32, N=4, K=2)


@pytest.mark.parametrize(
    "case",
    tiered(
        ["sinks", "chunked", "prefix", "lengths", "dense_bias", "key_mask", "positions", "offset_array", "dropout"],
        ["sinks", "lengths", "offset_array"],
    ),
)
def test_one_query_equals_one_device(case):
    check(case, MESHES["context=4, tensor=2"], "dense", "gather", ONE_QUERY)


@pytest.mark.parametrize(
    ("axes", "sizes", "context"),
    [
        ({"context": 3}, Sizes(B=1, T=24, S=24, N=2, K=1), "ring"),  # an odd number of devices
        ({"context": 3}, Sizes(B=1, T=24, S=24, N=2, K=1), "gather"),
        ({"context": 4}, Sizes(B=1, T=12, S=20, N=2, K=1), "ring"),  # halves do not divide
        ({"context": 4}, Sizes(B=1, T=16, S=17, N=2, K=1), "ring"),  # keys are not split
        ({"context": 4}, Sizes(B=1, T=15, S=16, N=2, K=1), "ring"),  # queries are not split
        ({"context": 4}, Sizes(B=1, T=15, S=17, N=2, K=1), "ring"),  # nothing is
        ({"data": 2, "context": 2, "tensor": 2}, Sizes(B=1, T=16, S=16, N=3, K=3), "ring"),  # the sequence alone is
    ],
)
def test_any_lengths(axes, sizes, context):
    check("causal", axes, "dense", context, sizes)


LONG = Sizes(B=1, T=128, S=128, N=2, K=1)


@pytest.fixture
def compiled_masks():
    """A backend that takes no dynamic offset, as kernels do whose masks are compiled in."""
    supports = lambda call: None if call.static_offset == 0 else "q_offset is dynamic"  # noqa: E731
    BACKENDS["compiled_masks"] = types.SimpleNamespace(attend=dense.attend, supports=supports, PLATFORM=None)
    yield
    del BACKENDS["compiled_masks"]


def test_backends_with_compiled_masks(compiled_masks):
    check("packed", {"context": 4}, "compiled_masks", "ring", LONG)
    check("packed_full", {"context": 2}, "compiled_masks", "gather")
    with jax.set_mesh(mesh({"context": 4})), pytest.raises(ValueError, match="q_offset is dynamic"):
        attention(*problem("causal", LONG)[0], mask=Causal(), backend="compiled_masks")


def split(axes=("context",), kind=AxisType.Auto, num=4):
    """Shardings of q, k and v over the sequence of a mesh of one axis."""
    found = mesh({"context": num}, kind)
    return found, NamedSharding(found, PartitionSpec(None, *axes))


def compiled(sizes, num, context="gather", gradient=False, backend="blockwise", split_queries=True, **arguments):
    """The program of one device whose arguments come split."""
    found, sharding = split(num=num)
    step = functools.partial(attention, backend=backend, context=context, **arguments)
    function = jax.grad(lambda q, k, v: step(q, k, v).sum(), (0, 1, 2)) if gradient else step
    shapes = jax.eval_shape(lambda: sizes.inputs(np.random.default_rng(0), jnp.float32))
    queries = sharding if split_queries else NamedSharding(found, PartitionSpec())
    with jax.set_mesh(found):
        return jax.jit(function, in_shardings=(queries, sharding, sharding)).lower(*shapes).compile()


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def collectives(program):
    return {name for name in COLLECTIVES if name in str(program.as_text())}


def test_collectives():
    assert collectives(compiled(SIZES, 4)) == {"all-gather"}
    assert collectives(compiled(SIZES, 4, mask=Causal())) == {"all-gather", "collective-permute"}
    assert collectives(compiled(SIZES, 4, "ring", mask=Causal())) == {"collective-permute"}
    assert collectives(compiled(SIZES, 4, "ring", gradient=True, mask=Causal())) == {"collective-permute"}
    assert "all-gather" not in collectives(compiled(SIZES, 4, "ring", mask=Causal() & Window(8, None)))


def test_decoding_moves_no_keys():
    for arguments in ({}, {"mask": Lengths(kv=20), "q_offset": jnp.int32(19)}):
        program = compiled(ONE_QUERY, 4, split_queries=False, **arguments)
        assert collectives(program) == {"all-reduce"}
        assert "f32[2,32,2,8]" not in str(program.as_text())  # the whole cache


def temporaries(num, context):
    """Bytes a device needs beside arguments and results, for a gradient over 64 tokens a device."""
    sizes = Sizes(B=1, T=64 * num, S=64 * num, N=2, K=2, H=32, V=32)
    return compiled(sizes, num, context, gradient=True, mask=Causal()).memory_analysis().temp_size_in_bytes


def test_memory_of_the_ring_is_one_devices_share():
    # From four on, as two need a tenth less.
    assert temporaries(8, "ring") < 1.05 * temporaries(4, "ring")
    assert temporaries(8, "gather") > 2 * temporaries(2, "gather")


def test_explicit_axes():
    inputs, _ = problem("full", SIZES)
    expected = attention(*inputs, mask=Causal())
    found, sharding = split(kind=AxisType.Explicit)
    with jax.set_mesh(found):
        for context in ("gather", "ring"):
            out = attention(*(jax.device_put(x, sharding) for x in inputs), mask=Causal(), context=context)
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("context", ["gather", "ring"])
def test_what_is_masked_or_not_finite_stays_on_its_rows(context):
    """NaN in one key: rows that see it are NaN and have no gradient, on all devices; others are as ever."""
    (q, k, v), _ = problem("full", SIZES)
    inputs = q, k.at[:, 20].set(jnp.nan), v.at[:, 25].set(jnp.inf)
    arguments = {"mask": Causal() & Segments(jnp.arange(32)[None] // 24), "sinks": jnp.zeros(4)}
    expected = evaluate(inputs, arguments)
    with jax.set_mesh(mesh({"context": 4})):
        actual = evaluate(inputs, arguments, context=context)
    assert jnp.isnan(actual[1][0]).any()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(actual[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_not_finite_keys_in_decoding():
    (q, k, v), _ = problem("full", ONE_QUERY)
    inputs = q, k.at[0, 20].set(jnp.nan), v
    expected = evaluate(inputs, {"sinks": jnp.zeros(4)})
    with jax.set_mesh(mesh({"context": 4})):
        actual = evaluate(inputs, {"sinks": jnp.zeros(4)})
    assert jnp.isnan(actual[1][0][0]).all()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(actual[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_rematerialisation_and_vmap():
    (q, k, v), _ = problem("full", Sizes(B=1, T=16, S=16, N=2, K=2))

    def loss(q, k, v):
        step = jax.checkpoint(lambda q: attention(q, k, v, mask=Causal(), backend="dense", context="ring"))
        return (step(q) ** 2).sum()

    gradient = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)), axis_size=2))
    inputs = [jnp.stack([x, x[:, ::-1]]) for x in (q, k, v)]
    expected = gradient(*inputs)
    with jax.set_mesh(mesh({"context": 2})):
        actual = gradient(*inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_errors_and_explain():
    with pytest.raises(ValueError, match=r"context='all'.*gather, ring"):
        attention(*problem("full", SIZES)[0], context="all")
    shape = jax.ShapeDtypeStruct((1, 1024, 4, 64), jnp.float32)
    with jax.set_mesh(mesh({"context": 8})):
        assert "T=64 S=1024" in explain(shape, shape, shape, mask=Causal(), bias=ALiBi(jnp.zeros(4)))
        report = explain(shape, shape, shape, mask=Causal(), context="ring")
        assert "T=64 S=64" in report
        assert "runs on dense" in report
    assert "runs on blockwise" in explain(shape, shape, shape, mask=Causal())
