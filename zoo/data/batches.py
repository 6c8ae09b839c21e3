"""Sources to batches: packed rows to train on, windows to score, padded pairs.

Documents are tokenised as they are reached and remembered, so a second epoch costs no tokenising. Every batch
is a dict of arrays of one fixed shape. A document is bos, its tokens, eos.

Moving batches to devices is left to training; one thread at a time may drive an iterator, whichever it is.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from zoo.data.sources import Source, read_field
from zoo.data.streams import Batch, Reading, Rows, Stream
from zoo.data.tokenizer import TextTokenizer

Encode = Callable[[dict[str, Any]], Batch]

# Rows are shuffled within this many batches, and at least this many tokens: neighbours in a long document then land far
# apart. With 64 batches of the tiny GPT, which hold a few dozen files, its loss fell within each window and jumped by
# 1.5 nats at the next.
SHUFFLED_BATCHES = 64
SHUFFLED_TOKENS = 1 << 21
# Rows in as many epochs as end nowhere: Grain's own endless repetition cannot be cut into parts of single rows.
_ENDLESS = 1 << 62
# Tokens remembered before documents are tokenised anew each epoch: 1 GiB of int32.
REMEMBERED_TOKENS = 1 << 28


class TokenizedFields:
    """Fields of `source` as tokens: `self[index]` -> one int32 [length] a key, as `tokenize` makes it of the text."""

    def __init__(self, source: Source, tokenize: Callable[[str], list[int]], keys: tuple[str, ...]):
        self._source, self._tokenize, self._keys = source, tokenize, keys
        self._remembered: dict[int, list[np.ndarray]] = {}
        self._room = REMEMBERED_TOKENS

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        fields = self._remembered.get(index)
        if fields is None:
            example = self._source[index]
            fields = [np.array(self._tokenize(read_field(example, key)), np.int32) for key in self._keys]
            size = sum(tokens.size for tokens in fields)
            if size <= self._room:
                self._room -= size
                self._remembered[index] = fields
        return fields


def tokenize_document(tokenizer: TextTokenizer) -> Callable[[str], list[int]]:
    """What makes a document's tokens of its text: bos first and eos last."""
    return lambda text: [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def packed_batches(
    source: Source,
    tokenizer: TextTokenizer,
    *,
    sequence_length: int,
    batch_size: int,
    seed: int,
    text_key: str = "text",
    shuffled_batches: int | None = None,
) -> Stream:
    """Endless training batches of documents laid end to end and cut into rows, without padding.

    Every epoch draws the documents in a new order, a function of `seed` and the epoch alone. Where a row begins
    depends on the length of every document before it, so each of several processes tokenises all and keeps its rows.

    Rows are dealt in an order drawn for each window of `shuffled_batches` batches, by default as many as hold
    `SHUFFLED_TOKENS` tokens and at least `SHUFFLED_BATCHES`, and no more than an epoch has.

    Yields {"tokens", "segment_ids", "positions"}, each int32 [B, T + 1]: row[:-1] is the input and row[1:]
    the target wherever both have one segment id. Segments count from 1 in each row; positions restart with
    each.
    """
    _check_positive(sequence_length=sequence_length, batch_size=batch_size)
    documents = grain.MapDataset.source(TokenizedFields(source, tokenize_document(tokenizer), (text_key,)))
    return Stream(
        functools.partial(
            PackedBatches,
            documents.seed(seed).shuffle(),
            row_length=sequence_length + 1,
            batch_size=batch_size,
            seed=seed,
            shuffled_batches=shuffled_batches
            or max(SHUFFLED_BATCHES, SHUFFLED_TOKENS // (sequence_length * batch_size)),
        )
    )


class PackedBatches(grain.DatasetIterator):
    """The iterator of `packed_batches`; its state is four integers.

    It packs a window of `shuffled_batches` batches at once, or of an epoch where that is less, and deals its rows in
    an order drawn for that window. The state says where the window starts and how many of its batches are out, so
    restoring repeats one window's packing and no more.
    """

    def __init__(
        self,
        documents: grain.MapDataset,
        reading: Reading,
        *,
        row_length: int,
        batch_size: int,
        seed: int,
        shuffled_batches: int,
    ):
        super().__init__()
        self._reader, self._num_documents = iter(documents.repeat().to_iter_dataset(reading.options)), len(documents)
        self._document, self._tokens = -1, np.zeros(0, np.int32)  # the one that was read last
        self._row_length, self._batch_size, self._seed = row_length, batch_size, seed
        self._shuffled_batches, self._rows = shuffled_batches, reading.rows(batch_size)
        # (document, offset in it) of the window's first token, and of the next window's.
        self._start = self._end = (0, 0)
        self._window_index, self._num_given = 0, 0
        self._window: Batch | None = None

    def __next__(self) -> Batch:
        if self._window is None:
            self._window = self._pack_window()
        elif self._num_given == len(self._window["tokens"]):
            self._start, self._window_index, self._num_given = self._end, self._window_index + 1, 0
            self._window = self._pack_window()
        self._num_given += 1
        return {name: value[self._num_given - 1] for name, value in self._window.items()}

    def _read(self, document: int) -> np.ndarray:
        """A document's tokens; documents come one after the other but where a state was set."""
        if document != self._document:
            if document != self._document + 1:
                self._reader.set_state({"next_index": document})
            self._document, (self._tokens,) = document, next(self._reader)
        return self._tokens

    def _pack_window(self) -> Batch:
        """Fill the rows from `self._start` on, set `self._end`, and shuffle them: [batches, rows, row length]."""
        batch_tokens = self._batch_size * self._row_length
        (document, offset), pieces = self._start, []
        missing, all_read = self._shuffled_batches * batch_tokens, document + self._num_documents
        while missing:
            if document == all_read and (missing := missing % batch_tokens) == 0:
                break  # otherwise the batch that is begun is filled
            tokens = self._read(document)
            piece = tokens[offset : offset + missing]
            pieces.append(piece)
            missing -= piece.size
            offset += piece.size
            if offset == tokens.size:
                document, offset = document + 1, 0
        self._end = (document, offset)
        window = _lay_rows(pieces, self._row_length)
        order = np.random.default_rng((self._seed, self._window_index)).permutation(len(window["tokens"]))
        order = order.reshape(-1, self._batch_size)[:, self._rows]
        return {name: value[order] for name, value in window.items()}

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
        "positions": columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1, dtype=np.int32),
    }


