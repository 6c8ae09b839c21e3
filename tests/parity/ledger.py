"""Write docs/parity.md: every architecture and head, and how far zoo is from the reference's recorded outputs.

python tests/parity/ledger.py
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import jax
import numpy as np
import small

import zoo
from zoo.architectures import find_architecture

PAGE = Path(__file__).parent.parent.parent / "docs" / "parity.md"
TOP = """# Parity with the reference

Small random models of every architecture that zoo loads, each with every head, against transformers on torch. Made by
`python tests/parity/ledger.py` from the recorded outputs in `tests/parity/recorded`; `tests/parity/test_recorded.py`
asserts all of it on every run, and `tests/parity/test_live.py` does the same against the library itself where torch is
installed.

- **outputs**: the largest absolute error of logits, hidden states and pooled vectors in float32, divided by a tenth of
  the largest value where that is above 10; over a plain, a padded and a long batch, at positions that are not padding.
  At most 1e-4, and the argmax of logits is equal everywhere.
- **gradient**: of a random combination of the main output, by every tensor of the checkpoint, as norm and two random
  projections, relative to the largest. At most 1e-3.
- **generated**: greedy and beam sequences from a padded batch are equal token for token, where the head generates.

| model_type | head | class of the reference | outputs | gradient | generated |
|---|---|---|---|---|---|
"""


def row(model_type: str, head: str) -> str:
    """A line of the table; raises AssertionError where zoo and the reference differ."""
    with np.load(small.RECORDED / f"{model_type}-{head}.npz") as file:
        recorded = dict(file)
    manifest = json.loads(recorded.pop("manifest").tobytes())
    shapes = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
    with tempfile.TemporaryDirectory() as folder:
        bundle = zoo.load(small.write_folder(Path(folder), manifest["config"], shapes))
    inputs = small.make_inputs(bundle)
    with jax.default_matmul_precision("highest"):
        ours = small.measure(bundle, inputs)
    errors = small.compare(f"{model_type}-{head}", ours, recorded, small.padding_masks(inputs, bundle))
    gradient = errors.pop("digest", 0.0)
    generated = "" if errors.pop("generated", None) is None else "equal"
    name = find_architecture(model_type).classes[head]
    return f"| {model_type} | {head} | {name} | {max(errors.values()):.1e} | {gradient:.1e} | {generated} |\n"


def main() -> None:
    """Write the page."""
    rows = []
    for case in small.CASES:
        rows.append(row(*case))
        print(rows[-1], end="", flush=True)
    PAGE.write_text(TOP + "".join(rows))


if __name__ == "__main__":
    main()
