"""Ask the host that freed memory stays the process's own, on Linux."""

import ctypes
import sys
from typing import Any

from zoo.training import huge_pages

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Make glibc keep what is freed instead of handing it back to the kernel; not with huge pages, nor elsewhere.

    XLA's CPU client allocates a step's temporary buffers anew each step. Handed back each time, they are mapped and
    zeroed page by page again: 200,000 page faults a step of the tiny GPT, which took 3.3 s with them and 1.7 s without
    (2 virtual cores). Huge pages are the better cure, where there are any: what is kept is not always found again, and
    steps of BERT-base took up to three times their buffers.
    """
    mallopt = _from_glibc("mallopt")
    if mallopt is None or huge_pages.are_asked_for():
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never; a number of bytes could be no more than 2 GiB, which a step may exceed
    mallopt(_M_ARENA_MAX, 1)  # arenas of other threads hold at most 64 MB, and would fall back to mapping


def give_back_freed_memory() -> None:
    """Hand back once what is free now: what compiling took; and where freed memory is kept, the first step's buffers.

    glibc finds no aligned block of a step's size in the place that such a block has left, for want of a few bytes, so
    the second step's lie elsewhere.
    """
    trim = _from_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _from_glibc(name: str) -> Any:
    """One of its functions; None under another C library or system."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
