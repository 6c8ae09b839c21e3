"""The backend `triton`: in Pallas's interpreter against the oracle, and lowered for a GPU that is not there."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import ALL, VARIED, compare
from jax.extend.core import jaxprs_in_params
from tiers import tiered

from zoo.kernels import Causal, DenseBias, Lengths, RelativeBias, attention, triton
from zoo.kernels.attention import BACKENDS
from zoo.kernels.cases import CASES, TEST_SIZES, Sizes, fits

LOWERED = [*CASES, "dense_mask", "dense_bias", "key_bias", "offset_array", "positions"]
SMALL = triton.Tiling(16, 16, 4, 1)
WIDE = triton.Tiling(16, 32, 4, 1)


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Make backend="interpreted" known to the op: small blocks, of another shape in each kernel."""
    tilings = triton.Tilings(SMALL, WIDE, SMALL)
    attend = functools.partial(triton.attend, tilings=tilings, interpret=True)
    BACKENDS["interpreted"] = types.SimpleNamespace(attend=attend, supports=triton.supports, PLATFORM=None)
    yield
    del BACKENDS["interpreted"]


@pytest.fixture(scope="module")
def lowered():
    """Make backend="lowered" known to the op: as on a GPU, where the platform is not asked."""
    BACKENDS["lowered"] = types.SimpleNamespace(attend=triton.attend, supports=triton.supports, PLATFORM=None)
    yield "lowered"
    del BACKENDS["lowered"]


@pytest.mark.parametrize("case", tiered(ALL, VARIED))
def test_float32(case):
    sizes = TEST_SIZES["grouped" if fits(case, TEST_SIZES["grouped"]) else "square"]
    compare(case, sizes, jnp.float32, ["interpreted"], 1e-6)


@pytest.mark.parametrize("case", ["sinks_dropout"])
def test_bfloat16(case):
    compare(case, TEST_SIZES["square"], jnp.bfloat16, ["interpreted"], 1e-2)


def test_one_query():
    compare("positions", TEST_SIZES["decode"], jnp.float32, ["interpreted"], 1e-6)


def step(backend, arguments):
    """Value and gradient of a sum over all outputs, and the arrays of `arguments` that are trained."""
    trained = {name: arguments[name] for name in ("bias", "sinks") if name in arguments}
    fixed = {name: value for name, value in arguments.items() if name not in trained}

    def loss(q, k, v, trained):
        out, lse = attention(q, k, v, **trained, **fixed, backend=backend, return_lse=True)
        return out.astype(jnp.float32).sum() + lse.sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))), trained


def qkv(sizes, dtype=jnp.float32):
    return sizes.inputs(np.random.default_rng(0), dtype)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_the_future_cannot_change_the_past(bad):
    q, k, v = qkv(Sizes(B=1, T=40, S=40, N=2, K=1))
    past = slice(0, 17)
    spoilt = q.at[:, 17, 0].set(bad), k.at[:, 17, :, 3].set(bad), v.at[:, 36].set(bad)

    @jax.jit
    def evaluate(q, k, v):
        def loss(q, k, v):
            out = attention(q, k, v, mask=Causal(), backend="interpreted")
            return out[:, past].sum(), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

    (clean, expected), (dirty, actual) = evaluate(q, k, v), evaluate(*spoilt)
    np.testing.assert_allclose(actual[:, past], expected[:, past], atol=1e-6)
    assert jnp.isnan(actual[:, 17:]).all()
    for a, b in zip(clean, dirty, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


def test_empty_rows_and_padding():
    q, k, v = qkv(Sizes(B=2, T=20, S=24, N=2, K=2))
    k, v = k.at[:, 18:].set(jnp.nan), v.at[:, 18:].set(jnp.nan)
    q = q.at[0, 15:].set(jnp.nan)

    def loss(q, k, v):
        mask = Lengths(jnp.asarray([15, 20]), jnp.asarray([18, 0]))
        out, lse = attention(q, k, v, mask=mask, backend="interpreted", return_lse=True)
        return out.sum(), (out, lse)

    gradients, (out, lse) = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert jnp.isfinite(out).all() and (out[0, 15:] == 0).all() and (out[1] == 0).all()
    assert jnp.isneginf(lse[1]).all() and jnp.isneginf(lse[0, 15:]).all() and jnp.isfinite(lse[0, :15]).all()
    for gradient in gradients:
        assert jnp.isfinite(gradient).all() and (gradient[1] == 0).all() and (gradient[0, 18:] == 0).all()
    assert (jnp.abs(gradients[1][0, :18]) > 0).any()


@pytest.mark.parametrize("shape", [(1, 4, 1, 40), (1, 1, 40, 1)])
def test_dense_bias_of_any_broadcast_axes(shape):
    sizes = Sizes(T=40, S=40, K=2)
    bias = DenseBias(jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32))
    results = []
    for backend in ("interpreted", "dense"):
        run, trained = step(backend, {"mask": Causal(), "bias": bias})
        results.append(run(*qkv(sizes), trained))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *results)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scale_of_any_sign(scale):
    """The kernels divide by the scale and take the largest logit before they multiply by it."""
    bias = RelativeBias(jnp.asarray(np.random.default_rng(1).standard_normal((32, 4)), jnp.float32))
    results = []
    for backend in ("interpreted", "dense"):
        run, trained = step(backend, {"mask": Causal(), "bias": bias, "scale": scale})
        results.append(run(*qkv(Sizes(B=1)), trained))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), *results)


def test_refusals_name_the_reason():
    q = jnp.zeros((1, 16, 2, 288), jnp.bfloat16)
    with pytest.raises(ValueError, match="head size 288"):
        attention(q, q, q, backend="interpreted")
    with jax.enable_x64(True):
        q = jnp.zeros((1, 16, 2, 8), jnp.float64)
        with pytest.raises(ValueError, match="float64"):
            attention(q, q, q, backend="interpreted")
    with pytest.raises(ValueError, match="made for a GPU"):
        attention(*qkv(Sizes()), backend="triton")


def largest_array(jaxpr) -> int:
    """Elements of the largest array in a program, kernels aside."""
    sizes = [variable.aval.size for variable in jaxpr.invars]
    for equation in jaxpr.eqns:
        sizes += [variable.aval.size for variable in equation.outvars]
        if equation.primitive.name != "pallas_call":
            sizes += [largest_array(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("case", "head_size", "dtype"),
    tiered(
        [(case, 64, jnp.bfloat16) for case in LOWERED]
        + [("relative", 128, jnp.bfloat16), ("packed", 80, jnp.float16), ("sinks_dropout", 256, jnp.float32)],
        lambda case, head_size, dtype: case in VARIED or head_size != 64,
    ),
)
def test_lowers_for_a_gpu_in_linear_memory(case, head_size, dtype, lowered):
    """What Triton cannot express is found here, and any array outside the kernels that has the size of the logits."""
    sizes = Sizes(B=1, T=4096, S=4096, N=4, K=2, H=head_size, V=head_size)
    rng = np.random.default_rng(0)
    run, trained = step(lowered, ALL[case](rng, sizes))
    inputs = sizes.inputs(rng, dtype)
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)):
        traced = run.trace(*inputs, trained)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("xla.gpu.triton") == (4 if "bias" in case else 3)
    if case not in ("dense_mask", "dense_bias"):
        assert largest_array(traced.jaxpr.jaxpr) < sizes.T * sizes.S
    else:
        assert largest_array(traced.jaxpr.jaxpr) >= sizes.T * sizes.S
