"""NumPy's .npz: a zip of arrays, each with a header of its own; no pickle is opened."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.weights import CheckpointError, Shape


class NpzFile:
    """One file; `Tensors` of `zoo.weights`."""

    def __init__(self, path: Path):
        """Raises CheckpointError unless it is a zip of arrays of plain numbers."""
        self.origin = str(path)
        try:
            with zipfile.ZipFile(path) as archive:
                shapes = {name: _read_shape(archive, name) for name in archive.namelist()}
        except (zipfile.BadZipFile, ValueError) as error:
            raise CheckpointError(f"{path} is no .npz file of plain arrays: {error}") from None
        self.shapes: Mapping[str, Shape] = {name.removesuffix(".npy"): shape for name, shape in shapes.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        try:
            with np.load(self.origin, allow_pickle=False) as file:
                return file[name]
        except (zipfile.BadZipFile, ValueError) as error:
            raise CheckpointError(f"{self.origin}: {name} cannot be read: {error}") from None


def _read_shape(archive: zipfile.ZipFile, name: str) -> Shape:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{name} is of version {version}")
        shape, _, dtype = read[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    return shape
