"""A small BERT on disk, the same as in the parity tests."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
import small


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with config.json and model.safetensors of a masked language model."""
    with np.load(small.RECORDED / "bert-masked_lm.npz") as file:
        manifest = json.loads(file["manifest"].tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    return small.write_folder(tmp_path / "bert", manifest["config"], shapes)
