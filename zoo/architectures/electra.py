"""ELECTRA (Clark et al. 2020): a BERT with a factorised embedding, as generator (masked LM) or as discriminator."""

from typing import Any

from zoo.architectures import bert
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import label_weights
from zoo.config import Head, TokenHead, TransformerConfig
from zoo.weights import LINEAR, Rule, linear, norm, rule

DEFAULTS = bert.DEFAULTS | {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an ElectraConfig."""
    fields = bert.with_token_types(fields.with_defaults(DEFAULTS))
    return bert.stack_config(fields, _head(fields, head))


def _head(fields: Fields, head: str) -> Head | None:
    match head:
        case "base":
            return None
        case "pretraining":
            return TokenHead(num_classes=None, transform=fields.activation("hidden_act", "gelu"), transform_norm=False)
        case _:
            return bert.encoder_head(fields, head, transform="gelu", pooler="gelu")


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write an ElectraConfig."""
    return bert.config_to_hf(config) | {"embedding_size": config.embedding.width}


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    return [
        *bert.embedding_weights("electra", aliases=bert.tied_names(config, "generator_lm_head.weight")),
        *linear("electra.embeddings_project", "embedder/projection"),
        *bert.layer_weights(config, "electra"),
        *_head_weights(head),
    ]


def _head_weights(head: str) -> list[Rule]:
    match head:
        case "masked_lm" | "causal_lm":
            return [
                *linear("generator_predictions.dense", "head/transform"),
                *norm("generator_predictions.LayerNorm", "head/norm"),
                rule("generator_lm_head.bias", "head/bias"),
                rule("generator_lm_head.weight", "head/kernel", LINEAR),
            ]
        case "pretraining":
            return [
                *linear("discriminator_predictions.dense", "head/transform"),
                *linear("discriminator_predictions.dense_prediction", "head/logits"),
            ]
        case "sequence_classification":
            return [*linear("classifier.dense", "head/pooler"), *linear("classifier.out_proj", "head/logits")]
        case _:
            return label_weights(head)


TINY = bert.TINY | {"vocab_size": 61, "embedding_size": 16}

ARCHITECTURES = [
    Architecture(
        model_type="electra",
        classes={
            "base": "ElectraModel",
            "masked_lm": "ElectraForMaskedLM",
            "causal_lm": "ElectraForCausalLM",
            "pretraining": "ElectraForPreTraining",
            "sequence_classification": "ElectraForSequenceClassification",
            "token_classification": "ElectraForTokenClassification",
            "question_answering": "ElectraForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="electra.",
        ignored=(r"embeddings\.position_ids$",),
        tiny=TINY,
    )
]
