"""DistilBERT (Sanh et al. 2019): BERT without segments and pooler, under names of its own."""

from typing import Any

from zoo.architectures import bert
from zoo.architectures.architecture import Architecture, Fields
from zoo.architectures.heads import label_weights
from zoo.config import Head, TransformerConfig
from zoo.weights import LINEAR, LINEAR_OF_HEADS, Rule, linear, norm, rule, table

NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
"""BERT's fields, and theirs."""
DEFAULTS = bert.DEFAULTS | {"num_hidden_layers": 6}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a DistilBertConfig."""
    # The norms' epsilon is no field of it. Sinusoidal positions, where they were asked for, are in the file's table.
    own = {"type_vocab_size": 0, "layer_norm_eps": 1e-12}
    own |= {name: fields.get(theirs) for name, theirs in NAMES.items() if fields.get(theirs) is not None}
    fields = Fields(fields.values | own, fields.origin).with_defaults(DEFAULTS)
    return bert.encoder_config(fields, _head(fields, head))


def _head(fields: Fields, head: str) -> Head | None:
    if head == "base":
        return None
    return bert.encoder_head(fields, head, fields.activation("hidden_act", "gelu"), pooler="relu")


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a DistilBertConfig."""
    fields = bert.config_to_hf(config)
    del fields["type_vocab_size"], fields["layer_norm_eps"]
    return {NAMES.get(name, name): value for name, value in fields.items()}


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "distilbert.transformer.layer.{layer}"
    aliases = bert.tied_names(config, "vocab_projector.weight")
    return [
        *table("distilbert.embeddings.word_embeddings", "embedder/token", aliases=aliases),
        *table("distilbert.embeddings.position_embeddings", "embedder/position"),
        *norm("distilbert.embeddings.LayerNorm", "embedder/norm"),
        *linear(f"{layer}.attention.q_lin", "encoder/attention/query"),
        *linear(f"{layer}.attention.k_lin", "encoder/attention/key"),
        *linear(f"{layer}.attention.v_lin", "encoder/attention/value"),
        *linear(f"{layer}.attention.out_lin", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.sa_layer_norm", "encoder/attention_residual_norm"),
        *linear(f"{layer}.ffn.lin1", "encoder/mlp/up"),
        *linear(f"{layer}.ffn.lin2", "encoder/mlp/down"),
        *norm(f"{layer}.output_layer_norm", "encoder/mlp_residual_norm"),
        *_head_weights(head),
    ]


def _head_weights(head: str) -> list[Rule]:
    match head:
        case "masked_lm":
            return [
                *linear("vocab_transform", "head/transform"),
                *norm("vocab_layer_norm", "head/norm"),
                rule("vocab_projector.bias", "head/bias"),
                rule("vocab_projector.weight", "head/kernel", LINEAR),
            ]
        case "sequence_classification":
            return [*linear("pre_classifier", "head/pooler"), *linear("classifier", "head/logits")]
        case _:
            return label_weights(head)


TINY = {
    "vocab_size": 61,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 40,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

ARCHITECTURES = [
    Architecture(
        model_type="distilbert",
        classes={
            "base": "DistilBertModel",
            "masked_lm": "DistilBertForMaskedLM",
            "sequence_classification": "DistilBertForSequenceClassification",
            "token_classification": "DistilBertForTokenClassification",
            "question_answering": "DistilBertForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="distilbert.",
        ignored=(r"embeddings\.position_ids$",),
        tiny=TINY,
    )
]
