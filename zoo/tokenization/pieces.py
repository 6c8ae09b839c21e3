"""Marian and M2M100: SentencePiece cuts the text, and a vocabulary of its own numbers the pieces."""

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from zoo.tokenization.tokenizer import Encoding
from zoo.weights import CheckpointError

_LANGUAGE_CODE = re.compile(r"^(>>[^<]*<<)")


@dataclass(frozen=True)
class PieceCoder:
    """Pieces by SentencePiece, ids by vocab.json; a `Coder`."""

    source: Any
    """SentencePieceProcessor of what is read."""
    target: Any
    """Of what is written."""
    source_ids: dict[str, int]
    target_ids: dict[str, int]
    prefix: tuple[str, ...] = ()
    """Tokens before a text."""
    suffix: tuple[str, ...] = ("</s>",)
    language: str = "{}"
    """How a language's token is spelt: "__{}__" in M2M100."""

    def encode(self, text: str, pair: str | None, special: bool) -> Encoding:
        """Ids; pairs are joined, as the reference does, and no character offsets are known."""
        parts = [self._cut(part) for part in (text, pair) if part is not None]
        columns = [(self._id(piece), index) for index, part in enumerate(parts) for piece in part]
        around = [[(self._id(token), None) for token in tokens] for tokens in (self.prefix, self.suffix)]
        whole = [*around[0], *columns, *around[1]] if special else columns
        return Encoding([i for i, _ in whole], [0] * len(whole), [(0, 0)] * len(whole), [which for _, which in whole])

    def decode(self, ids: list[int], skip_special: bool) -> str:
        """Text of ids of the target's vocabulary."""
        pieces = [self.token(i) or "<unk>" for i in ids]
        if skip_special:
            pieces = [piece for piece in pieces if not self._is_special(piece)]
        return self.target.decode(pieces).strip()

    def token_id(self, token: str) -> int | None:
        """The id among those that the model reads."""
        return self.source_ids.get(token)

    def token(self, token_id: int) -> str | None:
        """The piece of an id that the model wrote."""
        return self._pieces.get(token_id)

    @functools.cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for piece, i in self.target_ids.items()}

    def last(self) -> tuple[str, int]:
        """The piece with the highest id among those that the model reads, and that id."""
        return max(self.source_ids.items(), key=lambda entry: entry[1])

    def for_language(self, code: str) -> "PieceCoder":
        """The same for texts of another language. ValueError where the vocabulary lacks it."""
        token = self.language.format(code)
        if token not in self.source_ids:
            raise ValueError(f"{code!r} is no language of this vocabulary")
        return dataclasses.replace(self, prefix=(token,))

    def _cut(self, text: str) -> list[str]:
        code = _LANGUAGE_CODE.match(text)
        rest = text[code.end() :] if code else text
        return ([code[1]] if code else []) + self.source.encode(rest, out_type=str)

    def _id(self, piece: str) -> int:
        return self.source_ids.get(piece, self.source_ids["<unk>"])

    def _is_special(self, piece: str) -> bool:
        language = self.language != "{}" and piece.startswith("__") and piece.endswith("__")
        return language or piece in ("<s>", "</s>", "<pad>", "<unk>")


def marian(folder: Path) -> PieceCoder:
    """source.spm, target.spm, vocab.json and, where the two sides differ, target_vocab.json."""
    ids = _read_ids(folder / "vocab.json")
    target = folder / "target_vocab.json"
    return PieceCoder(
        _processor(folder / "source.spm"),
        _processor(folder / "target.spm"),
        ids,
        _read_ids(target) if target.exists() else ids,
    )


def m2m100(folder: Path, languages: list[str], language: str) -> PieceCoder:
    """vocab.json, sentencepiece.bpe.model, and the languages, whose ids follow the vocabulary's."""
    ids = _read_ids(folder / "vocab.json")
    ids |= {token: len(ids) + index for index, token in enumerate(languages) if token not in ids}
    processor = _processor(folder / "sentencepiece.bpe.model")
    coder = PieceCoder(processor, processor, ids, ids, language="__{}__")
    return coder.for_language(language)


def _read_ids(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(ids, dict) or "<unk>" not in ids or not all(type(i) is int for i in ids.values()):
        raise CheckpointError(f"{path} must number the pieces, <unk> among them")
    return ids


def _processor(path: Path) -> Any:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        processor.encode("a")
        return processor
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no SentencePiece model: {error}") from None
