"""Weights in several files beside an index, which says which file has which tensor."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from zoo.formats.safetensors import read_json
from zoo.weights import CheckpointError, Shape, Tensors

MAX_INDEX = 100_000_000
"""Bytes of an index file."""


class Shards:
    """`Tensors` of `zoo.weights`."""

    def __init__(
        self, index: Path, kind: str, open_file: Callable[[Path], Tensors], rename: Callable[[str], str] = str
    ):
        """Open every file that the index names.

        Args:
            index: `{"weight_map": {name: file}}`.
            kind: what the files' names end in, without the dot.
            open_file: gives what is in one of them.
            rename: the index's names to those that `open_file` gives.

        Raises:
            CheckpointError: a shard outside the folder, missing, or without the tensor it should have.
        """
        self.origin = str(index)
        weight_map = read_json(index, MAX_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: weight_map is {type(weight_map).__name__}; it must name a file a tensor")
        files: dict[str, Tensors] = {}
        self._home: dict[str, Tensors] = {}
        for theirs, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or file in (".", "..") or "\\" in file:
                raise CheckpointError(f"{index}: {theirs} is said to be in {file!r}; shards lie beside the index")
            if not file.endswith(f".{kind}"):
                raise CheckpointError(f"{index}: {theirs} is said to be in {file!r}, which is no {kind} file")
            if file not in files:
                files[file] = open_file(index.parent / file)
            name = rename(theirs)
            if name not in files[file].shapes:
                raise CheckpointError(f"{index}: {theirs} is said to be in {file}, which does not have it")
            if name in self._home:
                raise CheckpointError(f"{index}: {theirs} is {name}, which is there twice")
            self._home[name] = files[file]
        for file, opened in files.items():
            stray = set(opened.shapes) - set(self._home)
            if stray:
                raise CheckpointError(f"{index}: {file} has {min(stray)}, which the index does not list")
        self.shapes: Mapping[str, Shape] = {name: home.shapes[name] for name, home in self._home.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped from its shard."""
        return self._home[name].read(name)
