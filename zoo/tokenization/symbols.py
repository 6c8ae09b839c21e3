"""Tokenizers that are two lists: letters that a model reads, and symbols that it writes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILE = "symbols.json"
"""What one is saved as."""


@dataclass(frozen=True, kw_only=True)
class SymbolTokenizer:
    """Letters to ids for an encoder, and a decoder's ids to symbols.

    `bos_id`, `eos_id` and `pad_id` are of what is written.
    """

    letters: tuple[str, ...]
    """What is read, by id; "<pad>", "<unk>" and "</s>" are among them."""
    symbols: tuple[str, ...]
    """What is written, by id; "<pad>", "<s>" and "</s>" are among them."""

    def __post_init__(self):
        for name, special in (("letters", ("<pad>", "<unk>", "</s>")), ("symbols", ("<pad>", "<s>", "</s>"))):
            missing = [token for token in special if token not in getattr(self, name)]
            if missing:
                raise ValueError(f"SymbolTokenizer.{name} has no {', '.join(missing)}; add it")

    def encode(self, text: str) -> list[int]:
        """Ids of the letters, in lower case, and the end; a letter that is not known is "<unk>"."""
        ids = {letter: place for place, letter in enumerate(self.letters)}
        return [*(ids.get(letter, ids["<unk>"]) for letter in text.lower()), ids["</s>"]]

    def __call__(self, texts: str | Sequence[str]) -> dict[str, np.ndarray]:
        """Inputs of the encoder, padded on the right."""
        rows = [self.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        shape = (len(rows), max(map(len, rows), default=0))
        ids, mask = np.full(shape, self.letters.index("<pad>"), np.int32), np.zeros(shape, np.int32)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, ids: Iterable[int]) -> str:
        """The symbols with spaces between, up to the end; special ones are left out."""
        written = [self.symbols[int(place)] for place in ids]
        written = written[: written.index("</s>")] if "</s>" in written else written
        return " ".join(symbol for symbol in written if not symbol.startswith("<"))

    @property
    def bos_id(self) -> int:
        """Begins what is written."""
        return self.symbols.index("<s>")

    @property
    def eos_id(self) -> int:
        """Ends it."""
        return self.symbols.index("</s>")

    @property
    def pad_id(self) -> int:
        """Fills rows behind that."""
        return self.symbols.index("<pad>")

    def save(self, folder: Path) -> None:
        """Write symbols.json."""
        record = {"letters": self.letters, "symbols": self.symbols}
        (folder / FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "SymbolTokenizer":
        """What `save` wrote."""
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(letters=tuple(record["letters"]), symbols=tuple(record["symbols"]))
