"""What checks annotations in `pytest --jaxtyping-packages=zoo,annotations.check`: beartype, all functions of zoo.

Left out are constructors. JAX rebuilds dataclasses that are pytrees with whatever a transformation has in the place of
arrays: partition specs, axes of `vmap`, shapes, placeholders.
"""

from collections.abc import Callable

from beartype import beartype


def check(function: Callable) -> Callable:
    """Return the function with its arguments and results checked at each call, the calls of tracing included."""
    return function if function.__name__ == "__init__" else beartype(function)
