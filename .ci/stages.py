"""Run what must pass before anything lands, in stages whose times are printed.

Lint, format and types come first; then README's own test command (the default tier), the slow tier, checked
annotations, the default recipe and the benchmarks, cut short, parity with torch, and real checkpoints. Each test runs
once. The run fails, with the slowest tests named, where tests take more CPU time than their budget: wall time would
tell who else uses the machine. `stages.py NAME ...` runs the stages of these names alone.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PYTHON = ".venv/bin/python"
UV = f".venv/bin/uv pip install --quiet --python {PYTHON}"
PYTEST = f"{PYTHON} -m pytest -n 2"
README_TESTS = re.search(r"^python3 -m venv .*pytest.*$", (ROOT / "README.md").read_text(), re.MULTILINE)[0]
TEMPORARY = tempfile.mkdtemp(prefix="zoo-ci-")

BROWSER = """
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 ||
    echo "== NOT TESTED: the inspection's page in a browser; chromium and chromedriver could not be installed"
fi
"""

STAGES = {
    "install": f"""
        python3 -m venv .venv
        .venv/bin/pip install --quiet uv
        {UV} -e '.[test,lint]'
        {BROWSER}
    """,
    "lint": f"""
        {PYTHON} -m ruff check .
        {PYTHON} -m ruff format --check .
        {PYTHON} -m pyright --pythonpath {PYTHON}
    """,
    "tiers": f"{PYTHON} tests/count_tiers.py",
    "default tests": README_TESTS,
    "slow tests": f'{PYTEST} -m "slow and not peers"',
    # Two are left out: one gives a wrong value on purpose, one a model whose parameters are NumPy arrays.
    "annotations": f"""
        {PYTEST} --jaxtyping-packages=zoo,annotations.check -k "not remat_is_refused and not what_a_user_sees" \\
          tests/test_transformer.py tests/test_dual.py tests/test_image_tokens.py tests/tasks/test_losses.py
    """,
    "recipe": f"""
        {PYTHON} train.py --training.num-steps 4 --training.evaluate-every None --folder {TEMPORARY}/run
        {PYTHON} evaluate.py {TEMPORARY}/run --prompt "def " --max-new-tokens 16
    """,
    "benchmarks": f"SMALL=1 OUT={TEMPORARY}/results PYTHON={PYTHON} bash benchmarks/gpu.sh",
    # The CPU build of torch: other ways of asking for it bring gigabytes of CUDA.
    "install peers": f"""
        .venv/bin/pip install --quiet torch==2.13.0 "transformers>=5.20"
        {UV} -e '.[lm-eval,wandb,trackio]'
    """,
    "peer tests": f"{PYTEST} -m peers tests",
    "real checkpoints": f'ZOO_REAL_CHECKPOINTS=1 {PYTHON} -m pytest -m "" tests/real',
}
BUDGETS = {"default tests": 18, "all": 60}
"""Minutes of CPU time for each of two cores, on the slowest kind of machine that CI runs on; the aim is 12 and 45."""


class Time(NamedTuple):
    """What a stage took, in seconds."""

    wall: float
    cpu: float


def run(script: str, slowest: list[tuple[float, str]]) -> tuple[int, Time]:
    """Run a script to its end or first failure, collect the tests that pytest calls slowest, and measure."""
    start, before = time.monotonic(), children_cpu()
    # Pipes would hide a failure, and an empty variable would be a wrong path.
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT, env=os.environ | {"PYTEST_ADDOPTS": "--durations=50"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := re.match(r"([\d.]+)s (?:call|setup|teardown) +(\S+)", line):
            slowest.append((float(match[1]), match[2]))
    code = process.wait()
    return code, Time(time.monotonic() - start, children_cpu() - before)


def children_cpu() -> float:
    """Read the CPU seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def over_budget(times: dict[str, Time]) -> list[str]:
    """Name the budgets that are exceeded."""
    spent = {name: spent.cpu for name, spent in times.items()} | {"all": sum(spent.cpu for spent in times.values())}
    return [
        f"{name}: {spent[name] / 120:.1f} minutes of CPU time per core, and the budget is {minutes}"
        for name, minutes in BUDGETS.items()
        if spent.get(name, 0) > 120 * minutes
    ]


def main(names: list[str]) -> int:
    """Run the stages until one fails; return the exit status."""
    times: dict[str, Time] = {}
    slowest: list[tuple[float, str]] = []
    code = 0
    for name in names or STAGES:
        print(f"== {name}", flush=True)
        code, times[name] = run(STAGES[name], slowest)
        if code != 0:
            print(f"== FAILED: {name}")
            break
    too_slow = over_budget(times)
    if too_slow:
        print("== TOO SLOW:", *too_slow, "The slowest tests:", sep="\n")
        print(*(f"{seconds:8.2f} s  {test}" for seconds, test in sorted(slowest, reverse=True)[:50]), sep="\n")
    print(f"== {'stage':20s}{'wall, s':>10s}{'CPU, s':>10s}")
    for name, spent in (times | {"all": Time(*map(sum, zip(*times.values(), strict=True)))}).items():
        print(f"   {name:20s}{spent.wall:10.0f}{spent.cpu:10.0f}")
    shutil.rmtree(TEMPORARY, ignore_errors=True)
    return code or bool(too_slow)


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in STAGES]
    if unknown:
        sys.exit(f"there is no stage {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    sys.exit(main(sys.argv[1:]))
