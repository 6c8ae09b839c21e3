"""The CPU time of a few lines, as a user's own process would spend it."""

import contextlib
import gc
import time
from collections.abc import Iterator


class Timed:
    seconds = 0.0
    """Of CPU, once the lines are done."""


@contextlib.contextmanager
def cpu_time() -> Iterator[Timed]:
    """Times what is inside, without Python's collector: a worker that ran a thousand tests collects what they left."""
    timed, collects = Timed(), gc.isenabled()
    gc.disable()
    start = time.process_time()
    try:
        yield timed
    finally:
        timed.seconds = time.process_time() - start
        if collects:
            gc.enable()
