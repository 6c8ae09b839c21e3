"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020).

BERT, with positions that count the ids other than padding from `pad_token_id + 1` on, and heads of their own names.
"""

import dataclasses
from typing import Any

from zoo.architectures import bert
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import label_weights
from zoo.config import LearnedPositions, TransformerConfig
from zoo.weights import LINEAR, Rule, linear, norm, rule

DEFAULTS = bert.DEFAULTS | {"pad_token_id": 1}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an XLMRobertaConfig or CamembertConfig."""
    fields = bert.with_token_types(fields.with_defaults(DEFAULTS))
    config = bert.encoder_config(fields, bert.encoder_head(fields, head, transform="gelu"))
    return counted_from(config, fields["pad_token_id"])


def _roberta_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a RobertaConfig, whose vocabulary has another default."""
    return config_from_hf(fields.with_defaults({"vocab_size": 50265}), head)


def counted_from(config: TransformerConfig, padding_id: int) -> TransformerConfig:
    """The same, with positions counted from the row after `padding_id`; the rows before it are never a token's."""
    positions = config.embedding.positions
    assert isinstance(positions, LearnedPositions)
    offset = padding_id + 1
    counted = LearnedPositions(max_length=positions.max_length - offset, offset=offset, padding_id=padding_id)
    return dataclasses.replace(config, embedding=dataclasses.replace(config.embedding, positions=counted))


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a RobertaConfig."""
    positions = config.embedding.positions
    assert isinstance(positions, LearnedPositions)
    return bert.config_to_hf(config) | {
        "max_position_embeddings": positions.max_length + positions.offset,
        "pad_token_id": positions.padding_id,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    return [
        *bert.embedding_weights("roberta", aliases=bert.tied_names(config, "lm_head.decoder.weight")),
        *bert.layer_weights(config, "roberta"),
        *head_weights(head, "roberta"),
    ]


def head_weights(head: str, prefix: str) -> list[Rule]:
    """Rows of the heads."""
    match head:
        case "masked_lm":
            return [
                *linear("lm_head.dense", "head/transform"),
                *norm("lm_head.layer_norm", "head/norm"),
                rule("lm_head.bias", "head/bias", aliases=("lm_head.decoder.bias",)),
                rule("lm_head.decoder.weight", "head/kernel", LINEAR),
            ]
        case "sequence_classification":
            return [*linear("classifier.dense", "head/pooler"), *linear("classifier.out_proj", "head/logits")]
        case "token_classification" | "question_answering":
            return label_weights(head)
        case _:
            return linear(f"{prefix}.pooler.dense", "head/projection")


TINY = bert.TINY | {"vocab_size": 61, "layer_norm_eps": 1e-5, "type_vocab_size": 1, "max_position_embeddings": 42}


def _architecture(model_type: str, name: str, translate=config_from_hf, **tiny: Any) -> Architecture:
    return Architecture(
        model_type=model_type,
        classes={
            "base": f"{name}Model",
            "masked_lm": f"{name}ForMaskedLM",
            "sequence_classification": f"{name}ForSequenceClassification",
            "token_classification": f"{name}ForTokenClassification",
            "question_answering": f"{name}ForQuestionAnswering",
        },
        config_from_hf=translate,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="roberta.",
        ignored=(r"embeddings\.position_ids$",),
        tiny=TINY | tiny,
    )


ARCHITECTURES = [
    _architecture("roberta", "Roberta", _roberta_from_hf),
    _architecture("xlm-roberta", "XLMRoberta", hidden_size=16, num_hidden_layers=2),
    _architecture("camembert", "Camembert", hidden_size=16, num_hidden_layers=2),
]
