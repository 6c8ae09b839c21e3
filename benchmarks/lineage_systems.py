"""The systems that lineage.py compares: an LSTM, a GRU with attention, the Transformer, of about as many parameters.

Widths are chosen so that the counts agree; the recipes of the same names (`zoo.recipes.lineage`) have those of their
papers' proportions. All get the same optimizer and schedule, each with a learning rate of its own.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp

from zoo.config import EmbeddingConfig, RecurrentConfig, RelativeBiasConfig, StackConfig, TransformerConfig
from zoo.recipes.lineage import transformer
from zoo.recurrent import Recurrent
from zoo.training.config import OptimizerConfig
from zoo.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class System:
    """One system, for one vocabulary."""

    name: str
    """As on the command line and in the results."""
    title: str
    """As in plots and tables."""
    config: RecurrentConfig | TransformerConfig
    learning_rate: float

    def make_model(self, dtype: str) -> Recurrent | Transformer:
        """The module, its layers unrolled."""
        if isinstance(self.config, RecurrentConfig):
            return Recurrent(self.config, dtype=jnp.dtype(dtype))
        return Transformer(self.config, dtype=jnp.dtype(dtype), layers="unrolled")

    @property
    def reads_backward(self) -> bool:
        """Whether the encoder reads its source from the end."""
        return isinstance(self.config, RecurrentConfig) and self.config.direction == "backward"

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW without decay."""
        return OptimizerConfig(learning_rate=self.learning_rate, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Of each system's layers; the Transformer's is a multiple of its head size."""

    lstm: int = 96
    attention: int = 88
    transformer: int = 72
    head_size: int = 24


TITLES = {
    "lstm": "LSTM",
    "attention": "GRU + attention",
    "transformer": "Transformer",
    "relative": "Transformer, relative positions",
}
"""What can be compared, in the order of the papers."""
ABOUT = {
    "lstm": "two layers a side, the source read from its end, all of it in one state (Sutskever et al. 2014)",
    "attention": "reads both ways, and looks back at every step by additive attention (Bahdanau et al. 2015)",
    "transformer": "two layers a side, post-norm, sinusoids (Vaswani et al. 2017)",
    "relative": "the same with a learned bias by distance in place of the sinusoids (Raffel et al. 2020)",
}
DEFAULT = ("lstm", "attention", "transformer")


def make_system(name: str, vocab_size: int, widths: Widths) -> System:
    """The system of a name of `TITLES` for ids below `vocab_size`."""
    make = {"lstm": _lstm, "attention": _attention, "transformer": _transformer, "relative": _relative}[name]
    rate = {"lstm": 4e-3, "attention": 4e-3, "transformer": 2e-3, "relative": 2e-3}[name]
    return System(name=name, title=TITLES[name], config=make(vocab_size, widths), learning_rate=rate)


def _lstm(vocab_size: int, widths: Widths) -> RecurrentConfig:
    """Two layers that read from the end, and no attention (Sutskever et al. 2014)."""
    embedding = EmbeddingConfig(width=widths.lstm, vocab_size=vocab_size)
    return RecurrentConfig(embedding=embedding, cell="lstm", num_layers=2, width=widths.lstm, direction="backward")


def _attention(vocab_size: int, widths: Widths) -> RecurrentConfig:
    """One layer that reads both ways, and a decoder that looks back (Bahdanau et al. 2015)."""
    embedding = EmbeddingConfig(width=widths.attention, vocab_size=vocab_size)
    return RecurrentConfig(
        embedding=embedding, cell="gru", width=widths.attention, direction="both", attention="additive"
    )


def _transformer(vocab_size: int, widths: Widths) -> TransformerConfig:
    """Two layers a stack, post-norm, sinusoids (Vaswani et al. 2017); without dropout, as the others."""
    config = transformer(vocab_size, width=widths.transformer, num_layers=2, head_size=widths.head_size)
    assert config.encoder is not None and config.decoder is not None
    return replace(
        config,
        embedding=replace(config.embedding, dropout=0.0),
        encoder=_without_dropout(config.encoder),
        decoder=_without_dropout(config.decoder),
    )


def _without_dropout(stack: StackConfig) -> StackConfig:
    cross = None if stack.cross_attention is None else replace(stack.cross_attention, dropout=0.0)
    return replace(stack, attention=replace(stack.attention, dropout=0.0), cross_attention=cross, dropout=0.0)


def _relative(vocab_size: int, widths: Widths) -> TransformerConfig:
    """The same with T5's learned bias by distance in place of the sinusoids (Raffel et al. 2020)."""
    config = _transformer(vocab_size, widths)
    assert config.encoder is not None and config.decoder is not None
    return replace(
        config,
        embedding=replace(config.embedding, positions=None),
        encoder=replace(config.encoder, position_bias=RelativeBiasConfig()),
        decoder=replace(config.decoder, position_bias=RelativeBiasConfig()),
    )
