"""T5 (Raffel et al. 2020), with version 1.1, Flan-T5 and ByT5; mT5 and UMT5: text to text with relative positions."""

import dataclasses
from typing import Any

from zoo.architectures.architecture import ACTIVATIONS, Architecture, Fields, activation_name, shift_right
from zoo.architectures.heads import label_weights
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    MlpConfig,
    NormConfig,
    RelativeBiasConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, CheckpointError, Rule, linear, norm, table

_ENCODERS = ("encoder", "token_classification")
"""Heads without a decoder."""


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a T5Config, MT5Config or UMT5Config."""
    fields.expect(is_decoder=False)
    layers = fields["num_layers"]
    encoder = _stack(fields, layers)
    attention = encoder.attention
    decoder = dict(num_layers=fields.get("num_decoder_layers", layers), causal=True, cross_attention=attention)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=encoder.width, vocab_size=fields["vocab_size"], dropout=fields.get("dropout_rate", 0.1)
        ),
        encoder=encoder,
        decoder=None if head in _ENCODERS else dataclasses.replace(encoder, **decoder),
        head=_head(fields, head, encoder.width),
    )


def _stack(fields: Fields, num_layers: int) -> StackConfig:
    dropout = fields.get("dropout_rate", 0.1)
    return StackConfig(
        num_layers=num_layers,
        width=fields["d_model"],
        attention=AttentionConfig(
            num_heads=fields["num_heads"], head_size=fields.get("d_kv", 64), scale=1.0, dropout=dropout
        ),
        mlp=_mlp(fields),
        norm=NormConfig(kind="rms", epsilon=fields.get("layer_norm_epsilon", 1e-6), bias=False),
        position_bias=RelativeBiasConfig(
            num_buckets=fields.get("relative_attention_num_buckets", 32),
            max_distance=fields.get("relative_attention_max_distance", 128),
            per_layer=fields["model_type"] == "umt5",
        ),
        dropout=dropout,
    )


def _mlp(fields: Fields) -> MlpConfig:
    """`feed_forward_proj` names activation and gate in one, and later files each in a field of its own."""
    proj = fields.get("feed_forward_proj", "relu" if fields["model_type"] == "t5" else "gated-gelu")
    gate, _, name = proj.rpartition("-")
    if gate not in ("", "gated") or name not in ACTIVATIONS:
        raise CheckpointError(f"{fields.origin}: feed_forward_proj is {proj!r}; zoo knows 'relu', 'gated-gelu', …")
    # The first gated models were trained with the tanh approximation and call it gelu.
    activation = "gelu_new" if proj == "gated-gelu" else name
    return MlpConfig(
        hidden_size=fields["d_ff"],
        activation=fields.activation("dense_act_fn", activation),
        gated=fields.get("is_gated_act", gate == "gated"),
    )


def _head(fields: Fields, head: str, width: int) -> Head | None:
    match head:
        case "seq2seq_lm":
            return LanguageModelHead(
                tied=fields.are_tied("shared.weight", "lm_head.weight"), scale=width**-0.5 if _scales(fields) else 1.0
            )
        case "sequence_classification":
            return ClassifierHead(
                num_classes=fields.num_labels(), pooling="last", end_id=fields.get("eos_token_id", 1), pooler="tanh"
            )
        case "token_classification" | "question_answering":
            return TokenHead(num_classes=fields.num_labels())
        case _:
            return None


def _scales(fields: Fields) -> bool:
    """Whether the logits are scaled, which is not whether they are tied: version 1.1 has a table of its own for them,
    and fine-tuned, saved again or made anew its models may be tied and have no scale.
    """
    if fields["model_type"] != "t5":
        return fields["model_type"] == "umt5"
    return fields.get("scale_decoder_outputs", fields.get("tie_word_embeddings", True))


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a T5Config, MT5Config or UMT5Config."""
    stack, bias = config.encoder, config.encoder.position_bias
    activation = "gelu_new" if stack.mlp.activation == "gelu_tanh" else activation_name(stack.mlp.activation)
    fields = {
        "vocab_size": config.embedding.vocab_size,
        "d_model": stack.width,
        "d_kv": stack.attention.head_size,
        "d_ff": stack.mlp.hidden_size,
        "num_layers": stack.num_layers,
        "num_heads": stack.attention.num_heads,
        "feed_forward_proj": _projection(activation, stack.mlp.gated),
        "dense_act_fn": activation,
        "is_gated_act": stack.mlp.gated,
        "dropout_rate": stack.dropout,
        "layer_norm_epsilon": stack.norm.epsilon,
        "relative_attention_num_buckets": bias.num_buckets,
        "relative_attention_max_distance": bias.max_distance,
    }
    if config.decoder is not None:
        fields["num_decoder_layers"] = config.decoder.num_layers
    if isinstance(config.head, LanguageModelHead):
        fields["scale_decoder_outputs"] = config.head.scale != 1.0
    return fields


