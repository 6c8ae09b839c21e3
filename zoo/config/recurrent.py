"""Recurrent encoder-decoders, with and without attention."""

from dataclasses import dataclass
from typing import Literal

from zoo.config.embedding import EmbeddingConfig
from zoo.config.heads import LanguageModelHead
from zoo.config.validation import fraction, one_of, positive, require

Cell = Literal["lstm", "gru"]
Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Two stacks of recurrent layers, of which the second writes what the first has read.

    `RecurrentConfig(cell="lstm", direction="backward", num_layers=4, ...)` is the model of Sutskever et al. 2014, which
    reads its source from the end; `RecurrentConfig(cell="gru", direction="both", attention="additive", ...)` that of
    Bahdanau et al. 2015.
    """

    embedding: EmbeddingConfig
    """Input of the encoder: a table of tokens."""
    decoder_embedding: EmbeddingConfig | None = None
    """Input of the decoder; None: the encoder's embedding serves both."""
    cell: Cell = "lstm"
    """lstm (Hochreiter & Schmidhuber 1997, with a forget gate: Gers et al. 2000), or gru (Cho et al. 2014)."""
    num_layers: int = 1
    """Of the encoder, and of the decoder."""
    width: int
    """Of a layer's state, one direction's; D of the decoder."""
    direction: Direction = "forward"
    """How the encoder reads: from the first token, from the last (a reversed source), or both ways, side by side."""
    attention: Literal["additive"] | None = None
    """additive: the decoder's first layer reads, at each step, a mean of the encoder's states, weighted by how well
    each fits its own last state; None: what the decoder knows is the encoder's last state."""
    dropout: float = 0.0
    """Rate at which the inputs of layers and of the head are dropped in training, never the states (Zaremba et al.
    2014). The embeddings have their own."""
    head: LanguageModelHead = LanguageModelHead()

    def __post_init__(self):
        positive(self, "num_layers", "width")
        fraction(self, "dropout")
        one_of(self, "cell", Cell)
        one_of(self, "direction", Direction)
        require(
            self.attention in (None, "additive"),
            f"RecurrentConfig.attention is {self.attention!r}; give 'additive', or None",
        )
        for name in ("embedding", "decoder_embedding"):
            _check_embedding(name, getattr(self, name))
        require(
            self.head.transform is None,
            f"RecurrentConfig.head has transform={self.head.transform!r}, which recurrent models lack; give None",
        )
        table = self.target_embedding.width
        require(
            not self.head.tied or self.output_width == table,
            f"RecurrentConfig.width is {self.width}; logits tied to the token table need its width ({table}): "
            "give that, or head.tied=False",
        )

    @property
    def target_embedding(self) -> EmbeddingConfig:
        """The embedding whose vocabulary the model predicts."""
        return self.embedding if self.decoder_embedding is None else self.decoder_embedding

    @property
    def target_vocab_size(self) -> int | None:
        """Number of ids the model predicts, V."""
        return self.target_embedding.vocab_size

    @property
    def memory_width(self) -> int:
        """Of the encoder's output at a position, M."""
        return self.width * (2 if self.direction == "both" else 1)

    @property
    def output_width(self) -> int:
        """Of what the head reads: the state's, or with attention that of the embedding (Bahdanau et al., A.2.2)."""
        return self.width if self.attention is None else self.target_embedding.width

    @property
    def is_encoder_decoder(self) -> bool:
        """Each writes one sequence from another."""
        return True

    @property
    def generates(self) -> bool:
        """Each writes tokens, one after the other."""
        return True

    @property
    def family(self) -> Literal["recurrent encoder-decoder"]:
        """For messages and tables."""
        return "recurrent encoder-decoder"


def _check_embedding(name: str, config: EmbeddingConfig | None) -> None:
    if config is None:
        return
    require(
        config.vocab_size is not None,
        f"RecurrentConfig.{name} has no vocab_size; a recurrent model reads ids: give the table's rows",
    )
    for field in ("positions", "num_token_types"):
        value = getattr(config, field)
        require(
            not value,
            f"RecurrentConfig.{name} has {field}={value}; a recurrent model knows the order by reading: leave it out",
        )
    require(
        config.projected == "sum",
        f"RecurrentConfig.{name} has projected={config.projected!r}, and nothing is projected; leave it out",
    )
