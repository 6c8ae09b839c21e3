"""BERT (Devlin et al. 2019): a post-norm encoder with learned positions and segments."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    EmbeddingConfig,
    EmbeddingHead,
    Head,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import LINEAR_OF_HEADS, Rule, linear, norm, rule, table


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a BertConfig."""
    fields.expect(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    dropout = fields.get("hidden_dropout_prob", 0.1)
    norms = NormConfig(epsilon=fields.get("layer_norm_eps", 1e-12))
    activation = fields.activation("hidden_act", "gelu")
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(max_length=fields["max_position_embeddings"]),
            num_token_types=fields.get("type_vocab_size", 2),
            norm=norms,
            dropout=dropout,
        ),
        encoder=StackConfig(
            num_layers=fields["num_hidden_layers"],
            width=width,
            attention=AttentionConfig(
                num_heads=heads,
                head_size=width // heads,
                biases=("query", "key", "value", "output"),
                dropout=fields.get("attention_probs_dropout_prob", 0.1),
            ),
            mlp=MlpConfig(hidden_size=fields["intermediate_size"], activation=activation, bias=True),
            norm=norms,
            norm_slots=("residual",),
            final_norm=False,
            dropout=dropout,
        ),
        head=_head(fields, head, width),
    )


def _head(fields: Fields, head: str, width: int) -> Head:
    match head:
        case "masked_lm":
            return LanguageModelHead(bias=True, transform=fields.activation("hidden_act", "gelu"))
        case "sequence_classification":
            return ClassifierHead(num_classes=fields.num_labels(), pooler="tanh")
        case "token_classification":
            return TokenHead(num_classes=fields.num_labels())
        case "question_answering":
            return TokenHead(num_classes=2)
        case _:
            return EmbeddingHead(
                pooling="first", normalize=False, projection=width, projection_bias=True, activation="tanh"
            )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a BertConfig."""
    stack, embedding = config.output_stack, config.embedding
    return {
        "vocab_size": embedding.vocab_size,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.attention.num_heads,
        "intermediate_size": stack.mlp.hidden_size,
        "hidden_act": activation_name(stack.mlp.activation),
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention.dropout,
        "max_position_embeddings": embedding.positions.max_length,
        "type_vocab_size": embedding.num_token_types,
        "layer_norm_eps": stack.norm.epsilon,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    del config
    layer = "bert.encoder.layer.{layer}"
    return [
        *table("bert.embeddings.word_embeddings", "embedder/token", aliases=("cls.predictions.decoder.weight",)),
        *table("bert.embeddings.position_embeddings", "embedder/position"),
        *table("bert.embeddings.token_type_embeddings", "embedder/token_type"),
        *norm("bert.embeddings.LayerNorm", "embedder/norm"),
        *linear(f"{layer}.attention.self.query", "encoder/attention/query"),
        *linear(f"{layer}.attention.self.key", "encoder/attention/key"),
        *linear(f"{layer}.attention.self.value", "encoder/attention/value"),
        *linear(f"{layer}.attention.output.dense", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.attention.output.LayerNorm", "encoder/attention_residual_norm"),
        *linear(f"{layer}.intermediate.dense", "encoder/mlp/up"),
        *linear(f"{layer}.output.dense", "encoder/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "encoder/mlp_residual_norm"),
        *_head_weights(head),
    ]


def _head_weights(head: str) -> list[Rule]:
    match head:
        case "masked_lm":
            return [
                *linear("cls.predictions.transform.dense", "head/transform"),
                *norm("cls.predictions.transform.LayerNorm", "head/norm"),
                rule("cls.predictions.bias", "head/bias", aliases=("cls.predictions.decoder.bias",)),
            ]
        case "sequence_classification":
            return [*linear("bert.pooler.dense", "head/pooler"), *linear("classifier", "head/logits")]
        case "token_classification":
            return linear("classifier", "head")
        case "question_answering":
            return linear("qa_outputs", "head")
        case _:
            return linear("bert.pooler.dense", "head/projection")


TINY = {
    "vocab_size": 99,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

ARCHITECTURES = [
    Architecture(
        model_type="bert",
        classes={
            "base": "BertModel",
            "masked_lm": "BertForMaskedLM",
            "sequence_classification": "BertForSequenceClassification",
            "token_classification": "BertForTokenClassification",
            "question_answering": "BertForQuestionAnswering",
        },
        also_reads={"BertForPreTraining": "masked_lm"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="bert.",
        ignored=(r"embeddings\.position_ids$", r"^cls\.seq_relationship\."),
        tiny=TINY,
    )
]
