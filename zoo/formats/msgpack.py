"""flax_model.msgpack: checkpoints of the Flax classes that transformers has deleted, under their torch names.

The file is a MessagePack map of maps (msgpack.org's spec.md), whose leaves are arrays in flax.serialization's
extension types or, above 2**30 bytes, maps of their chunks. It is walked once for where the arrays lie, and they are
mapped one at a time. Anything else that MessagePack can say is refused; nothing in a file is ever executed.

Those classes named their modules as the torch ones and their leaves as Flax does, so names and layouts follow from the
leaves alone: a kernel is a transposed weight (GPT-2's Conv1D too, which was stored [out, in]), scales and embeddings
are weights.
"""

import math
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from zoo.weights import CheckpointError, Shape

_DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint64,
        np.uint32, np.uint16, np.uint8, np.bool_,
    )
}  # fmt: skip
_ARRAY, _SCALAR = 1, 3
"""Extension types of flax.serialization: an array, and a NumPy scalar as an array of no dimensions."""
_CHUNKED = "__msgpack_chunked_array__"
_MAX_DEPTH = 40
"""Maps within maps; the reference's have at most a dozen."""


@dataclass(frozen=True)
class _Stored:
    """Where an array's numbers are: dtype, shape, and the first byte and count of each piece."""

    dtype: np.dtype
    shape: Shape
    pieces: tuple[tuple[int, int], ...]


class FlaxFile:
    """One file; `Tensors` of `zoo.weights`."""

    def __init__(self, path: str | os.PathLike):
        """Raises CheckpointError unless the whole file is maps of arrays that fill their ranges."""
        self.origin = str(path)
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                tree = _Walker(data, self.origin).whole()
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        tree = tree["params"] if set(tree) == {"params"} and isinstance(tree["params"], dict) else tree
        self._entries: dict[str, tuple[_Stored, bool]] = {}
        for modules, stored in _leaves(tree):
            flipped = modules[-1] == "kernel" and len(stored.shape) >= 2
            name = torch_name("/".join(modules))
            if name in self._entries:
                raise CheckpointError(f"{path}: two leaves are {name}; the file is damaged")
            self._entries[name] = (stored, flipped)
        self.shapes: Mapping[str, Shape] = {
            name: (*stored.shape[:-3:-1], *stored.shape[:-2]) if flipped else stored.shape
            for name, (stored, flipped) in self._entries.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor, in torch's layout; mapped, unless it is in chunks."""
        stored, flipped = self._entries[name]
        pieces = [np.memmap(self.origin, stored.dtype, "r", start, (count,)) for start, count in stored.pieces if count]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate([np.zeros(0, stored.dtype), *pieces])
        array = whole.reshape(stored.shape)
        # [*window, in, out] to [out, in, *window].
        return array.transpose(-1, -2, *range(array.ndim - 2)) if flipped else array


def torch_name(path: str) -> str:
    """The torch name of a leaf, for its Flax path as an index has it, "bert/embeddings/word_embeddings/embedding"."""
    *modules, leaf = path.removeprefix("params/").split("/")
    return ".".join([*modules, "weight" if leaf in ("kernel", "scale", "embedding") else leaf])


def _leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], _Stored]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