def scored_windows(
    source: Source,
    tokenizer: TextTokenizer,
    *,
    sequence_length: int,
    batch_size: int,
    stride: int | None = None,
    text_key: str = "text",
) -> Iterator[Batch]:
    """One pass in which every token of every document, and its eos, is a scored target exactly once.

    A document longer than a row is read through windows. Each scores `stride` new targets (default T: no
    window sees another's targets), the rest of it is context, so a smaller stride scores nearer to a model
    that sees everything before, for T / stride times the work. Short windows share rows, as segments.

    Yields "tokens", "segment_ids" (0 = padding) and "positions" as `packed_batches` does, and "weights",
    float32 [B, T]: 1 where tokens[:, 1:] is scored. The last batch is padded with zeros.
    """
    _check_positive(sequence_length=sequence_length, batch_size=batch_size)
    stride = sequence_length if stride is None else stride
    if not 1 <= stride <= sequence_length:
        raise ValueError(f"stride={stride} must lie in 1 to sequence_length={sequence_length}")
    documents = TokenizedFields(source, tokenize_document(tokenizer), (text_key,))
    windows = (
        window
        for index in range(len(documents))
        for window in _cut_windows(documents[index][0], sequence_length, stride)
    )
    rows = _fill_rows(windows, sequence_length + 1)
    blank = {name: np.zeros_like(value) for name, value in _join_windows([], sequence_length + 1).items()}
    return _deal_batches(rows, blank, batch_size)


Window = tuple[np.ndarray, int]  # its tokens, and how many of the last of them are scored


def _cut_windows(tokens: np.ndarray, length: int, stride: int) -> Iterator[Window]:
    """Windows of at most `length` + 1 tokens whose scored ends cover tokens[1:] exactly once."""
    start, scored = 0, 1
    while scored < tokens.size:
        window = tokens[start : start + length + 1]
        yield window, start + window.size - scored
        scored = start + window.size
        start = scored - 1 + stride - length


def _fill_rows(windows: Iterable[Window], row_length: int) -> Iterator[Batch]:
    """Lay windows into rows: a full one alone, short ones side by side while they fit."""
    shared: list[Window] = []
    room = row_length
    for window in windows:
        size = window[0].size
        if size == row_length:
            yield _join_windows([window], row_length)
            continue
        if size > room:
            yield _join_windows(shared, row_length)
            shared, room = [], row_length
        shared.append(window)
        room -= size
    if shared:
        yield _join_windows(shared, row_length)


def _join_windows(windows: list[Window], row_length: int) -> Batch:
    row = {name: np.zeros(row_length, np.int32) for name in ("tokens", "segment_ids", "positions")}
    weights = np.zeros(row_length, np.float32)
    end = 0
    for segment_id, (tokens, num_scored) in enumerate(windows, 1):
        start, end = end, end + tokens.size
        row["tokens"][start:end] = tokens
        row["segment_ids"][start:end] = segment_id
        row["positions"][start:end] = np.arange(tokens.size)
        weights[end - num_scored : end] = 1.0
    return {**row, "weights": weights[1:]}


