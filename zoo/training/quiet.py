"""Orbax says at length, from its threads, what it also raises where it can be acted on. Here it is said once.

Narrow filters for the process that saves: records that Orbax logs; what asyncio logs of Orbax's tasks where several
fail at once and only the first error is raised; and the exceptions that Python reports as ignored when a failed save
closes an event loop under transfers that have not ended.
"""

import logging
import os
import sys


def quiet_orbax() -> None:
    """Install the filters; more than once changes nothing."""
    logging.getLogger("absl").addFilter(_is_not_orbax)
    logging.getLogger("asyncio").addFilter(_is_not_forgotten_by_orbax)
    if getattr(sys.unraisablehook, "__name__", "") != _skip_closed_loops.__name__:
        _previous_hooks.append(sys.unraisablehook)
        sys.unraisablehook = _skip_closed_loops


_ORBAX = f"{os.sep}orbax{os.sep}"
_previous_hooks: list = []


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return _ORBAX not in record.pathname


def _is_not_forgotten_by_orbax(record: logging.LogRecord) -> bool:
    """A task names the function it ran, a gathered future nothing: there the error or its traceback does."""
    forgotten = "exception was never retrieved" in record.getMessage()
    return not (forgotten and "orbax" in logging.Formatter().format(record))


def _skip_closed_loops(unraisable) -> None:
    closed = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    if not closed:
        _previous_hooks[-1](unraisable)
