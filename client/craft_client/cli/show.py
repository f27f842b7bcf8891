"""What commands print: results on stdout, everything else on stderr, as loud as is wanted.

How far something is, is redrawn in place on a terminal; elsewhere it is a line now and then.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table

from craft_shared.amounts import UNITS
from craft_shared.printing import percent, print_json, print_lines, printable, stderr, text_of
from craft_shared.terminal_tables import print_table as table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from craft_client.tune import TuneProgress
    from craft_shared.units import Units


__all__ = [
    "Verbosity", "animated", "complain", "document", "free_document", "percent", "print_lines",
    "report_done", "say", "size", "speaking", "stderr", "table", "units_line", "verbosity",
]  # fmt: skip

SECONDS_BETWEEN_LINES = 10.0


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
    if not animated():
        lines = _Lines()
        yield lambda progress: lines.say(
            progress.stage, ", ".join(f"{name} {value}" for name, value in rows(progress))
        )
        return
    from rich.live import Live

    with Live(console=stderr(), refresh_per_second=4) as live:
        yield lambda progress: live.update(panel(progress))


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives the function to call with how many of `total` are done."""
    if verbosity() is Verbosity.QUIET or total == 0:
        yield lambda count: None
        return
    if not animated():
        lines = _Lines(silent_until_late=True)
        yield lambda count: lines.say(what, f"{what}: {count:,} of {total:,}")
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)


class _Lines:
    """Says a line at a new stage, and of one stage every few seconds.

    Where it is silent until late, what soon ends is not shown at all.
    """

    def __init__(self, *, silent_until_late: bool = False) -> None:
        self._stage: str | None = None
        self._said_at = time.monotonic() if silent_until_late else -SECONDS_BETWEEN_LINES
        self._by_time_alone = silent_until_late

    def say(self, stage: str, line: str) -> None:
        now = time.monotonic()
        same = self._by_time_alone or stage == self._stage
        if same and now - self._said_at < SECONDS_BETWEEN_LINES:
            return
        self._stage, self._said_at = stage, now
        say(line)


def rows(progress: TuneProgress) -> list[tuple[str, str]]:
    """What the view shows, as names and values."""
    left = seconds_left(progress)
    accuracy = progress.accuracy
    seen = progress.stage != "deploy"
    return [
        ("generation", f"{progress.generation:,} of {progress.generations:,}"),
        ("queries", f"{progress.queries:,} of {progress.budget:,}"),
        ("loss", f"{progress.loss:.4f} (best {progress.best_loss:.4f})"),
        ("accuracy on its own pictures" if seen else "accuracy, held out", percent(accuracy)),
        ("time left", "unknown" if left is None else _duration(left)),
        ("charged", units_line(progress.units)),
    ]


def panel(progress: TuneProgress) -> RenderableType:
    """The redrawn view."""
    from rich.progress_bar import ProgressBar

    grid = Table.grid(padding=(0, 2))
    for name, value in rows(progress):
        grid.add_row(text_of(name), text_of(value))
    whole = Table.grid()
    whole.add_row(ProgressBar(total=progress.budget, completed=progress.queries, width=60))
    whole.add_row(grid)
    return whole


def seconds_left(progress: TuneProgress) -> float | None:
    """What the generations that are left take at the present pace; None before the first."""
    if progress.stage == "deploy" or progress.generation == progress.generations:
        return 0.0
    if not progress.generation:
        return None
    return progress.elapsed_s * (progress.generations - progress.generation) / progress.generation


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
