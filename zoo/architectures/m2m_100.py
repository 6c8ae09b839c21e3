"""M2M100 (Fan et al. 2020) and NLLB (NLLB Team 2022): mBART's shape with tensor2tensor's sinusoids."""

import dataclasses
from typing import Any

from zoo.architectures import bart
from zoo.architectures.architecture import Architecture, Fields
from zoo.config import LanguageModelHead, SinusoidalPositions, TransformerConfig
from zoo.weights import Rule


def config_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate an M2M100Config."""
    padding = fields["pad_token_id"]
    positions = SinusoidalPositions(layout="halves", longest="last", offset=padding + 1, padding_id=padding)
    config = bart.translate(fields, head, positions, "input")
    if isinstance(config.head, LanguageModelHead):
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, bias=False))
    return config


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write an M2M100Config."""
    return bart.config_to_hf(config) | {"pad_token_id": config.embedding.positions.padding_id}


def weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    return [
        *bart.shared_tokens(config),
        *bart.stack_weights(config.encoder, "encoder"),
        *bart.stack_weights(config.decoder, "decoder"),
        *bart.head_weights(config, head),
    ]


ARCHITECTURES = [
    Architecture(
        model_type="m2m_100",
        classes={"base": "M2M100Model", "seq2seq_lm": "M2M100ForConditionalGeneration"},
        config_from_hf=config_from_hf,
        config_to_hf=config_to_hf,
        weights=weights,
        prefix="model.",
        ignored=(r"(encoder|decoder)\.embed_positions\.weights$", r"(encoder|decoder)\.version$"),
        defaults={
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "scale_embedding": True,
            "activation_function": "relu",
            "attention_dropout": 0.1,
        },
        tiny={name: value for name, value in bart.TINY.items() if name not in ("id2label", "scale_embedding")},
    )
]
