"""BEiT (Bao et al. 2022): a ViT whose positions are a bias by distance down and across, with layer scale."""

import dataclasses
from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.vit import TINY as VIT_TINY
from zoo.architectures.vit import attention_rules, embedding_rules, image_encoder_to_hf, patches_from_hf, stack_from_hf
from zoo.config import (
    ClassifierHead,
    EmbeddingConfig,
    EmbeddingHead,
    GridBiasConfig,
    LearnedPositions,
    PatchConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import Rule, linear, norm, rule, unit_axes


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a BeitConfig."""
    patch = patches_from_hf(fields, patch_size=16, mask_token=fields.get("use_mask_token", False))
    table = LearnedPositions(max_length=patch.sequence_length)
    stack = _stack(fields, patch)
    mean = fields.get("use_mean_pooling", True)
    pooling = "patch_mean" if mean else "first"
    pooled_norm = stack.norm if mean else None
    if head == "image_classification":
        result = ClassifierHead(num_classes=fields.num_labels(), pooling=pooling, norm=pooled_norm)
    elif head == "masked_image_modeling":
        result = TokenHead(num_classes=fields.get("vocab_size", 8192), norm=stack.norm, patches_only=True)
    else:
        result = EmbeddingHead(pooling=pooling, normalize=False, norm=pooled_norm)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=stack.width,
            patches=patch,
            positions=table if fields.get("use_absolute_position_embeddings", False) else None,
            dropout=stack.dropout,
        ),
        encoder=dataclasses.replace(stack, final_norm=not mean),
        head=result,
    )


def _stack(fields: Fields, patch: PatchConfig) -> StackConfig:
    stack = stack_from_hf(fields)
    per_layer = fields.get("use_relative_position_bias", False)
    shared = fields.get("use_shared_relative_position_bias", False)
    if per_layer and shared:
        raise ValueError("use_relative_position_bias and use_shared_relative_position_bias are both true")
    rows, columns = patch.grid(patch.image_size, patch.image_size)
    return dataclasses.replace(
        stack,
        attention=dataclasses.replace(stack.attention, biases=("query", "value", "output")),
        position_bias=GridBiasConfig(rows=rows, columns=columns, per_layer=per_layer) if per_layer or shared else None,
        layer_scale=fields.get("layer_scale_init_value", 0.1) or None,
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a BeitConfig."""
    stack = config.output_stack
    bias = stack.position_bias
    visual_tokens = {"vocab_size": config.head.num_classes} if isinstance(config.head, TokenHead) else {}
    return image_encoder_to_hf(config) | {
        "use_mask_token": config.embedding.patches.mask_token,
        "use_absolute_position_embeddings": config.embedding.positions is not None,
        "use_relative_position_bias": bias is not None and bias.per_layer,
        "use_shared_relative_position_bias": bias is not None and not bias.per_layer,
        "layer_scale_init_value": stack.layer_scale or 0.0,
        "use_mean_pooling": not stack.final_norm,
        **visual_tokens,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "beit.encoder.layer.{layer}"
    bias = "relative_position_bias.relative_position_bias_table"
    heads = {
        "image_classification": linear("classifier", "head/logits"),
        "masked_image_modeling": [*norm("layernorm", "head/input_norm"), *linear("lm_head", "head/logits")],
    }
    return [
        *embedding_rules(config, "beit"),
        rule("beit.embeddings.mask_token", "embedder/patch/mask_token", unit_axes(2)),
        *attention_rules(layer),
        rule(f"{layer}.attention.attention.{bias}", "encoder/relative_bias/embedding"),
        rule(f"beit.encoder.{bias}", "encoder/position_bias/embedding"),
        rule(f"{layer}.lambda_1", "encoder/attention_scale"),
        rule(f"{layer}.lambda_2", "encoder/mlp_scale"),
        *norm(f"{layer}.layernorm_before", "encoder/attention_input_norm"),
        *norm(f"{layer}.layernorm_after", "encoder/mlp_input_norm"),
        *linear(f"{layer}.intermediate.dense", "encoder/mlp/up"),
        *linear(f"{layer}.output.dense", "encoder/mlp/down"),
        *norm("beit.layernorm", "encoder/final_norm"),
        *norm("beit.pooler.layernorm", "head/norm"),
        *heads.get(head, []),
    ]


TINY = VIT_TINY | {
    "use_mask_token": True,
    "use_shared_relative_position_bias": True,
    "use_mean_pooling": True,
    "*image_classification": {
        "use_mask_token": False,
        "use_shared_relative_position_bias": False,
        "use_relative_position_bias": True,
    },
    "*masked_image_modeling": {"vocab_size": 31},
}

ARCHITECTURES = [
    Architecture(
        model_type="beit",
        classes={
            "base": "BeitModel",
            "image_classification": "BeitForImageClassification",
            "masked_image_modeling": "BeitForMaskedImageModeling",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="beit.",
        ignored=(r"relative_position_index$", r"embeddings\.mask_token$"),
        tiny=TINY,
    )
]
