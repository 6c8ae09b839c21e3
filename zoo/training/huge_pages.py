"""Huge pages for what a step allocates anew each time, which glibc's allocator asks for only if told before it starts.

XLA's CPU client takes a step's temporary memory, gigabytes, from the system and hands it back. In pages of 4 KiB each
step then waits for hundreds of thousands of page faults; in pages of 2 MiB for some hundreds.
"""

import os
import sys
from pathlib import Path

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def are_asked_for() -> bool:
    """Whether glibc was told, one way or the other, when this process started."""
    return _TUNABLE in os.environ.get(_VARIABLE, "")


def are_there() -> bool:
    """Whether the kernel gives huge pages to who asks, and this C library can ask (glibc 2.35 or newer)."""
    try:
        name, version = os.confstr("CS_GNU_LIBC_VERSION").split()  # such as "glibc 2.36"
        major, minor = map(int, version.split(".")[:2])
        return name == "glibc" and (major, minor) >= (2, 35) and "[never]" not in _SETTING.read_text()
    except (AttributeError, ValueError, OSError):
        return False


def environment() -> dict[str, str]:
    """The variable that asks, beside what it says now."""
    now = os.environ.get(_VARIABLE)
    return {_VARIABLE: ":".join(filter(None, (now, f"{_TUNABLE}=1")))}


def restart_with_huge_pages() -> None:
    """Begin this process anew, asking for huge pages, unless it did ask, cannot, or is being debugged.

    Call it first of all: what was done before is done again. The process keeps its number, its terminal and its files.
    """
    if are_asked_for() or not are_there() or not sys.executable or sys.gettrace() is not None:
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | environment())
