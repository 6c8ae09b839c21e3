"""safetensors files: a JSON header with dtype, shape and byte range of each tensor, then the bytes.

The header is checked whole before anything is read: a byte range
that overlaps another, leaves a gap or lies outside the file is an error that names the tensor. Reading maps one tensor
at a time, so a process never holds more than that. The format keeps no checksum; zoo's own runs do.
"""

import itertools
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from zoo.weights import CheckpointError, Shape

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000
"""Bytes; the reference implementation's limit."""


class SafetensorsFile:
    """One file; `Tensors` of `zoo.weights`."""

    def __init__(self, path: str | os.PathLike):
        """Raises CheckpointError unless the header is whole and agrees with the file's size."""
        self.origin = str(path)
        self._entries, self._start = _read_header(Path(path))
        self.shapes: Mapping[str, Shape] = {name: shape for name, (_, shape, _, _) in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor; the file is mapped, so pages come in as they are read and go with the array."""
        dtype, shape, start, _ = self._entries[name]
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.memmap(self.origin, dtype, "r", self._start + start, shape)


def read_json(path: Path, most: int = 10_000_000) -> dict[str, Any]:
    """A JSON object from a file. CheckpointError where it is missing, too large, or not an object."""
    return _read_json(path, most, dict, "an object")


def read_list(path: Path, most: int = 10_000_000) -> list[Any]:
    """The same for a list."""
    return _read_json(path, most, list, "a list")


def _read_json(path: Path, most: int, kind: type, name: str) -> Any:
    try:
        size = _size(path)
        if size > most:
            raise CheckpointError(f"{path} has {size} bytes; a file of its kind has at most {most}")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; it must be {name}")
    return value


def _size(path: Path) -> int:
    """Bytes of a plain file; a pipe or a device would be read without end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no plain file")
    return found.st_size


def _read_header(path: Path) -> tuple[dict[str, tuple[np.dtype, Shape, int, int]], int]:
    """Entries by name (dtype, shape, first and last byte of the data), and where the data starts."""
    try:
        size = _size(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(
                    f"{path} has {size} bytes and says that its header takes {length}; it is cut short or damaged"
                )
            text = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({str(error)[:200]}); the file is damaged") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a {type(header).__name__}; the file is damaged")
    header.pop("__metadata__", None)
    room = size - 8 - length
    entries = {name: _check_entry(path, name, entry, room) for name, entry in header.items()}
    _check_ranges(path, entries, room)
    return entries, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return dict(pairs)


def _check_entry(path: Path, name: str, entry: Any, room: int) -> tuple[np.dtype, Shape, int, int]:
    try:
        kind, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = [*shape, start, stop]
        if not isinstance(shape, list) or not all(type(number) is int and number >= 0 for number in whole):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: {name} has the entry {str(entry)[:200]}; the file is damaged") from None
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {str(kind)[:40]!r}; zoo reads {', '.join(DTYPES)}")
    need = math.prod(shape) * DTYPES[kind].itemsize
    if stop - start != need or stop > room:
        raise CheckpointError(
            f"{path}: {name} of shape {shape} and dtype {kind} needs {need} bytes, and its range is {start} to {stop} "
            f"of {room}; the file is cut short or damaged"
        )
    return DTYPES[kind], tuple(shape), start, stop


def _check_ranges(path: Path, entries: dict[str, tuple[np.dtype, Shape, int, int]], room: int) -> None:
    """Ranges follow one another and fill the file."""
    ordered = sorted(((start, stop, name) for name, (_, _, start, stop) in entries.items()))
    for (_, before, first), (after, _, second) in itertools.pairwise(ordered):
        if before != after:
            raise CheckpointError(
                f"{path}: {first} ends at byte {before} and {second} starts at {after}; the file is damaged"
            )
    if ordered and (ordered[0][0] != 0 or ordered[-1][1] != room):
        raise CheckpointError(
            f"{path}: tensors take bytes {ordered[0][0]} to {ordered[-1][1]} ({ordered[-1][2]}) of {room}; "
            "the file is cut short or damaged"
        )


Entry = tuple[str, Shape, np.dtype, Callable[[], np.ndarray]]
"""Name, shape, dtype, and a function that makes the array."""


def write_folder(folder: Path, entries: Iterable[Entry], max_bytes: int) -> list[Path]:
    """Write `model.safetensors`, or shards of at most `max_bytes` with their index; tensors are made one at a time."""
    shards: list[list[Entry]] = [[]]
    sizes = [0]
    for entry in entries:
        size = math.prod(entry[1]) * entry[2].itemsize
        if shards[-1] and sizes[-1] + size > max_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(entry)
        sizes[-1] += size
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0])
        return [folder / "model.safetensors"]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    weight_map = {entry[0]: name for name, shard in zip(names, shards, strict=True) for entry in shard}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}, indent=2) + "\n")
    return [folder / name for name in names] + [index]


def write_file(path: Path, entries: list[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Write one file; whoever reads `path` sees the old one or the whole new one."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    start = 0
    for name, shape, dtype, _ in entries:
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, _, _, make in entries:
                make().tofile(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
