"""Ids, pixels or log-mel frames to vectors: token, patch and audio embeddings, positions, and `Embedder` around them.

Parameters are float32; what comes out has the compute dtype.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int

from zoo.config import AudioConfig, EmbeddingConfig, LearnedPositions, PatchConfig, SinusoidalPositions
from zoo.kernels.product import Kernel, table_rows
from zoo.layers import ACTIVATIONS, Norm, Projection, dropout, kernel_of, resample_grid
from zoo.partition import split_rows, whole_columns


class TokenEmbedding(nn.Module):
    """A table of vectors, read by id; a tied output layer multiplies by it."""

    vocab_size: int
    width: int

    def setup(self):
        """Make the table."""
        self.embedding = kernel_of(self, normal(0.02), (self.vocab_size, self.width), "embedding")

    def table(self) -> Kernel:
        """The whole table [V, D], float32, or what stands for it in 8 bits."""
        return self.embedding

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Rows of the table."""
        return rows(self.embedding, ids)


def rows(table: Kernel, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
    """Rows of a table [V, D], or of what stands for it in 8 bits, laid out on a mesh as rows are."""
    return split_rows(table_rows(jax.tree.map(whole_columns, table), ids))


class PatchEmbedding(nn.Module):
    """Cut an image into patches and project each: a convolution whose stride is its size, as one product."""

    config: PatchConfig
    width: int
    dtype: Any

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "B C height width"], hidden: Bool[Array, "B patches"] | None = None
    ) -> Float[Array, "B T D"]:
        """Patches in reading order, after the class token where there is one; `hidden` ones become the mask token."""
        config, size = self.config, self.config.patch_size
        batch, channels, *sides = pixels.shape
        rows, columns = config.grid(*sides)
        if channels != config.num_channels or not rows * columns:
            raise ValueError(
                f"pixel_values are {pixels.shape}; this model reads [batch, {config.num_channels}, "
                f"{config.image_size}, {config.image_size}]: resize or transpose the images"
            )
        patches = pixels[:, :, : rows * size, : columns * size].reshape(batch, channels, rows, size, columns, size)
        patches = patches.transpose(0, 2, 4, 3, 5, 1).reshape(batch, -1, size * size * channels)
        x = Projection((self.width,), self.dtype, bias=config.bias, name="projection")(patches)
        if config.mask_token:
            token = self._token("mask_token", x)
            x = x if hidden is None else jnp.where(hidden[..., None], token, x)
        elif hidden is not None:
            raise ValueError("bool_masked_pos was given, and this model has no mask token; leave it out")
        names = [name for name in ("class_token", "distillation_token") if getattr(config, name)]
        tokens = [jnp.broadcast_to(self._token(name, x), (batch, 1, self.width)) for name in names]
        return jnp.concatenate([*tokens, x], 1)

    def _token(self, name: str, x: Array) -> Float[Array, " D"]:
        return self.param(name, nn.initializers.zeros, (self.width,)).astype(x.dtype)


class AudioEmbedding(nn.Module):
    """Frames of a log-mel spectrogram to vectors: two convolutions over three frames, the second with stride two."""

    config: AudioConfig
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Float[Array, "B mels frames"]) -> Float[Array, "B T D"]:
        """T is half of the frames."""
        wanted = (self.config.num_mels, 2 * self.config.max_length)
        if features.shape[1:] != wanted:
            raise ValueError(
                f"input_features are {features.shape}; this model reads [batch, {wanted[0]}, {wanted[1]}]: "
                "make them with zoo.data.audio"
            )
        x = features.swapaxes(1, 2).astype(self.dtype)
        for name, stride in (("first", 1), ("second", 2)):
            convolve = nn.Conv(self.width, (3,), stride, ((1, 1),), dtype=self.dtype, name=f"{name}_convolution")
            x = ACTIVATIONS["gelu"](convolve(x))
        return x


