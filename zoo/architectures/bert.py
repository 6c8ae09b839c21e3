"""BERT (Devlin et al. 2019), a post-norm encoder with learned positions and segments; and what descendants share."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.heads import label_weights
from zoo.config import (
    Activation,
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
    replace,
)
from zoo.weights import LINEAR, LINEAR_OF_HEADS, CheckpointError, Rule, linear, norm, rule, table

DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a BertConfig."""
    fields = with_token_types(fields.with_defaults(DEFAULTS))
    return stack_config(fields, encoder_head(fields, head, fields.activation("hidden_act", "gelu")))


def with_token_types(fields: Fields) -> Fields:
    """The same; CheckpointError where there are no token types, for the reference adds the first to all tokens."""
    if not fields["type_vocab_size"]:
        raise CheckpointError(f"{fields.origin}: type_vocab_size is 0; the reference needs at least 1")
    return fields


def stack_config(fields: Fields, head: Head | None) -> TransformerConfig:
    """An encoder, or a decoder where `is_decoder` says so, from fields that have BERT's names, all of them."""
    config = encoder_config(fields.replaced(is_decoder=False), head)
    if not fields.get("is_decoder", False):
        return config
    return replace(config, encoder=None, decoder=replace(config.output_stack, causal=True))


def encoder_config(fields: Fields, head: Head | None) -> TransformerConfig:
    """An encoder from fields that have BERT's names, all of them."""
    fields.expect(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    dropout = fields["hidden_dropout_prob"]
    norms = NormConfig(epsilon=fields["layer_norm_eps"])
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=fields.get("embedding_size", width),
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(max_length=fields["max_position_embeddings"]),
            num_token_types=fields["type_vocab_size"],
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
                dropout=fields["attention_probs_dropout_prob"],
            ),
            mlp=MlpConfig(
                hidden_size=fields["intermediate_size"], activation=fields.activation("hidden_act", "gelu"), bias=True
            ),
            norm=norms,
            norm_slots=("residual",),
            final_norm=False,
            dropout=dropout,
        ),
        head=head,
    )


def encoder_head(fields: Fields, head: str, transform: Activation, pooler: Activation = "tanh") -> Head:
    """The head of an encoder: `transform` is the masked-LM head's activation, `pooler` the classifier's."""
    match head:
        case "masked_lm" | "causal_lm":
            return LanguageModelHead(tied=fields["tie_word_embeddings"], bias=True, transform=transform)
        case "sequence_classification":
            return ClassifierHead(num_classes=fields.num_labels(), pooler=pooler)
        case "token_classification":
            return TokenHead(num_classes=fields.num_labels())
        case "question_answering":
            return TokenHead(num_classes=2)
        case _:
            return EmbeddingHead(
                pooling="first",
                normalize=False,
                projection=fields["hidden_size"],
                projection_bias=True,
                activation=pooler,
            )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a BertConfig."""
    embedding = config.embedding
    tied = {"tie_word_embeddings": config.head.tied} if isinstance(config.head, LanguageModelHead) else {}
    decodes = {"is_decoder": True} if config.encoder is None else {}
    texts = {
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": embedding.positions.max_length,
        "type_vocab_size": embedding.num_token_types,
    }
    return tied | decodes | texts | stack_to_hf(config.output_stack)


def stack_to_hf(stack: StackConfig) -> dict[str, Any]:
    """The fields that BERT's descendants share, of texts and of images."""
    return {
        "hidden_size": stack.width,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.attention.num_heads,
        "intermediate_size": stack.mlp.hidden_size,
        "hidden_act": activation_name(stack.mlp.activation),
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention.dropout,
        "layer_norm_eps": stack.norm.epsilon,
    }


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    return [
        *embedding_weights("bert", aliases=tied_names(config, "cls.predictions.decoder.weight")),
        *layer_weights(config, "bert"),
        *_head_weights(config, head),
    ]


def embedding_weights(prefix: str, aliases: tuple[str, ...] = ()) -> list[Rule]:
    """Rows of the embeddings; `aliases` are the output layer's names in files of tied models."""
    return [
        *table(f"{prefix}.embeddings.word_embeddings", "embedder/token", aliases=aliases),
        *table(f"{prefix}.embeddings.position_embeddings", "embedder/position"),
        *table(f"{prefix}.embeddings.token_type_embeddings", "embedder/token_type"),
        *norm(f"{prefix}.embeddings.LayerNorm", "embedder/norm"),
    ]


def layer_weights(config: TransformerConfig, prefix: str) -> list[Rule]:
    """Rows of the layers."""
    stack = "decoder" if config.encoder is None else "encoder"
    layer = f"{prefix}.encoder.layer.{{layer}}"
    return [
        *attention_weights(f"{layer}.attention", f"{stack}/attention"),
        *linear(f"{layer}.intermediate.dense", f"{stack}/mlp/up"),
        *linear(f"{layer}.output.dense", f"{stack}/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", f"{stack}/mlp_residual_norm"),
    ]


def attention_weights(theirs: str, ours: str) -> list[Rule]:
    """Rows of attention and of the norm after it."""
    return [
        *linear(f"{theirs}.self.query", f"{ours}/query"),
        *linear(f"{theirs}.self.key", f"{ours}/key"),
        *linear(f"{theirs}.self.value", f"{ours}/value"),
        *linear(f"{theirs}.output.dense", f"{ours}/output", LINEAR_OF_HEADS),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}_residual_norm"),
    ]


def tied_names(config: TransformerConfig, *names: str) -> tuple[str, ...]:
    """`names` of the output layer, where it is the token table."""
    return names if isinstance(config.head, LanguageModelHead) and config.head.tied else ()


def _head_weights(config: TransformerConfig, head: str) -> list[Rule]:
    match head:
        case "masked_lm" | "causal_lm":
            return [
                *linear("cls.predictions.transform.dense", "head/transform"),
                *norm("cls.predictions.transform.LayerNorm", "head/norm"),
                rule("cls.predictions.bias", "head/bias", aliases=("cls.predictions.decoder.bias",)),
                rule("cls.predictions.decoder.weight", "head/kernel", LINEAR),
            ]
        case "sequence_classification":
            return [*linear("bert.pooler.dense", "head/pooler"), *linear("classifier", "head/logits")]
        case "token_classification" | "question_answering":
            return label_weights(head)
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
    "*causal_lm": {"is_decoder": True, "type_vocab_size": 1, "vocab_size": 61},
}

ARCHITECTURES = [
    Architecture(
        model_type="bert",
        classes={
            "base": "BertModel",
            "masked_lm": "BertForMaskedLM",
            "causal_lm": "BertLMHeadModel",
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
