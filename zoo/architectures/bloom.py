"""BLOOM (BigScience 2022): a decoder with ALiBi and normalised embeddings; queries, keys and values fused by head."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.config import (
    AlibiConfig,
    AttentionConfig,
    EmbeddingConfig,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import FUSED_HEADS, LINEAR_OF_HEADS, Rule, fused_linear, linear, norm


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a BloomConfig."""
    fields.expect(apply_residual_connection_post_layernorm=False)
    fields = fields.with_second_names(n_layer="num_hidden_layers", n_head="num_attention_heads", n_embed="hidden_size")
    width, heads = fields["n_embed"], fields["n_head"]
    norms = NormConfig(epsilon=fields.get("layer_norm_epsilon", 1e-5))
    return TransformerConfig(
        embedding=EmbeddingConfig(width=width, vocab_size=fields["vocab_size"], norm=norms),
        decoder=StackConfig(
            num_layers=fields["n_layer"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output"),
                dropout=fields.get("attention_dropout", 0.0),
            ),
            mlp=MlpConfig(hidden_size=4 * width, activation="gelu_tanh", bias=True),
            causal=True,
            norm=norms,
            position_bias=AlibiConfig(),
            dropout=fields.get("hidden_dropout", 0.0),
        ),
        head=decoder_head(fields, head, tied=True),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a BloomConfig."""
    stack = config.output_stack
    return {
        "vocab_size": config.embedding.vocab_size,
        "hidden_size": stack.width,
        "n_layer": stack.num_layers,
        "n_head": stack.attention.num_heads,
        "layer_norm_epsilon": stack.norm.epsilon,
        "attention_dropout": stack.attention.dropout,
        "hidden_dropout": stack.dropout,
        **head_to_hf(config),
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "transformer.h.{layer}"
    projections = ["decoder/attention/query", "decoder/attention/key", "decoder/attention/value"]
    return [
        *decoder_head_weights(config, head, "transformer.word_embeddings", labels="classifier"),
        *norm("transformer.word_embeddings_layernorm", "embedder/norm"),
        *norm(f"{layer}.input_layernorm", "decoder/attention_input_norm"),
        *fused_linear(f"{layer}.self_attention.query_key_value", projections, FUSED_HEADS),
        *linear(f"{layer}.self_attention.dense", "decoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.post_attention_layernorm", "decoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.dense_h_to_4h", "decoder/mlp/up"),
        *linear(f"{layer}.mlp.dense_4h_to_h", "decoder/mlp/down"),
        *norm("transformer.ln_f", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="bloom",
        classes={
            "base": "BloomModel",
            "causal_lm": "BloomForCausalLM",
            "sequence_classification": "BloomForSequenceClassification",
            "token_classification": "BloomForTokenClassification",
            "question_answering": "BloomForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="transformer.",
        tiny={
            "vocab_size": 79,
            "hidden_size": 24,
            "n_layer": 2,
            "n_head": 6,
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
        },
    )
]
