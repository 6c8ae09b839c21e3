"""What turns hidden states into logits or vectors."""

from dataclasses import dataclass
from typing import Literal, get_args

from zoo.config.norm import NormConfig
from zoo.config.stack import Activation, AttentionConfig, MlpConfig
from zoo.config.validation import one_of, positive, require

Pooling = Literal[
    "first", "last", "end", "mean", "mean_with_padding", "weighted_mean", "mean_root_length", "max", "patch_mean",
    "first_and_patch_mean",
]  # fmt: skip
"""What stands for a sequence: its first position; the last that is no padding; the last, padding or not (SigLIP); the
mean, padding left out or counted (ImageGPT), or weighted by the position, from 1 (SGPT); the sum by the root of the
length (Sentence-BERT); the largest values, padding left out; the mean of all positions after the first; the first
beside that mean (DINOv2)."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelHead:
    """Logits over the vocabulary at every position."""

    tied: bool = True
    """Use the token table of the last stack's embedding."""
    num_ids: int | None = None
    """Untied: predict the first so many ids alone (ImageGPT leaves out its start token); None: all."""
    bias: bool = False
    transform: Activation | None = None
    """A dense layer, this activation and a norm before the logits (BERT's masked-LM head)."""
    transform_bias: bool = True
    """Add a learned offset in that dense layer."""
    scale: float = 1.0
    """Multiplies the hidden states first (T5 ties with width ** -0.5)."""
    softcap: float | None = None

    def __post_init__(self):
        positive(self, "scale")
        require(
            self.num_ids is None or (self.num_ids > 0 and not self.tied),
            f"LanguageModelHead.num_ids is {self.num_ids} with tied={self.tied}; give a number above zero, untied",
        )
        require(
            self.transform is None or self.transform in get_args(Activation),
            f"LanguageModelHead.transform is {self.transform!r}; choose one of {get_args(Activation)}",
        )
        require(
            self.transform is not None or self.transform_bias,
            "LanguageModelHead.transform_bias is False without a transform; give its activation",
        )
        require(
            self.softcap is None or self.softcap > 0,
            f"LanguageModelHead.softcap is {self.softcap}; give a number above zero, or None for no cap",
        )


@dataclass(frozen=True, kw_only=True)
class ClassifierHead:
    """One vector of logits a sequence, from a pooled hidden state."""

    num_classes: int
    pooling: Pooling = "first"
    padding_id: int | None = None
    """With "last": padding is this id, whatever the attention mask says (classifiers on decoders); None: the mask.

    In an encoder-decoder it is padding of `input_ids`, which the decoder reads one position later (T5Gemma)."""
    end_id: int | None = None
    """With "last": the last position of this id among the `input_ids` stands for the sequence (BART, T5)."""
    norm: NormConfig | None = None
    """Normalise the pooled vector (BEiT)."""
    projection: int | None = None
    """Width of a linear map of the pooled vector before the logits (Whisper)."""
    pooler: Activation | None = None
    """A dense layer and this activation between the pooled vector and the logits (BERT: tanh)."""
    pooler_bias: bool = True
    """Add a learned offset in that dense layer."""
    pooler_norm: NormConfig | None = None
    """Normalise after it (ModernBERT)."""
    bias: bool = True
    """Add a learned offset to the logits."""
    distilled: bool = False
    """A second classifier reads the second position, DeiT's distillation token; the logits are the mean of both."""

    def __post_init__(self):
        positive(self, "num_classes")
        one_of(self, "pooling", Pooling)
        for name in ("padding_id", "end_id"):
            require(
                getattr(self, name) is None or self.pooling == "last",
                f"ClassifierHead.{name} is {getattr(self, name)} with pooling={self.pooling!r}; only 'last' reads it",
            )
        require(
            self.padding_id is None or self.end_id is None,
            f"ClassifierHead has padding_id={self.padding_id} and end_id={self.end_id}; give one of the two",
        )
        require(
            self.projection is None or (self.projection > 0 and self.pooler is None),
            f"ClassifierHead.projection is {self.projection} with pooler={self.pooler!r}; give a width above zero, or "
            "one of the two",
        )
        require(
            self.pooler is None or self.pooler in get_args(Activation),
            f"ClassifierHead.pooler is {self.pooler!r}; choose one of {get_args(Activation)}",
        )
        require(
            self.pooler is not None or (self.pooler_bias and self.pooler_norm is None),
            f"ClassifierHead has pooler_bias={self.pooler_bias} and pooler_norm={self.pooler_norm} without a pooler; "
            "give its activation",
        )


