"""Text to token ids and back: byte-pair encoding by SentencePiece, with bytes to fall back on.

`decode(encode(text)) == text` for every text that UTF-8 can hold. SentencePiece alone is not lossless: it
writes spaces as "▁", drops line ends at the end of a training sentence, and cuts at NUL. So line ends travel
as "␤", and the few characters with a meaning of their own travel behind an escape character.
"""

import contextlib
import functools
import hashlib
import io
import os
import random
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece

from zoo.data.config import TokenizerConfig
from zoo.data.sources import Source, read_field

PAD_ID, BOS_ID, EOS_ID, UNK_ID, MASK_ID = range(5)

_SPACE = "\u2581"
REWRITTEN = (("\x10", "\x10e"), (_SPACE, "\x10s"), ("\u2424", "\x10n"), ("\x00", "\x10z"), ("\n", "\u2424"))
"""What SentencePiece is given for what, in this order; undone from the last to the first."""

# A training sentence is one line with its line ends, cut where SentencePiece's own limit would drop it.
_SENTENCE = re.compile(r"[^\n]{0,1000}\n+|[^\n]{1,1000}")


@runtime_checkable
class TextTokenizer(Protocol):
    """What tasks ask of a tokenizer: `Tokenizer`, which zoo trains, or a checkpoint's (`zoo.tokenization.tasks`)."""

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        ...

    @property
    def pad_id(self) -> int:
        """Fills rows."""
        ...

    @property
    def bos_id(self) -> int:
        """Begins a document."""
        ...

    @property
    def eos_id(self) -> int:
        """Ends a document."""
        ...

    @property
    def begin_ids(self) -> Sequence[int]:
        """Stand before a text that a model reads from its beginning."""
        ...

    @property
    def between_ids(self) -> Sequence[int]:
        """Stand between the two texts of a pair."""
        ...

    @property
    def has_types(self) -> bool:
        """Whether the model tells a pair's texts apart by token types."""
        ...

    @property
    def start_id(self) -> int:
        """Begins what a decoder writes in answer to an encoder."""
        ...

    @property
    def unk_id(self) -> int | None:
        """Stands for what the vocabulary lacks."""
        ...

    @property
    def mask_id(self) -> int | None:
        """Stands for a token to be guessed."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens have none."""
        ...

    def sequence(self, text: str) -> list[int]:
        """The ids of `text` as an encoder-decoder reads and writes it, its end token last."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """The ids of `text`, and which of its characters each stands for: int32 [length, 2], begin and end."""
        ...

    def encode_row(self, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """What an encoder reads of a text, or of a pair, with the special tokens and padding, by the model's names.

        int32 [length] each: "input_ids", "attention_mask", and, for a model that has them, "token_type_ids". The longer
        text of a pair loses its end first.
        """
        ...


class Tokenizer:
    """A trained vocabulary. Special ids: 0 padding, 1 begin, 2 end, 3 unknown (never produced), 4 mask."""

    pad_id, bos_id, eos_id, unk_id, mask_id = PAD_ID, BOS_ID, EOS_ID, UNK_ID, MASK_ID
    start_id, begin_ids, between_ids, has_types = BOS_ID, (BOS_ID,), (EOS_ID,), True

    def __init__(self, model: bytes):
        """Raises ValueError unless `model` is what `to_bytes` gave."""
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"these {len(model)} bytes are not a SentencePiece model: {error}") from None
        self.vocab_size: int = self._processor.get_piece_size()
        special = [self._processor.id_to_piece(i) for i in range(min(MASK_ID + 1, self.vocab_size))]
        if special != ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]:
            raise ValueError(f"this SentencePiece model starts with {special}: it was not trained by zoo")

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without special tokens."""
        return self._processor.encode(_escape(text))

    def encode_row(self, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """What an encoder reads of a text, or of a pair: begin, text, end (, text, end), padding.

        Returns:
            int32 [length] "input_ids", "attention_mask", and "token_type_ids", which are 1 in the second text. The
            longer text of a pair loses its end first.
        """
        encoded = [self.encode(text) for text in texts]
        room = length - 1 - len(encoded)
        while sum(map(len, encoded)) > room:
            max(encoded, key=len).pop()
        ids, types = [self.bos_id], [0]
        for number, text in enumerate(encoded):
            ids += [*text, self.eos_id]
            types += [number] * (len(text) + 1)
        padding = (0, length - len(ids))
        return {
            "input_ids": np.pad(np.array(ids, np.int32), padding, constant_values=self.pad_id),
            "attention_mask": np.pad(np.ones(len(ids), np.int32), padding),
            "token_type_ids": np.pad(np.array(types, np.int32), padding),
        }

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """The ids of `text`, and which of its characters each stands for: int32 [length, 2], begin and end.

        The tokens of a character that is spelt in bytes all stand for the whole of it.
        """
        ids = self.encode(text)
        ends = np.cumsum(self._num_bytes[ids], dtype=np.int64)
        character = np.repeat(np.arange(len(text), dtype=np.int32), _num_escaped_bytes(text))
        offsets = np.stack([character[ends - self._num_bytes[ids]], character[ends - 1] + 1], -1)
        return ids, offsets.astype(np.int32)

    @functools.cached_property
    def _num_bytes(self) -> np.ndarray:
        """How many bytes of an escaped text each token stands for; special tokens occur in none."""
        pieces = [self._processor.id_to_piece(token) for token in range(self.vocab_size)]
        sizes = [len(piece.replace(_SPACE, " ").encode()) for piece in pieces]
        is_byte = [self._processor.is_byte(token) for token in range(self.vocab_size)]
        return np.where(is_byte, 1, sizes)

    def sequence(self, text: str) -> list[int]:
        """See `TextTokenizer`."""
        return [*self.encode(text), EOS_ID]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens have none. ValueError for an id outside the vocabulary."""
        ids = np.asarray(ids if isinstance(ids, np.ndarray | list) else list(ids), np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise ValueError(
                f"token id {outside[0]} is outside the vocabulary of {self.vocab_size} (0 to "
                f"{self.vocab_size - 1}): is this another model's tokenizer?"
            )
        return _unescape(self._processor.decode(ids[ids > MASK_ID].tolist()))

    def piece(self, token_id: int) -> str:
        """A token as text for a reader: "<s>", "<0x0A>", or the characters it stands for."""
        piece = self._processor.id_to_piece(int(token_id))
        return _unescape(piece.replace(_SPACE, " "))

    def to_bytes(self) -> bytes:
        """The SentencePiece model; the same training gives the same bytes."""
        return self._model

    @classmethod
    def from_bytes(cls, model: bytes) -> "Tokenizer":
        """The tokenizer whose `to_bytes` gave `model`."""
        return cls(model)

    def save(self, path: str | os.PathLike) -> None:
        """Write the model; whoever reads `path` sees the old file or the whole new one."""
        path = Path(path)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._model)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Read what `save` wrote. FileNotFoundError or ValueError with the path."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {str(path)!r}; a run keeps its own in its folder")
        try:
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{str(path)!r}: {error}") from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self._model == other._model

    def __hash__(self) -> int:
        return hash(self._model)

    def __reduce__(self):
        return Tokenizer, (self._model,)

    def __repr__(self) -> str:
        digest = hashlib.sha256(self._model).hexdigest()[:12]
        return f"Tokenizer(vocab_size={self.vocab_size}, sha256={digest})"


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Learn a vocabulary from all of `texts`, deterministically.

    Raises ValueError where the texts are empty or hold too little variety for `config.vocab_size`.
    """
    sentences = [sentence for text in texts for sentence in _sentences(text)]
    if not sentences:
        raise ValueError("there is no text to train a tokenizer on: every document is empty")
    model = io.BytesIO()
    sentencepiece.set_min_log_level(2)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, **_trainer_options(config)
        )
    except RuntimeError as error:
        fits = re.search(r"<=\s*(\d+)", str(error))
        mend = f"at most {fits[1]}" if fits else f"a smaller one ({error})"
        raise ValueError(
            f"tokenizer.vocab_size={config.vocab_size} is too large for {sum(map(len, sentences))} "
            f"characters of training text: choose {mend}"
        ) from None
    return Tokenizer(model.getvalue())


