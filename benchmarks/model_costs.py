"""Compile time and peak memory of a contender, in processes of its own: what others left behind is not counted."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from benchmarks.model_cells import TRAINING, Cell
from benchmarks.model_problems import Problem
from zoo.training.host import keep_freed_memory

CALLS = 3
"""Calls whose peak memory counts, the first among them."""


def measure(cell: Cell, name: str) -> dict:
    """Start the contender twice with one compilation cache; the row's `first_call_seconds` and `peak_bytes`."""
    with tempfile.TemporaryDirectory() as cache:
        child = [sys.executable, str(Path(__file__).with_name("models.py")), "--child"]
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torch",
        }
        runs = []
        for _ in range(2):
            done = subprocess.run([*child, json.dumps(dataclasses.asdict(cell)), name], env=environment,
                                  capture_output=True, text=True)  # fmt: skip
            if done.returncode:
                return {"costs_failed": done.stderr.strip().splitlines()[-1][:200]}
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {"first_call_seconds": [run["seconds"] for run in runs], "peak_bytes": runs[-1]["peak_bytes"]}


def run_child(cell: Cell, name: str, makers) -> None:
    """Print one contender's costs as a line of JSON."""
    if cell.work == TRAINING:
        keep_freed_memory()
    problem = Problem(cell)
    jax.block_until_ready(problem.params)
    if name.startswith("torch"):
        from benchmarks.model_peers import import_libraries

        import_libraries()
    before = _reset_peak()
    contender = makers(problem)[name]()
    for _ in range(CALLS - 1):
        contender.wait(contender.start())
    print(json.dumps({"seconds": contender.compile_seconds, "peak_bytes": _peak() - before}))


def _reset_peak() -> int:
    """Bytes held now, from which the peak counts anew."""
    if jax.default_backend() != "cpu":
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    """Most bytes held since."""
    if jax.default_backend() == "cpu":
        return _status("VmHWM")
    torch = sys.modules.get("torch")
    ours = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return max(ours, torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else 0)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
