"""Record what the reference library computes: `python tests/parity/record.py [MODEL_TYPE ...]`; needs torch.

Each case becomes `recorded/MODEL_TYPE-HEAD.npz`: config.json, names and shapes of the tensors, and the outputs.
"""

import json
import sys
import tempfile
from pathlib import Path

# As a script it stands in tests/parity: the tests' own modules and this checkout's zoo come first.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]

import numpy as np
import reference
import small


def record(model_type: str, head: str) -> Path:
    """Write one case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, _, theirs = reference.make(model_type, head, folder)
        manifest = {"config": json.loads((folder / "config.json").read_text()), "shapes": small.tensor_shapes(folder)}
    digests = {
        name.removeprefix("gradient/"): small.digest(name.removeprefix("gradient/"), value)
        for name, value in theirs.items()
        if name.startswith("gradient/")
    }
    # One array of all, because an array by itself takes 300 bytes of a file.
    kept = {name: value for name, value in theirs.items() if not name.startswith("gradient/")}
    manifest["digests"], kept["digests"] = list(digests), np.array(list(digests.values()), np.float32)
    path = small.RECORDED / f"{model_type}-{head}.npz"
    np.savez_compressed(path, manifest=np.frombuffer(json.dumps(manifest).encode(), np.uint8), **kept)
    return path


if __name__ == "__main__":
    for model_type, head in small.CASES:
        if not sys.argv[1:] or model_type in sys.argv[1:]:
            path = record(model_type, head)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
