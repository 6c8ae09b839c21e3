"""One run writes in a folder at a time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 10.0
"""Seconds to wait for a process that is ending: a job that was killed may overlap with the one that goes on."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which exists, until this ends; the kernel lets go if the process dies.

    Where the file system has no such locks, nothing is kept out.

    Raises:
        ValueError: another process holds the folder.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself: a file in it would be one to clean up
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise ValueError(
                        f"another process trains in {str(folder)!r}: wait for it, stop it, or choose another --folder"
                    ) from None
                time.sleep(0.1)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)
