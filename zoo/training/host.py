"""What the process asks of its host: a place for compiled programs; on Linux, that freed memory stays its own."""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax

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


def keep_compiled_programs() -> None:
    """Keep what takes a second to compile, for the next run: in ~/.cache/zoo, a folder for each kind of processor.

    Where the environment names JAX_COMPILATION_CACHE_DIR it is kept there, and with JAX_ENABLE_COMPILATION_CACHE=0
    nowhere, as JAX itself has it.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        processor = platform.processor()
    # Programs for CPUs use what the processor has; a home may be shared by machines of many kinds.
    kind = f"{platform.machine()}-{hashlib.sha256(processor.encode()).hexdigest()[:8]}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(home / "zoo" / "compiled" / kind))


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
