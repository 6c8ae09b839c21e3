"""What all workers of a test run share: made once, by the worker that asks first, while the others wait."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of the whole run; a worker of xdist has its own one inside it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a path that `make(path)` has written, called by the first worker that asks for this name.

    `make` finds nothing at the path. If it raises, what it wrote is removed, and the next worker tries again. Treat
    what is there as read-only: other workers read it too.
    """
    folder = shared_folder(tmp_path_factory) / "shared"
    folder.mkdir(exist_ok=True)
    path, done = folder / name, folder / f"{name}.done"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, however the worker ends
        if not done.exists():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            make(path)
            done.touch()
    return path
