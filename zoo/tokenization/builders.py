"""Tokenizers from the vocabulary files that came before tokenizer.json: WordPiece, byte-level BPE, SentencePiece.

Each builder takes a folder and its tokenizer_config.json and gives a `tokenizers.Tokenizer`. Which builder a
checkpoint wants follows from `tokenizer_class`, or from its model_type where that is missing.
"""

import json
import re
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from zoo.tokenization.templates import around
from zoo.weights import CheckpointError

Settings = dict[str, Any]
SPACE = "▁"
MAX_SENTINELS = 10_000
"""T5's tokens for gaps, of which published tokenizers have at most a thousand."""
_BERT = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]")
_ROBERTA = ("<s> $A </s>", "<s> $A </s> </s> $B </s>", "<s>", "</s>")


def wordpiece(folder: Path, settings: Settings) -> Tokenizer:
    """vocab.txt, a token a line (Devlin et al. 2019)."""
    lines = _read(folder / "vocab.txt").decode("utf-8", "replace").split("\n")
    vocabulary = {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    unknown = str(settings.get("unk_token") or "[UNK]")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    begin, end = str(settings.get("cls_token") or "[CLS]"), str(settings.get("sep_token") or "[SEP]")
    tokenizer.add_special_tokens([t for t in ("[PAD]", unknown, begin, end, "[MASK]") if t in vocabulary])
    around(tokenizer, f"{begin} $A {end}", f"{begin} $A {end} $B:1 {end}:1", begin, end)
    return tokenizer


def mpnet(folder: Path, settings: Settings) -> Tokenizer:
    """WordPiece with RoBERTa's special tokens (Song et al. 2020)."""
    named = {"cls_token": "<s>", "sep_token": "</s>"} | settings
    tokenizer = wordpiece(folder, named)
    tokenizer.add_special_tokens(
        [t for t in ("<s>", "<pad>", "</s>", "<mask>") if tokenizer.token_to_id(t) is not None]
    )
    around(tokenizer, *_ROBERTA)
    return tokenizer


def byte_bpe(folder: Path, settings: Settings) -> Tokenizer:
    """vocab.json and merges.txt over bytes (Radford et al. 2019)."""
    tokenizer = Tokenizer(_bpe(folder))
    prefix = settings.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if settings.get("add_bos_token") or settings.get("add_eos_token"):
        _frame(tokenizer, settings, "<|endoftext|>", "<|endoftext|>", begun=False)
    return tokenizer


def qwen2(folder: Path, settings: Settings) -> Tokenizer:
    """The same with words that begin at other places, and single digits (Bai et al. 2023)."""
    tokenizer = byte_bpe(folder, settings)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = by_words(QWEN_2)
    return tokenizer


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3, QWEN_2 = _WORDS.replace("{DIGITS}", "{1,3}"), _WORDS.replace("{DIGITS}", "")


def by_words(words: str) -> Any:
    """Cuts where an expression says, and makes bytes of the parts."""
    parts = [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def roberta(folder: Path, settings: Settings) -> Tokenizer:
    """Byte-level BPE between <s> and </s> (RoBERTa, BART)."""
    tokenizer = byte_bpe(folder, settings)
    present = [t for t in ("<s>", "<pad>", "</s>", "<unk>") if tokenizer.token_to_id(t) is not None]
    # The mask takes the space before it.
    tokenizer.add_special_tokens([*present, AddedToken("<mask>", lstrip=True, special=True)])
    around(tokenizer, *_ROBERTA)
    return tokenizer


def opt(folder: Path, settings: Settings) -> Tokenizer:
    """Byte-level BPE after </s> (Zhang et al. 2022)."""
    tokenizer = byte_bpe(folder, settings)
    tokenizer.add_special_tokens(["</s>", "<pad>"])
    around(tokenizer, "</s> $A", "</s> $A </s> $B", "</s>")
    return tokenizer


def clip(folder: Path, settings: Settings) -> Tokenizer:
    """Lower-cased byte-level BPE with word ends (Radford et al. 2021)."""
    begin = str(settings.get("bos_token") or "<|startoftext|>")
    end = str(settings.get("eos_token") or "<|endoftext|>")
    tokenizer = Tokenizer(_bpe(folder, end_of_word_suffix="</w>", unk_token=str(settings.get("unk_token") or end)))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = word_ends()
    tokenizer.add_special_tokens([begin, end])
    around(tokenizer, f"{begin} $A {end}", f"{begin} $A {end} {end} $B {end}", begin, end)
    return tokenizer


def word_ends() -> Any:
    """CLIP's decoder: bytes to text, word ends to spaces."""
    return decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(Regex("</w>$"), ""), decoders.Replace("</w>", " ")]
    )


