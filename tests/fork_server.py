"""A process that has imported what train.py and evaluate.py import, and forks a copy of itself for each command.

`processes.py` starts it and talks to it. It has no threads and no JAX backend, so a copy is as good as an interpreter
that has just done its imports: it takes over the command's environment, folder, arguments and output, seeds NumPy anew
and runs the script to the interpreter's own end. What a module reads from the environment while it is imported is the
server's, but for JAX's settings, which are read again.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 1 << 17
"""Bytes of a request; Linux takes no longer message."""
IMPORTED = (
    "zoo.cli",
    "jaxlib.mlir.dialects.mhlo",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "rich.status",
    "tensorboardX",
    "zoo.pretrained",
    "zoo.recipes.ask",
    "zoo.recipes.job",
)
"""All that the scripts import, what they import only once they need it too."""


class Copy:
    """A forked process. Whoever asked for it is told its number and, at its end, its exit code.

    It stays a zombie until the other side has hung up, so that its number means no other process meanwhile.
    """

    def __init__(self, pid: int, told: socket.socket):
        self.pid, self.told, self.pidfd = pid, told, os.pidfd_open(pid)
        self.ended = self.reaped = False
        self._tell(pid)

    def fileno(self) -> int:
        """What is readable when there is something to do: at its end, then when the other side hangs up."""
        return self.told.fileno() if self.ended else self.pidfd

    def proceed(self) -> None:
        """Wait for its end and tell it; the second time, reap it."""
        if self.ended:
            os.waitpid(self.pid, 0)
            self.reaped = True
            self.close()
            return
        end = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        self.ended = True
        self._tell(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)

    def close(self) -> None:
        self.told.close()
        os.close(self.pidfd)

    def _tell(self, number: int) -> None:
        with contextlib.suppress(OSError):  # the other side may have hung up
            self.told.send(str(number).encode())


def serve(control: socket.socket) -> dict | None:
    """Fork for each request until the other side hangs up; return None then, and in a copy its request."""
    copies: list[Copy] = []
    while True:
        for ready in select.select([control, *copies], [], [])[0]:
            if ready is not control:
                ready.proceed()
                continue
            message, descriptors, *_ = socket.recv_fds(control, LONGEST, 3)
            if not message:
                for copy in copies:
                    os.kill(copy.pid, signal.SIGKILL)
                    while not copy.reaped:
                        copy.proceed()
                return None
            out, err, told = descriptors
            pid = os.fork()
            if pid == 0:
                for copy in copies:
                    copy.close()
                os.close(told)
                return json.loads(message) | {"out": out, "err": err}
            copies.append(Copy(pid, socket.socket(fileno=told)))
            os.close(out)
            os.close(err)
        copies = [copy for copy in copies if not copy.reaped]


def become(request: dict) -> None:
    """Turn this copy into the process that a command starts, as it is after its imports."""
    import numpy as np

    for number, descriptor in ((1, request["out"]), (2, request["err"])):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if not request["unbuffered"]:  # this process was started with -u
        raw = io.FileIO(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), sys.stdout.encoding, sys.stdout.errors)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    read_jax_settings()
    np.random.seed()  # Python's own generator does so when forked
    sys.argv = request["command"]
    sys.orig_argv = [sys.executable, *sys.argv]
    sys.path[0] = str(Path(sys.argv[0]).parent)


def read_jax_settings() -> None:
    """Set what JAX would have read from the environment while it was imported; the server's had none of it."""
    import jax

    for name, default in jax.config.values.items():
        given = os.environ.get(name.upper())
        if given is None:
            continue
        if isinstance(default, bool):
            value = given.lower() in ("y", "yes", "t", "true", "on", "1")
        else:
            value = type(default)(given) if isinstance(default, (int, float)) else given
        jax.config.update(name, value)


def import_all() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    import tyro

    from zoo.training.config import DryRunConfig

    tyro.cli(DryRunConfig, args=[])  # imports its parts once it needs them


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    sys.path[0] = str(ROOT)
    import_all()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"something that was imported has started {len(threads) - 1} threads"
    gc.collect()
    gc.freeze()  # collecting would touch, and so copy, every page
    request = serve(control)
    if request is not None:
        control.close()
        become(request)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
