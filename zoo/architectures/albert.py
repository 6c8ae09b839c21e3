"""ALBERT (Lan et al. 2020): BERT with a factorised embedding, and layers that share their parameters in groups."""

import dataclasses
from typing import Any

from zoo.architectures import bert
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import label_weights
from zoo.config import TransformerConfig
from zoo.weights import LINEAR, LINEAR_OF_HEADS, Rule, linear, norm, rule

DEFAULTS = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an AlbertConfig."""
    fields.expect(inner_group_num=1)
    fields = bert.with_token_types(fields.with_defaults(DEFAULTS))
    transform = fields.activation("hidden_act", "gelu_new")
    config = bert.encoder_config(fields, bert.encoder_head(fields, head, transform))
    assert config.encoder is not None
    groups = fields.get("num_hidden_groups", 1)
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, num_unique_layers=groups))


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write an AlbertConfig."""
    return bert.config_to_hf(config) | {
        "embedding_size": config.embedding.width,
        "num_hidden_groups": config.output_stack.unique_layers,
        "inner_group_num": 1,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "albert.encoder.albert_layer_groups.{layer}.albert_layers.0"
    return [
        *bert.embedding_weights("albert", aliases=bert.tied_names(config, "predictions.decoder.weight")),
        *linear("albert.encoder.embedding_hidden_mapping_in", "embedder/projection"),
        *linear(f"{layer}.attention.query", "encoder/attention/query"),
        *linear(f"{layer}.attention.key", "encoder/attention/key"),
        *linear(f"{layer}.attention.value", "encoder/attention/value"),
        *linear(f"{layer}.attention.dense", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.attention.LayerNorm", "encoder/attention_residual_norm"),
        *linear(f"{layer}.ffn", "encoder/mlp/up"),
        *linear(f"{layer}.ffn_output", "encoder/mlp/down"),
        *norm(f"{layer}.full_layer_layer_norm", "encoder/mlp_residual_norm"),
        *_head_weights(head),
    ]


def _head_weights(head: str) -> list[Rule]:
    match head:
        case "masked_lm":
            return [
                *linear("predictions.dense", "head/transform"),
                *norm("predictions.LayerNorm", "head/norm"),
                rule("predictions.bias", "head/bias", aliases=("predictions.decoder.bias",)),
                rule("predictions.decoder.weight", "head/kernel", LINEAR),
            ]
        case "sequence_classification":
            return [*linear("albert.pooler", "head/pooler"), *linear("classifier", "head/logits")]
        case "token_classification" | "question_answering":
            return label_weights(head)
        case _:
            return linear("albert.pooler", "head/projection")


TINY = bert.TINY | {
    "vocab_size": 61,
    "embedding_size": 16,
    "num_hidden_layers": 4,
    "num_hidden_groups": 2,
    "hidden_act": "gelu_new",
}

ARCHITECTURES = [
    Architecture(
        model_type="albert",
        classes={
            "base": "AlbertModel",
            "masked_lm": "AlbertForMaskedLM",
            "sequence_classification": "AlbertForSequenceClassification",
            "token_classification": "AlbertForTokenClassification",
            "question_answering": "AlbertForQuestionAnswering",
        },
        also_reads={"AlbertForPreTraining": "masked_lm"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="albert.",
        ignored=(r"embeddings\.position_ids$", r"^sop_classifier\."),
        tiny=TINY,
    )
]
