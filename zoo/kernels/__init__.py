"""The attention op, its masks and its biases. Imports JAX and NumPy alone."""

from zoo.kernels.attention import attention, explain
from zoo.kernels.axes import mesh_axes
from zoo.kernels.bias import ALiBi, DenseBias, RelativeBias
from zoo.kernels.masks import Causal, Chunked, Dense, Full, Lengths, Mask, PrefixLM, Segments, Window
from zoo.kernels.merging import merge
from zoo.kernels.paged import paged_attention

__all__ = [
    "ALiBi",
    "Causal",
    "Chunked",
    "Dense",
    "DenseBias",
    "Full",
    "Lengths",
    "Mask",
    "PrefixLM",
    "RelativeBias",
    "Segments",
    "Window",
    "attention",
    "explain",
    "merge",
    "mesh_axes",
    "paged_attention",
]
