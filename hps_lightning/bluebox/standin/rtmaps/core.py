"""The runtime's log and clock."""

import time

from . import RefusedError

reports = []
"""All reports so far, in their order: pairs of a level ("info", "warning", "error") and a text."""


def take_reports():
    """The reports so far, which are then forgotten."""
    taken = list(reports)
    del reports[:]
    return taken


def _report(level, text):
    if not isinstance(text, str):
        raise RefusedError("a report must be text, got {!r}".format(text))
    try:
        text.encode("ascii")
    except UnicodeEncodeError:
        raise RefusedError("a report must be ASCII, got {!r}".format(text))
    reports.append((level, text))


def report_info(text):
    """Writes into the log."""
    _report("info", text)


def report_warning(text):
    """Writes a warning into the log."""
    _report("warning", text)


def report_error(text):
    """Writes an error into the log."""
    _report("error", text)


def current_time():
    """The time in microseconds, an integer."""
    return int(time.time() * 1000000)
