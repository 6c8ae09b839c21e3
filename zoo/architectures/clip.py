"""CLIP (Radford et al. 2021): a text and an image encoder whose vectors are compared, together and apart."""

import functools
from typing import Any

from zoo.architectures.architecture import Architecture, Fields, Part, activation_name
from zoo.architectures.vit import patches_from_hf
from zoo.config import (
    AttentionConfig,
    DualConfig,
    EmbeddingConfig,
    EmbeddingHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, patches, rule, table, under

TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
    "projection_dim": 512,
}
IMAGE_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
}
LEGACY_EOS_TOKEN_ID = 2
"""What the first release's files say; the id that ends a text is the highest of all."""


def tower_fields(fields: Fields, name: str) -> Fields:
    """The configuration of one tower: `name` is "text_config" or "vision_config".

    Old files have it twice, and the reference believes "text_config_dict".
    """
    own = fields.fields(name if fields.get(f"{name}_dict") is None else f"{name}_dict")
    return own.replaced(projection_dim=fields.get("projection_dim", 512), id2label=fields.get("id2label"))


def text_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a CLIPTextConfig; `head` is "base", "embedding", or "dual" for a vector to be compared."""
    fields = fields.with_defaults(TEXT_DEFAULTS)
    end = fields["eos_token_id"]
    return TransformerConfig(
        embedding=text_embedding(fields),
        encoder=tower_stack(fields, causal=True),
        head=EmbeddingHead(
            pooling="token",
            token_id=None if end == LEGACY_EOS_TOKEN_ID else end,
            normalize=head == "dual",
            projection=None if head == "base" else fields["projection_dim"],
        ),
    )


def text_embedding(fields: Fields) -> EmbeddingConfig:
    """Tokens and positions."""
    positions = LearnedPositions(max_length=fields["max_position_embeddings"])
    return EmbeddingConfig(width=fields["hidden_size"], vocab_size=fields["vocab_size"], positions=positions)


def image_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a CLIPVisionConfig; `head` as for texts."""
    fields = fields.with_defaults(IMAGE_DEFAULTS)
    patch = patches_from_hf(fields, patch_size=32, bias=False)
    stack = tower_stack(fields, final_norm=False)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=stack.width,
            patches=patch,
            positions=LearnedPositions(max_length=patch.sequence_length),
            norm=stack.norm,
        ),
        encoder=stack,
        head=EmbeddingHead(
            pooling="first",
            norm=stack.norm,
            normalize=head == "dual",
            projection=None if head == "base" else fields["projection_dim"],
        ),
    )


def tower_stack(fields: Fields, **options: Any) -> StackConfig:
    """The encoder of either tower."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    return StackConfig(
        num_layers=fields["num_hidden_layers"],
        width=width,
        attention=AttentionConfig(
            num_heads=heads,
            head_size=width // heads,
            biases=("query", "key", "value", "output"),
            dropout=fields.get("attention_dropout", 0.0),
        ),
        mlp=MlpConfig(
            hidden_size=fields["intermediate_size"], activation=fields.activation("hidden_act", "gelu"), bias=True
        ),
        norm=NormConfig(epsilon=fields["layer_norm_eps"]),
        **options,
    )


def dual_from_hf(fields: Fields, head: str) -> DualConfig:
    """Translate a CLIPConfig."""
    del head
    return DualConfig(
        text=text_from_hf(tower_fields(fields, "text_config"), "dual"),
        image=image_from_hf(tower_fields(fields, "vision_config"), "dual"),
    )


def text_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a CLIPTextConfig."""
    end = config.head.token_id
    return _projection_to_hf(config) | text_stack_to_hf(config) | {
        "eos_token_id": LEGACY_EOS_TOKEN_ID if end is None else end
    }  # fmt: skip


def text_stack_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields of a text tower."""
    embedding = config.embedding
    return tower_to_hf(config) | {
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": embedding.positions.max_length,
    }


def image_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a CLIPVisionConfig."""
    return _projection_to_hf(config) | image_stack_to_hf(config)


def image_stack_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields of an image tower."""
    patch = config.embedding.patches
    return tower_to_hf(config) | {
        "image_size": patch.image_size,
        "patch_size": patch.patch_size,
        "num_channels": patch.num_channels,
    }


def tower_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The fields that both towers have."""
    stack = config.output_stack
    return {
        "hidden_size": stack.width,
        "intermediate_size": stack.mlp.hidden_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.attention.num_heads,
        "hidden_act": activation_name(stack.mlp.activation),
        "layer_norm_eps": stack.norm.epsilon,
        "attention_dropout": stack.attention.dropout,
    }


def _projection_to_hf(config: TransformerConfig) -> dict[str, Any]:
    return {} if config.head.projection is None else {"projection_dim": config.head.projection}


