"""Time whole models beside transformers on torch: forward pass, training step and generation, on the same weights.

    python benchmarks/models.py --quick                    three models, a few minutes on two CPU cores
    python benchmarks/models.py                            all of it, an hour there
    python benchmarks/models.py --models gpt2 --works training --dtypes bfloat16
    python benchmarks/models.py --suite gpu                what bash benchmarks/gpu.sh runs
    python benchmarks/models.py --first-calls              three small models: cold, and in a second process

On CPUs each contender lives in a process of its own, with an empty compilation cache. Within a cell they run in turn,
in an order drawn anew each round, after their outputs were compared with those of torch in float32; one that is wrong
is named and left out. Each turn begins with a call that is not timed, but in decoding. With --warm each has its process
on any device, and is started once more, to find compiled what a user's cache keeps. Results go to models-<device>.json,
those of --first-calls to first-calls-<device>.json; at the end a page of that name shows them, with a plot. Needs jax,
flax, optax, jaxtyping and matplotlib; torch and transformers join them.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
# Else JAX takes most of a GPU's memory at once, and torch beside it finds none.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from benchmarks import model_page, model_peers, model_report, model_workers, timing
from benchmarks.contenders import Refused
from benchmarks.model_cells import CACHE, DECODE, DTYPES, FIRST_CALLS, MODELS, SUITES, WORKS, Cell
from benchmarks.model_problems import Problem
from benchmarks.model_workers import Failed, Worker
from benchmarks.options import RESULTS, Parser, positive
from benchmarks.timing import clock

BUDGETS = {"default": 20.0, "quick": 8.0, "gpu": 6.0, "small": 0.3, FIRST_CALLS: 10.0}
"""Seconds of timing a cell, by suite."""


def main(argv: list[str] | None = None) -> None:
    """Run the cells, print a table a cell, write JSON, a page and its plot."""
    options = parse(argv)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    record = model_report.Record(folder, options.resume, FIRST_CALLS if options.suite == FIRST_CALLS else "models")
    cells = [cell for cell in options.cells if not record.has(cell)]
    start = time.perf_counter()
    for index, cell in enumerate(cells):
        elapsed = time.perf_counter() - start
        if options.deadline_seconds is not None and elapsed > options.deadline_seconds:
            print(f"{len(cells) - index} of {len(cells)} cells are left out: {elapsed:.0f} s are over")
            break
        print(f"\n[{index + 1} of {len(cells)}, {clock(elapsed)} so far] {cell}", flush=True)
        run_cell(cell, options, record)
    record.write(finished=True)
    print(f"wrote {record.path}: {len(record.results)} rows in {clock(time.perf_counter() - start)}")
    for path in model_page.write_page(record.path):
        print(f"wrote {path}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options, and in `cells` the suite's cells that the lists leave."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", choices=SUITES, default="default", help="the cells to run")
    add("--quick", action="store_const", dest="suite", const="quick", help="the same as --suite quick")
    add("--first-calls", action="store_const", dest="suite", const=FIRST_CALLS,
        help=f"the same as --suite {FIRST_CALLS} --warm")  # fmt: skip
    add("--models", nargs="+", choices=MODELS, metavar="MODEL", help=", ".join(MODELS) + "; else all of the suite")
    add("--works", nargs="+", choices=WORKS, help="of the suite's cells, these alone")
    add("--dtypes", nargs="+", choices=DTYPES, help="of the suite's cells, these alone")
    add("--lengths", nargs="+", type=int, help="of the suite's cells, those of these lengths alone")
    add("--resume", action="store_true", help="go on with the results file, past the cells that it has")
    add("--no-peers", action="store_true", help="zoo alone, beside what the device can do at best")
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes most of the time")
    add("--together", action="store_true", help="one process for all on CPUs too: begins sooner, and disturbs figures")
    add("--warm", action="store_true", help="also time the first call of a process that finds everything compiled")
    add("--budget-seconds", type=positive(float), help="of timing a cell, all contenders together; else by the suite")
    add("--deadline-seconds", type=positive(float), help="after which no further cell is begun")
    add("--out", default=str(RESULTS), help="folder of the results (benchmarks/results)")
    options = parser.parse_args(argv)
    options.budget_seconds = options.budget_seconds or BUDGETS[options.suite]
    options.warm = options.warm or options.suite == FIRST_CALLS
    options.apart = options.warm or (jax.default_backend() == "cpu" and not options.together)
    options.cells = [
        cell
        for grid in SUITES[options.suite]
        for cell in grid.cells()
        if cell.model in (options.models or MODELS)
        and cell.work in (options.works or WORKS)
        and cell.dtype in (options.dtypes or DTYPES)
        and cell.length in (options.lengths or [cell.length])
    ]
    if not options.cells:
        parser.error(f"suite {options.suite} has no such cell; it has models "
                     f"{', '.join(dict.fromkeys(grid.model for grid in SUITES[options.suite]))}")  # fmt: skip
    return options


def run_cell(cell: Cell, options: argparse.Namespace, record: model_report.Record) -> None:
    """Check and time all contenders of a cell, and print its table."""
    record.ceilings.sample(cell.dtype)
    problem = Problem(cell)
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        errors: dict[str, float] = {}
        peaks: dict[str, int] = {}
        with Reference(cell, not options.no_peers, options.apart) as reference:
            for name in model_workers.names(problem, not options.no_peers, not options.no_compile):
                try:
                    worker = stack.enter_context(Worker(cell, name, apart=options.apart))
                    peaks[name] = worker.ask("peak")
                    errors[name] = model_report.check(cell, worker.ask("results"), reference, worker.exact)
                except (Refused, Failed) as reason:
                    record.skip(cell, name, str(reason))
                    continue
                workers.append(worker)
        if not workers:
            return
        _, slow = timing.measure(workers, options.budget_seconds, lambda worker, n: worker.ask("sample", n))
        for worker in slow:
            record.skip(cell, worker.name, f"a call takes longer than {timing.SLOW * options.budget_seconds:.3g} s")
        timed = [worker for worker in workers if worker not in slow]
        warm = {worker.name: worker.warm_seconds() for worker in timed} if options.warm else {}
        record.finish(problem, timed, errors, peaks, warm)


class Reference:
    """What a cell should give, in float32: by torch, or by zoo where that is missing."""

    def __init__(self, cell: Cell, peers: bool, apart: bool):
        """Start it."""
        exact = dataclasses.replace(cell, dtype="float32")
        ours, *_ = model_workers.names(Problem(exact), peers=False, compiled=False)
        try:
            self.worker = Worker(exact, model_peers.EAGER if peers and cell.work != CACHE else ours, apart=apart)
        except Refused:
            self.worker = Worker(exact, ours, apart=apart)
        self.results: dict[str, np.ndarray] = self.worker.ask("results")
        if cell.work != DECODE:
            self.worker.close()  # which in training holds gigabytes

    def __enter__(self) -> "Reference":
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close()

    def nats(self, tokens: np.ndarray) -> float:
        """What written tokens cost under the float32 model, each in the mean."""
        return self.worker.ask("nats", tokens)


if __name__ == "__main__":
    main()
