"""What turns pictures into discrete tokens."""

import math
from dataclasses import dataclass

from zoo.config.validation import positive, require


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """An autoencoder with finite scalar quantisation (Mentzer et al. 2024): a token a patch of the picture."""

    image_size: int
    """Height and width in pixels."""
    patch_size: int = 4
    """Height and width of a patch."""
    width: int = 128
    """Of the hidden states between blocks, D."""
    num_blocks: int = 2
    """Residual blocks before the tokens, and as many behind them, of which each sees one patch farther."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """A token is as many small numbers; each of them has so many values."""

    def __post_init__(self):
        positive(self, "image_size", "patch_size", "width")
        require(
            self.image_size % self.patch_size == 0,
            f"ImageTokenizerConfig.patch_size is {self.patch_size}; give a divisor of image_size ({self.image_size})",
        )
        require(self.num_blocks >= 0, f"ImageTokenizerConfig.num_blocks is {self.num_blocks}; give at least zero")
        require(
            len(self.levels) > 0 and min(self.levels) > 1,
            f"ImageTokenizerConfig.levels is {self.levels}; give numbers above one, such as (8, 5, 5, 5)",
        )

    @property
    def num_codes(self) -> int:
        """Different tokens."""
        return math.prod(self.levels)

    @property
    def num_tokens(self) -> int:
        """Tokens of a picture, T."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def family(self) -> str:
        """For messages, as a transformer's."""
        return "image tokenizer"
