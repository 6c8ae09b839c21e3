"""Stopping on request: SIGTERM and SIGINT ask once, politely; a second one stops at once.

A signal during a step is seen after it. A signal during an evaluation breaks the evaluation off, for an
evaluation changes nothing and may take longer than the time that a machine gives before it kills.
"""

import signal
import threading
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """Training was asked to stop, and saved what it had. Left alone, the process exits with 0."""

    def __init__(self, step: int):
        super().__init__(0)
        self.step = step


class EvaluationStopped(BaseException):
    """Raised inside an evaluation by a signal; the loop catches it."""


class StopRequest:
    """Listens for signals while it is entered; in a thread that is not the main one it hears nothing."""

    def __init__(self):
        self.name: str | None = None
        self._interruptible = False
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def interruptible(self):
        """Within this block a signal raises EvaluationStopped instead of waiting for the step's end."""
        if self:
            raise EvaluationStopped
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _hear(self, number: int, _frame) -> None:
        if self:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self._interruptible:
            self._interruptible = False
            raise EvaluationStopped