def _bpe(folder: Path, **options: Any) -> models.BPE:
    try:
        vocabulary = json.loads(_read(folder / "vocab.json"))
        lines = _read(folder / "merges.txt").decode().splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return models.BPE(vocab=vocabulary, merges=merges, **options)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder} has a vocab.json and merges.txt that do not fit: {error}") from None


class SentencePieceFile:
    """A SentencePiece model as its pieces and its normalisation."""

    def __init__(self, folder: Path, *names: str):
        """The first of `names` that is there. CheckpointError where none is, or where it is damaged."""
        from sentencepiece import sentencepiece_model_pb2

        path = next((folder / name for name in names if (folder / name).exists()), folder / names[0])
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(_read(path))
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} is no SentencePiece model: {error}") from None
        self.path = path
        self.pieces = [(piece.piece, piece.score) for piece in proto.pieces]
        self.user_defined = [piece.piece for piece in proto.pieces if piece.type == 4]
        self.charsmap: bytes = proto.normalizer_spec.precompiled_charsmap
        self.is_bpe = proto.trainer_spec.model_type == 2
        self.unk_id: int = proto.trainer_spec.unk_id
        if not self.pieces:
            raise CheckpointError(f"{path} has no pieces")

    def normalizer(self, *first: Any) -> normalizers.Normalizer:
        """What SentencePiece does to text before it is cut."""
        own = [normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        return normalizers.Sequence([*first, *own, normalizers.Replace(Regex(" {2,}"), " ")])


def unigram(
    file: SentencePieceFile, pieces: list[tuple[str, float]], unk_id: int, special: Iterable[str], *first: Any
) -> Tokenizer:
    """A unigram model over `pieces`, words marked by the space before them."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unk_id))
    tokenizer.normalizer = file.normalizer(*first)
    # Spaces at either end are none of the text's.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    known = dict(pieces)
    tokenizer.add_special_tokens([token for token in special if token in known])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in file.user_defined])
    return tokenizer


def t5(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece, with sentinels after its pieces, the last first."""
    file = SentencePieceFile(folder, "spiece.model")
    count = settings.get("extra_ids", 100)
    if not 0 <= count <= MAX_SENTINELS:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: extra_ids is {count}; zoo takes {MAX_SENTINELS}")
    extra = [f"<extra_id_{i}>" for i in reversed(range(count))]
    pieces = file.pieces + [(token, 0.0) for token in extra]
    tokenizer = unigram(file, pieces, file.unk_id, ("<pad>", "</s>", "<unk>", *extra))
    around(tokenizer, "$A </s>", "$A </s> $B </s>", "</s>")
    return tokenizer


def siglip(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece of text without punctuation, lower-cased (Zhai et al. 2023)."""
    file = SentencePieceFile(folder, "spiece.model")
    first = [normalizers.Lowercase()] if settings.get("do_lower_case", True) else []
    without = normalizers.Replace(Regex(f"[{re.escape(string.punctuation)}]"), "")
    tokenizer = unigram(file, file.pieces, file.unk_id, ("</s>", "<unk>"), *first, without)
    around(tokenizer, "$A </s>", "$A </s> $B </s>", "</s>")
    return tokenizer


def xlm_roberta(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece behind fairseq's four special tokens, the mask at the end."""
    file = SentencePieceFile(folder, "sentencepiece.bpe.model")
    tokenizer = _fairseq(file, ["<mask>"])
    around(tokenizer, *_ROBERTA)
    return tokenizer


def _fairseq(file: SentencePieceFile, last: list[str]) -> Tokenizer:
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in first] + file.pieces[3:] + [(token, 0.0) for token in last]
    tokenizer = unigram(file, pieces, 3, [*first, *last])
    if "<mask>" in last:
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return tokenizer


def camembert(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece with its own special tokens behind fairseq's, which are not used (Martin et al. 2020)."""
    file = SentencePieceFile(folder, "sentencepiece.bpe.model")
    unused = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)]
    pieces = [*unused, *file.pieces[1:], ("<mask>", 0.0)]
    tokenizer = unigram(file, pieces, 3, ["<s>", "</s>", *(token for token, _ in unused)])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    around(tokenizer, *_ROBERTA)
    return tokenizer


