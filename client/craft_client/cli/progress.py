"""How far something is: on a terminal redrawn in place, elsewhere a line now and then.

With `--quiet` nothing is shown.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from rich.table import Table

from craft_client.cli.show import (
    Verbosity,
    animated,
    percent,
    say,
    stderr,
    units_line,
    verbosity,
)
from craft_shared.printing import text_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from craft_client.tune import TuneProgress

SECONDS_BETWEEN_LINES = 10.0


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
