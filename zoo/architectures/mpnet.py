"""MPNet (Song et al. 2020): RoBERTa without segments, with T5's relative position bias, one table for all layers."""

import dataclasses
from typing import Any

from zoo.architectures import bert
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.roberta import config_to_hf as roberta_to_hf
from zoo.architectures.roberta import counted_from, head_weights
from zoo.config import RelativeBiasConfig, TransformerConfig
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, rule, table

DEFAULTS = bert.DEFAULTS | {"vocab_size": 30527}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an MPNetConfig."""
    # The reference computes 32 buckets whatever the table's size, and counts from 1 whatever `pad_token_id`.
    fields.expect(relative_attention_num_buckets=32)
    fields = Fields(fields.values | {"type_vocab_size": 0}, fields.origin).with_defaults(DEFAULTS)
    config = counted_from(bert.encoder_config(fields, bert.encoder_head(fields, head, transform="gelu")), 1)
    assert config.encoder is not None
    bias = RelativeBiasConfig(num_buckets=32, max_distance=128)
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, position_bias=bias))


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write an MPNetConfig."""
    fields = roberta_to_hf(config) | {"relative_attention_num_buckets": 32}
    del fields["type_vocab_size"], fields["pad_token_id"]
    return fields


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "mpnet.encoder.layer.{layer}"
    aliases = bert.tied_names(config, "lm_head.decoder.weight")
    return [
        *table("mpnet.embeddings.word_embeddings", "embedder/token", aliases=aliases),
        *table("mpnet.embeddings.position_embeddings", "embedder/position"),
        *norm("mpnet.embeddings.LayerNorm", "embedder/norm"),
        rule("mpnet.encoder.relative_attention_bias.weight", "encoder/position_bias/embedding"),
        *linear(f"{layer}.attention.attn.q", "encoder/attention/query"),
        *linear(f"{layer}.attention.attn.k", "encoder/attention/key"),
        *linear(f"{layer}.attention.attn.v", "encoder/attention/value"),
        *linear(f"{layer}.attention.attn.o", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.attention.LayerNorm", "encoder/attention_residual_norm"),
        *linear(f"{layer}.intermediate.dense", "encoder/mlp/up"),
        *linear(f"{layer}.output.dense", "encoder/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "encoder/mlp_residual_norm"),
        *head_weights(head, "mpnet"),
    ]


TINY = bert.TINY | {"vocab_size": 61, "max_position_embeddings": 42}

ARCHITECTURES = [
    Architecture(
        model_type="mpnet",
        classes={
            "base": "MPNetModel",
            "masked_lm": "MPNetForMaskedLM",
            "sequence_classification": "MPNetForSequenceClassification",
            "token_classification": "MPNetForTokenClassification",
            "question_answering": "MPNetForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="mpnet.",
        ignored=(r"embeddings\.position_ids$",),
        tiny=TINY,
    )
]
