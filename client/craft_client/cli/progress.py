"""The live view of a tuning run: on a terminal redrawn in place, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from craft_client.cli.interrupt import remembered_interrupt
from craft_client.cli.show import percent, stderr, units_line

if TYPE_CHECKING:
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
    console = stderr()
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield lambda progress: live.update(panel(progress))


class _Lines:
    """Prints a line at the first progress, at a new stage, and every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = ""
        self._told_at = 0.0

    def __call__(self, progress: TuneProgress) -> None:
        now = time.monotonic()
        if progress.stage == self._stage and now - self._told_at < SECONDS_BETWEEN_LINES:
            return
        self._stage, self._told_at = progress.stage, now
        facts = ", ".join(f"{name} {value}" for name, value in rows(progress))
        self._console.print(facts, soft_wrap=True, markup=False, highlight=False)


def rows(progress: TuneProgress) -> list[tuple[str, str]]:
    """What the view tells, as names and values."""
    left = seconds_left(progress)
    accuracy = progress.accuracy
    return [
        ("generation", f"{progress.generation:,} of {progress.generations:,}"),
        ("queries", f"{progress.queries:,} of {progress.budget:,}"),
        ("loss", f"{progress.loss:.4f} (best {progress.best_loss:.4f})"),
        ("accuracy on held-in", "not measurable" if accuracy is None else percent(accuracy)),
        ("time left", "unknown" if left is None else _duration(left)),
        ("charged", units_line(progress.units)),
    ]


def panel(progress: TuneProgress) -> RenderableType:
    """The redrawn view."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows(progress):
        grid.add_row(name, value)
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
