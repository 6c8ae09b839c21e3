"""What is kept and shown of a run: a record a contender, the table, and the JSON file, written after every cell."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

from benchmarks.ceilings import Ceilings
from benchmarks.contenders import Contender
from benchmarks.problems import BACKWARD_FACTOR, BOTH, DECODE, FORWARD, Cell, Problem
from benchmarks.timing import quartiles

FORMULAS = {
    "flops": "forward: 2 (H + Hv) x live pairs over batch and heads; forward+backward: 3.5 times that",
    "tflops": "flops / median time",
    "gb_per_second": "in decoding, bytes of the k and v that some query sees / median time",
    "fraction_of_matmul": "tflops / the best matrix product of the run in that dtype",
    "fraction_of_memory": "gb_per_second / the better of copy (read + written) and row sums (read) of the run",
    "intensity": "flops / bytes of inputs read once and outputs written once; in decoding of the k and v seen",
    "error": "worst of output and gradients: |x - float64| / |float64| over the queries checked",
    "worst_row_error": "the same of the worst row, against its own norm and the mean row's",
    "backward_milliseconds": "forward+backward less forward, of the medians",
    "temp_bytes": "JAX: by the compiler's memory analysis; torch on a GPU: peak less inputs and outputs",
    "milliseconds": "median over rounds; a sample is calls_per_sample calls back to back, the order drawn each round",
}


def device_name() -> str:
    """What the figures were made on: the accelerator's kind, or the CPU's number of cores."""
    device = jax.devices()[0]
    return f"cpu-{os.cpu_count()}-cores" if device.platform == "cpu" else device.device_kind


def file_stem(benchmark: str = "attention") -> str:
    """<benchmark>-<device>."""
    return f"{benchmark}-" + re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")


def processor() -> str:
    """The CPU's name and, as clouds give one name to several, its family and model where Linux tells them."""
    about = Path("/proc/cpuinfo")
    lines = [line.split(":", 1) for line in about.read_text().splitlines()] if about.exists() else []
    facts = {name.strip(): value[0].strip() for name, *value in lines if value}
    if not {"model name", "cpu family", "model"} <= facts.keys():
        return platform.processor() or platform.machine()
    return f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"


def read_earlier(path: Path, resume: bool) -> dict[str, Any]:
    """What an earlier run left to go on with; nothing where none is asked for. Figures of two machines do not mix."""
    if not resume or not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    other = earlier["environment"].get("processor", "an unknown one")
    if other != processor():
        raise SystemExit(f"--resume: {path} was measured on another processor ({other}; this is {processor()}); "
                         "go on there, or give another --out")  # fmt: skip
    return earlier


