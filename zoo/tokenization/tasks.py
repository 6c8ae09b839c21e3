"""A checkpoint's tokenizer as tasks use it, with the special tokens that its model was trained with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zoo.tokenization.tokenizer import PretrainedTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskTokenizer:
    """What `zoo.data.TextTokenizer` asks for."""

    pretrained: PretrainedTokenizer
    vocab_size: int
    """Ids that the model knows."""
    start_id: int
    """Begins what a decoder writes in answer to an encoder: the configuration says it, not the vocabulary."""

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before a text and after it."""
        encoding = self.pretrained.offsets("a")
        inside = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]

    @property
    def bos_id(self) -> int:
        """[CLS] or <s> where texts begin with it; a vocabulary with one token for both ends gives its end."""
        before, _ = self._around
        return self._first(before[0] if before else None, self.pretrained.bos_id, self.pretrained.eos_id, self.eos_id)

    @property
    def eos_id(self) -> int:
        """[SEP] or </s>, where texts end with it."""
        _, after = self._around
        return self._first(after[-1] if after else None, self.pretrained.eos_id, self.pretrained.special_id("sep"))

    @property
    def begin_ids(self) -> tuple[int, ...]:
        """Stand before a text: [CLS], <s>, or none."""
        return tuple(self._around[0])

    @property
    def between_ids(self) -> tuple[int, ...]:
        """Stand between the two texts of a pair: [SEP], or </s> </s>."""
        encoding = self.pretrained.offsets("a", "a")
        first = max(place for place, sequence in enumerate(encoding.sequence_ids) if sequence == 0)
        return tuple(encoding.ids[first + 1 : encoding.sequence_ids.index(1)])

    @property
    def has_types(self) -> bool:
        """Whether the model tells a pair's texts apart by token types."""
        return self.pretrained.token_types

    @property
    def pad_id(self) -> int:
        """Fills rows, and is hidden there."""
        return self._first(self.pretrained.pad_id, self.eos_id)

    @property
    def unk_id(self) -> int | None:
        """Stands for what the vocabulary lacks."""
        return self.pretrained.unk_id

    @property
    def mask_id(self) -> int | None:
        """Stands for a token to be guessed."""
        return self.pretrained.mask_id

    @staticmethod
    def _first(*ids: int | None) -> int:
        found = next((token for token in ids if token is not None), None)
        if found is None:
            raise ValueError("the checkpoint's tokenizer has no token that ends a text; name one as eos_token")
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens."""
        return self.pretrained.encode(text, add_special_tokens=False)

    def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """The same with the characters that each id stands for."""
        encoding = self.pretrained.coder.encode(text, None, False)
        return encoding.ids, np.array(encoding.offsets, np.int32).reshape(-1, 2)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; special tokens have none."""
        return self.pretrained.decode(ids)

    def sequence(self, text: str) -> list[int]:
        """A text as an encoder-decoder reads and writes it."""
        return self.pretrained.encode(text)

    def encode_row(self, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """One text or two as a padded row, by the names of the model's inputs."""
        batch = self.pretrained(*texts, truncation=True, max_length=length, padding_side="right")
        fill = {"input_ids": self.pad_id, "attention_mask": 0, "token_type_ids": 0}
        return {
            name: np.pad(rows[0], (0, length - rows.shape[1]), constant_values=fill[name])
            for name, rows in batch.items()
        }
