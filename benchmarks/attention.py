"""Time every attention backend and its peers side by side, beside what the device can do at best.

    python benchmarks/attention.py --quick                    two minutes on two CPU cores
    python benchmarks/attention.py --suite gpu                what bash benchmarks/gpu.sh runs
    python benchmarks/attention.py --cases causal window --lengths 1024 8192 --dtypes bfloat16 --directions forward

One run times everything in turn, in an order drawn anew each round. Before an implementation is timed its output and
its gradients are compared with a float64 reference; one that fails is named with its reason and left out. Results go to
attention-<device>.json, written after every cell, and to three plots beside it: .png (throughput against length),
-roofline.png and -memory.png. Needs jax, flax, numpy and matplotlib; torch and tokamax join where they are installed.
"""

import argparse
import functools
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
# Else JAX takes most of a GPU's memory at once, and torch beside it finds none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

from benchmarks import plots, timing
from benchmarks.contenders import Contender, Refused, automatic, backend, backend_names
from benchmarks.options import parse
from benchmarks.peers import PEERS, default_peers
from benchmarks.problems import Cell, Problem
from benchmarks.reference import ROW_FACTOR, TOLERANCE, Reference, make_reference
from benchmarks.report import Record, add_automatic, add_backward, fields, file_stem, make_rows, show
from benchmarks.suites import Grid
from benchmarks.timing import clock


def main(argv: list[str] | None = None) -> None:
    """Run the grid, print a table a cell, write JSON and plots."""
    options = parse(argv, __doc__)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder / f"{file_stem()}.json", options.resume)
    work = [(cell, grid) for cell, grid in options.work if fields(cell) not in record.done]
    start, finished = time.perf_counter(), True
    for index, (cell, grid) in enumerate(work):
        elapsed = time.perf_counter() - start
        if options.deadline_seconds is not None and elapsed > options.deadline_seconds:
            print(f"{len(work) - index} of {len(work)} cells are left out: {options.deadline_seconds:.0f} s are over")
            finished = False
            break
        left = f", about {clock(elapsed / index * (len(work) - index))} left" if index else ""
        print(f"\n[{index + 1} of {len(work)}, {clock(elapsed)} so far{left}] {cell}", flush=True)
        rows = run_cell(cell, grid, options, record)
        record.finish(cell, rows)
        free_memory()
    record.write(finished)
    for path in plots.draw(record.path):
        print(f"wrote {path}")
    print(f"wrote {record.path}: {len(record.results)} rows in {clock(time.perf_counter() - start)}")


def run_cell(cell: Cell, grid: Grid, options: argparse.Namespace, record: Record) -> list[dict]:
    """Check and time all contenders on one problem, and print the table."""
    record.ceilings.sample(cell.dtype)
    problem = Problem(cell)
    reference = make_reference(problem)
    chosen = automatic(problem)
    contenders, errors = [], {}
    for name, make in makers(problem, grid, chosen, options.square_up_to).items():
        if record.ended_process(cell, name):
            continue
        record.begin(cell, name)
        contender, reason = prepare(make, reference, errors)
        if contender is None:
            record.skip(cell, name, reason)
        else:
            contenders.append(contender)
    num_calls, slow = timing.measure(contenders, options.budget_seconds) if contenders else (1, [])
    for contender in slow:
        record.skip(cell, contender.name, f"a call takes longer than {timing.SLOW * options.budget_seconds:.3g} s")
    timed = [contender for contender in contenders if contender.samples]
    rows = make_rows(problem, timed, errors, reference.num_rows, num_calls)
    if grid.backends is None or "auto" in grid.backends:
        rows = add_automatic(rows, chosen)
    add_backward(rows, record.results)
    if rows:
        show(rows, record.ceilings)
    return rows


def makers(problem: Problem, grid: Grid, chosen: str, square_up_to: int) -> dict[str, Callable[[], Contender]]:
    """What makes each contender of a cell, by name; `auto` stands for the backend `chosen`."""
    names = ("auto", *backend_names()) if grid.backends is None else grid.backends
    found = {name: functools.partial(backend, name, problem, square_up_to) for name in names if name != "auto"}
    if "auto" in names:
        found[chosen] = functools.partial(backend, chosen, problem, problem.cell.sizes.S)
    for name in default_peers() if grid.peers is None else grid.peers:
        found[name] = functools.partial(PEERS[name], problem, square_up_to)
    return found


def prepare(make, reference: Reference, errors: dict) -> tuple[Contender | None, str]:
    """Compile a contender and compare it with the reference; (None, reason) where it cannot run or is wrong."""
    try:
        contender = make()
        errors[contender.name] = error, worst_row = reference.errors(contender.results(reference))
        if not (error <= TOLERANCE[reference.dtype] and worst_row <= ROW_FACTOR * TOLERANCE[reference.dtype]):
            # An error that moves is a race, not a mistake in the formula.
            again, _ = reference.errors(contender.results(reference))
            return None, f"WRONG: error {error:.1e}, at the worst row {worst_row:.1e}; a second call: {again:.1e}"
    except Refused as refusal:
        return None, str(refusal)
    except Exception as error:
        check_device(error)
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0][:200]}"
    return contender, ""


def check_device(error: Exception) -> None:
    """End the process where the device no longer answers: nothing after could be trusted."""
    try:
        jnp.ones(8).sum().block_until_ready()
    except Exception:
        print(f"the device is lost after {type(error).__name__}: run again with --resume", file=sys.stderr)
        sys.exit(3)


def free_memory() -> None:
    """Give back what a cell held; JAX and torch share a GPU."""
    gc.collect()
    if "torch" in sys.modules and jax.default_backend() == "gpu":
        sys.modules["torch"].cuda.empty_cache()


if __name__ == "__main__":
    main()
