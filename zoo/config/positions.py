"""How a model knows positions: rotary with its scalings, biases of the scores, tables and sinusoids."""

from dataclasses import dataclass
from typing import Literal

from zoo.config.norm import NormConfig
from zoo.config.validation import one_of, positive, require, subset

PositionTerm = Literal["content_to_position", "position_to_content"]


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): positions divided by `factor`."""

    factor: float

    def __post_init__(self):
        positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class DynamicScaling:
    """NTK-aware base change that grows with the sequence once it is longer than `original_length`."""

    factor: float
    original_length: int

    def __post_init__(self):
        positive(self, "factor", "original_length")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear blend between the two."""

    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        positive(self, "factor", "low_frequency_factor", "high_frequency_factor", "original_length")
        require(
            self.high_frequency_factor > self.low_frequency_factor,
            f"Llama3Scaling.high_frequency_factor is {self.high_frequency_factor}; "
            f"give more than low_frequency_factor ({self.low_frequency_factor})",
        )


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): interpolation by frequency band, and a temperature on the rotated vectors."""

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float
    """Multiplies cosine and sine; the paper's value is 0.1 ln(factor) + 1."""
    truncate: bool = True
    """Round the band's edges to whole dimensions."""

    def __post_init__(self):
        positive(self, "factor", "original_length", "beta_fast", "beta_slow", "attention_factor")


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): one divisor a frequency, `long_factors` past `original_length`.

    All positions of a sequence rotate by the same factors, so generation that comes past it reads all tokens again.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float

    def __post_init__(self):
        positive(self, "original_length", "attention_factor")
        require(
            len(self.short_factors) == len(self.long_factors),
            f"LongRopeScaling has {len(self.short_factors)} short and {len(self.long_factors)} long factors; "
            "give one of each per rotated pair",
        )


RotaryScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary position embedding (Su et al. 2021) of queries and keys."""

    base: float = 10_000.0
    size: int | None = None
    """Leading dimensions of each head that rotate; None rotates the whole head."""
    pairing: Literal["half", "interleaved"] = "half"
    """Rotate dimension i with i + size/2 (GPT-NeoX, Llama) or 2i with 2i + 1 (GPT-J)."""
    scaling: RotaryScaling | None = None

    def __post_init__(self):
        positive(self, "base")
        one_of(self, "pairing", Literal["half", "interleaved"])
        if self.size is not None:
            require(
                self.size > 0 and self.size % 2 == 0,
                f"RotaryConfig.size is {self.size}; give an even number above zero",
            )


@dataclass(frozen=True, kw_only=True)
class RelativeBiasConfig:
    """T5's relative position bias (Raffel et al. 2020)."""

    num_buckets: int = 32
    max_distance: int = 128
    per_layer: bool = False
    """Each layer has a table of its own (UMT5); else one serves all layers of a stack."""

    def __post_init__(self):
        require(
            self.num_buckets >= 4 and self.num_buckets % 2 == 0,
            f"RelativeBiasConfig.num_buckets is {self.num_buckets}; give an even number of at least 4",
        )
        require(
            self.max_distance > self.num_buckets // 2,
            f"RelativeBiasConfig.max_distance is {self.max_distance}; give more than num_buckets / 2",
        )


@dataclass(frozen=True, kw_only=True)
class GridBiasConfig:
    """A bias for each vertical and horizontal distance of two patches, and three for the class token (BEiT)."""

    rows: int
    """Of patches, in the images that the table was learned on; it is resampled for others."""
    columns: int
    per_layer: bool = True
    """A table for each layer, or one for all."""

    def __post_init__(self):
        positive(self, "rows", "columns")


@dataclass(frozen=True, kw_only=True)
class AlibiConfig:
    """Linear biases (Press et al. 2022) with the paper's slopes for the stack's number of heads."""

    scale: float = 1.0
    """Multiplies every slope."""

    def __post_init__(self):
        positive(self, "scale")


@dataclass(frozen=True, kw_only=True)
class DisentangledConfig:
    """Scores between contents and distances (He et al. 2021), from one table of distances for all layers of a stack."""

    span: int
    """Rows of the table for distances to each side."""
    max_distance: int | None = None
    """The upper half of the span grows by a constant ratio up to this distance; None: one row a distance."""
    terms: tuple[PositionTerm, ...] = ("content_to_position", "position_to_content")
    shared: bool = False
    """Project distances with the maps of queries and keys, rather than with maps of their own."""
    norm: NormConfig | None = None
    """Normalise the table."""

    def __post_init__(self):
        subset(self, "terms", PositionTerm)
        require(len(self.terms) > 0, "DisentangledConfig.terms is empty; name one, or leave DisentangledConfig out")
        require(
            self.span >= 4 and self.span % 2 == 0,
            f"DisentangledConfig.span is {self.span}; give an even number of at least 4",
        )
        require(
            self.max_distance is None or self.max_distance > self.span // 2 + 1,
            f"DisentangledConfig.max_distance is {self.max_distance}; give more than span / 2 + 1",
        )


@dataclass(frozen=True, kw_only=True)
class LearnedPositions:
    """A table of position vectors (BERT, GPT-2)."""

    max_length: int
    offset: int = 0
    """Position p reads row p + offset (2 in OPT and BART)."""
    over_mask: bool = False
    """Where no positions are given, they count what the attention mask shows, and padding stands at -1 (OPT)."""
    padding_id: int | None = None
    """Where no positions are given, they count the ids that are not this one; this id stands at -1 (RoBERTa)."""

    def __post_init__(self):
        positive(self, "max_length")
        require(self.offset >= 0, f"LearnedPositions.offset is {self.offset}; give at least zero")
        require(
            self.offset > 0 or not (self.over_mask or self.padding_id is not None),
            "LearnedPositions.over_mask or padding_id without an offset; padding reads the row before the first",
        )
        require(
            not self.over_mask or self.padding_id is None,
            "LearnedPositions has over_mask and padding_id; positions count by one of the two",
        )


@dataclass(frozen=True, kw_only=True)
class SinusoidalPositions:
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5)."""

    layout: Literal["interleaved", "halves"] = "interleaved"
    """Sine and cosine alternate (the paper), or all sines come first (Marian, Whisper)."""
    longest: Literal["past_last", "last"] = "past_last"
    """Wavelengths grow to 10000 turns of a circle just past the last pair (the paper) or at it (tensor2tensor)."""
    max_length: int | None = None
    """Positions from here on are NaN, as past a table's end (Marian's files hold one); None: there is no end."""
    offset: int = 0
    """Position p has the waves of p + offset (2 in M2M100)."""
    padding_id: int | None = None
    """Where no positions are given, they count the ids that are not this one; this id has no waves (M2M100)."""

    def __post_init__(self):
        require(self.offset >= 0, f"SinusoidalPositions.offset is {self.offset}; give at least zero")
        require(
            self.max_length is None or self.max_length > 0,
            f"SinusoidalPositions.max_length is {self.max_length}; give a number above zero, or None",
        )
        one_of(self, "layout", Literal["interleaved", "halves"])
        one_of(self, "longest", Literal["past_last", "last"])
