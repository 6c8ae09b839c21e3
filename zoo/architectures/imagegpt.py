"""ImageGPT (Chen et al. 2020): a decoder over the colour clusters of an image's pixels."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import INPUT_FIRST, INPUT_FIRST_OF_HEADS, LINEAR, Rule, fused_linear, linear, norm, rule, table


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an ImageGPTConfig."""
    fields.expect(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    fields.expect(tie_word_embeddings=False)
    width, heads = fields.get("n_embd", 512), fields.get("n_head", 8)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            vocab_size=fields.get("vocab_size", 513),
            positions=LearnedPositions(max_length=fields.get("n_positions", 1024)),
            dropout=fields.get("embd_pdrop", 0.1),
        ),
        decoder=StackConfig(
            num_layers=fields.get("n_layer", 24),
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output"),
                dropout=fields.get("attn_pdrop", 0.1),
            ),
            mlp=MlpConfig(
                hidden_size=fields.get("n_inner", 4 * width),
                activation=fields.activation("activation_function", "quick_gelu"),
                bias=True,
            ),
            causal=True,
            norm=NormConfig(kind="rms", epsilon=fields.get("layer_norm_epsilon", 1e-5), bias=False),
            dropout=fields.get("resid_pdrop", 0.1),
        ),
        head=_head(fields, head),
    )


def _head(fields: Fields, head: str) -> Head | None:
    match head:
        case "causal_lm":
            return LanguageModelHead(tied=False, num_ids=fields.get("vocab_size", 513) - 1)
        case "image_classification":
            return ClassifierHead(num_classes=fields.num_labels(), pooling="mean_with_padding", bias=False)
        case _:
            return None


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write an ImageGPTConfig."""
    stack, embedding = config.output_stack, config.embedding
    return {
        "vocab_size": embedding.vocab_size,
        "n_positions": embedding.positions.max_length,
        "n_embd": stack.width,
        "n_layer": stack.num_layers,
        "n_head": stack.attention.num_heads,
        "n_inner": stack.mlp.hidden_size,
        "activation_function": activation_name(stack.mlp.activation),
        "layer_norm_epsilon": stack.norm.epsilon,
        "embd_pdrop": embedding.dropout,
        "attn_pdrop": stack.attention.dropout,
        "resid_pdrop": stack.dropout,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    del config
    layer = "transformer.h.{layer}"
    inputs = [f"decoder/attention/{name}" for name in ("query", "key", "value")]
    heads = {
        "causal_lm": [rule("lm_head.weight", "head/kernel", LINEAR)],
        "image_classification": linear("score", "head/logits"),
    }
    return [
        *table("transformer.wte", "embedder/token"),
        *table("transformer.wpe", "embedder/position"),
        *fused_linear(f"{layer}.attn.c_attn", inputs, INPUT_FIRST),
        *linear(f"{layer}.attn.c_proj", "decoder/attention/output", INPUT_FIRST_OF_HEADS),
        *norm(f"{layer}.ln_1", "decoder/attention_input_norm"),
        *norm(f"{layer}.ln_2", "decoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.c_fc", "decoder/mlp/up", INPUT_FIRST),
        *linear(f"{layer}.mlp.c_proj", "decoder/mlp/down", INPUT_FIRST),
        *norm("transformer.ln_f", "decoder/final_norm"),
        *heads.get(head, []),
    ]


TINY = {
    "vocab_size": 65,
    "n_positions": 64,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 40,
    "activation_function": "quick_gelu",
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

ARCHITECTURES = [
    Architecture(
        model_type="imagegpt",
        classes={
            "base": "ImageGPTModel",
            "causal_lm": "ImageGPTForCausalImageModeling",
            "image_classification": "ImageGPTForImageClassification",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="transformer.",
        ignored=(r"\.attn\.(bias|masked_bias)$",),
        tiny=TINY,
    )
]
