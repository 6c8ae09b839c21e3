"""Frozen descriptions of a model: what the network is, never how it is run.

`TransformerConfig(embedding, encoder, decoder, head)` describes every family; which stacks exist decides whether
it is encoder-only, decoder-only or encoder-decoder. `RecurrentConfig` describes the encoder-decoders before it.
Variation is an optional sub-config or a `Literal`, and each field exists because a published architecture needs it.
`None` means absent. Compute dtype, rematerialisation and scanning are arguments of `zoo.transformer.Transformer`,
because they do not change the function.

This package needs the standard library only.
"""

from zoo.config.embedding import AudioConfig, EmbeddingConfig, PatchConfig
from zoo.config.heads import (
    AttentionPoolConfig,
    ClassifierHead,
    DenseConfig,
    EmbeddingHead,
    Head,
    LanguageModelHead,
    Pooling,
    TokenHead,
)
from zoo.config.image_tokens import ImageTokenizerConfig
from zoo.config.model import DualConfig, ModelConfig, TransformerConfig, replace
from zoo.config.norm import NormConfig
from zoo.config.positions import (
    AlibiConfig,
    DisentangledConfig,
    DynamicScaling,
    GridBiasConfig,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    PositionTerm,
    RelativeBiasConfig,
    RotaryConfig,
    RotaryScaling,
    SinusoidalPositions,
    YarnScaling,
)
from zoo.config.recurrent import Cell, Direction, RecurrentConfig
from zoo.config.stack import (
    Activation,
    AttentionConfig,
    BiasSlot,
    ConvolutionConfig,
    ExpertsConfig,
    LocalConfig,
    MlpConfig,
    NormSlot,
    Span,
    StackConfig,
)

__all__ = [
    "Activation",
    "AlibiConfig",
    "AttentionConfig",
    "AttentionPoolConfig",
    "AudioConfig",
    "BiasSlot",
    "Cell",
    "ClassifierHead",
    "ConvolutionConfig",
    "DenseConfig",
    "Direction",
    "DisentangledConfig",
    "DualConfig",
    "DynamicScaling",
    "EmbeddingConfig",
    "EmbeddingHead",
    "ExpertsConfig",
    "GridBiasConfig",
    "Head",
    "ImageTokenizerConfig",
    "LanguageModelHead",
    "LearnedPositions",
    "LinearScaling",
    "Llama3Scaling",
    "LocalConfig",
    "LongRopeScaling",
    "MlpConfig",
    "ModelConfig",
    "NormConfig",
    "NormSlot",
    "PatchConfig",
    "Pooling",
    "PositionTerm",
    "RecurrentConfig",
    "RelativeBiasConfig",
    "RotaryConfig",
    "RotaryScaling",
    "SinusoidalPositions",
    "Span",
    "StackConfig",
    "TokenHead",
    "TransformerConfig",
    "YarnScaling",
    "replace",
]
