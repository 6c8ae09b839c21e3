"""ModernBERT (Warner et al. 2024): a pre-norm encoder, rotary, gated, with local layers between global ones."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.llama import shortest_period
from zoo.architectures.rotary import LayerType, rotary_from_hf
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    LocalConfig,
    MlpConfig,
    NormConfig,
    RotaryConfig,
    Span,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, fused_linear, linear, norm, table

SPANS: dict[str, Span] = {"full_attention": "global", "sliding_attention": "local"}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a ModernBertConfig."""
    width, heads, num_layers = (fields[name] for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    norms = NormConfig(epsilon=fields.get("norm_eps", 1e-5), bias=fields.get("norm_bias", False))
    pattern = _pattern(fields, num_layers)
    # The field is the whole window, and half of it lies on each side.
    reach = fields.get("local_attention", 128) // 2
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width, vocab_size=fields["vocab_size"], norm=norms, dropout=fields.get("embedding_dropout", 0.0)
        ),
        encoder=StackConfig(
            num_layers=num_layers,
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output") if fields.get("attention_bias", False) else (),
                rotary=_rotary(fields, "full_attention", "global_rope_theta", 160_000.0),
                dropout=fields.get("attention_dropout", 0.0),
            ),
            mlp=MlpConfig(
                hidden_size=fields["intermediate_size"],
                activation=fields.activation("hidden_activation", "gelu"),
                gated=True,
                bias=fields.get("mlp_bias", False),
            ),
            norm=norms,
            first_norm=False,
            pattern=pattern,
            local=LocalConfig(
                window=(reach, reach), rotary=_rotary(fields, "sliding_attention", "local_rope_theta", 10_000.0)
            )
            if "local" in pattern
            else None,
        ),
        head=_head(fields, head, norms),
    )


def _pattern(fields: Fields, num_layers: int) -> tuple[Span, ...]:
    """The shortest pattern that, repeated, says which layers are local."""
    every = fields.get("global_attn_every_n_layers", 3)
    default = ["sliding_attention" if index % every else "full_attention" for index in range(num_layers)]
    spans: tuple[Span, ...] = tuple(SPANS[name] for name in fields.get("layer_types", default)[:num_layers])
    return shortest_period(spans)


def _rotary(fields: Fields, layer_type: LayerType, old_name: str, default: float) -> RotaryConfig:
    fields.expect(rope_scaling=None)
    fields.fields("rope_parameters").fields(layer_type).expect(rope_type="default")
    size, length = fields["hidden_size"] // fields["num_attention_heads"], fields.get("max_position_embeddings", 8192)
    return rotary_from_hf(fields, size, max_length=length, base=default, layer_type=layer_type, base_field=old_name)


def _head(fields: Fields, head: str, norms: NormConfig) -> Head | None:
    activation, bias = fields.activation("classifier_activation", "gelu"), fields.get("classifier_bias", False)
    match head:
        case "masked_lm":
            return LanguageModelHead(
                tied=fields.get("tie_word_embeddings", True),
                bias=fields.get("decoder_bias", True),
                transform=activation,
                transform_bias=bias,
            )
        case "sequence_classification":
            poolings = {"cls": "first", "mean": "mean"}
            return ClassifierHead(
                num_classes=fields.num_labels(),
                pooling=poolings[fields.get("classifier_pooling", "cls")],
                pooler=activation,
                pooler_bias=bias,
                pooler_norm=norms,
            )
        case "token_classification" | "question_answering":
            return TokenHead(num_classes=fields.num_labels(), transform=activation, transform_bias=bias)
        case _:
            return None


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a ModernBertConfig."""
    stack, embedding = config.output_stack, config.embedding
    names = {span: name for name, span in SPANS.items()}
    fields = {
        "vocab_size": embedding.vocab_size,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.attention.num_heads,
        "intermediate_size": stack.mlp.hidden_size,
        "hidden_activation": activation_name(stack.mlp.activation),
        "embedding_dropout": embedding.dropout,
        "attention_dropout": stack.attention.dropout,
        "attention_bias": bool(stack.attention.biases),
        "mlp_bias": stack.mlp.bias,
        "norm_eps": stack.norm.epsilon,
        "norm_bias": stack.norm.bias,
        "layer_types": [names[stack.pattern[index % len(stack.pattern)]] for index in range(stack.num_layers)],
        "global_rope_theta": stack.attention.rotary.base,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": stack.attention.rotary.base}},
    }
    if stack.local is not None and stack.local.window is not None:
        local = stack.local.rotary.base
        fields |= {"local_attention": 2 * stack.local.window[0], "local_rope_theta": local}
        fields["rope_parameters"]["sliding_attention"] = {"rope_type": "default", "rope_theta": local}
    return fields | _head_to_hf(config)


def _head_to_hf(config: TransformerConfig) -> dict[str, Any]:
    match config.head:
        case LanguageModelHead(tied=tied, bias=bias, transform=activation, transform_bias=dense_bias):
            fields = {"tie_word_embeddings": tied, "decoder_bias": bias}
        case ClassifierHead(pooling=pooling, pooler=activation, pooler_bias=dense_bias):
            fields = {"classifier_pooling": "cls" if pooling == "first" else pooling}
        case TokenHead(transform=activation, transform_bias=dense_bias):
            fields = {}
        case _:
            return {}
    return fields | {"classifier_activation": activation_name(activation), "classifier_bias": dense_bias}


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer, pooled = "model.layers.{layer}", isinstance(config.head, ClassifierHead)
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    return [
        *table("model.embeddings.tok_embeddings", "embedder/token", aliases=("decoder.weight",) if tied else ()),
        *norm("model.embeddings.norm", "embedder/norm"),
        *norm(f"{layer}.attn_norm", "encoder/attention_input_norm", first=1),
        *fused_linear(f"{layer}.attn.Wqkv", [f"encoder/attention/{name}" for name in ("query", "key", "value")]),
        *linear(f"{layer}.attn.Wo", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.mlp_norm", "encoder/mlp_input_norm"),
        *fused_linear(f"{layer}.mlp.Wi", ("encoder/mlp/gate", "encoder/mlp/up")),
        *linear(f"{layer}.mlp.Wo", "encoder/mlp/down"),
        *norm("model.final_norm", "encoder/final_norm"),
        *linear("head.dense", "head/pooler" if pooled else "head/transform"),
        *norm("head.norm", "head/pooler_norm" if pooled else "head/norm"),
        *(linear("decoder", "head") if head == "masked_lm" else linear("classifier", "head/logits")),
    ]


TINY = {
    "vocab_size": 71,
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "hidden_activation": "gelu",
    "max_position_embeddings": 40,
    "norm_eps": 1e-5,
    "global_attn_every_n_layers": 3,
    "local_attention": 10,
    "classifier_pooling": "mean",
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

ARCHITECTURES = [
    Architecture(
        model_type="modernbert",
        classes={
            "base": "ModernBertModel",
            "masked_lm": "ModernBertForMaskedLM",
            "sequence_classification": "ModernBertForSequenceClassification",
            "token_classification": "ModernBertForTokenClassification",
            "question_answering": "ModernBertForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        tiny=TINY,
    )
]
