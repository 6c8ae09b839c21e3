"""Small tokenizer folders of every older kind, trained here on the standard library's own text."""

import io
import json
import string
from pathlib import Path

import sentencepiece
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, CharBPETokenizer

TEXT = [line for line in (string.__doc__ + json.__doc__ + Path.__doc__ + io.__doc__).splitlines() if line.strip()] + [
    "The bank of the river, and money in the bank.", "Äpfel kosten 3,50 Euro; naïve café.", "东京 and Ελλάδα!",
]  # fmt: skip
SAMPLES = [
    "The bank raised money.", "  two  spaces and a tab\there ", "Äpfel, naïve café: 3,50!", "东京 is unknown ☃ maybe",
    "don't it's 1999", "", "UPPER lower", "a\nnew line",
]  # fmt: skip


def sentencepiece_model(kind: str = "unigram", size: int = 220, **options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4), model_writer=model, model_type=kind, vocab_size=size, minloglevel=2, **options
    )
    return model.getvalue()


def write(folder: Path, kind: str) -> dict:
    """Fill a folder with a kind of tokenizer; returns the settings of its tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = WRITERS[kind](folder) | {"tokenizer_class": f"{kind}Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return settings


def _wordpiece(folder: Path) -> dict:
    trainer = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(TEXT, vocab_size=300, min_frequency=1, show_progress=False)
    trainer.save_model(str(folder))
    return {"do_lower_case": True}


def _byte_bpe(folder: Path, special: list[str]) -> dict:
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(TEXT, vocab_size=400, special_tokens=special, show_progress=False)
    trainer.save_model(str(folder))
    return {}


def _clip(folder: Path) -> dict:
    trainer = CharBPETokenizer(suffix="</w>")
    trainer.train_from_iterator([t.lower() for t in TEXT if t.isascii()], vocab_size=300, show_progress=False)
    trainer.save_model(str(folder))
    ids = json.loads((folder / "vocab.json").read_text())
    ids |= {token: len(ids) + i for i, token in enumerate(("<|startoftext|>", "<|endoftext|>"))}
    (folder / "vocab.json").write_text(json.dumps(ids))
    return {}


def _pieces(folder: Path, name: str, **options) -> dict:
    (folder / name).write_bytes(sentencepiece_model(**options))
    return {"add_bos_token": True} if options.get("kind") == "bpe" else {}


T5_IDS = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
SIGLIP_IDS = dict(pad_id=-1, eos_id=1, unk_id=2, bos_id=0)
BERT_IDS = dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]"])
DEBERTA_IDS = dict(pad_id=0, pad_piece="[PAD]", unk_id=3, unk_piece="[UNK]", bos_id=1, bos_piece="[CLS]", eos_id=2,
                   eos_piece="[SEP]")  # fmt: skip


def _vocabulary_of_pieces(folder: Path, model: bytes, name: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]
    special = ["<s>", "<pad>", "</s>", "<unk>"] if name == "vocab.json" else []
    (folder / "vocab.json").write_text(json.dumps({p: i for i, p in enumerate([*special, *reversed(pieces)])}))


def _marian(folder: Path) -> dict:
    model = sentencepiece_model()
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(model)
    _vocabulary_of_pieces(folder, model, "vocab.json")
    ids = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(ids | {">>fr<<": len(ids)}))
    return {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "source_lang": "en", "target_lang": "fr"}


def _m2m100(folder: Path) -> dict:
    model = sentencepiece_model()
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    _vocabulary_of_pieces(folder, model, "vocab.json")
    return {"src_lang": "en"}


WRITERS = {
    "Bert": _wordpiece,
    "GPT2": lambda folder: _byte_bpe(folder, ["<|endoftext|>"]),
    "Roberta": lambda folder: _byte_bpe(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "CLIP": _clip,
    "T5": lambda folder: _pieces(folder, "spiece.model", **T5_IDS),
    "XLMRoberta": lambda folder: _pieces(folder, "sentencepiece.bpe.model"),
    "MBart": lambda folder: _pieces(folder, "sentencepiece.bpe.model"),
    "MBart50": lambda folder: _pieces(folder, "sentencepiece.bpe.model") | {"src_lang": "fr_XX"},
    "Albert": lambda folder: _pieces(folder, "spiece.model", **BERT_IDS),
    "DebertaV2": lambda folder: _pieces(folder, "spm.model", **DEBERTA_IDS),
    "Pegasus": lambda folder: _pieces(folder, "spiece.model", **T5_IDS),
    "Llama": lambda folder: _pieces(folder, "tokenizer.model", kind="bpe", size=420, byte_fallback=True, unk_id=0,
                                    bos_id=1, eos_id=2, normalization_rule_name="identity",
                                    remove_extra_whitespaces=False),
    "Camembert": lambda folder: _pieces(folder, "sentencepiece.bpe.model", unk_id=0, bos_id=1, eos_id=2),
    "Siglip": lambda folder: _pieces(folder, "spiece.model", **SIGLIP_IDS),
    "Qwen2": lambda folder: _byte_bpe(folder, ["<|endoftext|>"]),
    "Marian": _marian,
    "M2M100": _m2m100,
}  # fmt: skip
