"""GPT-Neo (Black et al. 2021): GPT-2 whose layers take turns in seeing all and the nearest tokens; scores unscaled."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import decoder_head, decoder_head_weights, head_to_hf
from zoo.architectures.llama import shortest_period
from zoo.config import (
    AttentionConfig,
    EmbeddingConfig,
    LearnedPositions,
    LocalConfig,
    MlpConfig,
    NormConfig,
    Span,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, table


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a GPTNeoConfig."""
    fields = fields.with_second_names(num_heads="num_attention_heads", num_layers="num_hidden_layers")
    width, heads = fields["hidden_size"], fields["num_heads"]
    pattern = _pattern(fields)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(max_length=fields.get("max_position_embeddings", 2048)),
            dropout=fields.get("embed_dropout", 0.0),
        ),
        decoder=StackConfig(
            num_layers=fields["num_layers"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("output",),
                scale=1.0,
                dropout=fields.get("attention_dropout", 0.0),
            ),
            mlp=MlpConfig(
                hidden_size=fields.get("intermediate_size", 4 * width),
                activation=fields.activation("activation_function", "gelu_new"),
                bias=True,
            ),
            causal=True,
            norm=NormConfig(epsilon=fields.get("layer_norm_epsilon", 1e-5)),
            pattern=pattern,
            local=LocalConfig(window=(fields.get("window_size", 256) - 1, 0)) if "local" in pattern else None,
            dropout=fields.get("resid_dropout", 0.0),
        ),
        head=decoder_head(fields, head, tied=True),
    )


def _pattern(fields: Fields) -> tuple[Span, ...]:
    """The shortest period of the layers' kinds, from `[[["global", "local"], 12]]`."""
    kinds = [
        kind for group, count in fields.get("attention_types", [[["global", "local"], 12]]) for kind in group * count
    ]
    if len(kinds) != fields["num_layers"]:
        raise ValueError(f"attention_types name {len(kinds)} layers and num_layers is {fields['num_layers']}")
    return shortest_period(tuple(kinds))


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a GPTNeoConfig."""
    stack = config.output_stack
    kinds = [stack.pattern[index % len(stack.pattern)] for index in range(stack.num_layers)]
    window = None if stack.local is None else stack.local.window
    return {
        "vocab_size": config.embedding.vocab_size,
        "max_position_embeddings": config.embedding.positions.max_length,
        "hidden_size": stack.width,
        "num_layers": stack.num_layers,
        "num_heads": stack.attention.num_heads,
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        "window_size": 256 if window is None else window[0] + 1,
        "intermediate_size": stack.mlp.hidden_size,
        "activation_function": activation_name(stack.mlp.activation),
        "layer_norm_epsilon": stack.norm.epsilon,
        "embed_dropout": config.embedding.dropout,
        "attention_dropout": stack.attention.dropout,
        "resid_dropout": stack.dropout,
        **head_to_hf(config),
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "transformer.h.{layer}"
    return [
        *decoder_head_weights(config, head, "transformer.wte", labels="classifier"),
        *table("transformer.wpe", "embedder/position"),
        *norm(f"{layer}.ln_1", "decoder/attention_input_norm"),
        *linear(f"{layer}.attn.attention.q_proj", "decoder/attention/query"),
        *linear(f"{layer}.attn.attention.k_proj", "decoder/attention/key"),
        *linear(f"{layer}.attn.attention.v_proj", "decoder/attention/value"),
        *linear(f"{layer}.attn.attention.out_proj", "decoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.ln_2", "decoder/mlp_input_norm"),
        *linear(f"{layer}.mlp.c_fc", "decoder/mlp/up"),
        *linear(f"{layer}.mlp.c_proj", "decoder/mlp/down"),
        *norm("transformer.ln_f", "decoder/final_norm"),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="gpt_neo",
        classes={
            "base": "GPTNeoModel",
            "causal_lm": "GPTNeoForCausalLM",
            "sequence_classification": "GPTNeoForSequenceClassification",
            "token_classification": "GPTNeoForTokenClassification",
            "question_answering": "GPTNeoForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="transformer.",
        ignored=(r"\.attn\.attention\.(masked_)?bias$",),
        tiny={
            "vocab_size": 61,
            "max_position_embeddings": 48,
            "hidden_size": 24,
            "num_layers": 4,
            "attention_types": [[["global", "local"], 2]],
            "num_heads": 4,
            "intermediate_size": 40,
            "window_size": 6,
            "activation_function": "gelu_new",
            "pad_token_id": 1,
            "id2label": {"0": "a", "1": "b", "2": "c"},
        },
    )
]
