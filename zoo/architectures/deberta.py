"""DeBERTa-v2 and v3 (He et al. 2021, 2023): a post-norm encoder whose attention keeps contents and distances apart."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.architectures.bert import stack_to_hf
from zoo.architectures.heads import label_weights
from zoo.config import (
    AttentionConfig,
    ClassifierHead,
    ConvolutionConfig,
    DisentangledConfig,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    NormConfig,
    PositionTerm,
    StackConfig,
    TokenHead,
    TransformerConfig,
)
from zoo.weights import CONVOLUTION, LINEAR, LINEAR_OF_HEADS, VECTOR, CheckpointError, Rule, linear, norm, rule, table

TERMS: dict[str, PositionTerm] = {"c2p": "content_to_position", "p2c": "position_to_content"}


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a DebertaV2Config."""
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    fields.expect(conv_groups=1, pooler_hidden_size=width)
    embedding_width = fields.get("embedding_size", width)
    if embedding_width != width:
        # The reference projects the sum, which is that of tokens alone in models without these.
        fields.expect(type_vocab_size=0)
        if fields.get("position_biased_input", True):
            raise CheckpointError(f"{fields.origin}: embedding_size is {embedding_width} with positions in the input")
    norms = NormConfig(epsilon=fields.get("layer_norm_eps", 1e-7))
    dropout = fields.get("hidden_dropout_prob", 0.1)
    positions = LearnedPositions(max_length=fields.get("max_position_embeddings", 512))
    activation = fields.activation("hidden_act", "gelu")
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=embedding_width,
            projected="tokens" if embedding_width != width else "sum",
            vocab_size=fields["vocab_size"],
            positions=positions if fields.get("position_biased_input", True) else None,
            num_token_types=fields.get("type_vocab_size", 0),
            norm=norms,
            dropout=dropout,
        ),
        encoder=StackConfig(
            num_layers=fields["num_hidden_layers"],
            width=width,
            attention=_attention(fields, fields.get("attention_head_size", width // heads), norms),
            mlp=MlpConfig(hidden_size=fields["intermediate_size"], activation=activation, bias=True),
            norm=norms,
            norm_slots=("residual",),
            final_norm=False,
            convolution=_convolution(fields),
            dropout=dropout,
        ),
        head=_head(fields, head),
    )


def _attention(fields: Fields, head_size: int, norms: NormConfig) -> AttentionConfig:
    named = fields.get("pos_att_type", [])
    named = named.lower().split("|") if isinstance(named, str) else named
    terms = tuple(TERMS[name] for name in TERMS if name in [name.strip() for name in named])
    disentangled = None
    if fields.get("relative_attention", False):
        reach = fields.get("max_relative_positions", -1)
        reach = reach if reach > 0 else fields.get("max_position_embeddings", 512)
        buckets = fields.get("position_buckets", -1)
        normed = "layer_norm" in [name.strip() for name in fields.get("norm_rel_ebd", "none").lower().split("|")]
        disentangled = DisentangledConfig(
            span=buckets if buckets > 0 else reach,
            max_distance=reach if buckets > 0 else None,
            terms=terms,
            shared=fields.get("share_att_key", False),
            norm=norms if normed else None,
        )
    return AttentionConfig(
        num_heads=fields["num_attention_heads"],
        head_size=head_size,
        biases=("query", "key", "value", "output"),
        # Each term adds a score of the same size.
        scale=(head_size * (1 + len(terms))) ** -0.5,
        disentangled=disentangled,
        dropout=fields.get("attention_probs_dropout_prob", 0.1),
    )


def _convolution(fields: Fields) -> ConvolutionConfig | None:
    window = fields.get("conv_kernel_size", 0)
    return ConvolutionConfig(window=window, activation=fields.activation("conv_act", "tanh")) if window > 0 else None


def _head(fields: Fields, head: str) -> Head | None:
    match head:
        case "masked_lm":
            # The newer head reads the token table whatever the field says.
            tied = fields.get("tie_word_embeddings", True) or not fields.get("legacy", True)
            return LanguageModelHead(tied=tied, bias=True, transform=fields.activation("hidden_act", "gelu"))
        case "sequence_classification":
            return ClassifierHead(
                num_classes=fields.num_labels(), pooler=fields.activation("pooler_hidden_act", "gelu")
            )
        case "token_classification":
            return TokenHead(num_classes=fields.num_labels())
        case "question_answering":
            return TokenHead(num_classes=fields.num_labels())
        case _:
            return None


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a DebertaV2Config."""
    stack, embedding = config.output_stack, config.embedding
    fields = stack_to_hf(stack) | {
        "vocab_size": embedding.vocab_size,
        "embedding_size": embedding.width,
        "position_biased_input": embedding.positions is not None,
        "type_vocab_size": embedding.num_token_types,
        "relative_attention": stack.attention.disentangled is not None,
    }
    if embedding.positions is not None:
        fields["max_position_embeddings"] = embedding.positions.max_length
    if stack.convolution is not None:
        fields["conv_kernel_size"] = stack.convolution.window
        fields["conv_act"] = activation_name(stack.convolution.activation)
    return fields | _disentangled_to_hf(stack.attention.disentangled) | _head_to_hf(config)


def _disentangled_to_hf(config: DisentangledConfig | None) -> dict[str, Any]:
    if config is None:
        return {}
    return {
        "pos_att_type": [name for name, term in TERMS.items() if term in config.terms],
        "position_buckets": -1 if config.max_distance is None else config.span,
        "max_relative_positions": config.max_distance or config.span,
        "share_att_key": config.shared,
        "norm_rel_ebd": "none" if config.norm is None else "layer_norm",
    }


def _head_to_hf(config: TransformerConfig) -> dict[str, Any]:
    match config.head:
        case LanguageModelHead(tied=tied):
            # Weights are written by the older head's names; both compute the same.
            return {"tie_word_embeddings": tied, "legacy": True}
        case ClassifierHead(pooler=activation):
            return {"pooler_hidden_act": activation_name(activation)}
        case _:
            return {}


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    layer = "deberta.encoder.layer.{layer}"
    own = f"{layer}.attention.self"
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    tokens = "deberta.embeddings.word_embeddings"
    return [
        *table(tokens, "embedder/token", aliases=("cls.predictions.decoder.weight",) if tied else ()),
        *table("deberta.embeddings.position_embeddings", "embedder/position"),
        *table("deberta.embeddings.token_type_embeddings", "embedder/token_type"),
        *linear("deberta.embeddings.embed_proj", "embedder/projection"),
        *norm("deberta.embeddings.LayerNorm", "embedder/norm"),
        *table("deberta.encoder.rel_embeddings", "encoder/distances"),
        *norm("deberta.encoder.LayerNorm", "encoder/distances_norm"),
        *linear("deberta.encoder.conv.conv", "encoder/convolution/projection", CONVOLUTION),
        *norm("deberta.encoder.conv.LayerNorm", "encoder/convolution/norm"),
        *linear(f"{own}.query_proj", "encoder/attention/query"),
        *linear(f"{own}.key_proj", "encoder/attention/key"),
        *linear(f"{own}.value_proj", "encoder/attention/value"),
        *linear(f"{own}.pos_key_proj", "encoder/attention/position_key"),
        *linear(f"{own}.pos_query_proj", "encoder/attention/position_query"),
        *linear(f"{layer}.attention.output.dense", "encoder/attention/output", LINEAR_OF_HEADS),
        *norm(f"{layer}.attention.output.LayerNorm", "encoder/attention_residual_norm"),
        *linear(f"{layer}.intermediate.dense", "encoder/mlp/up"),
        *linear(f"{layer}.output.dense", "encoder/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "encoder/mlp_residual_norm"),
        *_head_weights(head, tied),
    ]


def _head_weights(head: str, tied: bool) -> list[Rule]:
    match head:
        case "masked_lm":
            return _language_model_weights(tied)
        case "sequence_classification":
            return [*linear("pooler.dense", "head/pooler"), *linear("classifier", "head/logits")]
        case _:
            return label_weights(head)


def _language_model_weights(tied: bool) -> list[Rule]:
    """By the older head's names, or else by the newer's."""
    old, new = "cls.predictions", "lm_predictions.lm_head"
    aliases = (f"{old}.decoder.bias",) if tied else ()
    bias = f"{old}.bias" if tied else f"{old}.decoder.bias"
    return [
        rule(f"{old}.transform.dense.weight", "head/transform/kernel", LINEAR, aliases=(f"{new}.dense.weight",)),
        rule(f"{old}.transform.dense.bias", "head/transform/bias", VECTOR, aliases=(f"{new}.dense.bias",)),
        rule(f"{old}.transform.LayerNorm.weight", "head/norm/scale", aliases=(f"{new}.LayerNorm.weight",)),
        rule(f"{old}.transform.LayerNorm.bias", "head/norm/bias", VECTOR, aliases=(f"{new}.LayerNorm.bias",)),
        rule(f"{old}.decoder.weight", "head/kernel", LINEAR),
        rule(bias, "head/bias", VECTOR, aliases=(*aliases, f"{new}.bias")),
    ]


TINY = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "max_position_embeddings": 40,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
    "pooler_hidden_act": "tanh",
    "pad_token_id": 1,
    "id2label": {"0": "a", "1": "b", "2": "c"},
}

ARCHITECTURES = [
    Architecture(
        model_type="deberta-v2",
        classes={
            "base": "DebertaV2Model",
            "masked_lm": "DebertaV2ForMaskedLM",
            "sequence_classification": "DebertaV2ForSequenceClassification",
            "token_classification": "DebertaV2ForTokenClassification",
            "question_answering": "DebertaV2ForQuestionAnswering",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="deberta.",
        ignored=(
            r"embeddings\.position_ids$",
            r"embeddings\.position_embeddings\.weight$",
            r"^mask_predictions\.",
            r"^cls\.predictions\.bias$",
        ),
        tiny=TINY,
    )
]