class _Walker:
    """Reads the bytes from front to back."""

    def __init__(self, data: mmap.mmap, origin: str):
        self.data, self.origin, self.position = data, origin, 0

    def whole(self) -> dict[str, Any]:
        """The file's one map."""
        tree = self.value(0)
        if not isinstance(tree, dict):
            raise self.damaged("does not begin with a map")
        if self.position != len(self.data):
            raise self.damaged("has more after the map's end")
        return tree

    def damaged(self, what: str) -> CheckpointError:
        """The error of this place."""
        return CheckpointError(f"{self.origin} {what} (at byte {self.position}); it is cut short or damaged")

    def take(self, count: int) -> int:
        """Step over `count` bytes; returns where they begin."""
        start = self.position
        if count > len(self.data) - start:
            raise self.damaged(f"ends within {count} bytes")
        self.position += count
        return start

    def number(self, size: int, signed: bool = False) -> int:
        """A big-endian integer."""
        start = self.take(size)
        return int.from_bytes(self.data[start : start + size], "big", signed=signed)

    def text(self, count: int) -> str:
        """UTF-8."""
        start = self.take(count)
        try:
            return self.data[start : start + count].decode()
        except UnicodeDecodeError:
            self.position = start
            raise self.damaged("has a name that is not text") from None

    def value(self, depth: int) -> Any:
        """A map, an array, a string, a number or true."""
        code = self.number(1)
        if code < 0x80:
            return code
        if code < 0x90 or code in (0xDE, 0xDF):
            return self.map(code - 0x80 if code < 0x90 else self.number(2 if code == 0xDE else 4), depth)
        if 0xA0 <= code < 0xC0 or 0xD9 <= code <= 0xDB:
            return self.text(code - 0xA0 if code < 0xC0 else self.number(1 << (code - 0xD9)))
        if 0xC7 <= code <= 0xC9 or 0xD4 <= code <= 0xD8:
            return self.array(1 << (code - 0xD4) if code >= 0xD4 else self.number(1 << (code - 0xC7)), depth)
        if 0xCC <= code <= 0xCF:
            return self.number(1 << (code - 0xCC))
        if code == 0xC3:
            return True
        self.position -= 1
        raise self.damaged(f"has a value of kind {code:#x}, which no parameters have,")

    def map(self, count: int, depth: int) -> Any:
        """Names and what they stand for; a chunked array where it says so."""
        if depth > _MAX_DEPTH:
            raise self.damaged(f"has maps more than {_MAX_DEPTH} deep")
        found: dict[str, Any] = {}
        for _ in range(count):
            name, value = self.value(depth + 1), self.value(depth + 1)
            if not isinstance(name, str) or name in found:
                raise self.damaged(f"has {str(name)[:60]!r} as a name, or has it twice,")
            found[name] = value
        if _CHUNKED in found:
            return self.chunked(found)
        # In a chunked array's map there are numbers too, by their places.
        numbers = found and all(type(value) is int for value in found.values())
        flagged = set(found) == {_CHUNKED}
        if not numbers and not flagged and not all(isinstance(value, dict | _Stored) for value in found.values()):
            raise self.damaged("has a leaf that is no array")
        return found

    def chunked(self, found: dict[str, Any]) -> _Stored:
        """An array from the pieces that flax.serialization cut it into."""
        try:
            shape = tuple(found["shape"][str(axis)] for axis in range(len(found["shape"])))
            chunks = [found["chunks"][str(place)] for place in range(len(found["chunks"]))]
            dtype, pieces = chunks[0].dtype, tuple(piece for chunk in chunks for piece in chunk.pieces)
            fits = sum(count for _, count in pieces) == math.prod(shape)
        except (KeyError, TypeError, AttributeError, IndexError):
            raise self.damaged("has a chunked array without its shape or chunks") from None
        if not fits or any(chunk.dtype != dtype for chunk in chunks):
            raise self.damaged(f"has a chunked array of shape {shape} whose chunks are not its parts")
        return _Stored(dtype, shape, pieces)

    def array(self, count: int, depth: int) -> _Stored:
        """The extension types: shape, dtype's name and bytes, packed as a MessagePack array of three."""
        if depth > _MAX_DEPTH:
            raise self.damaged("has an array within an array")
        kind = self.number(1)
        end = self.take(count) + count
        self.position -= count
        if kind not in (_ARRAY, _SCALAR):
            raise self.damaged(f"has extension type {kind}; parameters are of type {_ARRAY}")
        if self.length(0x90, 0xDC) != 3:
            raise self.damaged("has an array that is not shape, dtype and bytes")
        inside = _MAX_DEPTH + 1
        shape = tuple(self.value(inside) for _ in range(self.length(0x90, 0xDC)))
        name = self.value(inside)
        if not isinstance(name, str) or name not in _DTYPES or not all(type(size) is int for size in shape):
            raise self.damaged(f"has an array of dtype {str(name)[:40]!r} and shape {str(shape)[:80]}")
        code = self.number(1)
        size = self.number(1 << (code - 0xC4)) if 0xC4 <= code <= 0xC6 else -1
        if size != math.prod(shape) * _DTYPES[name].itemsize or self.position + size != end:
            raise self.damaged(f"has an array of dtype {name} and shape {shape} that does not fill its {size} bytes")
        return _Stored(_DTYPES[name], shape, ((self.take(size), math.prod(shape)),))

    def length(self, short: int, long: int) -> int:
        """Of a MessagePack array: in its code's low bits, or in the two bytes that follow `long`."""
        code = self.number(1)
        if code == long:
            return self.number(2)
        if not short <= code < short + 16:
            raise self.damaged("has something else where an array's items begin")
        return code - short
