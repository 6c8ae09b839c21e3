"""A folder of pictures with captions: beside them a metadata.jsonl, as image folders have it, or a captions.tsv.

A line of metadata.jsonl is a JSON object with the picture's `file_name`, relative to the folder, its caption, and what
other fields there are; a line of captions.tsv is a file name, one tab, and the caption. Pictures with classes need no
captions, and neither file where a folder of each class holds its pictures. A folder may hold train and validation
folders instead, each with its own. All lines are checked when the folder is opened, and that each picture is one by its
first bytes; pictures are decoded as they are needed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from zoo.data.config import DataConfig
from zoo.data.pictures import upright

Example = dict[str, Any]

_FILES = ("metadata.jsonl", "captions.tsv")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Names of files that are pictures end so."""


@dataclass(frozen=True)
class PictureFile:
    """A picture that stays on the disk until it is asked for; it passes for a PIL image."""

    path: Path
    where: str
    """File and line that name it, for messages."""

    def convert(self, mode: str) -> Image.Image:
        """The decoded picture. ValueError, with the line that names it, for one that cannot be read."""
        try:
            with Image.open(self.path) as picture:
                return upright(picture).convert(mode)
        except (OSError, SyntaxError) as error:  # Pillow's decoders raise either
            raise ValueError(f"{self.where}: the picture {str(self.path)!r} cannot be read: {error}") from None


def find_captions(folder: Path) -> Path | None:
    """The file with the captions of a folder, if it has one. ValueError for two."""
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{str(folder)!r} holds both {_FILES[0]} and {_FILES[1]}: keep one of them")
    return found[0] if found else None


def find_split_captions(folder: Path) -> dict[str, Path]:
    """The files with the captions of train and validation folders; empty if there are none."""
    found = {split: find_captions(folder / split) for split in ("train", "validation")}
    named = {split: path for split, path in found.items() if path is not None}
    if len(named) == 1:
        (split,) = named
        other = "validation" if split == "train" else "train"
        raise ValueError(f"{str(folder)!r} has captions in {split} and none in {other}: add {other}/{_FILES[0]}")
    return named


def read_captions(file: Path, config: DataConfig) -> list[Example]:
    """The pictures and captions that a metadata.jsonl or captions.tsv names, at least one.

    Raises:
        ValueError: a malformed line, a picture that is missing, or a file that is none; with the file and line.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(file)!r} is not UTF-8 text (byte {error.start}): convert it") from None
    examples = [_check_picture(file, *row, config) for row in _read_rows(file, text, config)]
    if not examples:
        raise ValueError(f"{str(file)!r} is empty: there is nothing to train on")
    return examples


def find_classes(folder: Path, paths: list[Path], config: DataConfig) -> list[Example]:
    """The pictures of a folder that holds one folder a class; empty unless all of the paths are pictures.

    ValueError for pictures that lie in no folder of a class.
    """
    if not paths or any(path.suffix.lower() not in _SUFFIXES for path in paths):
        return []
    examples = []
    for path in paths:
        name = "/".join(path.relative_to(folder).parts)
        if "/" not in name:
            raise ValueError(
                f"{str(path)!r} has neither caption nor class: write {_FILES[0]}, or put each class in its own folder"
            )
        fields = {config.label_key: name.partition("/")[0]}
        examples.append(_check_picture(folder / _FILES[0], repr(str(path)), name, fields, config))
    return examples


def _read_rows(file: Path, text: str, config: DataConfig) -> Iterator[tuple[str, str, Example]]:
    """File and line, the picture's name, and the other fields."""
    for number, line in enumerate(text.split("\n"), 1):
        where, line = f"{str(file)!r} line {number}", line.rstrip("\r")
        if not line.strip():
            continue
        if file.suffix == ".tsv":
            name, tab, caption = line.partition("\t")
            if not (name.strip() and tab and caption.strip()) or "\t" in caption:
                raise ValueError(f"{where} is {line[:60]!r}, not a picture's file, one tab and its caption")
            yield where, name, {config.caption_key: caption}
        else:
            fields = _read_object(where, line, config)
            yield where, fields.pop("file_name"), fields


def _read_object(where: str, line: str, config: DataConfig) -> Example:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is a JSON {type(fields).__name__}, not an object with fields")
    wanted = [("file_name", "name the picture, relative to the folder"), (config.caption_key, "")]
    # A picture with a class needs no caption.
    for key, mend in wanted[: 1 if config.label_key in fields and config.caption_key not in fields else 2]:
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            known = ", ".join(sorted(fields)) or "none"
            mend = mend or "write the caption, or set data.caption_key to the field that holds it"
            raise ValueError(f"{where} has no text field {key!r}; it has {known}: {mend}")
    return fields


def _check_picture(file: Path, where: str, name: str, fields: Example, config: DataConfig) -> Example:
    path = file.parent / name
    if not path.is_file():
        raise ValueError(f"{where}: there is no picture {str(path)!r}; add it, or leave the line out")
    try:
        Image.open(path).close()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where}: {str(path)!r} is no picture that can be read: {error}") from None
    return {**fields, config.image_key: PictureFile(path, where), "name": name}