def sinusoids(config: SinusoidalPositions, positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Sine and cosine of each position at geometric wavelengths (Vaswani et al. 2017, section 3.5)."""
    pairs = -(-width // 2)
    steps = width / 2 if config.longest == "past_last" else width // 2 - 1
    turns = 10_000.0 ** (-np.arange(pairs) / steps) / (2 * np.pi)
    # In 2**-32 turns the product drops whole turns by itself, where float32 would lose digits to them.
    units = jnp.asarray(np.round(turns * 2.0**32).astype(np.uint32))
    fractions = units[None, None] * (positions + config.offset)[..., None].astype(jnp.uint32)
    angles = lax.bitcast_convert_type(fractions, jnp.int32).astype(jnp.float32) * (2 * math.pi / 2**32)
    waves = [jnp.sin(angles), jnp.cos(angles)]
    if config.layout == "halves":
        vectors = jnp.concatenate(waves, -1)[..., :width]
    else:
        vectors = jnp.stack(waves, -1).reshape(*positions.shape, -1)[..., :width]
    if config.max_length is not None:
        vectors = jnp.where(positions[..., None] < config.max_length, vectors, jnp.nan)
    # Padding, which is not counted, stands at -1.
    return vectors if config.padding_id is None else jnp.where(positions[..., None] < 0, 0.0, vectors)


class PositionTable(nn.Module):
    """Learned position vectors."""

    config: LearnedPositions
    width: int

    @nn.compact
    def __call__(
        self,
        positions: Int[Array, "B T"],
        patches: PatchConfig | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Array, "B T D"]:
        """Rows at positions + offset; NaN past the table's end.

        For an image of `grid` patches, a table that was learned on another grid is resampled.
        """
        shape = (self.config.max_length + self.config.offset, self.width)
        table = self.param("embedding", normal(0.02), shape)
        if patches is not None and grid is not None:
            table = _positions_of_grid(table, patches, grid)
        return rows(table, positions + self.config.offset)


def _positions_of_grid(table: Float[Array, "P D"], patches: PatchConfig, grid: tuple[int, int]) -> Float[Array, "T D"]:
    """The table for a grid of patches; the vectors before the patches keep theirs."""
    learned = patches.grid(patches.image_size, patches.image_size)
    if grid == learned:
        return table
    tokens, places = jnp.split(table[: patches.sequence_length], [patches.num_tokens])
    places = resample_grid(places.reshape(*learned, -1), grid, "cubic")
    return jnp.concatenate([tokens.astype(places.dtype), places.reshape(-1, table.shape[-1])])


class Embedder(nn.Module):
    """Ids or pixels to the stack's input vectors."""

    config: EmbeddingConfig
    width: int
    """Width of the stack, D."""
    dtype: Any

    def setup(self):
        """Name the tables."""
        config = self.config
        if config.vocab_size is not None:
            self.token = TokenEmbedding(config.vocab_size, config.width)
        if config.patches is not None:
            self.patch = PatchEmbedding(config.patches, config.width, self.dtype)
        if config.audio is not None:
            self.audio = AudioEmbedding(config.audio, config.width, self.dtype)
        if isinstance(config.positions, LearnedPositions):
            width = config.width if config.projected == "sum" else self.width
            self.position = PositionTable(config.positions, width)
        if config.num_token_types:
            self.token_type = TokenEmbedding(config.num_token_types, config.width)
        if config.norm is not None:
            self.norm = Norm(config.norm)
        if config.width != self.width:
            self.projection = Projection((self.width,), self.dtype, bias=config.projected == "sum")

    def table(self) -> Kernel:
        """The token table [V, E]."""
        return self.token.table()

    def __call__(
        self,
        inputs: Int[Array, "B T"] | Float[Array, "B C height width"] | Float[Array, "B mels frames"],
        positions: Int[Array, "B T"],
        token_type_ids: Int[Array, "B T"] | None = None,
        *,
        table: Kernel | None = None,
        bool_masked_pos: Bool[Array, "B patches"] | None = None,
        dropout_rng: Array | None = None,
    ) -> Float[Array, "B T D"]:
        """Embed ids (or pixels, or audio), add positions and token types, normalise, and project to the stack's width.

        `table` stands in for a token table of its own where two embedders share one.
        """
        config, grid = self.config, None
        if config.patches is not None:
            x, grid = self.patch(inputs, bool_masked_pos), config.patches.grid(*inputs.shape[2:])
        elif config.audio is not None:
            x = self.audio(inputs)
        else:
            table = self.table() if table is None else table
            # Gemma's scale is rounded to the compute dtype, in which it was trained; 1 and powers of two never change.
            x = rows(table, inputs)
            x = x * jnp.asarray(config.scale, self.dtype).astype(x.dtype)
        projects = config.width != self.width
        if projects and config.projected == "tokens":
            x = self.projection(x)
        if isinstance(config.positions, LearnedPositions):
            x = _sum(x, self.position(positions, config.patches, grid))
        elif isinstance(config.positions, SinusoidalPositions):
            x = _sum(x, sinusoids(config.positions, positions, config.width))
        if config.num_token_types:
            x = _sum(x, self.token_type(jnp.zeros_like(positions) if token_type_ids is None else token_type_ids))
        elif token_type_ids is not None:
            raise ValueError("token_type_ids were given, and this model has no token types; leave them out")
        if config.norm is not None:
            x = self.norm(x)
        x = dropout(x, config.dropout, dropout_rng).astype(self.dtype)
        return self.projection(x) if projects and config.projected == "sum" else x


def _sum(x: Float[Array, "B T D"], y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Add in the dtype of both, or in float32: activations may have fewer bits than parameters, and more."""
    dtype = x.dtype if x.dtype == y.dtype else jnp.float32
    return x.astype(dtype) + y.astype(dtype)
