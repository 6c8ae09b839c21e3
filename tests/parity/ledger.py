"""Write docs/parity.md: every architecture and head, and how far zoo is from the reference's recorded outputs.

python tests/parity/ledger.py [MODEL_TYPE ...]; rows of model types that are not named stay as they are.
"""

import concurrent.futures
import multiprocessing
import sys
import tempfile
from pathlib import Path

# As a script it stands in tests/parity: the tests' own modules and this checkout's zoo come first.
sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:3]]
import conftest  # noqa: F401, I001  programs compiled in haste, as in the tests: before JAX is imported

import jax
import small

import zoo
from zoo.architectures import find_architecture

PAGE = Path(__file__).parent.parent.parent / "docs" / "parity.md"
TOP = """# Parity with the reference

Small random models of every architecture that zoo loads, each with every head, against transformers on torch. Made by
`python tests/parity/ledger.py` from the recorded outputs in `tests/parity/recorded`; `tests/parity/test_recorded.py`
asserts all of it in CI; where torch is installed `tests/parity/test_live.py` remakes the recordings and asserts
that they are what the library computes.

- **outputs**: the largest absolute error of logits, hidden states and pooled vectors in float32, divided by a tenth of
  the largest value where that is above 10; over a plain batch and a padded one, whose longest row is past every window
  of the small models, at positions that are not padding. At most 1e-4, and the argmax of logits is equal everywhere.
- **states after each layer** of base models: compared where torch is, by `tests/parity/test_hidden_states.py`, to 1e-4.
- **gradient**: of a random combination of the main output, by every tensor of the checkpoint, as norm and two random
  projections, relative to the largest. At most 1e-3.
- **generated**: greedy and beam sequences (3 beams, length penalty 2, no bigram twice) from a padded batch are equal
  token for token, where the head generates.

| model_type | head | class of the reference | outputs | gradient | generated |
|---|---|---|---|---|---|
"""


def row(model_type: str, head: str) -> str:
    """A line of the table; raises AssertionError where zoo and the reference differ."""
    fields, shapes, recorded = small.read_recorded(model_type, head)
    with tempfile.TemporaryDirectory() as folder:
        bundle = zoo.load(small.write_folder(Path(folder), fields, shapes))
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
    kept = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in PAGE.read_text().splitlines(True)}
    named = [case for case in small.CASES if not sys.argv[1:] or case[0] in sys.argv[1:]]
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for case, found in zip(named, pool.map(row, *zip(*named, strict=True)), strict=True):
            kept[case] = found
            print(found, end="", flush=True)
    PAGE.write_text(TOP + "".join(kept.get(case, "") for case in small.CASES))


if __name__ == "__main__":
    main()
