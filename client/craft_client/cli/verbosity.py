"""How much is said on stderr: `--quiet`, `--verbose`, or neither.

It knows how loud the program is, and lets the client's log be heard where it is verbose. It does
not know what is said.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

_LOGGERS = ("craft_client",)


class Verbosity(IntEnum):
    """How much is said."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_present = Verbosity.NORMAL


def verbosity() -> Verbosity:
    """How much is to be said now, in every thread."""
    return _present


@contextmanager
def speaking(wanted: Verbosity, say: Callable[[str], None]) -> Iterator[None]:
    """Sets how much is said within the block: `say` gets the log's warnings, or all its lines."""
    global _present
    before, _present = _present, wanted
    # Without any handler Python itself would print warnings.
    handler = logging.NullHandler() if wanted is Verbosity.QUIET else _Said(say)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(handler)
        if wanted is Verbosity.VERBOSE:
            logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _present = before
        for name, level in levels.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)


class _Said(logging.Handler):
    """Says each line of a log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
