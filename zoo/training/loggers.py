"""Services that keep the curves of many runs, by name: Weights & Biases and trackio, imported where they are wanted.

They get the rows of metrics.csv, each once it is complete. A run that goes on keeps its id, which is in its folder, and
its newest row is given again: Weights & Biases drops what it has, trackio keeps both.
"""

import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from zoo.training.run_record import as_json, write_text

Log = Callable[[dict[str, float], int], Any]


def check_loggers(names: tuple[str, ...]) -> None:
    """Raise ValueError for a logger that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"training.loggers has {name!r}, which is not installed; install it by pip install {name}, or zoo with "
                f"its extra, as in pip install -e '.[{name}]'"
            )


class Loggers:
    """Gives rows to the loggers of a run; on all machines but the first to none."""

    def __init__(self, folder: Path, names: tuple[str, ...], resolved: Mapping[str, Any]):
        self._logs: list[Log] = []
        self._finish: list[Callable[[bool], Any]] = []
        self._row: dict[str, float] = {}
        self._step: int | None = None
        if names and jax.process_index() == 0:
            identity, config = _identify(folder), as_json(resolved)
            for name in names:
                log, finish = _OPENERS[name](folder, identity, config)
                self._logs.append(log)
                self._finish.append(finish)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to a step's row; a row is given when the next one begins."""
        if not self._logs:
            return
        if step != self._step:
            self._give()
            self._step, self._row = step, {}
        self._row |= {name: float(value) for name, value in values.items()}

    def close(self, *, is_complete: bool) -> None:
        """Give the newest row, unless an interrupted run may add to it when it goes on, and end the connections."""
        if is_complete:
            self._give()
        finish, self._finish, self._logs = self._finish, [], []
        for end in finish:
            end(is_complete)

    def _give(self) -> None:
        if self._row and self._step is not None:
            for log in self._logs:
                log(dict(self._row), self._step)


def _identify(folder: Path) -> str:
    """The id of the run in its folder, made at its beginning."""
    path = folder / "logger-id"
    if not path.exists():
        write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8").strip()


def _open_wandb(folder: Path, identity: str, config: Any) -> tuple[Log, Callable[[bool], Any]]:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "zoo"), id=identity, name=folder.name, resume="allow", config=config,
        dir=folder,
    )  # fmt: skip
    return lambda row, step: run.log(row, step=step), lambda is_complete: run.finish(exit_code=0 if is_complete else 1)


def _open_trackio(folder: Path, identity: str, config: Any) -> tuple[Log, Callable[[bool], Any]]:
    import trackio  # pyright: ignore[reportMissingImports]

    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "zoo"), name=f"{folder.name}-{identity}", config=config,
        resume="allow", embed=False,
    )  # fmt: skip
    return lambda row, step: run.log(row, step=step), lambda is_complete: trackio.finish()


_OPENERS = {"wandb": _open_wandb, "trackio": _open_trackio}
