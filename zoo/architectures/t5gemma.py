"""T5Gemma (Zhang et al. 2025): two Gemma 2 stacks, each with its own table, as encoder and decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoo.architectures.architecture import Architecture, Fields, shift_right
from zoo.architectures.gemma import gemma2_from_hf, gemma2_to_hf
from zoo.architectures.llama import TINY as DECODER_TINY
from zoo.architectures.llama import attention_weights, mlp_weights
from zoo.config import (
    ClassifierHead,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import Rule, linear, norm, table

SIDE = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
"""The reference's defaults for either stack that Gemma 2 has no default for."""
SPECIAL_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a T5GemmaConfig: a Gemma2Config a side, with dropout above both."""
    embedding, encoder = _side(fields, "encoder")
    target, decoder = _side(fields, "decoder")
    if encoder.local is not None and encoder.local.window is not None:
        # The reference counts the window's keys to each side, and those of a decoder with the query's own.
        reach = encoder.local.window[0] + 1
        encoder = dataclasses.replace(encoder, local=dataclasses.replace(encoder.local, window=(reach, reach)))
    both = head != "encoder" and fields.get("is_encoder_decoder", True)
    memory_attention = dataclasses.replace(decoder.attention, rotary=None)
    return TransformerConfig(
        embedding=embedding,
        encoder=dataclasses.replace(encoder, causal=False),
        decoder_embedding=target if both else None,
        decoder=dataclasses.replace(decoder, cross_attention=memory_attention) if both else None,
        head=_head(fields, head),
    )


def _side(fields: Fields, name: str) -> tuple[EmbeddingConfig, StackConfig]:
    """Embedding and stack of a side, as a decoder by itself."""
    own = fields.fields(name).with_defaults(SIDE).replaced(attention_dropout=fields.get("attention_dropout", 0.0))
    config, dropout = gemma2_from_hf(own, "base"), fields.get("dropout_rate", 0.0)
    stack = dataclasses.replace(config.output_stack, dropout=dropout)
    return dataclasses.replace(config.embedding, dropout=dropout), stack


def _head(fields: Fields, head: str) -> Head | None:
    decoder = fields.fields("decoder")
    match head:
        case "seq2seq_lm":
            return LanguageModelHead(
                tied=fields.get("tie_word_embeddings", True), softcap=decoder.nullable("final_logit_softcapping", 30.0)
            )
        case "sequence_classification":
            padding_id = fields.nullable("pad_token_id", decoder.nullable("pad_token_id", SPECIAL_IDS["pad_token_id"]))
            return ClassifierHead(num_classes=fields.num_labels(), pooling="last", padding_id=padding_id)
        case "token_classification":
            return TokenHead(num_classes=fields.num_labels())
        case _:
            return None


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a T5GemmaConfig."""
    encoder = config.encoder
    if encoder.local is not None and encoder.local.window is not None:
        window = (encoder.local.window[0] - 1, 0)
        encoder = dataclasses.replace(encoder, local=dataclasses.replace(encoder.local, window=window))
    fields: dict[str, Any] = {
        "is_encoder_decoder": config.decoder is not None,
        "dropout_rate": encoder.dropout,
        "attention_dropout": encoder.attention.dropout,
        "encoder": _side_to_hf(config.embedding, encoder),
    }
    if config.decoder is not None:
        fields["decoder"] = _side_to_hf(config.target_embedding, config.decoder)
    match config.head:
        case LanguageModelHead(tied=tied, softcap=softcap):
            fields["tie_word_embeddings"] = tied
            fields["decoder"]["final_logit_softcapping"] = softcap
        case ClassifierHead(padding_id=padding_id):
            fields["pad_token_id"] = padding_id
    return fields


def _side_to_hf(embedding: EmbeddingConfig, stack: StackConfig) -> dict[str, Any]:
    alone = dataclasses.replace(stack, causal=True, cross_attention=None)
    return gemma2_to_hf(TransformerConfig(embedding=embedding, decoder=alone))


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    base = "" if head in ("base", "encoder") else "model."
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    logits = "lm_head.out_proj"
    heads = {
        "seq2seq_lm": linear(logits, "head"),
        "sequence_classification": linear("score.out_proj", "head/logits"),
        "token_classification": linear("score.out_proj", "head"),
    }
    return [
        *table(f"{base}encoder.embed_tokens", "embedder/token"),
        *table(f"{base}decoder.embed_tokens", "decoder_embedder/token", aliases=(f"{logits}.weight",) if tied else ()),
        *_stack_weights(f"{base}encoder", "encoder"),
        *_stack_weights(f"{base}decoder", "decoder"),
        *heads.get(head, []),
    ]


def _stack_weights(theirs: str, ours: str) -> list[Rule]:
    layer = f"{theirs}.layers.{{layer}}"
    rows = attention_weights(layer, ours) + mlp_weights(layer, ours) + norm(f"{theirs}.norm", f"{ours}/final_norm")
    branches = {"self_attn": "attention", "feedforward": "mlp"}
    if ours == "decoder":
        branches["cross_attn"] = "cross_attention"
        rows += attention_weights(layer, ours, "cross_attn", "cross_attention")
    for name, branch in branches.items():
        rows += norm(f"{layer}.pre_{name}_layernorm", f"{ours}/{branch}_input_norm")
        rows += norm(f"{layer}.post_{name}_layernorm", f"{ours}/{branch}_output_norm")
    return rows


def _decoder_ids(ids: np.ndarray, fields: Mapping[str, Any]) -> np.ndarray:
    """`decoder_input_ids` from `input_ids`, after the token that begins every text of the decoder's."""
    return shift_right(ids, {"decoder_start_token_id": fields["decoder"]["bos_token_id"]})


def _decoder_mask(ids: np.ndarray, fields: Mapping[str, Any]) -> np.ndarray:
    """Where a classifier's decoder sees the ids it reads."""
    return (ids != fields["decoder"]["pad_token_id"]).astype(np.int32)


_TINY_SIDE = {name: value for name, value in DECODER_TINY.items() if name != "id2label"} | {
    "head_dim": 8,
    "query_pre_attn_scalar": 10,
    "sliding_window": 6,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
_CLASSIFIERS = ("sequence_classification", "token_classification")

ARCHITECTURES = [
    Architecture(
        model_type="t5gemma",
        classes={
            "base": "T5GemmaModel",
            "encoder": "T5GemmaEncoderModel",
            "seq2seq_lm": "T5GemmaForConditionalGeneration",
            "sequence_classification": "T5GemmaForSequenceClassification",
            "token_classification": "T5GemmaForTokenClassification",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        decoder_inputs=dict.fromkeys(_CLASSIFIERS, _decoder_ids),
        decoder_masks=dict.fromkeys(_CLASSIFIERS, _decoder_mask),
        defaults={"decoder": SPECIAL_IDS},
        tiny={
            "encoder": _TINY_SIDE | {"vocab_size": 53, "num_hidden_layers": 3},
            "decoder": _TINY_SIDE | {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1},
            "id2label": DECODER_TINY["id2label"],
            "*encoder": {"is_encoder_decoder": False},
        },
    )
]
