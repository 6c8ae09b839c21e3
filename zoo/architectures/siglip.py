"""SigLIP (Zhai et al. 2023): CLIP's two towers, each text scored with each image alone, and pooled by attention."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.clip import (
    IMAGE_DEFAULTS,
    POSITION_IDS,
    SCORES,
    TEXT_DEFAULTS,
    TINY_IMAGE,
    TINY_TEXT,
    image_rules,
    image_stack_to_hf,
    text_embedding,
    text_rules,
    text_stack_to_hf,
    tower,
    tower_fields,
    tower_stack,
)
from zoo.architectures.vit import patches_from_hf
from zoo.config import (
    AttentionPoolConfig,
    DualConfig,
    EmbeddingConfig,
    EmbeddingHead,
    LearnedPositions,
    TransformerConfig,
)
from zoo.weights import FUSED_VECTOR, LINEAR_OF_HEADS, VECTOR, Rule, fused, linear, norm, rule, under, unit_axes

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
    """Translate a SiglipVisionConfig; `head` as for texts."""
    fields = fields.with_defaults(_IMAGE_DEFAULTS)
    patch = patches_from_hf(fields, patch_size=16, class_token=False)
    stack = tower_stack(fields)
    pool = AttentionPoolConfig(attention=stack.attention, mlp=stack.mlp, norm=stack.norm)
    pooled = EmbeddingHead(pooling="attention", attention_pool=pool, normalize=head == "dual")
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=stack.width, patches=patch, positions=LearnedPositions(max_length=patch.sequence_length)
        ),
        encoder=stack,
        head=pooled if fields.get("vision_use_head", True) else None,
    )


def dual_from_hf(fields: Fields, head: str) -> DualConfig:
    """Translate a SiglipConfig."""
    del head
    return DualConfig(
        text=text_from_hf(tower_fields(fields, "text_config"), "dual"),
        image=image_from_hf(tower_fields(fields, "vision_config"), "dual"),
        bias=True,
    )


def text_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a SiglipTextConfig."""
    return text_stack_to_hf(config) | {"projection_size": config.head.projection}


def image_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a SiglipVisionConfig."""
    return image_stack_to_hf(config) | {"vision_use_head": config.head is not None}


def dual_to_hf(config: DualConfig) -> dict[str, Any]:
    """Write a SiglipConfig."""
    return {"text_config": text_to_hf(config.text), "vision_config": image_to_hf(config.image)}


def text_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the text tower."""
    del config, head
    return [*text_rules(), *linear("text_model.head", "head/projection")]


def image_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the image tower."""
    del head
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
    ]


def dual_weights(config: DualConfig, head: str) -> list[Rule]:
    """The table of both towers."""
    return [
        *under("text", text_weights(config.text, head)),
        *under("image", image_weights(config.image, head)),
        rule("logit_scale", "logit_scale", VECTOR),
        rule("logit_bias", "logit_bias", VECTOR),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="siglip",
        classes={"base": "SiglipModel"},
        config_from_hf=dual_from_hf,
        config_to_hf=dual_to_hf,
        weights=dual_weights,
        ignored=(POSITION_IDS,),
        parts={"text": tower("siglip_text_model"), "image": tower("siglip_vision_model")},
        tiny={"text_config": TINY_TEXT, "vision_config": TINY_IMAGE},
    ),
    Architecture(
        model_type="siglip_text_model",
        classes={"base": "SiglipTextModel"},
        config_from_hf=text_from_hf,
        config_to_hf=text_to_hf,
        weights=text_weights,
        prefix="text_model.",
        ignored=(POSITION_IDS, SCORES, r"^vision_model\."),
        tiny=TINY_TEXT | {"projection_size": 20},
    ),
    Architecture(
        model_type="siglip_vision_model",
        classes={"base": "SiglipVisionModel"},
        config_from_hf=image_from_hf,
        config_to_hf=image_to_hf,
        weights=image_weights,
        prefix="vision_model.",
        ignored=(POSITION_IDS, SCORES, r"^text_model\."),
        # The patches do not fill the image.
        tiny=TINY_IMAGE | {"image_size": 18},
    ),
]
