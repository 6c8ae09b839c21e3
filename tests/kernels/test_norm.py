"""Norms: their gradients, and what they keep for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from zoo.kernels.norm import normalise

EPSILON = 1e-6


def plain(x, scale, bias, centred):
    """The definition, for JAX to differentiate."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True) if centred else y
    y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + EPSILON)
    scale, bias = (x if x is None else lax.broadcast_to_rank(x, y.ndim) for x in (scale, bias))
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias).astype(x.dtype)


def make(scaled: bool, shifted: bool, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, *vectors = (jnp.asarray(rng.normal(2, 3, size), jnp.float32) for size in ((2, 5, 48), 48, 48))
    return x.astype(dtype), *(v if there else None for v, there in zip(vectors, (scaled, shifted), strict=True))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("scaled", "shifted"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("centred", [True, False])
def test_gradients(centred, scaled, shifted, dtype):
    inputs = make(scaled, shifted, dtype)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=inputs[0].shape), dtype)
    ours, pullback = jax.vjp(lambda *given: normalise(*given, centred, EPSILON), *inputs)
    theirs, reference = jax.vjp(lambda *given: plain(*given, centred), *inputs)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    for a, b in zip(jax.tree.leaves(pullback(weight)), jax.tree.leaves(reference(weight)), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("centred", [True, False])
def test_second_order(centred):
    with jax.enable_x64(True):
        check_grads(lambda *given: normalise(*given, centred, EPSILON), make(True, True), 2, ["rev"], rtol=0.05)


def test_the_input_alone_is_kept():
    inputs = make(True, True, jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(lambda *given: normalise(*given, True, EPSILON), *inputs)[1])
    rows = [x for x in kept if x.shape == inputs[0].shape]
    assert [x.dtype for x in rows] == [jnp.bfloat16]
