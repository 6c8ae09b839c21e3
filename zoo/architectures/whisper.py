"""Whisper (Radford et al. 2022): speech to text, from log-mel spectrograms (`zoo.data.audio` makes them)."""

from typing import Any

from zoo.architectures.architecture import Architecture, Fields, activation_name
from zoo.config import (
    AttentionConfig,
    AudioConfig,
    EmbeddingConfig,
    LanguageModelHead,
    LearnedPositions,
    MlpConfig,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import CONVOLUTION, LINEAR_OF_HEADS, Rule, linear, norm, table


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a WhisperConfig."""
    width, dropout = fields["d_model"], fields.get("dropout", 0.0)
    length = fields.get("max_source_positions", 1500)
    return TransformerConfig(
        embedding=EmbeddingConfig(
            width=width,
            audio=AudioConfig(num_mels=fields.get("num_mel_bins", 80), max_length=length),
            positions=LearnedPositions(max_length=length),
            dropout=dropout,
        ),
        decoder_embedding=EmbeddingConfig(
            width=width,
            vocab_size=fields["vocab_size"],
            positions=LearnedPositions(max_length=fields.get("max_target_positions", 448)),
            dropout=dropout,
        ),
        encoder=_stack(fields, "encoder"),
        decoder=_stack(fields, "decoder"),
        head=LanguageModelHead(tied=_tied(fields)) if head == "seq2seq_lm" else None,
    )


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
    embedding, target = config.embedding, config.target_embedding
    fields = {
        "d_model": embedding.width,
        "vocab_size": target.vocab_size,
        "num_mel_bins": embedding.audio.num_mels,
        "max_source_positions": embedding.audio.max_length,
        "max_target_positions": target.positions.max_length,
        "activation_function": activation_name(config.encoder.mlp.activation),
        "dropout": config.encoder.dropout,
        "attention_dropout": config.encoder.attention.dropout,
    }
    for side, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        fields[f"{side}_layers"] = stack.num_layers
        fields[f"{side}_attention_heads"] = stack.attention.num_heads
        fields[f"{side}_ffn_dim"] = stack.mlp.hidden_size
    if isinstance(config.head, LanguageModelHead):
        fields["tie_word_embeddings"] = config.head.tied
    return fields


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    rows = table("model.decoder.embed_tokens", "decoder_embedder/token", aliases=("proj_out.weight",) if tied else ())
    rows += table("model.decoder.embed_positions", "decoder_embedder/position")
    rows += table("model.encoder.embed_positions", "embedder/position")
    for theirs, ours in (("conv1", "first_convolution"), ("conv2", "second_convolution")):
        rows += linear(f"model.encoder.{theirs}", f"embedder/audio/{ours}", CONVOLUTION)
    for side in ("encoder", "decoder"):
        rows += _stack_weights(f"model.{side}", side)
    return rows + (linear("proj_out", "head") if head == "seq2seq_lm" else [])


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
}

ARCHITECTURES = [
    Architecture(
        model_type="whisper",
        classes={"base": "WhisperModel", "seq2seq_lm": "WhisperForConditionalGeneration"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        tiny=TINY,
    )
]
