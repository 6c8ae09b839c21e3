"""What a process asks of its host, each time in a process of its own."""

import os
import subprocess
import sys

import pytest

from zoo.training import huge_pages

FREE = """
import numpy as np
from zoo.training.host import give_back_freed_memory, keep_freed_memory

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

keep_freed_memory()
before = resident()
arrays = [np.ones(3 * 2**28, np.uint8) for _ in range(4)]
del arrays
kept = resident() - before
give_back_freed_memory()
print(kept, resident() - before)
"""

RESTART = """
import os, sys
from zoo.training.huge_pages import restart_with_huge_pages
print(os.getpid(), flush=True)
restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv)
"""


def run(program: str, **environment: str) -> str:
    """What a program prints, in an environment without JAX's settings of the tests."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run([sys.executable, "-c", program], env=others | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is asked")
def test_freed_memory_is_kept_past_2_gib_and_given_back_when_asked():
    kept, left = map(int, run(FREE).split())
    assert kept > 0.95 * 3 * 2**30 and left < 2**28


@pytest.mark.skipif(not huge_pages.are_there(), reason="this kernel has no huge pages to give, or glibc is old")
def test_a_program_starts_again_once_and_asks_for_huge_pages():
    first, second, told = run(RESTART, GLIBC_TUNABLES="").splitlines()
    assert first == second and told == "glibc.malloc.hugetlb=1 -c"
    told = run(RESTART, GLIBC_TUNABLES="glibc.malloc.arena_max=2").splitlines()[-1]
    assert told == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 -c"
    asked = run(RESTART, GLIBC_TUNABLES="glibc.malloc.hugetlb=0").splitlines()
    assert len(asked) == 2  # as the user has it


@pytest.mark.parametrize("setting", ["always madvise [never]", None])
def test_without_huge_pages_nothing_is_started_again(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "enabled")
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    huge_pages.restart_with_huge_pages()
