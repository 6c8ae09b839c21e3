"""BART (Lewis et al. 2020) and mBART (Liu et al. 2020): encoder-decoders with learned positions, post- and pre-norm.

`translate`, `config_to_hf` and `table_of` also serve the families that descend from them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from zoo.architectures.architecture import Architecture, Fields, activation_name, shift_right
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    NormSlot,
    SinusoidalPositions,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, rule, table, unit_axes

Side = Literal["encoder", "decoder"]


def bart_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a BartConfig."""
    return translate(fields, head, learned_positions(fields), "residual", embedding_norm=True)


def mbart_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an MBartConfig."""
    return translate(fields, head, learned_positions(fields), "input", embedding_norm=True)


def learned_positions(fields: Fields) -> LearnedPositions:
    """A table that begins with two rows of no use."""
    return LearnedPositions(max_length=fields.get("max_position_embeddings", 1024), offset=2)


def translate(
    fields: Fields,
    head: str,
    positions: LearnedPositions | SinusoidalPositions,
    norm_slot: NormSlot,
    embedding_norm: bool = False,
) -> TransformerConfig:
    """The configuration of an encoder-decoder whose fields are named as BART's.

    Args:
        fields: config.json.
        head: as in `Architecture.classes`.
        positions: of both sides.
        norm_slot: "residual" is post-norm; "input" is pre-norm, with a norm after each stack.
        embedding_norm: whether embeddings are normalised.
    """
    width = fields.get("d_model", 1024)
    embedding = EmbeddingConfig(
        width=width,
        vocab_size=fields["vocab_size"],
        positions=positions,
        scale=math.sqrt(width) if fields.get("scale_embedding", False) else 1.0,
        norm=NormConfig() if embedding_norm else None,
        dropout=fields.get("dropout", 0.1),
    )
    return TransformerConfig(
        embedding=embedding,
        decoder_embedding=dataclasses.replace(embedding, vocab_size=None),
        encoder=_stack(fields, "encoder", norm_slot),
        decoder=_stack(fields, "decoder", norm_slot),
        head=_head(fields, head),
    )


def _stack(fields: Fields, side: Side, norm_slot: NormSlot) -> StackConfig:
    width, heads = fields.get("d_model", 1024), fields.get(f"{side}_attention_heads", 16)
    attention = AttentionConfig(
        num_heads=heads,
        head_size=width // heads,
        biases=("query", "key", "value", "output"),
        dropout=fields.get("attention_dropout", 0.0),
    )
    return StackConfig(
        num_layers=fields.get(f"{side}_layers", 12),
        width=width,
        attention=attention,
        cross_attention=attention if side == "decoder" else None,
        mlp=MlpConfig(
            hidden_size=fields.get(f"{side}_ffn_dim", 4096),
            activation=fields.activation("activation_function", "gelu"),
            bias=True,
        ),
        causal=side == "decoder",
        norm_slots=(norm_slot,),
        final_norm=norm_slot == "input",
        dropout=fields.get("dropout", 0.1),
    )


def _head(fields: Fields, head: str) -> Head | None:
    match head:
        case "seq2seq_lm":
            return LanguageModelHead(tied=fields.get("tie_word_embeddings", True), bias=True)
        case "sequence_classification":
            return ClassifierHead(
                num_classes=fields.num_labels(default=3 if fields["model_type"] == "bart" else 2),
                pooling="last",
                end_id=fields["eos_token_id"],
                pooler="tanh",
            )
        case "question_answering":
            return TokenHead(num_classes=2)
        case _:
            return None


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a BartConfig, or one with the same fields."""
    encoder, decoder, embedding = config.encoder, config.decoder, config.embedding
    fields: dict[str, Any] = {
        "vocab_size": embedding.vocab_size,
        "d_model": embedding.width,
        "activation_function": activation_name(encoder.mlp.activation),
        "dropout": encoder.dropout,
        "attention_dropout": encoder.attention.dropout,
        "scale_embedding": embedding.scale != 1.0,
    }
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        fields[f"{side}_layers"] = stack.num_layers
        fields[f"{side}_attention_heads"] = stack.attention.num_heads
        fields[f"{side}_ffn_dim"] = stack.mlp.hidden_size
    if isinstance(embedding.positions, LearnedPositions):
        fields["max_position_embeddings"] = embedding.positions.max_length
    if isinstance(config.head, LanguageModelHead):
        fields["tie_word_embeddings"] = config.head.tied
    return fields


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    return [
        *shared_tokens(config),
        *table("model.encoder.embed_positions", "embedder/position"),
        *table("model.decoder.embed_positions", "decoder_embedder/position"),
        *norm("model.encoder.layernorm_embedding", "embedder/norm"),
        *norm("model.decoder.layernorm_embedding", "decoder_embedder/norm"),
        *stack_weights(config.encoder, "encoder"),
        *stack_weights(config.decoder, "decoder"),
        *head_weights(config, head),
    ]


