"""A line from every process of a run to every other, so that none trains on, or waits, alone.

Each process holds one TCP connection to process 0, first to meet (all are there, or nobody starts) and then to watch:
the kernel closes it when a process dies, however it dies, and the others end at once with one line that names it. JAX
itself notices after its heartbeat's time-out, through which collectives hang, and then aborts with a stack trace; it
remains the net for a machine that vanishes without closing anything.

The connections use the coordinator's address before JAX does, so that one port is enough.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Any

_RETRY_SECONDS = 0.2


class Peers:
    """The connections of one process. `meet` makes them, `watch` begins the watch, `leave` ends it in good order."""

    def __init__(self, process: int, count: int):
        self.process, self.count = process, count
        self._connections: dict[int, socket.socket] = {}  # by the process at the other end
        self._leaving = threading.Event()
        self._handler: Any = None

    def meet(self, address: str, seconds: float) -> None:
        """Return when all processes are there; ValueError if they are not within `seconds`, or contradict each other.

        `address` is host:port of process 0, as JAX's coordinator has it.
        """
        host, _, port = address.rpartition(":")
        host, end = host.strip("[]"), time.monotonic() + seconds
        if self.process == 0:
            self._gather(address, int(port), seconds, end)
        else:
            self._call(address, host, int(port), seconds, end)

    def _gather(self, address: str, port: int, seconds: float, end: float) -> None:
        try:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            raise ValueError(
                f"process 0 cannot listen at {address} ({error.strerror or error}); free the port, or choose another "
                "by JAX_COORDINATOR_PORT or JAX_COORDINATOR_ADDRESS"
            ) from error
        with server:
            try:
                while len(self._connections) < self.count - 1:
                    server.settimeout(max(end - time.monotonic(), 0.01))
                    connection, _ = server.accept()
                    self._greet(connection, end)
            except TimeoutError:
                missing = [str(i) for i in range(1, self.count) if i not in self._connections]
                raise self._refuse(
                    f"process {', '.join(missing)} of {self.count} did not come to {address} within {seconds:g} s; see "
                    "why it did not start, or wait longer by ZOO_JOIN_SECONDS"
                ) from None
        for connection in self._connections.values():
            _send(connection, {"go": True})

    def _greet(self, connection: socket.socket, end: float) -> None:
        """Take the process at the other end of a new connection in; drop what is no process of zoo."""
        hello = _receive(connection, min(end, time.monotonic() + 10))
        if not isinstance(hello, dict) or not {"process", "count"} <= hello.keys():
            connection.close()
            return
        process, count = hello["process"], hello["count"]
        if count != self.count:
            problem = f"process {process} was told of {count} processes and process 0 of {self.count}"
        elif process in self._connections or not 0 < process < count:
            problem = f"two processes were told to be process {process} of {count}"
        else:
            self._connections[process] = connection
            return
        _send(connection, {"error": problem})
        raise self._refuse(f"{problem}; start them anew with numbers from 0 to one below their count")

    def _refuse(self, problem: str) -> ValueError:
        for connection in self._connections.values():
            _send(connection, {"error": problem})
        return ValueError(problem)

    def _call(self, address: str, host: str, port: int, seconds: float, end: float) -> None:
        problem = "no answer"
        while (left := end - time.monotonic()) > 0:
            try:
                connection = socket.create_connection((host, port), timeout=min(left, 10))
            except OSError as error:
                problem = str(error.strerror or error)
                time.sleep(min(_RETRY_SECONDS, left))
                continue
            _send(connection, {"process": self.process, "count": self.count})
            answer = _receive(connection, end + 5)  # process 0 is the one to say who is missing
            if isinstance(answer, dict) and "go" in answer:
                self._connections[0] = connection
                return
            connection.close()
            if isinstance(answer, dict) and "error" in answer:
                raise ValueError(answer["error"])
            problem = "the connection was closed"
            time.sleep(_RETRY_SECONDS)
        raise ValueError(
            f"process {self.process} of {self.count} cannot reach process 0 at {address} within {seconds:g} s "
            f"({problem}); see that process 0 runs and that its machine can be reached at that address and port, or "
            "wait longer by ZOO_JOIN_SECONDS"
        )

    def watch(self) -> None:
        """From now on end this process when another one dies."""
        for connection in self._connections.values():
            connection.setblocking(False)
            _keep_alive(connection)
        self._say_before_abort()
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def _listen(self) -> None:
        selector = selectors.DefaultSelector()
        for process, connection in self._connections.items():
            selector.register(connection, selectors.EVENT_READ, process)
        while not self._leaving.is_set() and selector.get_map():
            for key, _ in selector.select(timeout=1.0):
                try:
                    words = key.fileobj.recv(4096).decode().split("\n")[:-1]  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
                except OSError:
                    words = []
                if "bye" in words:
                    selector.unregister(key.fileobj)
                elif not self._leaving.is_set():
                    lost, _, how = (words[0] if words else f"{key.data} lost").partition(" ")
                    self._end(int(lost), how)

    def _end(self, lost: int, how: str) -> None:
        """End this process and, from process 0, the others, for `lost` has ended."""
        for process, connection in self._connections.items():
            if process != lost:
                with contextlib.suppress(OSError):
                    connection.send(f"{lost} {how}\n".encode())
        os.write(2, self._describe(lost, how))
        os._exit(1)

    def _describe(self, lost: int, how: str = "lost") -> bytes:
        what = f"process {lost} of {self.count} " + ("is lost" if how == "lost" else "failed, as its own output says")
        return (
            f"error: {what}, so process {self.process} ends too; checkpoints are intact: start all processes again "
            "to go on from the newest\n"
        ).encode()

    def _say_before_abort(self) -> None:
        """Say a line also where JAX's own client is the first to notice: it aborts."""

        def say(_number: int) -> None:
            closed = [process for process, connection in self._connections.items() if _is_closed(connection)]
            line = b"error: aborted, for the reason above; checkpoints are intact\n"
            os.write(2, self._describe(closed[0], "lost") if closed else line)
            os._exit(1)

        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)  # kept: C holds no reference
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)

    def fail(self) -> None:
        """Tell the others that this process ends for an error of its own, which it has printed, and end it."""
        self._leaving.set()
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.send(f"{self.process} failed\n".encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def leave(self) -> None:
        """Say that this process ends in good order."""
        self._leaving.set()
        ctypes.CDLL(None).signal(int(signal.SIGABRT), None)
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.send(b"bye\n")


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, end: float) -> Any:
    """One line of JSON; None if the other end closes, is silent until `end`, or speaks otherwise."""
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 65536:
            connection.settimeout(max(end - time.monotonic(), 0.01))
            piece = connection.recv(4096)
            if not piece:
                return None
            text += piece
        return json.loads(text)
    except (OSError, ValueError):
        return None


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _keep_alive(connection: socket.socket) -> None:
    """Let the kernel ask a silent machine after 30 s, and give it up a minute later."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
