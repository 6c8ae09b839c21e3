"""Text, pairs of texts and chats to ids, padded and cut; ids to text."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from zoo.weights import CheckpointError

Side = Literal["left", "right"]
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Roles that a checkpoint gives tokens to, as `eos_token` in tokenizer_config.json."""


@dataclass(frozen=True)
class Encoding:
    """One text, or a pair, as ids."""

    ids: list[int]
    type_ids: list[int]
    """0 for the first text, 1 for the second."""
    offsets: list[tuple[int, int]]
    """Where each id's characters begin and end in its text; (0, 0) for special tokens."""
    sequence_ids: list[int | None]
    """Which text an id is from; None for special tokens."""


@runtime_checkable
class Coder(Protocol):
    """What turns text into ids; `tokenizers.Tokenizer` behind `FastCoder`, or SentencePiece behind `PieceCoder`."""

    def encode(self, text: str, pair: str | None, special: bool) -> Encoding:
        """Ids of a text or a pair, with the checkpoint's special tokens where asked for."""
        ...

    def decode(self, ids: list[int], skip_special: bool) -> str:
        """Text of ids."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of a token, spelt as in the vocabulary."""
        ...

    def token(self, token_id: int) -> str | None:
        """The token of an id."""
        ...

    def last(self) -> tuple[str, int]:
        """The token with the highest id, but for tokens added since, and that id."""
        ...


class FastCoder:
    """A `tokenizers.Tokenizer`, whose own template adds the special tokens."""

    def __init__(self, tokenizer: Any):
        """Take the tokenizer as it is, without the padding and truncation that its file may hold."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer

    def encode(self, text: str, pair: str | None, special: bool) -> Encoding:
        """See `Coder`."""
        found = self.tokenizer.encode(text, pair, add_special_tokens=special)
        return Encoding(found.ids, found.type_ids, found.offsets, found.sequence_ids)

    def decode(self, ids: list[int], skip_special: bool) -> str:
        """See `Coder`."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special)

    def token_id(self, token: str) -> int | None:
        """See `Coder`."""
        return self.tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """See `Coder`."""
        return self.tokenizer.id_to_token(token_id)

    def last(self) -> tuple[str, int]:
        """See `Coder`."""
        # Gemma 3 that only reads text has the tokenizer of its siblings, with a token for images beyond its table.
        return max(
            self.tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda entry: entry[1], default=("", -1)
        )


def _copy(files: Iterable[Path], folder: Path) -> None:
    for path in files:
        if path.parent.resolve() != folder.resolve():
            shutil.copyfile(path, folder / path.name)


@dataclass(frozen=True, kw_only=True)
class UnreadTokenizer:
    """The tokenizer of a model whose tokenizer zoo does not read: `save` copies it, all else says why."""

    reason: str
    files: tuple[Path, ...]

    def save(self, folder: Path) -> None:
        """Copy the files."""
        _copy(self.files, folder)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        """Raise CheckpointError."""
        raise CheckpointError(self.reason)

    def __getattr__(self, name: str) -> Any:
        # What Python itself looks for is plainly not there.
        raise AttributeError(name) if name.startswith("__") else CheckpointError(self.reason)


@dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer:
    """Text to what a model reads, and back.

    `tokenizer(["a text", "another"])` gives NumPy arrays by the names of the model's inputs.
    """

    coder: Coder
    special: dict[str, str]
    """Tokens by role: {"eos": "</s>", ...}."""
    padding_side: Side = "right"
    truncation_side: Side = "right"
    max_length: int | None = None
    """Tokens that the model takes at the most; None where the checkpoint does not say."""
    token_types: bool = False
    """Whether the model reads token_type_ids."""
    chat_template: str | None = None
    files: tuple[Path, ...] = field(default=(), repr=False)
    """The files it was made from, which `zoo.save` copies."""

    @property
    def bos_id(self) -> int | None:
        """Begins a text."""
        return self.special_id("bos")

    @property
    def eos_id(self) -> int | None:
        """Ends a text."""
        return self.special_id("eos")

    @property
    def pad_id(self) -> int | None:
        """Fills rows of a batch."""
        return self.special_id("pad")

    @property
    def mask_id(self) -> int | None:
        """Stands for a token to be guessed."""
        return self.special_id("mask")

    @property
    def unk_id(self) -> int | None:
        """Stands for what the vocabulary lacks."""
        return self.special_id("unk")

    def special_id(self, role: str) -> int | None:
        """The id of the token with a role; None where the checkpoint has none."""
        token = self.special.get(role)
        return None if token is None else self.coder.token_id(token)

    def token_id(self, token: str) -> int:
        """The id of a token as the vocabulary spells it. ValueError where it is not there."""
        found = self.coder.token_id(token)
        if found is None:
            raise ValueError(f"{token!r} is no token of this vocabulary")
        return found

    def encode(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, or of a pair of texts."""
        return self.coder.encode(text, pair, add_special_tokens).ids

    def offsets(self, text: str, pair: str | None = None) -> Encoding:
        """Ids with the characters they stand for, to find an answer in its context."""
        return self.coder.encode(text, pair, True)

    def decode(self, ids: Iterable[int] | np.ndarray, *, skip_special_tokens: bool = True) -> str:
        """The text of one row of ids."""
        return self.coder.decode([int(i) for i in np.asarray(ids).reshape(-1)], skip_special_tokens)

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        padding: bool = True,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: Side | None = None,
        add_special_tokens: bool = True,
    ) -> dict[str, np.ndarray]:
        """A batch: input_ids, attention_mask and, where the model reads them, token_type_ids, all [B, T] int32.

        Args:
            texts: one text or several.
            pairs: second texts, as many.
            padding: fill up to the longest row; without it, all rows must be equally long.
            truncation: cut rows to `max_length`, the longer text of a pair first, keeping the special tokens.
            max_length: None is the model's own.
            padding_side: None is the checkpoint's own; decoders that generate want "left".
            add_special_tokens: whether to add what the model was trained with, as [CLS] and [SEP].

        Raises:
            ValueError: nothing to encode, texts and pairs of different number, or rows that do not fit.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        pairs = [pairs] if isinstance(pairs, str) else pairs
        if not texts or (pairs is not None and len(pairs) != len(texts)):
            raise ValueError(f"{len(texts)} texts and {len(pairs or ())} second texts; give at least one, and as many")
        limit = (self.max_length if max_length is None else max_length) if truncation else None
        rows = [
            self._row(text, None if pairs is None else pairs[index], limit, add_special_tokens)
            for index, text in enumerate(texts)
        ]
        return self._batch(rows, padding, padding_side or self.padding_side)

    def _row(self, text: str, pair: str | None, limit: int | None, special: bool) -> Encoding:
        whole = self.coder.encode(text, pair, special)
        excess = 0 if limit is None else len(whole.ids) - limit
        if excess <= 0:
            return whole
        counts = [sum(1 for i in whole.sequence_ids if i == which) for which in (0, 1)]
        if excess > sum(counts):
            raise ValueError(f"max_length is {limit}; the special tokens alone take {len(whole.ids) - sum(counts)}")
        kept = list(counts)
        for _ in range(excess):
            kept[0 if kept[0] > kept[1] else 1] -= 1
        keep, seen = [], [0, 0]
        for place, which in enumerate(whole.sequence_ids):
            if which is None:
                keep.append(place)
                continue
            seen[which] += 1
            first = seen[which] <= kept[which]
            last = seen[which] > counts[which] - kept[which]
            if first if self.truncation_side == "right" else last:
                keep.append(place)
        return Encoding(*([column[i] for i in keep] for column in (
            whole.ids, whole.type_ids, whole.offsets, whole.sequence_ids)))  # fmt: skip

    def _batch(self, rows: list[Encoding], padding: bool, side: Side) -> dict[str, np.ndarray]:
        width = max(len(row.ids) for row in rows)
        if not padding and any(len(row.ids) != width for row in rows):
            raise ValueError("the rows differ in length; let padding=True fill them up")
        pad = self.pad_id if self.pad_id is not None else self.eos_id or 0
        batch = {
            "input_ids": np.full((len(rows), width), pad, np.int32),
            "attention_mask": np.zeros((len(rows), width), np.int32),
            "token_type_ids": np.zeros((len(rows), width), np.int32),
        }
        for index, row in enumerate(rows):
            place = slice(0, len(row.ids)) if side == "right" else slice(width - len(row.ids), width)
            batch["input_ids"][index, place] = row.ids
            batch["attention_mask"][index, place] = 1
            batch["token_type_ids"][index, place] = row.type_ids
        if not self.token_types:
            del batch["token_type_ids"]
        return batch

    def for_language(self, code: str) -> "PretrainedTokenizer":
        """The same tokenizer with texts marked as of another source language (mBART, NLLB, M2M100).

        ValueError where the vocabulary has no such language.
        """
        from zoo.tokenization.pieces import PieceCoder
        from zoo.tokenization.templates import mark_language

        if isinstance(self.coder, PieceCoder):
            return replace(self, coder=self.coder.for_language(code))
        return replace(self, coder=FastCoder(mark_language(self.coder.tokenizer, self.token_id(code), code)))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files: copies of those it came from, or tokenizer.json and its configuration."""
        _copy(self.files, folder)
        if not self.files and isinstance(self.coder, FastCoder):
            self.coder.tokenizer.save(str(folder / "tokenizer.json"))
            settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": self.padding_side}
            settings |= {f"{role}_token": token for role, token in self.special.items()}
            settings |= {} if self.chat_template is None else {"chat_template": self.chat_template}
            (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def apply_chat_template(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """A conversation as the text that the model was trained on, by the checkpoint's own template.

        Args:
            messages: `{"role": "user", "content": "..."}` in order.
            add_generation_prompt: whether to end where the model's answer begins.
            variables: what else the template reads, as `tools`.

        Raises:
            ValueError: no template, or one that refuses the messages. It runs sandboxed: it reaches no code.
        """
        if self.chat_template is None:
            raise ValueError("this checkpoint has no chat template; write the prompt as its documentation says")
        from zoo.tokenization.chat import render

        tokens = {f"{role}_token": token for role, token in self.special.items()}
        options = {"add_generation_prompt": add_generation_prompt} | tokens | variables
        return render(self.chat_template, messages, **options)
