"""Marian (Junczys-Dowmunt et al. 2018) and Pegasus (Zhang et al. 2020): BART's shape with fixed sinusoids."""

import dataclasses
from typing import Any

import numpy as np

from zoo.architectures import bart
from zoo.architectures.architecture import Architecture, Fields, shift_right
from zoo.config import LanguageModelHead, SinusoidalPositions, TransformerConfig
from zoo.weights import Rule, constant, table


def marian_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a MarianConfig."""
    config = bart.translate(fields, head, _positions(fields), "residual")
    if fields.get("share_encoder_decoder_embeddings", True):
        fields.expect(decoder_vocab_size=fields["vocab_size"])
        return config
    vocab_size = fields.get("decoder_vocab_size", fields["vocab_size"])
    return dataclasses.replace(config, decoder_embedding=dataclasses.replace(config.embedding, vocab_size=vocab_size))


def pegasus_from_hf(fields: Fields, head: str) -> TransformerConfig:
    """Translate a PegasusConfig."""
    return bart.translate(fields, head, _positions(fields), "input")


def _positions(fields: Fields) -> SinusoidalPositions:
    return SinusoidalPositions(layout="halves", max_length=fields.get("max_position_embeddings", 1024))


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a PegasusConfig."""
    return bart.config_to_hf(config) | {"max_position_embeddings": config.embedding.positions.max_length}


def marian_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """Write a MarianConfig."""
    return config_to_hf(config) | {
        "share_encoder_decoder_embeddings": config.target_embedding.vocab_size is None,
        "decoder_vocab_size": config.target_vocab_size,
    }


def marian_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table; the reference leaves the sines out of what its translation model writes."""
    return _weights(config, head, sines_written=head == "base")


def pegasus_weights(config: TransformerConfig, head: str) -> list[Rule]:
    """The table."""
    return _weights(config, head, sines_written=True)


def _weights(config: TransformerConfig, head: str, sines_written: bool) -> list[Rule]:
    sines = sinusoids(config.embedding.positions.max_length, config.embedding.width)
    return [
        *(bart.shared_tokens(config) if config.target_embedding.vocab_size is None else _two_tables(config)),
        *constant("model.encoder.embed_positions.weight", sines, written=sines_written),
        *constant("model.decoder.embed_positions.weight", sines, written=sines_written),
        *bart.stack_weights(config.encoder, "encoder"),
        *bart.stack_weights(config.decoder, "decoder"),
        *bart.head_weights(config, head),
    ]


def _two_tables(config: TransformerConfig) -> list[Rule]:
    """The rows of token tables where the two sides have vocabularies of their own."""
    tied = isinstance(config.head, LanguageModelHead) and config.head.tied
    return [
        *table("model.encoder.embed_tokens", "embedder/token"),
        *table("model.decoder.embed_tokens", "decoder_embedder/token", aliases=("lm_head.weight",) if tied else ()),
    ]


def sinusoids(length: int, width: int) -> np.ndarray:
    """The positions that files keep: all sines, then all cosines (Vaswani et al. 2017, section 3.5)."""
    angles = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)[:, : width // 2]], 1).astype(np.float32)


MARIAN_CLASSES = {"base": "MarianModel", "seq2seq_lm": "MarianMTModel"}
PEGASUS_CLASSES = {"base": "PegasusModel", "seq2seq_lm": "PegasusForConditionalGeneration"}

TINY = {name: value for name, value in bart.TINY.items() if name != "id2label"} | {"eos_token_id": 2}

ARCHITECTURES = [
    Architecture(
        model_type="marian",
        classes=MARIAN_CLASSES,
        config_from_hf=marian_from_hf,
        config_to_hf=marian_to_hf,
        weights=marian_weights,
        prefix="model.",
        defaults={
            "pad_token_id": 58100,
            "eos_token_id": 0,
            "decoder_start_token_id": 58100,
            "forced_eos_token_id": 0,
        },
        decoder_inputs=dict.fromkeys(MARIAN_CLASSES, shift_right),
        tiny=TINY
        | {
            "activation_function": "swish",
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 37,
            "decoder_start_token_id": 1,
        },
    ),
    Architecture(
        model_type="pegasus",
        classes=PEGASUS_CLASSES,
        config_from_hf=pegasus_from_hf,
        config_to_hf=config_to_hf,
        weights=pegasus_weights,
        prefix="model.",
        defaults={"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": 1},
        decoder_inputs=dict.fromkeys(PEGASUS_CLASSES, shift_right),
        tiny=TINY | {"activation_function": "relu"},
    ),
]
