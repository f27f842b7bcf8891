"""What commands print: results on stdout, everything else on stderr, as loud as is wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from craft_shared.amounts import UNITS
from craft_shared.printing import percent as percent
from craft_shared.printing import print_json, printable, stderr, text_of
from craft_shared.printing import print_lines as print_lines
from craft_shared.printing import print_table as table

if TYPE_CHECKING:
    from craft_shared.units import Units

__all__ = [
    "Verbosity", "animated", "complain", "document", "free_document", "percent", "print_lines",
    "report_done", "say", "size", "speaking", "stderr", "table", "units_line", "verbosity",
]  # fmt: skip


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
def speaking(wanted: Verbosity) -> Iterator[None]:
    """Sets how much is said within the block, the client's log included."""
    global _present
    before, _present = _present, wanted
    # Without any handler Python itself would print warnings.
    handler = logging.NullHandler() if wanted is Verbosity.QUIET else _SayingHandler()
    log = logging.getLogger("craft_client")
    level = log.level
    log.addHandler(handler)
    if wanted is Verbosity.VERBOSE:
        log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _present = before
        log.removeHandler(handler)
        log.setLevel(level)


class _SayingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def animated() -> bool:
    """Whether stderr is a terminal on which something may be redrawn, not a file or a pipe."""
    console = stderr()
    return console.file.isatty() and not console.is_dumb_terminal


def say(message: str) -> None:
    """A message on stderr, one line, unless the program is to be quiet."""
    if verbosity() is not Verbosity.QUIET:
        stderr().print(text_of(message), soft_wrap=True)


def complain(message: str, *more: str) -> None:
    """An error on stderr, a line each, however quiet the program is; its first word stands out."""
    head, space, rest = printable(message).partition(" ")
    lines = text_of(head, "bold red").append_text(text_of(space + rest))
    for line in more:
        lines.append("\n  ").append_text(text_of(line))
    stderr().print(lines, soft_wrap=True)


def document(content: Mapping[str, Any]) -> None:
    """The one JSON document on stdout."""
    print_json(content, indent=2)


def free_document(content: Mapping[str, Any]) -> None:
    """The one JSON document on stdout, of a command that was charged nothing."""
    document({**content, "charged": dict.fromkeys(UNITS, 0)})


def report_done(content: Mapping[str, Any], words: str, as_json: bool) -> None:
    """Says that something free was done: the document, or the words."""
    if as_json:
        free_document(content)
    else:
        say(words)


def units_line(units: Units) -> str:
    """All five units in words."""
    return ", ".join(f"{units[unit]:,} {unit}" for unit in UNITS)


def size(count: int) -> str:
    """Bytes in the unit that fits, of 1,000 of the next smaller one."""
    return decimal(count)
