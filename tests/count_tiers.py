"""Count what both tiers prove, and fail where something is in neither: `python tests/count_tiers.py`.

Counted are architectures with their heads, README's promises, and the attention op's backends. What was proven once
stays: the numbers below are the least that there may be.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

# As a script it stands in tests: the tests' own modules and this checkout's zoo come first.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(folder) for folder in (ROOT / "tests", ROOT / "tests" / "parity", ROOT)]

import conftest  # noqa: F401  before JAX is imported
import pytest
import small

from zoo.kernels.attention import BACKENDS

LEAST = {"architectures x heads": 203, "promises": 34, "backends": 9}
PROMISE = re.compile(r"^\| .* \| \[(\w+)\]\((tests/\S+\.py)\) \|$", re.MULTILINE)


class Collector:
    """A plugin of pytest that keeps the tests of both tiers."""

    def __init__(self):
        self.default: list[str] = []
        self.slow: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            if not item.get_closest_marker("peers"):
                (self.slow if item.get_closest_marker("slow") else self.default).append(item.nodeid)


def collect() -> Collector:
    """Collect every test without running any."""
    collector = Collector()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = pytest.main(["--collect-only", "-qq", "-m", "", str(ROOT / "tests")], plugins=[collector])
    if code != 0:
        sys.exit(f"{said.getvalue()}\npytest could not collect the tests (exit {int(code)})")
    return collector


def wanted() -> dict[str, dict[str, re.Pattern]]:
    """List what has to be proven: for each kind the names, and a pattern that the id of a test which proves it has."""
    promises = PROMISE.findall((ROOT / "README.md").read_text())
    return {
        "architectures x heads": {
            f"{name}, {head}": re.compile(rf"^tests/parity/test_recorded\.py::test_equals\w+\[{name}-{head}\]$")
            for name, head in small.CASES
        },
        "promises": {test: re.compile(rf"^{re.escape(file)}::{test}(\[|$)") for test, file in promises},
        "backends": {name: re.compile(rf"^tests/kernels/.*(?<![a-z]){name}(?!_tpu|[a-z])") for name in BACKENDS},
    }


def main() -> int:
    """Print the table; return the exit status."""
    collector, faults = collect(), []
    print(f"{'':24s}{'default':>9s}{'slow':>9s}{'either':>9s}")
    print(f"{'tests':24s}{len(collector.default):9d}{len(collector.slow):9d}"
          f"{len(collector.default) + len(collector.slow):9d}")  # fmt: skip
    for kind, patterns in wanted().items():
        found = [
            {name for name, pattern in patterns.items() if any(map(pattern.search, tests))}
            for tests in (collector.default, collector.slow)
        ]
        proven = found[0] | found[1]
        print(f"{kind:24s}{len(found[0]):9d}{len(found[1]):9d}{len(proven):9d}")
        faults += [f"{kind}: no test of either tier proves {name}" for name in patterns if name not in proven]
        if len(proven) < LEAST[kind]:
            faults.append(f"{kind}: {len(proven)}, and there were {LEAST[kind]}")
    print(*faults, sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
