"""Pictures as discrete tokens, and back: learned tokens of patches, or the nearest colour of each pixel.

A learned tokenizer is an autoencoder whose middle is rounded. Finite scalar quantisation (Mentzer et al. 2024, section
3) has no codebook that could collapse, and needs neither an auxiliary loss nor moving averages as VQ-VAE does (van den
Oord et al. 2017): a token is a few numbers, each squashed and rounded to one of its levels, and all combinations of
levels are the codes. Rounding passes gradients on unchanged, as there (Bengio et al. 2013).

What generates pictures sees either kind as `encode`, `decode`, `num_codes` and `num_tokens`. Losses are in `zoo.tasks`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.config import ImageTokenizerConfig, NormConfig
from zoo.layers import ACTIVATIONS, Norm, Projection

Pixels = Float[Array, "B 3 height width"]
"""Pictures with values from -1 to 1."""


@struct.dataclass
class Reconstruction:
    """What a tokenizer gives for a picture."""

    pixel_values: Pixels
    token_ids: Int[Array, "B T"]


def quantize(x: Float[Array, "... d"], levels: tuple[int, ...]) -> tuple[Float[Array, "... d"], Int[Array, "..."]]:
    """Round each of d numbers to one of its levels.

    A number is squashed into (0, L - 1) by a sigmoid and rounded; level l is (2 l / (L - 1)) - 1 to the decoder. The
    gradient is that of the squashed number.

    Returns:
        The rounded numbers, from -1 to 1, and the code of each combination, below the product of the levels.
    """
    highest = lax.broadcast_to_rank(jnp.array(levels, jnp.float32) - 1, x.ndim)
    squashed = jax.nn.sigmoid(x.astype(jnp.float32)) * highest
    rounded = jnp.round(squashed)
    straight = squashed + lax.stop_gradient(rounded - squashed)
    return 2 * straight / highest - 1, (rounded.astype(jnp.int32) * _places(levels, x.ndim)).sum(-1)


def dequantize(ids: Int[Array, "..."], levels: tuple[int, ...]) -> Float[Array, "... d"]:
    """The rounded numbers of codes, from -1 to 1."""
    ids = ids[..., None]
    sizes = lax.broadcast_to_rank(np.array(levels, np.int32), ids.ndim)
    digits = ids // _places(levels, ids.ndim) % sizes
    return (2 * digits).astype(jnp.float32) / (sizes - 1).astype(jnp.float32) - 1


def _places(levels: tuple[int, ...], rank: int) -> Int[Array, "... d"]:
    """What a step of each level adds to the code, whose digits have different bases; with `rank` axes."""
    return lax.broadcast_to_rank(np.cumprod([1, *levels[:-1]]).astype(np.int32), rank)


class Residual(nn.Module):
    """x + W gelu(V norm(x)): of each patch alone, or of what it mixes with the eight around it, channel by channel."""

    width: int
    neighbours: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B rows columns D"]) -> Float[Array, "B rows columns D"]:
        """Of a grid of patches."""
        y = Norm(NormConfig(), name="norm")(x)
        if self.neighbours:
            y = mix(y, self.param("mixing_scale", nn.initializers.normal(0.3), (9, self.width)))
        y = ACTIVATIONS["gelu_tanh"](Projection((2 * self.width,), self.dtype, bias=True, name="up")(y))
        return x + Projection((self.width,), self.dtype, bias=True, name="down")(y)


def mix(x: Float[Array, "B rows columns D"], scale: Float[Array, "9 D"]) -> Float[Array, "B rows columns D"]:
    """A depthwise convolution over 3 by 3 places, zeros beyond the edge.

    As a sum: XLA's own convolutions took many times as long on CPU, in training.
    """
    _, rows, columns, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    mixed = (place * scale[index].astype(x.dtype)[None, None, None] for index, place in enumerate(shifted))
    return sum(mixed, start=jnp.zeros_like(x))


class Grid(nn.Module):
    """A grid of vectors to another: in, residual blocks, a norm, out."""

    config: ImageTokenizerConfig
    features: int
    """Of the result."""
    neighbours: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B rows columns C"]) -> Float[Array, "B rows columns F"]:
        """Of patches."""
        x = Projection((self.config.width,), self.dtype, bias=True, name="input")(x)
        for index in range(self.config.num_blocks):
            x = Residual(self.config.width, self.neighbours, self.dtype, name=f"block_{index}")(x)
        x = Norm(NormConfig(), name="norm")(x)
        return Projection((self.features,), self.dtype, bias=True, name="output")(x)


class ImageTokenizer(nn.Module):
    """Pictures to tokens and back.

    A token says what its own patch looks like, whatever is around it, so that a decoder of captions can put known
    patches together anew; what is drawn of a token depends on its neighbours too, so that edges meet.

    Attributes:
        config: what the network is.
        dtype: of activations and products; parameters are float32.
    """

    config: ImageTokenizerConfig
    dtype: Any = jnp.float32

    def setup(self):
        """Name the two halves."""
        self.encoder = Grid(self.config, len(self.config.levels), False, self.dtype)
        self.decoder = Grid(self.config, 3 * self.config.patch_size**2, True, self.dtype)

    def __call__(self, pixel_values: Pixels) -> Reconstruction:
        """Both ways, with gradients through the rounding."""
        quantized, ids = self._quantized(pixel_values)
        return Reconstruction(self._picture(quantized), ids.reshape(len(ids), -1))

    def encode(self, pixel_values: Pixels) -> Int[Array, "B T"]:
        """Tokens in reading order."""
        ids = self._quantized(pixel_values)[1]
        return ids.reshape(len(ids), -1)

    def decode(self, token_ids: Int[Array, "B T"]) -> Pixels:
        """The picture of tokens."""
        side = self.config.image_size // self.config.patch_size
        return self._picture(dequantize(token_ids.reshape(-1, side, side), self.config.levels))

    def _quantized(self, pixels: Pixels):
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixel_values are {pixels.shape}; this tokenizer reads [batch, 3, {size}, {size}]")
        return quantize(self.encoder(cut_patches(pixels, self.config.patch_size)), self.config.levels)

    def _picture(self, quantized: Float[Array, "B rows columns d"]) -> Pixels:
        patches = self.decoder(quantized.astype(self.dtype)).astype(jnp.float32)
        return join_patches(patches, self.config.patch_size)


def cut_patches(pixels: Pixels, size: int) -> Float[Array, "B rows columns F"]:
    """A grid of patches, each as one vector of 3 · size · size values."""
    batch, channels, height, width = pixels.shape
    patches = pixels.reshape(batch, channels, height // size, size, width // size, size)
    return patches.transpose(0, 2, 4, 3, 5, 1).reshape(batch, height // size, width // size, -1)


def join_patches(patches: Float[Array, "B rows columns F"], size: int) -> Pixels:
    """What `cut_patches` cut."""
    batch, rows, columns, _ = patches.shape
    pixels = patches.reshape(batch, rows, columns, size, size, -1).transpose(0, 5, 1, 3, 2, 4)
    return pixels.reshape(batch, -1, rows * size, columns * size)


@dataclass(frozen=True, eq=False)
class LearnedTokens:
    """A trained `ImageTokenizer`."""

    model: ImageTokenizer
    params: Any

    @property
    def num_codes(self) -> int:
        """Different tokens."""
        return self.model.config.num_codes

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture, T."""
        return self.model.config.num_tokens

    def encode(self, pixels: Pixels) -> Int[Array, "B T"]:
        """Tokens in reading order."""
        return jnp.asarray(self.model.apply({"params": self.params}, pixels, method="encode"))

    def decode(self, ids: Int[Array, "B T"]) -> Pixels:
        """The picture of tokens."""
        return jnp.clip(self.model.apply({"params": self.params}, ids, method="decode"), -1, 1)


@dataclass(frozen=True, eq=False)
class PaletteTokens:
    """Each pixel as the number of the nearest of a few colours (Chen et al. 2020, section 3.2)."""

    colours: Float[np.ndarray, "V 3"]
    """From -1 to 1."""
    image_size: int

    @property
    def num_codes(self) -> int:
        """Different colours."""
        return len(self.colours)

    @property
    def num_tokens(self) -> int:
        """Pixels of a picture, T."""
        return self.image_size**2

    def encode(self, pixels: Pixels) -> Int[Array, "B T"]:
        """Colours in reading order."""
        flat = pixels.reshape(len(pixels), 3, -1).swapaxes(1, 2)
        distances = jnp.square(self.colours).sum(-1)[None, None] - 2 * flat @ jnp.asarray(self.colours).T
        return distances.argmin(-1).astype(jnp.int32)

    def decode(self, ids: Int[Array, "B T"]) -> Pixels:
        """The picture of colours."""
        side = self.image_size
        return jnp.asarray(self.colours)[ids].reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
