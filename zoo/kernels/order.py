"""When XLA makes what: on CPUs it starts as early as it can, and makes what two places ask for once, and keeps it."""

import jax
import jax.numpy as jnp
from jax import lax


def zero_after(x: jax.Array) -> jax.Array | int:
    """0, as an int32 that on CPUs cannot be known before `x` [..., D], D > 1, is.

    What is made with it is made after `x`, and apart from what another place made of the same without it. XLA drops
    barriers too early for that. It does not see that an index of the largest of two numbers is never below 0.
    """
    if jax.default_backend() != "cpu":
        return 0
    return jnp.minimum(lax.argmax(x[(0,) * (x.ndim - 1)][:2], 0, jnp.int32), 0)