def _projection(activation: str, gated: bool) -> str:
    if not gated:
        return activation
    return "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    base = "transformer." if head in ("sequence_classification", "token_classification") else ""
    aliases = [f"{base}{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    if isinstance(config.head, LanguageModelHead) and config.head.tied:
        aliases.append("lm_head.weight")
    return [
        *table(f"{base}shared", "embedder/token", aliases=tuple(aliases)),
        *_stack_weights(f"{base}encoder", "encoder", config.encoder),
        *_stack_weights(f"{base}decoder", "decoder", config.encoder),
        *_head_weights(head),
    ]


def _stack_weights(theirs: str, ours: str, stack: StackConfig) -> list[Rule]:
    layer = f"{theirs}.block.{{layer}}.layer"
    bias = "0.SelfAttention.relative_attention_bias"
    if stack.position_bias.per_layer:
        rows = table(f"{layer}.{bias}", f"{ours}/relative_position_bias")
    else:
        rows = table(f"{theirs}.block.0.layer.{bias}", f"{ours}/position_bias")
    rows += _attention_weights(f"{layer}.0", "SelfAttention", f"{ours}/attention")
    if ours == "decoder":
        rows += _attention_weights(f"{layer}.1", "EncDecAttention", f"{ours}/cross_attention")
    mlp = f"{layer}.{1 if ours == 'encoder' else 2}"
    up = {"wi_0": "gate", "wi_1": "up"} if stack.mlp.gated else {"wi": "up"}
    for name, part in (up | {"wo": "down"}).items():
        rows += linear(f"{mlp}.DenseReluDense.{name}", f"{ours}/mlp/{part}")
    rows += norm(f"{mlp}.layer_norm", f"{ours}/mlp_input_norm")
    return rows + norm(f"{theirs}.final_layer_norm", f"{ours}/final_norm")


def _attention_weights(layer: str, theirs: str, ours: str) -> list[Rule]:
    rows = norm(f"{layer}.layer_norm", f"{ours}_input_norm")
    for name, part in {"q": "query", "k": "key", "v": "value"}.items():
        rows += linear(f"{layer}.{theirs}.{name}", f"{ours}/{part}")
    return rows + linear(f"{layer}.{theirs}.o", f"{ours}/output", LINEAR_OF_HEADS)


def _head_weights(head: str) -> list[Rule]:
    match head:
        case "seq2seq_lm":
            return linear("lm_head", "head")
        case "sequence_classification":
            return [
                *linear("classification_head.dense", "head/pooler"),
                *linear("classification_head.out_proj", "head/logits"),
            ]
        case _:
            return label_weights(head)


TINY = {
    "vocab_size": 61,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 28,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}


def _architecture(model_type: str, name: str, **tiny: Any) -> Architecture:
    return Architecture(
        model_type=model_type,
        classes={
            "base": f"{name}Model",
            "encoder": f"{name}EncoderModel",
            "seq2seq_lm": f"{name}ForConditionalGeneration",
            "sequence_classification": f"{name}ForSequenceClassification",
            "token_classification": f"{name}ForTokenClassification",
            "question_answering": f"{name}ForQuestionAnswering",
        },
        also_reads={"T5WithLMHeadModel": "seq2seq_lm"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="transformer.",
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
        decoder_inputs={"sequence_classification": shift_right, "question_answering": shift_right},
        defaults={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
        tiny=TINY | tiny,
    )


ARCHITECTURES = [
    _architecture("t5", "T5", feed_forward_proj="relu"),
    _architecture("mt5", "MT5", feed_forward_proj="gated-gelu"),
    _architecture("umt5", "UMT5", feed_forward_proj="gated-gelu"),
]
