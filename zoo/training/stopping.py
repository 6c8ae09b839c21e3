"""Stopping on request: SIGTERM, SIGUSR1 (which SLURM can send ahead of it) and SIGINT ask politely, in any phase.

Where steps were taken that no checkpoint holds, a signal is seen after the step, and the state is saved. A signal
during an evaluation breaks the evaluation off, for an evaluation changes nothing and may take longer than the time that
a machine gives before it kills. Where everything is saved or nothing was begun (imports, data, compiling, the report)
a signal ends the process at once. A second SIGINT breaks off whatever is being done.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
PATIENCE_SECONDS = 3.0
"""How long a process that has nothing to save may go on in native code, such as a compilation, before it is ended."""


class Stopped(SystemExit):
    """Training was asked to stop, and saved what it had. Left alone, the process exits with 0."""

    def __init__(self, step: int):
        super().__init__(0)
        self.step = step


class EvaluationStopped(BaseException):
    """Raised inside an evaluation by a signal; the loop catches it."""


class StopRequest:
    """Whether a signal asked to stop, and what it may interrupt; made by `listen`."""

    def __init__(self):
        self.name: str | None = None
        """The signal's; None while none has come."""
        self.step = 0
        """The step that is saved."""
        self.unsaved = False
        """Whether steps were taken since."""
        self.alone = True
        """Whether the run is this process; of several none ends at once, but all after the step that they agree on."""
        self._interruptible = False

    def __bool__(self) -> bool:
        return self.name is not None

    def all_saved(self, step: int) -> None:
        """Say that nothing would be lost from here on; raises Stopped if a signal has come."""
        self.step, self.unsaved = step, False
        if self and self.alone:
            self._stop()

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

    def hear(self, number: int, _frame: object = None) -> None:
        """Handle a signal, in the main thread."""
        if self:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # machines repeat the others
        self.name = signal.Signals(number).name
        if self._interruptible:
            self._interruptible = False
            raise EvaluationStopped
        if not self.unsaved and self.alone:
            self._stop()

    def _stop(self) -> None:
        self.say_stopped()
        raise Stopped(self.step)

    def say_stopped(self) -> None:
        """Tell that the process ends with nothing to save; a signal may have interrupted Python's own printing."""
        done = f"the checkpoint of step {self.step} is the newest" if self.step else "no step was taken"
        os.write(2, f"{self.name}: stopped, {done}; run the same command again to go on\n".encode())


_listening: list[StopRequest] = []


@contextmanager
def listen(*, owns_process: bool = False) -> Iterator[StopRequest]:
    """Hear signals within the block; a block inside another shares its `StopRequest`.

    Outside the main thread nothing is heard. Who `owns_process` lets it be ended where the main thread is deep in
    native code, which no exception reaches, and nothing would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    stop = _listening[-1] if _listening else StopRequest()
    # Inside another block too: whatever was imported since may have put handlers of its own.
    previous = {number: signal.signal(number, stop.hear) for number in SIGNALS}
    _listening.append(stop)
    try:
        if owns_process:
            with _watching(stop):
                yield stop
        else:
            yield stop
    except Stopped:
        if owns_process and stop.alone:
            # All is saved and closed. Python's own end takes native libraries down, which crashes where one was being
            # imported, or has threads at work.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        raise
    finally:
        _listening.pop()
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _watching(stop: StopRequest) -> Iterator[None]:
    """Have a thread told of signals the moment they come; Python's handlers wait for native code to return."""
    ears, mouth = socket.socketpair()
    left = threading.Event()

    def watch() -> None:
        while numbers := ears.recv(16):
            while not {*numbers}.isdisjoint(SIGNALS) and not left.wait(PATIENCE_SECONDS):
                if not stop.unsaved and stop.alone:
                    if not stop:
                        stop.name = signal.Signals(next(x for x in numbers if x in SIGNALS)).name
                        stop.say_stopped()
                    os._exit(0)

    with ears, mouth:
        mouth.setblocking(False)
        previous = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        watcher = threading.Thread(target=watch, name="signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            left.set()
            mouth.shutdown(socket.SHUT_RDWR)
            watcher.join()
