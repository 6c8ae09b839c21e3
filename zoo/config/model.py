"""Whole models: one transformer, or two towers of one space."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from zoo.config.embedding import EmbeddingConfig
from zoo.config.heads import EmbeddingHead, Head, LanguageModelHead, TokenHead
from zoo.config.recurrent import RecurrentConfig
from zoo.config.stack import StackConfig
from zoo.config.validation import positive, require


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A whole model. The family follows from which stacks exist."""

    embedding: EmbeddingConfig
    """Input of the encoder, or of the only stack."""
    encoder: StackConfig | None = None
    decoder: StackConfig | None = None
    decoder_embedding: EmbeddingConfig | None = None
    """Input of an encoder-decoder's decoder; None: the encoder's embedding serves both (T5)."""
    memory_width: int | None = None
    """Width of a linear map of the encoder's output, which the decoder attends to; None: it attends to that itself.

    Where an encoder and a decoder that were made apart differ in width."""
    output_width: int | None = None
    """Width of a linear map of the decoder's output, back to the token table's width (OPT); None for no map."""
    head: Head | None = None
    """None: the model ends with hidden states."""

    def __post_init__(self):
        require(
            self.encoder is not None or self.decoder is not None,
            "TransformerConfig has neither encoder nor decoder; give at least one StackConfig",
        )
        both = self.encoder is not None and self.decoder is not None
        if self.encoder is not None:
            require(
                self.encoder.cross_attention is None,
                "TransformerConfig.encoder has cross_attention; only a decoder attends to an encoder",
            )
        if self.decoder is not None:
            require(
                self.decoder.causal,
                "TransformerConfig.decoder has causal=False; a decoder is causal (causal=True)",
            )
            require(
                both == (self.decoder.cross_attention is not None),
                f"TransformerConfig.decoder has cross_attention={self.decoder.cross_attention}; "
                "give it exactly when there is an encoder",
            )
        if self.memory_width is not None:
            positive(self, "memory_width")
            require(both, "TransformerConfig.memory_width without both stacks; leave it at None")
        if self.output_width is not None:
            positive(self, "output_width")
            require(self.decoder is not None, "TransformerConfig.output_width without a decoder; leave it at None")
        require(
            both or self.decoder_embedding is None,
            "TransformerConfig.decoder_embedding without both stacks; use embedding",
        )
        require(
            (self.embedding.vocab_size, self.embedding.patches, self.embedding.audio) != (None, None, None),
            "TransformerConfig.embedding has neither vocab_size nor patches nor audio; give the one that the input is",
        )
        target = self.target_embedding
        require(
            not both or (target.patches is None and target.audio is None),
            "an encoder-decoder's decoder reads ids; give decoder_embedding",
        )
        require(
            not both or self.target_vocab_size is not None,
            "no token table for the decoder: give decoder_embedding.vocab_size or embedding.vocab_size",
        )
        if self.decoder_embedding is not None and self.decoder_embedding.vocab_size is None:
            require(
                self.decoder_embedding.width == self.embedding.width,
                f"decoder_embedding.width is {self.decoder_embedding.width}; a shared table has "
                f"embedding.width ({self.embedding.width})",
            )
        require(
            not (isinstance(self.head, TokenHead) and self.head.patches_only and self.embedding.patches is None),
            "TokenHead.patches_only without patches; set it to False",
        )
        if isinstance(self.head, LanguageModelHead):
            require(
                self.target_vocab_size is not None,
                "LanguageModelHead needs a vocabulary; give embedding.vocab_size",
            )
            tied = self.head.tied and self.head.transform is None
            require(
                not tied or self.output_width in (None, target.width),
                f"TransformerConfig.output_width is {self.output_width}; logits tied to the token table need its width "
                f"({target.width})",
            )

    @property
    def target_embedding(self) -> EmbeddingConfig:
        """The embedding whose vocabulary the model predicts."""
        return self.embedding if self.decoder_embedding is None else self.decoder_embedding

    @property
    def target_vocab_size(self) -> int | None:
        """Number of ids the model predicts, V."""
        own = self.target_embedding.vocab_size
        return self.embedding.vocab_size if own is None else own

    @property
    def output_stack(self) -> StackConfig:
        """The stack that the head reads."""
        stack = self.decoder if self.decoder is not None else self.encoder
        assert stack is not None  # __post_init__ has seen one of the two
        return stack

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it writes one sequence from another."""
        return self.encoder is not None and self.decoder is not None

    @property
    def generates(self) -> bool:
        """Whether it writes tokens, one after the other."""
        return self.decoder is not None and isinstance(self.head, LanguageModelHead)

    @property
    def family(self) -> Literal["encoder-only", "decoder-only", "encoder-decoder"]:
        """For messages and tables; no code branches on it."""
        if self.encoder is None:
            return "decoder-only"
        return "encoder-only" if self.decoder is None else "encoder-decoder"


@dataclass(frozen=True, kw_only=True)
class DualConfig:
    """Two models whose vectors are compared, texts and images (CLIP; Radford et al. 2021)."""

    text: TransformerConfig
    image: TransformerConfig
    bias: bool = False
    """Add a learned offset to every score (SigLIP)."""

    def __post_init__(self):
        for name, config in (("text", self.text), ("image", self.image)):
            require(
                isinstance(config.head, EmbeddingHead) and config.head.normalize,
                f"DualConfig.{name} has head {config.head}; give an EmbeddingHead with normalize=True",
            )

    @property
    def is_encoder_decoder(self) -> bool:
        """Neither writes anything."""
        return False

    @property
    def generates(self) -> bool:
        """The same."""
        return False

    @property
    def embedding(self) -> EmbeddingConfig:
        """What reads `input_ids`: the text's."""
        return self.text.embedding

    @property
    def target_embedding(self) -> EmbeddingConfig:
        """The same: nothing is predicted."""
        return self.text.embedding


ModelConfig = TransformerConfig | RecurrentConfig | DualConfig

replace = dataclasses.replace
