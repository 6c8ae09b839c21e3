"""What a compiled program says of itself: the collectives that it runs, and the largest arrays that it makes.

Read from the optimised HLO text of one device, in which shapes are those of its share. The body of a loop counts as
often as the loop turns, where the compiler knows that; otherwise once. Schedules and overlap are left out.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_BYTES = {"pred": 1, "c64": 8, "c128": 16}  # others say their bits: f32, bf16, s8, f8e4m3fn, u4
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WHERE = re.compile(r'op_name="([^"]*)"')

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# These give a view of arrays that others made, or hand them on.
_NOT_MADE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "call", "conditional",
             "optimization-barrier", "after-all", "partition-id"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Collective:
    """All collectives of one kind in one run of the program."""

    kind: str
    count: int
    """How often they run, loops' turns counted."""
    payload: int
    """Bytes that they give one device."""
    sent: int
    """Bytes that one device sends, where they run round a ring."""


@dataclass(frozen=True, kw_only=True)
class Temporary:
    """An array that the program makes on its way."""

    shape: str
    """As HLO writes it: f32[8,1024]."""
    num_bytes: int
    """On one device."""
    where: str
    """What made it: the path that JAX gave the operation."""


@dataclass
class _Instruction:
    shape: str
    kind: str
    line: str


@dataclass
class _Computation:
    instructions: list[_Instruction] = field(default_factory=list)
    called: list[tuple[str, int, bool]] = field(default_factory=list)
    """Names, how often each is run, and whether its arrays are real (those inside of a fusion are not)."""


def read_collectives(text: str, num_devices: int) -> list[Collective]:
    """The collectives of a program, by kind, those that send most first."""
    found: dict[str, list[int]] = {}
    for instruction, times, _ in _walk(text):
        kind = instruction.kind.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        group = _group_size(instruction.line, num_devices)
        if group == 1:
            continue
        payload, sent = _traffic(kind, instruction, group)
        totals = found.setdefault(kind, [0, 0, 0])
        for place, value in enumerate((1, payload, sent)):
            totals[place] += times * value
    made = [Collective(kind=kind, count=n, payload=payload, sent=sent) for kind, (n, payload, sent) in found.items()]
    return sorted(made, key=lambda collective: -collective.sent)


def read_temporaries(text: str, number: int) -> list[Temporary]:
    """The largest arrays that a program makes, each shape and place once. They need not be alive together."""
    largest: dict[tuple[str, str], int] = {}
    for instruction, _, is_real in _walk(text):
        if not is_real or instruction.kind in _NOT_MADE or instruction.kind.endswith("-done"):
            continue
        where = _WHERE.search(instruction.line)
        path = where[1] if where else instruction.kind
        for kind, sizes in _ARRAY.findall(instruction.shape):
            largest[f"{kind}[{sizes}]", path] = _array_bytes(kind, sizes)
    ordered = sorted(largest.items(), key=lambda item: -item[1])[:number]
    return [Temporary(shape=shape, num_bytes=size, where=path) for (shape, path), size in ordered]


def _traffic(kind: str, instruction: _Instruction, group: int) -> tuple[int, int]:
    """(bytes given, bytes sent) of one run on one device: ring algorithms (Patarasuk & Yuan 2009)."""
    sizes = [_array_bytes(*array) for array in _ARRAY.findall(instruction.shape)]
    if instruction.kind == f"{kind}-start" and kind in ("all-gather", "collective-permute"):
        # What goes in stands beside what comes out, and a permutation's semaphores after both.
        sizes = sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    size, others = sum(sizes), group - 1
    if kind == "all-reduce":
        return size, 2 * size * others // group
    if kind == "reduce-scatter":
        return size, size * others
    if kind == "collective-permute":
        return size, size
    return size, size * others // group


def _group_size(line: str, num_devices: int) -> int:
    """How many devices take part in a collective together; the three ways in which HLO writes groups."""
    if "source_target_pairs=" in line:
        return num_devices if re.search(r"source_target_pairs=\{\{", line) else 1
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", match[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return num_devices


def _walk(text: str) -> Iterator[tuple[_Instruction, int, bool]]:
    """Each instruction with how often it runs, and whether its array is real."""
    computations, entry = _parse(text)
    waiting = [(entry, 1, True)]
    while waiting:
        name, times, is_real = waiting.pop()
        computation = computations[name]
        for instruction in computation.instructions:
            yield instruction, times, is_real
        for called, turns, real in computation.called:
            if called in computations:
                waiting.append((called, times * turns, is_real and real))


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation()
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], _Computation())
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            _, shape, kind = found.groups()
            current.instructions.append(_Instruction(shape, kind, line))
            trips = _TRIPS.search(line)
            for role, names in _CALLED.findall(line):
                turns = int(trips[1]) if trips and role in ("body", "condition") else 1
                is_real = kind in ("while", "call", "conditional")
                current.called += [(name, turns, is_real) for name in re.findall(r"%([\w.\-]+)", names)]
    if entry not in computations:
        raise ValueError("this is no HLO text: it has no ENTRY computation")
    return computations, entry


def _array_bytes(kind: str, sizes: str) -> int:
    bits = re.match(r"[a-z]+(\d+)", kind)
    size = _BYTES[kind] if kind in _BYTES else int(bits[1]) / 8 if bits else 0
    return math.ceil(size * math.prod(map(int, filter(None, sizes.split(",")))))
