"""What commands print: results on stdout, everything else on stderr, as loud as is wanted.

How far something is, is redrawn in place on a terminal; elsewhere it is a line now and then.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from craft_client.progress import Lines, animated, drawing, units_line
from craft_shared.amounts import UNITS
from craft_shared.printing import percent, print_json, print_lines, printable, stderr, text_of
from craft_shared.terminal_tables import print_table as table

if TYPE_CHECKING:
    from craft_client.tune import TuneProgress


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


def size(count: int) -> str:
    """Bytes in the unit that fits, of 1,000 of the next smaller one."""
    return decimal(count)


@contextmanager
def watch() -> Iterator[Callable[[TuneProgress], None]]:
    """Gives the function to call with each progress; it raises a Ctrl-C that was lost."""
    with remembered_interrupt() as check, _view() as show:

        def on_progress(progress: TuneProgress) -> None:
            check()
            show(progress)

        yield on_progress


@contextmanager
def _view() -> Iterator[Callable[[TuneProgress], None]]:
    if verbosity() is Verbosity.QUIET:
        yield lambda progress: None
        return
    with drawing(say) as show:
        yield show


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives the function to call with how many of `total` are done."""
    if verbosity() is Verbosity.QUIET or total == 0:
        yield lambda count: None
        return
    if not animated():
        lines = Lines(say, silent_until_late=True)
        yield lambda count: lines.say(what, f"{what}: {count:,} of {total:,}")
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)


@contextmanager
def remembered_interrupt() -> Iterator[Callable[[], None]]:
    """Gives a function that raises `KeyboardInterrupt` if there was one since the block began.

    Python raises it wherever the program happens to be; where that is a destructor or a library's
    callback, the exception is printed and dropped, and a long run would go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # signals are the main thread's
        return
    interrupted = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)
