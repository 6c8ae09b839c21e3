"""What models.py keeps and shows: a row a contender, the table, the JSON file."""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.ceilings import Ceilings
from benchmarks.model_cells import CACHE, DECODE, Cell
from benchmarks.model_peers import EAGER
from benchmarks.model_problems import Problem
from benchmarks.model_workers import Failed, Worker
from benchmarks.report import environment, file_stem, read_earlier, write_json
from benchmarks.timing import quartiles

TOLERANCE = {"float32": 2e-4, "bfloat16": 5e-2}
"""Largest relative error |x - reference| / |reference|, in the 2-norm, of outputs; and of training losses."""
NATS_TOLERANCE = 0.1
"""What the tokens of a decoder that rounds may cost more each than those of the float32 model, under that model."""
TIE_TOLERANCE = 1e-5
"""The same of a beam that another beat by a rounding error."""
FORMULAS = {
    "ratio": "median time / that of torch eager in the same cell; below 1 is faster",
    "tokens_per_second": "tokens read (padding is none) or, in decoding, written / median time, prompt included",
    "mfu": "operations of the model's matrix products (3 times the forward's in training) / median time / the best "
    "matrix product of the run in that dtype",
    "fraction_of_memory": "decoding: bytes of all weights / time of a token / the better of copy and row sums",
    "error": "2-norm of the difference from torch in float32, relative; in decoding the share of tokens that differ, "
    "or where weights or activations are rounded, nats a written token that these cost more under the float32 model",
    "first_call_seconds": "of a new process with an empty compilation cache; warm: with what the first one kept, which "
    "of zoo is what a user's cache keeps",
    "peak_bytes": "of memory in three calls, beyond what the process had before it made the model",
}


class Expected(Protocol):
    """What a cell should give."""

    results: dict[str, np.ndarray]

    def nats(self, tokens: np.ndarray) -> float:
        """What written tokens cost under the float32 model, each in the mean."""
        ...


def check(cell: Cell, found: dict[str, np.ndarray], expected: Expected, exact: bool = True) -> float:
    """The error of a contender's results; raises Failed where it is too large.

    `exact` is whether its weights were rounded no further than to the cell's dtype.
    """
    (name,) = found
    if name == "tokens":
        written, exact = slice(-cell.new_tokens, None), exact and cell.dtype == "float32"
        error, tolerance = float((found[name][:, written] != expected.results[name][:, written]).mean()), 0.0
        if not exact or (error and cell.num_beams > 1):
            error = expected.nats(found[name]) - expected.nats(expected.results[name])
            tolerance = TIE_TOLERANCE if exact else NATS_TOLERANCE
    else:
        x, y = np.asarray(found[name], np.float64), np.asarray(expected.results[name], np.float64)
        if cell.padded:
            lengths = np.linspace(cell.length // 4, cell.length, cell.batch).round().astype(int)
            counted = np.arange(cell.length) < lengths[:, None]
            x, y = x[counted], y[counted]
        error = float(np.linalg.norm(x - y) / np.linalg.norm(y))
        tolerance = TOLERANCE[cell.dtype]
    if not error <= tolerance:
        raise Failed(f"WRONG: error {error:.1e}, and {tolerance:.1e} is allowed")
    return error


class Record:
    """The results file."""

    def __init__(self, folder: Path, resume: bool, name: str = "models"):
        self.path = folder / f"{file_stem(name)}.json"
        old = read_earlier(self.path, resume)
        self.ceilings = Ceilings.restore(old["ceilings"]) if old else Ceilings()
        self.results: list[dict[str, Any]] = old.get("results", [])
        self.skipped: list[dict[str, Any]] = old.get("skipped", [])

    def has(self, cell: Cell) -> bool:
        """Whether an earlier run measured it."""
        return any(row["cell"] == str(cell) for row in self.results)

    def skip(self, cell: Cell, name: str, reason: str) -> None:
        """Note and say that a contender was left out of a cell."""
        print(f"    - {name}: {reason}", flush=True)
        self.skipped.append(dataclasses.asdict(cell) | {"name": name, "reason": reason})

    def finish(
        self,
        problem: Problem,
        timed: list[Worker],
        errors: dict[str, float],
        peaks: dict[str, int],
        warm: dict[str, float],
    ) -> None:
        """Add a cell's rows, print them, and write the file."""
        rows = [
            self._row(problem, worker)
            | {
                "error": errors[worker.name],
                "peak_bytes": peaks[worker.name],
                "first_call_seconds": worker.first_call_seconds,
                "warm_first_call_seconds": warm.get(worker.name),
            }
            for worker in timed
        ]
        eager = next((row["milliseconds"] for row in rows if row["name"] == EAGER), None)
        for row in rows:
            row["ratio"] = None if eager is None else row["milliseconds"] / eager
        self.results += rows
        self.write()
        if rows:
            show(rows)

    def _row(self, problem: Problem, worker: Worker) -> dict[str, Any]:
        low, seconds, high = quartiles(worker.samples)
        cell, matmul = problem.cell, self.ceilings.matmul[problem.cell.dtype]
        decoding, weight_bytes = cell.work in (DECODE, CACHE), worker.weight_bytes or problem.weight_bytes
        per_token = seconds / max(1, cell.new_tokens)
        return dataclasses.asdict(cell) | {
            "cell": str(cell),
            "name": worker.name,
            "kind": worker.kind,
            "ratio": None,
            "milliseconds": 1e3 * seconds,
            "quartile_milliseconds": [1e3 * low, 1e3 * high],
            "num_samples": len(worker.samples),
            "tokens_per_second": problem.num_tokens / seconds,
            "flops": problem.flops,
            "mfu": None if problem.flops is None else problem.flops / seconds / matmul,
            "fraction_of_memory": weight_bytes / per_token / self.ceilings.memory if decoding else None,
        }

    def write(self, finished: bool = False) -> None:
        """Write the file."""
        content = {
            "environment": environment("models"),
            "finished": finished,
            "ceilings": self.ceilings.record(),
            "formulas": FORMULAS,
            "results": self.results,
            "skipped": self.skipped,
        }
        write_json(self.path, content)


def show(rows: list[dict]) -> None:
    """Print a cell's table, fastest first."""
    share = "of memory" if rows[0]["work"] in (DECODE, CACHE) else "MFU"
    columns = {"ratio": 6, "ms": 10, "tokens/s": 10, share: 9, "error": 8, "peak MB": 8, "cold s": 7, "warm s": 7}
    print("   ", *(f"{name:>{width}}" for name, width in columns.items()))
    for row in sorted(rows, key=lambda row: row["milliseconds"]):
        part = row["mfu"] if row["mfu"] is not None else row["fraction_of_memory"]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        warm = "" if row["warm_first_call_seconds"] is None else f"{row['warm_first_call_seconds']:.1f}"
        print(
            f"    {ratio:>6} {row['milliseconds']:10.2f} {row['tokens_per_second']:10,.0f} {part:9.0%} "
            f"{row['error']:8.1e} {row['peak_bytes'] / 1e6:8.0f} {row['first_call_seconds']:7.1f} {warm:>7} ",
            row["name"],
            flush=True,
        )
