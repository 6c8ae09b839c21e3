"""Plant faults one by one in a copy of the core, and see that the default tier fails: `python tests/mutations.py`.

Each fault is one line of ten or more different places. For each the tests that should notice are named, which are parts
of the default tier; `--all` runs the whole of it. Where the code has changed so that a fault no longer applies, that is
an error: write it anew.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """A wrong line, and who should notice."""

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = {
    "a causal mask that hides a query's own key": Fault(
        "zoo/kernels/masks.py",
        "        return (Clause(high=frame.query),)",
        "        return (Clause(high=frame.query - np.int32(1)),)",
        "tests/kernels/test_masks.py tests/kernels/test_attention.py",
    ),
    "a window one key too wide": Fault(
        "zoo/kernels/masks.py",
        "frame.query - int32(self.left)",
        "frame.query - int32(self.left + 1)",
        "tests/kernels/test_masks.py tests/kernels/test_attention.py",
    ),
    "segments that leak": Fault(
        "zoo/kernels/masks.py",
        "        return (Clause(segments=self.pairs),)",
        "        return (Clause(),)",
        "tests/kernels/test_masks.py tests/test_transformer.py",
    ),
    "a kernel that is not transposed": Fault(
        "zoo/weights.py",
        "LINEAR_OF_HEADS = _each(lambda tensor, shape: tensor.T.reshape(shape)",
        "LINEAR_OF_HEADS = _each(lambda tensor, shape: tensor.reshape(shape)",
        "tests/parity/test_recorded.py -k bert",
    ),
    "a bias that is dropped": Fault(
        "zoo/layers.py",
        "y = y + lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)",
        "pass",
        "tests/parity/test_recorded.py -k bert",
    ),
    "a rotation the wrong way round": Fault(
        "zoo/rotary.py",
        "[first * cosine - second * sine, second * cosine + first * sine]",
        "[first * cosine + second * sine, second * cosine - first * sine]",
        "tests/parity/test_recorded.py -k llama",
    ),
    "beams that go on from another's cache": Fault(
        "zoo/beam_search.py",
        "origin=_take(origin, chosen)",
        "origin=origin[:, :num_beams]",
        "tests/parity/test_recorded.py -k sequences",
    ),
    "a length penalty that is off by one": Fault(
        "zoo/beam_search.py",
        "_powers(tokens, config)[count + 1]",
        "_powers(tokens, config)[count]",
        "tests/parity/test_recorded.py -k sequences",
    ),
    "damage that is not looked for": Fault(
        "zoo/training/manifest.py",
        'return next((f"{name} has changed" for name in wanted if found[name] != expected[name]), None)',
        "return None",
        "tests/trust/test_damage.py",
    ),
    "micro-batches that count alike, however many tokens they have": Fault(
        "zoo/training/step.py",
        '        weight = metrics["weight"]\n        return jax.tree.map(lambda t, x: t + weight * x',
        '        weight = jnp.ones_like(metrics["weight"])\n        return jax.tree.map(lambda t, x: t + weight * x',
        "tests/training/test_training_sharding.py",
    ),
    "a resumed run that reads its data from the start": Fault(
        "zoo/training/loop.py",
        'iterator.set_state(decode_data_state(position["data"]))',
        'decode_data_state(position["data"])',
        "tests/training/test_resume.py tests/training/test_checkpoint.py",
    ),
    "padding that is scored": Fault(
        "zoo/tasks/losses.py",
        "return (nats * weights).sum(), (right * weights).sum()",
        "return nats.sum(), (right * weights).sum()",
        "tests/tasks/test_losses.py",
    ),
}


def is_caught(fault: Fault, copy: Path, whole: bool) -> bool:
    """Plant a fault, run the tests that should notice, and take it out again."""
    path = copy / fault.file
    text = path.read_text()
    if text.count(fault.right) != 1:
        sys.exit(f"{fault.file} has this {text.count(fault.right)} times, and the fault is one: {fault.right}")
    path.write_text(text.replace(fault.right, fault.wrong))
    tests = [] if whole else fault.tests.split()
    command = [sys.executable, "-m", "pytest", "-x", "-n", "2", *tests]
    # No __pycache__: a file that changes twice within its timestamp's second would be read from there.
    done = subprocess.run(
        command, cwd=copy, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True
    )
    path.write_text(text)
    failed = re.search(r"^\d+ failed", done.stdout, re.MULTILINE) is not None
    if done.returncode != 0 and not failed:
        sys.exit(f"pytest could not run:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(f"    {line[:150]}")
    return failed


def main() -> int:
    """Plant them all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="run the whole default tier, till its first failure")
    parser.add_argument("-k", default="", help="only faults whose name has this in it")
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "zoo"
        left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".pytest_cache", "runs")
        shutil.copytree(ROOT, copy, ignore=left_out)
        for name, fault in FAULTS.items():
            if options.k in name:
                caught = is_caught(fault, copy, options.all)
                print(f"{'caught' if caught else 'MISSED'}  {name}", flush=True)
                missed += [] if caught else [name]
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