_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MBART_50 = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN "
    "te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)


def mbart(folder: Path, settings: Settings) -> Tokenizer:
    """Fairseq's layout with 25 languages, which follow the text (Liu et al. 2020)."""
    language = settings.get("src_lang") or "en_XX"
    tokenizer = _fairseq(SentencePieceFile(folder, "sentencepiece.bpe.model"), [*_MBART.split(), "<mask>"])
    around(tokenizer, f"$A </s> {language}", f"$A $B </s> {language}", "</s>", language)
    return tokenizer


def mbart50(folder: Path, settings: Settings) -> Tokenizer:
    """Fairseq's layout with 52 languages, which stand before the text (Tang et al. 2020)."""
    language = settings.get("src_lang") or "en_XX"
    languages = [*_MBART.split(), *_MBART_50.split()]
    tokenizer = _fairseq(SentencePieceFile(folder, "sentencepiece.bpe.model"), [*languages, "<mask>"])
    around(tokenizer, f"{language} $A </s>", f"{language} $A $B </s>", "</s>", language)
    return tokenizer


def nllb(folder: Path, settings: Settings) -> Tokenizer:
    """Fairseq's layout; the languages are those that the checkpoint's files name."""
    language = settings.get("src_lang") or "eng_Latn"
    languages = [token for token in settings.get("additional_special_tokens", []) if token != "<mask>"]
    if language not in languages:
        raise CheckpointError(f"{folder} does not name its languages; it needs tokenizer.json, or "
                              "additional_special_tokens in special_tokens_map.json")  # fmt: skip
    tokenizer = _fairseq(SentencePieceFile(folder, "sentencepiece.bpe.model"), [*languages, "<mask>"])
    around(tokenizer, f"{language} $A </s>", f"{language} $A $B </s>", "</s>", language)
    return tokenizer


def albert(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece of lower-cased text without accents (Lan et al. 2020)."""
    file = SentencePieceFile(folder, "spiece.model")
    first = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        first += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        first.append(normalizers.Lowercase())
    # A piece with a comma after a digit is left to its parts.
    pieces = [(p, s - 100 if p.endswith(",") and len(p) > 1 and p[-2].isdigit() else s) for p, s in file.pieces]
    tokenizer = unigram(file, pieces, file.unk_id, ("<pad>", "<unk>", "[CLS]", "[SEP]"), *first)
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    around(tokenizer, *_BERT)
    return tokenizer


def deberta_v2(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece between [CLS] and [SEP] (He et al. 2021)."""
    file = SentencePieceFile(folder, "spm.model", "spiece.model")
    first = [normalizers.Lowercase()] if settings.get("do_lower_case", False) else []
    special = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
    tokenizer = unigram(file, file.pieces, file.unk_id, special, *first)
    if settings.get("split_by_punct", False):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.WhitespaceSplit(),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.Metaspace(SPACE, prepend_scheme="always"),
            ]
        )
    tokenizer.add_special_tokens(["[MASK]"])
    around(tokenizer, *_BERT)
    return tokenizer


