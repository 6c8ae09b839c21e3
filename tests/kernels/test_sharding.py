"""On a mesh of eight fake devices every backend gives what one device gives, and moves no keys between devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.kernels import attention
from zoo.kernels.cases import CASES, SMALL_CASES, Sizes

SIZES = Sizes(B=4, T=32, S=32, N=4, K=2)
MESHES = {"data=2, fsdp=2, tensor=2": (2, 2, 2), "data=8": (8, 1, 1), "tensor=2": (1, 1, 2), "tensor=4": (1, 1, 4)}


def losses(backend, arguments):
    trained = {name: arguments[name] for name in ("bias", "sinks") if name in arguments}
    fixed = {name: value for name, value in arguments.items() if name not in trained}

    def loss(q, k, v, trained):
        out = attention(q, k, v, **trained, **fixed, backend=backend)
        return (out * jnp.arange(out.size, dtype=out.dtype).reshape(out.shape) / out.size).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))), trained


def ambient(shape, axis_type=jax.sharding.AxisType.Auto):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(axis_type,) * 3, devices=devices)


@pytest.mark.parametrize(
    ("case", "backend", "shape"),
    [
        ("relative", "small_blocks", "data=2, fsdp=2, tensor=2"),
        ("sinks_dropout", "small_blocks", "data=2, fsdp=2, tensor=2"),
        ("packed", "dense", "data=2, fsdp=2, tensor=2"),
        ("lengths", "dense", "data=2, fsdp=2, tensor=2"),
        ("dense_mask", "dense", "data=8"),
        ("dense_bias", "dense", "tensor=4"),
        ("offset_array", "small_blocks", "tensor=2"),
    ],
)
def test_mesh_equals_one_device(case, backend, shape):
    rng = np.random.default_rng(0)
    arguments = (CASES | SMALL_CASES)[case](rng, SIZES)
    inputs = SIZES.inputs(rng, jnp.float32)
    step, trained = losses(backend, arguments)
    expected = step(*inputs, trained)
    step, trained = losses(backend, arguments)
    with jax.set_mesh(ambient(MESHES[shape])):
        actual = step(*inputs, trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def test_no_communication_forward():
    shape = jax.ShapeDtypeStruct((4, 256, 4, 8), jnp.float32)
    mesh = ambient((2, 2, 2))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor", None))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda q, k, v: attention(q, k, v, backend="small_blocks"), in_shardings=spec)
        text = step.lower(shape, shape, shape).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


def test_explicit_axes():
    rng = np.random.default_rng(0)
    inputs = SIZES.inputs(rng, jnp.float32)
    expected = attention(*inputs)
    mesh = ambient((2, 2, 2), jax.sharding.AxisType.Explicit)
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor", None)
        q, k, v = (jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) for x in inputs)
        np.testing.assert_allclose(attention(q, k, v), expected, rtol=1e-5, atol=1e-6)
        out = attention(*(jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.P())) for x in inputs))
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
