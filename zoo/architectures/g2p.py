"""English spelling to pronunciation: the GRU encoder-decoder of the package g2p_en, as its .npz keeps it.

It is no architecture of transformers, and has neither configuration nor vocabulary beside it: sizes follow from the
arrays, letters and phonemes are written down here.
"""

import string
from collections.abc import Mapping

from zoo.config import EmbeddingConfig, LanguageModelHead, RecurrentConfig
from zoo.weights import LINEAR, VECTOR, CheckpointError, Rule, Shape, rule

GRAPHEMES = ("<pad>", "<unk>", "</s>", *string.ascii_lowercase)
PHONEMES = (
    "<pad>", "<unk>", "<s>", "</s>",
    "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2",
    "AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2",
    "F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2",
    "OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W",
    "Y", "Z", "ZH",
)  # fmt: skip
"""ARPAbet, whose vowels carry their stress."""


def _gru(theirs: str, ours: str) -> list[Rule]:
    """The rows of a layer, whose gates have torch's order."""
    return [
        rule(f"{theirs}_w_ih", f"{ours}/input/kernel", LINEAR),
        rule(f"{theirs}_b_ih", f"{ours}/input/bias", VECTOR),
        rule(f"{theirs}_w_hh", f"{ours}/recurrent/kernel", LINEAR),
        rule(f"{theirs}_b_hh", f"{ours}/recurrent/bias", VECTOR),
    ]


WEIGHTS = (
    rule("enc_emb", "embedder/token/embedding"),
    *_gru("enc", "encoder/layer_0/forward"),
    rule("dec_emb", "decoder_embedder/token/embedding"),
    *_gru("dec", "decoder/layer_0"),
    rule("fc_w", "head/kernel", LINEAR),
    rule("fc_b", "head/bias", VECTOR),
)
"""The table, both ways."""


def read_config(shapes: Mapping[str, Shape], origin: str) -> RecurrentConfig:
    """The model that arrays of these shapes are.

    Raises:
        CheckpointError: they are not those of this architecture, or of another vocabulary.
    """
    missing = [name for row in WEIGHTS for name in row.theirs if name not in shapes]
    if missing:
        raise CheckpointError(
            f"{origin} has no {', '.join(missing)}; the one kind of .npz checkpoint that zoo knows is that of g2p_en"
        )
    for name, symbols in (("enc_emb", GRAPHEMES), ("dec_emb", PHONEMES), ("fc_w", PHONEMES)):
        if len(shapes[name]) != 2 or shapes[name][0] != len(symbols):
            raise CheckpointError(f"{origin}: {name} is {shapes[name]}; g2p_en has {len(symbols)} rows, one a symbol")
    return RecurrentConfig(
        embedding=EmbeddingConfig(width=shapes["enc_emb"][1], vocab_size=len(GRAPHEMES)),
        decoder_embedding=EmbeddingConfig(width=shapes["dec_emb"][1], vocab_size=len(PHONEMES)),
        cell="gru",
        width=shapes["fc_w"][1],
        head=LanguageModelHead(tied=False, bias=True),
    )
