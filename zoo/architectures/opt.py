"""OPT (Zhang et al. 2022): GPT-3's plan with ReLU. OPT-350m is post-norm, Galactica has no offsets or norm scales."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, table


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an OPTConfig."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    embedding_width = fields.get("word_embed_proj_dim", width)
    bias, affine = fields.get("enable_bias", True), fields.get("layer_norm_elementwise_affine", True)
    before = fields.get("do_layer_norm_before", True)
    dropout = fields.get("dropout", 0.1)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=embedding_width,
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(
                max_length=fields.get("max_position_embeddings", 2048), offset=2, over_mask=True
            ),
            projected="tokens",
        ),
        decoder=StackConfig(
            num_layers=fields["num_hidden_layers"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output") if bias else (),
                dropout=fields.get("attention_dropout", 0.0),
            ),
            mlp=MlpConfig(
                hidden_size=fields["ffn_dim"], activation=fields.activation("activation_function", "relu"), bias=bias
            ),
            causal=True,
            norm=NormConfig(scale=affine, bias=affine),
            norm_slots=("input",) if before else ("residual",),
            final_norm=before and not fields.get("_remove_final_layer_norm", False),
            dropout=dropout,
        ),
        output_width=None if embedding_width == width else embedding_width,
        head=decoder_head(fields, head, tied=True, padding_id=1),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write an OPTConfig."""
    stack, embedding = config.output_stack, config.embedding
    before = stack.norm_slots == ("input",)
    return {
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": embedding.positions.max_length,
        "word_embed_proj_dim": embedding.width,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.attention.num_heads,
        "ffn_dim": stack.mlp.hidden_size,
        "activation_function": activation_name(stack.mlp.activation),
        "enable_bias": stack.mlp.bias,
        "layer_norm_elementwise_affine": stack.norm.scale,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not stack.final_norm,
        "dropout": stack.dropout,
        "attention_dropout": stack.attention.dropout,
        **head_to_hf(config),
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "model.decoder.layers.{layer}"
    slot = f"{config.output_stack.norm_slots[0]}_norm"
    return [
        *decoder_head_weights(config, head, "model.decoder.embed_tokens"),
        *table("model.decoder.embed_positions", "embedder/position"),
        *linear("model.decoder.project_in", "embedder/projection"),
        *linear(f"{layer}.self_attn.q_proj", "decoder/attention/query"),
        *linear(f"{layer}.self_attn.k_proj", "decoder/attention/key"),
        *linear(f"{layer}.self_attn.v_proj", "decoder/attention/value"),
        *linear(f"{layer}.self_attn.out_proj", "decoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.self_attn_layer_norm", f"decoder/attention_{slot}"),
        *linear(f"{layer}.fc1", "decoder/mlp/up"),
        *linear(f"{layer}.fc2", "decoder/mlp/down"),
        *norm(f"{layer}.final_layer_norm", f"decoder/mlp_{slot}"),
        *norm("model.decoder.final_layer_norm", "decoder/final_norm"),
        *linear("model.decoder.project_out", "output_projection"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="opt",
        classes={
            "base": "OPTModel",
            "causal_lm": "OPTForCausalLM",
            "sequence_classification": "OPTForSequenceClassification",
            "question_answering": "OPTForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        ignored=(r"decoder\.version$",),
        tiny={
            "vocab_size": 79,
            "max_position_embeddings": 48,
            "word_embed_proj_dim": 16,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 40,
            "do_layer_norm_before": False,
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
            "*base": {"do_layer_norm_before": True, "word_embed_proj_dim": 24},
            "*question_answering": {
                "do_layer_norm_before": True,
                "enable_bias": False,
                "layer_norm_elementwise_affine": False,
            },
        },
    )
]