@dataclass(frozen=True, kw_only=True)
class TokenHead:
    """Logits at every position over `num_classes` labels; two of them mark an answer's start and end."""

    num_classes: int | None
    """None: one logit a position, without an axis of classes (ELECTRA's discriminator)."""
    transform: Activation | None = None
    """A dense layer and this activation before the logits."""
    transform_bias: bool = True
    """Add a learned offset in that dense layer."""
    transform_norm: bool = True
    """Normalise after it, as in `LanguageModelHead` (ModernBERT)."""
    norm: NormConfig | None = None
    """Normalise the hidden states first (BEiT's pre-training)."""
    patches_only: bool = False
    """Leave out the learned vectors before an image's patches (the same)."""

    def __post_init__(self):
        require(
            self.num_classes is None or self.num_classes > 0,
            f"TokenHead.num_classes is {self.num_classes}; give a number above zero, or None",
        )
        require(
            self.transform is None or self.transform in get_args(Activation),
            f"TokenHead.transform is {self.transform!r}; choose one of {get_args(Activation)}",
        )
        require(
            self.transform is not None or (self.transform_bias and self.transform_norm),
            f"TokenHead has transform_bias={self.transform_bias} and transform_norm={self.transform_norm} without a "
            "transform; give its activation",
        )


@dataclass(frozen=True, kw_only=True)
class AttentionPoolConfig:
    """A learned query attends to all positions, and an MLP adds to what it finds (SigLIP; Zhai et al. 2022)."""

    attention: AttentionConfig
    mlp: MlpConfig
    norm: NormConfig = NormConfig()
    """Of the MLP's input."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """A linear map of a sequence's vector."""

    width: int
    bias: bool = False
    activation: Activation | None = None

    def __post_init__(self):
        positive(self, "width")


@dataclass(frozen=True, kw_only=True)
class EmbeddingHead:
    """One vector a sequence, for similarity and search."""

    pooling: Literal[Pooling, "token", "attention"] = "mean"
    """The first position of an id, or what a learned query finds; else as in a classifier."""
    token_id: int | None = None
    """With "token": the id (CLIP's end of text); None: the highest in the sequence (CLIP's first release)."""
    attention_pool: AttentionPoolConfig | None = None
    """With "attention": the query's attention and MLP."""
    also_pooled: tuple[Pooling, ...] = ()
    """What else stands for the sequence, concatenated after it (Sentence-BERT)."""
    norm: NormConfig | None = None
    """Normalise the pooled vector, before any projection (CLIP's images)."""
    normalize: bool = True
    """Scale the vector to length one."""
    inner: tuple[DenseConfig, ...] = ()
    """Linear maps before `projection` (EmbeddingGemma)."""
    projection: int | None = None
    """Width of a linear map after pooling (CLIP)."""
    projection_bias: bool = False
    activation: Activation | None = None
    """Applied to the projection (BERT's pooler: tanh)."""

    def __post_init__(self):
        one_of(self, "pooling", Literal[Pooling, "token", "attention"])
        require(
            self.token_id is None or self.pooling == "token",
            f"EmbeddingHead.token_id is {self.token_id} with pooling={self.pooling!r}; only 'token' reads it",
        )
        require(
            (self.attention_pool is not None) == (self.pooling == "attention"),
            f"EmbeddingHead.attention_pool is {self.attention_pool} with pooling={self.pooling!r}; "
            "give it exactly with 'attention'",
        )
        require(
            self.projection is not None or not (self.projection_bias or self.activation),
            "EmbeddingHead has projection_bias or activation without a projection; give its width",
        )
        require(
            not self.inner or self.projection is not None,
            f"EmbeddingHead.inner is {self.inner} without a projection; the last linear map is the projection",
        )
        require(
            self.activation is None or self.activation in get_args(Activation),
            f"EmbeddingHead.activation is {self.activation!r}; choose one of {get_args(Activation)}",
        )
        require(
            self.projection is None or self.projection > 0,
            f"EmbeddingHead.projection is {self.projection}; give a width above zero, or None",
        )


Head = LanguageModelHead | ClassifierHead | TokenHead | EmbeddingHead
