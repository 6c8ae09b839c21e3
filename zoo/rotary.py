"""Rotary position embeddings (Su et al. 2021) and the scalings of their frequencies to longer contexts."""

import math

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from zoo.config import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, RotaryConfig, YarnScaling


def rotary_frequencies(
    config: RotaryConfig, head_size: int, length: Int[Array, ""] | int
) -> tuple[Float[Array, " R"], float]:
    """Angular frequencies of the R rotated pairs in radians per position, and the factor on cosine and sine.

    Args:
        config: base, rotated size and scaling.
        head_size: H; the whole head rotates unless `config.size` says otherwise.
        length: positions in use, which dynamic and LongRoPE scaling depend on; may be traced.
    """
    size = head_size if config.size is None else config.size
    exponents = jnp.arange(0, size, 2, dtype=jnp.float32) / size
    frequencies = config.base**-exponents
    match config.scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor=factor):
            return frequencies / factor, 1.0
        case DynamicScaling(factor=factor, original_length=original):
            growth = factor * jnp.maximum(length, original).astype(jnp.float32) / original - (factor - 1)
            return (config.base * growth ** (size / (size - 2))) ** -exponents, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(frequencies, config.base, size, scaling), scaling.attention_factor
        case LongRopeScaling() as scaling:
            factors = jnp.where(
                length > scaling.original_length,
                jnp.array(scaling.long_factors, jnp.float32),
                jnp.array(scaling.short_factors, jnp.float32),
            )
            return frequencies / factors, scaling.attention_factor


def _llama3(frequencies: Float[Array, " R"], scaling: Llama3Scaling) -> Float[Array, " R"]:
    """Interpolate slow frequencies, keep fast ones, blend between (Llama 3.1's reference formula)."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_length * frequencies / (2 * math.pi)
    keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def _yarn(frequencies: Float[Array, " R"], base: float, size: int, scaling: YarnScaling) -> Float[Array, " R"]:
    """Keep dimensions that turn more than beta_fast times, interpolate those below beta_slow (Peng et al., eq. 23)."""

    def dimension(turns: float) -> float:
        return size * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (jnp.arange(size // 2, dtype=jnp.float32) - low) / max(high - low, 1e-3)
    keep = 1 - jnp.clip(ramp, 0.0, 1.0)
    return frequencies * (keep + (1 - keep) / scaling.factor)


@struct.dataclass
class Rotation:
    """Cosine and sine of each position's angles, made once a forward pass and used by every layer."""

    cosine: Float[Array, "B T R"]
    sine: Float[Array, "B T R"]
    interleaved: bool = struct.field(pytree_node=False)

    @classmethod
    def at(cls, config: RotaryConfig, head_size: int, positions: Int[Array, "B T"]) -> "Rotation":
        """Angles of `positions`, in float32: bfloat16 cannot tell positions above 256 apart."""
        frequencies, factor = rotary_frequencies(config, head_size, positions.max() + 1)
        angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
        # The barrier keeps XLA from fusing, that is recomputing, them in every layer and head that reads them.
        cosine, sine = lax.optimization_barrier((jnp.cos(angles) * factor, jnp.sin(angles) * factor))
        return cls(cosine, sine, config.pairing == "interleaved")

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        """Rotate the leading 2R dimensions of each head."""
        size = 2 * self.cosine.shape[-1]
        rotated, kept = x[..., :size].astype(jnp.float32), x[..., size:]
        cosine, sine = self.cosine[:, :, None], self.sine[:, :, None]
        if self.interleaved:
            even, odd = rotated[..., 0::2], rotated[..., 1::2]
            parts = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1)
            rotated = parts.reshape(rotated.shape)
        else:
            first, second = jnp.split(rotated, 2, -1)
            rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1)
        return jnp.concatenate([rotated.astype(x.dtype), kept], -1)
