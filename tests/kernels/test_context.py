"""A sequence split over the mesh axis `context`: what one device gives, the communication meant and no other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.kernels import ALiBi, Causal, Lengths, Segments, Window, attention, explain
from zoo.kernels.cases import CASES, SMALL_CASES, Sizes

ALL = CASES | SMALL_CASES
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
        return jnp.where(seen[..., None], out * weight, 0).sum() + jnp.where(seen, lse * weight[..., 0], 0).sum(), (
            out,
            lse,
        )

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


@pytest.mark.parametrize(("case", "axes", "backend"), rotate(ALL))
def test_gathered_keys_equal_one_device(case, axes, backend):
    check(case, MESHES[axes], backend, "gather")


@pytest.mark.parametrize(("case", "axes", "backend"), rotate(reversed(ALL)))
def test_ring_equals_one_device(case, axes, backend):
    check(case, MESHES[axes], backend, "ring")


ONE_QUERY = Sizes(B=2, T=1, S=32, N=4, K=2)


@pytest.mark.parametrize(
    "case", ["sinks", "chunked", "prefix", "lengths", "dense_bias", "key_mask", "positions", "offset_array", "dropout"]
)
def test_one_query_equals_one_device(case):
    check(case, MESHES["context=4, tensor=2"], "dense", "gather", ONE_QUERY)
