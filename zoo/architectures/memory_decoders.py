"""Decoders that attend to an encoder of another architecture: GPT-2, BERT and its descendants, BART, mBART, TrOCR.

Each is the causal language model of its own file, with cross-attention in every layer. TrOCR (Li et al. 2021) is a BART
without an encoder, which no file has by itself.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zoo.architectures import bart, bert, gpt2, roberta
from zoo.architectures.architecture import Fields
from zoo.config import (
    EmbeddingConfig,
    LanguageModelHead,
    SinusoidalPositions,
    StackConfig,
    TransformerConfig,
)
from zoo.weights import (
    INPUT_FIRST,
    INPUT_FIRST_OF_HEADS,
    LINEAR,
    Rule,
    fused_linear,
    linear,
    norm,
    rule,
    table,
)


class Decoding(NamedTuple):
    """The decoder's side of an encoder-decoder."""

    embedding: EmbeddingConfig
    stack: StackConfig
    head: LanguageModelHead


@dataclass(frozen=True, kw_only=True)
class MemoryDecoder:
    """How config.json and the weights describe a decoder of one `model_type`, both ways."""

    from_hf: Callable[[Fields], Decoding]
    to_hf: Callable[[Decoding], dict[str, Any]]
    weights: Callable[[Decoding], Sequence[Rule]]
    """The table; parameters lie under `embedder`, `decoder` and `head`."""


def _by_itself(fields: Fields) -> Fields:
    """The configuration of the same model without cross-attention."""
    return Fields(fields.values | {"is_decoder": False, "add_cross_attention": False}, fields.origin)


def _attending(stack: StackConfig) -> StackConfig:
    """The stack with cross-attention of the shape that its attention has."""
    return dataclasses.replace(stack, causal=True, cross_attention=stack.attention)


def _alone(stack: StackConfig) -> StackConfig:
    return dataclasses.replace(stack, cross_attention=None)


def _gpt2_from_hf(fields: Fields) -> Decoding:
    fields.expect(scale_attn_by_inverse_layer_idx=False)
    config = gpt2.config_from_hf(_by_itself(fields), "causal_lm")
    return Decoding(config.embedding, _attending(config.output_stack), config.head)


def _as_gpt2(decoding: Decoding) -> TransformerConfig:
    return TransformerConfig(embedding=decoding.embedding, decoder=_alone(decoding.stack), head=decoding.head)


def _gpt2_weights(decoding: Decoding) -> list[Rule]:
    layer, ours = "transformer.h.{layer}", "decoder/cross_attention"
    memory = [f"{ours}/key", f"{ours}/value"]
    return [
        *gpt2.weights(_as_gpt2(decoding), "causal_lm"),
        *norm(f"{layer}.ln_cross_attn", f"{ours}_input_norm"),
        *linear(f"{layer}.crossattention.q_attn", f"{ours}/query", INPUT_FIRST),
        *fused_linear(f"{layer}.crossattention.c_attn", memory, INPUT_FIRST),
        *linear(f"{layer}.crossattention.c_proj", f"{ours}/output", INPUT_FIRST_OF_HEADS),
    ]


def _of_encoder(architecture: Any) -> MemoryDecoder:
    """An encoder's architecture as a decoder, whose masked-LM head predicts the next token."""

    def from_hf(fields: Fields) -> Decoding:
        config = architecture.config_from_hf(_by_itself(fields), "masked_lm")
        return Decoding(config.embedding, _attending(config.output_stack), config.head)

    def as_encoder(decoding: Decoding) -> TransformerConfig:
        stack = dataclasses.replace(_alone(decoding.stack), causal=False)
        return TransformerConfig(embedding=decoding.embedding, encoder=stack, head=decoding.head)

    def weights(decoding: Decoding) -> list[Rule]:
        rows = [*architecture.weights(as_encoder(decoding), "masked_lm")]
        layer = architecture.prefix + "encoder.layer.{layer}"
        rows += bert.attention_weights(f"{layer}.crossattention", "encoder/cross_attention")
        paths = [tuple(path.replace("encoder/", "decoder/", 1) for path in row.ours) for row in rows]
        return [dataclasses.replace(row, ours=ours) for row, ours in zip(rows, paths, strict=True)]

    def to_hf(decoding: Decoding) -> dict[str, Any]:
        return architecture.config_to_hf(as_encoder(decoding))

    return MemoryDecoder(from_hf=from_hf, to_hf=to_hf, weights=weights)


def _of_bart(translate: Callable[[Fields], TransformerConfig], logits: str = "lm_head") -> MemoryDecoder:
    """The decoder of an encoder-decoder with BART's fields; `logits` names the language model's map."""

    def from_hf(fields: Fields) -> Decoding:
        config = translate(fields)
        head = LanguageModelHead(tied=fields.get("tie_word_embeddings", True))
        return Decoding(config.embedding, config.output_stack, head)

    def to_hf(decoding: Decoding) -> dict[str, Any]:
        encoder = dataclasses.replace(_alone(decoding.stack), causal=False)
        whole = TransformerConfig(
            embedding=decoding.embedding, encoder=encoder, decoder=decoding.stack, head=decoding.head
        )
        fields = bart.config_to_hf(whole)
        return {name: value for name, value in fields.items() if not name.startswith("encoder_")}

    def weights(decoding: Decoding) -> list[Rule]:
        return [
            *table("model.decoder.embed_tokens", "embedder/token", aliases=(f"{logits}.weight",) * decoding.head.tied),
            *table("model.decoder.embed_positions", "embedder/position"),
            *norm("model.decoder.layernorm_embedding", "embedder/norm"),
            *bart.stack_weights(decoding.stack, "decoder"),
            rule(f"{logits}.weight", "head/kernel", LINEAR),
        ]

    return MemoryDecoder(from_hf=from_hf, to_hf=to_hf, weights=weights)


def _trocr_from_hf(fields: Fields) -> TransformerConfig:
    fields = fields.with_defaults({"vocab_size": 50265, "max_position_embeddings": 512, "pad_token_id": 1})
    padding = fields["pad_token_id"]
    positions = bart.learned_positions(fields)
    if not fields.get("use_learned_position_embeddings", True):
        positions = SinusoidalPositions(layout="halves", longest="last", offset=padding + 1, padding_id=padding)
    return bart.translate(fields, "base", positions, "residual", embedding_norm=fields.get("layernorm_embedding", True))


def _trocr_to_hf(decoding: Decoding) -> dict[str, Any]:
    embedding = decoding.embedding
    fields = _TROCR.to_hf(decoding) | {
        "use_learned_position_embeddings": not isinstance(embedding.positions, SinusoidalPositions),
        "layernorm_embedding": embedding.norm is not None,
    }
    if isinstance(embedding.positions, SinusoidalPositions):
        fields["pad_token_id"] = embedding.positions.padding_id
    return fields


_TROCR = _of_bart(_trocr_from_hf, "output_projection")

MEMORY_DECODERS = {
    "bart": _of_bart(lambda fields: bart.bart_from_hf(fields, "base")),
    "gpt2": MemoryDecoder(
        from_hf=_gpt2_from_hf,
        to_hf=lambda decoding: gpt2.config_to_hf(_as_gpt2(decoding)),
        weights=_gpt2_weights,
    ),
    "mbart": _of_bart(lambda fields: bart.mbart_from_hf(fields, "base")),
    "trocr": dataclasses.replace(_TROCR, to_hf=_trocr_to_hf),
} | {found.model_type: _of_encoder(found) for found in (*bert.ARCHITECTURES, *roberta.ARCHITECTURES)}
"""By `model_type`."""
