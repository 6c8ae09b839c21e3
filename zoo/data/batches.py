"""Sources to batches: packed rows to train on, windows to score, padded pairs.

Documents are tokenised as they are reached and remembered, so a second epoch costs no tokenising. Every batch is
a dict of int32 arrays (float32 weights) of one fixed shape. A document is bos, its tokens, eos.

Moving batches to devices is left to training; the iterators may be driven from a thread of its own, one at a time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from zoo.data.tokenizer import Tokenizer

Batch = dict[str, np.ndarray]
Source = Sequence[dict[str, Any]]

# Rows are shuffled within this many batches: neighbours in a long document then land far apart.
SHUFFLED_BATCHES = 64
# Tokens remembered before documents are tokenised anew each epoch: 1 GiB of int32.
REMEMBERED_TOKENS = 1 << 28


class TokenizedDocuments:
    """`source` as token arrays: `self[index]` -> int32 [length], bos first and eos last."""

    def __init__(self, source: Source, tokenizer: Tokenizer, text_key: str = "text"):
        self._source, self._tokenizer, self._text_key = source, tokenizer, text_key
        self._remembered: dict[int, np.ndarray] = {}
        self._room = REMEMBERED_TOKENS

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        tokens = self._remembered.get(index)
        if tokens is None:
            text = read_field(self._source[index], self._text_key)
            ids = [self._tokenizer.bos_id, *self._tokenizer.encode(text), self._tokenizer.eos_id]
            tokens = np.array(ids, np.int32)
            if tokens.size <= self._room:
                self._room -= tokens.size
                self._remembered[index] = tokens
        return tokens


def read_field(example: dict[str, Any], key: str) -> str:
    """`example[key]`, or ValueError with the text fields there are."""
    value = example.get(key)
    if not isinstance(value, str):
        texts = [name for name, value in example.items() if isinstance(value, str)]
        raise ValueError(f"documents have no text field {key!r}; they have {', '.join(texts) or 'none'}: "
                         "set data.text_key, or data.source_key and data.target_key")  # fmt: skip
    return value


def packed_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    text_key: str = "text",
    process_index: int = 0,
    process_count: int = 1,
) -> "PackedBatches":
    """Endless training batches of documents laid end to end and cut into rows, without padding.

    Every epoch draws the documents in a new order, a function of `seed` and the epoch alone. `batch_size` is this
    process's; process i of n reads every n-th document from the i-th.

    Yields {"tokens", "segment_ids", "positions"}, each int32 [B, T + 1]: row[:-1] is the input and row[1:] the
    target, where both have one segment id. Segments count from 1 in each row; positions restart with each.
    """
    _check_positive(sequence_length=sequence_length, batch_size=batch_size)
    _check_process(process_index, process_count, len(source))
    documents = grain.MapDataset.source(TokenizedDocuments(source, tokenizer, text_key))
    documents = documents[process_index::process_count].seed(seed).shuffle().repeat()
    return PackedBatches(documents, row_length=sequence_length + 1, batch_size=batch_size, seed=seed)


class PackedBatches(grain.DatasetIterator):
    """The iterator of `packed_batches`; its state is four integers.

    It packs a window of `SHUFFLED_BATCHES` batches at once, and deals its rows in an order drawn for that window. The
    state says where the window starts and how many batches of it are out, so restoring repeats one window's packing.
    """

    def __init__(self, documents: grain.MapDataset, *, row_length: int, batch_size: int, seed: int):
        super().__init__()
        self._documents = documents
        self._row_length, self._batch_size, self._seed = row_length, batch_size, seed
        self._start = self._end = (0, 0)  # (document, offset in it) where the window starts, and where the next does
        self._window_index, self._num_given = 0, 0
        self._window: Batch | None = None

    def __next__(self) -> Batch:
        if self._num_given == SHUFFLED_BATCHES:
            self._start, self._window = self._end, None
            self._window_index, self._num_given = self._window_index + 1, 0
        if self._window is None:
            self._window = self._pack_window()
        rows = slice(self._num_given * self._batch_size, (self._num_given + 1) * self._batch_size)
        self._num_given += 1
        return {name: value[rows] for name, value in self._window.items()}

    def _pack_window(self) -> Batch:
        """Fill the rows from `self._start` on, set `self._end`, and shuffle them."""
        num_rows = SHUFFLED_BATCHES * self._batch_size
        missing = num_rows * self._row_length
        (document, offset), pieces = self._start, []
        while missing:
            tokens = self._documents[document]
            piece = tokens[offset : offset + missing]
            pieces.append(piece)
            missing -= piece.size
            offset += piece.size
            if offset == tokens.size:
                document, offset = document + 1, 0
        self._end = (document, offset)
        order = np.random.default_rng((self._seed, self._window_index)).permutation(num_rows)
        return {name: value[order] for name, value in _lay_rows(pieces, self._row_length).items()}

    def get_state(self) -> dict[str, int]:
        """Where the next batch comes from; plain integers, so JSON keeps it."""
        document, offset = self._start
        return {
            "document": document,
            "offset": offset,
            "window_index": self._window_index,
            "num_given": self._num_given,
        }

    def set_state(self, state: dict[str, int]) -> None:
        """Continue exactly where `get_state` was called, given the same data, tokenizer and arguments."""
        self._start = (state["document"], state["offset"])
        self._window_index, self._num_given = state["window_index"], state["num_given"]
        self._window = self._pack_window()


def _lay_rows(pieces: list[np.ndarray], row_length: int) -> Batch:
    """Cut the concatenated `pieces` into rows [R, row_length], with segment ids and positions."""
    tokens = np.concatenate(pieces)
    starts = np.zeros(tokens.size, bool)
    starts[np.cumsum([0] + [piece.size for piece in pieces[:-1]])] = True
    starts = starts.reshape(-1, row_length)
    starts[:, 0] = True  # what continues in a new row is a segment of its own there
    columns = np.arange(row_length, dtype=np.int32)
    return {
        "tokens": tokens.reshape(-1, row_length),
        "segment_ids": np.cumsum(starts, axis=1, dtype=np.int32),
        "positions": columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1).astype(np.int32),
    }


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _check_process(process_index: int, process_count: int, num_documents: int) -> None:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must lie in 0 to process_count - 1 = {process_count - 1}")
    if num_documents < process_count:
        raise ValueError(f"{num_documents} documents cannot be shared by {process_count} processes: "
                         "give more documents, or start fewer processes")  # fmt: skip