def shared_tokens(config: TransformerConfig) -> list[Rule]:
    """The row of the one token table, of which files keep up to four copies."""
    copies = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    if isinstance(config.head, LanguageModelHead) and config.head.tied:
        copies.append("lm_head.weight")
    return table("model.shared", "embedder/token", aliases=tuple(copies))


def stack_weights(stack: StackConfig, side: Side) -> list[Rule]:
    """The rows of an encoder or a decoder."""
    layer, slot = f"model.{side}.layers.{{layer}}", stack.norm_slots[0]
    rows = norm(f"model.{side}.layer_norm", f"{side}/final_norm")
    for theirs, ours in (("self_attn", "attention"), ("encoder_attn", "cross_attention")):
        rows += [
            *linear(f"{layer}.{theirs}.q_proj", f"{side}/{ours}/query"),
            *linear(f"{layer}.{theirs}.k_proj", f"{side}/{ours}/key"),
            *linear(f"{layer}.{theirs}.v_proj", f"{side}/{ours}/value"),
            *linear(f"{layer}.{theirs}.out_proj", f"{side}/{ours}/output", LINEAR_OF_HEADS),
            *norm(f"{layer}.{theirs}_layer_norm", f"{side}/{ours}_{slot}_norm"),
        ]
    return [
        *rows,
        *linear(f"{layer}.fc1", f"{side}/mlp/up"),
        *linear(f"{layer}.fc2", f"{side}/mlp/down"),
        *norm(f"{layer}.final_layer_norm", f"{side}/mlp_{slot}_norm"),
    ]


def head_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The rows of a head."""
    match head:
        case "seq2seq_lm":
            tied = isinstance(config.head, LanguageModelHead) and config.head.tied
            bias = rule("final_logits_bias", "head/bias", unit_axes(1), optional=True)
            return [bias] if tied else [bias, *linear("lm_head", "head")[:1]]
        case "sequence_classification":
            return [
                *linear("classification_head.dense", "head/pooler"),
                *linear("classification_head.out_proj", "head/logits"),
            ]
        case "question_answering":
            return linear("qa_outputs", "head")
        case _:
            return []


def wrap_right(ids: np.ndarray, fields: Mapping[str, Any]) -> np.ndarray:
    """`decoder_input_ids` from `input_ids`: the last token that is not padding, a language, then all but the last."""
    last = (ids != fields["pad_token_id"]).sum(1, keepdims=True) - 1
    return np.concatenate([np.take_along_axis(ids, last, 1), ids[:, :-1]], 1)


SPECIAL_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "forced_eos_token_id": 2}

TINY = {
    "vocab_size": 41,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
    "max_position_embeddings": 40,
    "scale_embedding": True,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}


def _classes(name: str) -> dict[str, str]:
    return {
        "base": f"{name}Model",
        "seq2seq_lm": f"{name}ForConditionalGeneration",
        "sequence_classification": f"{name}ForSequenceClassification",
        "question_answering": f"{name}ForQuestionAnswering",
    }


ARCHITECTURES = [
    Architecture(
        model_type="bart",
        classes=_classes("Bart"),
        config_from_hf=bart_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        ignored=(r"(encoder|decoder)\.version$",),
        defaults=SPECIAL_IDS | {"decoder_start_token_id": 2},
        decoder_inputs=dict.fromkeys(_classes("Bart"), shift_right),
        tiny=TINY,
    ),
    Architecture(
        model_type="mbart",
        classes=_classes("MBart"),
        config_from_hf=mbart_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        ignored=(r"(encoder|decoder)\.version$",),
        defaults=SPECIAL_IDS,
        decoder_inputs=dict.fromkeys(_classes("MBart"), wrap_right),
        tiny=TINY,
    ),
]
