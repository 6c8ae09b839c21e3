"""Orbax says at length, from its threads, what it also raises where it can be acted on. Here it is said once.

Two narrow filters for the process that saves: records that Orbax logs, and the exceptions that Python reports
as ignored when a failed save closes an event loop under transfers that have not ended.
"""

import logging
import os
import sys


def quiet_orbax() -> None:
    """Install both filters; more than once changes nothing."""
    logging.getLogger("absl").addFilter(_is_not_orbax)
    if getattr(sys.unraisablehook, "__name__", "") != _skip_closed_loops.__name__:
        _previous_hooks.append(sys.unraisablehook)
        sys.unraisablehook = _skip_closed_loops


_previous_hooks: list = []


def _is_not_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _skip_closed_loops(unraisable) -> None:
    closed = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"
    if not closed:
        _previous_hooks[-1](unraisable)
