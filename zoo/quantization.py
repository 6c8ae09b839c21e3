"""Parameters in 8 bits, for inference: each kernel an int8 array with a float32 scale for each output.

Which are quantised is read from the table of `zoo.training.sharding`, which knows inputs from outputs: every
projection, the experts, token tables, each token by itself, and a language model's output layer, whether it is that
table or its own. Norms, biases, positions, routers, convolutions, additive attention and classifiers' logits stay as
they are: they are small, and decide much. What the dict that takes a kernel's place holds, and how it is multiplied, is
`zoo.kernels.int8`.

A scale is the largest value of its output's weights over 127: symmetric, to nearest, no calibration data.
"""

import functools
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from zoo.config import LanguageModelHead, ModelConfig
from zoo.training.sharding import matrix_axes, parameter_spec
from zoo.weights import flatten, unflatten

Quantization = Literal["int8", "w8a8"]
"""int8: weights alone. w8a8: activations as well, each row by its own largest value."""
_FLOAT = ("*/router/*", "*convolution*", "*/alignment/*", "head/logits/*", "head/distilled_logits/*")


def check_quantization(quantize: str | None) -> None:
    """Raise ValueError for another word than `Quantization` has."""
    if quantize is not None and quantize not in get_args(Quantization):
        raise ValueError(f"quantize is {quantize!r}; choose {' or '.join(map(repr, get_args(Quantization)))}, or None")


def quantized_axes(path: str, ndim: int, config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The (input, output) axes of a parameter that is quantised; None for one that stays in floats."""
    if path.endswith("token/embedding"):  # of a tied output layer the outputs are the tokens
        return (1,), (0,)
    if path == "head/kernel" and isinstance(getattr(config, "head", None), LanguageModelHead):
        return (0,), (1,)
    if any(fnmatchcase(path, pattern) for pattern in _FLOAT):
        return None
    return matrix_axes(path, ndim)


def make_quantizer(quantize: Quantization, config: ModelConfig, mesh: Mesh | None) -> Callable[[str, jax.Array], Any]:
    """A function of a parameter's path and array, which gives what takes its place; on `mesh` it lies as the array."""

    def convert(path: str, leaf: jax.Array) -> Any:
        axes = quantized_axes(path, leaf.ndim, config)
        if axes is None:
            return leaf
        if mesh is None:
            found = _quantize(leaf, axes, quantize)
        else:
            shapes = jax.eval_shape(_quantize, leaf, axes, quantize)
            places = {
                name: NamedSharding(mesh, parameter_spec(f"{path}/{name}", x.shape, mesh)) for name, x in shapes.items()
            }
            found = jax.jit(_quantize, static_argnums=(1, 2), out_shardings=places)(leaf, axes, quantize)
        # Waited for, so that the floats are gone before the next are read.
        return jax.block_until_ready(found)

    return convert


def quantize_params(params: Any, quantize: Quantization, config: ModelConfig, mesh: Mesh | None = None) -> dict:
    """All parameters, a kernel at a time; one that is quantised already takes the new form."""
    convert = make_quantizer(quantize, config, mesh)
    leaves = {}
    for path, leaf in flatten(params).items():
        whole, _, part = path.rpartition("/")
        if part in get_args(Quantization):
            leaves[f"{whole}/{quantize}"] = leaf
        else:
            leaves[path] = convert(path, leaf)
    return unflatten(leaves)


def is_quantized(params: Any) -> bool:
    """Whether any kernel is."""
    return any(path.rpartition("/")[2] in get_args(Quantization) for path in flatten(params))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _quantize(kernel: jax.Array, axes: tuple[tuple[int, ...], tuple[int, ...]], form: Quantization) -> dict:
    """[*L, *I, *O] to int8 [*L, *O, *I] and float32 [*L, *O], where L are layers and experts."""
    inputs, outputs = axes
    batch = tuple(axis for axis in range(kernel.ndim) if axis not in inputs + outputs)
    kernel = kernel.astype(jnp.float32).transpose(*batch, *outputs, *inputs)
    last = tuple(range(kernel.ndim - len(inputs), kernel.ndim))
    scale = jnp.abs(kernel).max(last) / 127
    integers = jnp.round(kernel / jnp.expand_dims(jnp.where(scale == 0, 1, scale), last))
    return {form: integers.astype(jnp.int8), "scale": scale}
