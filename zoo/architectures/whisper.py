"""Whisper (Radford et al. 2022): speech to text, from log-mel spectrograms (`zoo.data.audio` makes them)."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.config import (
    AttentionConfig,
    AudioConfig,
    ClassifierHead,
    EmbeddingConfig,
    Head,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import CONVOLUTION, LINEAR_OF_HEADS, Rule, linear, norm, table


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a WhisperConfig; a classifier is of the encoder alone."""
    width, dropout = fields["d_model"], fields.get("dropout", 0.0)
    length = fields.get("max_source_positions", 1500)
    target = None
    if head != "audio_classification":
        target = EmbeddingConfig(
            width=width,
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(max_length=fields.get("max_target_positions", 448)),
            dropout=dropout,
        )
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            audio=AudioConfig(num_mels=fields.get("num_mel_bins", 80), max_length=length),
            positions=LearnedPositions(max_length=length),
            dropout=dropout,
        ),
        decoder_embedding=target,
        encoder=_stack(fields, "encoder"),
        decoder=None if target is None else _stack(fields, "decoder"),
        head=_head(fields, head),
    )


def _head(fields: Fields, head: str) -> Head | None:
    match head:
        case "seq2seq_lm":
            return LanguageModelHead(tied=_tied(fields))
        case "audio_classification":
            fields.expect(use_weighted_layer_sum=False)
            return ClassifierHead(
                num_classes=fields.num_labels(),
                pooling="mean_with_padding",
                projection=fields.get("classifier_proj_size", 256),
            )
        case _:
            return None


def _tied(fields: Fields) -> bool:
    tied = fields.get("tie_word_embeddings", True)
    return tied and fields.are_tied("model.decoder.embed_tokens.weight", "proj_out.weight")


def _stack(fields: Fields, side: str) -> StackConfig:
    width, heads = fields["d_model"], fields[f"{side}_attention_heads"]
    attention = AttentionConfig(
        num_heads=heads,
        head_size=width // heads,
        biases=("query", "value", "output"),
        dropout=fields.get("attention_dropout", 0.0),
    )
    return StackConfig(
        num_layers=fields[f"{side}_layers"],
        width=width,
        attention=attention,
        cross_attention=attention if side == "decoder" else None,
        mlp=MlpConfig(
            hidden_size=fields[f"{side}_ffn_dim"],
            activation=fields.activation("activation_function", "gelu"),
            bias=True,
        ),
        causal=side == "decoder",
        dropout=fields.get("dropout", 0.0),
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a WhisperConfig."""
    embedding, stacks = config.embedding, {"encoder": config.encoder, "decoder": config.decoder}
    fields = {
        "d_model": embedding.width,
        "num_mel_bins": embedding.audio.num_mels,
        "max_source_positions": embedding.audio.max_length,
        "activation_function": activation_name(config.encoder.mlp.activation),
        "dropout": config.encoder.dropout,
        "attention_dropout": config.encoder.attention.dropout,
    }
    if config.decoder_embedding is not None:
        fields["vocab_size"] = config.decoder_embedding.vocab_size
        fields["max_target_positions"] = config.decoder_embedding.positions.max_length
    for side, stack in stacks.items():
        if stack is not None:
            fields[f"{side}_layers"] = stack.num_layers
            fields[f"{side}_attention_heads"] = stack.attention.num_heads
            fields[f"{side}_ffn_dim"] = stack.mlp.hidden_size
    match config.head:
        case LanguageModelHead(tied=tied):
            fields["tie_word_embeddings"] = tied
        case ClassifierHead(projection=width):
            fields["classifier_proj_size"] = width
    return fields


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    base = "" if head == "audio_classification" else "model."
    heads = {
        "seq2seq_lm": linear("proj_out", "head"),
        "audio_classification": [*linear("projector", "head/projection"), *linear("classifier", "head/logits")],
    }
    rows = table("model.decoder.embed_tokens", "decoder_embedder/token", aliases=("proj_out.weight",) if tied else ())
    rows += table("model.decoder.embed_positions", "decoder_embedder/position")
    rows += table(f"{base}encoder.embed_positions", "embedder/position")
    for theirs, ours in (("conv1", "first_convolution"), ("conv2", "second_convolution")):
        rows += linear(f"{base}encoder.{theirs}", f"embedder/audio/{ours}", CONVOLUTION)
    for side in ("encoder", "decoder"):
        rows += _stack_weights(f"{base}{side}", side)
    return rows + heads.get(head, [])


def _stack_weights(theirs: str, ours: str) -> list[Rule]:
    layer = f"{theirs}.layers.{{layer}}"
    rows = norm(f"{theirs}.layer_norm", f"{ours}/final_norm")
    branches = {"self_attn": "attention"} | ({"encoder_attn": "cross_attention"} if ours == "decoder" else {})
    for attention, branch in branches.items():
        rows += norm(f"{layer}.{attention}_layer_norm", f"{ours}/{branch}_input_norm")
        for name, part in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
            rows += linear(f"{layer}.{attention}.{name}", f"{ours}/{branch}/{part}")
        rows += linear(f"{layer}.{attention}.out_proj", f"{ours}/{branch}/output", LINEAR_OF_HEADS)
    rows += norm(f"{layer}.final_layer_norm", f"{ours}/mlp_input_norm")
    return [*rows, *linear(f"{layer}.fc1", f"{ours}/mlp/up"), *linear(f"{layer}.fc2", f"{ours}/mlp/down")]


TINY = {
    "vocab_size": 61,
    "num_mel_bins": 7,
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 28,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "max_source_positions": 19,
    "max_target_positions": 44,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "begin_suppress_tokens": None,
    "*audio_classification": {"classifier_proj_size": 12, "id2label": {"0": "a", "1": "b", "2": "c"}},
}

ARCHITECTURES = [
    Architecture(
        model_type="whisper",
        classes={
            "base": "WhisperModel",
            "seq2seq_lm": "WhisperForConditionalGeneration",
            "audio_classification": "WhisperForAudioClassification",
        },
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        tiny=TINY,
    )
]