def fit_tokenizer(source: Source, config: TokenizerConfig, keys: Sequence[str] = ("text",)) -> Tokenizer:
    """Learn a vocabulary from the fields `keys` of a fixed random sample of `source`."""
    return train_tokenizer(_sample(source, config.training_bytes, keys), config)


def _sample(source: Source, num_bytes: int, keys: Sequence[str]) -> Iterator[str]:
    # Random.sample on a range draws without building it: the source may have 10^8 documents.
    for index in random.Random(0).sample(range(len(source)), min(len(source), 1_000_000)):
        document = source[index]
        for key in keys:
            text = read_field(document, key)
            yield text
            num_bytes -= len(text.encode())
        if num_bytes <= 0:
            return


def _trainer_options(config: TokenizerConfig) -> dict[str, Any]:
    return {
        "model_type": "bpe",
        "vocab_size": config.vocab_size,
        "byte_fallback": True,
        "character_coverage": 0.9999,
        # Nothing is normalised and no space is added or lost.
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": config.split_digits,
        "split_by_whitespace": not config.cross_words,
        "split_by_unicode_script": not config.cross_words,
        "max_sentencepiece_length": config.max_piece_length,
        "max_sentence_length": 1 << 16,
        "pad_id": PAD_ID,
        "bos_id": BOS_ID,
        "eos_id": EOS_ID,
        "unk_id": UNK_ID,
        "control_symbols": ["<mask>"],
        "num_threads": 1,
        "minloglevel": 2,
    }


def _sentences(text: str) -> Iterator[str]:
    return (_escape(match) for match in _SENTENCE.findall(text))


def _escape(text: str) -> str:
    for old, new in REWRITTEN:
        text = text.replace(old, new)
    return text


def _num_escaped_bytes(text: str) -> np.ndarray:
    """How many bytes each character of `text` takes in its escaped form."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = np.digitize(points, (0x80, 0x800, 0x10000)) + 1
    for old, _ in REWRITTEN:
        sizes = np.where(points == ord(old), len(_escape(old).encode()), sizes)
    return sizes


def _unescape(text: str) -> str:
    for old, new in reversed(REWRITTEN):
        text = text.replace(new, old)
    return text
