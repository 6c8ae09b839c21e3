"""One door for every dataset: an embedded set, a public TFDS name, or local files.

A dataset's splits are random-access sources: `len(source)`, `source[index]` -> dict with str fields. Nothing
is downloaded here; a public set must have been prepared, and the error says how.
"""

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from zoo.data.builders import EMBEDDED, prepare
from zoo.data.config import DataConfig
from zoo.data.local import read_splits

_HELD_BYTES = 1 << 27
MAX_CLASSES = 1000
"""Different words in a field that may be classes; where there are more, the field is a text."""
_RANDOM_ACCESS = ("array_record", "parquet", "riegeli")


@runtime_checkable
class Source(Protocol):
    """The documents of one split, by index: a list of dicts is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Splits by name; "train" and "validation" always exist and are not empty."""

    name: str
    splits: Mapping[str, Source]
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """The names of the classes, by the field that holds a class's number."""

    def split(self, name: str) -> Source:
        """The documents of one split. ValueError with the known names for any other."""
        if name not in self.splits:
            raise ValueError(f"dataset {self.name!r} has no split {name!r}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def classes(self, key: str) -> tuple[str, ...]:
        """The names of the classes that a field numbers; or, sorted, those that it spells out in train; or the numbers
        from 0 that it has there.

        ValueError with the row whose class is missing, of another kind or, held out, not one of those; or with the
        fields that have classes.
        """
        if key in self.labels:
            return self.labels[key]
        train = self.split("train")
        rows = _read_labels(key, train, f"train in {self.name!r}")
        if all(value is None for value, _ in rows):
            known = ", ".join(self.labels) or "none"
            raise ValueError(f"dataset {self.name!r} has no classes in {key!r}; it has {known}: set data.label_key")
        rows += _read_labels(key, self.split("validation"), f"validation in {self.name!r}")
        return _check_classes(key, rows, len(train))


def _read_labels(key: str, source: Source, name: str) -> list[tuple[Any, str]]:
    """The label of each row, and where it is from."""
    found = []
    for index in range(len(source)):
        row = source[index]
        value = row.get(key)
        value = value.item() if isinstance(value, np.generic) else value
        found.append((value, getattr(row, "where", f"row {index} of {name}")))
    return found


def _check_classes(key: str, rows: list[tuple[Any, str]], num_train: int) -> tuple[str, ...]:
    """The names of the classes of labels, each with where it is from; those after `num_train` are held out."""
    (first, first_where), *_ = rows
    for value, where in rows:
        if type(value) not in (str, int) or value == "":
            raise ValueError(f"{where} has {key!r}: {value!r}; give the name of its class, or a number from 0")
        if type(value) is not type(first):
            raise ValueError(f"{where} has {key!r}: {value!r}, and {first_where} has {first!r}: give one kind")
    found = {value for value, _ in rows[:num_train]}
    if not 1 < len(found) <= MAX_CLASSES:
        raise ValueError(f"{key!r} has {len(found):,} different classes in train; there may be 2 to {MAX_CLASSES:,}")
    if type(first) is int and found != set(range(len(found))):
        low, high = min(found), max(found)
        raise ValueError(f"{key!r} has {len(found)} numbers from {low} to {high}: number classes from 0, or name them")
    for value, where in rows[num_train:]:
        if value not in found:
            raise ValueError(f"{where} is held out and has {key!r}: {value!r}, a class that no row of train has")
    return tuple(map(str, sorted(found)))


def open_dataset(config: DataConfig) -> Dataset:
    """Open what `config` names.

    Raises FileNotFoundError or ValueError, with the value and the mend, for a set that is unknown, not
    prepared, missing, empty or malformed.
    """
    if config.path is not None:
        return Dataset(name=config.path, splits=read_splits(config))
    directory = data_directory(config)
    if config.name in EMBEDDED:
        builder = prepare(config.name, directory)
    else:
        builder = _find_prepared(config.name, _search_path(config))
    chosen = {"train": config.train_split, "validation": config.validation_split}
    splits = {name: _TfdsSource(builder, _check_split(builder, name, split)) for name, split in chosen.items()}
    features = builder.info.features.items()
    labels = {name: tuple(feature.names) for name, feature in features if getattr(feature, "names", None)}
    return Dataset(name=config.name, splits=splits, labels=labels)


def data_directory(config: DataConfig) -> Path:
    """Where prepared sets are kept: `config.directory`, else $ZOO_DATA_DIR, else ~/.cache/zoo/tfds."""
    chosen = config.directory or os.environ.get("ZOO_DATA_DIR") or "~/.cache/zoo/tfds"
    return Path(chosen).expanduser().resolve()


def _search_path(config: DataConfig) -> list[Path]:
    """Where to look for a public set: zoo's own folder, then TFDS's, or `config.directory` alone."""
    from tensorflow_datasets.core.constants import DATA_DIR

    own = data_directory(config)
    return [own] if config.directory else [own, Path(DATA_DIR).expanduser()]


def _find_prepared(name: str, directories: list[Path]):
    """The builder of a public set as it was written to disk; the code that wrote it is not needed."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    for directory in directories:
        try:
            builder = builder_from_files(name, data_dir=directory)
        except tfds.core.DatasetNotFoundError:
            continue
        if _format_name(builder) not in _RANDOM_ACCESS:
            raise ValueError(
                f"TFDS set {name!r} in {str(directory)!r} is written as {_format_name(builder)}, "
                f"which cannot be read at random without TensorFlow. {_how_to_prepare(name, directory)}"
            )
        return builder
    raise _not_found(name, directories)


def _not_found(name: str, directories: list[Path]) -> Exception:
    import tensorflow_datasets as tfds

    folders = " or ".join(repr(str(directory)) for directory in directories)
    known = tfds.list_builders(with_community_datasets=False)
    if name.partition("/")[0].partition(":")[0] in known:
        return FileNotFoundError(
            f"TFDS set {name!r} is not prepared in {folders}. {_how_to_prepare(name, directories[0])}"
        )
    prepared = {entry.name for folder in directories if folder.is_dir() for entry in folder.iterdir()}
    nearest = difflib.get_close_matches(name, {*known, *EMBEDDED, *prepared}, n=3, cutoff=0.5)
    return ValueError(
        f"unknown dataset {name!r}: not embedded ({', '.join(EMBEDDED)}), not prepared in {folders}, and not "
        f"a name that TFDS knows without TensorFlow. Nearest: {', '.join(nearest) or 'none'}. Your own text "
        "goes into data.path"
    )


def _format_name(builder) -> str:
    return builder.info.file_format.value if builder.info.file_format else "no known format"


def _how_to_prepare(name: str, directory: Path) -> str:
    return (
        'Where there is a network, run: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{directory}', file_format='array_record').download_and_prepare()\""
    )


def _check_split(builder, name: str, split: str) -> str:
    """`split` itself; ValueError where the set has no such split, or nothing in it."""
    known = ", ".join(builder.info.splits)
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError):
        raise ValueError(
            f"dataset {builder.name!r} has no split {split!r}; it has {known}: set data.{name}_split to one, "
            "or to a slice such as 'train[99%:]'"
        ) from None
    if not num_examples:
        raise ValueError(f"split {split!r} of dataset {builder.name!r} is empty: set data.{name}_split ({known})")
    return split


def read_field(example: dict[str, Any], key: str) -> str:
    """`example[key]`, or ValueError with the text fields there are.

    A key such as "captions/text" looks inside of a field, and takes the first of several texts.
    """
    value = example.get(key)
    if value is None and "/" in key:
        value: Any = example
        for name in key.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str):
        texts = ", ".join(name for name, value in example.items() if isinstance(value, str)) or "none"
        raise ValueError(
            f"documents have no text field {key!r}; they have {texts}: set data.text_key, or data.source_key "
            "and data.target_key"
        )
    return value


def read_texts(source: Source, key: str) -> list[str]:
    """One field of every document."""
    return [read_field(source[index], key) for index in range(len(source))]


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
        num_bytes = self._builder.info.splits[self._split].num_bytes
        if _format_name(self._builder) != "array_record" or num_bytes > _HELD_BYTES:
            return None
        return self._records.data_source.__getitems__(range(len(self)))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # array_record knows no negative index
        if self._held is None:
            return _as_text(self._records[index])
        if index not in self._decoded:
            self._decoded[index] = self._decode(self._held[index])
        return self._decoded[index]

    @functools.cached_property
    def _decode(self) -> Callable[[bytes], dict[str, Any]]:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        features = self._builder.info.features
        if any(type(feature) is not tfds.features.Text for feature in features.values()):
            return lambda record: _as_text(features.deserialize_example_np(record))

        # For plain texts the general decoder, at 60 us, would cost more than tokenising a short pair.
        def decode_texts(record: bytes) -> dict[str, Any]:
            fields = tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore
            return {name: fields[name].bytes_list.value[0].decode() for name in features}

        return decode_texts


def _as_text(value: Any) -> Any:
    """A value of TFDS with bytes as str, inside of sequences and nested features too."""
    if isinstance(value, dict):
        return {key: _as_text(inner) for key, inner in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_as_text(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value
