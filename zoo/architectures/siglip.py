"""SigLIP (Zhai et al. 2023): CLIP's two towers, each text scored with each image alone, and pooled by attention."""

from typing import Any

from zoo.architectures.architecture import Fields
from zoo.architectures.clip import (
    IMAGE_DEFAULTS,
    TEXT_DEFAULTS,
    TINY_IMAGE,
    TINY_TEXT,
    Dual,
    Tower,
    image_rules,
    image_stack_to_hf,
    text_embedding,
    text_rules,
    text_stack_to_hf,
    tower_stack,
)
from zoo.architectures.vit import patches_from_hf
from zoo.config import (
    AttentionPoolConfig,
    ClassifierHead,
    EmbeddingConfig,
    EmbeddingHead,
    LearnedPositions,
    TransformerConfig,
)
from zoo.weights import FUSED_VECTOR, LINEAR_OF_HEADS, VECTOR, Rule, fused, linear, norm, rule, unit_axes

_DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_TEXT_DEFAULTS = TEXT_DEFAULTS | _DEFAULTS | {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
}  # fmt: skip
_IMAGE_DEFAULTS = IMAGE_DEFAULTS | _DEFAULTS


def text_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a SiglipTextConfig; `head` is "base", or "dual" for a vector to be compared."""
    fields = fields.with_defaults(_TEXT_DEFAULTS)
    return TransformerConfig(
        embedding=text_embedding(fields),
        encoder=tower_stack(fields),
        head=EmbeddingHead(
            pooling="end",
            normalize=head == "dual",
            projection=fields.get("projection_size", fields["hidden_size"]),
            projection_bias=True,
        ),
    )


def image_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a SiglipVisionConfig; `head` as for texts, or "image_classification"."""
    fields = fields.with_defaults(_IMAGE_DEFAULTS)
    patch = patches_from_hf(fields, patch_size=16, class_token=False)
    stack = tower_stack(fields)
    pool = AttentionPoolConfig(attention=stack.attention, mlp=stack.mlp, norm=stack.norm)
    pooled = EmbeddingHead(pooling="attention", attention_pool=pool, normalize=head == "dual")
    if head == "image_classification":
        result = ClassifierHead(num_classes=fields.num_labels(), pooling="mean")
    else:
        result = pooled if fields.get("vision_use_head", True) else None
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=stack.width, patches=patch, positions=LearnedPositions(max_length=patch.sequence_length)
        ),
        encoder=stack,
        head=result,
    )


def text_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a SiglipTextConfig."""
    return text_stack_to_hf(config) | {"projection_size": config.head.projection}


def image_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a SiglipVisionConfig."""
    used = {} if isinstance(config.head, ClassifierHead) else {"vision_use_head": config.head is not None}
    return image_stack_to_hf(config) | used


def text_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the text tower."""
    del config, head
    return [*text_rules(), *linear("text_model.head", "head/projection")]


def image_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the image tower."""
    pool = "vision_model.head"
    inputs = [f"head/pool/attention/{name}" for name in ("query", "key", "value")]
    return [
        *image_rules(config),
        *norm("vision_model.post_layernorm", "encoder/final_norm"),
        rule(f"{pool}.probe", "head/pool/probe", unit_axes(2)),
        rule(f"{pool}.attention.in_proj_weight", [f"{name}/kernel" for name in inputs], fused()),
        rule(f"{pool}.attention.in_proj_bias", [f"{name}/bias" for name in inputs], FUSED_VECTOR),
        *linear(f"{pool}.attention.out_proj", "head/pool/attention/output", LINEAR_OF_HEADS),
        *norm(f"{pool}.layernorm", "head/pool/norm"),
        *linear(f"{pool}.mlp.fc1", "head/pool/mlp/up"),
        *linear(f"{pool}.mlp.fc2", "head/pool/mlp/down"),
        *(linear("classifier", "head/logits") if head == "image_classification" else []),
    ]


ARCHITECTURES = Dual(
    model_type="siglip",
    name="Siglip",
    text=Tower(text_from_hf, text_to_hf, text_weights, TINY_TEXT | {"projection_size": 20}),
    # The patches do not fill the image.
    image=Tower(image_from_hf, image_to_hf, image_weights, TINY_IMAGE | {"image_size": 18}),
    scores=[rule("logit_scale", "logit_scale", VECTOR), rule("logit_bias", "logit_bias", VECTOR)],
    projected=False,
    unread=r"^vision_model\.head\.",
    tiny={"text_config": TINY_TEXT, "vision_config": TINY_IMAGE},
).architectures()
