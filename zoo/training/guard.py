"""The guard of the state: an update that would harm it is skipped on the device, before anything has changed.

A loss or a gradient norm that is NaN or infinite is always harmful. With `training.spike_sigmas` so is one that stands
out from those of the last updates: PaLM's spikes came of certain batches with certain states, and went away where these
were skipped (Chowdhery et al. 2022, section 5.1); OLMo 2's trainer skips, as here, the steps that lie so many
standard deviations above the mean of the last 128 (OLMo-core, `SkipStepOptimizer`).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

WINDOW = 128
"""Updates that a spike stands out from; half of them must have been made before one is called so."""


class NonFiniteError(FloatingPointError):
    """The loss, the gradient norm or the state is NaN or infinite; no such state is ever saved."""


class SpikeError(FloatingPointError):
    """More losses or gradient norms stood out than a run may skip."""


class Watched(NamedTuple):
    """An optimizer's state, and what its last updates were made from."""

    inner: Any
    recent: Float[Array, "2 W"]
    """Losses and gradient norms, the newest last."""
    count: Int[Array, ""]
    """How many of them there are."""


def watch(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer with the losses and gradient norms of its last updates in its state."""

    def init(params):
        return Watched(optimizer.init(params), jnp.zeros((2, WINDOW), jnp.float32), jnp.zeros((), jnp.int32))

    optimizer = optax.with_extra_args_support(optimizer)

    def update(gradients, state, params=None, *, loss, grad_norm, **others):
        updates, inner = optimizer.update(gradients, state.inner, params, **others)
        recent = jnp.concatenate([state.recent[:, 1:], jnp.stack([loss, grad_norm])[:, None]], axis=1)
        return updates, Watched(inner, recent, jnp.minimum(state.count + 1, WINDOW))

    return optax.GradientTransformationExtraArgs(init, update)


def is_sound(loss: Float[Array, ""], grad_norm: Float[Array, ""]) -> Bool[Array, ""]:
    """Return whether both are finite."""
    return jnp.isfinite(loss) & jnp.isfinite(grad_norm)


def is_spike(watched: Watched, loss: Float[Array, ""], grad_norm: Float[Array, ""], sigmas: float) -> Bool[Array, ""]:
    """Return whether one of the two is so many standard deviations above the mean of its last values."""
    known = jnp.arange(WINDOW) >= WINDOW - watched.count
    mean = jnp.mean(watched.recent, axis=1, where=known)
    deviation = jnp.std(watched.recent, axis=1, where=known)
    stands_out = jnp.stack([loss, grad_norm]) > mean + sigmas * deviation
    return stands_out.any() & (watched.count >= WINDOW // 2)


def describe(values: dict[str, Any]) -> str:
    """Return in words why the update of these metrics was skipped."""
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            return f"{name} is {values[name]}"
    return f"loss {values['loss']:.4g} or grad_norm {values['grad_norm']:.4g} stands out from the last updates'"


def refuse(step: int, values: dict[str, Any], max_skipped: int, saved: int | None) -> FloatingPointError:
    """Return the error for an update that cannot be skipped any more; `saved` is the newest checkpoint's step."""
    spike = all(math.isfinite(values[name]) for name in ("loss", "grad_norm"))
    where = f"the newest checkpoint, step {saved}, is from before it" if saved else "nothing was saved"
    skipped = f"; {max_skipped} updates were skipped before, as many as training.max_skipped allows" * bool(max_skipped)
    return (SpikeError if spike else NonFiniteError)(
        f"{describe(values)} at step {step}{skipped}; {where}. Lower optimizer.learning_rate, lengthen "
        f"schedule.warmup_steps, or look at that step's batch in bad-batches"
    )


@jax.jit
def _finite(tree: Any) -> list[Bool[Array, ""]]:
    return [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]


def check_finite(tree: Any, step: int) -> None:
    """Raise NonFiniteError naming the first array of a tree that has a value which is NaN or infinite."""
    floats = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(x.dtype, jnp.floating)
    }
    found = jax.device_get(_finite(list(floats.values())))
    for name, finite in zip(floats, found, strict=True):
        if not finite:
            raise NonFiniteError(
                f"{name} has values that are not finite after step {step}, which is not saved. Lower "
                "optimizer.learning_rate, or look at what the run started from"
            )
