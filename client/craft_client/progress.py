"""Where a tuning run is, as people watch it: on a terminal, in a notebook, or as lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from craft_shared.amounts import UNITS, counted
from craft_shared.display import View, html
from craft_shared.printing import percent, print_lines, stderr, text_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from craft_client.tuning_run import TuneProgress
    from craft_shared.units import Units

Show = Callable[["TuneProgress"], None]

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def watching(wanted: bool | None) -> Iterator[Show]:
    """Gives the function to call with each progress; None shows it where somebody watches."""
    display = _notebook()
    if wanted is False or (wanted is None and display is None and not animated()):
        yield lambda progress: None
    elif display is not None:
        yield _updating(display)
    else:
        with drawing(lambda line: print_lines([line], err=True)) as show:
            yield show


@contextmanager
def drawing(say: Callable[[str], None]) -> Iterator[Show]:
    """Gives the function that redraws the view on a terminal, and elsewhere says lines."""
    if not animated():
        lines = Lines(say)
        yield lambda progress: lines.say(
            progress.stage, ", ".join(f"{name} {value}" for name, value in rows(progress))
        )
        return
    from rich.errors import LiveError
    from rich.live import Live

    with ExitStack() as stack:
        try:
            live = stack.enter_context(Live(console=stderr(), refresh_per_second=4))
        except LiveError:  # another run in this process has the terminal
            yield lambda progress: None
            return
        yield lambda progress: live.update(panel(progress))


def animated() -> bool:
    """Whether stderr is a terminal on which something may be redrawn, not a file or a pipe."""
    console = stderr()
    return console.file.isatty() and not console.is_dumb_terminal


class Lines:
    """Says a line at a new stage, and of one stage every few seconds; none of them twice.

    Where it is silent until late, what soon ends is not shown at all.
    """

    def __init__(self, say: Callable[[str], None], *, silent_until_late: bool = False) -> None:
        self._say = say
        self._stage = self._line = ""
        self._said_at = time.monotonic() if silent_until_late else -SECONDS_BETWEEN_LINES
        self._by_time_alone = silent_until_late

    def say(self, stage: str, line: str) -> None:
        """Says the line, unless one of the same stage was said a moment ago."""
        now = time.monotonic()
        same = self._by_time_alone or stage == self._stage
        if line == self._line or (same and now - self._said_at < SECONDS_BETWEEN_LINES):
            return
        self._stage, self._line, self._said_at = stage, line, now
        self._say(line)


def rows(progress: TuneProgress) -> list[tuple[str, str]]:
    """What the view shows, as names and values."""
    left = seconds_left(progress)
    accuracy = "held-out accuracy" if progress.stage == "deploy" else "training accuracy"
    shown = [
        ("queries", f"{progress.queries:,} of {progress.budget:,}"),
        ("loss", f"{progress.loss:.4f} (best {progress.best_loss:.4f})"),
        (accuracy, percent(progress.accuracy)),
        ("charged", units_line(progress.units)),
    ]
    if progress.generations:  # none where everything is asked at once
        shown.insert(0, ("generation", f"{progress.generation:,} of {progress.generations:,}"))
        shown.insert(-1, ("time left", "unknown" if left is None else _duration(left)))
    return shown


def panel(progress: TuneProgress) -> RenderableType:
    """The redrawn view."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

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


def units_line(units: Units) -> str:
    """All five units in words."""
    return ", ".join(counted(units[unit], unit) for unit in UNITS)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _notebook() -> Any:
    """IPython's module of displays, where this runs in a notebook; IPython is not imported."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.modules.get("IPython.display") if hasattr(shell, "kernel") else None


def _updating(notebook: Any) -> Show:
    """One output of a notebook that is redrawn."""
    handle: Any = None

    def show(progress: TuneProgress) -> None:
        nonlocal handle
        view = notebook.HTML(html(View(f"at {progress.stage}", dict(rows(progress))), "Tuning"))
        if handle is None:
            handle = notebook.display(view, display_id=True)
        else:
            handle.update(view)

    return show
