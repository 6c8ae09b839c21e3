"""A full disk, whichever thread met it and however it was told, becomes one error that says what is left whole."""

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoo.training.manifest import CHECKPOINTS, list_steps


class DiskFullError(OSError):
    """No more can be written; what was committed before is whole."""

    def __init__(self, message: str):
        super().__init__(errno.ENOSPC, message)

    def __str__(self) -> str:
        return str(self.strerror)


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for inner in (*getattr(error, "exceptions", ()), error.__cause__, error.__context__):
        yield from _chain(inner, seen)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one it was raised from, says that no more can be written.

    Tensorstore reports its own errors as text, so the messages count too.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    phrases = ("No space left on device", "Disk quota exceeded", "File too large")
    return any(
        (isinstance(e, OSError) and e.errno in full) or any(phrase in str(e) for phrase in phrases)
        for e in _chain(error, set())
    )


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, whichever thread met it, into one DiskFullError, and remove what was unfinished."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        remove_unfinished(folder / CHECKPOINTS)
        steps = list_steps(folder)
        intact = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was written before"
        raise DiskFullError(
            f"disk full while writing to {folder}; {intact}: free space and run the same command again"
        ) from error


_PATIENCE = 5.0
"""Seconds in which writing that is still under way should end."""


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed or failed save, or a removal that was broken off, left among the checkpoints.

    Where one array could not be written, Orbax raises and its other tasks still write theirs, so what was removed may
    come back: it is removed again until it stays away.
    """
    end = time.monotonic() + _PATIENCE
    while left := [path for pattern in ("*orbax-checkpoint-tmp*", "removed-*") for path in folder.glob(pattern)]:
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        if time.monotonic() > end:
            return
        time.sleep(0.05)
