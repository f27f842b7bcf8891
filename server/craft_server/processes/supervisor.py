"""Starts the processes of one server, and starts them again when they die.

Each process holds a line to this one, whose end tells it to end: it comes from `stop`, and from
this process's death by whatever means.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

import structlog

# A process that keeps dying is started again ever later, up to this.
MOST_SECONDS_BETWEEN = 30.0
LEAST_SECONDS_BETWEEN = 0.1
# What lived so long is well again.
WELL_AFTER_SECONDS = 10.0

_log = structlog.get_logger()


@dataclass
class _Child:
    name: str
    function: Callable[..., None]
    args: tuple[Any, ...]
    process: ForkServerProcess
    line: Connection
    started: float
    pause: float = LEAST_SECONDS_BETWEEN
    due: float | None = None


class Supervisor:
    """Processes that are kept running until `stop`.

    `modules` are imported once for all of them; `on_death` gets the process id of each that dies.
    """

    def __init__(self, modules: list[str], on_death: Callable[[int], None]) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(modules)
        self._on_death = on_death
        self._children: list[_Child] = []
        self._woken, self._wake = os.pipe()
        self.stopping = False

    @property
    def all_alive(self) -> bool:
        """Whether no process has died since `run` looked last."""
        return all(child.process.is_alive() for child in self._children)

    def keep(self, name: str, function: Callable[..., None], *args: Any) -> None:
        """Runs `function(line, *args)` in a process, and again whenever that process dies.

        Processes end in the opposite order, each once those after it have ended.
        """
        process, line = self._start(name, function, args)
        self._children.append(_Child(name, function, args, process, line, time.monotonic()))

    def stop(self) -> None:
        """Makes `run` end all processes and return; may be called in a signal handler."""
        self.stopping = True
        os.write(self._wake, b"x")

    def run(self) -> None:
        """Replaces what dies until `stop`; then ends all, the newest first."""
        while not self.stopping:
            due = [child.due for child in self._children if child.due is not None]
            running = [child.process.sentinel for child in self._children if child.due is None]
            wait([*running, self._woken], max(0.0, min(due) - time.monotonic()) if due else None)
            if not self.stopping:
                self._replace()
        self.end()

    def end(self) -> None:
        """Ends all processes, and waits for them."""
        by_name: dict[str, list[_Child]] = {}
        for child in self._children:
            by_name.setdefault(child.name, []).append(child)
        for group in reversed(by_name.values()):
            for child in group:
                child.line.close()
            for child in group:
                child.process.join()

    def _start(
        self, name: str, function: Callable[..., None], args: tuple[Any, ...]
    ) -> tuple[ForkServerProcess, Connection]:
        theirs, ours = self._context.Pipe(duplex=False)
        process = self._context.Process(target=function, args=(theirs, *args), name=name)
        process.start()
        theirs.close()
        return process, ours

    def _replace(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.due is None and not child.process.is_alive():
                self._bury(child, now)
            if child.due is not None and child.due <= now:
                child.process, child.line = self._start(child.name, child.function, child.args)
                child.started, child.due = now, None

    def _bury(self, child: _Child, now: float) -> None:
        _log.error("process died", process=child.name, exit_code=child.process.exitcode)
        child.line.close()
        self._on_death(child.process.pid or 0)
        well = now - child.started >= WELL_AFTER_SECONDS
        child.pause = LEAST_SECONDS_BETWEEN if well else min(2 * child.pause, MOST_SECONDS_BETWEEN)
        child.due = now + child.pause


def at_the_end_of(line: Connection, function: Callable[[], object]) -> None:
    """Calls a function, on a thread of its own, once the supervisor tells this process to end."""

    def watch() -> None:
        wait([line])
        function()

    threading.Thread(target=watch, name="craft-line", daemon=True).start()
