"""What a compiled program of one device does: its arrays' shapes and its collectives, read from the HLO's text."""

import re
from typing import NamedTuple

ARRAY = re.compile(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]")
LINE = re.compile(r"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z-]*)\(")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Result(NamedTuple):
    """One array that an operation gives."""

    operation: str
    shape: tuple[int, ...]
    source: str
    """Where in the program it comes from."""


def results(text: str) -> list[Result]:
    """All arrays that the operations of a program give; those of the start of an asynchronous one by its name."""
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match:
            source = re.search(r'op_name="([^"]*)"', line)
            for shape in ARRAY.findall(match[1]):
                sizes = tuple(map(int, shape.split(","))) if shape else ()
                found.append(Result(match[2].removesuffix("-start"), sizes, source[1] if source else ""))
    return found


def collectives(text: str) -> list[Result]:
    """What devices tell each other."""
    return [result for result in results(text) if result.operation in COLLECTIVES]
