"""Normalisation."""

from dataclasses import dataclass
from typing import Literal

from zoo.config.validation import one_of, positive, require


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) over the last axis, computed in float32."""

    kind: Literal["layer", "rms"] = "layer"
    epsilon: float = 1e-5
    """Added to the variance (layer) or mean square (rms)."""
    scale: bool = True
    """Multiply by a learned scale; False also leaves the offset out (OLMo, Galactica)."""
    bias: bool = True
    """Add a learned offset after the scale."""
    unit_offset: bool = False
    """Store the scale as its difference from one, as Gemma does."""

    def __post_init__(self):
        one_of(self, "kind", Literal["layer", "rms"])
        positive(self, "epsilon")
        require(
            self.scale or not (self.bias or self.unit_offset),
            f"NormConfig.scale is False with bias={self.bias} and unit_offset={self.unit_offset}; set them to False",
        )