def dual_to_hf(config: DualConfig) -> dict[str, Any]:
    """Write a CLIPConfig."""
    towers = {"text_config": text_to_hf(config.text), "vision_config": image_to_hf(config.image)}
    return towers | {"projection_dim": config.text.head.projection}


def text_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the text tower."""
    del config
    return [
        *text_rules(),
        *([] if head == "base" else linear("text_projection", "head/projection")),
    ]


def text_rules() -> list[Rule]:
    """The rows of a text tower without its head."""
    return [
        *table("text_model.embeddings.token_embedding", "embedder/token"),
        *table("text_model.embeddings.position_embedding", "embedder/position"),
        *layer_rules("text_model.encoder.layers.{layer}"),
        *norm("text_model.final_layer_norm", "encoder/final_norm"),
    ]


def image_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table of the image tower."""
    return [
        rule("vision_model.embeddings.class_embedding", "embedder/patch/class_token"),
        *image_rules(config),
        *norm("vision_model.pre_layrnorm", "embedder/norm"),
        *norm("vision_model.post_layernorm", "head/norm"),
        *([] if head == "base" else linear("visual_projection", "head/projection")),
    ]


def image_rules(config: TransformerConfig) -> list[Rule]:
    """The rows of an image tower without norms around it."""
    patch = config.embedding.patches
    cut = patches(patch.patch_size, patch.num_channels)
    return [
        *linear("vision_model.embeddings.patch_embedding", "embedder/patch/projection", cut),
        *table("vision_model.embeddings.position_embedding", "embedder/position"),
        *layer_rules("vision_model.encoder.layers.{layer}"),
    ]


def layer_rules(layer: str) -> list[Rule]:
    """The rows of a layer."""
    return [
        *linear(f"{layer}.self_attn.q_proj", "encoder/attention/query"),
        *linear(f"{layer}.self_attn.k_proj", "encoder/attention/key"),
        *linear(f"{layer}.self_attn.v_proj", "encoder/attention/value"),
        *linear(f"{layer}.self_attn.out_proj", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.layer_norm1", "encoder/attention_input_norm"),
        *norm(f"{layer}.layer_norm2", "encoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.fc1", "encoder/mlp/up"),
        *linear(f"{layer}.mlp.fc2", "encoder/mlp/down"),
    ]


def dual_weights(config: DualConfig, head: str) -> list[Rule]:
    """The table of both towers."""
    del head
    return [
        *under("text", text_weights(config.text, "dual")),
        *under("image", image_weights(config.image, "dual")),
        rule("logit_scale", "logit_scale"),
    ]


TINY_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TINY_TEXT = TINY_TOWER | {"vocab_size": 99, "max_position_embeddings": 40, "eos_token_id": 16, "pad_token_id": 1}
TINY_IMAGE = TINY_TOWER | {"image_size": 16, "patch_size": 4}
POSITION_IDS = r"embeddings\.position_ids$"
SCORES = r"^logit_(scale|bias)$"


def tower(model_type: str, head: str = "base") -> Part:
    """A tower of a dual model, as a part of it."""
    name = "vision_config" if "vision" in model_type else "text_config"
    return Part(model_type=model_type, head=head, fields=functools.partial(tower_fields, name=name))


ARCHITECTURES = [
    Architecture(
        model_type="clip",
        classes={"base": "CLIPModel"},
        config_from_hf=dual_from_hf,
        config_to_hf=dual_to_hf,
        weights=dual_weights,
        ignored=(POSITION_IDS,),
        parts={
            "text": tower("clip_text_model"),
            "image": tower("clip_vision_model"),
            "text_embedding": tower("clip_text_model", "embedding"),
            "image_embedding": tower("clip_vision_model", "embedding"),
        },
        tiny={"text_config": TINY_TEXT, "vision_config": TINY_IMAGE | {"hidden_size": 32}, "projection_dim": 20},
    ),
    Architecture(
        model_type="clip_text_model",
        classes={"base": "CLIPTextModel", "embedding": "CLIPTextModelWithProjection"},
        config_from_hf=text_from_hf,
        config_to_hf=text_to_hf,
        weights=text_weights,
        prefix="text_model.",
        ignored=(POSITION_IDS, SCORES, r"^(vision_model|visual_projection)\."),
        tiny=TINY_TEXT | {"projection_dim": 20, "*embedding": {"eos_token_id": LEGACY_EOS_TOKEN_ID}},
    ),
    Architecture(
        model_type="clip_vision_model",
        classes={"base": "CLIPVisionModel", "embedding": "CLIPVisionModelWithProjection"},
        config_from_hf=image_from_hf,
        config_to_hf=image_to_hf,
        weights=image_weights,
        prefix="vision_model.",
        ignored=(POSITION_IDS, SCORES, r"^(text_model|text_projection)\."),
        tiny=TINY_IMAGE | {"projection_dim": 20},
    ),
]
