"""A small BERT on disk, the same as in the parity tests; and what loading a checkpoint takes of memory."""

import json
import subprocess
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


# A process of its own: what earlier tests left behind, and their threads, would be counted too.
_PEAK = """
import sys, tracemalloc
import jax
import zoo
mesh = jax.make_mesh((8,), ("fsdp",), (jax.sharding.AxisType.Auto,)) if sys.argv[2] == "mesh" else None
quantize = None if sys.argv[3] == "None" else sys.argv[3]
zoo.load(sys.argv[1], mesh=mesh, quantize=quantize)
tracemalloc.start()
peaks = []
for _ in range(5):  # the runtime may give a buffer back late; what the loader itself holds, it holds every time
    tracemalloc.clear_traces()
    zoo.load(sys.argv[1], mesh=mesh, quantize=quantize)
    peaks.append(tracemalloc.get_traced_memory()[1])
print(min(peaks))
"""


@pytest.fixture
def loading_peak():
    """A function that gives NumPy's peak in bytes while a checkpoint is loaded, after the first time."""

    def measure(checkpoint, *, on_a_mesh=False, quantize=None) -> int:
        command = [sys.executable, "-c", _PEAK, checkpoint, "mesh" if on_a_mesh else "one", str(quantize)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    return measure
