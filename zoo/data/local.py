"""Your own data: a .txt, .jsonl, .tsv or .json file, a folder of such files, one with train and validation files or
folders, or one of pictures with captions (`zoo.data.captioned`).

Everything is read and checked when it is opened, so that a bad line is named before any work begins.
Documents are held out by a hash of their text: the same ones whatever their order, and equal texts together;
questions by that of their context.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.data.captioned import find_captions, find_classes, find_split_captions, read_captions
from zoo.data.config import DataConfig
from zoo.data.squad import read_question, read_squad

Example = dict[str, Any]


class Row(dict):
    """An example that knows its file and line, for messages."""

    def __init__(self, fields: dict[str, Any], where: str):
        super().__init__(fields)
        self.where = where


_SUFFIXES = (".txt", ".jsonl", ".tsv", ".json")
_TABLES = (".jsonl", ".tsv")
"""Files whose every line is an example."""
_HELD_OUT = ("validation", "valid", "val", "dev", "test")
"""Names of folders that hold something out; zoo's own is the first."""
_KINDS = "a .txt, .jsonl, .tsv or .json (SQuAD) file, or a folder of text files"


def read_splits(config: DataConfig) -> dict[str, list[Example]]:
    """The examples of "train" and "validation" at `config.path`.

    Raises FileNotFoundError where there is nothing, ValueError (with file and line) for what cannot be read.
    """
    path = Path(config.path or "").expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data.path={str(path)!r} does not exist; give {_KINDS}")
    if path.is_dir() and (files := _find_split_files(path)):
        return {split: _read_file(file, config) for split, file in files.items()}
    if path.is_dir() and (files := find_split_captions(path)):
        return {split: read_captions(file, config) for split, file in files.items()}
    if path.is_dir() and (file := find_captions(path)):
        return _hold_out(read_captions(file, config), config)
    if path.is_dir() and (folders := _find_split_folders(path)):
        return {split: _read_folder(folder, config) for split, folder in folders.items()}
    examples = _read_folder(path, config) if path.is_dir() else _read_file(path, config)
    return _hold_out(examples, config)


def _find_split_files(folder: Path) -> dict[str, Path]:
    """The train.* and validation.* of a folder that is split already; empty if it has neither."""
    found = {}
    for split in ("train", "validation"):
        files = [folder / f"{split}{suffix}" for suffix in _SUFFIXES if (folder / f"{split}{suffix}").is_file()]
        if len(files) > 1:
            raise ValueError(f"{str(folder)!r} holds both {files[0].name} and {files[1].name}: keep one of them")
        if files:
            found[split] = files[0]
    if len(found) == 1:
        (split,) = found
        other = "validation" if split == "train" else "train"
        raise ValueError(
            f"{str(folder)!r} holds {found[split].name} but no {other}.*: add it, or give the file itself as data.path"
        )
    return found


def _find_split_folders(folder: Path) -> dict[str, Path]:
    """The folders train and validation of a folder that is split already; empty if it is not.

    ValueError where what is held out has another name: it would be trained on.
    """
    found = {name: folder / name for name in ("train", *_HELD_OUT) if (folder / name).is_dir()}
    if "train" not in found or len(found) == 1:
        return {}
    if "validation" not in found:
        raise ValueError(f"{str(folder)!r} holds the folders {' and '.join(found)}: call what is held out 'validation'")
    return {split: found[split] for split in ("train", "validation")}


def _read_folder(folder: Path, config: DataConfig) -> list[Example]:
    """Each text file under `folder` that is not hidden is one document, under its relative name; or each line of
    several .jsonl or .tsv files, or each question of .json files, is one example.
    """
    names = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = [path for path, parts in names.items() if not any(part.startswith(".") for part in parts)]
    if pictures := find_classes(folder, paths, config):
        return pictures
    tables = [path for path in paths if path.suffix.lower() in _TABLES]
    if all(path.suffix.lower() in (*_TABLES, ".json") for path in paths):
        tables = paths  # beside other files, as in a program's source, a .json file is a text
    if tables and len(tables) < len(paths):
        other = next(path for path in paths if path not in tables)
        raise ValueError(
            f"{str(folder)!r} holds both {tables[0].name}, whose lines are examples, and {other.name}, which would be "
            "one document: keep one kind"
        )
    if tables:
        return [example for path in tables for example in _read_file(path, config)]
    examples = []
    for path in paths:
        text = _read_text(path)
        if text.strip():
            examples.append({config.text_key: text, "name": "/".join(names[path])})
    if not examples:
        raise ValueError(f"{str(folder)!r} holds no text files: put some in, one document each")
    return examples