def environment(benchmark: str = "attention") -> dict[str, Any]:
    """Versions, device and command, to stand beside the figures."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "triton", "tokamax")
    packages += ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {
        "device": device_name(),
        "platform": jax.default_backend(),
        "machine": platform.machine(),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in packages if name in installed},
        "command": "python " + " ".join(map(shlex.quote, [f"benchmarks/{benchmark}.py", *sys.argv[1:]])),
    }


def fields(cell: Cell) -> dict[str, Any]:
    """A cell as JSON."""
    return {"case": cell.case, "direction": cell.direction, "dtype": cell.dtype} | dataclasses.asdict(cell.sizes)


class Record:
    """The results file."""

    def __init__(self, path: Path, resume: bool):
        self.path = path
        old = read_earlier(path, resume)
        self.ceilings = Ceilings.restore(old["ceilings"]) if old else Ceilings()
        self.results: list[dict] = old.get("results", [])
        self.skipped: list[dict] = old.get("skipped", [])
        self.done: list[dict] = old.get("cells_done", [])
        self.running = None
        if old.get("running"):  # what ran when the process ended is not tried again
            self.skipped.append(old["running"] | {"reason": "the process ended while it ran"})

    def skip(self, cell: Cell, name: str, reason: str) -> None:
        """Note that a contender was left out of a cell; said aloud where it is news."""
        if not any((s["name"], s["reason"]) == (name, reason) for s in self.skipped):
            print(f"    - {name}: {reason}", flush=True)
        self.skipped.append(fields(cell) | {"name": name, "reason": reason})

    def ended_process(self, cell: Cell, name: str) -> bool:
        """Whether a contender ended an earlier process in this cell."""
        entry = fields(cell) | {"name": name, "reason": "the process ended while it ran"}
        return entry in self.skipped

    def begin(self, cell: Cell, name: str) -> None:
        """Note, on disk, what runs now."""
        self.running = fields(cell) | {"name": name}
        self.write()

    def finish(self, cell: Cell, rows: list[dict]) -> None:
        """Add a cell's rows."""
        self.running = None
        self.results += rows
        self.done.append(fields(cell))
        self.write()

    def write(self, finished: bool = False) -> None:
        """Write the file."""
        for row in self.results:
            row |= fractions(row, self.ceilings)
        content = {
            "environment": environment(),
            "finished": finished,
            "ceilings": self.ceilings.record(),
            "formulas": FORMULAS,
            "results": self.results,
            "skipped": self.skipped,
            "running": self.running,
            "cells_done": self.done,
        }
        write_json(self.path, content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole, beside itself first: an interrupted write loses nothing."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def fractions(row: dict, ceilings: Ceilings) -> dict[str, float | None]:
    """What the row reaches of the device's ceilings, as known by now."""
    matmul, memory = ceilings.matmul.get(row["dtype"]), ceilings.memory
    speed = row["gb_per_second"]
    return {
        "fraction_of_matmul": row["tflops"] * 1e12 / matmul if matmul else None,
        "fraction_of_memory": speed * 1e9 / memory if speed and memory else None,
    }


def make_rows(
    problem: Problem,
    contenders: list[Contender],
    errors: dict[str, tuple[float, float]],
    num_rows: int,
    num_calls: int,
) -> list[dict]:
    """One record for each contender that was timed."""
    rows = []
    for c in contenders:
        low, seconds, high = quartiles(c.samples)
        decode = problem.cell.direction == DECODE
        rows.append(
            fields(problem.cell)
            | {
                "name": c.name,
                "kind": c.kind,
                "milliseconds": 1e3 * seconds,
                "quartile_milliseconds": [1e3 * low, 1e3 * high],
                "num_samples": len(c.samples),
                "calls_per_sample": num_calls,
                "live_pairs": problem.live_pairs,
                "flops": problem.flops,
                "tflops": problem.flops / seconds / 1e12,
                "needed_bytes": problem.needed_bytes,
                "intensity": problem.flops / problem.needed_bytes,
                "gb_per_second": problem.needed_bytes / seconds / 1e9 if decode else None,
                "error": errors[c.name][0],
                "worst_row_error": errors[c.name][1],
                "queries_checked": num_rows,
                "temp_bytes": c.temp_bytes,
                "compile_seconds": c.compile_seconds,
            }
        )
    return rows


def add_automatic(rows: list[dict], chosen: str) -> list[dict]:
    """A row "auto" from that of the backend it runs, and in it how far that is behind the best backend, in percent.

    `auto` compiles to the very same program, so that it is not timed a second time.
    """
    backends = {row["name"]: row for row in rows if row["kind"] == "backend"}
    if chosen not in backends:
        return rows
    best = min(backends.values(), key=lambda row: row["milliseconds"])
    behind = 100 * (backends[chosen]["milliseconds"] / best["milliseconds"] - 1)
    automatic = {"name": "auto", "kind": "auto", "runs": chosen, "best_backend": best["name"], "behind_percent": behind}
    return [backends[chosen] | automatic, *rows]


def add_backward(rows: list[dict], earlier: list[dict]) -> None:
    """Derive the backward pass alone where the same contender ran the forward pass of the same problem."""

    def key(row: dict) -> tuple:
        return tuple(row[name] for name in ("name", "case", "dtype", *"BTSNKHV"))

    forward = {key(row): row for row in earlier if row["direction"] == FORWARD}
    for row in rows:
        if row["direction"] == BOTH and key(row) in forward:
            milliseconds = row["milliseconds"] - forward[key(row)]["milliseconds"]
            flops = forward[key(row)]["flops"] * BACKWARD_FACTOR
            row["backward_milliseconds"] = milliseconds
            row["backward_tflops"] = flops / milliseconds / 1e9 if milliseconds > 0 else None


def show(rows: list[dict], ceilings: Ceilings) -> None:
    """Print a cell's table, fastest first."""
    decode = rows[0]["direction"] == DECODE
    rate, ceiling = ("GB/s", "of memory") if decode else ("TFLOP/s", "of matmul")
    print(f"    {'ms':>10} {rate:>9} {ceiling:>9} {'error':>8} {'temp MB':>9} {'compile s':>9}")
    for row in sorted(rows, key=lambda row: row["milliseconds"]):
        if row["name"] == "auto":
            continue
        share = fractions(row, ceilings)["fraction_of_memory" if decode else "fraction_of_matmul"]
        speed = row["gb_per_second"] if decode else row["tflops"]
        memory = "" if row["temp_bytes"] is None else f"{row['temp_bytes'] / 1e6:.1f}"
        print(
            f"    {row['milliseconds']:10.3f} {speed:9.3g} {'' if share is None else f'{share:.0%}':>9} "
            f"{row['error']:8.1e} {memory:>9} {row['compile_seconds']:9.1f}  {row['name']}"
        )
    for row in rows:
        if row["name"] == "auto":
            print(
                f"    auto runs {row['runs']}: within {row['behind_percent']:.0f} % of the best backend, "
                f"{row['best_backend']}"
            )
    sys.stdout.flush()
