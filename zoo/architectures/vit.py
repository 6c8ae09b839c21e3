"""ViT (Dosovitskiy et al. 2021): a pre-norm encoder over the patches of an image and a class token.

DeiT (Touvron et al. 2021) is the same with a second token, which learned from a teacher.
"""

import functools
from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.bert import stack_to_hf
from zoo.config import (
    AttentionConfig,
    BiasSlot,
    ClassifierHead,
    EmbeddingConfig,
    EmbeddingHead,
    Head,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    PatchConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, patches, rule, unit_axes


def config_from_hf(fields: Fields, head: str, distilled: bool = False) -> TransformerConfig:
    """Translate a ViTConfig, or where `distilled` a DeiTConfig."""
    patch = patches_from_hf(fields, patch_size=16, distillation_token=distilled)
    width = fields.get("hidden_size", 768)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            patches=patch,
            positions=LearnedPositions(max_length=patch.sequence_length),
            dropout=fields.get("hidden_dropout_prob", 0.0),
        ),
        encoder=stack_from_hf(fields),
        head=_head(fields, head, width),
    )


def patches_from_hf(fields: Fields, patch_size: int, **options: Any) -> PatchConfig:
    """The image's fields, where `patch_size` is the default."""
    return PatchConfig(
        image_size=side(fields, "image_size", 224),
        patch_size=side(fields, "patch_size", patch_size),
        num_channels=fields.get("num_channels", 3),
        **options,
    )


def side(fields: Fields, name: str, default: int) -> int:
    """The side of a square, which some files write twice."""
    value = fields.get(name, default)
    height, width = value if isinstance(value, list | tuple) else (value, value)
    if height != width:
        raise ValueError(f"{name} is {value}; zoo reads square images in square patches")
    return height


def stack_from_hf(fields: Fields) -> StackConfig:
    """The encoder of a ViTConfig, and of those that descend from it."""
    width, heads = fields.get("hidden_size", 768), fields.get("num_attention_heads", 12)
    inputs: tuple[BiasSlot, ...] = ("query", "key", "value") if fields.get("qkv_bias", True) else ()
    return StackConfig(
        num_layers=fields.get("num_hidden_layers", 12),
        width=width,
        attention=AttentionConfig(
            num_heads=heads,
            head_size=width // heads,
            biases=(*inputs, "output"),
            dropout=fields.get("attention_probs_dropout_prob", 0.0),
        ),
        mlp=MlpConfig(
            hidden_size=fields.get("intermediate_size", 3072),
            activation=fields.activation("hidden_act", "gelu"),
            bias=True,
        ),
        norm=NormConfig(epsilon=fields.get("layer_norm_eps", 1e-12)),
        dropout=fields.get("hidden_dropout_prob", 0.0),
    )


def _head(fields: Fields, head: str, width: int) -> Head:
    if head in ("image_classification", "distilled_image_classification"):
        return ClassifierHead(num_classes=fields.num_labels(), distilled=head.startswith("distilled"))
    return EmbeddingHead(
        pooling="first",
        normalize=False,
        projection=fields.get("pooler_output_size", width),
        projection_bias=True,
        activation=fields.activation("pooler_act", "tanh"),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a ViTConfig."""
    fields = image_encoder_to_hf(config) | {"qkv_bias": "query" in config.output_stack.attention.biases}
    if isinstance(config.head, EmbeddingHead) and config.head.activation is not None:
        fields["pooler_output_size"] = config.head.projection
        fields["pooler_act"] = activation_name(config.head.activation)
    return fields


def image_encoder_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields that image encoders share."""
    patch = config.embedding.patches
    return stack_to_hf(config.output_stack) | {
        "image_size": patch.image_size,
        "patch_size": patch.patch_size,
        "num_channels": patch.num_channels,
    }


def weights(config: TransformerConfig, head: str, base: str = "vit") -> list[Rule]:
    """The table; `base` is the prefix of the base model's names."""
    heads = {
        "base": linear(f"{base}.pooler.dense", "head/projection"),
        "image_classification": linear("classifier", "head/logits"),
        "distilled_image_classification": [
            *linear("cls_classifier", "head/logits"),
            *linear("distillation_classifier", "head/distilled_logits"),
        ],
    }
    layer = base + ".encoder.layer.{layer}"
    return [
        *embedding_rules(config, base),
        *attention_rules(layer),
        *norm(f"{layer}.layernorm_before", "encoder/attention_input_norm"),
        *norm(f"{layer}.layernorm_after", "encoder/mlp_input_norm"),
        *linear(f"{layer}.intermediate.dense", "encoder/mlp/up"),
        *linear(f"{layer}.output.dense", "encoder/mlp/down"),
        *norm(f"{base}.layernorm", "encoder/final_norm"),
        *heads[head],
    ]


def embedding_rules(config: TransformerConfig, base: str) -> list[Rule]:
    """The rows of patches, tokens and positions."""
    patch = config.embedding.patches
    cut = patches(patch.patch_size, patch.num_channels)
    return [
        rule(f"{base}.embeddings.cls_token", "embedder/patch/class_token", unit_axes(2)),
        rule(f"{base}.embeddings.distillation_token", "embedder/patch/distillation_token", unit_axes(2)),
        *linear(f"{base}.embeddings.patch_embeddings.projection", "embedder/patch/projection", cut),
        rule(f"{base}.embeddings.position_embeddings", "embedder/position/embedding", unit_axes(1)),
    ]


def attention_rules(layer: str) -> list[Rule]:
    """The rows of a layer's attention."""
    return [
        *linear(f"{layer}.attention.attention.query", "encoder/attention/query"),
        *linear(f"{layer}.attention.attention.key", "encoder/attention/key"),
        *linear(f"{layer}.attention.attention.value", "encoder/attention/value"),
        *linear(f"{layer}.attention.output.dense", "encoder/attention/output", LINEAR_OF_HEADS),
    ]


TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

_PRETRAINING = (r"embeddings\.mask_token$", r"^decoder\.")
"""Tensors of masked image modelling, which zoo leaves out."""

ARCHITECTURES = [
    Architecture(
        model_type="vit",
        classes={"base": "ViTModel", "image_classification": "ViTForImageClassification"},
        also_reads={"ViTForMaskedImageModeling": "base"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="vit.",
        ignored=_PRETRAINING,
        tiny=TINY,
    ),
    Architecture(
        model_type="deit",
        classes={
            "base": "DeiTModel",
            "image_classification": "DeiTForImageClassification",
            "distilled_image_classification": "DeiTForImageClassificationWithTeacher",
        },
        also_reads={"DeiTForMaskedImageModeling": "base"},
        config_from_hf=functools.partial(config_from_hf, distilled=True),
        config_to_hf=config_to_hf,
        weights=functools.partial(weights, base="deit"),
        prefix="deit.",
        ignored=_PRETRAINING,
        tiny=TINY,
    ),
]