def _read_file(path: Path, config: DataConfig) -> list[Example]:
    """The examples of one file, at least one."""
    readers = {".txt": _read_pieces, ".jsonl": _read_jsonl, ".tsv": _read_tsv, ".json": _read_questions}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{str(path)!r} is a {path.suffix or 'nameless'} file; give {_KINDS}")
    text = _read_text(path)
    if not text.strip():
        raise ValueError(f"{str(path)!r} is empty: there is nothing to train on")
    examples = list(reader(path, text, config))
    if not examples:
        raise ValueError(f"{str(path)!r} holds no questions: there is nothing to train on")
    return examples


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}): "
            "convert it, or leave it out"
        ) from None


def _read_pieces(path: Path, text: str, config: DataConfig) -> Iterator[Example]:
    """A long text as documents of some kB, cut at line ends, so that a share of it can be held out."""
    length = max(256, min(4096, len(text) // 32))
    for index, piece in enumerate(re.findall(rf"[\s\S]{{{length}}}[^\n]{{0,{length}}}\n?|[\s\S]+", text)):
        yield {config.text_key: piece, "name": f"{path.name}:{index}"}


def _read_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1. Only line feeds end one: U+2028 may stand in a text."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _read_jsonl(path: Path, text: str, config: DataConfig) -> Iterator[Example]:
    """One JSON object a line, with the text field, both fields of a pair, or a question and its context."""
    seen: dict[str, str] = {}
    for number, line in _read_lines(text):
        where = f"{str(path)!r} line {number}"
        try:
            example = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(example, dict):
            raise ValueError(f"{where} is a JSON {type(example).__name__}, not an object with fields")
        if {"question", "context"} <= example.keys():
            yield read_question({"id": str(number), **example}, where, seen)
            continue
        fields = {key for key, value in example.items() if isinstance(value, str)}
        if config.text_key not in fields and not {config.source_key, config.target_key} <= fields:
            raise ValueError(
                f"{where} has no text field {config.text_key!r}, nor the pair {config.source_key!r} and "
                f"{config.target_key!r}; it has {', '.join(sorted(fields)) or 'none'}: set data.text_key, or "
                "data.source_key and data.target_key"
            )
        yield Row(example, where)


def _read_questions(path: Path, text: str, config: DataConfig) -> Iterator[Example]:
    yield from read_squad(path, text)


def _read_tsv(path: Path, text: str, config: DataConfig) -> Iterator[Example]:
    """Two columns a line, input and output, with a tab between; no header and no quoting."""
    for number, line in _read_lines(text):
        columns = line.split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise ValueError(f"{str(path)!r} line {number} is {line[:60]!r}, not an input, one tab and its output")
        yield {config.source_key: columns[0], config.target_key: columns[1]}


def _hold_out(examples: list[Example], config: DataConfig) -> dict[str, list[Example]]:
    """Hold out the examples whose text's hash is low, and at least one text."""
    keys = [_hash(example, config) for example in examples]
    lowest, highest = min(keys), max(keys)
    if lowest == highest:
        raise ValueError(
            f"data.path={config.path!r} holds a single document: nothing is left to hold out. Give more, or "
            "a folder with train.* and validation.*"
        )
    splits: dict[str, list[Example]] = {"train": [], "validation": []}
    for key, example in zip(keys, examples, strict=True):
        # Few documents may all fall on one side; the lowest and the highest hash never do.
        is_held_out = key == lowest or (key < config.validation_fraction and key != highest)
        splits["validation" if is_held_out else "train"].append(example)
    return splits


def _hash(example: Example, config: DataConfig) -> float:
    """A number in [0, 1) drawn from the document, from a pair's input, a question's context or a picture's caption."""
    text = example.get(config.text_key) or example.get(config.source_key) or ""
    if "answers" in example:
        text = example["context"]
    if config.image_key in example:
        text = example.get(config.caption_key) or example["name"]
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
