"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): two branches side by side, partly rotated heads."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.architectures.rotary import rotary_from_hf, rotary_to_hf
from zoo.config import AttentionConfig, EmbeddingConfig, MlpConfig, NormConfig, StackConfig, TransformerConfig
from zoo.weights import FUSED_HEADS, LINEAR_OF_HEADS, Rule, fused_linear, linear, norm


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a GPTNeoXConfig."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    dropout = fields.get("hidden_dropout", 0.0)
    rotary = rotary_from_hf(
        fields,
        width // heads,
        max_length=fields.get("max_position_embeddings", 2048),
        fraction=fields.get("rotary_pct", 0.25),
        base_field="rotary_emb_base",
    )
    return TransformerConfig(
        embedding=EmbeddingConfig(width=width, vocab_size=fields["vocab_size"], dropout=dropout),
        decoder=StackConfig(
            num_layers=fields["num_hidden_layers"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output") if fields.get("attention_bias", True) else (),
                rotary=rotary,
                dropout=fields.get("attention_dropout", 0.0),
            ),
            mlp=MlpConfig(
                hidden_size=fields["intermediate_size"],
                activation=fields.activation("hidden_act", "gelu"),
                bias=True,
            ),
            causal=True,
            norm=NormConfig(epsilon=fields.get("layer_norm_eps", 1e-5)),
            branches="parallel" if fields.get("use_parallel_residual", True) else "sequential",
            dropout=dropout,
        ),
        head=decoder_head(fields, head, tied=False),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a GPTNeoXConfig."""
    stack = config.output_stack
    attention = stack.attention
    return {
        "vocab_size": config.embedding.vocab_size,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": attention.num_heads,
        "intermediate_size": stack.mlp.hidden_size,
        "hidden_act": activation_name(stack.mlp.activation),
        "layer_norm_eps": stack.norm.epsilon,
        "use_parallel_residual": stack.branches == "parallel",
        "attention_bias": bool(attention.biases),
        "attention_dropout": attention.dropout,
        "hidden_dropout": stack.dropout,
        "rotary_emb_base": attention.rotary.base,
        "rotary_pct": 1.0 if attention.rotary.size is None else attention.rotary.size / attention.head_size,
        **rotary_to_hf(attention.rotary, attention.head_size),
        **head_to_hf(config),
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "gpt_neox.layers.{layer}"
    projections = ["decoder/attention/query", "decoder/attention/key", "decoder/attention/value"]
    return [
        *decoder_head_weights(config, head, "gpt_neox.embed_in", labels="classifier", logits="embed_out"),
        *norm(f"{layer}.input_layernorm", "decoder/attention_input_norm"),
        *fused_linear(f"{layer}.attention.query_key_value", projections, FUSED_HEADS),
        *linear(f"{layer}.attention.dense", "decoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.post_attention_layernorm", "decoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.dense_h_to_4h", "decoder/mlp/up"),
        *linear(f"{layer}.mlp.dense_4h_to_h", "decoder/mlp/down"),
        *norm("gpt_neox.final_layer_norm", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="gpt_neox",
        classes={
            "base": "GPTNeoXModel",
            "causal_lm": "GPTNeoXForCausalLM",
            "sequence_classification": "GPTNeoXForSequenceClassification",
            "token_classification": "GPTNeoXForTokenClassification",
            "question_answering": "GPTNeoXForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="gpt_neox.",
        ignored=(r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$",),
        tiny={
            "vocab_size": 79,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 40,
            "max_position_embeddings": 64,
            "rotary_pct": 0.25,
            "rotary_emb_base": 1000,
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
            "*base": {"use_parallel_residual": False},
            "*question_answering": {"attention_bias": False},
        },
    )
]
