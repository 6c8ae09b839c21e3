"""Two models whose vectors are compared: texts and images, as in CLIP."""

import math
from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from zoo.config import DualConfig
from zoo.remat import Remat
from zoo.transformer import Output, Transformer


@struct.dataclass
class DualOutput:
    """What a forward pass gives; None for a side that had no input."""

    text_embeds: Float[Array, "B E"] | None = None
    """Of length one."""
    image_embeds: Float[Array, "C E"] | None = None
    """Of length one."""
    logits_per_text: Float[Array, "B C"] | None = None
    """Cosines times the learned scale, plus the learned bias where there is one."""
    logits_per_image: Float[Array, "C B"] | None = None
    text_model_output: Output | None = None
    vision_model_output: Output | None = None


class DualEncoder(nn.Module):
    """A text and an image model, and the score of each text with each image; attributes as `Transformer`'s."""

    config: DualConfig
    dtype: Any = jnp.float32
    layers: Literal["scanned", "unrolled"] = "unrolled"
    remat: Remat = "none"

    def setup(self):
        """Make both towers and the score's parameters."""
        options = (self.dtype, self.layers, self.remat)
        self.text = Transformer(self.config.text, *options)
        self.image = Transformer(self.config.image, *options)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())
        if self.config.bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.zeros, ())

    def __call__(
        self,
        input_ids: Int[Array, "B T"] | None = None,
        attention_mask: Int[Array, "B T"] | None = None,
        pixel_values: Float[Array, "C channels height width"] | None = None,
        position_ids: Int[Array, "B T"] | None = None,
        dropout_rng: Array | None = None,
        output_hidden_states: bool = False,
    ) -> DualOutput:
        """Score texts with images, or embed one of the two; arguments as `Transformer`'s."""
        options = dict(dropout_rng=dropout_rng, output_hidden_states=output_hidden_states)
        if input_ids is None and pixel_values is None:
            raise ValueError("input_ids and pixel_values are missing; give one of the two, or both")
        text = image = None
        if input_ids is not None:
            text = self.text(input_ids, attention_mask, position_ids=position_ids, **options).replace(keys_values=None)
        if pixel_values is not None:
            image = self.image(pixel_values=pixel_values, **options).replace(keys_values=None)
        scores = None if text is None or image is None else self.score(text.pooler_output, image.pooler_output)
        return DualOutput(
            text_embeds=None if text is None else text.pooler_output,
            image_embeds=None if image is None else image.pooler_output,
            logits_per_text=scores,
            logits_per_image=None if scores is None else scores.T,
            text_model_output=text,
            vision_model_output=image,
        )

    def score(self, text: Float[Array, "B E"], image: Float[Array, "C E"]) -> Float[Array, "B C"]:
        """Scores of vectors of length one, float32."""
        scores = jnp.einsum("be,ce->bc", text, image)
        scores = scores * jnp.exp(self.logit_scale).astype(scores.dtype)
        return scores + self.logit_bias.astype(scores.dtype) if self.config.bias else scores
