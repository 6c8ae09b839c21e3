"""MXFP4 weights (OCP Microscaling 2023), as GPT-OSS is published: pairs of tensors `*_blocks` and `*_scales`.

A block is 32 four-bit floats, two a byte, low half first; each block has a power of two. They are unpacked to float32,
which holds them exactly, one tensor at a time.
"""

from collections.abc import Mapping

import numpy as np

from zoo.weights import CheckpointError, Shape, Tensors

# Sign, two bits of exponent, one of mantissa.
_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_BLOCK, _BIAS = 32, 127


class Mxfp4Tensors:
    """A checkpoint with its packed tensors under their plain names and unpacked; `Tensors` of `zoo.weights`."""

    def __init__(self, packed: Tensors):
        """Raises CheckpointError for blocks without scales, or of other shapes."""
        self.origin, self._packed = packed.origin, packed
        shapes = dict(packed.shapes)
        self._pairs: dict[str, tuple[str, str]] = {}
        for blocks in [name for name in shapes if name.endswith("_blocks")]:
            name = blocks.removesuffix("_blocks")
            shape, scales = shapes.pop(blocks), shapes.pop(f"{name}_scales", None)
            if len(shape) != 4 or scales != shape[:3] or shape[3] != _BLOCK // 2:
                raise CheckpointError(f"{self.origin}: {blocks} of shape {list(shape)} has scales of shape {scales}")
            # [experts, outputs, blocks, 16] holds the transpose of [experts, inputs, outputs].
            shapes[name] = (shape[0], shape[2] * _BLOCK, shape[1])
            self._pairs[name] = blocks, f"{name}_scales"
        self.shapes: Mapping[str, Shape] = shapes

    def read(self, name: str) -> np.ndarray:
        """One tensor, unpacked where it is packed."""
        if name not in self._pairs:
            return self._packed.read(name)
        blocks, scales = (np.asarray(self._packed.read(part)) for part in self._pairs[name])
        halves = np.stack([blocks & 15, blocks >> 4], -1)
        values = np.ldexp(_VALUES[halves.reshape(*scales.shape, _BLOCK)], scales[..., None].astype(np.int32) - _BIAS)
        experts, inputs, outputs = self.shapes[name]
        return values.reshape(experts, outputs, inputs).swapaxes(1, 2)
