"""The command line of attention.py: a suite of grids, and lists that replace theirs."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.contenders import backend_names
from benchmarks.peers import PEERS
from benchmarks.problems import ALL_CASES, DIRECTIONS, DTYPES, Cell
from benchmarks.suites import SUITES, Grid

BUDGETS = {"default": 3.0, "quick": 0.6, "gpu": 1.5, "small": 0.2}
"""Seconds of timing a cell, by suite; compiling and checking come on top."""
RESULTS = Path(__file__).parent / "results"


class Parser(argparse.ArgumentParser):
    """An error is one line."""

    def error(self, message: str):
        """Exit with the message alone."""
        self.exit(2, f"error: {message}; see --help\n")


def parse(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """Options, and in `work` the cells, each with the grid that it comes from."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", choices=SUITES, default="default", help="the grids to run; the lists below replace theirs")
    add("--quick", action="store_const", dest="suite", const="quick", help="the same as --suite quick")
    add("--budget-seconds", type=positive(float), help="of timing a cell, all contenders together; else by the suite")
    add("--deadline-seconds", type=positive(float), help="after which no further cell is begun")
    add("--square-up-to", type=positive(int), default=4096, metavar="S", help="longest length for S x S memory (4096)")
    add("--resume", action="store_true", help="go on with the results file, past the cells that it has")
    add("--out", default=str(RESULTS), help="folder of the results (benchmarks/results)")
    add_lists(parser)
    options = parser.parse_args(argv)
    if Path(options.out).exists() and not Path(options.out).is_dir():
        parser.error(f"--out {options.out} is a file; give a folder")
    options.budget_seconds = options.budget_seconds or BUDGETS[options.suite]
    options.work = list(choose_cells(parser, options).items())
    return options


def add_lists(parser: Parser) -> None:
    """An option for each field of a grid."""
    whole, backends = positive(int), ("auto", *backend_names())
    add = parser.add_argument_group("in place of the suite's own lists").add_argument
    add("--cases", nargs="+", choices=ALL_CASES, metavar="CASE", help=", ".join(ALL_CASES))
    add("--directions", nargs="+", choices=DIRECTIONS, help="decode: one query against a cache of S keys")
    add("--dtypes", nargs="+", choices=DTYPES)
    add("--lengths", nargs="+", type=whole, metavar="S", help="queries and keys; in decoding, keys")
    add("--head-sizes", nargs="+", type=whole, metavar="H")
    add("--heads", nargs="+", type=whole, metavar="N", help="query heads")
    add("--kv-heads", nargs="+", type=whole, metavar="K", help="key heads; else as many as query heads")
    add("--tokens", type=whole, help="queries a call: the batch is tokens / length, at least 1")
    add("--batches", nargs="+", type=whole, metavar="B", help="batches in decoding")
    add("--backends", nargs="*", choices=backends, metavar="NAME", help=f"{', '.join(backends)}; else all")
    said = f"{', '.join(PEERS)}; else all (torch-flex on GPUs only, where it compiles in seconds)"
    add("--peers", nargs="*", choices=PEERS, metavar="NAME", help=said)


def choose_cells(parser: Parser, options: argparse.Namespace) -> dict[Cell, Grid]:
    """The suite's cells after the lists given; a cell of several grids is the first one's."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Grid)}
    given = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items() if x is not None}
    work: dict[Cell, Grid] = {}
    for grid in SUITES[options.suite]:
        grid = dataclasses.replace(grid, **given)
        for heads, kv_heads in ((n, k) for n in grid.heads for k in grid.kv_heads):
            if kv_heads is not None and heads % kv_heads:
                parser.error(f"{kv_heads} key heads do not divide {heads} query heads: change --heads or --kv-heads")
        for cell in grid.cells():
            if cell.refusal is None:
                work.setdefault(cell, grid)
    if not work:
        parser.error(f"no cell is left: {next(grid.cells()).refusal}")
    return work


def positive(kind: type):
    """A parser of positive numbers."""

    def parse_number(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < np.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number above 0")
        return value

    return parse_number
