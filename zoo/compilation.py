"""The persistent compilation cache: programs that XLA compiled once are read from a folder by later processes."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import jax

SWITCH = "ZOO_COMPILE_CACHE"
"""The environment variable that moves the cache to another folder, or turns it off."""
MAX_BYTES = 2 * 2**30
"""Size that a folder is cut back to when a process begins."""
MIN_SECONDS = 0.1
"""Compile time from which a program is kept, instead of JAX's own second: small ones add up in a first call."""
_JAX_MIN_SECONDS = 1.0


def keep_compiled_programs() -> None:
    """Turn on JAX's persistent compilation cache, which `zoo.load` and the scripts do.

    The folder is `compiled` in ~/.cache/zoo ($XDG_CACHE_HOME/zoo where that is set), or the one that
    ZOO_COMPILE_CACHE names. In it each kind of processor has a folder of its own, as programs for CPUs use what the
    processor has and a home may be shared. Programs used longest ago are deleted beyond `MAX_BYTES`.

    - `ZOO_COMPILE_CACHE=off` turns it off.
    - JAX's own settings go first: where `jax_compilation_cache_dir` is set already, by the environment or by code, or
      `jax_enable_compilation_cache` is off, nothing is changed. Code that wants another folder sets it before.
    - Where a home cannot be written, nothing is kept.
    - Processes share a folder; a program that cannot be read, as after a full disk, is compiled with a warning of JAX.

    Raises:
        ValueError: ZOO_COMPILE_CACHE names a folder that cannot be written.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted == "off" or jax.config.jax_compilation_cache_dir is not None:
        return
    if not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = (Path(wanted) if wanted else _default_folder()) / _processor_kind()
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        writable = False
    if not writable:
        if wanted:
            raise ValueError(f"{SWITCH} is {wanted!r}, a folder that cannot be written; give another, or off")
        return
    delete_oldest(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if jax.config.jax_persistent_cache_min_compile_time_secs == _JAX_MIN_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo" / "compiled"


def _processor_kind() -> str:
    """A name for processors that run the same programs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def delete_oldest(folder: Path, max_bytes: int) -> None:
    """Delete the files used longest ago until the rest have `max_bytes` at the most.

    JAX can evict by itself, but not where a process was ended while it wrote, nor where the folder cannot be locked.
    """
    with contextlib.suppress(OSError):  # of two processes that delete, one finds less
        files = [(file, file.stat()) for file in folder.glob("*-cache")]
        # The time of reading may be off by a day, or that of writing, as the file system is mounted.
        files.sort(key=lambda pair: max(pair[1].st_atime, pair[1].st_mtime))
        excess = sum(stat.st_size for _, stat in files) - max_bytes
        for file, stat in files:
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= stat.st_size
