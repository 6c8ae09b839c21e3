"""Facts about the NVIDIA GPU that JAX runs on, asked without an error where there is none."""

import jax


def compute_capability() -> tuple[int, int] | None:
    """Major and minor number, (9, 0) for Hopper; None without an NVIDIA GPU."""
    if jax.default_backend() != "gpu":
        return None
    # Other makers' devices say their architecture's name here.
    major, _, minor = str(getattr(jax.local_devices()[0], "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
