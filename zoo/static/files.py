"""Word vectors from and to files: GloVe's text, word2vec's text and binary, and .npy with a vocabulary beside it.

The suffix says the format, and a text's first line whether it is word2vec's ("400000 100") or GloVe's (a word and its
numbers). Any of them but .npy may be gzipped. Pickles, as other libraries keep vectors in, are never opened.
"""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import Float

from zoo.static.vectors import WordVectors

Format = Literal["glove", "word2vec", "binary", "npy"]
SUFFIXES: dict[str, Format] = {".txt": "glove", ".vec": "word2vec", ".bin": "binary", ".npy": "npy"}
"""What each suffix is written as."""


def read_vectors(path: str | os.PathLike, *, max_words: int | None = None) -> WordVectors:
    """The vectors of a file.

    A word that occurs again keeps its first vector, as other readers have it: published files do repeat words.

    Args:
        path: a .txt, .vec, .bin or .npy file. The words of `vectors.npy` stand in `vectors.words.txt`, one a line.
        max_words: read so many from the beginning, the most frequent in most files; None reads all.

    Raises:
        ValueError: a suffix of no known format, or a malformed file, named by file and line.
        OSError: a file that is not there.
    """
    path = Path(path)
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words is {max_words}; give at least 1, or leave it out to read all")
    format = vector_format(path)
    if format == "npy":
        words, rows = _read_npy(path, max_words)
    else:
        with _open(path) as file:
            pairs = _read_binary(file, path, max_words) if format == "binary" else _read_text(file, path, max_words)
            table: dict[str, np.ndarray] = {}
            for word, row in pairs:
                table.setdefault(word, row)
        if not table:
            raise ValueError(f"{path} has no vectors")
        words, rows = tuple(table), np.stack(list(table.values()))
    return WordVectors(words=words, matrix=rows)


def write_vectors(vectors: WordVectors, path: str | os.PathLike) -> Path:
    """Write a file in the format of its suffix: .txt GloVe, .vec word2vec's text, .bin word2vec's binary, .npy.

    Texts hold as many digits as float32 needs, so that reading gives the same numbers.

    Raises:
        ValueError: another suffix, or a word that the format cannot hold (with white space in it, or empty).
    """
    path = Path(path)
    format = vector_format(path)
    spaced = next((word for word in vectors.words if not word or len(word.split()) != 1 or word != word.strip()), None)
    if spaced is not None:
        raise ValueError(f"the word {spaced!r} is empty or has white space in it, which ends a word in {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.ascontiguousarray(vectors.matrix, np.float32)
    if format == "npy":
        np.save(path, matrix, allow_pickle=False)
        _vocabulary(path).write_text("".join(f"{word}\n" for word in vectors.words), encoding="utf-8")
        return path
    header = b"" if format == "glove" else f"{len(vectors)} {matrix.shape[1]}\n".encode()
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(header)
        for word, row in zip(vectors.words, matrix, strict=True):
            numbers = row.tobytes() if format == "binary" else " ".join(map(str, row)).encode()
            file.write(word.encode() + b" " + numbers + b"\n")
    return path


def vector_format(path: Path) -> Format:
    """The format that a file's name says. ValueError for any other."""
    name = path.name.removesuffix(".gz")
    format = SUFFIXES.get(Path(name).suffix)
    if format is None or (format == "npy" and name != path.name):
        known = ", ".join(f"{suffix} ({meaning})" for suffix, meaning in SUFFIXES.items())
        raise ValueError(
            f"{path} is in no known format of word vectors; known are {known}, gzipped or not but for .npy"
        )
    return format


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # pyright: ignore


def _vocabulary(path: Path) -> Path:
    return path.with_suffix(".words.txt")


def _read_npy(path: Path, max_words: int | None) -> tuple[tuple[str, ...], Float[np.ndarray, "V D"]]:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array of numbers: {error}") from None
    words = _vocabulary(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if matrix.ndim != 2 or len(matrix) != len(words):
        raise ValueError(f"{path} is {list(matrix.shape)} and {_vocabulary(path)} has {len(words)} lines: one a word")
    matrix = np.array(matrix[:max_words], np.float32)
    _check_finite(matrix, path, 1)
    return tuple(words[:max_words]), matrix


def _read_text(file: BinaryIO, path: Path, max_words: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Words and vectors; white space within a word is kept, as some of GloVe's tokens have it."""
    size, count, read = None, None, 0
    for number, line in enumerate(file, 1):
        fields = line.decode("utf-8", "replace").rstrip("\r\n ").split(" ")
        if number == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
            count, size = map(int, fields)
            continue
        if read == max_words:
            return
        size = size or len(fields) - 1
        if size < 1 or len(fields) <= size:
            raise ValueError(
                f"{path}:{number} has {len(fields) - 1} numbers after a word; {size or 'some'} belong there"
            )
        try:
            row = np.array([float(field) for field in fields[-size:]], np.float32)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is no word with {size} numbers: {error}") from None
        _check_finite(row, path, number)
        read += 1
        yield " ".join(fields[:-size]), row
    if count is not None and read != min(count, max_words or count):
        raise ValueError(f"{path} has {read} vectors, and its first line promises {count}: the file is cut off")


def _read_binary(file: BinaryIO, path: Path, max_words: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """word2vec's: "words dimensions", then each word, a space, and float32s, little-endian."""
    header = file.readline(64).split()
    if len(header) != 2 or not all(field.isdigit() for field in header) or int(header[1]) < 1:
        raise ValueError(f"{path} does not begin with the numbers of its words and dimensions: no word2vec binary")
    count, size = map(int, header)
    for number in range(1, min(count, max_words or count) + 1):
        word = bytearray()
        while (letter := file.read(1)) not in (b" ", b"") and len(word) <= 10_000:
            if letter != b"\n":  # ends the row before in some writers' files, and not in others'
                word += letter
        values = file.read(4 * size)
        if letter != b" " or len(values) != 4 * size:
            raise ValueError(f"{path} ends within word {number} of {count}: the file is cut off, or no word2vec binary")
        row = np.frombuffer(values, "<f4").astype(np.float32)
        _check_finite(row, path, number)
        yield word.decode("utf-8", "replace"), row


def _check_finite(rows: np.ndarray, path: Path, number: int) -> None:
    if not np.isfinite(rows).all():
        line = number + (int(np.argwhere(~np.isfinite(rows))[0, 0]) if rows.ndim == 2 else 0)
        raise ValueError(f"{path}:{line} has a number that is not finite; remove the word or mend its vector")
