"""Time whole models beside transformers on torch: forward pass, training step and generation, on the same weights.

    python benchmarks/models.py --quick                    three models, a few minutes on two CPU cores
    python benchmarks/models.py                            all of it, an hour there
    python benchmarks/models.py --models gpt2 --works training --dtypes bfloat16
    python benchmarks/models.py --suite gpu                what bash benchmarks/gpu.sh runs

Within a cell all contenders run in turn, in an order drawn anew each round, after their outputs were compared with
those of torch in float32; one that is wrong is named and left out. With --costs each is also started twice in a process
of its own, with an empty and then a filled compilation cache, for compile time and peak memory. Results go to
models-<device>.json and .png. Needs jax, flax, optax, jaxtyping and matplotlib; torch and transformers join them.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
# Else JAX takes most of a GPU's memory at once, and torch beside it finds none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks import model_contenders, model_costs, model_peers, model_plots, model_report, timing
from benchmarks.contenders import Contender, Refused
from benchmarks.model_cells import DECODE, DTYPES, MODELS, SUITES, TRAINING, WORKS, Cell
from benchmarks.model_problems import Problem
from benchmarks.options import RESULTS, Parser, positive
from benchmarks.timing import clock
from zoo.training.host import keep_freed_memory

BUDGETS = {"default": 20.0, "quick": 8.0, "gpu": 6.0, "small": 0.3}
"""Seconds of timing a cell, by suite."""


def main(argv: list[str] | None = None) -> None:
    """Run the cells, print a table a cell, write JSON and a plot."""
    options = parse(argv)
    if options.child is not None:
        return model_costs.run_child(Cell(**json.loads(options.child[0])), options.child[1], makers)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    record = model_report.Record(folder)
    start = time.perf_counter()
    for index, cell in enumerate(options.cells):
        elapsed = time.perf_counter() - start
        if options.deadline_seconds is not None and elapsed > options.deadline_seconds:
            print(f"{len(options.cells) - index} of {len(options.cells)} cells are left out: {elapsed:.0f} s are over")
            break
        print(f"\n[{index + 1} of {len(options.cells)}, {clock(elapsed)} so far] {cell}", flush=True)
        if cell.work == TRAINING:
            keep_freed_memory()  # as train.py does
        run_cell(cell, options, record)
        free_memory()
    record.write(finished=True)
    print(f"wrote {record.path}: {len(record.results)} rows in {clock(time.perf_counter() - start)}")
    for path in model_plots.draw(record.path):
        print(f"wrote {path}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options, and in `cells` the suite's cells that the lists leave."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", choices=SUITES, default="default", help="the cells to run")
    add("--quick", action="store_const", dest="suite", const="quick", help="the same as --suite quick")
    add("--models", nargs="+", choices=MODELS, metavar="MODEL", help=", ".join(MODELS) + "; else all of the suite")
    add("--works", nargs="+", choices=WORKS, help="of the suite's cells, these alone")
    add("--dtypes", nargs="+", choices=DTYPES, help="of the suite's cells, these alone")
    add("--no-peers", action="store_true", help="zoo alone, beside what the device can do at best")
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes most of the time")
    add("--costs", action="store_true", help="compile time and peak memory, each in processes of its own")
    add("--budget-seconds", type=positive(float), help="of timing a cell, all contenders together; else by the suite")
    add("--deadline-seconds", type=positive(float), help="after which no further cell is begun")
    add("--out", default=str(RESULTS), help="folder of the results (benchmarks/results)")
    add("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.budget_seconds = options.budget_seconds or BUDGETS[options.suite]
    options.cells = [
        cell
        for grid in SUITES[options.suite]
        for cell in grid.cells()
        if cell.model in (options.models or MODELS)
        and cell.work in (options.works or WORKS)
        and cell.dtype in (options.dtypes or DTYPES)
    ]
    if not options.cells:
        parser.error(f"suite {options.suite} has no such cell; it has models "
                     f"{', '.join(dict.fromkeys(grid.model for grid in SUITES[options.suite]))}")  # fmt: skip
    return options


def makers(problem: Problem, peers: bool = True, compiled: bool = True) -> dict[str, Any]:
    """What makes each contender of a cell, by name."""
    found = model_contenders.contenders(problem)
    if peers:
        found |= model_peers.contenders(problem)
    if not compiled:
        found.pop(model_peers.COMPILED, None)
    return found


def run_cell(cell: Cell, options: argparse.Namespace, record: model_report.Record) -> None:
    """Check and time all contenders of a cell, and print its table."""
    record.ceilings.sample(cell.dtype)
    problem = Problem(cell)
    expected = reference(cell, peers=not options.no_peers)
    timed: list[Contender] = []
    errors: dict[str, float] = {}
    costs: dict[str, dict] = {}
    for name, make in makers(problem, not options.no_peers, not options.no_compile).items():
        try:
            contender = make()
            errors[name] = model_report.check(cell, contender.results(), expected, contender.exact)
        except Refused as refusal:
            record.skip(cell, name, str(refusal))
            continue
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            record.skip(cell, name, f"{type(error).__name__}: {lines[0][:200]}")
            continue
        timed.append(contender)
    _, slow = timing.measure(timed, options.budget_seconds) if timed else (1, [])
    for contender in slow:
        record.skip(cell, contender.name, f"a call takes longer than {timing.SLOW * options.budget_seconds:.3g} s")
    timed = [contender for contender in timed if contender.samples]
    if options.costs:
        names = [contender.name for contender in timed]
        timed_samples = {c.name: (c.samples, c.compile_seconds, c.kind, c.weight_bytes) for c in timed}
        del contender, timed
        free_memory()
        costs = {name: model_costs.measure(cell, name) for name in names}
        timed = [model_report.Timed(name, *timed_samples[name]) for name in names]
    record.finish(problem, timed, errors, costs)


def reference(cell: Cell, peers: bool) -> dict:
    """What the cell should give, in float32: by torch, or by zoo where that is missing."""
    exact = Problem(dataclasses.replace(cell, dtype="float32"))
    found, nats = makers(exact, peers), functools.partial(model_contenders.nats_per_token, exact)
    for name in (model_peers.EAGER, *found):
        try:
            return found[name]().results() | ({"nats": nats} if cell.work == DECODE else {})
        except (Refused, KeyError):
            continue
    raise AssertionError("zoo always runs")


def free_memory() -> None:
    """Give back what a cell held."""
    gc.collect()
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
