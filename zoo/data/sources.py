"""One door for every dataset: an embedded set, a public TFDS name, or local files.

A dataset's splits are random-access sources: `len(source)`, `source[index]` -> dict with str fields. Nothing
is downloaded here; a public set must have been prepared, and the error says how.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.builders import EMBEDDED, prepare
from zoo.data.config import DataConfig

Source = Sequence[dict[str, Any]]

_HELD_BYTES = 1 << 27


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits by name; "train" and "validation" always exist and are not empty."""

    name: str
    splits: dict[str, Source]

    def split(self, name: str) -> Source:
        """The documents of one split. ValueError with the known names for any other."""
        if name not in self.splits:
            raise ValueError(f"dataset {self.name!r} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]


def open_dataset(config: DataConfig) -> Dataset:
    """Open what `config` names.

    Raises FileNotFoundError or ValueError, with the value and the mend, for a set that is unknown, not
    prepared, missing, empty or malformed.
    """
    if config.path is not None:
        from zoo.data.local import read_splits

        return _checked(Dataset(name=config.path, splits=read_splits(config)))
    builder = _open_builder(config)
    names = {"train": config.train_split, "validation": config.validation_split}
    return _checked(Dataset(name=config.name, splits={k: _TfdsSource(builder, v) for k, v in names.items()}))


def data_directory(config: DataConfig) -> Path:
    """Where prepared sets are kept: `config.directory`, else $ZOO_DATA_DIR, else ~/.cache/zoo/tfds."""
    chosen = config.directory or os.environ.get("ZOO_DATA_DIR") or "~/.cache/zoo/tfds"
    return Path(chosen).expanduser().resolve()


def _open_builder(config: DataConfig):
    directory = data_directory(config)
    if config.name in EMBEDDED:
        return prepare(config.name, directory)
    raise ValueError(f"unknown dataset {config.name!r}")


class _TfdsSource:
    """One split of a prepared builder, its text fields as str. Opened at first use.

    A split up to `_HELD_BYTES` is read at once and kept: one record from a file costs 300 us, in bulk 6 us.
    """

    def __init__(self, builder, split: str):
        self._builder, self._split = builder, split
        self._decoded: dict[int, dict[str, Any]] = {}

    @functools.cached_property
    def _records(self):
        return self._builder.as_data_source(split=self._split)

    @functools.cached_property
    def _held(self) -> list[bytes] | None:
        if self._builder.info.splits[self._split].num_bytes > _HELD_BYTES:
            return None
        return self._records.data_source.__getitems__(range(len(self)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # array_record knows no negative index
        if self._held is None:
            return _as_text(self._records[index])
        if index not in self._decoded:
            example = self._builder.info.features.deserialize_example_np(self._held[index])
            self._decoded[index] = _as_text(example)
        return self._decoded[index]


def _as_text(example: dict[str, Any]) -> dict[str, Any]:
    # TFDS gives text as bytes.
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in example.items()}


def _checked(dataset: Dataset) -> Dataset:
    return dataset
