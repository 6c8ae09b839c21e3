"""DINOv2 (Oquab et al. 2024): a ViT with layer scale, read at other image sizes than it was trained on."""

import dataclasses
import math
from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.vit import TINY as VIT_TINY
from zoo.architectures.vit import attention_rules, embedding_rules, image_encoder_to_hf, patches_from_hf, stack_from_hf
from zoo.config import ClassifierHead, EmbeddingConfig, EmbeddingHead, LearnedPositions, MlpConfig, TransformerConfig
from zoo.weights import Rule, fused_linear, linear, norm, rule, unit_axes


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a Dinov2Config."""
    fields = fields.with_defaults({"layer_norm_eps": 1e-6})
    patch = patches_from_hf(fields, patch_size=14, mask_token=fields.get("use_mask_token", True))
    stack = stack_from_hf(fields)
    if head == "image_classification":
        result = ClassifierHead(num_classes=fields.num_labels(), pooling="first_and_patch_mean")
    else:
        result = EmbeddingHead(pooling="first", normalize=False)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=stack.width,
            patches=patch,
            positions=LearnedPositions(max_length=patch.sequence_length),
            dropout=stack.dropout,
        ),
        # The reference drops embeddings alone, and whole branches instead of their entries.
        encoder=dataclasses.replace(
            stack, mlp=_mlp(fields), layer_scale=fields.get("layerscale_value", 1.0), dropout=0.0
        ),
        head=result,
    )


def _mlp(fields: Fields) -> MlpConfig:
    width, ratio = fields.get("hidden_size", 768), fields.get("mlp_ratio", 4)
    if not fields.get("use_swiglu_ffn", False):
        activation = fields.activation("hidden_act", "gelu")
        return MlpConfig(hidden_size=int(width * ratio), activation=activation, bias=True)
    return MlpConfig(hidden_size=_gated_size(width, ratio), activation="silu", gated=True, bias=True)


def _gated_size(width: int, ratio: float) -> int:
    """Of a SwiGLU with as many parameters as an MLP of this ratio, but for rounding."""
    return (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a Dinov2Config."""
    stack = config.output_stack
    fields = image_encoder_to_hf(config) | {
        "qkv_bias": "query" in stack.attention.biases,
        "hidden_dropout_prob": config.embedding.dropout,
        "layerscale_value": stack.layer_scale,
        "use_swiglu_ffn": stack.mlp.gated,
        "use_mask_token": config.embedding.patches.mask_token,
    }
    hidden = fields.pop("intermediate_size")
    if stack.mlp.gated:
        # Any activation may be written beside a SwiGLU, which has its own.
        fields["hidden_act"] = "gelu"
        ratio = 3 * hidden / (2 * stack.width)
        whole = (found for found in (math.floor(ratio), math.ceil(ratio)) if _gated_size(stack.width, found) == hidden)
        fields["mlp_ratio"] = next(whole, ratio)
    else:
        fields["mlp_ratio"] = hidden // stack.width
    return fields


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "dinov2.encoder.layer.{layer}"
    if config.output_stack.mlp.gated:
        mlp = [
            *fused_linear(f"{layer}.mlp.weights_in", ("encoder/mlp/gate", "encoder/mlp/up")),
            *linear(f"{layer}.mlp.weights_out", "encoder/mlp/down"),
        ]
    else:
        mlp = [*linear(f"{layer}.mlp.fc1", "encoder/mlp/up"), *linear(f"{layer}.mlp.fc2", "encoder/mlp/down")]
    return [
        *embedding_rules(config, "dinov2"),
        rule("dinov2.embeddings.mask_token", "embedder/patch/mask_token", unit_axes(1)),
        *attention_rules(layer),
        *norm(f"{layer}.norm1", "encoder/attention_input_norm"),
        *norm(f"{layer}.norm2", "encoder/mlp_input_norm"),
        rule(f"{layer}.layer_scale1.lambda1", "encoder/attention_scale"),
        rule(f"{layer}.layer_scale2.lambda1", "encoder/mlp_scale"),
        *mlp,
        *norm("dinov2.layernorm", "encoder/final_norm"),
        *(linear("classifier", "head/logits") if head == "image_classification" else []),
    ]


TINY = VIT_TINY | {
    "mlp_ratio": 2,
    "layer_norm_eps": 1e-6,
    "*image_classification": {"use_swiglu_ffn": True, "use_mask_token": False},
}
del TINY["intermediate_size"]

ARCHITECTURES = [
    Architecture(
        model_type="dinov2",
        classes={"base": "Dinov2Model", "image_classification": "Dinov2ForImageClassification"},
        also_reads={"Dinov2Backbone": "base"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="dinov2.",
        ignored=(r"embeddings\.mask_token$",),
        tiny=TINY,
    )
]