def pair_batches(
    source: Source,
    tokenizer: TextTokenizer,
    *,
    source_length: int,
    target_length: int,
    batch_size: int,
    seed: int | None,
    packed: bool = True,
    source_key: str = "source",
    target_key: str = "target",
) -> Iterator[Batch]:
    """Sequence-to-sequence batches: endless, newly shuffled each epoch by `seed` and, if `packed`, several short pairs
    to a row; or one ordered pass of a pair a row if `seed` is None.

    Yields int32 "inputs" [B, S] (tokens, eos) and "targets" [B, T + 1] (start, tokens, eos), each with "_segment_ids",
    which count a row's pairs from 1 and are 0 on padding, and "_positions", which restart with each. Pairs of one id
    belong together. An input over S or a target over T tokens, eos included, loses its end but keeps eos. In the one
    pass the last batch is padded with blank rows. The endless one is a `Stream`; where rows are packed each of several
    processes packs all and keeps its own.
    """
    _check_positive(source_length=source_length, target_length=target_length, batch_size=batch_size)
    pairs = TokenizedFields(source, tokenizer.sequence, (source_key, target_key))
    lengths = {"inputs": source_length, "targets": target_length + 1}

    def make_pair(index: int) -> Batch:
        inputs, targets = pairs[index]
        targets = np.append(np.int32(tokenizer.start_id), _cut(targets, target_length))
        return {"inputs": _cut(inputs, source_length), "targets": targets}

    if seed is None:
        rows = (_pad(make_pair(index), lengths) for index in range(len(source)))
        return deal_rows(rows, batch_size)
    shuffled = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(_ENDLESS // len(source)).map(make_pair)
    if not packed:
        return _stream_rows(shuffled.map(lambda pair: _pad(pair, lengths)), batch_size)

    def pack(reading: Reading) -> grain.DatasetIterator:
        read = shuffled.to_iter_dataset(reading.options)
        rows = grain.experimental.FirstFitPackIterDataset(
            read, length_struct=lengths, num_packing_bins=batch_size, shuffle_bins=False
        )
        return Rows(iter(rows.batch(batch_size)), reading)

    return Stream(pack)


def _stream_rows(rows: grain.MapDataset, batch_size: int) -> Stream:
    """Batches of rows that are known by their number: each process reads its own alone."""

    def open_batches(reading: Reading) -> grain.DatasetIterator:
        mine = reading.rows(batch_size)
        batches = rows.batch(mine.stop - mine.start)[reading.index :: reading.count]
        return iter(batches.to_iter_dataset(reading.options))

    return Stream(open_batches)


def row_batches(source: Source, encode: Encode, *, batch_size: int, seed: int | None) -> Iterator[Batch]:
    """Examples, one a row: endless, newly shuffled each epoch by `seed`, or one ordered pass if None.

    Yields what `encode` makes of an example, and float32 "weights" [B], 0 for the blank rows that fill the last batch
    of the one pass.
    """
    _check_positive(batch_size=batch_size)

    def make_row(index: int) -> Batch:
        return encode(source[index]) | {"weights": np.ones((), np.float32)}

    if seed is None:
        return deal_rows(map(make_row, range(len(source))), batch_size)
    shuffled = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(_ENDLESS // len(source))
    return _stream_rows(shuffled.map(make_row), batch_size)


def label_batches(
    source: Source, encode: Encode, *, classes: Sequence[str], label_key: str = "label", **options: Any
) -> Iterator[Batch]:
    """`row_batches` of examples with their classes, int32 "labels" [B]; labels are numbers, or names of `classes`."""

    def label(example: dict[str, Any]) -> Batch:
        return encode(example) | {"labels": np.asarray(class_number(example[label_key], classes), np.int32)}

    return row_batches(source, label, **options)


def class_number(label: Any, classes: Sequence[str]) -> int:
    """The number of a class, which a label is, or names. ValueError for any other label."""
    number = classes.index(label) if label in classes else -1 if isinstance(label, str) else int(label)
    if not 0 <= number < len(classes):
        raise ValueError(f"an example has the class {label!r}; the classes are {', '.join(classes)}")
    return number


def _cut(tokens: np.ndarray, length: int) -> np.ndarray:
    """At most `length` tokens, the last of them still the last."""
    return tokens if tokens.size <= length else np.append(tokens[: length - 1], tokens[-1])


def _pad(fields: Batch, lengths: dict[str, int]) -> Batch:
    """A row of one example: each field in its length, with segment ids and positions, zeros behind."""
    row: Batch = {}
    for name, tokens in fields.items():
        padding = (0, lengths[name] - tokens.size)
        row[name] = np.pad(tokens, padding)
        row[f"{name}_segment_ids"] = np.pad(np.ones_like(tokens), padding)
        row[f"{name}_positions"] = np.pad(np.arange(tokens.size, dtype=np.int32), padding)
    return row


def deal_rows(rows: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """`_deal_batches` with blank rows of zeros; there is at least one row."""
    first = next(rows)
    blank = {name: np.zeros_like(value) for name, value in first.items()}
    return _deal_batches(itertools.chain([first], rows), blank, batch_size)


def _deal_batches(rows: Iterable[Batch], blank: Batch, batch_size: int) -> Iterator[Batch]:
    """Stack `rows`; those that are missing in the last batch are `blank`."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, batch_size)):
        yield _stack(batch + [blank] * (batch_size - len(batch)))


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