def pegasus(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece behind 105 special tokens, of which two are masks (Zhang et al. 2020)."""
    file = SentencePieceFile(folder, "spiece.model")
    offset = settings.get("offset", 103)
    masks = ["<mask_1>", "<mask_2>"] if offset else []
    pieces = [("<pad>", 0.0), ("</s>", 0.0)] + [(token, 0.0) for token in masks]
    pieces += [(f"<unk_{i}>", -100.0) for i in range(2, offset)] + file.pieces[2:]
    tokenizer = unigram(file, pieces, file.unk_id + offset, [piece for piece, _ in pieces[: offset + 3]])
    around(tokenizer, "$A </s>", "$A $B </s>", "</s>")
    return tokenizer


def llama(folder: Path, settings: Settings) -> Tokenizer:
    """SentencePiece's BPE with bytes to fall back on (Touvron et al. 2023)."""
    return sentencepiece_bpe(SentencePieceFile(folder, "tokenizer.model"), settings, prefix=True)


def gemma(folder: Path, settings: Settings) -> Tokenizer:
    """The same without a space before the text."""
    return sentencepiece_bpe(SentencePieceFile(folder, "tokenizer.model"), settings, prefix=False)


def sentencepiece_bpe(file: SentencePieceFile, settings: Settings, *, prefix: bool) -> Tokenizer:
    """BPE whose merges are read off the pieces' order; `prefix` puts a space before the text."""
    tokenizer = scored_bpe(file.pieces, prefix=prefix)
    begin, end = str(settings.get("bos_token") or "<s>"), str(settings.get("eos_token") or "</s>")
    present = [token for token in (begin, end, "<unk>", "<pad>") if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens(present)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in file.user_defined])
    _frame(tokenizer, settings, begin, end, begun=True)
    return tokenizer


def _frame(tokenizer: Tokenizer, settings: Settings, begin: str, end: str, *, begun: bool) -> None:
    """Put the begin and end tokens around each text as the settings ask; `begun` is the default of the first."""
    begin, end = str(settings.get("bos_token") or begin), str(settings.get("eos_token") or end)
    first = f"{begin} " if settings.get("add_bos_token", begun) else ""
    last = f" {end}" if settings.get("add_eos_token", False) else ""
    around(tokenizer, f"{first}$A{last}", f"{first}$A{last} {first}$B:1{last}", begin, end)


def scored_bpe(pieces: list[tuple[str, float]], *, prefix: bool) -> Tokenizer:
    """SentencePiece's BPE: pairs are merged in the order of the scores of the pieces that they make."""
    vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += [(score, pair) for pair in sorted(cuts, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))]
    merges = [pair for _, pair in sorted(merges, key=lambda entry: -entry[0])]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    first = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    return tokenizer


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


BUILDERS: dict[str, Callable[[Path, Settings], Tokenizer]] = {
    "Bert": wordpiece, "Electra": wordpiece, "DistilBert": wordpiece, "MPNet": mpnet, "GPT2": byte_bpe, "GPTNeoX":
    byte_bpe, "CodeGen": byte_bpe, "Bloom": byte_bpe, "Whisper": byte_bpe, "OPT": opt, "Roberta": roberta, "Bart":
    roberta, "CLIP": clip, "T5": t5, "XLMRoberta": xlm_roberta, "MBart": mbart, "MBart50": mbart50, "Nllb": nllb,
    "Albert": albert, "DebertaV2": deberta_v2, "Pegasus": pegasus, "Llama": llama, "Gemma": gemma,
    "Camembert": camembert, "Siglip": siglip, "Qwen2": qwen2,
}  # fmt: skip
"""By `tokenizer_class` without "Tokenizer" and "Fast"."""
OF_MODEL = {
    "bert": "Bert", "electra": "Electra", "distilbert": "DistilBert", "mpnet": "MPNet", "gpt2": "GPT2", "gpt_neo":
    "GPT2", "gptj": "GPT2", "opt": "OPT", "roberta": "Roberta", "bart": "Bart", "clip": "CLIP", "t5": "T5", "mt5": "T5",
    "xlm-roberta": "XLMRoberta", "mbart": "MBart", "albert": "Albert", "deberta-v2": "DebertaV2", "pegasus": "Pegasus",
    "llama": "Llama", "mistral": "Llama", "mixtral": "Llama", "gemma": "Gemma", "gemma2": "Gemma", "gpt_neox":
    "GPTNeoX", "bloom": "Bloom", "whisper": "Whisper", "marian": "Marian", "m2m_100": "M2M100",
    "camembert": "Camembert", "siglip": "Siglip", "qwen2": "Qwen2", "qwen3": "Qwen2",
}  # fmt: skip
"""The same for checkpoints that name no tokenizer_class."""
