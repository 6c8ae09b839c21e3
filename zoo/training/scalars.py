"""TensorBoard files of a run: scalars alone, written by tensorboardX's event writer in the caller's thread.

Its SummaryWriter would hand each value through a queue to a thread of its own; here all values of a step are
one event. metrics.csv is the record of a run, these files are a view of it.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

POINTS = 300  # of a training curve


class Scalars:
    """Writes a run's scalars; silent if not wanted, and on all machines but the first."""

    def __init__(self, folder: Path, step: int, num_steps: int, wanted: bool):
        self._every = max(1, num_steps // POINTS)
        self._writer = None
        if wanted and jax.process_index() == 0:
            event_file_writer, self._protocol = _import_tensorboard()
            (folder / "tensorboard").mkdir(exist_ok=True)
            self._writer = event_file_writer.EventsWriter(str(folder / "tensorboard" / "events"))
            if step:  # TensorBoard forgets the steps that an interrupted run had written beyond this one
                start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
                self._put(step + 1, session_log=start)

    def write(self, step: int, values: Mapping[str, Any], group: str = "train") -> None:
        """Write a step's values under a group; train values only every so many steps."""
        if self._writer is None or (group == "train" and step % self._every):
            return
        scalars = [{"tag": f"{group}/{name}", "simple_value": float(x)} for name, x in values.items()]
        self._put(step, summary={"value": scalars})

    def flush(self) -> None:
        """Put what is buffered on the disk."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _put(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._protocol.Event(wall_time=time.time(), step=step, **content))


def _import_tensorboard() -> tuple[Any, Any]:
    """Return tensorboardX's event writer and protocol, without the torch that it imports if it can."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2
    finally:
        if hidden:
            del sys.modules["torch"]
    return event_file_writer, event_pb2
