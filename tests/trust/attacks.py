"""train.py as a process that is attacked: started as a user starts it, heard line by line, its folder watched.

Moments are chosen by what the process says and writes, never by the clock alone: machines differ tenfold in speed.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from processes import PATIENCE, start, start_fresh
from small_run import KEEP, NUM_STEPS


class Training:
    """One process of train.py, forked unless `fresh`.

    Use it as a context manager: what still runs at its end is killed.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], environment: dict[str, str], *, fresh: bool = False):
        self.folder, self.begun = folder, time.monotonic()
        begin = start_fresh if fresh else start
        printed, out = os.pipe()
        try:
            command = ["train.py", "--folder", str(folder), *arguments]
            self.process = begin(command, environment=environment, out=out, err=out, unbuffered=True)
        finally:
            os.close(out)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=(printed,), daemon=True)
        self._reader.start()

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()

    def _read(self, printed: int) -> None:
        with open(printed) as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        """What it printed until now, errors and results in the order of their printing."""
        return "\n".join(list(self.lines))

    def says(self, words: str) -> bool:
        return any(words in line for line in list(self.lines))

    def wait_for(self, event: Callable[["Training"], bool]) -> bool:
        """Wait until an event or the process's end; return whether the event came while it ran."""
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            if event(self):
                return True
            assert time.monotonic() < end, f"neither the event nor the end came: {self.said[-3000:]}"
            time.sleep(0.001)
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def finish(self) -> int:
        """Wait for its end; return the exit code."""
        try:
            code = self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self._reader.join(PATIENCE)
        return code


def rows(folder: Path) -> int:
    """Whole rows of metrics.csv."""
    try:
        return max((folder / "metrics.csv").read_bytes().count(b"\n") - 1, 0)
    except FileNotFoundError:
        return 0


def steps(folder: Path) -> list[int]:
    """Steps with a committed checkpoint, oldest first."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())


def unfinished(folder: Path) -> bool:
    """Whether a save is under way, or was broken off."""
    return any((folder / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def cleans_up(folder: Path) -> bool:
    """Whether a checkpoint more than are kept is there or is being removed, or that was broken off."""
    return len(steps(folder)) > KEEP or any((folder / "checkpoints").glob("removed-*"))


def arrays(folder: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read with Orbax alone: parameters and optimizer."""
    found: dict[str, np.ndarray] = {}
    for item in ("params", "optimizer"):
        with ocp.PyTreeCheckpointer() as checkpointer:
            path = folder / "checkpoints" / str(step) / item
            wanted = {"restore_args": _as_numpy(checkpointer.metadata(path).item_metadata.tree)}
            tree = checkpointer.restore(path, **wanted)
        found |= {f"{item}/{name}": value for name, value in _flat(tree)}
    return found


def _as_numpy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _as_numpy(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_as_numpy(value) for value in tree]
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, (list, tuple)):
        parts = enumerate(tree)
    else:
        return [] if tree is None else [(prefix, np.asarray(tree))]
    return [leaf for name, part in parts for leaf in _flat(part, f"{prefix}/{name}")]


def assert_same_end(whole: Path, folder: Path, step: int = NUM_STEPS) -> None:
    """Two runs ended alike, bit by bit: parameters, moments, and metrics.csv as a file."""
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert steps(folder) == steps(whole)
    expected, found = arrays(whole, step), arrays(folder, step)
    assert expected.keys() == found.keys() and len(expected) > 20
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name
    assert any(name.startswith("optimizer") and np.any(value) for name, value in expected.items())
