"""A vocabulary that zoo trained (`zoo.data.Tokenizer`) as tokenizer.json, for the libraries that read it."""

from collections.abc import Sequence

from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, normalizers

from zoo.tokenization.builders import SPACE, scored_bpe
from zoo.tokenization.templates import around
from zoo.tokenization.tokenizer import FastCoder, PretrainedTokenizer, Side

_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}


def trained_tokenizer(
    model: bytes, rewritten: Sequence[tuple[str, str]], *, begins: bool, ends: bool, padding_side: Side
) -> PretrainedTokenizer:
    """The same ids for the same text, except that special tokens spelt out in a text are taken for themselves.

    Args:
        model: a SentencePiece model of byte pairs, without normalisation.
        rewritten: what the model is given for what, in order.
        begins: whether `<s>` goes before a text.
        ends: whether `</s>` goes after it.
        padding_side: where rows of a batch are filled.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    tokenizer = scored_bpe([(piece.piece, piece.score) for piece in proto.pieces], prefix=False)
    escape = [normalizers.Replace(old, new) for old, new in rewritten]
    unescape = [decoders.Replace(new, old) for old, new in reversed(rewritten)]
    tokenizer.normalizer = normalizers.Sequence([*escape, normalizers.Replace(" ", SPACE)])
    bytes_to_text = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*bytes_to_text, *unescape])
    tokenizer.add_special_tokens(list(_ROLES.values()))
    first, last = "<s> " if begins else "", " </s>" if ends else ""
    around(tokenizer, f"{first}$A{last}", f"{first}$A{last} $B{last}", "<s>", "</s>")
    return PretrainedTokenizer(coder=FastCoder(tokenizer), special=dict(_ROLES), padding_side=padding_side)
