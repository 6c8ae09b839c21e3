"""Scripts as processes of their own, without an interpreter's start for each: `fork_server.py` forks them.

A server is started once by each worker of a test run, and ends with it.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.training import huge_pages

ROOT = Path(__file__).parents[1]
PATIENCE = 600.0
"""Seconds after which a process counts as hung; a machine under load may take most of them."""
READ_WHEN_USED = ("XLA_FLAGS", "JAX_", "ZOO_", "SLURM_", "OMPI_", "GLIBC_TUNABLES", "COLUMNS", "PYTEST_")
"""Variables that no module reads while it is imported, but for JAX's, which a fork reads again; by their beginnings."""


class Forked:
    """A process forked by a server: what tests use of `subprocess.Popen`."""

    def __init__(self, server: "Server", pid: int, told: socket.socket):
        self.pid, self.returncode = pid, None
        self._server, self._told = server, told

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            with self._told:
                self.returncode = self._server.hear(self._told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen


class Server:
    """A running `fork_server.py`, and the connection to it."""

    def __init__(self, environment: Mapping[str, str]):
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(Path(__file__).with_name("fork_server.py")), str(theirs.fileno())],
                # One thread: others would not be there in a fork.
                env={**environment, **huge_pages_asked_for(), "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the test run's, which then ends what it started
            )
        atexit.register(self.close)

    def fork(self, request: dict, out: int, err: int) -> Forked:
        told, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as on_error:
            on_error.enter_context(told)
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], [out, err, theirs.fileno()])
            except OSError:
                raise self._dead() from None
            theirs.close()  # so that its end is heard if the server has ended
            pid = self.hear(told)
            on_error.pop_all()
        return Forked(self, pid, told)

    def hear(self, told: socket.socket) -> int:
        """Return the next number that the server tells about a process."""
        message = told.recv(64)
        if not message:
            raise self._dead()
        return int(message)

    def close(self) -> None:
        """Have it kill what still runs, and end."""
        self._control.close()
        self.process.wait()
        self._errors.close()
        atexit.unregister(self.close)

    def _dead(self) -> RuntimeError:
        code = self.process.wait(PATIENCE)
        self._errors.seek(0)
        return RuntimeError(f"the fork server has ended with code {code}: {self._errors.read()[-3000:]}")


def huge_pages_asked_for() -> dict[str, str]:
    """What train.py sets before its imports, for which it starts again: a fork could not."""
    return huge_pages.environment() if huge_pages.are_there() and not huge_pages.are_asked_for() else {}


@functools.cache
def _server(environment: frozenset[tuple[str, str]]) -> Server:
    return Server(dict(environment))


def start(
    command: Sequence[str], *, environment: Mapping[str, str], out: int, err: int, unbuffered: bool = False
) -> Process:
    """Start a script, the first word of a command, with its arguments; `out` and `err` are open descriptors."""
    script = str(ROOT / command[0])
    if not hasattr(os, "pidfd_open"):
        return start_fresh(command, environment=environment, out=out, err=err, unbuffered=unbuffered)
    given = dict(environment)
    if command[0] == "train.py" and huge_pages._TUNABLE not in given.get("GLIBC_TUNABLES", ""):
        given |= huge_pages_asked_for()
    server = _server(frozenset(item for item in environment.items() if not item[0].startswith(READ_WHEN_USED)))
    request = {
        "command": [script, *command[1:]],
        "environment": given,
        "folder": os.getcwd(),
        "unbuffered": unbuffered or bool(environment.get("PYTHONUNBUFFERED")),
    }
    return server.fork(request, out, err)


def start_fresh(
    command: Sequence[str], *, environment: Mapping[str, str], out: int, err: int, unbuffered: bool = False
) -> subprocess.Popen:
    """Start a script in a new interpreter, as a user does: for what happens during its start."""
    python = [sys.executable, *(["-u"] if unbuffered else [])]
    words = [*python, str(ROOT / command[0]), *command[1:]]
    return subprocess.Popen(words, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err)


def run(command: Sequence[str], *, environment: Mapping[str, str], starter=start) -> subprocess.CompletedProcess[str]:
    """Run a script to its end; return its exit code and what it printed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = starter(command, environment=environment, out=out.fileno(), err=err.fileno())
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(command), code, out.read(), err.read())
