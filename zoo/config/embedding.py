"""What turns ids, pixels or sound into vectors."""

from dataclasses import dataclass
from typing import Literal

from zoo.config.norm import NormConfig
from zoo.config.positions import LearnedPositions, SinusoidalPositions
from zoo.config.validation import fraction, one_of, positive, require


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """An image cut into square patches, each projected to one vector (Dosovitskiy et al. 2021)."""

    image_size: int
    """Height and width in pixels of the images that positions were learned on; what a patch does not fill is cut off.

    Images of other sizes are read too: tables of positions are resampled to their grid (DINOv2)."""
    patch_size: int
    num_channels: int = 3
    bias: bool = True
    """Add a learned offset to each patch's vector."""
    class_token: bool = True
    """Put a learned vector before the patches."""
    distillation_token: bool = False
    """And a second one after it (DeiT)."""
    mask_token: bool = False
    """A learned vector that stands for hidden patches in pre-training (BEiT, DINOv2)."""

    def __post_init__(self):
        positive(self, "image_size", "patch_size", "num_channels")
        require(
            self.image_size >= self.patch_size,
            f"PatchConfig.image_size is {self.image_size}; give at least patch_size ({self.patch_size})",
        )
        require(
            self.class_token or not self.distillation_token,
            "PatchConfig.distillation_token without class_token is no published architecture",
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        return height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Learned vectors before the patches."""
        return self.class_token + self.distillation_token

    @property
    def sequence_length(self) -> int:
        """Vectors an image becomes."""
        rows, columns = self.grid(self.image_size, self.image_size)
        return rows * columns + self.num_tokens


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """A log-mel spectrogram read by two convolutions, of which the second halves the frames (Radford et al. 2022)."""

    num_mels: int
    max_length: int
    """Vectors that a spectrogram becomes: half its frames, whose number is fixed."""

    def __post_init__(self):
        positive(self, "num_mels", "max_length")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Ids or pixels to vectors: table or patches, plus positions and token types, scaled and normalised."""

    width: int
    """Width of the tables; a projection follows where the stack is wider or narrower (ALBERT)."""
    vocab_size: int | None = None
    """Rows of the token table; None for images, and for a decoder that shares its encoder's table."""
    patches: PatchConfig | None = None
    audio: AudioConfig | None = None
    positions: LearnedPositions | SinusoidalPositions | None = None
    num_token_types: int = 0
    """Rows of the token type (segment) table of BERT; zero for none."""
    scale: float = 1.0
    """Multiplies token vectors (sqrt(width) in Gemma and Marian)."""
    projected: Literal["sum", "tokens"] = "sum"
    """What a projection to the stack's width maps: the sum (ALBERT), or tokens before positions, without bias (OPT)."""
    norm: NormConfig | None = None
    """Normalise the sum."""
    dropout: float = 0.0
    """Rate at which entries are dropped in training."""

    def __post_init__(self):
        positive(self, "width", "scale")
        fraction(self, "dropout")
        one_of(self, "projected", Literal["sum", "tokens"])
        require(
            self.num_token_types >= 0,
            f"EmbeddingConfig.num_token_types is {self.num_token_types}; give at least zero",
        )
        require(
            self.vocab_size is None or self.vocab_size > 0,
            f"EmbeddingConfig.vocab_size is {self.vocab_size}; give a number above zero, or None",
        )
        require(
            [self.vocab_size, self.patches, self.audio].count(None) >= 2,
            "EmbeddingConfig has both vocab_size and patches, or audio; give the one that the input is",
        )
        if self.patches is not None and self.positions is not None:
            require(self.positions.padding_id is None, "positions.padding_id with patches; they have no ids")
        if self.patches is not None and isinstance(self.positions, LearnedPositions):
            need = self.patches.sequence_length
            require(
                self.positions.max_length >= need,
                f"LearnedPositions.max_length is {self.positions.max_length}; the image needs {need}",
            )
